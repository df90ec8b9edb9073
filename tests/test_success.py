"""pass@k against enumeration, and the bootstrap against what is known of means."""

import itertools

import jax
import numpy as np
import pytest

from v05_jax.run import success

pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_is_the_share_of_subsets_with_a_success(n):
  for count, k in itertools.product(range(n + 1), range(1, n + 1)):
    responses = [True] * count + [False] * (n - count)
    share = np.mean([any(chosen) for chosen in itertools.combinations(responses, k)])
    assert success.pass_at(np.array([count]), n, k) == pytest.approx([share], abs=1e-12)


def test_pass_at_of_no_possible_k():
  for k in (0, 5):
    with pytest.raises(ValueError, match=rf"found k = {k}, expected 1 to n = 4"):
      success.pass_at(np.array([1]), 4, k)


def test_which_k_are_reported():
  assert [success.passes(n) for n in (1, 2, 3, 16, 20)] == [
    [1],
    [2],
    [2, 3],
    [2, 4, 8, 16],
    [2, 4, 8, 16, 20],
  ]


def test_the_bootstrap_spreads_as_a_mean_does():
  values = np.random.default_rng(0).random((400, 2)) ** [1, 4]
  means = success.bootstrap(jax.random.key(0), values)
  assert means.shape == (success.DRAWS, 2)
  error = values.std(0) / 20
  np.testing.assert_allclose(
    means.mean(0), values.mean(0), atol=5 * error.max() / success.DRAWS**0.5
  )
  np.testing.assert_allclose(means.std(0), error, rtol=0.1)
  low, high = success.interval(means[:, 0])
  ends = values[:, 0].mean() + np.array([-1.96, 1.96]) * error[0]
  np.testing.assert_allclose([low, high], ends, atol=0.15 * error[0])
  np.testing.assert_array_equal(means, success.bootstrap(jax.random.key(0), values))
  assert (means != success.bootstrap(jax.random.key(1), values)).any()


def test_columns_are_drawn_together_and_a_constant_has_no_spread():
  x = np.random.default_rng(1).random(30)
  means = success.bootstrap(jax.random.key(2), np.stack([x, 1 - x, np.ones(30)], 1))
  np.testing.assert_allclose(means[:, 0] + means[:, 1], 1)
  assert success.interval(means[:, 2]) == (1, 1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  rng, hits = np.random.default_rng(3), 0
  for i in range(200):
    scores = rng.binomial(16, 0.3, (60, 1)) / 16
    low, high = success.interval(success.bootstrap(jax.random.key(i), scores, draws=400))
    hits += low <= 0.3 <= high
  assert 0.88 <= hits / 200 <= 0.99
