"""What a step's rollouts and baselines say about themselves, as (sum, count) pairs; on host, pure.

Everything is in the mapped reward's units, [-1, 1], where it concerns values and baselines; success
and accuracy are in [0, 1]. The names are explained in `metrics.METRICS`.
"""

import numpy as np

from v05_jax.structs import Prompts, Rollouts

Pairs = dict[str, tuple[float, float]]


def pair(x, where=None) -> tuple[float, float]:
  """(sum, count) of the finite entries of `x` under the mask `where`."""
  x = np.asarray(x, np.float64)
  where = np.isfinite(x) if where is None else np.isfinite(x) & np.broadcast_to(where, x.shape)
  return float(x[where].sum()), float(where.sum())


def rollout_metrics(prompts: Prompts, rolls: Rollouts, success: np.ndarray) -> Pairs:
  """Reward, accuracy and group sizes. `success [P, K]`: the reward as a share of its range, in [0,
  1]."""
  k = rolls.mask.sum(1)
  metrics = {
    "reward": pair(rolls.reward, rolls.mask),
    "accuracy": pair(success, rolls.mask),
    "k/mean": pair(k, prompts.mask),
    "prompts": (float(prompts.mask.sum()), 1),
  }
  for n, count in zip(*np.unique((rolls.length > 0).sum(1)[prompts.mask], return_counts=True)):
    metrics[f"k/hist/{n}"] = (float(count), 1)
  families = np.array([row.get("family", "") for row in prompts.rows])
  for family in sorted(set(families) - {""}):
    of_family = np.zeros(len(prompts.mask), bool)
    of_family[: len(families)] = families == family
    metrics[f"accuracy/{family}"] = pair(success, rolls.mask & of_family[:, None])
  return metrics


def rival_metrics(rivals, success, valid) -> Pairs:
  """Squared errors of two priors where both speak, against the mean of rollouts whose number was
  fixed in advance.

  Args:
    rivals: [2, P], V and the context's mean.
    success: [P] in [0, 1], of those rollouts; valid: bool [P], prompts that have any.
  """
  both = valid & np.isfinite(rivals).all(0)
  own, mean = np.square(rivals - (2 * success - 1))
  return {"prior/mse": pair(own, both), "prior/constant_mse": pair(mean, both)}


def baseline_metrics(value, fusion, advantage, success, mask, truth=None) -> Pairs:
  """The test, the fusion and the baseline of a step; `truth [P]`: the true success probability or
  NaN.

  `shrinkage/true_mse` and `prior/true_mse` need `truth`; `zero_share` is the share of rollouts that
  teach nothing.
  """
  real = mask.any(1)
  value, k = np.asarray(value), mask.sum(1)
  vbar = 2 * np.where(mask, success, 0.0).sum(1) / np.maximum(k, 1) - 1
  delta2, weight, baseline = (
    np.asarray(x) for x in (fusion.delta2, fusion.weight, fusion.baseline)
  )
  # w^2 / k + (1 - w)^2 delta2: of V0.5's weight this is mse(k), of the group mean's (w = 1) 1/k.
  mse = weight**2 / np.maximum(k, 1) + np.where(
    weight < 1, (1 - weight) ** 2 * np.nan_to_num(delta2), 0.0
  )
  spoken = real & np.isfinite(value)
  metrics = {
    "prior/accepted": pair(delta2 == 0, spoken),
    "prior/abs_error": pair(np.abs(value - vbar), spoken),
    "shrinkage/weight": pair(weight, real),
    "shrinkage/estimated_mse": pair(mse, real),
    "advantage/mean_square": pair(np.square(advantage), mask),
    "advantage/zero_share": pair(np.asarray(advantage) == 0, mask),
  }
  if truth is not None:
    mu = 2 * np.asarray(truth) - 1
    metrics["shrinkage/true_mse"] = pair(np.square(baseline - mu), real)
    metrics["shrinkage/true_mse_mean"] = pair(np.square(vbar - mu), real)
    metrics["prior/true_mse"] = pair(np.square(np.clip(value, -1, 1) - mu), spoken)
  return metrics
