"""V0.5's fusion for gradients of any length: the prior and the group, both of E[w r] / E[w].

The baseline of least gradient noise is b* = E[w r] / E[w] (score.py), so V, the success rate, is
the wrong thing to shrink to, and vbar the wrong one to shrink, where w and reward go together. Here

1. V becomes a prior of b*. Where rho = m0 / m1 is the same for all prompts and V = 2 p - 1, b* has
   the odds of V divided by rho: T = (V + c) / (1 + c V), c = (1 - rho) / (1 + rho). Any other
   error of V is reduced by a line in T, fitted by least squares: the sum of w (r - U)^2 that it
   makes least is the second moment of the gradient itself.

       U = mean r + slope (T - mean T),  slope = cov(T, r) / var(T), all weighted by w

2. G, the w-weighted mean of the k - 1 other rollouts, is shrunk to U as V0.5 shrinks vbar to V, by
   what both have shown so far in place of the paper's test of one prompt:

       b = U + weight (G - U),  weight = delta2 / (delta2 + noise / (k - 1))
       delta2 = sum of w (r - U) (G - U),  noise = sum of w (k - 1) (G - U) (G - r)

   delta2 + noise / (k - 1) is the sum of w (G - U)^2, so at a fixed k the weight is the one of
   least sum of w (r - b)^2. Where w is the same for all rollouts, delta2 is the squared error of U
   alone and noise that of one rollout; elsewhere nearly so, as G, a ratio, is not b* on average.

All sums run over the rollouts of the steps before whose number no outcome has chosen, discounted.
Where w is constant T is V, and a calibrated V gives V0.5's fusion with measured delta2 and noise.
Where V says nothing, U is `score`. A rollout's baseline uses neither its own reward nor its own w:
at a fixed k the gradient is unbiased; where outcomes choose k it is not, as with every estimator
that reads the group.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import Estimator
from v05_jax.estimators.score import DISCOUNT, mean_of_all, mean_of_others, weights
from v05_jax.shrinkage import clean

MIN_SPREAD = 1e-3  # added to cov and var of T: without spread the slope is 1, as V says it
MAX_TILT = 0.999  # |c|


class Learnt(NamedTuple):
  """Discounted sums over rollouts."""

  outcome: jax.Array  # [4]  of failure, w failure, success, w success; success = (1 + r) / 2
  reward: jax.Array  # [2]  of w, w r
  line: jax.Array  # [5]  of w, w r, w T, w T r, w T^2 where the prior spoke
  error: jax.Array  # [2]  delta2 and noise


def empty() -> Learnt:
  """Before the first step: U = V, or 0 without a prior, and it is worth one rollout."""
  return Learnt(*(np.zeros(size, np.float32) for size in (4, 2, 5, 2)))


def tilted(state: Learnt, value):
  """(bool [P]: there is a prior, T [P])."""
  failures, of_failures, successes, of_successes = state.outcome
  both = (failures > 0) & (successes > 0)
  m0, m1 = of_failures * successes, of_successes * failures  # their ratio is rho
  c = jnp.where(both, (m1 - m0) / jnp.where(both, m1 + m0, 1.0), 0.0).clip(-MAX_TILT, MAX_TILT)
  spoken, prior = clean(value)
  return spoken, (prior + c) / (1.0 + c * prior)


def prior(state: Learnt, value):
  """U [P] of V [P]; without a prior, or where it says nothing, the w-weighted mean reward."""
  spoken, t = tilted(state, value)
  weight, *sums = state.line
  known = weight > 0
  reward, mean, product, square = (x / jnp.where(known, weight, 1.0) for x in sums)
  slope = product - reward * mean + MIN_SPREAD
  slope = slope / (jnp.maximum(square - mean**2, 0.0) + MIN_SPREAD)
  line = jnp.where(known, reward + slope * (t - mean), t)
  every, total = state.reward
  alone = jnp.where(every > 0, total / jnp.where(every > 0, every, 1.0), 0.0)
  return jnp.where(spoken, line, alone).clip(-1.0, 1.0)


def fused(state: Learnt, u, mean, number):
  """U and the w-weighted mean of so many rollouts, elementwise."""
  delta2, noise = jnp.maximum(state.error, 0.0)
  total = number * delta2 + noise
  weight = jnp.where(total > 0, number * delta2 / jnp.where(total > 0, total, 1.0), 0.0)
  weight = jnp.where(jnp.any(state.error != 0), weight, number / (number + 1.0))
  return u + weight * (mean - u)


def update(state: Learnt, groups, value) -> Learnt:
  """The state after a step's groups."""
  w, r = weights(groups), groups.reward
  sums = lambda *columns: jnp.stack([jnp.sum(jnp.where(groups.mask, x, 0.0)) for x in columns])
  kept = Learnt(*(DISCOUNT * x for x in state))
  success, failure = (1.0 + r) / 2.0, (1.0 - r) / 2.0
  kept = kept._replace(outcome=kept.outcome + sums(failure, w * failure, success, w * success))
  spoken, t = (x[:, None] for x in tilted(kept, value))
  of_line = jnp.where(spoken, w, 0.0)
  line = sums(of_line, of_line * r, of_line * t, of_line * t * r, of_line * t**2)
  kept = kept._replace(reward=kept.reward + sums(w, w * r), line=kept.line + line)
  u, others = prior(kept, value)[:, None], jnp.maximum(groups.k - 1.0, 0.0)[:, None]
  mean = mean_of_others(r, w)
  of_others = jnp.where(others > 0, w, 0.0)
  error = sums(of_others * (r - u) * (mean - u), of_others * others * (mean - u) * (mean - r))
  return kept._replace(error=kept.error + error)


@plug.declare("estimator")
def v05_score(options, setting):
  """The fusion of U and the group, after the k - 1 other rollouts."""

  def baseline(state, groups, value):
    others = jnp.maximum(groups.k - 1.0, 0.0)[:, None]
    mean = mean_of_others(groups.reward, weights(groups))
    return fused(state, prior(state, value)[:, None], mean, others)

  def explain(state, groups, value):
    u, mean = prior(state, value), mean_of_all(groups.reward, weights(groups))
    return {
      "baseline": fused(state, u, mean, groups.k),
      "V of the weighted reward": u,
      "weighted mean of the rollouts": mean,
    }

  return Estimator(
    baseline=baseline,
    init=empty,
    learn=lambda state, groups, value: update(state, groups.unconditional, value),
    explain=explain,
  )
