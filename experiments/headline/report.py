"""Tables and plots of results.json; nothing is run."""

import json
from pathlib import Path

import numpy as np
from scipy import stats

from experiments.estimator_lab.tables import table
from experiments.headline.methods import METHODS, REGIMES
from v05_jax.figures import COLOURS, GRID, INK

REFERENCE = "grpo16"  # the paper's baseline: leads are over it, and rollouts to its end
SHOWN = ("grpo16", "dapo16", "grpo4", "rloo4", "rloo2", "spo", "v05", "v05_plus")  # in the plots
LEVEL = 0.95


def report(folder: Path):
  """Prints the tables, and writes table.md and the plots beside results.json."""
  record = json.loads((folder / "results.json").read_text())
  rates = json.loads((folder / "rates.json").read_text())["rates"]
  parts = []
  for regime, made in REGIMES.items():
    runs = by_method(record["runs"], regime)
    if runs:
      parts += [f"### {made.title}", main_table(runs, rates), diagnostics_table(runs)]
      draw(runs, made.title, folder / f"{regime}.png")
  text = "\n\n".join(parts) + "\n"
  (folder / "table.md").write_text(text)
  print(text)


def by_method(lines: list[dict], regime: str) -> dict[str, list[dict]]:
  """Method -> its runs in the order of the seeds."""
  found = {name: [] for name in METHODS}
  for line in sorted(lines, key=lambda line: line["seed"]):
    if line["regime"] == regime:
      found[line["method"]].append(line)
  return {name: runs for name, runs in found.items() if runs}


def interval(differences) -> tuple[float, float]:
  """(mean, half of the 95 % interval) of paired differences [n], by Student's t with n - 1 degrees of freedom."""
  x = np.asarray(differences, float)
  if len(x) < 2:
    return float(x.mean()), float("nan")
  half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
  return float(x.mean()), float(half)


def paired(runs, other, name: str) -> tuple[float, float]:
  """`interval` of runs' `name` minus that of others with the same seeds."""
  theirs = {run["seed"]: run[name] for run in other}
  return interval([run[name] - theirs[run["seed"]] for run in runs if run["seed"] in theirs])


def mean_curve(runs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(rollouts, mean success, standard error over seeds) at the places of the first run."""
  x = np.linspace(0, runs[0]["curve"][-1][0], len(runs[0]["curve"]))
  y = np.stack([np.interp(x, *np.array(run["curve"])[:, :2].T) for run in runs])
  return x, y.mean(0), y.std(0, ddof=1) / np.sqrt(len(y)) if len(y) > 1 else np.zeros(len(x))


def rollouts_to(runs, level: float) -> float | None:
  """Rollouts at which the mean curve first reaches a level, between its points on a line; None = never."""
  x, y, _ = mean_curve(runs)
  above = np.flatnonzero(y >= level)
  if not len(above):
    return None
  i = above[0]
  return float(x[0]) if i == 0 else float(np.interp(level, y[i - 1 : i + 1], x[i - 1 : i + 1]))


def main_table(runs, rates) -> str:
  """Success of every method, its lead over the reference with 95 % intervals, best area first."""
  reference = runs[REFERENCE]
  goal = mean_curve(reference)[1][-1]
  head = ["method", "rate", "area", "lead in area", "end", "lead at the end", "rollouts to its end", "prompts"]
  rows = []
  for name in sorted(runs, key=lambda name: -np.mean([run["area"] for run in runs[name]])):
    own = runs[name]
    spread = lambda key, own=own: f"{np.mean([r[key] for r in own]):.4f} ± {_error([r[key] for r in own]):.4f}"
    lead = lambda key, own=own: "{:+.4f} ± {:.4f}".format(*paired(own, reference, key))
    reached = rollouts_to(own, goal)
    rows.append([
      METHODS[name].title, f"{rates[METHODS[name].rate_of or name]:g}", spread("area"),
      "-" if name == REFERENCE else lead("area"), spread("end"), "-" if name == REFERENCE else lead("end"),
      "never" if reached is None else f"{reached:,.0f}", f"{np.mean([r['prompts'] for r in own]):,.0f}",
    ])  # fmt: skip
  return table(head, rows)


def diagnostics_table(runs) -> str:
  """What the runs say of their baselines and gradients, means over steps and seeds."""
  columns = {
    "baseline MSE": "baseline_mse", "group mean's": "group_mse", "V's": "prior_mse", "V accepted": "accepted",
    "zero advantage": "zero_share", "gradient norm": "grad_norm", "its variation": "grad_norm_cv",
    "cosine": "cosine", "clipped": "clipped", "discarded": "discarded",
  }  # fmt: skip
  rows = []
  for name, own in runs.items():
    cells = []
    for key in columns.values():
      known = [run[key] for run in own if run[key] is not None]
      cells.append("-" if not known else f"{np.mean(known):,.0f}" if key == "discarded" else f"{np.mean(known):.3f}")
    entropy = np.mean([run["entropy_parts"][-1] for run in own])
    k = np.mean([sum(int(n) * count for n, count in run["k"].items()) / sum(run["k"].values()) for run in own])
    rows.append([METHODS[name].title, *cells, f"{entropy:.3f}", f"{k:.2f}"])
  return table(["method", *columns, "entropy at the end", "mean k"], rows)


def _error(x) -> float:
  return float(np.std(x, ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0


def draw(runs, title: str, path: Path):
  """Success over rollouts with bands of a standard error, gradient norm, entropy, and rollouts a prompt."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
           "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True, "legend.frameon": False}  # fmt: skip
  shown = [name for name in SHOWN if name in runs]
  with pyplot.rc_context(style):
    figure, (left, *small) = pyplot.subplots(
      1, 3, figsize=(12, 4.2), layout="constrained", gridspec_kw={"width_ratios": (2, 1, 1)}
    )
    for name, colour in sorted(zip(shown, COLOURS), key=lambda pair: -mean_curve(runs[pair[0]])[1][-1]):
      x, mean, error = mean_curve(runs[name])
      left.plot(x, mean, color=colour, marker="o", markersize=3, label=f"{METHODS[name].title}  {mean[-1]:.3f}")
      left.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
      for axes, key in zip(small, ("grad_norm_parts", "entropy_parts")):
        parts = np.mean([run[key] for run in runs[name]], axis=0)
        axes.plot(x[1:], parts, color=colour, marker="o", markersize=3)
    left.set(title=f"success on held-out prompts, {title}; band: standard error", xlabel="rollouts generated")
    left.legend(title="method, end", loc="lower right", fontsize=8, alignment="left")
    small[0].set(title="gradient norm before clipping", xlabel="rollouts generated", yscale="log")
    small[1].set(title="entropy, nats a token", xlabel="rollouts generated")
    for axes in (left, *small):
      axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
