"""What the decoder's training pass computes in another way where XLA compiles for a CPU.

The functions are those of `decoder.py`; the order of work differs, with this in mind: what a
loop touches should stay in cache, memory that is written once and read once costs as much as
arithmetic, a scatter runs one element at a time, and a matrix product runs at full speed only if
neither operand has to be transposed in memory first.
"""

from functools import partial
import math
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

# a score, or what is added to one: softmax turns it into 0, and no row can become NaN
MASKED = -1e30
QUERIES = 64  # queries, and keys, of a block of attention at most
SCORES = 1 << 18  # scores of a block that are handled together: 1 MB of float32
ONEHOT_VOCAB = 4096  # up to this many tokens a product with one-hot rows beats XLA's scatter

# What a layer keeps for its backward pass. Norms, rotary embedding and the gate's activation are
# computed anew: they cost less than writing and reading them.
saved = jax.checkpoint_policies.save_only_these_names("matmul", "attended", "log_sum")


def dot_general(x, kernel, dimension_numbers, **_):
  """`x @ kernel` as `flax.linen.Dense` asks for it: contracts the last axis of x and the first of
  kernel."""
  assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())), dimension_numbers
  return checkpoint_name(_matmul(x, kernel), "matmul")


@jax.custom_vjp
def _matmul(x, kernel):
  return x @ kernel


def _matmul_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_backward(saved, dy):
  # JAX asks for the transposed gradient and XLA then writes a transposed copy of dy; this reads
  # both as they lie.
  x, kernel = saved
  rows = dy.reshape(-1, dy.shape[-1])
  return (rows @ kernel.T).reshape(x.shape), x.reshape(-1, x.shape[-1]).T @ rows


_matmul.defvjp(_matmul_forward, _matmul_backward)


def lookup(embedding, tokens):
  """embedding [V, D], tokens int [...] -> [..., D]; its gradient is a product, up to ONEHOT_VOCAB
  tokens."""
  if embedding.shape[0] > ONEHOT_VOCAB:
    return jnp.take(embedding, tokens, axis=0)
  return _lookup(embedding.shape[0], embedding, tokens)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(vocab, embedding, tokens):
  return jnp.take(embedding, tokens, axis=0)


def _lookup_backward(vocab, tokens, dy):
  onehot = jax.nn.one_hot(tokens.ravel(), vocab, dtype=dy.dtype)
  return onehot.T @ dy.reshape(tokens.size, -1), None


_lookup.defvjp(
  lambda vocab, embedding, tokens: (jnp.take(embedding, tokens, axis=0), tokens), _lookup_backward
)


class Seen(NamedTuple):
  """What the queries of a mask [N, T, T] see, the same for all layers: keys and queries in blocks
  of B, rows in parts of r whose scores are handled together; [n, m] are parts and blocks."""

  # float32 [n, m, m, r, B, B] added to the scores of a block of queries and a block of keys
  bias: jax.Array
  count: jax.Array  # int32 [n, m]   blocks of keys that a block of queries sees a part of
  which: jax.Array  # int32 [n, m, m]  these blocks; what follows them means nothing


def see(mask, heads: int) -> Seen:
  """mask: bool [N, T, T], each query sees itself; heads: of queries. The bias is made here once, as
  a comparison of segments inside a layer's loops would keep these from being vectorised."""
  n, length = mask.shape[:2]
  block, blocks = _block(length)
  rows = math.gcd(n, _power_of_two(SCORES // (heads * block * block)))
  missing = (0, blocks * block - length)
  mask = jnp.pad(mask, ((0, 0), missing, missing)).reshape(
    n // rows, rows, blocks, block, blocks, block
  )
  touched = mask.any((1, 3, 5)) | jnp.eye(blocks, dtype=bool)
  bias = jnp.where(mask.transpose(0, 2, 4, 1, 3, 5), 0.0, MASKED)
  return Seen(
    bias, touched.sum(-1, dtype=jnp.int32), jnp.argsort(~touched, stable=True).astype(jnp.int32)
  )


@jax.custom_vjp
def attend(q, k, v, seen: Seen):
  """Grouped-query attention `softmax(q k / sqrt(Dh) + bias) v` that looks only at blocks of keys
  which are seen.

  q [N, T, KV, G, Dh], k and v [N, T, KV, Dh] -> [N, T, KV, G, Dh]. Scores exist for a block of
  queries and a block of keys at a time, forward and backward, and are added up as in FlashAttention
  (arXiv 2205.14135).
  """
  return _attend_forward(q, k, v, seen)[0]


def _power_of_two(n):
  return 1 << max(n, 1).bit_length() - 1


def _block(length):
  """(length of a block, number of blocks)."""
  blocks = math.ceil(length / QUERIES)
  return math.ceil(length / blocks), blocks


def _attend_forward(q, k, v, seen):
  blocks = partial(_blocks, seen)
  scale = q.shape[-1] ** -0.5
  out, log_sum = jax.lax.map(
    lambda x: _forward(*x), (blocks(q * scale), blocks(k), blocks(v), seen)
  )
  out = checkpoint_name(_whole(out, q.shape), "attended")
  return out, (q, k, v, seen, out, checkpoint_name(log_sum, "log_sum"))


def _attend_backward(saved, d_out):
  q, k, v, seen, out, log_sum = saved
  blocks = partial(_blocks, seen)
  scale = q.shape[-1] ** -0.5
  inner = jnp.sum(out.astype(jnp.float32) * d_out, -1, keepdims=True)
  parts = blocks(q * scale), blocks(k), blocks(v), blocks(d_out), blocks(inner), log_sum, seen
  d_q, d_k, d_v = jax.lax.map(_backward, parts)
  return (
    (_whole(d_q, q.shape) * scale).astype(q.dtype),
    _whole(d_k, k.shape),
    _whole(d_v, v.shape),
    None,
  )


attend.defvjp(_attend_forward, _attend_backward)


def _blocks(seen, x):
  """x [N, T, KV, (G,) Dh] -> [n, m, r, KV, (G,) B, Dh]."""
  parts, blocks, _, rows, block, _ = seen.bias.shape
  x = jnp.pad(x, ((0, 0), (0, blocks * block - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
  x = x.reshape(parts, rows, blocks, block, *x.shape[2:])
  return jnp.moveaxis(x, (2, 3), (1, -2))


def _whole(x, shape):
  """The array of `shape` that `_blocks` has cut."""
  x = jnp.moveaxis(x, (1, -2), (2, 3))
  return x.reshape(shape[0], -1, *shape[2:])[:, : shape[1]]


def _scores(q, k, bias):
  """q [r, KV, G, B, Dh], k [r, KV, B, Dh], bias [r, B, B] -> [r, KV, G, B, B]."""
  return _dot("rhgqd,rhkd->rhgqk", q, k) + bias[:, None, None]


_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _zeros(x, *like):
  """float32 zeros of x's shape that vary over the mesh, inside `shard_map`, as x and all of `like`
  do."""
  return sum(
    (jnp.zeros_like(y, jnp.float32, shape=()) for y in like), jnp.zeros_like(x, jnp.float32)
  )


def _forward(q, k, v, seen):
  """Attention of one part, cut into blocks -> (out as q, log of softmax's denominator [m, r, KV, G,
  B, 1])."""

  def block(x):
    q, bias, count, which = x

    def add(c, carry):
      most, total, out = carry
      j = which[c]
      scores = _scores(q, k[j], bias[j])
      highest = jnp.maximum(most, scores.max(-1, keepdims=True))
      weights, scale = jnp.exp(scores - highest), jnp.exp(most - highest)
      out = out * scale + _dot("rhgqk,rhkd->rhgqd", weights.astype(v.dtype), v[j])
      return highest, total * scale + weights.sum(-1, keepdims=True), out

    zero = _zeros(q, k, v, bias)
    most, total, out = jax.lax.fori_loop(
      0, count, add, (zero[..., :1] - jnp.inf, zero[..., :1], zero)
    )
    return (out / total).astype(q.dtype), most + jnp.log(total)

  return jax.lax.map(block, (q, *seen))


def _backward(part):
  """Gradients of q, k and v of one part: (q, k, v, d_out, inner, log_sum, seen), cut into blocks.

  inner [m, r, KV, G, B, 1] is the sum of d_out * out over Dh. With softmax's weights P, the
  gradient of the scores is P * (d_out v^T - inner).
  """
  q, k, v, d_out, inner, log_sum, seen = part

  def block(sums, x):
    q, d_out, inner, log_sum, bias, count, which = x

    def add(c, carry):
      d_q, d_k, d_v = carry
      j = which[c]
      weights = jnp.exp(_scores(q, k[j], bias[j]) - log_sum)
      d_scores = (weights * (_dot("rhgqd,rhkd->rhgqk", d_out, v[j]) - inner)).astype(q.dtype)
      # A scatter would add one element at a time.
      add_to = lambda x, more: jax.lax.dynamic_update_index_in_dim(x, x[j] + more, j, 0)
      d_k = add_to(d_k, _dot("rhgqk,rhgqd->rhkd", d_scores, q))
      d_v = add_to(d_v, _dot("rhgqk,rhgqd->rhkd", weights.astype(q.dtype), d_out))
      return d_q + _dot("rhgqk,rhkd->rhgqd", d_scores, k[j]), d_k, d_v

    d_q, *sums = jax.lax.fori_loop(0, count, add, (_zeros(q, k, v, d_out, bias), *sums))
    return tuple(sums), d_q

  zeros = tuple(_zeros(x, q, k, v, d_out, seen.bias) for x in (k, v))
  (d_k, d_v), d_q = jax.lax.scan(block, zeros, (q, d_out, inner, log_sum, *seen))
  return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype)
