"""Runs read back and compared: what `metrics.jsonl` and `config.json` of workdirs say, nothing
else.

A method is one config; runs that differ by nothing but the seed are seeds of a method.
"""

import collections
import os
import re
from typing import Any, NamedTuple

import numpy as np

from configs import default
from v05_jax import config as configuration
from v05_jax.run import files, metrics

# The first of these that all runs have is compared.
SCORES = ("eval/accuracy", "eval/exact", "accuracy", "reward")
TITLES = {
  "eval/exact": "exact success on held-out prompts",
  "eval/accuracy": "success on held-out prompts: exact where the task allows it, else sampled",
  "accuracy": "success of the rollouts",
  "reward": "mean reward",
}
AXES = {"rollouts": "rollouts generated", "step": "steps"}
LEVEL = 0.95  # of the intervals of paired differences
MOST_POINTS = 256  # of a drawn curve

# Panels of a run's metrics: title, then label -> metric.
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

  name: str  # its folder's, or one that was given to it
  parent: str  # name of the folder around it
  folder: str  # its own, with the one around it
  key: str  # the config but for its seed: runs of one key are seeds of one method
  lines: list[dict]  # of metrics.jsonl
  keys: dict[str, Any]  # of config.json, flat; empty without one

  @property
  def seed(self) -> int | None:
    """The config's seed; None without a config."""
    return self.keys["seed"] if self.keys else None

  @property
  def axis(self) -> str:
    """What it is drawn over: its rollouts, or its steps where it has none (the warm start)."""
    return "rollouts" if self.lines[-1]["rollouts"] else "step"

  def curve(self, name: str, axis: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(place on the axis, by default its own; value) of the lines that hold a metric."""
    points = [
      (line[axis or self.axis], line[name]) for line in self.lines if line.get(name) is not None
    ]
    places, values = np.array(points, float).reshape(-1, 2).T
    return places, values

  def total(self, *names: str) -> float:
    return sum(line.get(name) or 0.0 for line in self.lines for name in names)

  @property
  def seconds(self) -> float:
    """Wall-clock time of its steps."""
    return self.total("time/step") or self.total("time/sample", "time/update")


class Curve(NamedTuple):
  """A metric of a method along an axis: mean and standard error over its seeds, arrays of one
  shape."""

  x: np.ndarray
  mean: np.ndarray
  error: np.ndarray


class Row(NamedTuple):
  """One method in the table: the mean over its seeds."""

  name: str
  seeds: int
  axis: str  # of the curve: one of AXES
  curve: Curve  # of the score
  start: float  # score
  end: float
  gain: float
  area: float
  errors: tuple[float, float, float, float]  # standard errors of these four
  rollouts: float
  prompts: float
  seconds: float
  by_seed: dict[int, tuple[float, float]]  # seed -> (end, area)
  runs: tuple[Run, ...]


class Difference(NamedTuple):
  """A method minus another one, on the seeds that both have."""

  mean: float
  half: float  # half of the width of the 95 % interval; NaN with fewer than two pairs
  pairs: int


def load(workdir: str) -> Run:
  """The run in a workdir. Raises ValueError if it holds no metrics."""
  path = files.folder(workdir)
  lines = metrics.read(path)
  if not lines:
    raise ValueError(f"workdir {workdir}: found no metrics.jsonl, expected that of a run")
  key, keys, saved = os.fspath(path), {}, path / "config.json"
  if saved.exists():
    keys = configuration.flatten(configuration.from_json(saved.read_text(), os.fspath(saved)))
    ignored = ("seed", *configuration.RESUMABLE)
    key = repr(sorted((k, v) for k, v in keys.items() if k not in ignored))
  folder = f"{path.parent.name}/{path.name}"
  return Run(path.name, path.parent.name, folder, key, lines, keys if "seed" in keys else {})


def common_score(runs: list[Run]) -> str | None:
  """The first of SCORES that all runs have."""
  return next((s for s in SCORES if all(len(run.curve(s)[0]) for run in runs)), None)


def compare(runs: list[Run], score: str) -> list[Row]:
  """A row for each method, in the order of the runs, on the part of the axis that all of them have
  reached.

  Raises ValueError where there is no such part.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.key, []).append(run)
  axis = "rollouts" if all(run.axis == "rollouts" for run in runs) else "step"
  curves = [run.curve(score, axis)[0] for run in runs]
  first, last = max(x[0] for x in curves), min(x[-1] for x in curves)
  if last < first:
    raise ValueError(f"the runs do not overlap: one ends at {last:.0f}, one starts at {first:.0f}")
  rows = [_row(group, score, axis, first, last) for group in groups.values()]
  names = [row.name for row in rows]
  parents = [f"{group[0].parent}/" for group in groups.values()]
  return [
    row._replace(name=parent * (names.count(row.name) > 1) + row.name)
    for row, parent in zip(rows, parents)
  ]


def _row(group: list[Run], score: str, axis: str, first: float, last: float) -> Row:
  points, values = _together([run.curve(score, axis) for run in group], first, last)
  area = np.trapezoid(values, points, axis=1) / (last - first) if last > first else values[:, 0]
  ends = values[:, 0], values[:, -1]
  scores = np.stack([*ends, ends[1] - ends[0], area], axis=1)  # [seeds, 4]
  start, end, gain, area = scores.mean(0).tolist()
  of_seed = collections.defaultdict(list)
  for run, one in zip(group, scores):
    of_seed[run.seed].append(one[[1, 3]])
  return Row(
    name=_name(group),
    seeds=len(group),
    axis=axis,
    curve=Curve(points, values.mean(0), standard_error(values)),
    start=start,
    end=end,
    gain=gain,
    area=area,
    errors=tuple(standard_error(scores).tolist()),
    rollouts=float(np.mean([run.lines[-1]["rollouts"] for run in group])),
    prompts=float(np.mean([run.total("prompts") for run in group])),
    seconds=float(np.mean([run.seconds for run in group])),
    by_seed={
      seed: tuple(np.mean(x, 0).tolist()) for seed, x in of_seed.items() if seed is not None
    },
    runs=tuple(group),
  )


def _together(curves, first: float, last: float, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Curves (x, y) on all of their points from first to last, `most` at most -> (points, values
  [curves, points])."""
  points = np.unique(np.concatenate([x for x, _ in curves] + [[first, last]]))
  points = points[(points >= first) & (points <= last)]
  if 0 < most < len(points):
    points = np.linspace(first, last, most)
  return points, np.stack([np.interp(points, *curve) for curve in curves])


def standard_error(x: np.ndarray) -> np.ndarray:
  """Of the mean over the first axis; 0 for a single one."""
  return x.std(0, ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.zeros(x.shape[1:])


def _name(group: list[Run]) -> str:
  """The workdir's name; of several seeds what they share: grpo for grpo-s0, grpo-s1 or grpo/0."""
  if len({run.name for run in group}) == 1:
    return group[0].name
  shared = os.path.commonprefix([run.name for run in group])  # noqa: RUF071 of characters
  return re.sub(r"[-_. ]*(s|seed)?[-_.]*$", "", shared) or group[0].parent


def paired(row: Row, first: Row, what: str) -> Difference | None:
  """Mean of `row` minus `first` over the seeds that both have, in their "end" or "area"; None
  without any.

    d_s = row_s - first_s;  mean d ± t(.975, n - 1) sd(d) / sqrt(n)

  Seeds share the order of the data and the prompts' keys, so that what a seed does to both falls
  out.
  """
  place = ("end", "area").index(what)
  shared = sorted(row.by_seed.keys() & first.by_seed.keys())
  if not shared:
    return None
  return interval([row.by_seed[seed][place] - first.by_seed[seed][place] for seed in shared])


def interval(differences) -> Difference:
  """Mean of paired differences [n] with half of its interval (t, n - 1); NaN for n = 1."""
  from scipy.special import (
    stdtrit,  # here, since training imports this module and has no use for it
  )

  x = np.asarray(differences, float)
  t = stdtrit(len(x) - 1, (1 + LEVEL) / 2) if len(x) > 1 else np.nan
  return Difference(float(x.mean()), float(t * standard_error(x)), len(x))


def metric_curve(row: Row, name: str, axis: str, smooth: bool = True) -> Curve | None:
  """A metric of a method over the part of the axis that its runs share, None without any.

  `smooth`: of a metric of single steps, which is noisy, the moving mean over a tenth of the run.
  """
  curves = [curve for run in row.runs if len((curve := run.curve(name, axis))[0])]
  if not curves:
    return None
  if smooth and not name.startswith("eval/"):
    curves = [(x, moving_mean(y, len(y) // 10) if len(y) >= 20 else y) for x, y in curves]
  first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
  if last < first:
    return None
  points, values = _together(curves, first, last, MOST_POINTS)
  return Curve(points, values.mean(0), standard_error(values))


def moving_mean(y: np.ndarray, width: int) -> np.ndarray:
  """Centred mean over `width` points, fewer at the ends."""
  weights = np.ones(max(width, 1))
  return np.convolve(y, weights, "same") / np.convolve(np.ones(len(y)), weights, "same")


def overlays(rows: list[Row], score: str) -> list[tuple[str, dict[int, Curve]]]:
  """(title, number of the method -> curve) of each of PANELS' metrics but the score; a panel of
  several metrics becomes several. A metric that repeats an earlier one in all methods is left
  out."""
  panels, seen = [], [{i: metric_curve(row, score, row.axis) for i, row in enumerate(rows)}]
  for title, names in PANELS:
    for label, name in names.items():
      curves = {
        i: c for i, row in enumerate(rows) if (c := metric_curve(row, name, row.axis)) is not None
      }
      if name == score or not curves or any(_same(curves, other) for other in seen):
        continue
      seen.append(curves)
      panels.append((title if len(names) == 1 else f"{title.split(',')[0]}: {label}", curves))
  return panels


def _same(curves, others) -> bool:
  return curves.keys() == others.keys() and all(
    np.array_equal(curves[i].mean, others[i].mean) for i in curves
  )


def panels(run: Run) -> list[tuple[str, dict]]:
  """(title, label -> (place, value, of an evaluation?)) of a run's PANELS with something to show.

  A curve that repeats an earlier one is left out: reward = accuracy where a reward is 0 or 1.
  """
  found, seen = [], []
  for title, names in PANELS:
    curves = {}
    for label, name in names.items():
      curve = run.curve(name)
      if len(curve[0]) and not any(np.array_equal(curve, other) for other in seen):
        seen.append(curve)
        curves[label] = (*curve, name.startswith("eval/"))
    if curves:
      only = f": {next(iter(curves))}" if len(curves) == 1 < len(names) else ""
      found.append((title.split(",")[0] + only if only else title, curves))
  return found


def standings(*runs: Run) -> list[tuple[str, float, float]]:
  """(estimator, difference, standard error) of the scoreboards' last lines, best first; [] without
  one.

  Of several runs of one method the mean over those that have a scoreboard.
  """
  boards = [board for run in runs if (board := _board(run.lines[-1]))]
  found = []
  for name in boards[0] if boards else ():
    differences, errors = zip(*(board[name] for board in boards))
    found.append(
      (name, float(np.mean(differences)), float(np.sqrt(np.sum(np.square(errors))) / len(boards)))
    )
  return sorted(found, key=lambda row: row[1])


def _board(last: dict) -> dict[str, tuple[float, float]]:
  names = {name.split("/")[1] for name in last if name.startswith("scoreboard/")}
  own = {name for name in names if f"scoreboard/{name}/difference" not in last}
  rows = {
    x: (last[f"scoreboard/{x}/difference"], last[f"scoreboard/{x}/standard_error"])
    for x in names - own
  }
  if any(None in row for row in rows.values()):  # nothing was judged
    return {}
  return rows | {f"{name} (own)": (0.0, 0.0) for name in own}


def k_shares(row: Row) -> dict[int, float]:
  """k -> share of a method's prompts that got k rollouts, over all of its runs; {} where no run
  says so."""
  counts: collections.Counter[int] = collections.Counter()
  for run in row.runs:
    for line in run.lines:
      counts.update(
        {
          int(name.split("/")[-1]): value
          for name, value in line.items()
          if name.startswith("k/hist/")
        }
      )
  total = sum(counts.values())
  return {k: counts[k] / total for k in sorted(counts)} if total else {}


def settings(rows: list[Row]) -> tuple[dict[str, list[str]], dict[str, str]]:
  """-> (config key -> its value in each method, where these differ; key -> value where all methods
  have the same, and not that of configs/default.py). The seed is left out; several values in one
  method stand side by side."""
  usual = configuration.flatten(default.get_config())
  known = [all(run.keys for run in row.runs) for row in rows]
  differing, shared = {}, {}
  for key in dict.fromkeys(key for row in rows for run in row.runs for key in run.keys):
    if key == "seed":
      continue
    values = [_values(row, key) if there else "?" for row, there in zip(rows, known)]
    if len(set(values)) > 1:
      differing[key] = values
    elif key not in usual or values[0] != _text(usual[key]):
      shared[key] = values[0]
  return differing, shared


def _values(row: Row, key: str) -> str:
  return " / ".join(
    dict.fromkeys(_text(run.keys[key]) if key in run.keys else "-" for run in row.runs)
  )


def _text(value) -> str:
  if isinstance(value, float):
    return f"{value:.10g}"
  if isinstance(value, (tuple, list)):
    return ", ".join(map(_text, value))
  return value if isinstance(value, str) and value else repr(value)
