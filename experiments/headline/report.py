"""Tables and plots of results.json; nothing is run."""

import json
from pathlib import Path

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.methods import METHODS, REGIMES
from v05_jax.run import figures
from v05_jax.run.comparison import interval, standard_error

REFERENCE = "grpo16"  # the paper's baseline: leads are over it, and rollouts to its end
# In the plots, with their colours.
SHOWN = {
  "v05_plus": "#d55e00",
  "v05": "#0072b2",
  "spo": "#56b4e9",
  "grpo4": "#009e73",
  "rloo4": "#cc79a7",
  "rloo2": "#e69f00",
  "dapo16": "#999999",
  "grpo16": "#333333",
}
# Differences that a claim hangs on: (method, minus this one).
PAIRS = (
  ("v05", "grpo16"),
  ("v05", "dapo16"),
  ("v05", "grpo4"),
  ("v05", "rloo4"),
  ("v05", "shrink4"),
  ("v05", "v05_constant"),
  ("v05_oracle", "v05"),
  ("v05_flip10", "v05"),
  ("v05_flip50", "v05"),
  ("value", "v05"),
  ("value_constant", "v05_constant"),
  ("value_oracle", "v05_oracle"),
  ("value_flip10", "v05_flip10"),
  ("value_flip50", "v05_flip50"),
  ("v05_osla", "v05"),
  ("v05_k1", "v05"),
  ("v05_k2", "v05"),
  ("v05_k8", "v05"),
  ("v05_k16", "v05"),
  ("ewa4", "v05"),
  ("ewa_neyman", "ewa2"),
  ("ewa2_pool", "ewa2"),
  ("v05_plus", "v05"),
  ("v05_plus", "grpo4"),
  ("v05_plus", "rloo4"),
  ("v05_plus", "rloo2"),
  ("v05_plus", "spo"),
  ("v05_plus", "v05_k1"),
  ("v05_plus", "plus_constant"),
  ("v05_plus", "plus_shuffle"),
  ("v05_plus", "plus_all"),
  ("plus_all", "plus_constant"),
  ("v05_plus", "plus_k2"),
  ("v05_plus", "plus_k4"),
  ("v05_plus", "plus_value"),
  ("v05_plus", "plus_clip"),
  ("v05_plus", "plus_once"),
  ("v05_plus", "v05_reuse"),
  ("v05_plus", "rloo4_reuse"),
  ("v05_plus", "grpo16_reuse"),
  ("v05_plus", "v05_k1_reuse"),
  ("v05_plus", "spo_reuse"),
  ("plus_once", "v05_k1"),
)


def report(folder: Path):
  """Prints the tables, and writes table.md and the plots beside results.json."""
  record = json.loads((folder / "results.json").read_text())
  parts = []
  for regime, made in REGIMES.items():
    runs = by_method(record["runs"], regime)
    if runs:
      parts += [
        f"### {made.title}",
        main_table(runs),
        pairs_table(runs),
        diagnostics_table(runs),
        k_table(runs),
      ]
      draw(runs, made.title, folder / f"{regime}.png")
  times = json.loads((folder / "times.json").read_text())["seconds"]
  parts += ["### The same seconds", time_table(by_method(record["runs"], "default"), times)]
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


def paired(runs, other, name: str) -> tuple[float, float]:
  """(mean, half of the 95 % interval) of runs' `name` minus that of others with the same seeds."""
  theirs = {run["seed"]: run[name] for run in other}
  return interval([run[name] - theirs[run["seed"]] for run in runs if run["seed"] in theirs])[:2]


def mean_curve(runs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(rollouts, mean success, standard error over seeds) at the places of the first run."""
  x = np.linspace(0, runs[0]["curve"][-1][0], len(runs[0]["curve"]))
  y = np.stack([np.interp(x, *np.array(run["curve"])[:, :2].T) for run in runs])
  return x, y.mean(0), standard_error(y)


def rollouts_to(runs, level: float) -> float | None:
  """Rollouts at which the mean curve first reaches a level, between its points on a line; None =
  never."""
  x, y, _ = mean_curve(runs)
  above = np.flatnonzero(y >= level)
  if not len(above):
    return None
  i = above[0]
  return float(x[0]) if i == 0 else float(np.interp(level, y[i - 1 : i + 1], x[i - 1 : i + 1]))


def crossings(runs, other) -> str:
  """The smallest and the largest number of rollouts at which a seed's run reaches the end of the
  other's."""
  ends = {run["seed"]: run["end"] for run in other}
  found = [rollouts_to([run], ends[run["seed"]]) for run in runs if run["seed"] in ends]
  known = [x for x in found if x is not None]
  most = "never" if len(known) < len(found) else f"{max(known):,.0f}"
  return f"{min(known):,.0f} to {most}" if known else "never"


def main_table(runs) -> str:
  """Success of every method, its lead over the reference with 95 % intervals, best area first."""
  reference = runs[REFERENCE]
  goal = mean_curve(reference)[1][-1]
  head = [
    "method",
    "rate",
    "area ± s.e.",
    "over GRPO, 16 ± 95 %",
    "end ± s.e.",
    "over GRPO, 16 ± 95 %",
    "rollouts to GRPO, 16's end (seeds)",
    "prompts",
  ]
  rows, of = [], lambda own, key: np.array([run[key] for run in own])
  for name in sorted(runs, key=lambda name: -np.mean([run["area"] for run in runs[name]])):
    own = runs[name]
    spread = lambda key, own=own: (
      f"{np.mean(of(own, key)):.4f} ± {standard_error(of(own, key)):.4f}"
    )
    lead = lambda key, own=own: "{:+.4f} ± {:.4f}".format(*paired(own, reference, key))
    reached, each = rollouts_to(own, goal), crossings(own, reference)
    rows.append(
      [
        METHODS[name].title,
        f"{own[0]['rate']:g}",
        spread("area"),
        "-" if name == REFERENCE else lead("area"),
        spread("end"),
        "-" if name == REFERENCE else lead("end"),
        "never" if reached is None else f"{reached:,.0f} ({each})",
        f"{np.mean([r['prompts'] for r in own]):,.0f}",
      ]
    )
  return table(head, rows)


def diagnostics_table(runs) -> str:
  """What the runs say of their baselines and gradients, means over steps and seeds."""
  columns = {
    "baseline MSE": "baseline_mse",
    "group mean's": "group_mse",
    "V's": "prior_mse",
    "V accepted": "accepted",
    "zero advantage": "zero_share",
    "gradient norm": "grad_norm",
    "its variation": "grad_norm_cv",
    "cosine": "cosine",
    "clipped": "clipped",
    "discarded": "discarded",
  }
  rows = []
  for name, own in runs.items():
    cells = []
    for key in columns.values():
      known = [run[key] for run in own if run[key] is not None]
      cells.append(
        "-"
        if not known
        else f"{np.mean(known):,.0f}"
        if key == "discarded"
        else f"{np.mean(known):.3f}"
      )
    entropy = np.mean([run["entropy_parts"][-1] for run in own])
    k = np.mean(
      [sum(int(n) * count for n, count in run["k"].items()) / sum(run["k"].values()) for run in own]
    )
    rows.append([METHODS[name].title, *cells, f"{entropy:.3f}", f"{k:.2f}"])
  return table(["method", *columns, "entropy at the end", "mean k"], rows)


def pairs_table(runs) -> str:
  """The differences of PAIRS with 95 % intervals."""
  rows = []
  for name, other in PAIRS:
    if name in runs and other in runs:
      cells = [
        "{:+.4f} ± {:.4f}".format(*paired(runs[name], runs[other], key)) for key in ("area", "end")
      ]
      rows.append([METHODS[name].title, METHODS[other].title, *cells])
  return table(["method", "minus", "area", "end"], rows)


def k_table(runs) -> str:
  """Share of the prompts with so many rollouts, of the methods that divide them by need."""
  adaptive = {name: own for name, own in runs.items() if len(own[0]["k"]) > 1}
  numbers = sorted({int(k) for own in adaptive.values() for run in own for k in run["k"]})
  rows = []
  for name, own in adaptive.items():
    counts = np.array([sum(run["k"].get(str(k), 0) for run in own) for k in numbers], float)
    rows.append([METHODS[name].title, *(f"{x:.1%}" if x else "-" for x in counts / counts.sum())])
  return table(["rollouts of a prompt", *numbers], rows)


def time_table(runs, times: dict[str, list[float]]) -> str:
  """Seconds of a run, and the success that a method has reached when the reference has ended; the
  mean curve's."""
  limit, rows = np.median(times[REFERENCE]), []
  for name, seconds in times.items():
    x, y, _ = mean_curve(runs[name])
    reached = x[-1] * min(1.0, limit / np.median(seconds))
    rows.append(
      [
        METHODS[name].title,
        f"{np.median(seconds):.1f}",
        f"{min(seconds):.1f} to {max(seconds):.1f}",
        f"{reached:,.0f}",
        f"{np.interp(reached, x, y):.4f}",
      ]
    )
  head = ["method", "seconds a run, median", "all", f"rollouts in {limit:.1f} s", "success by then"]
  return table(head, rows)


def lead_curve(runs, other) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(rollouts, mean lead over others of the same seeds, half of its 95 % interval) at the places of
  `other`'s."""
  x = mean_curve(other)[0]
  theirs = {run["seed"]: run for run in other}
  at = lambda run: np.interp(x, *np.array(run["curve"])[:, :2].T)
  leads = np.stack([at(run) - at(theirs[run["seed"]]) for run in runs if run["seed"] in theirs])
  return x, *np.array([interval(column)[:2] for column in leads.T]).T


def draw(runs, title: str, path: Path):
  """Success over rollouts, the lead over the reference with its interval, gradient norm and
  entropy."""
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  shown = sorted(
    (name for name in SHOWN if name in runs), key=lambda name: -mean_curve(runs[name])[1][-1]
  )
  with rc_context(figures.STYLE):
    figure = Figure(figsize=(13, 4), layout="constrained")
    success, lead, *small = figure.subplots(1, 4, gridspec_kw={"width_ratios": (1.5, 1.5, 1, 1)})
    for name in shown:
      line = {"color": SHOWN[name], "marker": "o", "markersize": 3}
      x, mean, _ = mean_curve(runs[name])
      success.plot(x, mean, label=f"{METHODS[name].title}  {mean[-1]:.3f}", **line)
      if name != REFERENCE:
        x, mean, half = lead_curve(runs[name], runs[REFERENCE])
        lead.plot(x, mean, **line)
        lead.fill_between(x, mean - half, mean + half, color=SHOWN[name], alpha=0.12, linewidth=0)
      for axes, key in zip(small, ("grad_norm_parts", "entropy_parts")):
        axes.plot(x[1:], np.mean([run[key] for run in runs[name]], axis=0), **line)
    lead.axhline(0.0, color=SHOWN[REFERENCE], linewidth=1)
    success.set_title(f"success on held-out prompts, {title}")
    success.legend(title="method, end", fontsize=8, alignment="left")
    lead.set_title(f"lead over {METHODS[REFERENCE].title}, paired by seed; band: 95 % interval")
    small[0].set_title("gradient norm before clipping")
    small[1].set_title("entropy, nats a token")
    for axes in (success, lead, *small):
      axes.set_xlabel("rollouts generated")
      axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
    figure.savefig(path, dpi=120)
