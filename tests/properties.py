"""What is true of every estimator and budget, by exact enumeration where there is chance.

Each `check_*` takes the modules that it looks at, so that it can be shown to fail on a copy of them
with a mistake in it.
"""

import functools
import importlib
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaln, expit


class Modules(NamedTuple):
  """Those that the checks look at."""

  shrinkage: Any
  budget: Any
  ewa: Any  # estimators/ewa.py
  beta_shrink: Any  # estimators/beta_shrink.py
  history: Any


NAMES = ("shrinkage", "budget", "estimators.ewa", "estimators.beta_shrink", "history")
# What these look up by name when they are called.
BEHIND = ("estimators.base", "estimators.group", "estimators.v05", "budgets.base", "budgets.neyman")


def modules() -> Modules:
  """As an import finds them."""
  return Modules(*(importlib.import_module(f"v05_jax.{name}") for name in NAMES))


# Kinds of advantage that leave the rollout itself out: at a fixed k the policy gradient is
# unbiased.
UNBIASED = ("v05_loo", "ewa", "beta_shrink", "batch_shrink", "james_stein", "rloo", "value")
GROUP = ("grpo", "dr_grpo", "rloo")  # the baseline is the mean of a prompt's own rollouts
KINDS = (*GROUP, "value", "v05", "ewa", "beta_shrink", "batch_shrink", "james_stein", "spo")
COST = 1 / 256

# A batch whose every outcome is enumerated: three prompts with 3, 2 and 3 rollouts, in slots with a
# hole.
MU = np.array([0.4, -0.7, 0.1])
MASK = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
SIZE = MASK.sum(1)
PRIORS = np.array([[0.7, -0.4, 0.95], [0.7, np.nan, 0.95]])
HISTORY = (np.array([0.0, 1.5, 3.0]), np.array([0.0, 4.0, 3.5]))


def outcomes():
  """(rewards [256, 3, 3], successes [256, 3], the probability of each outcome [256])."""
  reward = np.zeros((2 ** MASK.sum(), *MASK.shape))
  reward[:, MASK] = list(itertools.product([-1.0, 1.0], repeat=MASK.sum()))
  chance = np.where(MASK, (1 + MU[:, None] * reward) / 2, 1.0)
  return reward, np.sum(MASK * (reward + 1) / 2, -1), np.prod(chance, axis=(1, 2))


def taught(ewa):
  """A state of EWA that believes its moments and prefers some experts."""
  moments = np.array([11.0, 3.0, 7.0, 1.3, 5.3, 11.0, 0.35, 2.0])
  return ewa.EWA(moments, np.linspace(20.0, 50.0, 30)[np.random.default_rng(0).permutation(30)])


def visited(history, successes, rollouts):
  """A `History` of which `read` says (successes, rollouts) of the rows, in a visit at step 0."""
  faded = float(np.float32(history.MOST_KEPT))
  return history.History(
    successes / faded, rollouts / faded, np.zeros(len(rollouts), np.int32), np.zeros(5)
  )


def state_of(on, kind):
  """What an estimator knows from before, of the three prompts."""
  if kind == "spo":
    return visited(on.history, *HISTORY)
  return taught(on.ewa) if kind == "ewa" else ()


def enumerated(of, value, *arrays):
  """`of` (value, *one outcome's arrays) over all rows of the priors and all outcomes, [priors,
  outcomes, ...]."""
  with jax.enable_x64(True):
    each = jax.vmap(jax.vmap(of, (None, *[0] * len(arrays))), (0, *[None] * len(arrays)))
    return jax.tree.map(np.asarray, jax.jit(each)(*map(jnp.asarray, (value, *arrays))))


def gradient_bias(on, kind, value):
  """E[sum_i A_i dlog p_i / d theta] - k d mu / d theta, [priors, 3]; each prompt's policy has one
  logit theta."""
  reward, _, probability = outcomes()
  success = (1 + MU[:, None]) / 2
  score = np.where(reward > 0, 1 - success, -success) * MASK
  state = state_of(on, kind)
  advantage = enumerated(
    lambda v, r: on.shrinkage.advantage(kind, r, MASK, v, 0.0, state)[0], value, reward
  )
  return probability @ np.sum(advantage * score, -1) - SIZE * (1 - MU**2) / 2


def check_the_gradient_is_unbiased(on, kinds=UNBIASED):
  for kind in kinds:
    value = PRIORS[:1] if kind == "value" else PRIORS  # without a prior "value" is the group mean
    np.testing.assert_allclose(gradient_bias(on, kind, value), 0, atol=1e-12, err_msg=kind)


def check_the_scoreboard_is_the_noise_plus_the_error(on, kinds=KINDS):
  """E[sq_loo] = 1 - mu^2 + E[(baseline after k - 1 rollouts - mu)^2]."""
  reward, s, probability = outcomes()
  shorter = s - (reward[:, range(3), [2, 2, 2]] + 1) / 2  # without each prompt's last rollout

  def both(kind, value, reward, s, shorter):
    prompt, state = (), state_of(on, kind)
    if kind == "spo":
      prompt = HISTORY
    elif kind in ("beta_shrink", "batch_shrink", "james_stein"):
      scale = float(kind == "beta_shrink")
      prompt = on.beta_shrink.beta_fit(value, s, SIZE, scale, leave_out=True)
    baseline = on.shrinkage.baseline(kind, value, shorter, SIZE - 1, prompt, state)
    return on.shrinkage.sq_loo(kind, reward, MASK, value, state), baseline

  for kind in kinds:
    a2, baseline = enumerated(functools.partial(both, kind), PRIORS, reward, s, shorter)
    error = probability @ (baseline - MU) ** 2
    np.testing.assert_allclose(probability @ a2, 1 - MU**2 + error, atol=1e-9, err_msg=kind)
    if kind in GROUP:
      np.testing.assert_allclose(error, [(1 - MU**2) / (SIZE - 1)] * 2, atol=1e-12)


def check_the_test_takes_the_noise_off(on):
  """delta2 = max(d^2 - 1/k, 0), and the weight is delta2 / (delta2 + 1/k)."""
  vbar, k, value = np.meshgrid(np.linspace(-1, 1, 21), np.arange(1, 20), np.linspace(-1, 1, 17))
  with jax.enable_x64(True):
    fusion = on.shrinkage.fuse(vbar, k, value)
  delta2 = np.maximum((vbar - value) ** 2 - 1 / k, 0)
  np.testing.assert_allclose(fusion.delta2, delta2, atol=1e-12)
  np.testing.assert_allclose(fusion.weight, delta2 / (delta2 + 1 / k), atol=1e-12)


def check_a_statistic_of_1_keeps_the_prior(on):
  """At T = 1 both sides agree on the baseline but not on its slope: the prior's is 0."""
  assert on.shrinkage.fuse(0.0, 4, 0.5).statistic == 1
  assert jax.grad(lambda vbar: on.shrinkage.fuse(vbar, 4.0, 0.5).baseline)(0.0) == 0
  assert jax.grad(lambda vbar: on.shrinkage.fuse(vbar, 4.0, 0.5).baseline)(-0.01) > 1


def check_the_baseline_stays_near_the_group_mean(on):
  """|baseline - vbar| <= 1/sqrt(k), whatever the prior says."""
  vbar, k, value = np.meshgrid(np.linspace(-1, 1, 41), np.arange(1, 65), np.linspace(-1.5, 1.5, 61))
  with jax.enable_x64(True):
    baseline = np.asarray(on.shrinkage.fuse(vbar, k, value).baseline)
  assert np.all(np.abs(baseline - vbar) <= 1 / np.sqrt(k) + 1e-12)
  assert np.max(np.abs(baseline - vbar) * np.sqrt(k)) > 0.999  # and the bound is the least one


def check_an_infinite_prior_is_none(on):
  for estimator in ("v05", "value"):
    for value in (np.nan, np.inf, -np.inf):
      assert on.shrinkage.baseline(estimator, value, 3.0, 4) == 0.5
      assert on.shrinkage.fuse(0.5, 4, value).delta2 == np.inf
  assert on.shrinkage.baseline("value", 7.0, 3.0, 4) == 1


def check_full_and_leave_one_out_are_proportional(on):
  """BetaShrink at fixed n0: A_full = (n0 + k - 1) / (n0 + k) A_loo, for real-valued rewards too."""
  reward = np.array([[1.0, -1, 0.2, 0.7, -1], [1, 1, 1, 1, 1]])
  k, s, value = (
    reward.shape[1],
    np.sum((reward + 1) / 2, 1, keepdims=True),
    np.array([[-0.3], [0.8]]),
  )
  with jax.enable_x64(True):
    for n0 in (0.3, 4.0, 77.0):
      fit = on.beta_shrink.Fit(n0, 0.1, 0.0, 0.0, 0.0)
      full = reward - np.asarray(on.beta_shrink.posterior_mean(value, s, k, fit))
      others = reward - np.asarray(
        on.beta_shrink.posterior_mean(value, s - (reward + 1) / 2, k - 1, fit)
      )
      np.testing.assert_allclose(full / others, (n0 + k - 1) / (n0 + k), rtol=1e-12)


def binomial(k, mu):
  s = np.arange(k + 1)
  p = (1 + mu) / 2
  return s, np.array([math.comb(k, i) for i in s]) * p**s * (1 - p) ** (k - s)


def of_one_prompt(on, value, s, k):
  """EWA's state after one prompt, from zeros, in float64. The second prompt has no rollouts: one
  shape for all."""
  with jax.enable_x64(True):
    none = on.ewa.EWA(np.zeros(8), np.zeros(30))
    return on.ewa.ewa_update(
      none, np.array([value, np.nan]), np.array([float(s), 0]), np.array([k, 0])
    )


def check_the_variance_is_unbiased(on):
  """The moments' v of one reward has the mean 1 - mu^2, in BetaShrink's fit and in EWA's state."""
  mu = 0.3
  for k in (2, 5):
    s, probability = binomial(k, mu)
    with jax.enable_x64(True):
      noise = [
        float(on.beta_shrink.beta_fit(np.full(2, 0.2), np.array([x, 0]), np.array([k, 0])).noise)
        for x in s
      ]
    moments = [np.asarray(of_one_prompt(on, 0.2, x, k).moments)[3:5] for x in s]
    np.testing.assert_allclose(probability @ noise, (1 - mu**2) / k, atol=1e-12)
    np.testing.assert_allclose(
      probability @ np.array(moments), [(1 - mu**2) / k, 1 - mu**2], atol=1e-12
    )


def check_experts_are_assessed_as_by_the_scoreboard(on):
  """The mean loss of an expert for one prompt is k (1 - mu^2 + its squared error after k - 1
  rollouts)."""
  mu, k, value = 0.3, 3, 0.6
  (s, probability), (s1, probability1) = binomial(k, mu), binomial(k - 1, mu)
  losses = np.array([of_one_prompt(on, value, x, k).losses for x in s])
  experts = 2 * reference_experts(np.zeros(8), np.full(k, value), s1, np.full(k, k - 1))[0] - 1
  want = k * (1 - mu**2 + (experts - mu) ** 2 @ probability1)
  np.testing.assert_allclose(probability @ losses, want, atol=1e-9)


def check_ewa_forgets(on):
  """A step without rollouts leaves four fifths of what was learnt, and a step with some adds to
  that."""
  state, value = taught(on.ewa), np.array([0.5, np.nan])
  with jax.enable_x64(True):
    first = on.ewa.ewa_update(state, value, np.zeros(2), np.zeros(2, int))
    for got, was in zip(first, state):
      np.testing.assert_allclose(got, 0.8 * was, rtol=1e-12)
    some = on.ewa.ewa_update(state, value, np.array([3.0, 0]), np.array([4, 0])).moments
    np.testing.assert_allclose(
      some - first.moments, [1, 0.5, 0.25, 0.25, 1, 1, 0.5, 0.5], atol=1e-9
    )


def check_the_gain_is_what_one_more_rollout_saves(on):
  delta2, k = np.meshgrid(np.geomspace(1e-3, 4, 30), np.arange(1, 20))
  with jax.enable_x64(True):
    saved = np.asarray(on.budget.mse(delta2, k) - on.budget.mse(delta2, k + 1))
    np.testing.assert_allclose(on.budget.gain(delta2, k), saved, atol=1e-12)


def check_a_gain_equal_to_the_cost_is_not_enough(on):
  assert on.budget.gain(np.inf, 1) == 0.5 and not on.budget.should_continue(np.inf, 1, 0.5, 16)
  assert on.budget.should_continue(np.inf, 1, 0.4999, 16)


def check_a_bias_of_2_stops_at_16(on):
  """By the rule itself: k_max is far away. Both rules, and by the interface too."""
  k = 4
  while on.budget.should_continue(on.shrinkage.fuse(1.0, k, -1.0).delta2, k, COST, 100):
    k += 1
  assert k == 16
  assert on.budget.final_k(on.shrinkage.fuse(1.0, 4, -1.0).delta2, 4, COST, 100) == 16
  value, k, ended = np.array([-1.0, 1.0]), np.array([4, 4]), np.ones(2, bool)
  more = on.budget.extra(
    "two_stage", None, value, np.array([4.0, 0.0]), k, ended, 0, k_max=100, cost=COST
  )
  assert more.tolist() == [12, 12]


def neyman_cases(count, prompts=24, seed=0):
  """Random feasible inputs: some variances are 0 or unknown, some prompts have no rollout so
  far."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    sigma2 = np.where(
      rng.random(prompts) < 0.2, 0.0, rng.uniform(0, 1, prompts) ** rng.choice([0.3, 1, 6])
    )
    var = rng.choice([0.0, np.inf, 0.03, 0.3, 1e-9], prompts) * rng.uniform(0.3, 1, prompts)
    k0 = rng.choice([0, 1, 4, 7], prompts)
    k_min = np.maximum(k0, rng.integers(0, 3, prompts))
    k_max = k_min + rng.integers(0, 14, prompts)
    total = (
      int(rng.integers(k_min.sum(), k_max.sum() + 1)) if i > 1 else int((k_min, k_max)[i].sum())
    )
    yield sigma2, var, k0, total, k_min, k_max


def check_neyman_spends_the_budget(on):
  for sigma2, var, k0, total, k_min, k_max in neyman_cases(150):
    k = np.asarray(on.budget.neyman(sigma2, var, k0, total, k_min, k_max))
    assert k.sum() == total and np.all(k >= k_min) and np.all(k <= k_max), (k, total)


def check_neyman_clips_what_cannot_be(on):
  for sigma2, var, k0, _, k_min, k_max in neyman_cases(10):
    np.testing.assert_array_equal(on.budget.neyman(sigma2, var, k0, 0, k_min, k_max), k_min)
    np.testing.assert_array_equal(on.budget.neyman(sigma2, var, k0, 10_000, k_min, k_max), k_max)


def check_neyman_is_the_best_allocation(on):
  """Against every allocation of 5 prompts: the best where its real numbers are whole, else
  almost."""
  rng = np.random.default_rng(1)
  every = np.array(list(itertools.product(range(1, 9), repeat=5)))
  error = lambda k, sigma, nu, k0: np.sum(sigma**2 / (nu + k - k0), -1)
  for i in range(40):
    k0, sigma, total = rng.integers(0, 2, 5), rng.uniform(0.1, 1, 5), int(rng.integers(12, 33))
    nu = k0 + rng.uniform(0, 6, 5)
    if i < 20:  # whole numbers: k = k0 + 8 sigma - nu, within the bounds
      want = rng.integers(1, 9, 5)
      nu = np.floor(nu)
      sigma, total = (want - k0 + nu) / 8, int(want.sum())
    if not np.all(sigma > 0) or np.any(nu - k0 + 1 <= 0):
      continue
    got = np.asarray(on.budget.neyman(sigma**2, sigma**2 / np.maximum(nu, 1e-9), k0, total, 1, 8))
    best = np.min(error(every[every.sum(1) == total], sigma, nu, k0))
    assert got.sum() == total
    assert error(got, sigma, nu, k0) <= best * (1 + (1e-6 if i < 20 else 0.005)), (got, i)


def check_neyman_follows_the_noise(on):
  """Where the same is known of all prompts, a noisier prompt never gets less; ties go to the
  first."""
  rng = np.random.default_rng(2)
  for nu in (0.0, 3.0):
    sigma2 = np.sort(rng.uniform(0, 1, 30))
    var = sigma2 / nu if nu else np.inf
    k = np.asarray(on.budget.neyman(sigma2, var, 0, 140, 0, 16))
    assert np.all(np.diff(k) >= 0) and len(set(k)) > 3
  assert on.budget.neyman(np.ones(4), np.inf, 0, 10, 0, 16).tolist() == [3, 3, 2, 2]


def check_neyman_waits_for_the_batch(on):
  state, value = taught(on.ewa), np.array([0.3, -0.3, 0.9, 0.0])
  k, s = np.array([4, 4, 4, 2]), np.array([2.0, 0.0, 4.0, 1.0])
  ask = lambda ended, real: np.asarray(
    on.budget.extra(
      "neyman", state, value, s, k, np.array(ended), 30, k_max=16, real=np.array(real)
    )
  )
  assert not ask([True, True, True, False], [True] * 4).any()
  assert np.sum(k + ask([True] * 4, [True] * 4)) == 30
  # the last is padding: it does not count
  more = ask([True, True, True, False], [True, True, True, False])
  assert more[3] == 0 and np.sum((k + more)[:3]) == 30


def reference_experts(moments, value, s, k):
  """The specification's experts in numpy: first and second posterior moments, each [30, P]."""
  m0, m1, m2, m3, m4, m5, m6, m7 = moments
  n0, q0, reward, prior = 1.0, 0.5, 0.0, 0.0
  if m0 >= 8:
    n0 = np.clip(m4 / m0 / max(m2 / m0 - (m1 / m0) ** 2 - m3 / m0, 1e-3), 0.05, 50)
    q0 = np.clip((1 + m1 / m0) / 2, 0.02, 0.98)
  if m5 >= 8:
    reward, prior = m7 / m5, m6 / m5
  a0, b0 = n0 * q0, n0 * (1 - q0)
  first, second = [], []
  for scale, n, eps in itertools.product((0.6, 1.0), (0.5, 2, 8, 32, 128), (0.0, 0.15, 0.4)):
    for p in range(len(value)):
      v, si, ki = value[p], s[p], k[p]
      g = 0.0
      if np.isfinite(v):
        q = np.clip((1 + reward + scale * (np.clip(v, -1, 1) - prior)) / 2, 0.005, 0.995)
        a, b, g = n * q, n * (1 - q), 1.0
        if eps:
          l1 = betaln(a + si, b + ki - si) - betaln(a, b) + np.log(1 - eps)
          g = expit(l1 - (betaln(a0 + si, b0 + ki - si) - betaln(a0, b0) + np.log(eps)))
      else:
        a, b = 1.0, 1.0
      mean, mean0 = (a + si) / (a + b + ki), (a0 + si) / (a0 + b0 + ki)
      first.append(g * mean + (1 - g) * mean0)
      mean, mean0 = (
        mean * (a + si + 1) / (a + b + ki + 1),
        mean0 * (a0 + si + 1) / (a0 + b0 + ki + 1),
      )
      second.append(g * mean + (1 - g) * mean0)
  return np.reshape(first, (30, -1)), np.reshape(second, (30, -1))


def reference_baseline(state, value, s, k):
  """(baseline, sigma2, var) [P] of `ewa_baseline`."""
  weight = np.exp(-(np.asarray(state.losses, float) - np.min(state.losses)) / 8)
  weight /= weight.sum()
  p1, p2 = (weight @ p for p in reference_experts(np.asarray(state.moments, float), value, s, k))
  return 2 * p1 - 1, 4 * (p1 - p2), 4 * (p2 - p1**2)


CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}
