"""The scoreboard: running moments equal those of all prompts at once, and the better baseline
leads."""

import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import estimator, scoreboard, shrinkage


def test_running_moments_are_those_of_all_prompts_at_once():
  rng = np.random.default_rng(0)
  board, seen = scoreboard.empty(), []
  own = shrinkage.ESTIMATORS.index("v05")
  for size in (1, 7, 30):
    squares = rng.gamma(2.0, 1.0, (len(shrinkage.ESTIMATORS), size)).astype(np.float32)
    squares[:, rng.random(size) < 0.2] = np.nan  # prompts that cannot be judged
    board = scoreboard.update(board, jnp.asarray(squares), "v05")
    seen.append(squares)
  differences = np.concatenate(seen, 1)
  differences = (differences - differences[own])[:, np.isfinite(differences[0])]
  assert board.count == differences.shape[1] and board.mean[own] == 0
  np.testing.assert_allclose(board.mean, differences.mean(1), atol=1e-5)
  error = differences.std(1, ddof=1) / np.sqrt(differences.shape[1])
  np.testing.assert_allclose(scoreboard.standard_error(board), error, atol=1e-5)


def test_nothing_judged_is_no_standing():
  assert np.isnan(scoreboard.standard_error(scoreboard.empty())).all()


@pytest.mark.parametrize("sd, better, worse", [(0.1, "value", "mean"), (1.5, "mean", "value")])
def test_the_board_ranks_baselines_by_their_true_error_without_knowing_it(sd, better, worse):
  """A good prior leads the group mean, a bad one falls behind, by the difference of their errors at
  k - 1."""
  rng = np.random.default_rng(0)
  state, error = estimator.init(64), []
  for step in range(40):
    mu = rng.uniform(-0.95, 0.95, 64)
    value = np.clip(mu + sd * rng.normal(size=64), -1, 1).astype(np.float32)
    reward = np.where(rng.random((64, 4)) < (1 + mu[:, None]) / 2, 1.0, -1.0).astype(np.float32)
    row, mask = np.arange(64, dtype=np.int32), np.ones((64, 4), bool)
    state, squares = estimator.learn(
      state, row, np.int32(step), reward, mask, value, value, "v05", 16.0
    )
    assert squares.shape == (len(shrinkage.ESTIMATORS), 64)
    error.append(np.mean((value - mu) ** 2) - np.mean((1 - mu**2) / 3))
  place = dict(zip(shrinkage.ESTIMATORS, np.asarray(state.board.mean).tolist()))
  spread = dict(
    zip(shrinkage.ESTIMATORS, np.asarray(scoreboard.standard_error(state.board)).tolist())
  )
  assert place[better] < place[worse]
  assert place["ewa"] < min(place["mean"], place["v05"]) + 2 * spread["ewa"]
  assert place["value"] - place["mean"] == pytest.approx(
    np.mean(error), abs=3 * (spread["value"] + spread["mean"])
  )
  assert float(state.ewa.moments[0]) == pytest.approx(64 / (1 - 0.8), rel=1e-3)
  assert float(state.history.rollouts[0]) > 4


def test_rollouts_without_a_verdict_are_left_out():
  row, value = np.arange(2, dtype=np.int32), np.array([0.2, np.nan], np.float32)
  reward = np.array([[1, -1, np.nan], [1, 1, 1]], np.float32)
  mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
  state, _ = estimator.learn(
    estimator.init(2), row, np.int32(0), reward, mask, value, value, "v05", 16.0
  )
  np.testing.assert_allclose(state.history.rollouts, [2, 1])
  np.testing.assert_allclose(state.history.successes, [1, 1])
  np.testing.assert_allclose(state.ewa.moments[jnp.array([0, 5])], [1, 1])
