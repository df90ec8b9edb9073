import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest

from v05_jax.update import losses


def inputs(n=3, t=7, d=5, v=11, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(n, t, d)).astype(np.float32)
  unembed = rng.normal(size=(v, d)).astype(np.float32)
  targets = rng.integers(0, v, size=(n, t)).astype(np.int32)
  return jnp.asarray(hidden), jnp.asarray(unembed), jnp.asarray(targets)


def dense(hidden, unembed, targets, temperature):
  logp = jax.nn.log_softmax(hidden @ unembed.T / temperature)
  return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0], -jnp.sum(
    jnp.exp(logp) * logp, -1
  )


@pytest.mark.parametrize("chunk", [4, 7, 1000])  # padded, exact, all at once
def test_logprobs_and_gradients_equal_the_dense_form(chunk):
  hidden, unembed, targets = inputs()

  def scalar(f, hidden, unembed):
    logprob, entropy = f(hidden, unembed)
    return jnp.sum(jnp.sin(logprob)) + 0.3 * jnp.sum(entropy**2), (logprob, entropy)

  def chunked(h, u):
    return losses.token_logprobs(h, u, targets, 0.7, chunk)

  def reference(h, u):
    return dense(h, u, targets, 0.7)

  grad = functools.partial(jax.grad, argnums=(1, 2), has_aux=True)
  got, values = grad(scalar)(chunked, hidden, unembed)
  want, expected = grad(scalar)(reference, hidden, unembed)
  for a, b in zip(values + got, expected + want):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def equations(jaxpr, inside=()):
  """Every equation of a program with the names of the primitives around it."""
  for eqn in jaxpr.eqns:
    yield eqn, inside
    for leaf in jax.tree.leaves(
      eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
      inner = getattr(leaf, "jaxpr", leaf)
      if hasattr(inner, "eqns"):
        yield from equations(inner, (*inside, eqn.primitive.name))


def test_logits_of_all_tokens_never_exist():
  """The largest intermediate of the forward and backward program holds one chunk of logits."""
  hidden, unembed, targets = inputs(n=4, t=32, d=8, v=257)

  def f(hidden, unembed):
    return jnp.sum(losses.token_logprobs(hidden, unembed, targets, 1.0, 16)[0])

  program = jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(hidden, unembed).jaxpr
  assert max(v.aval.size for eqn, _ in equations(program) for v in eqn.outvars) == 16 * 257


def test_logprobs_are_float32_for_bfloat16_hidden_and_large_logits():
  hidden, unembed, targets = inputs()
  logprob, entropy = losses.token_logprobs(hidden.astype(jnp.bfloat16), unembed, targets, 1.0, 4)
  assert logprob.dtype == entropy.dtype == jnp.float32
  want = dense(hidden, unembed, targets, 1.0)
  np.testing.assert_allclose(logprob, want[0], atol=0.1)
  logprob, entropy = losses.token_logprobs(1e4 * hidden, unembed, targets, 1.0, 4)
  assert np.isfinite(logprob).all() and np.isfinite(entropy).all()


def test_masked_nan_in_hidden_reaches_no_gradient():
  hidden, unembed, targets = inputs()
  mask = jnp.ones(targets.shape, bool).at[1, 3:].set(False)
  bad = jnp.where(mask[..., None], hidden, jnp.nan)

  def f(hidden, unembed):
    logprob, _ = losses.token_logprobs(hidden, unembed, targets, 1.0, 4, mask)
    return jnp.sum(jnp.where(mask, logprob, 0.0))

  got = jax.grad(f, argnums=(0, 1))(bad, unembed)
  want = jax.grad(f, argnums=(0, 1))(hidden, unembed)
  for a, b in zip(got, want):
    np.testing.assert_array_equal(a, b)


def test_gradient_inside_shard_map_is_the_single_device_gradient():
  """One psum of the replicated `unembed`'s gradient, not one per chunk, and no factor of the
  mesh."""
  devices = min(jax.device_count(), 4)
  mesh = jax.make_mesh(
    (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
  )
  hidden, unembed, targets = inputs(n=4 * devices, t=6)

  def local(hidden, unembed, targets):
    def f(unembed):
      logprob, entropy = losses.token_logprobs(hidden, unembed, targets, 0.9, 5)
      return jnp.sum(jnp.sin(logprob) + entropy)

    return jax.grad(f)(unembed)

  data, all_ = PartitionSpec("data"), PartitionSpec()
  mapped = jax.jit(
    jax.shard_map(
      local, mesh=mesh, in_specs=(data, all_, data), out_specs=all_, axis_names={"data"}
    )
  )
  np.testing.assert_allclose(
    mapped(hidden, unembed, targets), local(hidden, unembed, targets), rtol=2e-5, atol=2e-5
  )
  program = jax.make_jaxpr(mapped)(hidden, unembed, targets).jaxpr
  sums = [inside for eqn, inside in equations(program) if eqn.primitive.name.startswith("psum")]
  assert len(sums) == 1 and "scan" not in sums[0]


# Two prompts with three rollouts, the second has two: lengths 2 4 6 and 3 1.
LENGTH = np.array([[2, 4, 6], [3, 1, 9]], np.int32)
MASK = np.array([[1, 1, 1], [1, 1, 0]], bool)


@pytest.mark.parametrize(
  "aggregate, want",
  [
    ("token", [[1 / 16, 1 / 16, 1 / 16], [1 / 16, 1 / 16, 0]]),
    ("rollout", [[1 / 10, 1 / 20, 1 / 30], [1 / 15, 1 / 5, 0]]),
    ("prompt", [[1 / 24, 1 / 24, 1 / 24], [1 / 8, 1 / 8, 0]]),
    ("constant", [[1 / 50, 1 / 50, 1 / 50], [1 / 50, 1 / 50, 0]]),
  ],
)
def test_rollout_weights(aggregate, want):
  got = losses.rollout_weights(aggregate, LENGTH, MASK, 10)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert got.dtype == jnp.float32
  if aggregate != "constant":  # a constant token loss is its own mean
    assert float((got * LENGTH).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("aggregate", losses.AGGREGATES)
def test_rollout_weights_ignore_what_does_not_count(aggregate):
  got = losses.rollout_weights(aggregate, LENGTH, MASK, 10)
  padded = np.pad(LENGTH, ((0, 2), (0, 1)), constant_values=7)
  more = losses.rollout_weights(aggregate, padded, np.pad(MASK, ((0, 2), (0, 1))), 10)
  np.testing.assert_allclose(more[:2, :3], got, rtol=1e-6)
  assert not np.any(more[2:]) and not np.any(more[:, 3])
  empty = losses.rollout_weights(aggregate, np.where(MASK, LENGTH, 0) * 0, MASK, 10)
  np.testing.assert_array_equal(empty, np.zeros_like(LENGTH))


def test_aggregates_coincide_for_equal_groups():
  length, mask = np.full((3, 4), 5), np.ones((3, 4), bool)
  a, b, c = (losses.rollout_weights(x, length, mask, 8) for x in ("token", "rollout", "prompt"))
  np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_allclose(a, c, rtol=1e-6)


def test_unknown_aggregate():
  with pytest.raises(ValueError, match=r"loss\.aggregate.*'mean'"):
    losses.rollout_weights("mean", LENGTH, MASK, 10)


def test_surrogate_by_hand():
  """A > 0 clips above only, A < 0 below only; the dual bound acts on large ratios of A < 0."""
  ratio = jnp.array([1.0, 1.5, 0.5, 1.5, 0.5, 1.25, 9.0])
  advantage = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0, 2.0, -2.0])
  loss, clipped = losses.surrogate(
    jnp.log(ratio), jnp.zeros(7), advantage, losses.Clip(0.2, 0.28, 3.0)
  )
  np.testing.assert_allclose(loss, [-2.0, -2.56, -1.0, 3.0, 1.6, -2.5, 6.0], rtol=1e-6)
  np.testing.assert_array_equal(clipped, [0, 1, 0, 0, 1, 0, 1])
  loss, clipped = losses.surrogate(jnp.log(ratio), jnp.zeros(7), advantage, losses.Clip(0.2, 0.28))
  assert float(loss[-1]) == pytest.approx(18.0) and not clipped[-1]
  with pytest.raises(ValueError, match="clip_dual"):
    losses.surrogate(ratio, ratio, ratio, losses.Clip(0.2, 0.2, 0.5))


def test_reinforce_is_the_surrogate_where_the_policy_is_the_one_that_sampled():
  logprob = jnp.asarray([-0.3, -2.0, -1.0, jnp.nan])
  advantage, mask = jnp.asarray([1.0, -0.5, 2.0, 3.0]), jnp.asarray([True, True, True, False])
  found = losses.reinforce(logprob, advantage, mask)
  np.testing.assert_allclose(found, [0.3, -1.0, 2.0, 0.0])
  old, clip = jax.lax.stop_gradient(logprob), losses.Clip(0.2, 0.2)
  gradient = jax.grad(lambda x: losses.reinforce(x, advantage, mask).sum())(logprob)
  ratio = jax.grad(lambda x: losses.surrogate(x, old, advantage, clip, mask)[0].sum())(logprob)
  np.testing.assert_allclose(gradient, [-1.0, 0.5, -2.0, 0.0])
  np.testing.assert_allclose(gradient, ratio)


def test_surrogate_gradient_is_minus_the_advantage_on_policy_and_zero_when_clipped():
  logprob = jnp.array([-1.0, -1.0 + np.log(1.5), -1.0 + np.log(0.5), -1.0 + np.log(9.0)])
  advantage = jnp.array([3.0, 3.0, -3.0, -3.0])

  def f(logprob):
    return jnp.sum(
      losses.surrogate(logprob, -jnp.ones(4), advantage, losses.Clip(0.2, 0.2, 4.0))[0]
    )

  np.testing.assert_allclose(jax.grad(f)(logprob), [-3.0, 0.0, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e9])
def test_masked_tokens_may_hold_anything(bad):
  good = jnp.array([-1.0, -2.0])
  broken = good.at[1].set(bad)
  mask = jnp.array([True, False])

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def f(logprob, old, advantage):
    loss, clipped = losses.surrogate(logprob, old, advantage, losses.Clip(0.2, 0.2, 3.0), mask)
    loss += losses.kl(logprob, old, mask)
    return jnp.sum(loss), (loss, clipped)

  (_, want), grad = f(good, good, good)
  for args in [(broken, good, good), (good, broken, good), (good, good, broken), (broken,) * 3]:
    (_, (loss, clipped)), got = f(*args)
    np.testing.assert_array_equal(loss, want[0])
    np.testing.assert_array_equal(got, grad)
    assert loss[1] == 0 and got[1] == 0 and not clipped[1]


def test_a_real_nan_is_not_hidden():
  nan = jnp.array([jnp.nan])
  assert np.isnan(losses.surrogate(nan, -jnp.ones(1), jnp.ones(1), losses.Clip(0.2, 0.2))[0][0])
  assert np.isnan(losses.kl(nan, -jnp.ones(1))[0])


def test_far_off_policy_tokens_stay_finite():
  far = jnp.array([0.0, -500.0])
  loss, _ = losses.surrogate(far, far[::-1], -jnp.ones(2), losses.Clip(0.2, 0.2))
  assert np.isfinite(loss).all() and np.isfinite(losses.kl(far, far[::-1])).all()


def test_kl_is_unbiased_and_non_negative():
  """The expectation over the policy's own tokens is the exact KL divergence."""
  rng = np.random.default_rng(0)
  p, q = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=9), jnp.float32)) for _ in range(2))
  k3 = losses.kl(p, q)
  assert (k3 >= 0).all() and float(losses.kl(p, p).sum()) == 0
  assert float(jnp.sum(jnp.exp(p) * k3)) == pytest.approx(
    float(jnp.sum(jnp.exp(p) * (p - q))), rel=1e-5
  )
