"""The groups of a batch of rollouts, against a direct computation, rollout by rollout."""

import types

import numpy as np
import pytest

from v05_jax import groups as grouping
from v05_jax.structs import Rollouts

REWARDS = types.SimpleNamespace(low=0.0, high=4.0)
# Three prompts with up to four rollouts: one lost its verdict, one is truncated and does not count.
REWARD = np.array([[4, 0, np.nan, 3], [9, 4, 0, 0], [0, 0, 0, 0]], np.float32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
LENGTH = np.array([[3, 1, 2, 5], [4, 2, 5, 0], [0, 0, 0, 0]], np.int32)
SHAPING = np.array([[0, -0.5, 0, -1], [0, -0.25, -1, 0], [0, 0, 0, 0]], np.float32)


def rollouts():
  """Flat rows in another order than theirs; what stands after a response is to be ignored."""
  prompt, index = (x[::-1].astype(np.int32) for x in np.nonzero(LENGTH))
  logprob = np.log(np.random.default_rng(0).uniform(0.1, 1, (len(prompt), 5))).astype(np.float32)
  after = np.arange(5) >= LENGTH[prompt, index][:, None]
  logprob[after] = np.resize([np.nan, -7.0, np.inf], after.sum())
  return Rollouts(
    tokens=np.zeros((len(prompt), 5), np.int32),
    logprob=logprob,
    sampled_logprob=logprob - 1,
    prompt=prompt,
    index=index,
    length=LENGTH,
    reward=REWARD,
    ended=LENGTH < 5,
    mask=MASK,
  )


def groups(unconditional=2):
  row = np.array([7, 3, 0], np.int32)
  return grouping.of_rollouts(rollouts(), REWARDS, SHAPING, row, 11, unconditional)


def test_rewards_are_mapped_and_what_does_not_count_is_left_out():
  got = groups()
  np.testing.assert_array_equal(got.reward, [[1, -1, 0, 0.5], [1, 1, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(got.mask, [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(got.k, [3, 2, 0])
  np.testing.assert_allclose(got.vbar, [1 / 6, 1, 0], rtol=1e-6)  # of a reward above `high` too
  np.testing.assert_allclose(got.s, [1.75, 2, 0], rtol=1e-6)
  np.testing.assert_array_equal(got.row, [7, 3, 0])
  assert got.step == 11 and got.step.dtype == np.int32
  assert got.reward.dtype == got.k.dtype == got.s.dtype == got.vbar.dtype == np.float32


def test_shaping_is_added_to_the_rewards_alone():
  got = groups()
  np.testing.assert_array_equal(got.shaping, SHAPING)
  np.testing.assert_array_equal(got.shaped, [[1, -1.5, 0, -0.5], [1, 0.75, 0, 0], [0, 0, 0, 0]])
  rolls = rollouts()
  plain = grouping.of_rollouts(rolls, REWARDS, 0 * SHAPING, got.row, 11, 2)
  for name in ("reward", "k", "s", "vbar"):
    np.testing.assert_array_equal(getattr(got, name), getattr(plain, name))


def test_statistics_of_the_tokens_are_those_of_each_response():
  got, rolls = groups(), rollouts()
  logprob, score = np.zeros((2, *LENGTH.shape))
  for i, (p, k) in enumerate(zip(rolls.prompt, rolls.index)):
    own = rolls.logprob[i, : LENGTH[p, k]].astype(float)
    logprob[p, k], score[p, k] = own.sum(), np.sum((1 - np.exp(own)) ** 2)
  np.testing.assert_allclose(got.logprob, logprob, rtol=1e-5)
  np.testing.assert_allclose(got.score, score, rtol=1e-5)
  np.testing.assert_array_equal(got.length, LENGTH)
  assert np.all((logprob != 0) == (LENGTH > 0))


def test_first_are_the_leading_rollouts():
  got = groups(unconditional=3)
  first = got.unconditional
  assert first is got.first and first.first is None and first.unconditional is first
  np.testing.assert_array_equal(first.k, [2, 2, 0])  # the third has no verdict
  np.testing.assert_allclose(first.s, [1, 2, 0])
  np.testing.assert_allclose(first.vbar, [0, 1, 0])
  for name in ("reward", "mask", "shaping", "length", "logprob", "score"):
    np.testing.assert_array_equal(getattr(first, name), getattr(got, name)[:, :3], err_msg=name)
  np.testing.assert_array_equal(first.row, got.row)
  assert first.step == got.step


@pytest.mark.parametrize("count", [4, 9])
def test_all_of_them_are_the_groups_themselves(count):
  got = groups(unconditional=count)
  for a, b in zip(got.unconditional, got._replace(first=None)):
    np.testing.assert_array_equal(a, b)


def test_leading_forgets_an_earlier_cut():
  assert grouping.leading(groups(unconditional=2), 3).first is None


def test_make_numbers_the_prompts_and_keeps_float64():
  got = grouping.make(np.array([[1.0, np.nan], [-1.0, 0.2]]), np.ones((2, 2), bool))
  assert got.reward.dtype == got.k.dtype == got.vbar.dtype == np.float64 and got.first is None
  np.testing.assert_array_equal(got.row, [0, 1])
  np.testing.assert_allclose(got.vbar, [1, -0.4])
  assert grouping.make([[1, 0]], [[True, False]]).reward.dtype == np.float32


@pytest.mark.parametrize("low, high", [(1, 1), (1, 0), (np.nan, 1), (0, np.inf), (-np.inf, 0)])
def test_a_range_of_rewards_that_is_none_is_refused(low, high):
  with pytest.raises(ValueError, match=r"rewards.low, rewards.high: found"):
    grouping.map_reward(np.zeros(1), low, high)


def test_outside_is_what_is_clipped_by_more_than_rounding():
  reward = [0.0999, 0.1, np.float32(0.1), 0.5, 0.1 + 0.2, 0.31, np.nan]
  found = grouping.outside(reward, 0.1, 0.3)
  np.testing.assert_array_equal(found, [True, False, False, True, False, True, False])
