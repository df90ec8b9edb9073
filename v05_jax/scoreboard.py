"""Which baseline would fit this run best: every estimator judged on the run's own rollouts, without
knowing the truth.

The mean squared leave-one-out advantage of a baseline is E[1 - mu^2] plus its mean squared error
(`shrinkage.sq_loo`), and the first term is the same for all, so differences between estimators are
differences of squared error.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import shrinkage


class Board(NamedTuple):
  """Running moments, over prompts, of each estimator's squared advantage minus that of the run's
  own baseline."""

  count: jax.Array  # []
  # [E] in the order of shrinkage.ESTIMATORS; negative = it fits better than the run's own
  mean: jax.Array
  square: jax.Array  # [E]  sum of squared deviations from the mean


def empty() -> Board:
  """Nothing judged yet."""
  zeros = np.zeros(len(shrinkage.ESTIMATORS), np.float32)
  return Board(np.zeros((), np.float32), zeros, zeros)


def judge(reward, mask, value, prior, state, history):
  """[E, P] squared leave-one-out advantages by estimator and prompt; NaN where a prompt has no
  rollout.

  Give rollouts whose number was fixed in advance, and the `state` and `history` of the step before;
  the arguments are those of `shrinkage.advantage`. `prior [P]` is the value before the history was
  fused in: the tracker counts the history itself.
  """
  values = {name: prior if name == "tracker" else value for name in shrinkage.ESTIMATORS}
  return jnp.stack(
    [shrinkage.sq_loo(name, reward, mask, v, state, history) for name, v in values.items()]
  )


def update(board: Board, squares, own: str) -> Board:
  """Adds the prompts of a step; `squares` from `judge`, `own`: the estimator behind the run's
  advantages."""
  difference = squares - squares[shrinkage.ESTIMATORS.index(own)]
  where = jnp.all(jnp.isfinite(difference), axis=0)
  number = jnp.sum(where)
  total = board.count + number
  average = lambda x: jnp.sum(jnp.where(where, x, 0.0), axis=1) / jnp.maximum(number, 1)
  mean = average(difference)
  square = average((difference - mean[:, None]) ** 2) * number
  shift = mean - board.mean  # two samples' moments joined (Chan, Golub and LeVeque, 1979)
  share = number / jnp.maximum(total, 1)
  return Board(
    total, board.mean + shift * share, board.square + square + shift**2 * board.count * share
  )


@jax.jit
def standard_error(board: Board):
  """[E] of the differences' means; NaN before there are two prompts."""
  count = jnp.where(board.count >= 2, board.count, jnp.nan)
  return jnp.sqrt(board.square / (count - 1.0) / count)
