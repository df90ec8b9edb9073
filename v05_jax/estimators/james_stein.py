"""The James-Stein baseline of arXiv 2511.03710: the group mean shrunk toward the batch's mean."""

import jax.numpy as jnp

from v05_jax import plug
from v05_jax.estimators.base import at_least_two, from_counts
from v05_jax.estimators.beta_shrink import Fit, beta_fit
from v05_jax.shrinkage import floats


def shrunk(s, k, fit: Fit):
  """The James-Stein baseline of arXiv 2511.03710, elementwise: group mean and batch mean by the
  batch's moments.

    lambda = noise / (noise + spread);  baseline = (1 - lambda) vbar + lambda center

  With `fit` of the other prompts and s, k of the other rollouts it is the leave-one-out form of the
  authors' code (guanning03/JSPO-Official): `spread` is the variance of the observed means, noise
  included, and lambda that of all k rollouts. With k = 0, or where the fit knows no prompt, only
  one of the two means is left.
  """
  s, k = floats(s, k)
  total = fit.noise + fit.spread
  varies = total > 1e-6  # more than rounding errors, of which no weight could be made
  weight = jnp.where(varies, fit.noise / jnp.where(varies, total, 1.0), 0.0)
  weight = jnp.where(k > 0, weight, 1.0)
  vbar = 2.0 * s / jnp.where(k > 0, k, 1.0) - 1.0
  return (1.0 - weight) * vbar + weight * fit.center


@plug.declare("estimator", check=at_least_two("james_stein"))
def james_stein(options, setting):
  """The moments are those of the batch's other prompts, the group mean that of the other
  rollouts."""

  def prompt(state, groups, value):
    return beta_fit(value, groups.s, groups.k, 0.0, leave_out=True)

  estimator = from_counts(
    lambda state, fit, value, s, k: shrunk(s, k, fit), prompt=prompt, of_batch=True
  )

  def explain(state, groups, value):
    fit = prompt(state, groups, value)
    return estimator.explain(state, groups, value) | {
      "mean of the other prompts": fit.center,
      "noise of a group mean": fit.noise,
      "spread of the group means": fit.spread,
    }

  return estimator._replace(explain=explain)
