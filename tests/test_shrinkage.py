import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import shrinkage

GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "estimator.json").read_text())
CASES = GOLDEN["static"]


def column(name, none=np.inf):
  return np.array([none if case.get(name) is None else case[name] for case in CASES])


def prior():
  return column("V", none=np.nan)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-6), (False, 1e-5)])
def test_fuse_equals_the_reference_numbers(x64, tolerance):
  vbar = column("vbar", none=np.nan)  # k = 0 has none
  with jax.enable_x64(x64):
    fusion = shrinkage.fuse(vbar, column("k"), prior())
    assert fusion.baseline.dtype == (jnp.float64 if x64 else jnp.float32)
    for got, name in zip(fusion, ("b", "w", "D2", "T")):
      np.testing.assert_allclose(got, column(name), rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_array_equal(np.asarray(fusion.delta2) > 0, column("D2") > 0)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_v05_advantage_equals_the_reference_numbers(case):
  k = len(case["rewards"])
  reward = np.full((1, 18), np.nan)
  reward[0, 1 : k + 1] = case["rewards"]
  mask = np.arange(18)[None] < 17  # one NaN stands inside the mask, the others too
  with jax.enable_x64(True):
    value = np.array([np.nan if case["V"] is None else case["V"]])
    got, fusion = shrinkage.advantage("v05", reward, mask, value)
  np.testing.assert_allclose(got[0, 1 : k + 1], case["v05_adv"], atol=1e-12)
  assert not got[0, 0] and not np.any(got[0, k + 1 :])
  assert fusion.baseline[0] == pytest.approx(case["b"])


def test_scalars_and_arrays_alike():
  single = [shrinkage.fuse(v, k, p) for v, k, p in zip((1, 0.5, -1.0), (1, 4, 4), (0, -0.2, 0.9))]
  many = shrinkage.fuse(np.array([1, 0.5, -1.0]), np.array([1, 4, 4]), np.array([0, -0.2, 0.9]))
  for i, fusion in enumerate(single):
    for a, b in zip(fusion, many):
      assert a.shape == () and a.dtype == jnp.float32 and a == b[i]
  assert shrinkage.fuse(np.zeros((3, 1)), 4, np.zeros(5)).weight.shape == (3, 5)


def test_edge_cases():
  fuse = shrinkage.fuse
  assert fuse(np.nan, 0, 0.3)[:3] == (np.float32(0.3), 0, 0)
  assert fuse(np.nan, 0, np.nan)[:3] == (0, 1, np.inf)
  for none in (np.nan, np.inf, -np.inf):
    assert fuse(0.5, 4, none) == (0.5, 1, np.inf, np.inf)
  assert fuse(0.5, 4, 7.0) == fuse(0.5, 4, 1.0)
  assert fuse(0.0, 4, 0.5)[:3] == (0.5, 0, 0)  # T = 1 exactly: not rejected


def test_baseline_stays_close_to_the_group_mean():
  """|baseline - vbar| <= 1/sqrt(k), between V and vbar, whatever the prior says."""
  vbar, k, value = np.meshgrid(np.linspace(-1, 1, 41), np.arange(1, 65), np.linspace(-1.5, 1.5, 61))
  fusion = shrinkage.fuse(vbar, k, value)
  assert np.all(np.abs(fusion.baseline - vbar) <= 1 / np.sqrt(k) + 1e-6)
  clipped = np.clip(value, -1, 1)
  assert np.all(fusion.baseline >= np.minimum(vbar, clipped) - 1e-6)
  assert np.all(fusion.baseline <= np.maximum(vbar, clipped) + 1e-6)
  np.testing.assert_array_equal(fusion.delta2 > 0, fusion.statistic > 1)
  np.testing.assert_allclose(
    fusion.weight, fusion.delta2 / (fusion.delta2 + 1 / k), atol=1e-5
  )  # the paper's form of the weight


def test_map_reward():
  got = shrinkage.map_reward(np.array([0.0, 0.25, 1.0, 9.0, -9.0, np.nan]), 0.0, 1.0)
  np.testing.assert_allclose(got, [-1, -0.5, 1, 1, -1, np.nan])
  np.testing.assert_allclose(shrinkage.map_reward(np.array([-2.0, 1.0]), -2, 4), [-1, 0], atol=1e-6)
  with pytest.raises(ValueError, match=r"rewards\.low, rewards\.high.*1\.0, 1\.0"):
    shrinkage.map_reward(np.zeros(2), 1.0, 1.0)


# One group with every kind by hand: r = 1 1 1 -1, mean 0.5, std (ddof 1) = 1, V = -0.2.
HAND = {
  "v05": (np.array([6.0, 6, 6, -8]) / 7, 1 / 7, 24 / 49),
  "grpo": (np.array([0.5, 0.5, 0.5, -1.5]) / (1 + 1e-6), 0.5, 1),
  "dr_grpo": (np.array([0.5, 0.5, 0.5, -1.5]), 0.5, 1),
  "rloo": (np.array([2.0, 2, 2, -6]) / 3, 0.5, 1),
  "value": (np.array([1.2, 1.2, 1.2, -0.8]), -0.2, 0),
}


@pytest.mark.parametrize("kind", shrinkage.KINDS)
def test_kinds_by_hand(kind):
  """Rows: the group; the same in other slots between masked and failed ones; one rollout; none."""
  reward = np.full((4, 6), np.nan)
  reward[0, :4] = reward[1, [0, 2, 3, 5]] = 1, 1, 1, -1
  reward[1, 4] = 1.0  # masked below
  reward[2, 0] = 1.0
  mask = np.ones((4, 6), bool)
  mask[1, 4] = False
  value = np.array([-0.2, -0.2, -0.2, -0.2])
  got, fusion = shrinkage.advantage(kind, reward, mask, value)
  want, baseline, weight = HAND[kind]
  np.testing.assert_allclose(got[0], [*want, 0, 0], atol=1e-6)
  np.testing.assert_allclose(got[1][np.array([0, 2, 3, 5])], want, atol=1e-6)
  assert not np.any(got[1][np.array([1, 4])]) and not np.any(got[3])
  np.testing.assert_allclose(fusion.baseline[:2], baseline, atol=1e-6)
  np.testing.assert_allclose(fusion.weight[:2], weight, atol=1e-6)
  np.testing.assert_allclose(
    fusion.statistic[:2], 1.96, atol=1e-5
  )  # the test of V, whatever the kind
  np.testing.assert_allclose(fusion.delta2[:2], 0.24, atol=1e-5)
  alone = {"v05": 1 - shrinkage.fuse(1, 1, -0.2).baseline, "value": 1.2}.get(kind, 0.0)
  np.testing.assert_allclose(got[2], [alone, 0, 0, 0, 0, 0], atol=1e-6)


def test_value_kind_falls_back_to_the_group_mean_and_clips():
  reward, mask = np.array([[1.0, -1.0, 1.0, 1.0]] * 2), np.ones((2, 4), bool)
  got, fusion = shrinkage.advantage("value", reward, mask, np.array([np.nan, 3.0]))
  np.testing.assert_allclose(got, [[0.5, -1.5, 0.5, 0.5], [0, -2, 0, 0]])
  np.testing.assert_allclose(fusion.weight, [1, 0])


@pytest.mark.parametrize("kind", shrinkage.KINDS)
def test_shaping_is_added_after_mapping_and_not_clipped(kind):
  reward, shaping = np.array([[1.0, -1.0, 1.0, -1.0]]), np.array([[0.0, -0.5, -1.0, 0.0]])
  mask, value = np.ones((1, 4), bool), np.array([0.1])
  got, fusion = shrinkage.advantage(kind, reward, mask, value, shaping)
  plain, without = shrinkage.advantage(kind, reward, mask, value)
  for a, b in zip(fusion, without):  # the test and the baseline see the verifier's reward
    np.testing.assert_array_equal(a, b)
  x = np.array([1.0, -1.5, 0.0, -1.0])
  want = {
    "v05": plain[0] + shaping[0],
    "value": plain[0] + shaping[0],
    "grpo": (x - x.mean()) / (x.std(ddof=1) + 1e-6),
    "dr_grpo": x - x.mean(),
    "rloo": [x[i] - np.delete(x, i).mean() for i in range(4)],
  }[kind]
  np.testing.assert_allclose(got[0], want, atol=1e-6)


@pytest.mark.parametrize("kind", shrinkage.KINDS)
def test_permutation_invariance_and_independence_of_prompts(kind):
  rng = np.random.default_rng(0)
  reward, mask = rng.uniform(-1, 1, (5, 8)), rng.random((5, 8)) < 0.7
  value, shaping = rng.uniform(-1, 1, 5), -rng.random((5, 8))
  got, _ = shrinkage.advantage(kind, reward, mask, value, shaping)
  order, prompts = rng.permutation(8), rng.permutation(5)
  moved, _ = shrinkage.advantage(
    kind,
    reward[prompts][:, order],
    mask[prompts][:, order],
    value[prompts],
    shaping[prompts][:, order],
  )
  np.testing.assert_allclose(moved, np.asarray(got)[prompts][:, order], atol=1e-5)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_equal_rewards_teach_nothing(kind):
  """Exactly 0, also where the mean of equal numbers is rounded: grpo divides by almost 0 there."""
  reward = np.repeat(np.linspace(-1, 1, 29), 7).reshape(29, 7)
  got, _ = shrinkage.advantage(kind, reward, np.ones((29, 7), bool), np.full(29, np.nan))
  np.testing.assert_array_equal(got, np.zeros((29, 7)))


@pytest.mark.parametrize("kind", shrinkage.KINDS)
def test_no_nan_in_values_or_gradients(kind):
  """Every group of up to four rewards out of NaN, -1, 1, with and without a prior, at T = 1 too."""
  groups = np.array(list(itertools.product([np.nan, -1.0, 1.0], repeat=4)))
  values = np.array([np.nan, np.inf, 0.5, 0.0, -1.0, 1.7])
  reward = np.repeat(groups, len(values), 0)
  value = np.tile(values, len(groups))
  mask = np.ones(reward.shape, bool)
  mask[1::2, 0] = False

  def total(reward, value, shaping):
    advantage, fusion = shrinkage.advantage(kind, reward, mask, value, shaping)
    assert advantage.dtype == jnp.float32
    return jnp.sum(advantage**2) + jnp.sum(fusion.baseline + fusion.weight)

  result, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(reward, value, np.zeros_like(reward))
  assert np.isfinite(result) and all(np.isfinite(g).all() for g in grads)


def test_unknown_kind():
  args = (np.zeros((1, 4)), np.ones((1, 4), bool), np.zeros(1))
  with pytest.raises(ValueError, match=r"baseline.*'mean'.*v05, grpo"):
    shrinkage.advantage("mean", *args)
  with pytest.raises(ValueError, match="'rloo'"):
    shrinkage.sq_loo("rloo", *args)


def test_sq_loo_by_hand():
  reward = np.array([[1.0, 1, -1, np.nan], [1.0, np.nan, np.nan, np.nan], [1.0, 1, -1, 1]])
  mask = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
  got = shrinkage.sq_loo("mean", reward, mask, np.full(3, np.nan))
  np.testing.assert_allclose(got, [2.0, np.nan, 2.0])  # 1 - 0, 1 - 0, -1 - 1
  assert shrinkage.sq_loo("v05", reward, mask, np.full(3, np.nan))[0] == pytest.approx(2.0)
  # Others 0, 0 (k = 2, T = .5: V = .5 is accepted) and 1 (accepted too): .5^2, .5^2, 1.5^2.
  got = shrinkage.sq_loo("v05", reward, mask, np.full(3, 0.5))
  np.testing.assert_allclose(got, [2.75 / 3, np.nan, 2.75 / 3], rtol=1e-6)


@pytest.mark.parametrize("kind, rule", [("v05", "v05"), ("mean", "mean")])
def test_sq_loo_is_the_spread_of_the_reward_plus_the_mse(kind, rule):
  """E[A_loo^2] = 1 - mu^2 + MSE of the baseline at k - 1, exactly, over all outcomes of four rollouts."""
  groups = np.array(list(itertools.product([-1.0, 1.0], repeat=4)))
  mu, value = 0.4, 0.7
  p = np.prod((1 + mu * groups) / 2, axis=1)
  got = p @ np.asarray(
    shrinkage.sq_loo(kind, groups, np.ones(groups.shape, bool), np.full(16, value))
  )
  three = groups[:, :3].mean(1)
  baseline = shrinkage.fuse(three, 3, value).baseline if rule == "v05" else three
  assert got == pytest.approx(1 - mu**2 + p @ np.square(np.asarray(baseline) - mu), rel=1e-5)
