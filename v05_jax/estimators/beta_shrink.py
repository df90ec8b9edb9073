"""Empirical Bayes: a Beta prior around V, or around the batch's mean, weighted by what the batch
says of its error."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from v05_jax import plug
from v05_jax.estimators.base import from_counts
from v05_jax.shrinkage import clean, floats

MAX_PRIOR = 0.99  # |V'|
MIN_SPREAD = 1e-3  # variance of the prior's error, or of the prompts, at least
MIN_COUNT = 1e-6  # n0 at least, so that k = 0 does not divide by 0


class Fit(NamedTuple):
  """What the other prompts of a batch say, for the empirical-Bayes baselines; float arrays of one
  shape."""

  count: jax.Array  # rollouts that the prior is worth, above 0: n0 of BetaShrink
  offset: jax.Array  # mean reward minus A times the mean prior: the prior is V' = offset + A V
  center: jax.Array  # mean reward
  noise: jax.Array  # mean v / k: the variance of a group mean around its prompt's true mean
  spread: jax.Array  # variance of the group means around `center`


@functools.partial(jax.jit, static_argnames=("leave_out",))
def beta_fit(value, s, k, scale=1.0, leave_out=False) -> Fit:
  """Moments of a batch of P prompts: how much its priors (A = `scale`), or its mean (A = 0), are
  worth.

    v = (1 - vbar^2) k / (k - 1);  d = vbar - A V
    tau2 = max(var d - mean(v / k), 1e-3);  n0 = max(mean v / tau2, 1e-6)

  d is taken over the prompts with a prior, or all with A = 0 in its place where no prompt has one;
  variances over those with k >= 2. With none of them n0 = 1, and means of nothing are 0.

  Args:
    value, s, k: [P].
    leave_out: a prompt's fit leaves itself out, so that no baseline depends on the reward
      that it is subtracted from.

  Returns:
    Fit of scalars, or of [P] with `leave_out`.
  """
  value, s, k = floats(value, s, k)
  spoken, prior = clean(value)
  spoken = spoken | (jnp.asarray(scale) == 0.0) | ~jnp.any(spoken & (k > 0))
  vbar = 2.0 * s / jnp.where(k > 0, k, 1.0) - 1.0
  group = jnp.where(k >= 2, k, 2.0)
  variance = (1.0 - vbar**2) * group / (group - 1.0)
  d = vbar - scale * prior

  def mean(x, where):
    own = jnp.where(where, x, 0.0)
    number = jnp.sum(where) - (where if leave_out else 0)
    return (jnp.sum(own) - (own if leave_out else 0.0)) / jnp.maximum(number, 1)

  def var(x, where):
    return jnp.maximum(mean(x**2, where) - mean(x, where) ** 2, 0.0)

  pairs = spoken & (k >= 2)
  noise = mean(variance / group, pairs)
  n0 = mean(variance, pairs) / jnp.maximum(var(d, pairs) - noise, MIN_SPREAD)
  known = mean(jnp.ones_like(d), pairs) > 0
  return Fit(
    jnp.where(known, jnp.maximum(n0, MIN_COUNT), 1.0),
    mean(d, spoken & (k > 0)),
    mean(vbar, k > 0),
    noise,
    var(vbar, pairs),
  )


def posterior_mean(value, s, k, fit: Fit, scale=1.0):
  """BetaShrink, elementwise: (n0 V' + sum r) / (n0 + k), V' = clip(offset + A V, -.99, .99).

  A prompt without a prior has V' = the batch's mean reward, and so has every prompt with A = 0
  (shrinkage to the batch mean). `fit` is to be made with the same A. At fixed n0 the advantages
  with and without the rollout itself are proportional: A_full = (n0 + k - 1) / (n0 + k) A_loo.
  """
  value, s, k = floats(value, s, k)
  spoken, prior = clean(value)
  prior = jnp.where(spoken, fit.offset + scale * prior, fit.center)
  n0 = fit.count
  return (n0 * jnp.clip(prior, -MAX_PRIOR, MAX_PRIOR) + 2.0 * s - k) / (n0 + k)


def _shrink(scale: float):
  def prompt(state, groups, value):
    return beta_fit(value, groups.s, groups.k, scale, leave_out=True)

  def counts(state, fit, value, s, k):
    return posterior_mean(value, s, k, fit, scale)

  estimator = from_counts(counts, prompt=prompt, of_batch=True)

  def explain(state, groups, value):
    fit = prompt(state, groups, value)
    return estimator.explain(state, groups, value) | {
      "mean of the other prompts": fit.center,
      "rollouts that its prior is worth": fit.count,
    }

  return estimator._replace(explain=explain)


@plug.declare("estimator")
def beta_shrink(options, setting):
  """Shrunk toward V, moved and weighted as the other prompts of the batch say."""
  return _shrink(1.0)


@plug.declare("estimator")
def batch_shrink(options, setting):
  """Shrunk toward the mean of the batch's other prompts: no prior."""
  return _shrink(0.0)
