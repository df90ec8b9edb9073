"""The scoreboard: running moments equal those of all prompts at once, and the better baseline
leads."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import groups as grouping
from v05_jax import plug
from v05_jax.configs import default
from v05_jax.estimators import base as estimators
from v05_jax.observers import scoreboard
from v05_jax.observers.base import Observer, Observers

ASSESSED = scoreboard.ASSESSED


def test_running_moments_are_those_of_all_prompts_at_once():
  rng = np.random.default_rng(0)
  board, seen = scoreboard.empty(len(ASSESSED)), []
  own = ASSESSED.index("v05")
  for size in (1, 7, 30):
    squares = rng.gamma(2.0, 1.0, (len(ASSESSED), size)).astype(np.float32)
    squares[:, rng.random(size) < 0.2] = np.nan  # prompts that say nothing of an estimator
    board = scoreboard.update(board, jnp.asarray(squares), own)
    seen.append(squares)
  differences = np.concatenate(seen, 1)
  differences = (differences - differences[own])[:, np.isfinite(differences[0])]
  assert board.count == differences.shape[1] and board.mean[own] == 0
  np.testing.assert_allclose(board.mean, differences.mean(1), atol=1e-5)
  error = differences.std(1, ddof=1) / np.sqrt(differences.shape[1])
  np.testing.assert_allclose(scoreboard.standard_error(board), error, atol=1e-5)


def assessment(rows):
  """The estimators of the board, for a dataset of so many rows."""
  config = default.get_config()
  config.baseline = "v05"
  return scoreboard.assessment(ASSESSED, plug.Setting(config, rows=rows))


def drawn(groups, value):
  """What an observer sees of a draw."""
  return types.SimpleNamespace(groups=groups, value=value, asked={})


def test_nothing_assessed_is_no_standing():
  assert np.isnan(scoreboard.standard_error(scoreboard.empty(3))).all()


@pytest.mark.parametrize("sd, better, worse", [(0.1, "value", "rloo"), (1.5, "rloo", "value")])
def test_the_board_ranks_baselines_by_their_true_error_without_knowing_it(sd, better, worse):
  """A good prior leads the group mean, a bad one falls behind, by the difference of their errors at
  k - 1."""
  rng = np.random.default_rng(0)
  assessed, board, error = assessment(64), scoreboard.empty(len(ASSESSED)), []
  learnt = assessed.init()
  for step in range(40):
    mu = rng.uniform(-0.95, 0.95, 64)
    value = np.clip(mu + sd * rng.normal(size=64), -1, 1).astype(np.float32)
    reward = np.where(rng.random((64, 4)) < (1 + mu[:, None]) / 2, 1.0, -1.0).astype(np.float32)
    groups = grouping.make(reward, np.ones((64, 4), bool), step=np.int32(step))
    learnt, squares = assessed.assess(learnt, drawn(groups, value))
    assert squares.shape == (len(ASSESSED), 64)
    board = scoreboard.update(board, squares, ASSESSED.index("v05"))
    error.append(np.mean((value - mu) ** 2) - np.mean((1 - mu**2) / 3))
  place = dict(zip(ASSESSED, np.asarray(board.mean).tolist()))
  spread = dict(zip(ASSESSED, np.asarray(scoreboard.standard_error(board)).tolist()))
  assert place[better] < place[worse]
  assert place["ewa"] < min(place["rloo"], place["v05"]) + 2 * spread["ewa"]
  assert place["value"] - place["rloo"] == pytest.approx(
    np.mean(error), abs=3 * (spread["value"] + spread["rloo"])
  )
  assert float(learnt["ewa"].moments[0]) == pytest.approx(64 / (1 - 0.8), rel=1e-3)
  assert float(learnt["spo"].rollouts[0]) > 4


def test_rollouts_without_a_verdict_are_left_out():
  value = np.array([0.2, np.nan], np.float32)
  reward = np.array([[1, -1, np.nan], [1, 1, 1]], np.float32)
  groups = grouping.make(reward, np.array([[1, 1, 1], [1, 0, 0]], bool))
  assessed = assessment(2)
  learnt, _ = assessed.assess(assessed.init(), drawn(groups, value))
  np.testing.assert_allclose(learnt["spo"].rollouts, [2, 1])
  np.testing.assert_allclose(learnt["spo"].successes, [1, 1])
  np.testing.assert_allclose(learnt["ewa"].moments[jnp.array([0, 5])], [1, 1])


def test_a_board_of_a_run_is_shown_the_rollouts_whose_number_no_outcome_has_chosen():
  """The observer: what it assesses and learns from is `first`, and its metrics have every name but
  the run's own difference."""
  config = default.get_config()
  config.baseline = "v05"
  observer = plug.make("observer", "scoreboard", plug.Setting(config, rows=2), Observer)
  reward, mask = np.array([[1.0, -1, 1], [1, 1, -1]], np.float32), np.ones((2, 3), bool)
  groups = grouping.make(reward, mask)
  groups = groups._replace(first=grouping.leading(groups, 2))
  draw = drawn(groups, np.array([0.2, np.nan], np.float32))
  state, metrics = observer.see(observer.init(), types.SimpleNamespace(drawn=(draw,)))
  np.testing.assert_allclose(state.learnt["spo"].rollouts, [2, 2])
  assert metrics["scoreboard/rloo/sq_adv"] == (4.0, 2.0)  # 2^2 twice and 0 twice, of two prompts
  compared = {name.split("/")[1] for name in metrics if name.endswith("/difference")}
  assert compared == set(ASSESSED) - {"v05"}


@pytest.mark.parametrize("name", plug.known("estimator"))
def test_an_estimator_of_the_package_passes_what_a_users_own_must(name):
  setting = plug.Setting(default.get_config(), rows=8)
  estimators.try_out(name, plug.make("estimator", name, setting, estimators.Estimator))


def test_what_is_wrong_with_a_function_of_ones_own_estimator_is_said_by_its_name():
  zero = lambda state, groups, value: jnp.zeros((len(groups.k), 1))
  own = estimators.Estimator(zero, scale=lambda difference, groups: difference)
  with pytest.raises(ValueError, match=r"baseline=my:own: scale: .* takes 2 positional arguments"):
    estimators.try_out("baseline=my:own", own)


def halving(options, setting):
  """An estimator of one's own that multiplies by what it knows."""
  return estimators.Estimator(
    lambda state, groups, value: jnp.zeros((len(groups.k), 1)),
    init=lambda: np.float32(0.5),
    scale=lambda state, groups, value, difference: state * difference,
  )


def test_scale_is_given_the_state_of_its_own_estimator():
  estimator = estimators.named(f"{__name__}:halving", plug.Setting(default.get_config()))
  groups = grouping.make(np.array([[1.0, -1.0]]), np.ones((1, 2), bool))
  found, _ = estimators.advantages(estimator, estimator.init(), groups, np.zeros(1))
  np.testing.assert_array_equal(found, [[0.5, -0.5]])


TRACED = []  # prompts of each program that `counted` is in


def counted(options, setting):
  """An estimator of one's own that keeps count of its programs."""

  def baseline(state, groups, value):
    TRACED.append(len(groups.k))
    return jnp.zeros((len(groups.k), 1))

  return estimators.Estimator(baseline)


def test_observers_of_one_run_compile_an_estimator_once():
  """Each says beside the other what it says alone."""
  config = default.get_config()
  config.baseline = f"{__name__}:counted"
  config.observers.scoreboard.estimators = config.observers.noise.estimators = ("rloo",)
  groups = grouping.make([[1.0, -1, 1], [1, 1, -1]], np.ones((2, 3)), score=np.full((2, 3), 2.0))
  draw = drawn(groups, np.array([0.2, np.nan], np.float32))
  draw.rolls = types.SimpleNamespace(tokens=np.zeros((6, 4)), length=np.full((2, 3), 2))
  draw.importance = np.ones(2)
  step = types.SimpleNamespace(drawn=(draw,), taken=draw, advantage=groups.reward)

  def metrics(*names):
    config.observe = names
    seen = Observers(plug.Setting(config, rows=2))
    TRACED.clear()
    return seen.see(seen.init(), step)[1]

  both = metrics("scoreboard", "noise")
  assert TRACED == [2]
  alone = metrics("scoreboard") | metrics("noise")
  assert TRACED == [2]
  np.testing.assert_equal(both, alone)
  assert both["scoreboard/counted/sq_adv"] == (2.0, 2) and both["noise/second_moment"] == (4.0, 2)
