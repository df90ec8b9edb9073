"""What `config.reward` says: one reward by its name, or several with weights.

    R = sum over the rewards of weight x reward, each in its own units

One of several is the success, by `rewards.success`: the test, the fusion, the budget, V and the
accuracy look at it alone, mapped from `rewards.low` .. `rewards.high` to [-1, 1] and clipped. The
other rewards say nothing of a prompt's difficulty: they are added to the advantage, as the overlong
penalty is (`estimators.base`), in the mapped reward's units and in the ratio of the weights
(`others`). With `rewards.success = "sum"` the success is R, whose range is then `rewards.low` ..
`rewards.high`.
"""

from collections import Counter
import math
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from v05_jax.names import nearest, suggestion

KNOWN = ("task", "math", "expression", "reasoning_gym")
SUM = "sum"  # of rewards.success
EXPECTED = (
  f"{', '.join(KNOWN)} or module:function, or a list of [name, weight] of these, each once, with "
  'weights that are numbers and not 0: [["math", 1.0], ["my_reward:brief", 0.1]]'
)


class Term(NamedTuple):
  """One of the rewards."""

  name: str  # in metrics, reward/NAME, and in rewards.success
  target: str  # a name of `KNOWN`, or module:function
  weight: float


def terms(reward) -> tuple[Term, ...]:
  """The rewards of a `config.reward`, in order. A function is called by its own name, by
  module.function where two have the same. Raises ValueError where it is none."""
  pairs = [(reward, 1.0)] if isinstance(reward, str) else reward
  if not isinstance(pairs, (list, tuple)) or not pairs or not all(map(_is_pair, pairs)):
    raise ValueError(f"found {reward!r:.200}{_meant(reward)} expected {EXPECTED}")
  targets = [target for target, _ in pairs]
  if len(set(targets)) < len(targets):
    raise ValueError(f"found {reward!r:.200}, expected each reward once")
  short = [target.rpartition(":")[2].rpartition(".")[2] for target in targets]
  often = Counter(short)
  names = [
    x if often[x] == 1 and x != SUM else target.replace(":", ".")
    for x, target in zip(short, targets)
  ]
  return tuple(Term(n, t, float(w)) for n, t, (_, w) in zip(names, targets, pairs))


def _meant(reward) -> str:
  """ ", did you mean NAME?", where a name was mistyped or a function is named as in Python; ","."""
  if not isinstance(reward, str):
    return ","
  near = nearest(reward, KNOWN, 0.7)
  file = re.fullmatch(r"\w{1,99}", reward) and Path(f"{reward}.py").is_file()
  if file or re.fullmatch(r"[\w/]+\.py", reward):
    near = [f"{reward.removesuffix('.py').replace('/', '.')}:FUNCTION"]
  elif re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", reward):
    near = [":".join(reward.rsplit(".", 1))]
  return suggestion(near) or ","


def _is_pair(pair) -> bool:
  if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
    return False
  target, weight = pair
  number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
  named = target in KNOWN or all(target.partition(":"))
  return named and number and weight != 0 and abs(weight) <= 1e30 and math.isfinite(weight)


def targets(reward) -> tuple[str, ...]:
  """The names of a `config.reward`, without weights."""
  return tuple(term.target for term in terms(reward))


def success(reward, wanted: str) -> int | None:
  """The number of the reward that is the success, by `rewards.success`: "" is the first; None = R.

  Raises ValueError where it is none of them, or one whose weight is below 0.
  """
  found = terms(reward)
  if wanted == SUM:
    return None
  names = [term.name for term in found]
  if wanted and wanted not in names:
    raise ValueError(
      f"found {wanted!r}, expected {', '.join(names)}, {SUM}, or empty for the first"
    )
  index = names.index(wanted) if wanted else 0
  if found[index].weight < 0:
    raise ValueError(
      f"found {wanted!r}, expected a reward whose weight is above 0, or {SUM}: {names[index]} has "
      f"the weight {found[index].weight:g}"
    )
  return index


def combine(reward, wanted: str, parts) -> float:
  """The success of one response, in the verifier's units; `parts`: its rewards."""
  index = success(reward, wanted)
  if index is not None:
    return float(parts[index])
  return float(sum(term.weight * part for term, part in zip(terms(reward), parts)))


def others(config, parts, mask, centred: bool = True):
  """float32 [P, K]: what the rewards beside the success add to it, in units of the mapped reward.

      x = 2 / (high - low) * sum of weight / weight of the success * reward

  centred: less the mean x of the group's other rollouts, for a baseline that does not know x; a
    rollout alone is compared with all others of the step. Nothing of a rollout is in the mean that
    it is compared with: at a fixed k the expectation of the gradient is that of x. Otherwise x as
    it is, for a baseline that compares a group's shaped rewards (`Estimator.of_shaped`).
  parts: float32 [P, K, rewards], NaN of a rollout that was not judged, as a truncated one is not
    (`sampler.truncated=fail`). It has no bonus, x = 0, and where there are penalties the group's
    largest, the lowest x of its judged rollouts, lest a rollout be better off for never ending.
    That x, alone, is in the mean that another rollout is compared with.
  mask: bool [P, K], the rollouts that count.
  """
  found, index = terms(config.reward), success(config.reward, config.rewards.success)
  if index is None:
    return np.zeros(mask.shape, np.float32)
  unit = found[index].weight * (config.rewards.high - config.rewards.low) / 2
  weight = np.array([0.0 if i == index else t.weight / unit for i, t in enumerate(found)])
  total, judged = np.asarray(parts, np.float64) @ weight, mask & np.isfinite(parts).all(-1)
  lowest = np.where(judged, total, np.inf).min(1, initial=np.inf, keepdims=True)
  lowest = np.where(np.isfinite(lowest), lowest, lowest.min(initial=np.inf))  # of the step's
  total = np.where(judged, total, np.where(mask, np.minimum(lowest, 0.0), 0.0))
  if centred:
    beside = lambda axis: (
      (total.sum(axis, keepdims=True) - total) / np.maximum(mask.sum(axis, keepdims=True) - 1, 1)
    )
    alone = mask.sum(1, keepdims=True) < 2
    total = total - np.where(alone, beside(None), beside(1))
  return np.where(mask, total, 0.0).astype(np.float32)
