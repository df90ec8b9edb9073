"""One token a row from logits: truncation to the most probable ones, and the draw."""

import jax
from jax import lax
import jax.numpy as jnp


def truncate(logprob: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Log-probs `[S, V]` outside the top-k, then outside the nucleus of mass `top_p`, become -inf;
  renormalised.

  The nucleus is the smallest set of most probable tokens whose mass reaches `top_p` (arXiv
  1904.09751); ties at its edge stay in. Its threshold is found by bisection on the float's bits:
  exact, without a sort.
  """
  if top_k:
    kth = lax.top_k(logprob, min(top_k, logprob.shape[-1]))[0][:, -1:]
    logprob = jax.nn.log_softmax(jnp.where(logprob >= kth, logprob, -jnp.inf))
  if top_p < 1.0:
    bits = lax.bitcast_convert_type(jnp.exp(logprob), jnp.int32)  # ordered like the probabilities
    mass = lambda low: jnp.sum(jnp.where(bits >= low, jnp.exp(logprob), 0.0), -1, keepdims=True)

    def halve(_, bounds):
      low, high = bounds  # mass(low) >= top_p > mass(high)
      middle = low + (high - low) // 2
      enough = mass(middle) >= top_p
      return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros_like(bits[:, :1])
    low, _ = lax.fori_loop(
      0, 31, halve, (low, low + lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32))
    )
    logprob = jax.nn.log_softmax(jnp.where(bits >= low, logprob, -jnp.inf))
  return logprob


def draw(key: jax.Array, logprob: jax.Array, block: int = 128) -> jax.Array:
  """One token a row from log-probs `[S, V]` by inverting the distribution function; one uniform a
  row.

  The sum runs over blocks of the vocabulary first, then inside the block that is hit, so that a
  large vocabulary costs one pass and no random number a token.
  """
  probability = jnp.exp(logprob)
  size, vocab = probability.shape
  padded = jnp.pad(probability, ((0, 0), (0, -vocab % block))).reshape(size, -1, block)
  cumulative = jnp.cumsum(padded.sum(-1), -1)  # [S, blocks]
  uniform = jax.vmap(jax.random.uniform)(key)
  target = uniform * cumulative[:, -1]
  hit = jnp.sum(cumulative <= target[:, None], -1).clip(0, padded.shape[1] - 1)
  before = jnp.where(hit > 0, _pick(cumulative, jnp.maximum(hit - 1, 0)), 0.0)
  inside = jnp.take_along_axis(padded, hit[:, None, None], axis=1)[:, 0]
  offset = jnp.sum(jnp.cumsum(inside, -1) <= (target - before)[:, None], -1)
  token = jnp.minimum(hit * block + offset, vocab - 1).astype(jnp.int32)
  # Rounding of the sums may point past the last token of positive probability: take the mode
  # instead.
  return jnp.where(
    _pick(probability, token) > 0, token, jnp.argmax(probability, -1).astype(jnp.int32)
  )


def _pick(table, index):
  return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]


def sample_token(key, logits, temperature, top_k: int, top_p: float):
  """Draws from softmax(logits / temperature) -> (token, log-prob, log-prob after truncation), each
  `[S]`.

  The trainer's log-probs are untruncated at the same temperature, so `logprob` is what it compares
  with.
  """
  logprob = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  sampled = truncate(logprob, top_k, top_p)
  token = draw(key, sampled)
  return token, _pick(logprob, token), _pick(sampled, token)
