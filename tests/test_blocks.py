"""The head of a large vocabulary on a CPU computes what the plain one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax.update import blocks, losses

TEMPERATURE, VOCAB, WIDTH, SHAPE = 1.3, 2500, 8, (3, 120)


@pytest.fixture(scope="module")
def given():
  draw = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(draw.standard_normal(shape), jnp.float32)
  targets = jnp.asarray(draw.integers(0, 2000, SHAPE), jnp.int32)
  return normal(*SHAPE, WIDTH), normal(VOCAB, WIDTH), targets, normal(*SHAPE)


def values_and_gradients(logprobs, given, mask, usable):
  """(log-prob, entropy), and the gradients by hidden states and head of a sum that weighs both."""
  hidden, head, targets, weight = given

  def total(hidden, head):
    logprob, entropy = logprobs(hidden, head, targets, mask, usable)
    return jnp.sum(weight * logprob + 0.3 * weight**2 * entropy), (logprob, entropy)

  gradients, values = jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, head)
  return *values, *gradients


def blocked(hidden, head, targets, mask, usable):
  return blocks.logprobs(hidden, head, targets, TEMPERATURE, mask, usable)


def plain(hidden, head, targets, mask, usable):
  found = losses.token_logprobs(hidden, head, targets, TEMPERATURE, 1 << 20, mask, usable)
  return tuple(jnp.where(mask, x, 0.0) for x in found)


@pytest.mark.parametrize("share", [0.4, 1.0, 0.0])
@pytest.mark.parametrize("last", [None, 2100])
def test_values_and_gradients_are_those_of_the_plain_head(given, share, last):
  """With a last block that is not full, ids that are left out, and chunks without a token."""
  mask = jnp.asarray(np.random.default_rng(1).random(SHAPE) < share)
  usable = None if last is None else np.arange(VOCAB) < last
  found, wanted = (values_and_gradients(f, given, mask, usable) for f in (blocked, plain))
  for name, a, b in zip(("logprob", "entropy", "hidden", "head"), found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=3e-5, err_msg=name)
  if last is not None:
    assert not np.asarray(found[3])[last:].any()


def test_what_is_left_out_reaches_nothing(given):
  hidden, head, targets, weight = given
  mask = jnp.asarray(np.random.default_rng(1).random(SHAPE) < 0.4)
  broken = jnp.where(mask[..., None], hidden, jnp.nan), head, targets, weight
  for a, b in zip(*(values_and_gradients(blocked, x, mask, None) for x in (given, broken))):
    np.testing.assert_array_equal(a, b)
