"""What `loss.surrogate` may be beside PPO's, and `loss.correction`: how a token's ratio enters the
loss.

Two ratios are told apart. That of the policy to the one that sampled, exp(logprob - old_logprob),
is the surrogate's; it leaves 1 as the updates of a step go on. That of the trainer's probability to
the sampler's, under the same parameters, is the correction's; it is 1 where both compute alike.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from v05_jax.update.losses import MAX_LOG_RATIO, Clip, reinforce, surrogate, varying_like


def gspo(logprob, old_logprob, advantage, clip: Clip, mask, response):
  """GSPO's surrogate, as a loss per token: that of `losses.surrogate` by the ratio of a response.

    s = exp(mean over the response's tokens of (logprob - old_logprob))
    loss = max(-A s, -A clip(s, 1 - clip.low, 1 + clip.high))

  Every token has its response's loss, and passes the gradient to its own log-prob alone: the form
  by tokens, whose sum over a response is the gradient of length s. The paper takes the mean over
  responses, `loss.aggregate` "rollout", and bounds of 3e-4 below and 4e-4 above. Source: arXiv
  2507.18071, eqs. 5 to 7 and 14.

  Args:
    logprob, old_logprob, advantage: [N, T]; the advantage is the same in all of a response.
    mask: bool [N, T]: tokens of responses.
    response: int32 [N, T] in 0..2T, the number of a token's response, or of its prompt, within its
      row.

  Returns (loss, clipped), [N, T], as `losses.surrogate`.
  """
  difference = jnp.where(mask, logprob - old_logprob, 0.0)
  stopped = jax.lax.stop_gradient(difference)

  def total(x):
    empty = varying_like(jnp.zeros((len(x), 2 * x.shape[1] + 1), x.dtype), x)
    sums = jax.vmap(lambda zeros, row, i: zeros.at[i].add(row)[i])
    return sums(empty, x, response)

  mean = total(stopped) / jnp.maximum(total(mask.astype(stopped.dtype)), 1.0)
  return surrogate(mean + difference - stopped, jnp.zeros_like(mean), advantage, clip, mask)


def cispo(logprob, old_logprob, advantage, clip: Clip, mask=None):
  """CISPO as a loss per token: REINFORCE weighted by the clipped ratio, so that no token loses its
  gradient.

    loss = -stop_gradient(clip(ratio, 1 - clip.low, 1 + clip.high)) A logprob

  Source: MiniMax-M1 (arXiv 2506.13585, eqs. 4 and 5), which has no lower bound: clip_low = 1.

  Returns (loss, clipped), shapes and mask as for `losses.surrogate`.
  """
  ratio = _ratio(logprob, old_logprob, mask)
  weight = jnp.clip(ratio, 1.0 - clip.low, 1.0 + clip.high)
  return weight * reinforce(logprob, advantage, mask), weight != ratio


def dis(logprob, old_logprob, advantage, clip: Clip, mask=None):
  """Direct double-sided importance sampling as a loss per token: no gradient outside of the bounds,
  whatever the advantage's sign.

    loss = -stop_gradient(f(ratio)) A logprob,  f(x) = x if 1 - clip.low < x < 1 + clip.high else 0

  Tokens left out still count in the weights' denominators. Source: SAO (arXiv 2607.07508, 3.1),
  with clip_low .3 and clip_high 5 for mathematics, .8 and 3 for code.

  Returns (loss, left out), shapes and mask as for `losses.surrogate`.
  """
  ratio = _ratio(logprob, old_logprob, mask)
  weight = icepop(ratio, 1.0 - clip.low, 1.0 + clip.high)
  return weight * reinforce(logprob, advantage, mask), weight != ratio


def tis(ratio, low: float, high: float):
  """Truncated importance sampling: min(ratio, high). Source: Yao et al. 2025, "Your efficient RL
  framework secretly brings you off-policy RL training" (with high = 2)."""
  return jnp.minimum(ratio, high)


def icepop(ratio, low: float, high: float):
  """IcePop: the ratio where low < ratio < high, else 0. Source: Ring-1T (arXiv 2510.18855).
  Others implement it with .5 and 5 (rllm), prime-rl with .2 and 5."""
  return jnp.where((ratio > low) & (ratio < high), ratio, 0.0)


def _ratio(logprob, old_logprob, mask):
  difference = logprob - old_logprob
  if mask is not None:
    difference = jnp.where(mask, difference, 0.0)
  return jnp.exp(jnp.clip(jax.lax.stop_gradient(difference), -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _by_token(loss: Callable) -> Callable:
  return lambda new, old, advantage, clip, mask, response: loss(new, old, advantage, clip, mask)


def _reinforce(logprob, old_logprob, advantage, clip, mask):
  return reinforce(logprob, advantage, mask), jnp.zeros_like(mask)


# `loss.surrogate` -> (logprob, old_logprob, advantage, Clip, mask, response) -> (loss, bool: a
# bound is active), all [N, T].
SURROGATES = {
  "clip": _by_token(surrogate),
  "reinforce": _by_token(_reinforce),
  "gspo": gspo,
  "cispo": _by_token(cispo),
  "dis": _by_token(dis),
}
DUAL = ("clip", "gspo")  # those of SURROGATES that take the dual bound, `loss.clip_dual`
# `loss.correction` -> (ratio, low, high) -> weight
CORRECTIONS = {"tis": tis, "icepop": icepop}


def correction(config, trainer, sampler, mask):
  """(weight of each token's loss, 1 where not `mask`; bool: it is not the ratio itself).

  trainer, sampler: log-probs [...] of the parameters that sampled, by either. config:
  `config.loss`, whose `correction` is a name of CORRECTIONS.
  """
  ratio = _ratio(trainer, sampler, mask)
  weight = CORRECTIONS[config.correction](ratio, config.correction_low, config.correction_high)
  return jnp.where(mask, weight, 1.0), (weight != ratio) & mask
