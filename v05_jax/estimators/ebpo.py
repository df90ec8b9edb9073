"""EBPO (arXiv 2602.05165): the group mean shrunk toward the mean reward of all training so far.

    b = (1 - S) vbar + S mu,  S = (sigma2 / k) / (sigma2 / k + tau2)
    A_i = (r_i - b - mean) / (std + eps)    by mean and standard deviation over the whole batch

mu and sigma2 are mean and variance of all rewards seen, tau2 is the variance of all group means,
kept by Welford's algorithm; the batch's own rollouts are taken in first (algorithm 1). tau2 holds
the noise of the group means too, which the authors keep so that no variance is negative (remark
3.1).

The paper calls sigma2 the variance within groups, and its algorithm takes that of all rewards: so
does this. Left open: which of the two variances of a sample (that of the population here). Its
clusters of prompts by topic are a property of the data.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import from_counts, standardised
from v05_jax.moments import merged


class Moments(NamedTuple):
  """Of everything seen so far, [2]: of rewards, and of group means."""

  count: jax.Array
  mean: jax.Array
  square: jax.Array  # sum of squared deviations from the mean


def taken_in(moments: Moments, groups) -> Moments:
  """The moments after the rollouts of a batch."""
  parts = (groups.reward, groups.mask), (groups.vbar, groups.k > 0)
  each = lambda f: jnp.stack([f(x, where) for x, where in parts])
  number = each(lambda x, where: jnp.sum(where, dtype=x.dtype))
  average = lambda x, where: jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where), 1)
  mean = each(average)
  square = each(lambda x, where: jnp.sum(jnp.where(where, (x - average(x, where)) ** 2, 0.0)))
  return merged(moments, number, mean, square)


def shrunk(moments: Moments, vbar, k):
  """(the baseline, S) of the mean reward `vbar` of `k` rollouts, elementwise; S = 1 where k = 0,
  and 0 where nothing varies."""
  sigma2, tau2 = moments.square / jnp.maximum(moments.count, 1.0)
  noise = sigma2 / jnp.maximum(k, 1.0)
  total = noise + tau2
  share = jnp.where(total > 0, noise / jnp.where(total > 0, total, 1.0), 0.0)
  share = jnp.where(k > 0, share, 1.0)
  return vbar + share * (moments.mean[0] - vbar), share


@plug.declare("estimator")
def ebpo(options, setting):
  """As published; `unseen` shrinks the mean of the others by the moments before the step."""

  def counts(state, prompt, value, s, k):
    return shrunk(state, jnp.where(k > 0, 2.0 * s / jnp.maximum(k, 1.0) - 1.0, 0.0), k)[0]

  def published(state, groups):
    return shrunk(taken_in(state, groups), groups.vbar, groups.k)

  def explain(state, groups, value):
    baseline, share = published(state, groups)
    return {"baseline": baseline, "weight": 1.0 - share}

  estimator = from_counts(
    counts,
    init=lambda: Moments(*np.zeros((3, 2), np.float32)),
    learn=lambda state, groups, value: taken_in(state, groups.unconditional),
    scale=standardised,
    explain=explain,
    of_batch=True,
  )
  return estimator._replace(
    baseline=lambda state, groups, value: published(state, groups)[0][:, None]
  )
