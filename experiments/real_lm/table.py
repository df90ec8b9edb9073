"""table.md and curve.png: what came out, from the kept results alone; nothing is run.

Differences are between runs of the same seed, which share the warm start, the order of the problems
and the held-out problems; a seed that one of two methods lacks is named, and in no difference.
"""

from pathlib import Path

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.claims import LEVEL, holm, p_value
from experiments.real_lm import curve, measured, paper, plan, results
from experiments.real_lm.by_task import by_task
from experiments.real_lm.pairing import (
  Runs,
  at_equal_seconds,
  common,
  differences,
  interval,
  intervals,
  name_of,
  present,
  seeds_of,
  stratified,
  too_early,
)
from v05_jax.run import files

LEGEND = """\
A number behind a method's name is its rollouts a prompt; "twice": every rollout is used in two
updates. The recipe is "{recipe}": the baseline of least gradient noise, without a prior. Success
is the verifier's score, which some tasks give in part for what is right in part; pass@8 and
"right in full" count full scores alone. ± is half of a 95 % interval over seeds (Student's t),
brackets are one over problems (bootstrap, these runs). Entropy, gradient norm (before it is clipped
to 1), prompts a step, rho (failures' gradients over successes') and the prior's squared errors (on
the scale from -1 to 1, the noise of a group's mean in them; a constant's beside it) are means over
a run's last five steps; "entropy first" is its first step's. Tokens, truncated and "in full" are of
the evaluations."""

EARLY = """\
\\* In a seed or more the slower one had not been evaluated yet when the faster one ended: read on
the line from its start, which lies below a curve that rises fast at first."""

TOGETHER = """\
Not planned: the comparisons with two seeds or more in each arena. The mean over both arenas, each
with a variance of its own (Welch). ± and p speak of other seeds of these two kinds of problems, not
of other kinds; Holm's rule is over these rows."""


def write(here: Path) -> str:
  """TABLE.md of the results in `here`, and CURVE.png."""
  records, others = results.current(here)
  by_arena = {arena: of_arena(records, arena) for arena in plan.ARENAS}
  by_arena = {arena: runs for arena, runs in by_arena.items() if runs}
  text = [LEGEND.format(recipe=plan.METHODS[plan.resolved(plan.RECIPE)].title)]
  for arena, runs in by_arena.items():
    text += section(arena, runs, records)
    text += measured.sections(here, arena)
  if both := together(by_arena):
    text += ["## Both arenas together", TOGETHER, both]
  text += ["## The paper's claims", paper.claims(by_arena), "## What it cost"]
  text += [costs(here, records), "## Which code made them", commits(by_arena)]
  text += ["## What is not in these tables", left_out(here, records, others)]
  whole = "\n\n".join(text)
  files.replace(here / "table.md", whole + "\n")
  if by_arena:
    curve.draw(by_arena, here / "curve.png")
  return whole


def of_arena(records: list[dict], arena: str) -> Runs:
  """The reported runs of an arena, at the learning rate that the tuning has found."""
  runs: Runs = {}
  for record in records:
    method, seed = record["method"], record["seed"]
    if record["arena"] == arena and seed in plan.seeds(method) and reported(record, records):
      runs.setdefault(method, {})[seed] = record
  return {method: runs[method] for method in plan.METHODS if method in runs}


def reported(record: dict, records: list[dict]) -> bool:
  """Whether a result is of a reported seed at its method's learning rate."""
  rate = results.rate(records, record["arena"], record["method"])
  return record["after"] is not None and record["rate"] == rate


def section(arena: str, runs: Runs, records: list[dict]) -> list[str]:
  """The tables of an arena; without those that would have no row."""
  tasks, text = by_task(runs), [f"## {arena}: {plan.heldout_problems(arena)}", overall(runs)]
  if tasks:
    text += ["### By task", tasks]
  if present(runs):
    text += ["### Differences in success at the end", claimed(runs)]
    title = "### Validation success at equal seconds of sampling and update, and at equal rollouts"
    text += [title, EARLY, equal_seconds(runs)]
  return [*text, "### Learning rates", rates(records, arena)]


# --- A row a method


def overall(runs: Runs) -> str:
  """Means over the seeds of each method."""
  head = (
    *("method", "seeds", "rate", "rollouts", "success start", "end", "gain", "in full start"),
    *("end", "gain", "pass@8 start", "end", "change", "truncated start", "end", "tokens start"),
    *("end", "entropy first", "last", "gradient norm", "prompts", "sampling and update, s"),
    *("a prompt, s", "rho", "prior MSE", "a constant's"),
  )
  return table(list(head), [row(method, list(of.values())) for method, of in runs.items()])


def row(method: str, records: list[dict]) -> list[str]:
  """The cells of a method's results."""
  mean = lambda pick: np.mean([pick(x) for x in records])
  both = lambda key, form: [
    format(mean(lambda x, when=when: np.mean(x[when][key])), form) for when in ("before", "after")
  ]
  known = lambda when, key, form=".2f": means([x[when][key] for x in records], form)
  seeds = ", ".join(str(x["seed"]) for x in records)
  return [
    *(plan.METHODS[method].title, seeds, f"{records[0]['rate']:g}"),
    f"{mean(lambda x: x['rollouts']):,.0f}",
    *(x for key in ("mean", "solved", "pass") for x in (*both(key, ".3f"), change(records, key))),
    *(*both("truncated", ".3f"), *both("length", ".1f")),
    *(known("first", "loss/entropy"), known("last", "loss/entropy"), known("last", "grad/norm")),
    f"{mean(lambda x: x['last']['prompts'] or 0):.0f}",
    f"{mean(lambda x: x['seconds']['steps']):.0f}",
    means([seconds_a_prompt(x) for x in records], ".2f"),
    *(known("last", "noise/rho"), known("last", "prior/mse"), known("last", "prior/constant_mse")),
  ]


def change(records: list[dict], key: str) -> str:
  """From start to end of a method's runs, with both intervals."""
  found = np.array([np.subtract(x["after"][key], x["before"][key]) for x in records])
  return " ".join(intervals(found))


def seconds_a_prompt(record: dict) -> float | None:
  """Sampling and update of all its rollouts; None where their prompts were not counted."""
  return record["seconds"]["steps"] / record["prompts"] if record["prompts"] else None


def means(found: list[float | None], form: str) -> str:
  """The mean of what is known; "-" where nothing is."""
  found = [x for x in found if x is not None]
  return format(np.mean(found), form) if found else "-"


# --- Differences


def claimed(runs: Runs) -> str:
  """PAIRS, with both intervals, and p corrected by Holm's rule over the rows."""
  rows, p = [], []
  for name, other in present(runs):
    found = differences(runs[name], runs[other])
    ends = found.mean(1)
    titles = plan.METHODS[name].title, plan.METHODS[other].title
    rows.append([*titles, seeds_of(name, other, runs)])
    if len(found):
      further = [differences(runs[name], runs[other], key).mean(1) for key in ("solved", "pass")]
      rows[-1] += [*intervals(found), *map(interval, further)]
    else:
      rows[-1] += [""] * 4
    p.append(p_value(ends))
  for cells, raw, adjusted in zip(rows, p, holm(p), strict=True):
    known = np.isfinite(raw)
    verdict = "yes" if adjusted < LEVEL else "no"
    cells += [f"{raw:.4f}", f"{adjusted:.3f}", verdict] if known else ["-", "-", "too few seeds"]
  head = ["method", "minus", "seeds", "success ± 95 % over seeds", "[95 % over problems]"]
  holms = f"by Holm's rule, {np.isfinite(p).sum()} of {len(plan.PAIRS)} compared"
  return table([*head, "right in full ± 95 %", "pass@8 ± 95 %", "p", holms, "differs"], rows)


def together(by_arena: dict[str, Runs]) -> str:
  """PAIRS that have two seeds or more in every arena, over all arenas. It was added when four pairs
  had four seeds in both. "" = none."""
  rows, p, arenas = [], [], [by_arena.get(arena, {}) for arena in plan.ARENAS]
  for name, other in present(arenas[0]):
    seeds = [common(runs.get(name, {}), runs.get(other, {})) for runs in arenas]
    if min(map(len, seeds)) < 2:
      continue
    success, passes = (
      stratified([differences(runs[name], runs[other], key).mean(1) for runs in arenas])
      for key in ("mean", "pass")
    )
    titles, counts = (plan.METHODS[x].title for x in (name, other)), map(str, map(len, seeds))
    halves = [f"{x.mean:+.3f} ± {x.half:.3f}" for x in (success, passes)]
    rows.append([*titles, " + ".join(counts), *halves])
    p.append(success.p)
  for cells, raw, adjusted in zip(rows, p, holm(p), strict=True):
    cells += [f"{raw:.4f}", f"{adjusted:.3f}"]
  head = ["method", "minus", "seeds", "success ± 95 %", "pass@8 ± 95 %", "p", "by Holm's rule"]
  return table(head, rows) if rows else ""


# --- Equal seconds


def equal_seconds(runs: Runs) -> str:
  """PAIRS on validation problems at the seconds at which the faster of both ends, and at the end of
  both, seed by seed."""
  rows = []
  for name, other in present(runs):
    if seeds := common(runs[name], runs[other]):
      found = [at_equal_seconds(runs[name][x], runs[other][x]) for x in seeds]
      seconds, own, theirs = np.array(found).T
      ends = [runs[name][x]["curve"][-1][1] - runs[other][x]["curve"][-1][1] for x in seeds]
      titles = plan.METHODS[name].title, plan.METHODS[other].title
      early = any(too_early(runs[name][x], runs[other][x]) for x in seeds)
      by_then = interval(own - theirs) + " *" * early
      cells = [seeds_of(name, other, runs), f"{seconds.mean():.0f}", by_then]
      rows.append([*titles, *cells, interval(ends)])
  head = ["method", "minus", "seeds", "seconds", "by then ± 95 %", "at equal rollouts ± 95 %"]
  return table(head, rows)


# --- Rates, cost, what is missing


def rates(records: list[dict], arena: str) -> str:
  """Mean height of the validation curve of each tuning run."""
  tuned = [x for x in records if x["arena"] == arena and x["seed"] == plan.TUNING_SEED]
  rows = []
  for method in plan.METHODS:
    own = {x["rate"]: x for x in tuned if x["method"] == method}
    if own:
      height = lambda x: (
        "failed" if x["failed"] else f"{np.mean([y[1] for y in x['curve'][1:]]):.3f}"
      )
      cells = [height(own[rate]) if rate in own else "-" for rate in plan.RATES]
      taken = results.rate(records, arena, method)
      edge = taken in (min(plan.RATES), max(plan.RATES))
      said = "-" if taken is None else f"{taken:g}" + " (at the edge)" * edge
      rows.append([plan.METHODS[method].title, *cells, said])
  return table(
    ["validation success, mean of the curve", *map("{:g}".format, plan.RATES), "taken"], rows
  )


def costs(here: Path, records: list[dict]) -> str:
  """Hours of two cores, by what they went into."""
  rows = []
  for arena in plan.ARENAS:
    own = [x for x in records if x["arena"] == arena]
    tuned = [x["seed"] == plan.TUNING_SEED for x in own]
    starts = {(x["seed"], x["seconds"]["start"]) for x in own}  # one may be made again elsewhere
    parts = {
      "warm starts": [seconds for _, seconds in starts],
      "tuning runs": [results.total(x) for x, is_tuned in zip(own, tuned) if is_tuned],
      "reported runs": [results.total(x) for x, is_tuned in zip(own, tuned) if not is_tuned],
      "value model and measurements": measured.seconds(here, arena),
    }
    rows += [
      [arena, name, len(x), f"{np.mean(x) / 60:.1f}", f"{sum(x) / 3600:.2f}"]
      for name, x in parts.items()
      if x
    ]
  total = sum(float(x[-1]) for x in rows)
  return table(
    ["arena", "part", "number", "minutes each", "hours"],
    [*rows, ["all", "", "", "", f"{total:.2f}"]],
  )


def commits(by_arena: dict[str, Runs]) -> str:
  """The commit, and the version of jax, by which the runs of each method were made."""
  rows = []
  for arena, runs in by_arena.items():
    for method, of in runs.items():
      seeds: dict[str, list[str]] = {}
      for seed, record in of.items():
        by = f"{record['made'].get('commit', '?')}, jax {record['made'].get('jax', '?')}"
        seeds.setdefault(by, []).append(str(seed))
      said = "; ".join(f"{by}: {', '.join(found)}" for by, found in seeds.items())
      rows.append([arena, plan.METHODS[method].title, said])
  return table(["arena", "method", "commit, jax: seeds"], rows)


def left_out(here: Path, records: list[dict], others: dict[Path, str]) -> str:
  """Runs and measurements of the plan that have no result, and results that are not taken, with the
  reason."""
  lines = [f"- {line}" for line in others.values()]
  for x in records:
    if x["seed"] != plan.TUNING_SEED and not reported(x, records):
      lines.append(f"- {name_of(x)}: not at the learning rate that the tuning has found")
  for arena in plan.ARENAS:
    runs = of_arena(records, arena)
    for method, of in plan.METHODS.items():
      if missing := [str(seed) for seed in plan.seeds(method) if seed not in runs.get(method, {})]:
        lines.append(f"- {arena}, {of.title}: no result of seed {', '.join(missing)}")
    for part, of in measured.PARTS.items():
      if not measured.complete(here, arena, part):
        lines.append(f"- {arena}: {of}: not measured to its end")
    if measured.lacks_v0(here, arena):
      lines.append(f"- {arena}: V0 is not among the priors that were measured")
  return "\n".join(lines) or "Nothing is missing."
