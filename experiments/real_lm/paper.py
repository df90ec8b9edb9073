"""The paper's claims, with what came out on SmolLM2."""

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.claims import LEVEL, holm, p_value
from experiments.real_lm import pairing, plan

# (claim, method, minus this one, what of them, whether the claim says that it is larger)
CLAIMS = (
  (
    "V0.5 with 4 rollouts is better than GRPO with 16, at equal rollouts",
    "v05",
    "grpo16",
    "end",
    1,
  ),
  ("... and than DAPO with 16", "v05", "dapo16", "end", 1),
  ("... and faster: at equal seconds", "v05", "grpo16", "seconds", 1),
  ("... and not for its smaller groups alone: better than GRPO with 4", "v05", "grpo4", "end", 1),
  (
    "... because of the value prior: better than with a constant as the prior",
    "v05",
    "v05_constant",
    "end",
    1,
  ),
  ("... and with V0, trained on other problems, too", "v05_v0", "v05_constant", "end", 1),
  ("The look-ahead budget buys rollouts where they pay", "v05_osla", "v05", "end", 1),
  ("With one rollout a prompt (here: used twice) V0.5 is worse", "v05", "v05_k1_twice", "end", 1),
  ("Smaller gradient norms than GRPO with 16", "v05", "grpo16", "grad/norm", -1),
  ("... and than GRPO with 4", "v05", "grpo4", "grad/norm", -1),
  ("Entropy stays higher", "v05", "grpo16", "loss/entropy", 1),
)
MEASURES = {
  "end": "success at the end",
  "seconds": "validation success at equal seconds",
  "grad/norm": "gradient norm",
  "loss/entropy": "entropy",
}


def claims(by_arena: dict[str, dict]) -> str:
  """A row a claim, a column an arena."""
  titles = {name: method.title for name, method in plan.METHODS.items()}
  columns = [column(runs) for runs in by_arena.values()]
  rows = [
    [text, f"{MEASURES[what]}: {titles[one]} minus {titles[other]}", *cells]
    for (text, one, other, what, _), *cells in zip(CLAIMS, *columns, strict=True)
  ]
  return table(["claim", "measured by", *(f"SmolLM2, {arena}" for arena in by_arena)], rows)


def column(runs: dict) -> list[str]:
  """A cell a claim: the verdict, and the difference with its 95 % interval over seeds. A claim is
  decided where its p-value is small after Holm's rule over the column."""
  found = [difference(runs.get(x[1], {}), runs.get(x[2], {}), x[3]) for x in CLAIMS]
  raw = [p_value(values) for values in found]
  return [
    cell(values, *both, claim[4])
    for values, *both, claim in zip(found, raw, holm(raw), CLAIMS, strict=True)
  ]


def cell(values: np.ndarray, p: float, adjusted: float, sign: int) -> str:
  """The verdict on differences [seeds] of p-value p, and `adjusted` after the correction."""
  if len(values) < 2:
    return f"one seed: {pairing.interval(values)}" if len(values) else "not run"
  agrees = sign * np.mean(values) > 0
  verdict = "not decided" if adjusted >= LEVEL else "yes" if agrees else "the reverse"
  seeds = f"{len(values)} seeds, p {p:.2g}, by Holm's rule {adjusted:.2g}"
  return f"{verdict}: {pairing.interval(values)} ({seeds})"


def difference(one: dict, other: dict, what: str) -> np.ndarray:
  """[seeds] of common seeds: "end": held-out success, "seconds": validation success at equal
  seconds, else the mean of a metric over the last steps."""
  seeds = pairing.common(one, other)
  if what == "end":
    return pairing.differences(one, other).mean(1) if seeds else np.array([])
  if what == "seconds":
    found = [pairing.at_equal_seconds(one[x], other[x]) for x in seeds]
    return np.array([own - theirs for _, own, theirs in found])
  return np.array([one[x]["last"][what] - other[x]["last"][what] for x in seeds])
