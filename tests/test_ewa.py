import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import properties
from v05_jax import shrinkage
from v05_jax.estimators import ewa

GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "estimator.json").read_text())
# of prompts with mean score -1, -.8, ..., 1
COUNTS = np.array([505, 236, 177, 147, 156, 171, 143, 191, 251, 338, 757])


def batch():
  """(V, s, k) of the reference update."""
  case = GOLDEN["ewa"]
  return (
    np.array([np.nan if v is None else v for v in case["V"]]),
    np.array(case["s"]),
    np.array(case["k"]),
  )


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-6), (False, 1e-5)])
def test_equals_the_reference_numbers(x64, tolerance):
  case = GOLDEN["ewa"]
  with jax.enable_x64(x64):
    state = ewa.ewa_update(ewa.ewa_init(), *batch())
    baseline, sigma2, var = ewa.ewa_baseline(state, *batch())
    assert baseline.dtype == sigma2.dtype == var.dtype == (jnp.float64 if x64 else jnp.float32)
    got = {
      "m": state.moments,
      "L": state.losses,
      "w": ewa.ewa_weights(state),
      "b": baseline,
      "sigma2": sigma2,
      "var": var,
    }
    for name, x in got.items():
      np.testing.assert_allclose(x, case[name], rtol=tolerance, atol=1e-6, err_msg=name)


def test_one_expert_equals_the_reference_numbers(monkeypatch):
  """A = 1, n = 4, eps = .2, which is not one of the thirty."""
  cases = GOLDEN["static"]
  value = np.array([np.nan if c["V"] is None else c["V"] for c in cases])
  s = np.array([sum((r + 1) / 2 for r in c["rewards"]) for c in cases])
  k = np.array([c["k"] for c in cases])
  monkeypatch.setattr(ewa, "_A", np.array([1.0]))
  monkeypatch.setattr(ewa, "_N", np.array([4.0]))
  monkeypatch.setattr(ewa, "DOUBTS", (0.2,))
  with jax.enable_x64(True):
    moments = jax.jit(ewa._experts)(
      ewa._Population(0.5, 0.5, 0.0, 0.0), *map(jnp.asarray, (value, s, k))
    )
  p1, p2 = (np.asarray(x)[0] for x in moments)
  got = np.stack([2 * p1 - 1, 4 * (p1 - p2), 4 * (p2 - p1**2)], 1)
  np.testing.assert_allclose(got, [c["mix_n4_e02"] for c in cases], atol=1e-6)


def test_equals_the_specification_over_several_updates():
  """Written in numpy, over three batches with every kind of prompt; the moments are believed from
  the second on."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    state = want = ewa.EWA(np.zeros(8), np.zeros(30))
    for _ in range(3):
      k = rng.integers(0, 7, 12)
      s, value = rng.uniform(0, 1, 12) * k, rng.uniform(-1.5, 1.5, 12)
      k[:2], s[:2], value[[1, 4, 5]] = 4, (0, 4), (np.nan, np.inf, -np.inf)
      spoken = np.isfinite(value)
      rbar = 2 * s / np.maximum(k, 1) - 1
      v = (1 - rbar**2) * k / np.maximum(k - 1, 1)
      own, prior = k >= 2, (k >= 1) & spoken
      clipped = np.clip(np.where(spoken, value, 0), -1, 1)
      sums = [x[own].sum() for x in (k**0, rbar, rbar**2, v / np.maximum(k, 1), v)]
      moments = 0.8 * want[0] + [*sums, *(x[prior].sum() for x in (k**0, clipped, rbar))]
      others = np.maximum(k - 1, 0)
      after = lambda s: 2 * properties.reference_experts(moments, value, s, others)[0] - 1  # noqa: B023
      losses = (
        s * (1 - after(np.clip(s - 1, 0, others))) ** 2
        + (k - s) * (1 + after(np.minimum(s, others))) ** 2
      )
      baseline = properties.reference_baseline(want, value, s, k)
      for x, reference in zip(ewa.ewa_baseline(state, value, s, k), baseline):
        np.testing.assert_allclose(x, reference, atol=1e-9)
      state, want = (
        ewa.ewa_update(state, value, s, k),
        ewa.EWA(moments, 0.8 * want[1] + losses.sum(1)),
      )
      np.testing.assert_allclose(state.moments, want.moments, atol=1e-9)
      np.testing.assert_allclose(state.losses, want.losses, atol=1e-9)


def extremes():
  """Every prior with every outcome of 0, 1, 4 and 300 rollouts, real-valued rewards too: (V, s,
  k)."""
  outcomes = [
    (0, 0),
    (0, 1),
    (1, 1),
    (0.4, 1),
    (0, 4),
    (4, 4),
    (2.2, 4),
    (0, 300),
    (300, 300),
    (299.5, 300),
  ]
  values = (np.nan, np.inf, -np.inf, -7.0, 7.0, -1.0, 1.0, 0.0, 0.3)
  return np.array([(v, *o) for v, o in itertools.product(values, outcomes)]).T


def states():
  """Before anything; after much; after batches in which all succeeded, and of which the prior knew
  everything."""
  yield ewa.ewa_init()
  yield ewa.EWA(*(np.array(GOLDEN["ewa"][name]) for name in "mL"))
  ones = np.ones(90)
  yield ewa.ewa_update(
    ewa.ewa_update(ewa.ewa_init(), ones, 4 * ones, 4 * ones), ones, 4 * ones, 4 * ones
  )


def test_finite_and_within_bounds_whatever_comes():
  value, s, k = extremes()
  for before in states():
    for state in (before, ewa.ewa_update(before, value, s, k)):
      b, sigma2, var = ewa.ewa_baseline(state, value, s, k)
      assert np.isfinite([b, sigma2, var]).all()
      assert (
        np.all(np.abs(b) <= 1) and np.all(np.asarray(sigma2) >= 0) and np.all(np.asarray(var) >= 0)
      )
      # E[p (1 - p)] + Var[p] = E[p] (1 - E[p])
      np.testing.assert_allclose(sigma2 + var, 1 - np.square(b), atol=2e-6)


def test_float32_agrees_with_float64():
  value, s, k = extremes()
  state = ewa.EWA(*(np.array(GOLDEN["ewa"][name]) for name in "mL"))
  with jax.enable_x64(True):
    exact = ewa.ewa_baseline(state, value, s, k)
  for got, want in zip(ewa.ewa_baseline(state, value, s, k), exact):
    np.testing.assert_allclose(got, want, atol=3e-5)


def test_gradients_are_finite_and_the_slope_is_right():
  value, s, k = extremes()
  state = ewa.EWA(*(np.array(GOLDEN["ewa"][name]) for name in "mL"))
  total = lambda value, s: jnp.sum(ewa.ewa_baseline(state, value, s, k)[0])
  with jax.enable_x64(True):
    by_value, by_s = map(np.asarray, jax.jit(jax.grad(total, (0, 1)))(value, s))
    up, down = (np.asarray(ewa.ewa_baseline(state, value, s + h, k)[0]) for h in (1e-5, -1e-5))
  assert np.isfinite(by_value).all() and np.isfinite(by_s).all()
  within = (s > 0) & (s < k)
  np.testing.assert_allclose(by_s[within], ((up - down) / 2e-5)[within], rtol=1e-4)
  assert not np.any(by_value[~np.isfinite(value)])


def test_value_s_and_k_broadcast():
  state = properties.taught(ewa)
  got = ewa.ewa_baseline(state, np.array([[0.3], [np.nan]]), np.array([0.0, 1.0, 4.0]), 4)
  grid = np.array([0.3, 0.3, 0.3, np.nan, np.nan, np.nan]), np.array([0.0, 1, 4] * 2), np.full(6, 4)
  for x, want in zip(got, properties.reference_baseline(state, *grid)):
    assert x.shape == (2, 3) and x.dtype == jnp.float32
    np.testing.assert_allclose(np.ravel(x), want, atol=1e-5)


def test_the_order_of_prompts_does_not_matter():
  value, s, k = batch()
  order = np.random.default_rng(0).permutation(len(k))
  want = ewa.ewa_update(ewa.ewa_init(), value, s, k)
  for got, x in zip(ewa.ewa_update(ewa.ewa_init(), value[order], s[order], k[order]), want):
    np.testing.assert_allclose(got, x, rtol=2e-5)


def test_the_first_state_trusts_every_expert_alike():
  state = ewa.ewa_init()
  np.testing.assert_allclose(ewa.ewa_weights(state), np.full(30, 1 / 30), rtol=1e-6)
  b, sigma2, var = ewa.ewa_baseline(
    state, np.array([np.nan, *[0.0] * 11]), np.zeros(12), np.zeros(12)
  )
  np.testing.assert_allclose(b, np.zeros(12), atol=1e-6)
  np.testing.assert_allclose([sigma2[0], var[0]], [0.5, 0.5], rtol=1e-5)  # Beta(.5, .5)


def test_the_weights_prefer_the_experts_that_were_right():
  """Where the prior is exact the sure experts win; where it says nothing they lose, unless they
  doubt it."""
  rng = np.random.default_rng(1)
  mu, k = rng.uniform(-1, 1, 90), np.full(90, 20.0)
  s = rng.binomial(20, (1 + mu) / 2).astype(float)
  weights = lambda value: np.asarray(
    ewa.ewa_weights(ewa.ewa_update(ewa.ewa_init(), value, s, k))
  ).reshape(2, 5, 3)
  right, wrong = weights(mu), weights(rng.permutation(mu))
  assert right[1, 3:].sum() > 0.9 and wrong[:, 3:, 0].sum() < 1e-3


@jax.jit
def mean_squared_errors(share, made_up):
  """MSE of EWA and of V0.5 at k = 4, 128 prompts a step, learning after each step.

  The prior is right but for a share of the prompts, about which it is wrong by 1.2 or has `made_up`
  something.
  """

  def step(state, key):
    keys = jax.random.split(key, 4)
    mu = jax.random.choice(
      keys[0], jnp.linspace(-1.0, 1.0, 11), (128,), p=jnp.array(COUNTS / COUNTS.sum())
    )
    wrong = jnp.where(
      made_up,
      jax.random.uniform(keys[1], (128,), minval=-1.0),
      mu - jnp.where(mu < -1e-3, -1.2, 1.2),
    )
    value = jnp.clip(jnp.where(jax.random.bernoulli(keys[2], share, (128,)), wrong, mu), -1.0, 1.0)
    s = jnp.sum(jax.random.uniform(keys[3], (4, 128)) < (1.0 + mu) / 2.0, 0).astype(jnp.float32)
    k = jnp.full(128, 4.0)
    baselines = (
      ewa.ewa_baseline(state, value, s, k)[0],
      shrinkage.fuse(s / 2.0 - 1.0, k, value).baseline,
    )
    return ewa.ewa_update(state, value, s, k), jnp.stack(
      [jnp.mean((b - mu) ** 2) for b in baselines]
    )

  _, errors = jax.lax.scan(step, ewa.ewa_init(), jax.random.split(jax.random.key(0), 50))
  return jnp.mean(errors[10:], 0)


def test_with_a_perfect_prior_it_is_far_better_than_v05():
  learnt, paper = mean_squared_errors(0.0, False)
  assert learnt < 0.2 * paper


@pytest.mark.parametrize("share, made_up", [(0.1, False), (1.0, False), (1.0, True)])
def test_with_a_prior_that_hallucinates_it_is_no_worse_than_v05(share, made_up):
  learnt, paper = mean_squared_errors(share, made_up)
  assert learnt < paper


def many():
  """(state, V, s, k) of 2,048 prompts, on the device."""
  rng = np.random.default_rng(2)
  value, s = rng.uniform(-1, 1, 2048), rng.binomial(4, 0.5, 2048)
  return ewa.ewa_init(), *(jnp.asarray(x, jnp.float32) for x in (value, s, np.full(2048, 4)))


def test_nothing_is_transferred_inside():
  state, *prompts = many()
  # compiling may transfer
  want = ewa.ewa_update(state, *prompts), ewa.ewa_baseline(state, *prompts)
  with jax.transfer_guard("disallow"):
    got = ewa.ewa_update(state, *prompts), ewa.ewa_baseline(state, *prompts)
    with pytest.raises(Exception, match="host-to-device transfer"):
      ewa.ewa_baseline(state, *map(np.asarray, prompts))  # the guard does guard
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_2048_prompts_take_less_than_30_ms():
  state, *prompts = many()
  best = np.inf
  for _ in range(31):  # the first may compile; another process slows down some, not all
    start = time.perf_counter()
    jax.block_until_ready((ewa.ewa_update(state, *prompts), ewa.ewa_baseline(state, *prompts)))
    best = min(best, time.perf_counter() - start)
    if best < 0.03:
      break
  assert best < 0.03
