"""Advantages for pass@n."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import config as configuration
from v05_jax import groups as grouping
from v05_jax import plug
from v05_jax.configs import default
from v05_jax.estimators import base, beta_shrink, pass_at_k


def make(samples=8):
  return pass_at_k.pass_at_k(types.SimpleNamespace(samples=samples), plug.Setting(None))


def advantages(estimator, reward, value, shaping=0.0):
  groups = grouping.make(reward, np.ones(reward.shape, bool))
  groups = groups._replace(shaping=np.broadcast_to(shaping, reward.shape))
  return base.advantages(estimator, (), groups, jnp.asarray(value))


@pytest.fixture(scope="module")
def reward():
  rng = np.random.default_rng(0)
  return np.where(rng.random((6, 4)) < [[0.1], [0.3], [0.4], [0.5], [0.8], [0.9]], 1.0, -1.0)


VALUE = np.array([-0.7, -0.3, np.nan, 0.1, 0.5, 0.9])


@pytest.mark.parametrize("samples", [1, 2, 8, 128])
def test_the_slope_is_the_expectation_over_the_beta_distribution(samples):
  for mean, number in ((-0.4, 5.0), (0.1, 5.0), (0.8, 40.0)):
    a, c = number * (1 + mean) / 2, number * (1 - mean) / 2
    x = (np.arange(400_000) + 0.5) / 400_000
    density = x ** (a - 1) * (1 - x) ** (c - 1)
    want = samples * np.sum(density * (1 - x) ** (samples - 1)) / np.sum(density)
    got = pass_at_k.slope(jnp.asarray(mean), jnp.asarray(number), samples)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-9)


def test_a_prior_that_is_worth_much_gives_the_slope_at_its_own_success():
  got = pass_at_k.slope(jnp.asarray(-0.4), jnp.asarray(1e6), 8)  # p = .3
  np.testing.assert_allclose(got, 8 * 0.7**7, rtol=1e-4)


def test_the_slope_of_a_rollout_is_of_the_prior_and_the_others():
  """Ragged groups, by hand; and what is shown of a prompt, of all its rollouts."""
  rng, size = np.random.default_rng(1), np.array([4, 2, 3, 4, 1, 0])
  mask, reward = np.arange(4) < size[:, None], rng.choice([-1.0, 1.0], (6, 4))
  groups, value = grouping.make(reward, mask), jnp.asarray(VALUE)
  got = make().scale((), groups, value, jnp.ones(reward.shape))
  shown = make().explain((), groups, value)["slope of pass@8"]
  fit = beta_shrink.beta_fit(VALUE, groups.s, groups.k, leave_out=True)
  for i, k in enumerate(size):
    own = jax.tree.map(lambda x, i=i: x[i], fit)

    def slope(successes, number, i=i, own=own):
      total = float(own.count) + number
      a = total * (1 + float(beta_shrink.posterior_mean(VALUE[i], successes, number, own))) / 2
      return 8 * np.prod((total - a + np.arange(7)) / (total + np.arange(7)))

    assert shown[i] == pytest.approx(slope(groups.s[i], k), rel=1e-4)
    for j in range(k):
      assert got[i, j] == pytest.approx(
        slope(groups.s[i] - (reward[i, j] + 1) / 2, k - 1), rel=1e-4
      )


def test_pass_at_1_is_success(reward):
  got, _ = advantages(make(1), reward, VALUE, -0.25)
  plain = beta_shrink.beta_shrink(None, plug.Setting(None))
  want, _ = advantages(plain, reward, VALUE, -0.25)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_shaping_stays_as_it_is(reward):
  plain, _ = advantages(make(), reward, VALUE)
  shaped, _ = advantages(make(), reward, VALUE, -0.25)
  np.testing.assert_allclose(shaped, plain - 0.25, atol=1e-5)


def test_the_gradient_is_that_of_success_times_the_expected_slope():
  """Three prompts of one logit each and two rollouts: all 64 outcomes, in float64."""
  mu, value = np.array([0.4, -0.7, 0.1]), np.array([0.6, -0.4, np.nan])
  outcomes = np.array(list(itertools.product([-1.0, 1.0], repeat=6))).reshape(-1, 3, 2)
  chance = np.prod((1 + mu[:, None] * outcomes) / 2, axis=(1, 2))
  success = (1 + mu[:, None]) / 2
  score = np.where(outcomes > 0, 1 - success, -success)  # of log p by the logit
  estimator, made = make(), [grouping.make(x, np.ones((3, 2), bool)) for x in outcomes]
  groups = jax.tree.map(lambda *x: np.stack(x), *made)

  def both(groups):
    advantage, _ = base.advantages(estimator, (), groups, jnp.asarray(value))
    return advantage, estimator.scale((), groups, jnp.asarray(value), jnp.ones((3, 2)))

  with jax.enable_x64(True):
    advantage, slope = map(np.asarray, jax.jit(jax.vmap(both))(groups))
  found = chance @ np.sum(advantage * score, axis=2)
  want = chance @ np.sum(slope, axis=2) * (1 - mu**2) / 2
  np.testing.assert_allclose(found, want, atol=1e-9)
  assert want[1] / (1 - mu[1] ** 2) > 2 * want[0] / (1 - mu[0] ** 2)  # p = .15 against .7


def test_where_only_guessing_helps_it_goes_on_guessing_several_answers():
  """Answers that no prompt tells apart: for success the commonest one is best, for pass@8 all."""
  right = jnp.array([0.45, 0.25, 0.15, 0.1, 0.05])

  def trained(kind):
    def step(logits, key):
      one, two = jax.random.split(key)
      answer = jax.random.choice(one, 5, (64,), p=right)
      guess = jax.random.categorical(two, logits, shape=(64, 4))
      reward, policy = 2.0 * (guess == answer[:, None]) - 1.0, jax.nn.softmax(logits)
      value = jnp.full(64, 2 * policy @ right - 1)
      advantage, _ = base.advantage(kind, reward, jnp.ones((64, 4), bool), value)
      slope = jnp.einsum("pk,pka->a", advantage, jax.nn.one_hot(guess, 5) - policy)
      return logits + slope / (jnp.linalg.norm(slope) + 1e-6), ()

    end, _ = jax.lax.scan(step, jnp.log(right), jax.random.split(jax.random.key(1), 100))
    policy = jax.nn.softmax(end)
    return policy @ right, (1 - (1 - policy) ** 8) @ right

  plain, several = trained("beta_shrink"), trained("pass_at_k")
  assert plain[0] > 0.44 and plain[1] < 0.5  # one answer
  assert several[0] > 0.25 and several[1] > 0.7


def test_what_it_cannot_learn_from_is_refused():
  config = default.get_config()
  config.baseline, config.budget.k_init = "pass_at_k", 1
  config.budget.max_resample = 3
  with pytest.raises(ValueError) as error:
    configuration.validate(config)
  for said in ("budget.k_init: found 1, expected at least 2", "budget.max_resample: found 3"):
    assert said in str(error.value)
