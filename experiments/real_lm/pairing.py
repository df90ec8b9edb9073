"""Differences between runs of the same seed: they share the warm start, the order of the training
problems and the held-out problems."""

from typing import NamedTuple

import numpy as np
from scipy import special

from experiments.real_lm import plan
from v05_jax.run import comparison, success

Runs = dict[str, dict[int, dict]]  # method -> seed -> result


def common(one: dict[int, dict], other: dict[int, dict]) -> list[int]:
  """The seeds that both have. Raises ValueError where two runs of one seed started from different
  policies, or were evaluated on different problems: they are no pair."""
  seeds = sorted(set(one) & set(other))
  for seed in seeds:
    a, b = one[seed], other[seed]
    names = name_of(a), name_of(b)
    if a["problems"] != b["problems"]:
      found = f"{a['problems']} and {b['problems']}"
      raise ValueError(f"{names[0]}, {names[1]}: found the problems {found}, expected the same")
    if a["before"]["mean"] != b["before"]["mean"]:
      raise ValueError(f"{names[0]}, {names[1]}: found different warm starts, expected the same")
  return seeds


def name_of(record: dict) -> str:
  """The arena and the run of a result, for messages."""
  return f"{record['arena']} {plan.Run.of(record).name}"


def present(runs: Runs) -> list[tuple[str, str]]:
  """The comparisons of plan.PAIRS both sides of which have results, the recipe by its name."""
  named = ((plan.resolved(one), plan.resolved(other)) for one, other in plan.PAIRS)
  return [(a, b) for a, b in named if a != b and a in runs and b in runs]


def differences(one: dict, other: dict, key: str = "mean") -> np.ndarray:
  """[seeds, problems] of the evaluations at the end, on common seeds."""
  seeds = common(one, other)
  values = [np.subtract(one[x]["after"][key], other[x]["after"][key]) for x in seeds]
  return np.array(values) if seeds else np.zeros((0, 1))


def seeds_of(name: str, other: str, runs: Runs) -> str:
  """The seeds of a difference, and those that it should have and has not."""
  there = common(runs[name], runs[other])
  planned = sorted(set(plan.seeds(name)) & set(plan.seeds(other)))
  missing = [str(x) for x in planned if x not in there]
  text = ", ".join(map(str, there)) or "none"
  return text + (f" (missing: {', '.join(missing)})" if missing else "")


def at_equal_seconds(one: dict, other: dict) -> tuple[float, float, float]:
  """(seconds at which the faster run ends, success of either by then, on a line between the
  evaluations)."""
  curves = [np.array(x["curve"], float) for x in (one, other)]  # rollouts, success, seconds
  until = min(x[-1, 2] for x in curves)
  return until, *(float(np.interp(until, x[:, 2], x[:, 1])) for x in curves)


def too_early(one: dict, other: dict) -> bool:
  """Whether the slower run had not been evaluated yet, but for its start, when the faster ended."""
  return at_equal_seconds(one, other)[0] < max(x["curve"][1][2] for x in (one, other))


def interval(values) -> str:
  """Mean ± half of the 95 % interval by Student's t; the mean alone for one value."""
  found = comparison.interval(values)
  return f"{found.mean:+.3f}" + ("" if found.pairs < 2 else f" ± {found.half:.3f}")


class Stratified(NamedTuple):
  """The mean over arenas of the mean differences of each."""

  mean: float
  half: float  # of the 95 % interval
  p: float  # that it is 0, two-sided


def stratified(parts: list[np.ndarray]) -> Stratified:
  """Of differences [seeds] of each arena, two or more: arenas weigh the same, and each has a
  variance of its own (Welch's degrees of freedom)."""
  means = [x.mean() for x in parts]
  variances = [x.var(ddof=1) / len(x) for x in parts]
  mean, error = np.mean(means), np.sqrt(sum(variances)) / len(parts)
  if not error:
    return Stratified(float(mean), 0.0, float(mean == 0))
  shares = [v**2 / (len(x) - 1) for v, x in zip(variances, parts)]
  freedom = sum(variances) ** 2 / sum(shares)
  half = special.stdtrit(freedom, (1 + comparison.LEVEL) / 2) * error
  return Stratified(float(mean), float(half), float(2 * special.stdtr(freedom, -abs(mean) / error)))


def intervals(found: np.ndarray) -> tuple[str, str]:
  """Of differences [seeds, problems]: `interval` over seeds, and the 95 % bootstrap interval over
  problems, seeds as they are."""
  low, high = success.interval_of_mean(found.mean(0))
  return interval(found.mean(1)), f"[{low:+.3f}, {high:+.3f}]"
