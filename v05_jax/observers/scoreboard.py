"""Which baseline would fit this run best: estimators assessed on the run's own rollouts, without
knowing the truth.

The mean squared leave-one-out advantage of a baseline is E[1 - mu^2] plus its mean squared error
(`estimators.base.squared_unseen`), and the first term is the same for all, so differences between
estimators are differences of squared error.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import backend, moments, plug
from v05_jax.estimators import base as estimators
from v05_jax.observers.base import Observer, Step, pair
from v05_jax.run.metrics import Pairs
from v05_jax.structs import Draw, Seen, together

ASSESSED = ("rloo", "value", "v05", "ewa", "beta_shrink", "batch_shrink", "james_stein", "spo")


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


class Assessed(NamedTuple):
  """An estimator and the program that assesses it."""

  estimator: estimators.Estimator
  # (learnt, Groups, V [P], weight [P, K]) -> (learnt after it, [P]: `squared_unseen` by what it had
  # learnt before)
  program: Callable


class Assessment(NamedTuple):
  """How several estimators are assessed on a run's own rollouts."""

  labels: list[str]
  own: int  # place of the run's own baseline
  init: Callable  # () -> what they have learnt before the first step, by label
  # (learnt, Seen) -> (learnt after it, [E, P]: `squared_unseen` by what they had learnt before)
  assess: Callable


def assessment(names, setting: plug.Setting, weigh: Callable | None = None) -> Assessment:
  """The estimators of these names and the run's own, each rollout weighed by `weigh(Groups)` [P,
  K], or all alike."""
  weigh = weigh or (lambda groups: np.ones_like(groups.reward))
  assessed, own = named(names, setting), plug.label(setting.config.baseline)

  def assess(learnt, seen):
    groups = seen.groups.unconditional._replace(first=None)
    weight, value, after, found = weigh(groups), values(assessed, seen), {}, []
    for label, one in assessed.items():
      known, squares = one.program({label: learnt[label]}, groups, value[label], weight)
      after |= known
      found.append(squares)
    return after, np.stack(found)

  labels = list(assessed)
  return Assessment(labels, labels.index(own), lambda: initial(assessed), assess)


def named(names, setting: plug.Setting) -> dict[str, Assessed]:
  """The estimators of these names and the run's own, by label. Observers of one run share them, so
  that each is compiled once."""
  shared = {} if setting.shared is None else setting.shared
  found = {}
  for name in (*names, setting.config.baseline):
    if name not in shared:
      shared[name] = with_program(estimators.named(name, setting))
    found[plug.label(name)] = shared[name]
  return found


def with_program(estimator: estimators.Estimator) -> Assessed:
  """An estimator with the program that assesses it."""

  @functools.partial(jax.jit, **backend.quick())
  def assess(learnt, groups, value, weight):
    squares = estimators.squared_unseen(estimator, learnt, groups, value, weight)
    return estimator.learn(learnt, groups, value), squares

  return Assessed(estimator, assess)


def initial(assessed: dict[str, Assessed]) -> dict[str, Any]:
  """What the estimators know at first, by label."""
  learnt = {}
  for estimator, _ in assessed.values():
    learnt |= estimator.init()
  return learnt


def values(assessed: dict[str, Assessed], seen: Seen | Draw) -> dict[str, np.ndarray]:
  """What each estimator is given as V, [P]: without the history for one that counts it itself."""
  without = seen.asked.get("history", {}).get("before", seen.value)
  return {
    label: without if estimator.counts_history else seen.value
    for label, (estimator, _) in assessed.items()
  }


def option(names: tuple[str, ...]) -> plug.Option:
  """The option of an observer that names the estimators it assesses, `names` by default."""
  known = lambda x: len(x) > 0 and all(isinstance(name, str) and name for name in x)
  return plug.Option(names, "that are assessed, beside the run's own", known, "one or more names")


@plug.declare("observer", estimators=option(ASSESSED))
def scoreboard(options, setting):
  """Assesses each estimator by what it had learnt before the step, then lets it learn."""
  assessed = assessment(options.estimators, setting)
  labels, own = assessed.labels, assessed.own
  draws = 1 + setting.config.budget.max_resample

  def see(state: Scores, step: Step):
    learnt, each = assessed.assess(state.learnt, together(step.drawn, draws))
    state = Scores(learnt, update(state.board, each, own))
    rows = zip(labels, np.asarray(each))
    found: Pairs = {f"scoreboard/{label}/sq_adv": pair(row) for label, row in rows}
    return state, found | standings(state.board, labels, labels[own])

  return Observer(see, lambda: Scores(assessed.init(), empty(len(labels))))


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
  """No prompt counted yet of so many estimators."""
  zeros = np.zeros(count, np.float32)
  return Board(np.zeros((), np.float32), zeros, zeros)


@jax.jit
def update(board: Board, squares, own: int) -> Board:
  """Adds the prompts of a step; `squares` [E, P], `own`: the row of the run's own baseline."""
  difference = squares - squares[own]
  where = jnp.all(jnp.isfinite(difference), axis=0)
  number = jnp.sum(where)
  average = lambda x: jnp.sum(jnp.where(where, x, 0.0), axis=1) / jnp.maximum(number, 1)
  mean = average(difference)
  square = average((difference - mean[:, None]) ** 2) * number
  return moments.merged(board, number, mean, square)


@jax.jit
def standard_error(board: Board):
  """[E] of the differences' means; NaN before there are two prompts."""
  count = jnp.where(board.count >= 2, board.count, jnp.nan)
  return jnp.sqrt(board.square / (count - 1.0) / count)
