"""V and the group by their precisions, where the prior says how far to trust it.

A prior that knows its own error says V and a variance of the prompt's mean reward mu around it
(`priors/base.py`). A reward's own variance is then E[1 - mu^2] = 1 - V^2 - variance, and the mean
of the n = k - 1 other rollouts, rbar, has 1 / n of it, so that

    b = (n0 V + n rbar) / (n0 + n),    n0 = (1 - V^2) / variance - 1

is the mean of V and rbar weighted by their precisions 1 / variance and n / (1 - V^2 - variance), of
least expected squared error: the posterior mean of a Beta distribution with that mean and variance,
worth n0 rollouts. A variance of 0 leaves V, one of 1 - V^2 or more (it cannot be larger) the mean
of the others, which is RLOO; without others it is V.

Where the prior does not say, the squared error of V over the steps before stands for the variance:
the mean of (r - V) (rbar - V), whose expectation is (mu - V)^2 as r and rbar are independent. Until
there is one, and at k = 1 always, V is worth a single rollout. The paper's plug-in test looks at
the rollouts themselves for it, one prompt at a time; here they decide nothing about their weight.
"""

import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import from_counts
from v05_jax.shrinkage import clean

DISCOUNT = 0.95  # of the measured error, a step
MOST = 1e6  # rollouts that a prior is worth
FIRST = 1.0  # rollouts that V is worth before its error is known


def worth(value, variance):
  """n0 of V and its variance, elementwise; NaN where the variance is."""
  room = 1.0 - clean(value)[1] ** 2  # no NaN even where it is not used: its slope would be one
  positive = variance > 0
  n0 = room / jnp.where(positive, variance, 1.0) - 1.0
  n0 = jnp.where(positive, n0, jnp.where(variance == 0, MOST, jnp.nan))
  return jnp.clip(n0, 0.0, MOST)


def fused(value, n0, s, n):
  """b after s successes among n rollouts, elementwise; without a prior the mean, or 0."""
  spoken, prior = clean(value)
  n0 = jnp.where(spoken, n0, 0.0)
  total = n0 + n
  mean = (n0 * prior + 2.0 * s - n) / jnp.where(total > 0, total, 1.0)
  return jnp.where(total > 0, mean, prior)


@plug.declare("estimator")
def precision(options, setting):
  """The precision-weighted mean of V and the k - 1 other rollouts."""

  def rollouts(state, groups, value):
    count, square = state
    known = jnp.asarray(count > 0)
    measured = jnp.maximum(square, 0.0) / jnp.where(known, count, 1.0)
    n0 = jnp.where(known, worth(value, measured), FIRST)
    if groups.prior_variance is None:
      return n0
    said = worth(value, groups.prior_variance)
    return jnp.where(jnp.isfinite(said), said, n0)

  def learn(state, groups, value):
    seen, (spoken, prior) = groups.unconditional, clean(value)
    others = jnp.maximum(seen.k - 1.0, 0.0)[:, None]
    mean = (jnp.sum(seen.reward, axis=1, keepdims=True) - seen.reward) / jnp.maximum(others, 1.0)
    where = seen.mask & (others > 0) & spoken[:, None]
    error = (seen.reward - prior[:, None]) * (mean - prior[:, None])
    sums = [jnp.sum(jnp.where(where, x, 0.0)) for x in (1.0, error)]
    return DISCOUNT * state + jnp.stack(sums)

  estimator = from_counts(
    lambda state, n0, value, s, n: fused(value, n0, s, n),
    prompt=rollouts,
    init=lambda: np.zeros(2, np.float32),
    learn=learn,
  )

  def explain(state, groups, value):
    spoken, prior = clean(value)
    n0 = jnp.where(spoken, rollouts(state, groups, value), 0.0)
    total = jnp.where(n0 + groups.k > 0, n0 + groups.k, 1.0)
    noise = jnp.where(spoken, (1.0 - prior**2) * n0 / (n0 + 1.0), 1.0)  # of one reward
    return estimator.explain(state, groups, value) | {
      "weight of the rollouts": groups.k / total,
      "expected_mse": noise / total,
      "rollouts that its prior is worth": n0,
    }

  return estimator._replace(explain=explain)
