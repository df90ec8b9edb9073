"""The training pass for a CPU, function by function: equal to the plain form, and less work where
it says so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax.models import cpu, decoder

N, HEADS, GROUP, WIDTH = 4, 2, 3, 8


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def ragged(length):
  """Segments int32 [N, length]: one row full, one of three parts with padding, one of many, one of
  padding alone."""
  rows = np.zeros((N, length), np.int32)
  rows[0] = 1
  rows[1, : length - 2] = np.sort(np.arange(length - 2) % 3) + 1
  rows[2] = np.arange(length) // 3 + 1
  return jnp.asarray(rows)


def plain(q, k, v, mask):
  """Softmax over all keys at once, keys and values repeated for the group."""
  k, v = (jnp.repeat(x[:, :, :, None], q.shape[3], 3) for x in (k, v))
  scores = jnp.einsum("nqhgd,nkhgd->nhgqk", q, k) / np.sqrt(q.shape[-1])
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), -1)
  return jnp.einsum("nhgqk,nkhgd->nqhgd", weights, v)


def ask(length, queries, scores, monkeypatch):
  """Random q, k, v [N, length, ...], a direction of out, and the mask of `ragged` with a prompt in
  its second row."""
  monkeypatch.setattr(cpu, "QUERIES", queries)
  monkeypatch.setattr(cpu, "SCORES", scores)
  segments = ragged(length)
  prompts = segments.at[1].set(jnp.minimum(segments[1], 1))
  q, k, v = (
    draw(N, length, HEADS, GROUP, WIDTH),
    *(draw(N, length, HEADS, WIDTH, seed=i) for i in (1, 2)),
  )
  return (q, k, v), draw(*q.shape, seed=3), decoder.causal(segments, prompts)


# In one block and in several, the last of them shorter; with one row at a time, two, and all.
@pytest.mark.parametrize(
  "length, queries, scores", [(9, 96, 1 << 18), (13, 4, 1), (13, 4, 200), (70, 9, 1 << 18)]
)
def test_attention_and_its_gradient_on_ragged_segments(length, queries, scores, monkeypatch):
  qkv, towards, mask = ask(length, queries, scores, monkeypatch)
  seen = cpu.see(mask, HEADS * GROUP)
  assert (
    seen.bias.shape[1:4]
    == {9: (1, 1, 4), 13: (4, 4, 1 if scores == 1 else 2), 70: (8, 8, 4)}[length]
  )

  def loss(attend, how, *qkv):
    out = attend(*qkv, how)
    return jnp.sum(out * towards), out

  gradient = jax.jit(jax.grad(loss, (2, 3, 4), has_aux=True), static_argnums=0)
  found = gradient(cpu.attend, seen, *qkv)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(gradient(plain, mask, *qkv)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_attention_looks_only_at_blocks_that_are_seen(monkeypatch):
  """One row of eight blocks: the first is a prompt, and each two that follow a response. NaN among
  what a block of queries does not see stays out of it, forward and backward."""
  monkeypatch.setattr(cpu, "QUERIES", 4)
  index = jnp.arange(32)
  segments = jnp.where(index < 4, 1, 2 + (index - 4) // 8)[None]
  seen = cpu.see(decoder.causal(segments, jnp.ones_like(segments)), 1)
  np.testing.assert_array_equal(seen.count[0], [1, 2, 3, 2, 3, 2, 3, 2])
  q, k, v = draw(1, 32, 1, 1, 8), draw(1, 32, 1, 8), draw(1, 32, 1, 8, seed=1)
  broken = (segments == 3)[..., None, None]
  k, v = jnp.where(broken, jnp.nan, k), jnp.where(broken, jnp.nan, v)
  out = cpu.attend(q, k, v, seen)
  d_q, d_k, d_v = jax.grad(lambda *qkv: cpu.attend(*qkv, seen).sum(), (0, 1, 2))(q, k, v)
  for x in (out, d_q):
    np.testing.assert_array_equal(jnp.isnan(x).any((2, 3, 4)), segments == 3)
  for x in (d_k, d_v):  # of the prompt, which the broken response has seen, too
    np.testing.assert_array_equal(jnp.isnan(x).any((2, 3)), (segments == 3) | (segments == 1))


def test_a_matrix_product_and_its_gradient_read_their_operands_as_they_lie():
  x, kernel = draw(3, 4, 5), draw(5, 6, seed=1)
  towards = draw(3, 4, 6, seed=2)
  product = partial(cpu.dot_general, dimension_numbers=(((2,), (0,)), ((), ())))
  np.testing.assert_allclose(product(x, kernel), x @ kernel, rtol=1e-6)
  found = jax.grad(lambda *a: jnp.sum(product(*a) * towards), (0, 1))(x, kernel)
  expected = jax.grad(lambda *a: jnp.sum(a[0] @ a[1] * towards), (0, 1))(x, kernel)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  with pytest.raises(AssertionError):
    cpu.dot_general(x, kernel, (((1,), (0,)), ((), ())))


@pytest.mark.parametrize("vocab", [7, cpu.ONEHOT_VOCAB + 1])
def test_lookup_and_its_gradient(vocab):
  """Tokens that stand in several places; up to a size of the vocabulary the gradient has no
  scatter."""
  table, towards = draw(vocab, 3), draw(2, 6, 3, seed=1)
  tokens = jnp.array([[0, 3, 3, 6, 1, 3], [6, 6, 0, 2, 2, 5]])
  gradient = jax.grad(lambda f, table: jnp.sum(f(table, tokens) * towards), 1)
  np.testing.assert_array_equal(cpu.lookup(table, tokens), table[tokens])
  expected = np.zeros((vocab, 3))
  np.add.at(expected, np.asarray(tokens), np.asarray(towards))
  np.testing.assert_allclose(gradient(cpu.lookup, table), expected, rtol=1e-5, atol=1e-6)
  assert ("scatter" in str(jax.make_jaxpr(partial(gradient, cpu.lookup))(table))) == (
    vocab > cpu.ONEHOT_VOCAB
  )
