"""`losses.counted_logprobs` for a large vocabulary where XLA compiles for a CPU.

Logits exist for a block of the vocabulary and a chunk of tokens at a time, forward and backward, so
that they stay in cache, and softmax's denominator is added up as in FlashAttention (arXiv
2205.14135). All tokens meet a block before the next one comes: its matrix is read once, and its
gradient is written once. Logits are [vocabulary, tokens] here, since sums over the leading axis are
vectorised and no product then wants a large operand transposed.
"""

from functools import partial

import jax
import jax.numpy as jnp

from v05_jax.update.losses import MASKED, reorder, varying_like

BLOCK = 1024  # ids whose logits exist at once
CHUNK = 256  # and tokens: 1 MB of float32

_product = partial(jnp.matmul, preferred_element_type=jnp.float32)


def logprobs(hidden, unembed, targets, temperature, mask, usable=None):
  """Log-prob of each target and entropy under log-softmax(hidden @ unembed^T / temperature), where
  `mask` is True, else 0; chunks of tokens without any are passed over.

  Arguments and results as of `losses.token_logprobs`: hidden [N, T, D], unembed [V, D], targets and
  mask [N, T], usable bool [V] or None -> two float32 [N, T], in nats.
  """
  vocab, width = unembed.shape
  order = jnp.argsort(~mask.reshape(-1), stable=True)  # the tokens that count come first
  inverse = jnp.argsort(order)
  cut = lambda x: _fill(reorder(x, order, inverse), CHUNK)
  hidden = cut(jnp.where(mask[..., None], hidden, 0).reshape(-1, width))
  known = jnp.ones(vocab, bool) if usable is None else jnp.asarray(usable)
  matrix = _fill(varying_like(unembed.astype(hidden.dtype), hidden), BLOCK)
  used = (jnp.sum(mask, dtype=jnp.int32) + CHUNK - 1) // CHUNK
  given = hidden, matrix, cut(targets.reshape(-1)), _fill(known, BLOCK)[..., None], used
  back = lambda x: reorder(x.reshape(-1)[: mask.size], inverse, order).reshape(mask.shape)
  return tuple(jnp.where(mask, back(x), 0.0) for x in _logprobs(temperature, *given))


def _fill(x, size):
  """x [n, ...] in parts [m, size, ...], the last one filled with zeros."""
  x = jnp.pad(x, ((0, -x.shape[0] % size), *((0, 0),) * (x.ndim - 1)))
  return x.reshape(-1, size, *x.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(temperature, hidden, matrix, targets, known, used):
  """hidden [n, C, D], matrix [m, B, D], targets int32 [n, C], known bool [m, B, 1], used int32 [],
  the chunks that count -> (log-prob, entropy), float32 [n, C]; 0 in the chunks behind."""
  return _forward(temperature, hidden, matrix, targets, known, used)[0]


def _logits(temperature, hidden, block, known):
  """hidden [C, D], block [B, D], known [B, 1] -> [B, C]."""
  return jnp.where(known, _product(block, hidden.T) / temperature, MASKED)


def _is_target(number, targets):
  """Of block `number` and targets [C], bool [B, C]."""
  return number * BLOCK + jnp.arange(BLOCK)[:, None] == targets


def _forward(temperature, hidden, matrix, targets, known, used):
  count = hidden.shape[:2]

  def block(carry, x):
    number, block, known = x

    def chunk(i, carry):
      most, total, dot, picked = (x[i] for x in carry)
      logits = _logits(temperature, hidden[i], block, known)
      highest = jnp.maximum(most, logits.max(0))
      weights, scale = jnp.exp(logits - highest), jnp.exp(most - highest)
      total = total * scale + weights.sum(0)
      dot = dot * scale + (weights * logits).sum(0)
      picked += jnp.where(_is_target(number, targets[i]), logits, 0.0).sum(0)
      put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0)
      return tuple(map(put, carry, (highest, total, dot, picked)))

    return jax.lax.fori_loop(0, used, chunk, carry), None

  zero = varying_like(varying_like(jnp.zeros(count, jnp.float32), hidden), matrix)
  numbers = jnp.arange(len(matrix))
  start = zero + MASKED, zero, zero, zero
  (most, total, dot, picked), _ = jax.lax.scan(block, start, (numbers, matrix, known))
  here = jnp.arange(count[0])[:, None] < used
  total = jnp.where(here, total, 1.0)
  log_z = jnp.where(here, most + jnp.log(total), 0.0)
  out = picked - log_z, log_z - dot / total
  return out, (hidden, matrix, targets, known, used, log_z, out[1])


def _backward(temperature, saved, gradients):
  """With p = softmax(logits), the gradient of the log-prob by the logits is [target] - p and that
  of the entropy -p (log p + entropy)."""
  hidden, matrix, targets, known, used, log_z, entropy = saved
  of_logprob, of_entropy = gradients

  def block(d_hidden, x):
    number, block, known = x

    def chunk(i, carry):
      d_hidden, d_block = carry
      log_p = _logits(temperature, hidden[i], block, known) - log_z[i]
      p = jnp.exp(log_p)
      slope = of_logprob[i] * (_is_target(number, targets[i]) - p)
      slope -= of_entropy[i] * p * (log_p + entropy[i])
      slope = (slope / temperature).astype(hidden.dtype)
      more = d_hidden[i] + _product(slope.T, block)
      d_hidden = jax.lax.dynamic_update_index_in_dim(d_hidden, more, i, 0)
      return d_hidden, d_block + _product(slope, hidden[i])

    d_hidden, d_block = jax.lax.fori_loop(0, used, chunk, (d_hidden, zero))
    return d_hidden, d_block.astype(matrix.dtype)

  like = lambda x: varying_like(varying_like(x, hidden), matrix)
  zero = like(jnp.zeros(matrix.shape[1:], jnp.float32))
  start = like(jnp.zeros(hidden.shape, jnp.float32))
  numbers = jnp.arange(len(matrix))
  d_hidden, d_matrix = jax.lax.scan(block, start, (numbers, matrix, known))
  return d_hidden.astype(hidden.dtype), d_matrix, None, None, None


_logprobs.defvjp(_forward, _backward)
