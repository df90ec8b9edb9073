import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import properties
from v05_jax import groups as grouping
from v05_jax import history, plug, shrinkage
from v05_jax.estimators import beta_shrink, ebpo, ewa, james_stein, v05_score
from v05_jax.observers import scoreboard

GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "estimator.json").read_text())
CASES = GOLDEN["static"]
KINDS = tuple(plug.known("estimator"))
BY_THE_GROUP = ("grpo", "dr_grpo", "rloo", "maxrl")
# Failures three times as long as successes, a prior that is a little too hopeful.
SUMS = [5.0, 6.0, 5.0, 2.0], [8.0, -4.0], [8.0, -4.0, -3.0, 3.0, 4.0], [1.0, 4.0]


def column(name, none=np.inf):
  return np.array([none if case.get(name) is None else case[name] for case in CASES])


def prior():
  return column("V", none=np.nan)


def visits(prompts=7):
  """(successes, rollouts) of each prompt's earlier visits."""
  rollouts = np.array([0.0, 1.5, 4, 0, 6, 2, 0.3])[:prompts]
  return rollouts * np.linspace(0, 1, 7)[:prompts], rollouts


def learnt(kind, prompts=7):
  """What the kinds that learn know from before: EWA's state, or the history of earlier visits."""
  if kind == "ewa":
    return {"state": properties.taught(ewa)}
  if kind == "spo":
    return {"state": properties.visited(history, *visits(prompts))}
  if kind == "score":
    return {"state": np.array([9.0, -4.0])}
  if kind == "ebpo":
    return {"state": ebpo.Moments(np.array([40.0, 9.0]), np.full(2, 0.1), np.array([30.0, 4.0]))}
  if kind == "basis":
    return {"state": np.array([3.0, 2, 1, 2, 3, 4])}
  if kind == "v05_score":
    return {"state": v05_score.Learnt(*map(np.array, SUMS))}
  return {}


def batch():
  """(reward [7, 6], mask, V, no shaping) of ragged groups. Many tests have this shape: each kind
  compiles once."""
  rng = np.random.default_rng(3)
  reward = np.where(
    rng.random((7, 6)) < 0.3, rng.uniform(-1, 1, (7, 6)), rng.choice([-1.0, 1.0], (7, 6))
  )
  mask = np.arange(6) < np.array([4, 0, 6, 1, 5, 2, 3])[:, None]
  return reward, mask, np.array([0.4, 0.1, np.nan, -0.6, -3.0, 0.9, np.inf]), np.zeros((7, 6))


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
    got, found = shrinkage.advantage("v05", reward, mask, value)
  np.testing.assert_allclose(got[0, 1 : k + 1], case["v05_adv"], atol=1e-12)
  assert not got[0, 0] and not np.any(got[0, k + 1 :])
  assert found["baseline"][0] == pytest.approx(case["b"])


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


def test_beta_shrink_equals_the_reference_numbers():
  """n0 = 4 and no offset: the baseline, and the leave-one-out advantages."""
  reward, want = np.zeros((2, len(CASES), 16))
  for i, case in enumerate(CASES):
    reward[i, : len(case["rewards"])], want[i, : len(case["rewards"])] = (
      case["rewards"],
      case["bb_loo_adv"],
    )
  k, value = column("k")[:, None], prior()[:, None]
  mask, success = np.arange(16) < k, (reward + 1) / 2
  s, fit = np.sum(mask * success, 1, keepdims=True), beta_shrink.Fit(4.0, 0.0, 0.0, 0.0, 0.0)
  with jax.enable_x64(True):
    np.testing.assert_allclose(
      beta_shrink.posterior_mean(value, s, k, fit)[:, 0], column("bb_n0_4"), atol=1e-12
    )
    got = reward - np.asarray(beta_shrink.posterior_mean(value, s - success, k - 1, fit))
  np.testing.assert_allclose(np.where(mask, got, 0), want, atol=1e-12)


# One group with the kinds by hand: r = 1 1 1 -1, mean 0.5, std (ddof 1) = 1, V = -0.2. Advantages,
# baseline, weight. Of v05_loo, a success sees 1 1 -1, T = 192/225: V itself; the failure 1 1 1, T =
# 108/25: 13/18.
HAND = {
  "v05": (np.array([6.0, 6, 6, -8]) / 7, 1 / 7, 24 / 49),
  "v05_loo": (np.array([1.2, 1.2, 1.2, -31 / 18]), 1 / 7, 24 / 49),
  "grpo": (np.array([0.5, 0.5, 0.5, -1.5]) / (1 + 1e-6), 0.5, 1),
  "dr_grpo": (np.array([0.5, 0.5, 0.5, -1.5]), 0.5, 1),
  "rloo": (np.array([2.0, 2, 2, -6]) / 3, 0.5, 1),
  "value": (np.array([1.2, 1.2, 1.2, -0.8]), -0.2, 0),
}


@pytest.mark.parametrize("kind", HAND)
def test_kinds_by_hand(kind):
  """Rows: the group; the same in other slots between masked and failed ones; one rollout; none."""
  reward = np.full((7, 6), np.nan)
  reward[0, :4] = reward[1, [0, 2, 3, 5]] = 1, 1, 1, -1
  reward[1, 4] = 1.0  # masked below
  reward[2, 0] = 1.0
  mask = np.ones((7, 6), bool)
  mask[1, 4] = False
  got, found = shrinkage.advantage(kind, reward, mask, np.full(7, -0.2), np.zeros((7, 6)))
  want, baseline, weight = HAND[kind]
  np.testing.assert_allclose(got[0], [*want, 0, 0], atol=1e-6)
  np.testing.assert_allclose(got[1][np.array([0, 2, 3, 5])], want, atol=1e-6)
  assert not np.any(got[1][np.array([1, 4])]) and not np.any(got[3])
  np.testing.assert_allclose(found["baseline"][:2], baseline, atol=1e-6)
  np.testing.assert_allclose(found["weight"][:2], weight, atol=1e-6)
  # the test of V, whatever the kind
  np.testing.assert_allclose(found["statistic"][:2], 1.96, atol=1e-5)
  np.testing.assert_allclose(found["delta2"][:2], 0.24, atol=1e-5)
  alone = {"v05": 1 - shrinkage.fuse(1, 1, -0.2).baseline, "v05_loo": 1.2, "value": 1.2}.get(
    kind, 0.0
  )
  np.testing.assert_allclose(got[2], [alone, 0, 0, 0, 0, 0], atol=1e-6)


def moments(value, s, k, scale):
  """(n0, offset, center, noise, spread): means over all prompts, or those with a prior; variances
  over k >= 2."""
  value, s, k = (x[k > 0] for x in (value, s, k))
  mean = lambda x: np.mean(x) if len(x) else 0.0
  vbar, spoken = 2 * s / k - 1, np.isfinite(value) | (not scale)
  d = vbar - scale * np.clip(np.where(np.isfinite(value), value, 0.0), -1, 1)
  several = (k >= 2) & spoken
  n0, noise, spread = 1.0, 0.0, 0.0
  if several.any():
    v = (1 - vbar[several] ** 2) * k[several] / (k[several] - 1)
    noise, spread = np.mean(v / k[several]), np.var(vbar[several])
    n0 = np.mean(v) / max(np.var(d[several]) - noise, 1e-3)
  return n0, mean(d[spoken]), mean(vbar), noise, spread


def expected_baseline(kind, value, s, k, fit, past, p):
  """The estimators that look at the whole batch or at the past, of one prompt after s successes in
  k rollouts."""
  prior = np.clip(value, -1, 1) if np.isfinite(value) else None
  n0, offset, center, noise, spread = fit
  if kind == "spo":
    a, n = (x[p] for x in past)
    return ((0.0 if prior is None else prior) + 2 * (a + s) - (n + k)) / (1 + n + k)
  if kind == "ewa":
    return properties.reference_baseline(properties.taught(ewa), [value], [s], [k])[0][0]
  if kind == "james_stein":
    weight = 1.0 if k == 0 else noise / (noise + spread) if noise + spread else 0.0
    return weight * center + (0.0 if k == 0 else (1 - weight) * (2 * s / k - 1))
  toward = center if prior is None or kind == "batch_shrink" else offset + prior
  return (n0 * np.clip(toward, -0.99, 0.99) + 2 * s - k) / (n0 + k)


@pytest.mark.parametrize(
  "kind, prompts",
  [(kind, 7) for kind in ("ewa", "beta_shrink", "batch_shrink", "james_stein", "spo")]
  + [("beta_shrink", 1), ("james_stein", 1)],
)
def test_kinds_that_learn_equal_a_loop_over_rollouts(kind, prompts):
  """Prompt by prompt and rollout by rollout; a single prompt has no others to learn from."""
  reward, mask, value, shaping = (x[:prompts] for x in batch())
  known, past = learnt(kind, prompts), visits(prompts)
  want, baseline = np.zeros((prompts, 6)), np.zeros(prompts)
  k, s = mask.sum(1), np.sum(mask * (reward + 1) / 2, 1)
  for p in range(prompts):
    others = np.arange(prompts) != p
    fit = moments(value[others], s[others], k[others], float(kind == "beta_shrink"))
    of = functools.partial(expected_baseline, kind, value[p], fit=fit, past=past, p=p)
    baseline[p] = of(s[p], k[p])
    for i in range(k[p]):
      want[p, i] = reward[p, i] - of(s[p] - (reward[p, i] + 1) / 2, k[p] - 1)
  a2 = np.sum(want**2, 1) / np.maximum(k, 1)
  if kind == "spo":
    want = np.where(mask, want - want[mask].mean(), 0) / (want[mask].std() + 1e-6)
  got, found = shrinkage.advantage(kind, reward, mask, value, shaping, **known)
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(found["baseline"], baseline, atol=1e-5)
  assert np.isnan(found["weight"]).all()
  got = shrinkage.sq_loo(kind, reward, mask, value, **known)
  np.testing.assert_allclose(got, np.where(k > 0, a2, np.nan), atol=1e-5)


def test_beta_fit_of_the_whole_batch():
  rng = np.random.default_rng(4)
  k = rng.integers(0, 6, 9)
  s, value = rng.binomial(k, 0.4), rng.uniform(-1.3, 1.3, 9)
  value[[2, 5]] = np.nan, -np.inf
  for scale in (0.0, 0.5, 1.0):
    with jax.enable_x64(True):
      np.testing.assert_allclose(
        beta_shrink.beta_fit(value, s, k, scale), moments(value, s, k, scale), atol=1e-12
      )
  np.testing.assert_array_equal(beta_shrink.beta_fit(value, 0 * s, 0 * k), [1, 0, 0, 0, 0])
  # one rollout a prompt: no variance, but the means
  alone = beta_shrink.beta_fit(value, s > 2, np.ones(9))
  np.testing.assert_allclose(
    [alone.count, alone.center, alone.noise], [1, np.mean(2 * (s > 2) - 1), 0], atol=1e-6
  )


def test_value_kind_falls_back_to_the_group_mean_and_clips():
  reward, mask = np.array([[1.0, -1.0, 1.0, 1.0]] * 2), np.ones((2, 4), bool)
  got, found = shrinkage.advantage("value", reward, mask, np.array([np.nan, 3.0]))
  np.testing.assert_allclose(got, [[0.5, -1.5, 0.5, 0.5], [0, -2, 0, 0]])
  np.testing.assert_allclose(found["weight"], [1, 0])


def standardised(x):
  return (x - x.mean()) / (x.std() + 1e-6)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "spo"])
def test_shaping_is_added_after_mapping_and_not_clipped(kind):
  reward, shaping = np.full((7, 6), np.nan), np.zeros((7, 6))
  reward[0, :4], shaping[0, :4] = (1, -1, 1, -1), (0, -0.5, -1, 0)
  mask, value, known = np.ones((7, 6), bool), np.full(7, 0.1), learnt(kind)
  got, found = shrinkage.advantage(kind, reward, mask, value, shaping, **known)
  plain, without = shrinkage.advantage(kind, reward, mask, value, np.zeros((7, 6)), **known)
  assert found.keys() == without.keys() >= {"baseline", "weight", "delta2", "statistic"}
  for name in found:  # the test and the baseline see the verifier's reward
    np.testing.assert_array_equal(found[name], without[name])
  x = np.array([1.0, -1.5, 0.0, -1.0])
  want = {
    "grpo": (x - x.mean()) / (x.std(ddof=1) + 1e-6),
    "dr_grpo": x - x.mean(),
    "rloo": [x[i] - np.delete(x, i).mean() for i in range(4)],
    "score_loo": [x[i] - np.delete(x, i).mean() for i in range(4)],  # no score: all weigh the same
    "opo": x - x.mean(),  # no length
    "maxrl": x - x.mean(),  # the mean reward is 0
    "dbb": plain[0, :4] + shaping[0, :4],  # alpha = beta: the deviation is 1
    "ebpo": standardised(x - float(found["baseline"][0])),
  }.get(kind, plain[0, :4] + shaping[0, :4])
  np.testing.assert_allclose(got[0], [*want, 0, 0], atol=1e-6)


def test_spo_is_scaled_over_the_batch_after_shaping():
  reward, shaping = np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[0.0, -0.5], [-1.0, 0.0]])
  mask, value = np.ones((2, 2), bool), np.array([0.0, 0.5])
  got, found = shrinkage.advantage("spo", reward, mask, value, shaping, history.empty(2))
  # Of one other and one pseudo-rollout of value V: (0 - 1) / 2, (0 + 1) / 2; (.5 + 1) / 2 twice.
  raw = reward + shaping - [[-0.5, 0.5], [0.75, 0.75]]
  np.testing.assert_allclose(got, (raw - raw.mean()) / (raw.std() + 1e-6), rtol=1e-5)
  np.testing.assert_allclose(found["baseline"], [0, 2.5 / 3], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rollouts_and_prompts_does_not_matter(kind):
  rng, known = np.random.default_rng(0), learnt(kind)
  reward, mask, value, _ = batch()
  shaping = -rng.random((7, 6))
  got, found = shrinkage.advantage(kind, reward, mask, value, shaping, **known)
  order, prompts = rng.permutation(6), rng.permutation(7)
  if kind == "spo":
    known = {"state": properties.visited(history, *(x[prompts] for x in visits()))}
  moved = lambda x: x[prompts][:, order]
  again, found_again = shrinkage.advantage(
    kind, moved(reward), moved(mask), value[prompts], moved(shaping), **known
  )
  rtol = 1e-6 if kind == "pass_at_k" else 1e-7  # its advantages may be above 10
  np.testing.assert_allclose(again, moved(np.asarray(got)), rtol=rtol, atol=1e-5)
  assert found_again.keys() == found.keys()
  for name in found:
    first = name in ("baseline", "weight", "delta2", "statistic")  # others may be in the hundreds
    np.testing.assert_allclose(
      found_again[name], np.asarray(found[name])[prompts], rtol=1e-7 if first else 1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_of_a_verifier_from_0_to_1_mean_the_same(kind):
  won, (_, mask, value, shaping) = np.random.default_rng(5).random((7, 6)) < 0.5, batch()
  got, _ = shrinkage.advantage(
    kind, shrinkage.map_reward(won, 0.0, 1.0), mask, value, shaping, **learnt(kind)
  )
  want, _ = shrinkage.advantage(
    kind, np.where(won, 1.0, -1.0), mask, value, shaping, **learnt(kind)
  )
  np.testing.assert_array_equal(got, want)
  assert np.any(got)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_transferred_inside(kind):
  arrays = jax.tree.map(jnp.asarray, batch())
  known = jax.tree.map(jnp.asarray, learnt(kind))
  want = shrinkage.advantage(kind, *batch(), **learnt(kind))[0]
  with jax.transfer_guard("disallow"):
    got, _ = shrinkage.advantage(kind, *arrays, **known)
    with pytest.raises(Exception, match="host-to-device transfer"):
      shrinkage.advantage(kind, *batch(), **learnt(kind))  # the guard does guard
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_equal_rewards_teach_nothing(kind):
  """Exactly 0, also where the mean of equal numbers is rounded: grpo divides by almost 0 there."""
  reward = np.repeat(np.linspace(-1, 1, 29), 7).reshape(29, 7)
  got, _ = shrinkage.advantage(kind, reward, np.ones((29, 7), bool), np.full(29, np.nan))
  np.testing.assert_array_equal(got, np.zeros((29, 7)))


def hard_batches():
  """Batches of 7 prompts: every group of up to four rewards out of NaN, -1, 1, and real ones, with
  every kind of prior.

  Shuffled; and all groups of a batch alike, which is hard for the kinds that compare prompts.
  """
  groups = np.full((83, 6), np.nan)
  groups[:, :4] = [
    *itertools.product([np.nan, -1.0, 1.0], repeat=4),
    [0.3, -0.2, 0.9, 0.3],
    [0.1] * 4,
  ]
  values = np.array([np.nan, np.inf, -np.inf, 0.5, 0.0, -1.0, 1.7])
  order = np.random.default_rng(0).permutation(581)
  for rows in (*np.split(order, 83), *(7 * g + np.arange(7) for g in (0, 1, 13, 27, 40, 80, 82))):
    mask = np.ones((7, 6), bool)
    mask[1::2, 0] = False
    yield groups[rows // 7], mask, values[rows % 7], np.zeros((7, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_no_nan_in_values(kind):
  weighs = kind in (*BY_THE_GROUP, "value", "v05", "v05_loo", "ebpo")
  for reward, mask, value, shaping in hard_batches():
    advantage, found = shrinkage.advantage(kind, reward, mask, value, shaping, **learnt(kind))
    assert advantage.dtype == found["baseline"].dtype == jnp.float32
    assert np.isfinite(advantage).all() and np.isfinite(found["baseline"]).all()
    assert not np.any(np.asarray(advantage)[~mask | np.isnan(reward)])
    assert np.all(np.abs(found["baseline"]) <= 1 + 1e-6)
    assert np.all(np.isnan(found["weight"]) != weighs)  # EWA and others have none


# for EWA see test_ewa.py
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ewa"])
def test_no_nan_in_gradients(kind):
  def total(reward, mask, value, shaping):
    advantage, found = shrinkage.advantage(kind, reward, mask, value, shaping, **learnt(kind))
    return jnp.sum(advantage**2) + jnp.sum(found["baseline"])

  slopes = jax.jit(jax.vmap(jax.grad(total, argnums=(0, 2, 3))))
  arrays = [np.stack(x) for x in zip(*hard_batches())]
  by_reward, *others = slopes(*arrays)
  assert all(np.isfinite(slope).all() for slope in (by_reward, *others))
  assert np.any(by_reward) and not np.any(np.asarray(by_reward)[~arrays[1] | np.isnan(arrays[0])])


@pytest.mark.parametrize("kind", KINDS)
def test_sq_loo_is_nan_without_rollouts_alone(kind):
  for reward, mask, value, _ in itertools.islice(hard_batches(), 0, None, 4):
    got = shrinkage.sq_loo(kind, reward, mask, value, **learnt(kind))
    np.testing.assert_array_equal(np.isnan(got), np.sum(mask & np.isfinite(reward), 1) < 1)


def test_james_stein_does_not_weigh_rounding_errors():
  """Where all others are all alike, noise and spread are 0 up to rounding, and their ratio means
  nothing."""
  fit = beta_shrink.Fit(1.0, 0.0, 1.0, noise=0.0, spread=0.0)
  want = james_stein.shrunk(1.0, 3, fit)
  for rest in ({"noise": 1e-9}, {"spread": 1e-9}, {"noise": 1e-9, "spread": 1e-9}):
    assert james_stein.shrunk(1.0, 3, fit._replace(**rest)) == want


def test_unknown_kind():
  args = (np.zeros((1, 4)), np.ones((1, 4), bool), np.zeros(1))
  known = ", ".join(KINDS)
  for f in (shrinkage.advantage, shrinkage.sq_loo):
    with pytest.raises(ValueError, match=rf"baseline.*'mean'.*{known}"):
      f("mean", *args)
  with pytest.raises(ValueError, match=rf"baseline.*'tracker'.*{known}"):
    shrinkage.baseline("tracker", 0.0, 0.0, 0)
  assert set(scoreboard.ASSESSED) <= set(KINDS)


def test_sq_loo_by_hand():
  reward = np.array([[1.0, 1, -1, np.nan], [1.0, np.nan, np.nan, np.nan], [1.0, 1, -1, 1]])
  mask = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
  got = shrinkage.sq_loo("rloo", reward, mask, np.full(3, np.nan))
  # 1 - 0, 1 - 0, -1 - 1; without others the mean is 0
  np.testing.assert_allclose(got, [2.0, 1.0, 2.0])
  assert shrinkage.sq_loo("v05", reward, mask, np.full(3, np.nan))[0] == pytest.approx(2.0)
  # Others 0, 0 (k = 2, T = .5: V = .5 is accepted) and 1 (accepted too): .5^2, .5^2, 1.5^2.
  got = shrinkage.sq_loo("v05", reward, mask, np.full(3, 0.5))
  np.testing.assert_allclose(got, [2.75 / 3, 0.25, 2.75 / 3], rtol=1e-6)
  assert np.isnan(shrinkage.sq_loo("rloo", reward, ~mask, np.zeros(3))).tolist() == [
    True,
    True,
    False,
  ]


@pytest.mark.parametrize("kind", ["beta_shrink", "batch_shrink"])
def test_without_any_prior_both_shrink_to_the_mean_of_the_others(kind):
  """Before the context is large enough, say; one rollout a prompt knows the mean too."""
  scale = float(kind == "beta_shrink")
  for k in (4.0, 1.0):
    s = np.array([0.75, 0.75, 0.75, 0.25]) * k
    fit = beta_shrink.beta_fit(np.full(4, np.nan), s, np.full(4, k), scale, leave_out=True)
    got = beta_shrink.posterior_mean(np.full(4, np.nan), 0.0, 0.0, fit, scale)
    np.testing.assert_allclose(got, [1 / 6, 1 / 6, 1 / 6, 0.5], rtol=1e-6)


def test_a_prompt_without_a_prior_shrinks_to_the_mean_of_all():
  value = np.array([np.nan, 0.5, np.nan, -0.5])
  fit = beta_shrink.beta_fit(value, np.array([4.0, 4, 0, 0]), np.full(4, 4.0))
  assert fit.center == 0 and fit.offset == 0
  fit = beta_shrink.beta_fit(value, np.array([4.0, 4, 4, 0]), np.full(4, 4.0))
  assert (
    fit.center == 0.5
    and fit.offset == 0
    and beta_shrink.posterior_mean(np.nan, 0.0, 0.0, fit) == 0.5
  )


def test_outcomes():
  """A reward that is not a number does not count."""
  reward = np.array([[1, -1, np.nan, 0], [1, 1, 1, 1], [np.nan] * 4])
  groups = grouping.make(reward, np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], bool))
  np.testing.assert_allclose(groups.s, [1.5, 1, 0])
  np.testing.assert_allclose(groups.k, [3, 1, 0])
  np.testing.assert_allclose(groups.vbar, [0, 1, 0])
  np.testing.assert_array_equal(groups.mask, np.isfinite(reward) & [[1] * 4, [1, 0, 0, 0], [1] * 4])
