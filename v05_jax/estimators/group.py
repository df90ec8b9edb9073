"""Baselines that compare a prompt's rollouts with each other alone: no prior. With k = 1 all give
0.

    grpo     (x - mean x) / (std x + 1e-6), std with k - 1    arXiv 2402.03300; DAPO with other
             losses
    dr_grpo  x - mean x                                       arXiv 2503.20783; its loss is
             loss.aggregate=constant
    rloo     x - mean of the others                           arXiv 2402.14740
    maxrl    (x - mean x) / (1 + mean r), 0 without success   arXiv 2602.02710

x is the shaped reward, r the reward. MaxRL divides by the success rate (1 + mean r) / 2: an average
over the successes alone, less that over all. That average has the expectation of the gradient of
sum_{j <= k} -(1 - p)^j / j, the first k terms of log p; with groups without success left out of
what is taken off, as here, it is of k - 1 terms.
"""

import jax.numpy as jnp

from v05_jax import plug
from v05_jax.estimators.base import STD_EPSILON, Estimator, at_least_two, mean_reward


def _from_best(groups):
  """(best [P, 1], shaped rewards less the best [P, K]): equal rewards then give exactly 0."""
  shaped = groups.shaped
  best = jnp.max(jnp.where(groups.mask, shaped, -jnp.inf), axis=1, keepdims=True)
  best = jnp.where(jnp.isfinite(best), best, 0.0)
  return best, jnp.where(groups.mask, shaped - best, 0.0)


def _mean(state, groups, value):
  best, behind = _from_best(groups)
  return best + jnp.sum(behind, axis=1, keepdims=True) / jnp.maximum(groups.k, 1.0)[:, None]


def _mean_of_others(state, groups, value):
  """A rollout alone is compared with itself."""
  best, behind = _from_best(groups)
  others = groups.k[:, None] - 1.0
  total = jnp.sum(behind, axis=1, keepdims=True) - behind
  return best + jnp.where(others > 0, total / jnp.maximum(others, 1.0), behind)


def _unseen(state, groups, value):
  """The mean of the others, of the verifier's reward alone; without others 0."""
  alone = groups.k[:, None] < 2
  return jnp.where(alone, 0.0, _mean_of_others(state, groups._replace(shaping=0.0), value))


def _counts(state, prompt, value, s, k):
  return mean_reward(s, k)


def _explain(state, groups, value):
  return {"baseline": groups.vbar, "weight": jnp.ones_like(groups.vbar)}


def _of_group(baseline, explain=_explain, **more):
  return Estimator(
    baseline, explain=explain, unseen=_unseen, counts=_counts, of_shaped=True, **more
  )


def _spread(difference, groups):
  """Standard deviation of each group [P, 1]; 0 where all rewards are equal."""
  total = jnp.sum(difference**2, axis=1, keepdims=True)
  variance = total / jnp.maximum(groups.k - 1.0, 1.0)[:, None]
  some = variance > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1.0)), 0.0)


@plug.declare("estimator", check=at_least_two("grpo"))
def grpo(options, setting):
  """The group mean, divided by the group's standard deviation."""

  def explain(state, groups, value):
    centred = jnp.where(groups.mask, groups.reward - groups.vbar[:, None], 0.0)
    return _explain(state, groups, value) | {"standard deviation": _spread(centred, groups)[:, 0]}

  def scale(state, groups, value, difference):
    return difference / (_spread(difference, groups) + STD_EPSILON)

  return _of_group(_mean, scale=scale, explain=explain)


@plug.declare("estimator", check=at_least_two("dr_grpo"))
def dr_grpo(options, setting):
  """The group mean."""
  return _of_group(_mean)


@plug.declare("estimator", check=at_least_two("rloo"))
def rloo(options, setting):
  """The mean of the others."""
  return _of_group(_mean_of_others)


@plug.declare("estimator", check=at_least_two("maxrl"))
def maxrl(options, setting):
  """The group mean, divided by the group's success rate."""

  def scale(state, groups, value, difference):
    some = groups.s > 0
    rate = jnp.where(some, 1.0 + groups.vbar, 1.0)
    return difference * jnp.where(some, 1.0 / rate, 0.0)[:, None]

  return _of_group(_mean, scale=scale)
