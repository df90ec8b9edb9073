"""The device side of the sampler: distributions, truncation, stop and log-probs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from v05_jax import rng
from v05_jax.budgets.base import fixed_number
from v05_jax.models import decoder
from v05_jax.sampling import categorical, sampler
from v05_jax.sampling.ledger import Order
from v05_jax.update import losses


def nucleus(logits, top_k, top_p):
  """The kept set, the slow way: sort, then add until the mass is reached."""
  p = np.exp(logits - logits.max())
  order = np.argsort(-p)
  if top_k:
    order = order[:top_k]
  p = p / p[order].sum()
  mass = np.cumsum(p[order])
  return (
    set(order[: int(np.searchsorted(mass, top_p)) + 1].tolist())
    if top_p < 1
    else set(order.tolist())
  )


@pytest.mark.parametrize(
  "top_k, top_p", [(0, 0.9), (5, 1.0), (7, 0.5), (0, 0.05), (1, 1.0), (1000, 0.999)]
)
def test_truncation_keeps_the_sorted_nucleus(top_k, top_p):
  logits = np.random.default_rng(0).normal(size=(6, 300)).astype(np.float32) * 3
  out = np.asarray(categorical.truncate(jax.nn.log_softmax(jnp.asarray(logits)), top_k, top_p))
  for row, kept in zip(logits, out):
    assert set(np.flatnonzero(np.isfinite(kept)).tolist()) == nucleus(
      row.astype(np.float64), top_k, top_p
    )
  np.testing.assert_allclose(np.exp(out).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("vocab", [5, 128, 1000])
def test_draw_follows_the_distribution(vocab):
  p = np.random.default_rng(1).dirichlet(np.full(vocab, 0.3)).astype(np.float32)
  p[vocab // 2] = 0  # a token of probability zero is never drawn
  p /= p.sum()
  count = 40_000
  keys = jax.random.split(jax.random.key(0), count)
  tokens = np.asarray(categorical.draw(keys, jnp.broadcast_to(jnp.log(p), (count, vocab))))
  seen = np.bincount(tokens, minlength=vocab)
  assert seen[vocab // 2] == 0
  big = p * count >= 10
  chi2 = np.sum((seen - p * count)[big] ** 2 / (p * count)[big])
  assert chi2 < big.sum() + 5 * np.sqrt(2 * big.sum())


def test_draw_never_leaves_the_support():
  logprob = jnp.where(jnp.arange(300) % 7 == 3, 0.0, -jnp.inf)
  tokens = categorical.draw(
    jax.random.split(jax.random.key(3), 5000), jnp.broadcast_to(logprob, (5000, 300))
  )
  assert np.all(np.asarray(tokens) % 7 == 3)


def test_sampled_logprobs_equal_teacher_forced_ones():
  c = support.config(temperature=0.7, top_k=9, top_p=0.8)
  params, prompts = support.params(), support.prompts(6)
  rolls, _ = support.collector(c)(params, prompts, rng.at(0, 0), Order(fixed_number(4)))
  assert len(set(rolls.length.flatten().tolist())) > 3
  length = prompts.length[rolls.prompt]
  count = rolls.length[rolls.prompt, rolls.index]
  text = np.zeros((len(count), 22), np.int32)
  for row, p in enumerate(rolls.prompt):
    text[row, : length[row]] = prompts.tokens[p, : length[row]]
    text[row, length[row] : length[row] + count[row]] = rolls.tokens[row, : count[row]]
  index = np.broadcast_to(np.arange(22), text.shape)

  @jax.jit
  def teacher_forced(params):
    hidden = decoder.forward(support.MODEL, params, text, index, np.ones_like(text))
    head = decoder.unembed(support.MODEL, params)
    plain, _ = losses.token_logprobs(hidden, head, np.roll(text, -1, 1), 0.7, 64)
    logits = decoder.logits(support.MODEL, params, hidden) / 0.7
    kept = categorical.truncate(jax.nn.log_softmax(logits).reshape(-1, support.VOCAB), 9, 0.8)
    return plain, kept.reshape(logits.shape)

  plain, kept = (np.asarray(x) for x in teacher_forced(params))
  for row, n in enumerate(count):
    at, tokens = np.arange(length[row] - 1, length[row] - 1 + n), rolls.tokens[row, :n]
    np.testing.assert_allclose(rolls.logprob[row, :n], plain[row, at], atol=2e-5)
    np.testing.assert_allclose(rolls.sampled_logprob[row, :n], kept[row, at, tokens], atol=2e-5)
    assert np.all(rolls.tokens[row, n:] == 0) and np.all(rolls.logprob[row, n:] == 0)
    assert rolls.ended[rolls.prompt[row], rolls.index[row]] == (tokens[-1] == support.EOS)
    assert support.EOS not in tokens[:-1]


def test_slots_that_do_not_divide_by_the_mesh_are_named():
  with pytest.raises(
    ValueError, match=r"config.sampler.slots: found 15, expected a multiple of 2,"
  ):
    sampler.make(support.MODEL, support.config(slots=15).sampler, (1,), support.mesh(2))


def test_shapes_of_the_cache():
  """All columns for fewer slots, all slots for fewer columns; a chunk fits behind the last
  column."""
  options = support.config(slots=32, slot_sizes=3, column_sizes=3, chunk=4, max_response=10).sampler
  assert sampler.shapes(options, 2) == [(4, 14), (8, 14), (16, 8), (16, 11), (16, 14)]
  assert sampler.shapes(support.config(slots=2, slot_sizes=4).sampler, 2) == [(1, 16)]


def cache(slots, columns, seed=0):
  draw = np.random.default_rng(seed).normal
  return tuple(
    (draw(size=(slots, 2, 3, columns)), draw(size=(slots, 2, columns, 3))) for _ in range(2)
  )


@pytest.mark.parametrize("columns", [5, 9])
def test_resize_takes_slots_in_order_with_their_columns(columns):
  before = cache(4, 7)
  slots, shape = np.array([2, 0, 3, 0, 0]), sampler.Shape(5, columns)
  after = [sampler.resize(jax.tree.map(jnp.asarray, layer), slots, shape) for layer in before]
  kept = min(columns, 7)
  for (k, v), (new_k, new_v) in zip(before, after, strict=True):
    assert new_k.shape == (5, 2, 3, columns) and new_v.shape == (5, 2, columns, 3)
    np.testing.assert_array_equal(new_k[:3, ..., :kept], np.float32(k[[2, 0, 3], ..., :kept]))
    np.testing.assert_array_equal(new_v[:3, :, :kept], np.float32(v[[2, 0, 3], :, :kept]))


@pytest.mark.parametrize("together", [False, True])
def test_commit_moves_a_chunk_behind_what_is_there_and_leaves_idle_slots(together):
  before, fresh = cache(4, 9), cache(4, 3, seed=1)
  zero = np.zeros(4, np.int32)
  rows = sampler.Rows(
    *[zero] * 5, count=np.array([6, 2, 0, 1], np.int32), limit=np.array([9, 0, 5, 5], np.int32)
  )
  after = jax.jit(sampler.commit, static_argnums=3)(
    *jax.tree.map(jnp.asarray, (before, fresh)), rows, together
  )
  for (k, v), (new_k, new_v), (out_k, out_v) in zip(before, fresh, after, strict=True):
    for row, at in ((0, 6), (2, 0), (3, 1)):
      k[row, ..., at : at + 3], v[row, :, at : at + 3] = new_k[row], new_v[row]
    np.testing.assert_array_equal(out_k, np.float32(k))
    np.testing.assert_array_equal(out_v, np.float32(v))
