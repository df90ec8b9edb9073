"""The tracker of a prompt's part in the gradient's second moment, and selection by it."""

import types

import jax
import numpy as np
import pytest

from tests.test_train import small
from v05_jax import config as configuration
from v05_jax import groups as grouping
from v05_jax import plug
from v05_jax.observers import noise
from v05_jax.priors import base
from v05_jax.priors.second_moment import second_moment
from v05_jax.run import metrics
from v05_jax.sampling import draw as drawing
from v05_jax.sampling import selection
from v05_jax.train import train

ROWS = 5


def layer(baseline="value", **options):
  setting = plug.Setting(small(baseline=baseline), rows=ROWS)
  return second_moment(plug.defaults("wrapper", "second_moment", **options), setting)


def visit(found, state, row, reward, w, value, step=0):
  """The state after rollouts [P, K] of these rows."""
  reward = np.asarray(reward, np.float32)
  groups = grouping.make(reward, np.isfinite(reward), row=np.int32(row), step=np.int32(step))
  groups = groups._replace(score=np.float32(w))
  return found.learn(state, {"value": np.float32(value)}, groups)[0]


def expected(found, state, row=range(ROWS), step=0):
  prompts = types.SimpleNamespace(row=np.int32(row), step=np.int32(step))
  value = np.zeros(len(prompts.row), np.float32)
  kept, asked = found.ask(state, prompts, value, {})
  np.testing.assert_array_equal(kept, value)
  return asked["expected"]


def test_by_hand():
  found = layer(rollouts=2.0, half_life=1e9)
  state = found.init()
  np.testing.assert_allclose(expected(found, state), 1)
  # w A^2: 3 * .5^2 and 1 * 1.5^2 of row 1; 2 * 2^2 of row 4, whose other rollout has no verdict
  state = visit(found, state, [1, 4], [[1, -1], [1, np.nan]], [[3, 1], [2, 9]], [0.5, -1])
  mean = (0.75 + 2.25 + 8) / 3
  want = np.full(ROWS, mean)
  want[1] = (2 * mean + 0.96 * 3) / (2 + 0.96 * 2)
  want[4] = (2 * mean + 0.96 * 8) / (2 + 0.96)
  np.testing.assert_allclose(expected(found, state), want, rtol=1e-5)


def test_it_fades_and_takes_the_baseline_of_the_run():
  found = layer(half_life=2.0)
  state = visit(found, found.init(), [0, 1], [[1], [-1]], [[4], [1]], [0, 0])
  early, late = expected(found, state, step=1), expected(found, state, step=40)
  assert early[0] > late[0] > late[1] > early[1] and late[0] - late[1] < 1e-3
  other = layer("rloo")
  state = visit(other, other.init(), [2], [[1, -1]], [[3, 1]], [0.5])
  np.testing.assert_allclose(state.history.successes[2], 3 * 2**2 + 1 * 2**2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_not_kept(bad):
  """A prompt whose baseline or score is none counts as not seen; the others do."""
  found = layer(rollouts=2.0)
  state = visit(found, found.init(), [1, 2], [[1, -1], [1, -1]], [[1, 1], [bad, 1]], [0, 0])
  want = visit(found, found.init(), [1], [[1, -1]], [[1, 1]], [0])
  np.testing.assert_array_equal(expected(found, state), expected(found, want))
  assert np.isfinite(expected(found, state)).all() and not state.history.rollouts[2]


def test_the_score_of_a_pool_is_the_root_of_what_is_expected_of_its_real_prompts():
  moment = np.array([1.0, 4.0, 0.0, 9.0], np.float32)
  asked = {"second_moment": {"expected": moment}}
  config = types.SimpleNamespace(selection=types.SimpleNamespace(score="second_moment"))
  run, prompts = types.SimpleNamespace(config=config), types.SimpleNamespace(rows=({},) * 3)
  got = drawing.score(run, None, prompts, None, asked)
  np.testing.assert_allclose(got, selection.root(moment[:3]))


def test_a_wrapper_around_it_is_refused():
  wrapped = small(**{"prior.wrappers": ("second_moment", "history")})
  with pytest.raises(ValueError, match=r"prior.wrappers: found .*second_moment as the last"):
    configuration.validate(wrapped)


def test_second_moment_without_its_wrapper_is_refused():
  with pytest.raises(
    ValueError, match=r"selection.score: found 'second_moment', expected spread, or"
  ):
    configuration.validate(small(**{"selection.score": "second_moment", "selection.pool": 2}))
  with pytest.raises(ValueError, match=r"selection.score: found 'norm', expected one of spread, s"):
    configuration.validate(small(**{"selection.score": "norm"}))


def test_the_wrapper_hands_on_what_the_prior_says_of_its_error():
  said = lambda asked: np.full(ROWS, 0.25, np.float32)
  inner = base.Prior(lambda state, prompts: (np.zeros(ROWS), {}), variance=said)
  prior = base.wrapped("second_moment", layer(), base.named("mine", inner))
  prompts = types.SimpleNamespace(row=np.arange(ROWS), step=0, mask=np.ones(ROWS, bool))
  asked = prior.ask(prior.init(), prompts)[1]
  np.testing.assert_array_equal(base.variance(prior, asked, ROWS), 0.25)


def test_the_weighted_moment_of_what_was_taken_over_that_of_all_by_enumeration():
  """Expected over every draw, `of_selection` is (sum of m / pi) / (sum of m) per prompt taken."""
  rng = np.random.default_rng(0)
  moment, count = rng.gamma(1.0, size=6), 2
  pi = selection.chances(np.sqrt(moment) + 0.1, count)
  total = np.zeros(2)
  grid = (np.arange(2000) + 0.5) / 2000
  for uniform in grid:
    index = selection.systematic(pi, uniform)
    importance = count / len(pi) / pi[index]
    total += np.array(noise.of_selection(moment[index], importance)) / len(grid)
  share = count / len(pi)
  np.testing.assert_allclose(
    total, [share**2 * np.sum(moment / pi), share * moment.sum()], rtol=5e-3
  )
  assert noise.of_selection(np.array([np.nan, 2.0]), np.array([1.0, 3.0])) == (18, 6)


def test_a_step_selects_by_it(few_devices, tmp_path):
  keys = {"prior.kind": "constant", "prior.wrappers": ("history", "second_moment")}
  keys |= {"selection.pool": 2, "selection.score": "second_moment", "observe": ("noise",)}
  keys |= {"observers.noise.estimators": ("value",), "eval.period": 0, "checkpoint.period": 0}
  keys |= {"num_steps": 3, "data.size": 16}
  state = train(small(**keys), str(tmp_path / "run"))
  tracked = state.prior["second_moment"]
  assert np.sum(np.asarray(tracked.history.rollouts) > 0) > 8
  assert jax.tree.leaves(tracked.learnt) == []
  last = metrics.read(tmp_path / "run")[-1]
  assert 0.2 < last["noise/selection"] < 3 and 0 < last["selection/chance"] < 1
