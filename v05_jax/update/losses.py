"""Log-probs over a large vocabulary, clipped surrogate, KL, and how the tokens of a batch are
weighted.

Everything here is per token; the loss of a batch is `sum(weight * loss)` with the weights of
`rollout_weights`, so it is the same number however the tokens are split over micro-batches and
devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

AGGREGATES = ("token", "rollout", "prompt", "constant")

# exp of a log-ratio stays finite in float32, and a token this far off policy gives no gradient (as
# verl).
MAX_LOG_RATIO = 20.0
MASKED = -1e30  # logit of an id that is left out; finite, so that 0 * logit is 0


def varying_like(x, like):
  """`x`, marked inside `shard_map` as varying over the mesh axes that `like` varies over.

  Without this the gradient of a replicated `x` used inside a scan is summed over devices once per
  iteration; with it, once. (`zeros_like` carries the mark; adding zeros is folded away by XLA.)
  """
  return x + jnp.zeros_like(like, shape=(), dtype=x.dtype)


def _chunk_logprobs(hidden, unembed, targets, temperature, usable):
  """hidden [C, D], targets [C] -> (logprob [C], entropy [C]) in float32; logits [C, V] live only
  here."""
  logits = jnp.einsum("cd,vd->cv", hidden, unembed, preferred_element_type=jnp.float32)
  logits = logits.astype(jnp.float32) / temperature
  if usable is not None:
    logits = jnp.where(usable, logits, MASKED)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  # A comparison instead of take_along_axis, whose gradient is a scatter (very slow in XLA on CPU).
  picked = jnp.arange(logits.shape[-1]) == targets[:, None]
  logprob = jnp.sum(jnp.where(picked, logits, 0.0), axis=-1) - log_z
  entropy = log_z - jnp.sum(jnp.exp(logits - log_z[:, None]) * logits, axis=-1)
  return logprob, entropy


@jax.custom_vjp
def reorder(x, order, inverse):
  """x[order] for a permutation: its gradient is read in the inverse order instead of scattered."""
  return x[order]


reorder.defvjp(
  lambda x, order, inverse: (x[order], (order, inverse)),
  lambda orders, g: (g[orders[1]], None, None),
)


def counted_logprobs(hidden, unembed, targets, temperature, chunk, mask, usable=None):
  """`token_logprobs` that computes logits of the tokens of `mask` only: log-prob and entropy
  elsewhere are 0.

  The tokens are sorted, those of `mask` first, and chunks without any are passed over by a branch.
  That pays where a branch is cheap, which is on a CPU; under `jax.vmap` both sides of it are
  computed.
  """
  order = jnp.argsort(~mask.reshape(-1), stable=True)
  inverse = jnp.argsort(order)
  flat = lambda x: x.reshape(mask.size, *x.shape[mask.ndim :])
  chunk = min(chunk, mask.size)
  padding = -mask.size % chunk
  cut = lambda x: jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(
    -1, chunk, *x.shape[1:]
  )
  counted = flat(mask)[order]
  hidden = jnp.where(counted[:, None], reorder(flat(hidden), order, inverse), 0)
  unembed = varying_like(unembed.astype(hidden.dtype), hidden)

  def step(x):
    hidden, targets, some = x
    zeros = jnp.zeros_like(hidden[:, 0], jnp.float32)
    compute = jax.checkpoint(
      lambda h: _chunk_logprobs(h, unembed, targets, temperature, usable), prevent_cse=False
    )
    return jax.lax.cond(some, compute, lambda h: (zeros, zeros), hidden)

  out = jax.lax.map(step, (cut(hidden), cut(flat(targets)[order]), cut(counted).any(1)))
  back = lambda x: reorder(x.reshape(-1)[: mask.size], inverse, order).reshape(mask.shape)
  return tuple(jnp.where(mask, back(x), 0.0) for x in out)


def token_logprobs(hidden, unembed, targets, temperature, chunk, mask=None, usable=None):
  """Log-prob of each target and entropy under log-softmax(hidden @ unembed^T / temperature).

  The tokens are flattened and handled `chunk` at a time, recomputed in the backward pass, so that
  logits of more than `chunk` tokens never exist at once. Works inside `shard_map` with
  `check_vma=True`.

  Args:
    hidden: [N, T, D] after the final norm, in the compute dtype.
    unembed: [V, D]; cast to the dtype of `hidden`, products accumulate in float32.
    targets: int32 [N, T].
    temperature: of the softmax; the sampler's.
    chunk: tokens whose logits exist at once (static).
    mask: bool [N, T] or None. Where False the hidden state is replaced by zeros, so that a NaN in
      padding reaches neither the values nor the gradient.
    usable: bool [V] or None = all. Ids where it is False are left out of the softmax: they have no
      probability, and their rows of `unembed` no gradient.

  Returns:
    (logprob [N, T], entropy [N, T]), float32, in nats.
  """
  shape = targets.shape
  tokens = targets.size
  chunk = min(chunk, tokens)
  chunks = -(-tokens // chunk)
  if mask is not None:
    hidden = jnp.where(mask[..., None], hidden, 0)
  hidden = hidden.reshape(tokens, hidden.shape[-1])
  unembed = varying_like(unembed.astype(hidden.dtype), hidden)
  targets = targets.reshape(tokens)

  if chunks == 1:
    out = jax.checkpoint(_chunk_logprobs)(hidden, unembed, targets, temperature, usable)
    return tuple(x.reshape(shape) for x in out)

  padding = chunks * chunk - tokens
  hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(chunks, chunk, -1)
  targets = jnp.pad(targets, (0, padding)).reshape(chunks, chunk)
  # Inside a scan nothing can undo the rematerialisation, so CSE need not be prevented.
  step = jax.checkpoint(
    lambda x: _chunk_logprobs(x[0], unembed, x[1], temperature, usable), prevent_cse=False
  )
  out = jax.lax.map(step, (hidden, targets))
  return tuple(x.reshape(-1)[:tokens].reshape(shape) for x in out)


def rollout_weights(aggregate, length, mask, max_response):
  """Weight of each *token* of rollout (p, k), so that loss = sum over tokens of weight * token
  loss.

  With n rollouts that count (`mask` and length > 0), and n_prompts prompts that have one:

    "token"     1 / sum of all lengths            every token weighs the same (DAPO)
    "rollout"   1 / (n length)                    mean over rollouts of the rollout's token mean
                (GRPO)
    "prompt"    1 / (n_prompts sum_k length)      mean over prompts of the prompt's token mean
    "constant"  1 / (n max_response)              token sum, no length in it (Dr.GRPO)

  With equal k and equal lengths the first three coincide.

  Args:
    aggregate: one of AGGREGATES.
    length: int [P, K] response tokens, on host as all that is given.
    mask: bool [P, K] the rollout counts. Give the whole of what one optimizer update sees: the
      denominators then are global over its micro-batches and devices.
    max_response: tokens; used by "constant" only.

  Returns:
    float32 [P, K], 0 where the rollout does not count.

  Raises:
    ValueError: unknown `aggregate`.
  """
  if aggregate not in AGGREGATES:
    raise ValueError(
      f"loss.aggregate: found {aggregate!r}, expected one of {', '.join(AGGREGATES)}"
    )
  length = np.asarray(length, np.float32)
  mask = np.asarray(mask, bool) & (length > 0)
  length = np.where(mask, length, np.float32(0))
  per_prompt = length.sum(1, keepdims=True)
  rollouts = np.float32(mask.sum())
  denominator = {
    "token": length.sum(),
    "rollout": rollouts * length,
    "prompt": np.float32((per_prompt > 0).sum()) * per_prompt,
    "constant": rollouts * np.float32(max_response),
  }[aggregate]
  return np.where(mask, 1 / np.where(mask, denominator, np.float32(1)), np.float32(0))


class Clip(NamedTuple):
  """Bounds of `surrogate` on the ratio of the policies."""

  low: float  # >= 0: the ratio counts as 1 - low at least
  high: float  # >= 0: and as 1 + high at most
  dual: float = 0.0  # Python float > 1: bound on the loss where the advantage is < 0; 0 = off


def surrogate(logprob, old_logprob, advantage, clip: Clip, mask=None):
  """PPO's clipped surrogate, as a loss per token.

    ratio = exp(logprob - old_logprob)
    loss  = max(-A ratio, -A clip(ratio, 1 - clip.low, 1 + clip.high))
    loss  = min(loss, -A clip.dual)  where A < 0, if clip.dual > 0

  Sources: PPO (arXiv 1707.06347); separate low and high bounds from DAPO (arXiv 2503.14476, 3.1);
  dual clip from arXiv 1912.09729, eq. 5.

  Args:
    logprob, old_logprob, advantage: [...] of the same shape.
    mask: bool [...] or None. Where False the loss is 0 and so is the gradient, whatever the inputs
      are.

  Returns:
    (loss [...], clipped bool [...]: a bound is active, so the token gives no gradient).

  Raises:
    ValueError: clip.dual in (0, 1], which would clip on-policy tokens, or negative.
  """
  if clip.dual and clip.dual <= 1:
    raise ValueError(f"loss.clip_dual: found {clip.dual}, expected 0 (off) or a number > 1")
  if mask is not None:
    logprob, old_logprob, advantage = (
      jnp.where(mask, x, 0.0) for x in (logprob, old_logprob, advantage)
    )
  ratio = jnp.exp(jnp.clip(logprob - old_logprob, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  plain = -advantage * ratio
  bounded = -advantage * jnp.clip(ratio, 1.0 - clip.low, 1.0 + clip.high)
  loss = jnp.maximum(plain, bounded)
  clipped = bounded > plain
  if clip.dual:
    ceiling = -advantage * clip.dual
    too_large = (advantage < 0) & (loss > ceiling)
    loss = jnp.where(too_large, ceiling, loss)
    clipped |= too_large
  return loss, clipped


def reinforce(logprob, advantage, mask=None):
  """REINFORCE as a loss per token: -A logprob (Williams 1992, doi 10.1007/BF00992696).

  Its gradient is that of `surrogate` as long as the parameters are those that sampled. With A = 1
  it is the negative log-likelihood: supervised fine-tuning. `mask` as in `surrogate`.
  """
  if mask is not None:
    logprob, advantage = (jnp.where(mask, x, 0.0) for x in (logprob, advantage))
  return -advantage * logprob


def kl(logprob, reference_logprob, mask=None):
  """Schulman's k3 estimator of KL(policy || reference) per token: exp(d) - d - 1, d = reference -
  logprob.

  Non-negative, and unbiased for tokens sampled from the policy. Its gradient is that of another
  KL, of the reference from the policy, as wherever k3 is added to the loss (arXiv 2510.01555).
  `mask` as in `surrogate`.
  """
  difference = reference_logprob - logprob
  if mask is not None:
    difference = jnp.where(mask, reference_logprob, 0.0) - jnp.where(mask, logprob, 0.0)
  difference = jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  return jnp.exp(difference) - difference - 1.0
