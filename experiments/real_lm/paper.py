"""The paper's claims, with what came out on SmolLM2."""

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.claims import LEVEL, holm, p_value
from experiments.real_lm import pairing, plan
from v05_jax.run import comparison

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
  ("... because of the value prior: better than GRPO with 4", "v05", "grpo4", "end", 1),
  ("... and than with a constant as the prior", "v05", "v05_constant", "end", 1),
  ("V0 predicts problems that it has never seen", "v05_v0", "v05_constant", "end", 1),
  ("The look-ahead budget buys rollouts where they pay", "v05_osla", "v05", "end", 1),
  ("With one rollout a prompt V0.5 is worse", "v05", "v05_k1_twice", "end", 1),
  ("Smaller gradient norms", "v05", "grpo16", "grad/norm", -1),
  ("Entropy stays higher", "v05", "grpo16", "loss/entropy", 1),
)


def claims(by_arena: dict[str, dict]) -> str:
  """A row a claim, a column an arena."""
  titles = {name: method.title for name, method in plan.METHODS.items()}
  columns = [column(runs) for runs in by_arena.values()]
  rows = [
    [text, f"{titles[one]} minus {titles[other]}, {what}", *cells]
    for (text, one, other, what, _), *cells in zip(CLAIMS, *columns, strict=True)
  ]
  return table(["claim", "measured by", *(f"SmolLM2, {arena}" for arena in by_arena)], rows)


def column(runs: dict) -> list[str]:
  """A cell a claim: the verdict and the difference with its 95 % interval over seeds. The p-values
  of the column are corrected by Holm's rule; what differs only without that is said to."""
  found = [difference(runs.get(x[1], {}), runs.get(x[2], {}), x[3]) for x in CLAIMS]
  adjusted = holm([p_value(values) for values in found])
  return [
    cell(values, p, claim[4]) for values, p, claim in zip(found, adjusted, CLAIMS, strict=True)
  ]


def cell(values: np.ndarray, adjusted: float, sign: int) -> str:
  """The verdict on differences [seeds] whose p-value after the correction is `adjusted`."""
  if len(values) < 2:
    return f"one seed: {pairing.interval(values)}" if len(values) else "not run"
  found = comparison.interval(values)
  decided = abs(found.mean) > found.half
  verdict = "not decided" if not decided else "yes" if sign * found.mean > 0 else "the reverse"
  uncorrected = ", before Holm's correction" if decided and adjusted >= LEVEL else ""
  return f"{verdict}{uncorrected}: {pairing.interval(values)}, {found.pairs} seeds"


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
