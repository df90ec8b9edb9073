"""What runs have learned: a table and a plot that compare them, and a summary of one run.

Reads `metrics.jsonl` and `config.json` of workdirs, nothing else. Plots need matplotlib, which is
optional.
"""

import io
import os
import re
import sys
from typing import NamedTuple

from etils import epath
import numpy as np

from v05_jax import config as configuration
from v05_jax import metrics

# The first of these that all runs have is compared.
SCORES = ("eval/accuracy", "eval/exact", "accuracy", "reward")
# Okabe and Ito's, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b8a500")
INK, GRID = "#333333", "#e5e5e5"
AXES = {"rollouts": "rollouts generated", "step": "steps"}

# The panels of summary.png: title, then label -> metric.
PANELS = (
  ("held-out success", {"exact": "eval/exact", "exact or sampled": "eval/accuracy"}),
  ("success of the rollouts", {"accuracy": "accuracy"}),
  ("reward, verifier's units", {"reward": "reward"}),
  ("rollouts per prompt", {"k": "k/mean"}),
  ("prior's error |V - vbar|, value units", {"|V - vbar|": "prior/abs_error"}),
  ("shares", {"weight of vbar": "shrinkage/weight", "priors accepted": "prior/accepted"}),
  (
    "baseline MSE, value units squared",
    {
      "fused, true": "shrinkage/true_mse",
      "group mean, true": "shrinkage/true_mse_mean",
      "fused, estimated": "shrinkage/estimated_mse",
    },
  ),
  ("gradient norm before clipping", {"norm": "grad/norm"}),
  ("entropy, nats a token", {"entropy": "loss/entropy"}),
  ("response length, tokens", {"length": "response/length"}),
)


class Run(NamedTuple):
  """One workdir."""

  name: str
  parent: str  # name of the folder around it
  key: str  # the config but for its seed: runs of one key are seeds of one method
  lines: list[dict]  # of metrics.jsonl

  @property
  def axis(self) -> str:
    """What it is drawn over: its rollouts, or its steps where it has none (the warm start)."""
    return "rollouts" if self.lines[-1]["rollouts"] else "step"

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rollouts, value) of the lines that hold a metric."""
    points = [(line[self.axis], line[name]) for line in self.lines if line.get(name) is not None]
    rollouts, values = np.array(points, float).reshape(-1, 2).T
    return rollouts, values

  def total(self, *names: str) -> float:
    return sum(line.get(name) or 0.0 for line in self.lines for name in names)


class Row(NamedTuple):
  """One method in the table: the mean over its seeds."""

  name: str
  seeds: int
  curve: tuple[np.ndarray, np.ndarray, np.ndarray]  # rollouts, score, standard error
  start: float  # score
  end: float
  gain: float
  area: float
  errors: tuple[float, float, float, float]  # standard errors of these four
  rollouts: float
  prompts: float
  seconds: float


def report(workdirs: list[str], out: str | None = None, names=None) -> list[Row]:
  """Compares runs: prints a Markdown table, writes it and a plot as comparison.md and .png -> a row a method, in order.

  Every score is taken on the rollouts that all runs have reached: `start`, `end` and `area`, the
  mean height of the curve (its integral divided by its length), so longer runs gain nothing from
  their length. Runs whose configs differ by nothing but the seed are averaged. `out`: folder of the
  plot; by default the one that holds the first workdir. `names`: of the runs, instead of their
  folders'. Raises ValueError for a workdir without metrics.
  """
  runs = [load(workdir) for workdir in workdirs]
  if names is not None:
    runs = [run._replace(name=name) for run, name in zip(runs, names, strict=True)]
  score = next((s for s in SCORES if all(len(run.curve(s)[0]) for run in runs)), None)
  if score is None:
    expected = ", ".join(SCORES)
    raise ValueError(f"no metric is in all of {', '.join(workdirs)}; expected one of {expected}")
  rows = compare(runs, score)
  text = table(rows, score)
  print(text)
  folder = metrics.folder(out) if out else metrics.folder(workdirs[0]).parent
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "comparison.md").write_text(text + "\n")
  if (path := _draw(folder / "comparison.png", _comparison, rows, score)) is not None:
    print(f"\n{path}")
  return rows


def summary(workdir: str) -> str | None:
  """Draws WORKDIR/summary.png, small multiples of a run's metrics over its rollouts -> its path.

  Without matplotlib it says so and returns None. Raises ValueError for a workdir without metrics.
  """
  return _draw(metrics.folder(workdir) / "summary.png", _summary, load(workdir))


def load(workdir: str) -> Run:
  """The run in a workdir. Raises ValueError if it holds no metrics."""
  path = metrics.folder(workdir)
  lines = metrics.read(path)
  if not lines:
    raise ValueError(f"workdir {workdir}: found no metrics.jsonl, expected that of a run")
  key, saved = os.fspath(path), path / "config.json"
  if saved.exists():
    config = configuration.flatten(configuration.from_json(saved.read_text(), os.fspath(saved)))
    ignored = ("seed", *configuration.RESUMABLE)
    key = repr(sorted((k, v) for k, v in config.items() if k not in ignored))
  return Run(path.name, path.parent.name, key, lines)


def compare(runs: list[Run], score: str) -> list[Row]:
  """A row for each method, in the order of the runs."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.key, []).append(run)
  curves = [run.curve(score)[0] for run in runs]
  first, last = max(x[0] for x in curves), min(x[-1] for x in curves)
  if last < first:
    raise ValueError(f"the runs do not overlap: one ends at {last:.0f}, one starts at {first:.0f}")
  rows = [_row(group, score, first, last) for group in groups.values()]
  names = [row.name for row in rows]
  parents = [f"{group[0].parent}/" for group in groups.values()]
  return [
    row._replace(name=parent * (names.count(row.name) > 1) + row.name)
    for row, parent in zip(rows, parents)
  ]


def _row(group: list[Run], score: str, first: float, last: float) -> Row:
  points = np.unique(np.concatenate([run.curve(score)[0] for run in group] + [[first, last]]))
  points = points[(points >= first) & (points <= last)]
  values = np.stack([np.interp(points, *run.curve(score)) for run in group])  # [seeds, points]
  area = np.trapezoid(values, points, axis=1) / (last - first) if last > first else values[:, 0]
  ends = values[:, 0], values[:, -1]
  scores = np.stack([*ends, ends[1] - ends[0], area], axis=1)  # [seeds, 4]
  start, end, gain, area = scores.mean(0).tolist()
  return Row(
    name=_name(group),
    seeds=len(group),
    curve=(points, values.mean(0), _standard_error(values)),
    start=start, end=end, gain=gain, area=area,
    errors=tuple(_standard_error(scores).tolist()),
    rollouts=float(np.mean([run.lines[-1]["rollouts"] for run in group])),
    prompts=float(np.mean([run.total("prompts") for run in group])),
    seconds=float(np.mean([_seconds(run) for run in group])),
  )  # fmt: skip


def _standard_error(x: np.ndarray) -> np.ndarray:
  return x.std(0, ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.zeros(x.shape[1:])


def _seconds(run: Run) -> float:
  whole = run.total("time/step")
  return whole or run.total("time/sample", "time/update")


def _name(group: list[Run]) -> str:
  """The workdir's name; of several seeds what they share: grpo for grpo-s0, grpo-s1 or grpo/0."""
  if len({run.name for run in group}) == 1:
    return group[0].name
  shared = os.path.commonprefix([run.name for run in group])  # noqa: RUF071 of characters
  return re.sub(r"[-_. ]*(s|seed)?[-_.]*$", "", shared) or group[0].parent


def table(rows: list[Row], score: str) -> str:
  """The comparison as a Markdown table, best end first."""
  several = any(row.seeds > 1 for row in rows)
  last = rows[0].curve[0][-1]
  optional = lambda cell: [cell] if several else []
  head = ["run", *optional("seeds"), "start", "end", "gain", "area", "rollouts", "prompts", "time"]
  lines = [
    f"{_title(score)}; up to {last:,.0f} rollouts"
    + (" (mean ± standard error over seeds)" if several else "")
    + "; area = mean height of the curve",
    "",
    f"| {' | '.join(head)} |",
    f"|{' --- |' * len(head)}",
  ]
  for row in sorted(rows, key=lambda row: -row.end):
    scores = [
      f"{score:.4f}" + (f" ± {error:.4f}" if several else "")
      for score, error in zip((row.start, row.end, row.gain, row.area), row.errors)
    ]
    size = [f"{row.rollouts:,.0f}", f"{row.prompts:,.0f}", f"{row.seconds:,.0f} s"]
    lines.append(f"| {' | '.join([row.name, *optional(str(row.seeds)), *scores, *size])} |")
  return "\n".join(lines)


def _draw(path: epath.Path, draw, *arguments) -> str | None:
  """Saves the figure that `draw(Figure, ...)` returns -> its path; None without matplotlib."""
  try:
    import matplotlib
  except ImportError:
    print(f"{path.name}: not drawn without matplotlib (pip install matplotlib)", file=sys.stderr)
    return None
  from matplotlib.figure import Figure

  style = {
    "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titlecolor": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.6,
    "legend.frameon": False,
  }  # fmt: skip
  with matplotlib.rc_context(style):
    figure = draw(Figure, *arguments)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(buffer.getvalue())
  return os.fspath(path)


def _comparison(new_figure, rows: list[Row], score: str):
  figure = new_figure(figsize=(7.2, 4.4), layout="constrained")
  axes = figure.subplots()
  colours = {id(row): COLOURS[i % len(COLOURS)] for i, row in enumerate(rows)}
  for row in sorted(rows, key=lambda row: -row.end):  # the legend in the order of the ends
    x, mean, error = row.curve
    label = f"{row.name}  {row.end:.3f}"
    axes.plot(x, mean, color=colours[id(row)], label=label, marker="o", markersize=3)
    if row.seeds > 1:
      edges = mean - error, mean + error
      axes.fill_between(x, *edges, color=colours[id(row)], alpha=0.15, linewidth=0)
  band = "; band: standard error over seeds" if any(row.seeds > 1 for row in rows) else ""
  axes.set_title(f"{_title(score).split(':')[0]}{band}", pad=10)
  _rollouts_axis(axes, AXES["rollouts"])
  axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="run, end", alignment="left")
  return figure


def _title(score: str) -> str:
  return {
    "eval/exact": "exact success on held-out prompts",
    "eval/accuracy": "success on held-out prompts: exact where the task allows it, else sampled",
    "accuracy": "success of the rollouts",
    "reward": "mean reward",
  }[score]


def _summary(new_figure, run: Run):
  panels, board = _panels(run), standings(run)
  number = len(panels) + bool(board)
  columns = 3 if number <= 9 else 4
  rows = -(-max(number, 1) // columns)
  figure = new_figure(figsize=(3.4 * columns, 2.3 * rows + 0.3), layout="constrained")
  figure.suptitle(run.name, x=0.01, ha="left", fontsize=11, fontweight="bold")
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, (title, curves) in zip(grid, panels):
    for (label, (x, y, evaluated)), colour in zip(curves.items(), COLOURS):
      if not evaluated and len(x) >= 20:  # noisy: the values pale, their moving mean strong
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, _moving_mean(y, len(y) // 10), color=colour, label=label)
      else:
        axes.plot(x, y, color=colour, label=label, marker="o", markersize=3)
    axes.set_title(title, pad=16)
    lowest = axes in grid[max(0, len(panels) - columns) : len(panels)]
    _rollouts_axis(axes, AXES[run.axis] if lowest else None)
    if len(curves) > 1:
      axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(curves), fontsize=7,
        handlelength=1.0, borderpad=0.0, borderaxespad=0.3, columnspacing=1.0, handletextpad=0.4,
      )  # fmt: skip
  if board:
    _draw_board(grid[len(panels)], board)
  for axes in grid[number:]:
    axes.set_axis_off()
  return figure


def standings(run: Run) -> list[tuple[str, float, float]]:
  """(estimator, difference, standard error) of the scoreboard's last line, best first; [] without one."""
  last = run.lines[-1]
  names = {name.split("/")[1] for name in last if name.startswith("scoreboard/")}
  own = {name for name in names if f"scoreboard/{name}/difference" not in last}
  rows = [(x, last[f"scoreboard/{x}/difference"], last[f"scoreboard/{x}/standard_error"]) for x in names - own]
  if any(None in row for row in rows):  # nothing was judged
    return []
  return sorted([*rows, *((f"{name} (own)", 0.0, 0.0) for name in own)], key=lambda row: row[1])


def _draw_board(axes, board):
  """Horizontal bars of one standard error to each side, the best estimator on top."""
  labels, difference, error = zip(*board)
  axes.axvline(0.0, color=INK, linewidth=0.6)
  axes.errorbar(difference, range(len(board)), xerr=error, fmt="o", color=COLOURS[0], markersize=3, linewidth=1)
  axes.set_yticks(range(len(board)), labels)
  axes.invert_yaxis()
  axes.set_title("baseline MSE minus that of the run's own", pad=16)


def _panels(run: Run) -> list[tuple[str, dict]]:
  """(title, label -> (rollouts, value, of an evaluation?)) of the panels with something to show.

  A curve that repeats an earlier one is left out: reward = accuracy where a reward is 0 or 1.
  """
  panels, seen = [], []
  for title, names in PANELS:
    curves = {}
    for label, name in names.items():
      curve = run.curve(name)
      if len(curve[0]) and not any(np.array_equal(curve, other) for other in seen):
        seen.append(curve)
        curves[label] = (*curve, name.startswith("eval/"))
    if curves:
      panels.append((title, curves))
  return panels


def _moving_mean(y: np.ndarray, width: int) -> np.ndarray:
  """Centred mean over `width` points, fewer at the ends."""
  weights = np.ones(max(width, 1))
  return np.convolve(y, weights, "same") / np.convolve(np.ones(len(y)), weights, "same")


def _rollouts_axis(axes, label: str | None):
  thousands = lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"
  axes.xaxis.set_major_formatter(thousands)
  if label is not None:
    axes.set_xlabel(label)
