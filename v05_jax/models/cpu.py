"""What the decoder's training pass computes in another way where XLA compiles for a CPU.

The functions are those of `transformer.py`; the order of work differs, with this in mind: what a loop
touches should stay in cache, memory that is written once and read once costs as much as arithmetic, a
scatter runs one element at a time, and a matrix product runs at full speed only if neither operand has
to be transposed in memory first.
"""

import functools
import math

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

MASKED = -1e30  # a score, or what is added to one: softmax turns it into 0, and no row can become NaN
QUERIES = 96  # queries a block of attention has, about: blocks skip the keys behind their last query
BLOCKS = 8  # of queries at most, as each is compiled by itself
SCORES = 1 << 18  # scores of a block that are handled together: 1 MB of float32
ONEHOT_VOCAB = 4096  # up to this many tokens a product with one-hot rows beats XLA's scatter

# What a layer keeps for its backward pass. Norms, rotary embedding and the gate's activation are
# computed anew: they cost less than writing and reading them.
saved = jax.checkpoint_policies.save_only_these_names("matmul", "attended", "log_sum")


def dot_general(x, kernel, dimension_numbers, **_):
  """`x @ kernel` as `flax.linen.Dense` asks for it: contracts the last axis of x and the first of kernel."""
  assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())), dimension_numbers
  return checkpoint_name(_matmul(x, kernel), "matmul")


@jax.custom_vjp
def _matmul(x, kernel):
  return x @ kernel


def _matmul_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_backward(saved, dy):
  # JAX asks for the transposed gradient and XLA then writes a transposed copy of dy; this reads both as they lie.
  x, kernel = saved
  rows = dy.reshape(-1, dy.shape[-1])
  return (rows @ kernel.T).reshape(x.shape), x.reshape(-1, x.shape[-1]).T @ rows


_matmul.defvjp(_matmul_forward, _matmul_backward)


def lookup(embedding, tokens):
  """embedding [V, D], tokens int [...] -> [..., D]; its gradient is a product, up to ONEHOT_VOCAB tokens."""
  if embedding.shape[0] > ONEHOT_VOCAB:
    return jnp.take(embedding, tokens, axis=0)
  return _lookup(embedding.shape[0], embedding, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(vocab, embedding, tokens):
  return jnp.take(embedding, tokens, axis=0)


def _lookup_backward(vocab, tokens, dy):
  onehot = jax.nn.one_hot(tokens.ravel(), vocab, dtype=dy.dtype)
  return onehot.T @ dy.reshape(tokens.size, -1), None


_lookup.defvjp(lambda vocab, embedding, tokens: (jnp.take(embedding, tokens, axis=0), tokens), _lookup_backward)


def bias(mask):
  """What attention adds to the scores for a mask bool [N, T, T]: once for all layers, as a comparison of
  segments inside a layer's loops would keep these from being vectorised."""
  return jnp.where(mask, 0.0, MASKED)


def attend(q, k, v, bias):
  """Grouped-query attention `softmax(q k / sqrt(Dh) + bias) v` that looks at no key behind its query.

  q [N, T, KV, G, Dh], k and v [N, T, KV, Dh], bias float32 [N, T, T] (0 or MASKED, MASKED above the
  diagonal) -> [N, T, KV, G, Dh]. Scores exist for a few rows and a block of queries at a time, forward
  and backward.
  """
  heads, length = q.shape[2] * q.shape[3], q.shape[1]
  rows = math.gcd(len(q), _power_of_two(SCORES // (heads * length * _block(length))))
  return _attend(rows, q, k, v, bias)


def _power_of_two(n):
  return 1 << max(n, 1).bit_length() - 1


def _block(length):
  return math.ceil(length / min(BLOCKS, math.ceil(length / QUERIES)))


def _blocks(length):
  block = _block(length)
  return [(start, min(start + block, length)) for start in range(0, length, block)]


def _map(f, rows, arrays):
  """f, which works on one row, for `rows` of them at a time."""
  n = len(arrays[0])
  if rows == n:
    return jax.vmap(f)(*arrays)
  if rows == 1:
    return jax.lax.map(lambda row: f(*row), arrays)
  parts = tuple(x.reshape(n // rows, rows, *x.shape[1:]) for x in arrays)
  return tuple(x.reshape(n, *x.shape[2:]) for x in jax.lax.map(lambda part: jax.vmap(f)(*part), parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rows, q, k, v, bias):
  return _map(_forward, rows, (q, k, v, bias))[0]


def _attend_forward(rows, q, k, v, bias):
  out, log_sum = _map(_forward, rows, (q, k, v, bias))
  out, log_sum = checkpoint_name(out, "attended"), checkpoint_name(log_sum, "log_sum")
  return out, (q, k, v, bias, out, log_sum)


def _attend_backward(rows, saved, d_out):
  q, k, v, bias, out, log_sum = saved
  inner = jnp.sum(out.astype(jnp.float32) * d_out, -1)
  return *_map(_backward, rows, (q, k, v, bias, log_sum, inner, d_out)), None


_attend.defvjp(_attend_forward, _attend_backward)


def _scores(q, k, bias, start, stop):
  """q [KV, G, T, Dh] (scaled), k [KV, Dh, T] -> of queries start to stop: themselves [KV, G Q, Dh], and
  their scores [KV, G, Q, stop]."""
  block = q[:, :, start:stop].reshape(len(q), -1, q.shape[-1])
  scores = jnp.matmul(block, k[..., :stop], preferred_element_type=jnp.float32)
  return block, scores.reshape(*q.shape[:2], stop - start, stop) + bias[start:stop, :stop]


def _heads_first(q, k):
  """-> q [KV, G, T, Dh] over sqrt(Dh), k [KV, Dh, T]."""
  return q.transpose(1, 2, 0, 3) * q.shape[-1] ** -0.5, k.transpose(1, 2, 0)


def _forward(q, k, v, bias):
  """One row of `attend` -> (out [T, KV, G, Dh], log of softmax's denominator [KV, G, T])."""
  q, k = _heads_first(q, k)
  v = v.transpose(1, 0, 2)
  outs, log_sums = [], []
  for start, stop in _blocks(q.shape[2]):
    _, scores = _scores(q, k, bias, start, stop)
    most = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - most)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype).reshape(len(q), -1, stop)
    out = jnp.matmul(weights, v[:, :stop], preferred_element_type=jnp.float32)
    outs.append((out.reshape(*q.shape[:2], stop - start, -1) / total).astype(q.dtype))
    log_sums.append((most + jnp.log(total))[..., 0])
  return jnp.concatenate(outs, 2).transpose(2, 0, 1, 3), jnp.concatenate(log_sums, -1)


def _backward(q, k, v, bias, log_sum, inner, d_out):
  """Gradients of one row's q, k and v. inner [T, KV, G] is the sum of d_out * out over Dh.

  With softmax's weights P, the gradient of the scores is P * (d_out v^T - inner).
  """
  dtype, length, scale = q.dtype, q.shape[0], q.shape[-1] ** -0.5
  inner = inner.transpose(1, 2, 0)[..., None]
  keys, d_out, values = k.transpose(1, 0, 2), d_out.transpose(1, 2, 0, 3), v.transpose(1, 2, 0)
  q, k = _heads_first(q, k)
  d_q, d_k, d_v = [], 0.0, 0.0
  for start, stop in _blocks(length):
    queries, scores = _scores(q, k, bias, start, stop)
    shape, flat = scores.shape, (len(q), -1, stop)
    weights = jnp.exp(scores - log_sum[:, :, start:stop, None])
    d_block = d_out[:, :, start:stop].reshape(queries.shape)
    d_weights = jnp.matmul(d_block, values[..., :stop], preferred_element_type=jnp.float32).reshape(shape)
    d_scores = (weights * (d_weights - inner[:, :, start:stop])).astype(dtype).reshape(flat)
    weights = weights.astype(dtype).reshape(flat)
    behind = ((0, 0), (0, length - stop), (0, 0))  # keys that this block does not see
    d_k += jnp.pad(d_scores.swapaxes(1, 2) @ queries, behind)
    d_v += jnp.pad(weights.swapaxes(1, 2) @ d_block, behind)
    d_q.append((d_scores @ keys[:, :stop]).reshape(*shape[:3], -1))
  d_q = jnp.concatenate(d_q, 2).transpose(2, 0, 1, 3) * scale
  return d_q.astype(dtype), d_k.astype(dtype).transpose(1, 0, 2), d_v.astype(dtype).transpose(1, 0, 2)
