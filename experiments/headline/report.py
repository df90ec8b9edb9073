"""Tables and plots of results.json; nothing is run."""

import json
from pathlib import Path

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.claims import PAIRS, claims_table, differences, paired, resolved
from experiments.headline.methods import FIRST, METHODS, REGIMES, TOYS
from v05_jax.run import figures
from v05_jax.run.comparison import interval, standard_error

REFERENCE = "grpo16"  # the paper's baseline: leads are over it, and rollouts to its end
# In the plots beside the recipe, with their colours.
SHOWN = {
  "v05_osla": "#0072b2",
  "v05": "#56b4e9",
  "v05_k1": "#009e73",
  "v05_score_k1": "#f0e442",
  "spo": "#cc79a7",
  "rloo4": "#e69f00",
  "dapo16": "#999999",
  "grpo16": "#333333",
}
RECIPE_COLOUR = "#d55e00"


def report(folder: Path):
  """Prints the tables, and writes table.md and the plots beside results.json."""
  record = json.loads((folder / "results.json").read_text())
  by_regime = {regime: by_method(record["runs"], regime) for regime in REGIMES}
  by_regime = {regime: runs for regime, runs in by_regime.items() if runs}
  recipe = record["recipe"]
  parts = [f"The recipe: {METHODS[recipe].title}.", "### The comparisons that the text makes"]
  parts.append(claims_table(by_regime, recipe))
  for regime, runs in by_regime.items():
    title = REGIMES[regime].title
    parts += [f"### {title}", main_table(runs), diagnostics_table(runs), k_table(runs)]
    parts += [f"### The same success, {title}", same_success_table(runs)]
    draw(runs, title, recipe, folder / f"{regime}.png")
  parts += ["### Where the two toys disagree", turned_over(by_regime, recipe)]
  if (folder / "times.json").exists():
    times = json.loads((folder / "times.json").read_text())["seconds"]
    for toy, seconds in times.items():
      parts += [f"### The same seconds, {REGIMES[toy].title}", time_table(by_regime[toy], seconds)]
  text = "\n\n".join(part for part in parts if part) + "\n"
  (folder / "table.md").write_text(text)
  print(text)


def by_method(lines: list[dict], regime: str) -> dict[str, list[dict]]:
  """Method -> its runs in the order of the seeds, "..._parts" as arrays: NaN where not known."""
  found = {name: [] for name in METHODS}
  for line in sorted(lines, key=lambda line: line["seed"]):
    if line["regime"] == regime:
      parts = {name: np.array(x, float) for name, x in line.items() if name.endswith("_parts")}
      found[line["method"]].append(line | parts)
  return {name: runs for name, runs in found.items() if runs}


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
  """Success of every method, its lead over the reference with 95 % intervals: the paper's main
  method, then the others, best area first."""
  reference = runs[REFERENCE]
  goal = mean_curve(reference)[1][-1]
  head = [
    "method",
    "rate",
    "area ± s.e.",
    "over GRPO, 16 ± 95 %",
    "end ± s.e.",
    "over GRPO, 16 ± 95 %",
    "pass@16",
    "pass@64 ± s.e.",
    "over GRPO, 16 ± 95 %",
    "entropy",
    "rollouts to GRPO, 16's end (seeds)",
    "prompts",
  ]
  rows, of = [], lambda own, key: np.array([run[key] for run in own])
  area = lambda name: np.mean([run["area"] for run in runs[name]])
  for name in sorted(runs, key=lambda name: (name != FIRST, -area(name))):
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
        f"{np.mean(of(own, 'pass@16')):.4f}",
        spread("pass@64"),
        "-" if name == REFERENCE else lead("pass@64"),
        f"{np.mean([run['entropy_parts'][-1] for run in own]):.3f}",
        "never" if reached is None else f"{reached:,.0f} ({each})",
        f"{np.mean([r['prompts'] for r in own]):,.0f}",
      ]
    )
  return table(head, rows)


def same_success_table(runs) -> str:
  """pass@64 of runs when they reach the success that the reference has at its end, seed by seed:
  what a method costs in pass@64 beside what success costs."""
  reference, rows = {run["seed"]: run for run in runs[REFERENCE]}, []
  for name, own in runs.items():
    if name == REFERENCE:
      continue
    found = [at_success(run, reference[run["seed"]]) for run in own if run["seed"] in reference]
    reached = [x for x in found if x is not None]
    if len(reached) > 1:
      mean, half, _ = interval([x[1] for x in reached])
      rollouts = np.median([x[0] for x in reached])
      cells = [f"{len(reached)} of {len(found)}", f"{rollouts:,.0f}", f"{mean:+.4f} ± {half:.4f}"]
      rows.append([METHODS[name].title, *cells])
  head = ["method", "seeds that reach it", "rollouts, median", "pass@64 over GRPO, 16 ± 95 %"]
  return table(head, rows)


def at_success(run, other) -> tuple[float, float] | None:
  """(rollouts, pass@64 minus that of `other` at its end) at which a run first reaches the success
  of `other` at its end, on lines between the curve's points; None = never."""
  reached = rollouts_to([run], other["end"])
  if reached is None:
    return None
  x, _, passes = np.array(run["curve"]).T
  return reached, float(np.interp(reached, x, passes)) - other["pass@64"]


def diagnostics_table(runs) -> str:
  """What the runs say of their baselines and gradients, means over steps and seeds."""
  columns = {
    "baseline MSE": "baseline_mse",
    "group mean's": "group_mse",
    "V's": "prior_mse",
    "V accepted": "accepted",
    "zero advantage": "zero_share",
    "gradient norm": "grad_norm",
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
    rho = [f"{np.mean([run['rho_parts'][i] for run in own]):.2f}" for i in (0, -1)]
    k = np.mean(
      [sum(int(n) * count for n, count in run["k"].items()) / sum(run["k"].values()) for run in own]
    )
    rows.append([METHODS[name].title, *cells, *rho, f"{k:.2f}"])
  return table(["method", *columns, "rho at first (w)", "rho at last (w)", "mean k"], rows)


def k_table(runs) -> str:
  """Share of the prompts with so many rollouts, of the methods that divide them by need; "" where
  there is none."""
  adaptive = {name: own for name, own in runs.items() if len(own[0]["k"]) > 1}
  numbers = sorted({int(k) for own in adaptive.values() for run in own for k in run["k"]})
  rows = []
  for name, own in adaptive.items():
    counts = np.array([sum(run["k"].get(str(k), 0) for run in own) for k in numbers], float)
    rows.append([METHODS[name].title, *(f"{x:.1%}" if x else "-" for x in counts / counts.sum())])
  return table(["rollouts of a prompt", *numbers], rows) if rows else ""


def turned_over(by_regime, recipe: str) -> str:
  """The differences of PAIRS, in area, that are not the same in the two toys: their change from one
  to the other, paired by seed, has an interval that leaves out 0. "" where a toy was not run."""
  if not set(TOYS) <= set(by_regime):
    return ""
  rows, cell = [], lambda x: "{:+.4f} ± {:.4f}".format(*interval(x)[:2])
  for pair in PAIRS:
    names = {tuple(resolved(x, by_regime[toy], recipe) for x in pair) for toy in TOYS}
    name, other = names.pop()
    there = all({name, other} <= set(by_regime[toy]) for toy in TOYS)
    if names or not there or name == other:
      continue
    leads = [differences(by_regime[toy][name], by_regime[toy][other], "area") for toy in TOYS]
    mean, half, _ = interval(np.subtract(leads[1], leads[0]))
    if abs(mean) > half:
      cells = [*map(cell, leads), f"{mean:+.4f} ± {half:.4f}"]
      rows.append([METHODS[name].title, METHODS[other].title, *cells])
  head = ["method", "minus", *(REGIMES[toy].title for toy in TOYS), "change"]
  return table(head, rows) if rows else "Nothing."


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


def draw(runs, title: str, recipe: str, path: Path):
  """Success over rollouts, the lead over the reference with its interval, gradient norm and
  entropy."""
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  colours = SHOWN | {recipe: RECIPE_COLOUR}
  shown = sorted(
    (name for name in colours if name in runs), key=lambda name: -mean_curve(runs[name])[1][-1]
  )
  with rc_context(figures.STYLE):
    figure = Figure(figsize=(13, 4), layout="constrained")
    success, lead, *small = figure.subplots(1, 4, gridspec_kw={"width_ratios": (1.5, 1.5, 1, 1)})
    for name in shown:
      line = {"color": colours[name], "marker": "o", "markersize": 3}
      x, mean, _ = mean_curve(runs[name])
      success.plot(x, mean, label=f"{METHODS[name].title}  {mean[-1]:.3f}", **line)
      if name != REFERENCE:
        x, mean, half = lead_curve(runs[name], runs[REFERENCE])
        lead.plot(x, mean, **line)
        lead.fill_between(x, mean - half, mean + half, color=colours[name], alpha=0.12, linewidth=0)
      for axes, key in zip(small, ("grad_norm_parts", "entropy_parts")):
        parts = np.mean([run[key] for run in runs[name]], axis=0)
        axes.plot(np.linspace(0, x[-1], len(parts) + 1)[1:], parts, **line)
    lead.axhline(0.0, color=colours[REFERENCE], linewidth=1)
    success.set_title(f"success on held-out prompts, {title}")
    success.legend(title="method, end", fontsize=8, alignment="left")
    lead.set_title(f"lead over {METHODS[REFERENCE].title}, paired by seed; band: 95 % interval")
    small[0].set_title("gradient norm before clipping")
    small[1].set_title("entropy, nats a token")
    for axes in (success, lead, *small):
      axes.set_xlabel("rollouts generated")
      axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
    figure.savefig(path, dpi=120)
