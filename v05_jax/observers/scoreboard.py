"""Which baseline would fit this run best: estimators judged on the run's own rollouts, without
knowing the truth.

The mean squared leave-one-out advantage of a baseline is E[1 - mu^2] plus its mean squared error
(`estimators.base.squared_unseen`), and the first term is the same for all, so differences between
estimators are differences of squared error.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators import base as estimators
from v05_jax.observers.base import Observer, Step, pair
from v05_jax.run.metrics import Pairs, merge

JUDGED = ("rloo", "value", "v05", "ewa", "beta_shrink", "batch_shrink", "james_stein", "spo")


class Board(NamedTuple):
  """Running moments, over prompts, of each estimator's squared advantage minus that of the run's
  own baseline."""

  count: jax.Array  # []
  mean: jax.Array  # [E]  negative = it fits better than the run's own
  square: jax.Array  # [E]  sum of squared deviations from the mean


class Scores(NamedTuple):
  """What the observer keeps."""

  learnt: dict[str, Any]  # what each estimator has learnt, by its label
  board: Board


@plug.declare(
  "observer",
  estimators=plug.Option(
    JUDGED,
    "that are judged, beside the run's own",
    lambda x: len(x) > 0 and all(isinstance(name, str) and name for name in x),
    "one or more names",
  ),
)
def scoreboard(options, setting):
  """Judges by what each estimator had learnt before the step, then lets it learn."""
  own = plug.label(setting.config.baseline)
  names = {plug.label(name): name for name in (*options.estimators, setting.config.baseline)}
  judged = {label: estimators.named(name, setting) for label, name in names.items()}
  program = jax.jit(lambda learnt, groups, values: squares(judged, learnt, groups, values))

  def see(state: Scores, step: Step):
    found: Pairs = {}
    for draw in step.drawn:
      groups = draw.groups.unconditional._replace(first=None)
      without = draw.asked.get("history", {}).get("before", draw.value)
      values = {
        label: without if estimator.counts_history else draw.value
        for label, estimator in judged.items()
      }
      learnt, each = program(state.learnt, groups, values)
      board = update(state.board, each, list(judged).index(own))
      state = Scores(learnt, board)
      rows = zip(judged, np.asarray(each))
      found = merge(found, {f"scoreboard/{label}/sq_adv": pair(row) for label, row in rows})
    return state, found | standings(state.board, list(judged), own)

  def init() -> Scores:
    learnt = {}
    for estimator in judged.values():
      learnt |= estimator.init()
    return Scores(learnt, empty(len(judged)))

  return Observer(see, init)


def squares(judged, learnt, groups, values):
  """(what each estimator has learnt by then, its squared leave-one-out advantages [E, P])."""
  found, after = [], {}
  for label, estimator in judged.items():
    found.append(estimators.squared_unseen(estimator, learnt, groups, values[label]))
    after |= estimator.learn(learnt, groups, values[label])
  return after, jnp.stack(found)


def standings(board: Board, names: list[str], own: str) -> Pairs:
  """Each estimator's lead or lag against the run's own so far, and its standard error."""
  found, error = {}, np.asarray(standard_error(board))
  difference = np.where(np.asarray(board.count) > 0, np.asarray(board.mean), np.nan)
  for name, mean, spread in zip(names, difference, error):
    if name != own:
      found |= {
        f"scoreboard/{name}/difference": (mean, 1),
        f"scoreboard/{name}/standard_error": (spread, 1),
      }
  return found


def empty(count: int) -> Board:
  """Nothing judged yet of so many estimators."""
  zeros = np.zeros(count, np.float32)
  return Board(np.zeros((), np.float32), zeros, zeros)


@jax.jit
def update(board: Board, squares, own: int) -> Board:
  """Adds the prompts of a step; `squares` [E, P], `own`: the row of the
  estimator behind the run's
  advantages."""
  difference = squares - squares[own]
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
