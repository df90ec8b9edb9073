"""What a run learns about its prompts and baselines while it trains: one state, one step's
lesson."""

import functools
from typing import NamedTuple

import jax

from v05_jax import scoreboard, shrinkage
from v05_jax.ewa import EWA, ewa_init, ewa_update
from v05_jax.priors import history as histories


class Estimator(NamedTuple):
  """Part of the TrainState; every field is checkpointed."""

  ewa: EWA  # how far EWA-Beta trusts the prior
  history: histories.History  # every prompt's own past
  board: scoreboard.Board  # how the estimators have fared on this run


def init(rows: int) -> Estimator:
  """Before the first step; `rows`: of the dataset."""
  return Estimator(ewa_init(), histories.empty(rows), scoreboard.empty())


@functools.partial(jax.jit, static_argnames=("own",))
def learn(estimator: Estimator, row, step, reward, mask, value, prior, own, half_life):
  """Judges and learns from rollouts whose numbers were fixed before any of them was seen.

  Args:
    estimator: of the step before; every estimator is judged by it, and only then learns.
    row: int32 [P] rows of the dataset. step: of training, for the history's age.
    reward: [P, K] in [-1, 1]; mask: bool [P, K].
    value: [P] the prior that the rollouts are judged with; prior: [P] the same before the history
      was fused in.
    own: the estimator behind the run's advantages. half_life: training steps, of the history.

  Returns:
    (Estimator, squares [E, P] from `scoreboard.judge`).
  """
  past = histories.read(estimator.history, row, step, half_life)
  squares = scoreboard.judge(reward, mask, value, prior, estimator.ewa, past)
  s, k = shrinkage.outcomes(reward, mask)
  return Estimator(
    ewa_update(estimator.ewa, value, s, k),
    histories.remember(estimator.history, row, prior, s, k, k > 0, step, half_life),
    scoreboard.update(estimator.board, squares, own),
  ), squares
