"""Prompts selected by value: the chances are what they say, and weighting by them leaves no
bias."""

import itertools

import numpy as np
import pytest

from tests.test_train import small
from v05_jax.sampling import draw as drawing
from v05_jax.sampling import selection
from v05_jax.setup import setup


def chances(value, count):
  """By the spread that the prior V expects."""
  return selection.chances(selection.spread(value), count)


def pools():
  rng = np.random.default_rng(0)
  for size in (1, 2, 5, 16, 64):
    value = np.clip(rng.normal(0, 1, size), -1, 1)
    value[rng.random(size) < 0.1] = np.nan
    for count in sorted({1, size // 2, size - 1, size} - {0}):
      yield value, count


def outcomes(pi):
  """(probability, indices) of every draw that the one uniform number can give."""
  edges = np.unique(np.concatenate([[0.0, 1.0], np.cumsum(pi) % 1.0]))
  edges = edges[np.concatenate([[True], np.diff(edges) > 1e-9])]
  edges[-1] = 1.0
  for low, high in itertools.pairwise(edges):
    yield high - low, selection.systematic(pi, (low + high) / 2)


def test_the_chances_sum_to_the_count_and_follow_the_rule():
  for value, count in pools():
    pi = chances(value, count)
    assert pi.sum() == pytest.approx(count, abs=1e-9) and np.all((pi > 0) & (pi <= 1))
    spread = np.sqrt(1 - np.nan_to_num(value) ** 2) + 0.1
    some = pi < 1
    if some.any():
      np.testing.assert_allclose(pi[some] / spread[some], (pi[some] / spread[some])[0])
      assert np.all((pi[some] / spread[some])[0] * spread[~some] >= 1 - 1e-9)


def test_a_prompt_with_nothing_to_learn_is_rarely_taken_and_one_without_a_prior_most_often():
  pi = chances([1.0, -1.0, 0.0, np.nan, 0.6, 3.0], 2)
  assert pi[2] == pi[3] == pi.max() and pi[0] == pi[1] == pi[5] == pi.min()
  np.testing.assert_allclose([pi[0] / pi[2], pi[4] / pi[2]], [0.1 / 1.1, 0.9 / 1.1])


def test_every_prompt_is_taken_with_its_chance_and_the_weights_leave_no_bias():
  """By enumeration of every draw: exact counts, exact chances, and sum of x / pi over the taken =
  sum of all x."""
  rng = np.random.default_rng(1)
  for value, count in pools():
    pi = chances(value, count)
    x = rng.normal(size=len(value))
    taken, mean, total = np.zeros(len(value)), 0.0, 0.0
    for probability, index in outcomes(pi):
      assert len(index) == count == len(set(index))
      taken[index] += probability
      mean += probability * np.sum(x[index] / pi[index])
      total += probability
    assert total == pytest.approx(1)
    np.testing.assert_allclose(taken, pi, atol=1e-6)
    assert mean == pytest.approx(x.sum(), abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 1e-7])
def test_the_count_is_exact_at_the_ends_of_the_interval(uniform):
  for value, count in pools():
    assert len(selection.systematic(chances(value, count), uniform)) == count


def test_a_draw_of_few_prompts_keeps_what_the_prior_was_asked_of_them(few_devices):
  """Padding of the draw stays padding: what is measured of prompts leaves it out."""
  keys = {"prior.kind": "constant", "prior.wrappers": ("history",), "selection.pool": 2}
  run = setup(small(**keys))
  chosen = drawing.choose(run, run.init(), 0, 3)
  assert chosen.prompts.mask.sum() == 3 < len(chosen.prompts.mask)
  np.testing.assert_array_equal(chosen.asked["history"]["real"], chosen.prompts.mask)


def test_more_prompts_than_the_pool_has_are_refused():
  with pytest.raises(ValueError, match="3 prompts were asked for out of a pool of 2"):
    chances([0.0, 0.1], 3)


def test_chances_by_second_moments_are_in_proportion_to_their_roots():
  moment = np.array([4.0, 1.0, 0.0, 0.25])
  score = selection.root(moment)
  np.testing.assert_allclose(score, np.sqrt(moment) + 0.1 * 3.5 / 4)
  np.testing.assert_allclose(selection.chances(score, 1), score / score.sum())
  np.testing.assert_array_equal(selection.root(np.zeros(3)), 1)


def test_no_chances_have_a_smaller_second_moment_than_the_roots():
  """sum of m / pi, what weighting by 1 / pi makes of the prompts' moments m, at the same number."""
  rng = np.random.default_rng(2)
  moment = rng.gamma(0.5, size=64)
  least = np.sum(moment / selection.chances(np.sqrt(moment), 8))
  assert least < np.sum(moment / chances(rng.uniform(-1, 1, 64), 8))
  for _ in range(20):
    other = selection.chances(np.sqrt(moment) * np.exp(0.3 * rng.normal(size=64)), 8)
    assert least <= np.sum(moment / other) + 1e-9
