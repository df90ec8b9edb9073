"""Kernelized advantage estimation (arXiv 2604.28005): a prompt's earlier rewards, weighted by their
age.

    b_i = (sum_j K((t - t_j) / (h t)) r_j + K(0) sum_{l != i} r_l) / (the sum of the same weights)

r_j are the prompt's rewards of earlier steps t_j, r_l those of the step t itself, and K(x) = max(1
- x, 0): a reward of the last h t steps counts, less the older it is. A_i = r_i - b_i. A rollout
has no part in its own baseline.

The paper's text could not be had beyond its abstract, which says that rewards are smoothed by a
kernel; the equation and the triangular kernel are those of a reader's account of it. Decided here:
steps are counted from 1, h is .5 (the account says that a wide range of h does), a prompt's last 8
visits are kept, and where no reward has a weight the baseline is 0. It has no use for V. The
authors take the same prompts for 8 to 10 steps in a row; this takes the data as it comes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import from_counts

VISITS = 8  # of a prompt that are kept


class Visits(NamedTuple):
  """The last visits of every row of the data [D, VISITS], the newest first; k = 0: none."""

  successes: jax.Array  # float32
  rollouts: jax.Array  # float32
  step: jax.Array  # int32, from 1


def empty(size: int) -> Visits:
  """Nothing seen yet of `size` rows."""
  zeros = np.zeros((size, VISITS), np.float32)
  return Visits(zeros, zeros, zeros.astype(np.int32))


def remember(visits: Visits, groups) -> Visits:
  """Adds a visit to the rows of groups; a row that stands there twice is one visit."""
  zeros = jnp.zeros(len(visits.step), jnp.float32)
  total = lambda x: zeros.at[groups.row].add(x.astype(jnp.float32))
  rollouts = total(groups.k)
  now = jnp.full(rollouts.shape, groups.step + 1, jnp.int32)
  newest = Visits(total(groups.s), rollouts, now)
  push = lambda old, new: jnp.where(
    (rollouts > 0)[:, None], jnp.concatenate([new[:, None], old[:, :-1]], axis=1), old
  )
  return jax.tree.map(push, visits, newest)


def weighted(visits: Visits, row, step, bandwidth: float):
  """(successes [P], rollouts [P]) of the rows' earlier visits, each weighted by the kernel."""
  successes, rollouts, seen = (x[row] for x in visits)
  now = (step + 1).astype(jnp.float32)
  kernel = jnp.maximum(1.0 - (now - seen) / (bandwidth * now), 0.0)
  return jnp.sum(kernel * successes, axis=1), jnp.sum(kernel * rollouts, axis=1)


@plug.declare(
  "estimator",
  bandwidth=plug.Option(
    0.5, "of the kernel, as a share of the steps so far", lambda x: x > 0, "above 0"
  ),
)
def kae(options, setting):
  """The weighted mean of earlier visits and of the k - 1 other rollouts."""

  def past(state, groups, value):
    return weighted(state, groups.row, groups.step, options.bandwidth)

  def mean(state, past, value, s, k):
    successes, rollouts = past
    total = rollouts + k
    some = total > 0
    return jnp.where(some, 2.0 * (successes + s) / jnp.where(some, total, 1.0) - 1.0, 0.0)

  estimator = from_counts(
    mean,
    prompt=past,
    init=functools.partial(empty, setting.rows),
    learn=lambda state, groups, value: remember(state, groups.unconditional),
    expect=lambda state, row, step, value: mean(
      state, weighted(state, row, step, options.bandwidth), value, 0.0, 0.0
    ),
  )

  def explain(state, groups, value):
    successes, rollouts = past(state, groups, value)
    found = {"past successes": successes, "past rollouts": rollouts}
    return estimator.explain(state, groups, value) | found

  return estimator._replace(explain=explain)
