"""The training pass for a CPU, function by function: equal to the plain form, and less work where it says so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax.models import cpu, transformer

N, HEADS, GROUP, WIDTH = 4, 2, 3, 8


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def ragged(length):
  """Segments int32 [N, length]: one row full, one of three parts with padding, one of many, one of padding alone."""
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


@pytest.mark.parametrize("length, queries, scores", [(9, 96, 1 << 18), (13, 4, 1), (13, 4, 700), (70, 3, 1 << 18)])
def test_attention_and_its_gradient_on_ragged_segments(length, queries, scores, monkeypatch):
  """In one block and in several, the last of them shorter; with one row at a time, two, and all; at most 8 blocks."""
  monkeypatch.setattr(cpu, "QUERIES", queries)
  monkeypatch.setattr(cpu, "SCORES", scores)
  assert len(cpu._blocks(length)) == {9: 1, 13: 4, 70: 8}[length]
  assert cpu._blocks(length)[-1][1] == length
  mask = transformer.causal(ragged(length))
  q, k, v = draw(N, length, HEADS, GROUP, WIDTH), *(draw(N, length, HEADS, WIDTH, seed=i) for i in (1, 2))
  towards = draw(*q.shape, seed=3)

  def loss(attend, *qkv):
    out = attend(*qkv, mask)
    return jnp.sum(out * towards), out

  gradient = jax.jit(jax.grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)
  found = gradient(lambda q, k, v, mask: cpu.attend(q, k, v, cpu.bias(mask)), q, k, v)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradient(plain, q, k, v)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def products(f, *arguments):
  """Multiplications in all matrix products of a program, those of inner programs once."""
  def of(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "dot_general":
        (left, _), _ = eqn.params["dimension_numbers"]
        yield eqn.outvars[0].aval.size * int(np.prod([eqn.invars[0].aval.shape[i] for i in left]))
      for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        inner = getattr(leaf, "jaxpr", leaf)
        if hasattr(inner, "eqns"):
          yield from of(inner)

  return sum(of(jax.make_jaxpr(f)(*arguments).jaxpr))


def test_attention_does_not_compute_keys_behind_a_block(monkeypatch):
  """Eight blocks: 36 of 64 parts of the square, in the two products forward and the five backward."""
  monkeypatch.setattr(cpu, "QUERIES", 4)
  q, k, v, bias = draw(1, 32, 1, 1, 8), draw(1, 32, 1, 8), draw(1, 32, 1, 8), cpu.bias(jnp.ones((1, 32, 32), bool))
  square = 32 * 32 * 8
  assert products(cpu.attend, q, k, v, bias) == 2 * square * 36 / 64
  backward = jax.grad(lambda q, k, v: cpu.attend(q, k, v, bias).sum(), (0, 1, 2))
  assert products(backward, q, k, v) == (2 + 5) * square * 36 / 64


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
  """Tokens that stand in several places; up to a size of the vocabulary the gradient has no scatter."""
  table, towards = draw(vocab, 3), draw(2, 6, 3, seed=1)
  tokens = jnp.array([[0, 3, 3, 6, 1, 3], [6, 6, 0, 2, 2, 5]])
  gradient = jax.grad(lambda f, table: jnp.sum(f(table, tokens) * towards), 1)
  np.testing.assert_array_equal(cpu.lookup(table, tokens), table[tokens])
  expected = np.zeros((vocab, 3))
  np.add.at(expected, np.asarray(tokens), np.asarray(towards))
  np.testing.assert_allclose(gradient(cpu.lookup, table), expected, rtol=1e-5, atol=1e-6)
  assert ("scatter" in str(jax.make_jaxpr(partial(gradient, cpu.lookup))(table))) == (vocab > cpu.ONEHOT_VOCAB)
