"""Baselines for rollouts whose gradients are not of one length, by enumeration of every outcome."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import groups as grouping
from v05_jax import plug, shrinkage
from v05_jax.estimators import base as estimators
from v05_jax.estimators import score as scores
from v05_jax.estimators import v05_score

KINDS = ("score", "score_loo", "v05_score")
TICKETS = 8  # equally likely ones that a rollout draws from: so many of them win


def make(kind):
  """An estimator whose state is not kept under its name."""
  setting = plug.Setting(None, rows=1)
  return plug.find("estimator", kind)(plug.defaults("estimator", kind), setting)


def population(wins, value, k, rho):
  """(Groups, V [P]) of all that can happen, each as often as it is likely.

  Prompt i has the success rate wins[i] / TICKETS and the prior value[i]; w is 1 of a success and
  rho of a failure.
  """
  draws = np.array(list(itertools.product(range(TICKETS), repeat=k)))
  reward = np.concatenate([np.where(draws < n, 1.0, -1.0) for n in wins])
  groups = grouping.make(
    reward, np.ones(reward.shape, bool), score=np.where(reward > 0, 1.0, float(rho))
  )
  return groups, np.repeat(np.asarray(value, float), len(draws))


def learnt(kind, groups, value):
  """(estimator, what it knows after one step with these groups), in float64."""
  estimator = make(kind)
  return estimator, estimator.learn(estimator.init(), groups, value)


def moment(kind, groups, value):
  """E[w (r - b)^2] once the estimator has learnt from the same population."""
  estimator, state = learnt(kind, groups, value)
  baseline = (estimator.unseen or estimator.baseline)(state, groups, value)
  return float(jnp.mean(groups.score * (groups.reward - baseline) ** 2))


@pytest.fixture(autouse=True)
def precise():
  with jax.enable_x64(True):
    yield


def test_by_hand():
  reward = np.array([[1.0, 1, -1, -1], [1, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
  mask = np.arange(4) < np.array([4, 2, 1, 0])[:, None]
  w = np.array([[1.0, 2, 3, 4], [0, 5, 7, 7], [3, 7, 7, 7], [7, 7, 7, 7]])
  groups, value = grouping.make(reward, mask, score=w), np.full(4, np.nan)
  group = make("score_loo")
  got = np.asarray(group.baseline((), groups, value))
  # others of weight 2 3 4, 1 3 4, 1 2 4, 1 2 3; then -1, and 1 though it has no score; then itself
  np.testing.assert_allclose(got[0], [-5 / 9, -6 / 8, -1 / 7, 0], atol=1e-5)
  np.testing.assert_allclose(got[1, :2], [-1, 1])
  assert got[2, 0] == 1 and group.unseen((), groups, value)[2, 0] == 0
  np.testing.assert_allclose(
    group.explain((), groups, value)["baseline"], [-0.4, -1, 1, 0], atol=1e-5
  )
  running, state = learnt("score", groups, value)
  assert running.baseline(running.init(), groups, value).shape == (4, 1)
  np.testing.assert_allclose(state, [18, -6], atol=1e-4)
  again = running.learn(state, groups, value)
  np.testing.assert_allclose(again, [1.9 * 18, -1.9 * 6], atol=1e-4)
  np.testing.assert_allclose(running.baseline(again, groups, value), -1 / 3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_unbiased_where_reward_and_score_go_together(kind):
  """A policy of one softmax over four responses: E[sum_i A_i grad log p_i] = k grad E[r]; were the
  rollout part of its own mean it would not be."""
  chance = np.array([0.1, 0.4, 0.2, 0.3])
  reward, w = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, 3.0, 2.0, 9.0])
  k = 3
  every = np.array(list(itertools.product(range(4), repeat=k)))
  likely = np.prod(chance[every], axis=1)
  groups = grouping.make(reward[every], np.ones(every.shape, bool), score=w[every])
  value = np.full(len(every), 0.35)
  estimator = make(kind)
  before = grouping.make(reward[every[::3]], np.ones((22, k), bool), score=w[every[::3]])
  state = estimator.learn(estimator.init(), before, value[:22])
  baseline = np.asarray(estimator.baseline(state, groups, value))
  gradient = np.eye(4)[every] - chance  # [outcomes, k, 4]
  found = lambda b: np.einsum("o,ok,okd->d", likely, groups.reward - b, gradient)
  want = k * chance * (reward - chance @ reward)
  np.testing.assert_allclose(found(baseline), want, atol=1e-12)
  seen = np.asarray(scores.mean_of_all(groups.reward, scores.weights(groups)))[:, None]
  assert np.abs(found(seen) - want).max() > 0.05


def test_with_a_constant_score_it_is_the_fusion_of_v05(k=3):
  """delta2 is the prior's squared error and noise a reward's variance: weight = delta2 / (delta2 +
  noise / k)."""
  wins, value = [2, 4, 4, 6], [-0.25, -0.25, 0.25, 0.25]  # mu = V - .25 or V + .25
  groups, value = population(wins, value, k, rho=1)
  estimator, state = learnt("v05_score", groups, value)
  np.testing.assert_allclose(v05_score.prior(state, value), value, atol=1e-9)
  delta2, noise = 0.25**2, np.mean([0.75, 1, 1, 0.75])
  weight = delta2 / (delta2 + noise / (k - 1))
  others = (groups.reward.sum(1, keepdims=True) - groups.reward) / (k - 1)
  want = value[:, None] + weight * (others - value[:, None])
  np.testing.assert_allclose(estimator.baseline(state, groups, value), want, atol=1e-5)
  # V0.5's own weight at that delta2, with its bound 1 for a reward's variance
  fused = shrinkage.fuse(np.sqrt(delta2 + 1 / k), k, 0.0)
  assert fused.weight == pytest.approx(delta2 / (delta2 + 1 / k))


def test_a_prior_without_error_is_kept():
  groups, value = population([2, 4, 6], [-0.5, 0, 0.5], 3, rho=1)
  estimator, state = learnt("v05_score", groups, value)
  got = estimator.baseline(state, groups, value)
  np.testing.assert_allclose(got, np.broadcast_to(value[:, None], got.shape), atol=1e-6)


NOTHING = {"none": [np.nan] * 4, "constant": [0.3] * 4, "unrelated": [0.5, -0.5, 0.5, -0.5]}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("rho", [1, 6])
def test_where_the_prior_says_nothing_it_is_score(name, rho):
  wins = [2, 2, 6, 6]
  groups, value = population(wins, NOTHING[name], 1, rho)
  both = [learnt(kind, groups, value) for kind in ("v05_score", "score")]
  got, want = (np.asarray(e.baseline(state, groups, value)) for e, state in both)
  assert got.shape == want.shape == (32, 1)
  np.testing.assert_allclose(got, want, atol=0.01 if name == "unrelated" else 1e-6)
  of_w = np.sum(groups.score * groups.reward) / np.sum(groups.score)
  np.testing.assert_allclose(want, of_w, atol=1e-5)
  assert np.allclose(of_w, 0 if rho == 1 else -5 / 7, atol=1e-9)


@pytest.mark.parametrize("rho", [0.2, 1, 6])
def test_a_prior_of_success_becomes_one_of_the_weighted_reward(rho):
  """With V = 2 p - 1 it is b* of every prompt, and no baseline has less noise."""
  wins = np.array([1, 4, 7])
  p = wins / TICKETS
  groups, value = population(wins, 2 * p - 1, 2, rho)
  _, state = learnt("v05_score", groups, value)
  best = (p - (1 - p) * rho) / (p + (1 - p) * rho)
  np.testing.assert_allclose(v05_score.prior(state, 2 * p - 1), best, atol=1e-5)
  least = np.mean(groups.score * (groups.reward - np.repeat(best, 64)[:, None]) ** 2)
  assert moment("v05_score", groups, value) == pytest.approx(least, abs=1e-6)
  for b in (best - 0.01, best + 0.01):
    assert np.mean(groups.score * (groups.reward - np.repeat(b, 64)[:, None]) ** 2) > least


POPULATIONS = {
  "calibrated": [-0.25, -0.25, 0.25, 0.25],
  "exact": [-0.5, 0, 0, 0.5],
  "wrong": [0.9, 0.5, 0, -0.9],
  "silent": [np.nan] * 4,
}


@pytest.mark.parametrize("rho", [0.25, 8])
@pytest.mark.parametrize("name", POPULATIONS)
def test_no_other_has_less_noise(name, rho):
  """What it is for: one that can be left on, whatever prior, rho and k."""
  for k in (1, 3):
    groups, value = population([2, 4, 4, 6], POPULATIONS[name], k, rho)
    noise = {kind: moment(kind, groups, value) for kind in (*KINDS, "v05_loo", "value", "rloo")}
    assert noise["v05_score"] <= min(noise.values()) * (1 + 1e-3), noise


def test_the_weight_of_the_group_is_the_best_one():
  groups, value = population([1, 3, 6], [-0.2, 0.4, 0.1], 3, rho=5)
  state = learnt("v05_score", groups, value)[1]
  u = np.asarray(v05_score.prior(state, value))[:, None]
  mean = np.asarray(scores.mean_of_others(groups.reward, scores.weights(groups)))
  noise = lambda b: np.mean(groups.score * (groups.reward - b) ** 2)
  own = np.asarray(v05_score.fused(state, u, mean, 2.0))
  shares = np.linspace(0, 1, 101)
  each = [noise(u + share * (mean - u)) for share in shares]
  assert 0 < np.argmin(each) < 100 and noise(own) <= min(each) + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_from_rollouts_whose_number_no_outcome_has_chosen(kind):
  groups, value = population([2, 6], [-0.4, 0.4], 3, rho=3)
  cut = groups._replace(first=grouping.leading(groups, 2))
  same = jax.tree.map(
    np.allclose, learnt(kind, cut, value)[1], learnt(kind, grouping.leading(groups, 2), value)[1]
  )
  assert all(jax.tree.leaves(same))


def test_a_rollout_of_tiny_weight_is_not_lost_beside_a_large_one():
  """The sum over the others is no difference of two large numbers."""
  with jax.enable_x64(False):
    reward, w = jnp.array([[1.0, -1.0, -1.0]]), jnp.array([[1e4, 1e-6, 3e-6]])
    np.testing.assert_allclose(scores.mean_of_others(reward, w), [[-1, 1, 1]], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_is_finite(kind):
  estimator = make(kind)
  groups, value = population([2, 6], [np.nan, 0.4], 2, rho=3)
  got, found = estimators.advantages(estimator, estimator.init(), groups, value)
  assert np.isfinite(got).all() and np.isfinite(found["baseline"]).all()
