"""Metrics of a step's rollouts and baselines: reward, group sizes, test, fusion.

Everything is in the mapped reward's units, [-1, 1], where it concerns values and baselines; success
and accuracy are in [0, 1]. The names are explained in `metrics.METRICS`.
"""

import numpy as np

from v05_jax import plug
from v05_jax.observers.base import Observer, Step, merged, pair
from v05_jax.run.metrics import Pairs
from v05_jax.structs import Draw


@plug.declare("observer")
def diagnostics(options, setting):
  """The rollouts of all draws, the test and the advantages of those that were taken."""
  has_prior = plug.speaks(setting.config)

  def see(state, step: Step):
    found = merged(of_rollouts(draw) for draw in step.drawn)
    found |= of_baseline(step.taken, step.advantage, step.explained)
    if has_prior:
      found |= of_test(step.taken, step.explained)
    sampled = sum(len(draw.rolls.prompt) for draw in step.drawn)
    return state, found | {"rollouts_discarded": (sampled - len(step.taken.rolls.prompt), 1)}

  return Observer(see)


def of_rollouts(draw: Draw) -> Pairs:
  """Reward, accuracy and group sizes."""
  prompts, rolls, groups = draw.prompts, draw.rolls, draw.groups
  success, mask = (groups.reward + 1) / 2, rolls.mask
  metrics = {
    "reward": pair(rolls.reward, mask),
    "accuracy": pair(success, mask),
    "k/mean": pair(mask.sum(1), prompts.mask),
    "prompts": (float(prompts.mask.sum()), 1),
  }
  for n, count in zip(*np.unique((rolls.length > 0).sum(1)[prompts.mask], return_counts=True)):
    metrics[f"k/hist/{n}"] = (float(count), 1)
  families = np.array([row.get("family") or "" for row in prompts.rows])
  for family in sorted(set(families) - {""}):
    of_family = np.zeros(len(prompts.mask), bool)
    of_family[: len(families)] = families == family
    metrics[f"accuracy/{family}"] = pair(success, mask & of_family[:, None])
  return metrics


def of_test(draw: Draw, explained) -> Pairs:
  """Whether the rollouts contradict the prior, and by how much it is off."""
  spoken = draw.groups.mask.any(1) & np.isfinite(draw.value)
  return {
    "prior/accepted": pair(np.asarray(explained["delta2"]) == 0, spoken),
    "prior/abs_error": pair(np.abs(draw.value - draw.groups.vbar), spoken),
  }


def of_baseline(draw: Draw, advantage, explained) -> Pairs:
  """The fusion and the advantages; `zero_share` is the share of rollouts with advantage 0."""
  mask = draw.groups.mask
  real, k = mask.any(1), draw.groups.k
  delta2, weight = (np.asarray(explained[name]) for name in ("delta2", "weight"))
  # w^2 / k + (1 - w)^2 delta2: of V0.5's weight this is mse(k), of the group mean's (w = 1) 1/k.
  bias = np.where(weight < 1, (1 - weight) ** 2 * np.nan_to_num(delta2), 0.0)
  mse = explained.get("expected_mse", weight**2 / np.maximum(k, 1) + bias)
  return {
    "shrinkage/weight": pair(weight, real),
    "shrinkage/estimated_mse": pair(mse, real),
    "advantage/mean_square": pair(np.square(advantage), mask),
    "advantage/zero_share": pair(np.asarray(advantage) == 0, mask),
  }
