"""The baseline of a prior that says how far it may be off, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from v05_jax import groups as grouping
from v05_jax import plug
from v05_jax.estimators import precision


@pytest.fixture(autouse=True)
def precise():
  with jax.enable_x64(True):
    yield


def make(kind="precision"):
  setting = plug.Setting(None, rows=1)
  return plug.find("estimator", kind)(plug.defaults("estimator", kind), setting)


def outcomes(k):
  """All rewards [2^k, k] of k rollouts."""
  return np.array(list(itertools.product([1.0, -1.0], repeat=k)))


def groups_of(reward, variance=np.nan):
  said = np.broadcast_to(np.asarray(variance, float), len(reward))
  return grouping.make(reward, np.ones(reward.shape, bool), prior_variance=said)


def baseline(reward, value, variance, state=(0.0, 0.0)):
  value = np.broadcast_to(np.asarray(value, float), len(reward))
  return np.asarray(make().baseline(jnp.asarray(state), groups_of(reward, variance), value))


@pytest.mark.parametrize("value", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_without_variance_it_is_v(value):
  reward = outcomes(3)
  np.testing.assert_allclose(baseline(reward, value, 0.0), value, atol=1e-5)


@pytest.mark.parametrize("variance", [1.0, 7.0, np.inf])
@pytest.mark.parametrize("value", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_with_the_largest_variance_it_is_rloo(value, variance):
  reward = outcomes(3)
  rloo = make("rloo")
  want = rloo.unseen((), groups_of(reward), np.full(len(reward), value))
  np.testing.assert_allclose(baseline(reward, value, variance), want, atol=1e-9)


@pytest.mark.parametrize("a, b", [(0.5, 0.5), (3.0, 1.0), (1.0, 9.0)])
def test_it_has_the_least_expected_error_where_the_prior_is_right(a, b, k=4):
  """Over all outcomes of k - 1 rollouts and all success rates of a Beta distribution: no other
  weight of the mean has less, and the error is the one that it expects."""
  value, variance = 2 * a / (a + b) - 1, 4 * stats.beta(a, b).var()
  reward = outcomes(k)
  found = baseline(reward, value, variance)[:, 0]
  others, s = reward[:, 1:].mean(1), (reward[:, 1:] > 0).sum(1)
  p, width = (np.arange(2000) + 0.5) / 2000, 1 / 2000
  likely = width * stats.beta(a, b).pdf(p) * p ** s[:, None] * (1 - p) ** (k - 1 - s)[:, None] / 2
  error = lambda x: np.sum(likely * (x[:, None] - (2 * p - 1)) ** 2) / np.sum(likely)
  least = error(found)
  for weight in np.linspace(0, 1, 21):
    assert least <= error(value + weight * (others - value)) + 1e-9
  n0 = a + b
  np.testing.assert_allclose(found, (n0 * value + (k - 1) * others) / (n0 + k - 1), atol=1e-6)
  alone = groups_of(np.ones((1, k - 1)), variance)
  expected = make().explain(jnp.zeros(2), alone, np.array([value]))["expected_mse"]
  assert float(expected[0]) == pytest.approx(least, rel=0.02)


def test_without_a_prior_it_is_the_mean_of_the_others_and_alone_it_is_v():
  reward = outcomes(3)
  want = (reward.sum(1, keepdims=True) - reward) / 2
  np.testing.assert_allclose(baseline(reward, np.nan, 0.1), want, atol=1e-9)
  one = outcomes(1)
  np.testing.assert_allclose(baseline(one, 0.3, 0.2), 0.3)
  np.testing.assert_allclose(baseline(one, 0.3, np.inf), 0.3)
  np.testing.assert_allclose(baseline(one, np.nan, np.nan), 0.0)


@pytest.mark.parametrize("variance", [0.05, np.nan])
def test_the_gradient_is_unbiased(variance, k=3):
  """sum over all outcomes of P(outcome) sum_i (r_i - b_i) d log P(r_i) / dp = k d E[r] / dp."""
  p, reward = 0.3, outcomes(k)
  likely = np.prod(np.where(reward > 0, p, 1 - p), axis=1)
  slope = np.where(reward > 0, 1 / p, -1 / (1 - p))
  found = np.sum(likely[:, None] * (reward - baseline(reward, 0.6, variance, (4.0, 1.0))) * slope)
  assert found == pytest.approx(2 * k)


def test_what_a_prior_does_not_say_is_measured():
  """After all outcomes of prompts whose V is .4 off, as often as they are likely: variance .16."""
  tickets, value = 10, np.array([0.4, 0.0])
  wins = np.array([5, 3])  # mu = 0 and -.4
  draws = np.array(list(itertools.product(range(tickets), repeat=2)))
  reward = np.concatenate([np.where(draws < n, 1.0, -1.0) for n in wins])
  groups, asked = groups_of(reward), np.repeat(value, len(draws))
  estimator = make()
  state = estimator.learn(jnp.zeros(2), groups, asked)
  np.testing.assert_allclose(state, [2 * len(reward), 2 * len(reward) * 0.16])
  # before: V is worth one rollout
  np.testing.assert_allclose(baseline(outcomes(2), 0.4, np.nan)[:, 0], [0.7, -0.3, 0.7, -0.3])
  n0 = (1 - value**2) / 0.16 - 1
  want = (n0 * value + 1) / (n0 + 1)  # after a success
  got = baseline(np.ones((2, 2)), value, np.nan, state)[:, 0]
  np.testing.assert_allclose(got, want, atol=1e-6)
  # what a prior says goes first, and where it has no V nothing is learnt
  np.testing.assert_allclose(baseline(np.ones((2, 2)), value, 0.0, state)[:, 0], value, atol=1e-5)
  again = estimator.learn(state, groups, np.full(len(reward), np.nan))
  np.testing.assert_allclose(again, precision.DISCOUNT * state)


def test_it_learns_from_rollouts_whose_number_no_outcome_has_chosen():
  reward = outcomes(4)
  groups = groups_of(reward)
  first = grouping.leading(groups, 2)
  estimator, value = make(), np.full(len(reward), 0.2)
  got = estimator.learn(jnp.zeros(2), groups._replace(first=first), value)
  np.testing.assert_allclose(got, estimator.learn(jnp.zeros(2), first, value))
  assert not np.allclose(got, estimator.learn(jnp.zeros(2), groups, value))
