"""Discounted Beta-Bernoulli (arXiv 2603.18444): a prompt's own discounted successes and failures.

    alpha <- discount alpha + s,  beta <- discount beta + k - s    at each visit, from 1 and 1
    p = alpha / (alpha + beta),  A_i = (x_i - p) / sqrt(p (1 - p))

with s successes among the visit's k rollouts and x in {0, 1}; in units of rewards in [-1, 1] the
mean is 2 p - 1 and the deviation 2 sqrt(p (1 - p)). The visit's own rollouts are part of p, as in
the paper's algorithm 1, so the deviation is never 0. The paper discounts once an epoch, .5 for a
model of 1.7B parameters and .75 for one of 8B; it samples 8 rollouts.

Left open: rewards between failure and success, which count here as fractions of a success, and a
prompt that comes back within an epoch: here each visit counts as one. It has no use for V.
"""

import functools

import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import STD_EPSILON, from_counts

DISCOUNT = plug.Option(
  0.75,
  "what a prompt's earlier counts keep at its next visit",
  lambda x: 0 < x <= 1,
  "above 0 and at most 1",
)


def remember(counts, row, s, k, discount):
  """Successes and failures [D, 2] of each row of the data, after a visit to the rows [P]; one that
  stands there twice is discounted once."""
  where = jnp.where(k > 0, row, len(counts))  # out of range = nowhere
  kept = jnp.asarray(counts).at[where].set(discount * counts[row], mode="drop")
  return kept.at[where].add(jnp.stack([s, k - s], axis=1), mode="drop")


def _by_deviation(state, groups, value, difference):
  """Divides by the deviation of a reward in {-1, 1} whose mean is the baseline."""
  variance = 1.0 - (groups.shaped - difference) ** 2
  some = variance > 0
  return difference / (jnp.sqrt(jnp.where(some, variance, 1.0)) * some + STD_EPSILON)


@plug.declare("estimator", discount=DISCOUNT)
def dbb(options, setting):
  """The mean of Beta(alpha, beta) after the visit, and its deviation; `unseen` leaves the rollout
  out."""

  def past(state, groups, value):
    return options.discount * state[groups.row].T

  def mean(state, past, value, s, k):
    alpha, beta = past[0] + s, past[1] + k - s
    return (alpha - beta) / (alpha + beta)

  def learn(state, groups, value):
    seen = groups.unconditional
    return remember(state, seen.row, seen.s, seen.k, options.discount)

  estimator = from_counts(
    mean,
    leave_out=False,
    prompt=lambda state, groups, value: tuple(past(state, groups, value)),
    init=functools.partial(np.ones, (setting.rows, 2), np.float32),
    learn=learn,
    scale=_by_deviation,
    expect=lambda state, row, step, value: mean(state, state[row].T, value, 0.0, 0.0),
  )

  def explain(state, groups, value):
    successes, failures = past(state, groups, value)
    found = {"past successes": successes, "past failures": failures}
    return estimator.explain(state, groups, value) | found

  return estimator._replace(explain=explain)
