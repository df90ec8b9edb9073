"""How much a prompt's gradient varies, as its own earlier rollouts have shown: for data that comes
back, and for the selection of prompts by it (`selection.score=second_moment`).

A policy gradient is a mean of A g, A the advantage of a rollout and g the gradient of its
log-probability, so that a prompt has a part of E[A^2 |g|^2] in its second moment. If prompts are
drawn with chances in proportion to the root of that, and weighed by one over the chance, the second
moment is the least possible (importance sampling). The wrapper leaves V as it is. It keeps a
discounted sum of A^2 w for every row of the data, A the leave-one-out advantage by the run's own
baseline and w = `groups.score` in the place of |g|^2, and says of a prompt that it is asked about

    m = (n0 mean + sum of A^2 w) / (n0 + rollouts),    n0 = `rollouts`

with the mean of all prompts for one that was never seen. It stands outside of all other wrappers,
so as to see the V that the baseline sees.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import history as histories
from v05_jax import plug
from v05_jax.estimators import base as estimators
from v05_jax.priors.base import Layer

DISCOUNT = 0.9  # of the mean over all prompts, a step


class Tracked(NamedTuple):
  """What the wrapper keeps."""

  history: histories.History  # `successes` are sums of A^2 w
  mean: Any  # float32 [2]  discounted sums over all rollouts of 1 and A^2 w
  learnt: dict[str, Any]  # what the run's baseline has learnt


def _check(config):
  if plug.label(config.prior.wrappers[-1]) != "second_moment":
    yield "prior.wrappers", "second_moment as the last, as it looks at the V that the baseline sees"


@plug.declare(
  "wrapper",
  check=_check,
  half_life=plug.Option(64.0, *histories.HALF_LIFE[1:]),
  rollouts=plug.Option(
    16.0,
    "of the mean over all prompts, that stand beside a prompt's own",
    lambda x: x > 0,
    "above 0",
  ),
)
def second_moment(options, setting):
  """Remembers of each prompt what its gradient's second moment is expected to be."""
  estimator, half_life, rows = estimators.make(setting), options.half_life, setting.rows

  @jax.jit
  def expected(state, row, step):
    total, rollouts = histories.read(state.history, row, step, half_life)
    count, square = state.mean
    mean = jnp.where(count > 0, square / jnp.where(count > 0, count, 1.0), 1.0)
    return (options.rollouts * mean + total) / (options.rollouts + rollouts)

  @jax.jit
  def after(state, value, groups):
    seen = groups.unconditional._replace(first=None)
    mean = estimators.squared_unseen(estimator, state.learnt, seen, value, seen.score)
    known = jnp.isfinite(mean)  # a NaN would stay in the sums for good
    k, total = jnp.where(known, seen.k, 0.0), jnp.where(known, mean * seen.k, 0.0)
    unspoken = jnp.full_like(value, jnp.nan)  # V is no prediction of these sums
    seen = seen._replace(s=total, k=k)
    history = histories.remember(state.history, seen, unspoken, half_life)
    sums = DISCOUNT * state.mean + jnp.stack([jnp.sum(k), jnp.sum(total)])
    return Tracked(history, sums, estimator.learn(state.learnt, groups, value))

  def ask(state, prompts, value, asked):
    found = np.asarray(expected(state, prompts.row, prompts.step))
    return value, {"value": value, "expected": found}

  def learn(state, asked, groups):
    return after(state, asked["value"], groups), {}

  def init():
    return Tracked(histories.empty(rows), np.zeros(2, np.float32), estimator.init())

  return Layer(ask, init, learn, variance=lambda asked, inner: inner)
