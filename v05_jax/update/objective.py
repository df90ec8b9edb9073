"""The loss of one micro-batch: log-probs of its tokens by the model, and the sum over them of

    weight * (surrogate + kl_coef * kl - entropy_coef * entropy)

with the terms of losses.py and surrogates.py, inside the program of policy_gradient.py.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from v05_jax import structs
from v05_jax.models import decoder, flash
from v05_jax.scale import sharding
from v05_jax.update import blocks, losses, surrogates

CPU_CHUNK = 256  # tokens whose logits exist at once on a CPU, at most: they stay in cache


def kernel(model_config, mesh) -> Callable | None:
  """The attention kernel of `model_config.attention` inside `sharding.mapped`; None = plain."""
  if model_config.attention == "plain":
    return None
  heads = "tensor" if model_config.num_kv_heads % mesh.shape["tensor"] == 0 else None
  rows, each = PartitionSpec("fsdp"), PartitionSpec("fsdp", None, heads)
  split = lambda form: sharding.split(partial(flash.attend, form), (each, each, each, rows), each)
  whole, local = split(model_config.attention), model_config.local
  return flash.choose(whole, split((model_config.attention, local.window))) if local else whole


def make_logprobs(model_config, loss_config, temperature: float, mesh) -> Callable:
  """-> logprobs(params, Batch [B, T]) -> (log-prob of each target, entropy), float32 [B, T], of one
  micro-batch inside `sharding.mapped`; both are meaningless where its weight is 0."""
  attend, groups = kernel(model_config, mesh), mesh.shape["fsdp"]
  constrain, chunk = jax.lax.with_sharding_constraint, loss_config.vocab_chunk
  usable = decoder.usable(model_config)

  def hidden_states(params, batch):
    given = model_config, params, batch.tokens, batch.position
    if attend:  # config.loss.share_prompts is off: a rollout is one segment, its `prompt`
      return decoder.forward_kernel(attend, *given, batch.prompt)
    return decoder.forward(*given, batch.segment, batch.prompt)

  def logprobs(params, batch: structs.Batch):
    mask = batch.weight > 0
    # The head is gathered along `fsdp`, like a layer's matrices in its turn: left alone, the
    # compiler sums whole chunks of logits instead. The embedding is gathered whole, as XLA aborts
    # on the lookup in a split table where data, fsdp and tensor are all used.
    matrix = constrain(decoder.unembed(model_config, params), PartitionSpec("tensor"))
    params = params | {"embedding": constrain(params["embedding"], PartitionSpec())}
    hidden = hidden_states(params, batch)
    if model_config.backend == "cpu" and groups == 1:
      if model_config.vocab_size > blocks.BLOCK:
        return blocks.logprobs(hidden, matrix, batch.target, temperature, mask, usable)
      fewer = min(chunk, CPU_CHUNK)
      return losses.counted_logprobs(hidden, matrix, batch.target, temperature, fewer, mask, usable)
    # A chunk of tokens from several devices along `fsdp` would make each of them compute all of its
    # log-probs, so each group of rows, one device's, is cut into chunks of its own.
    grouped = jax.tree.map(
      lambda x: constrain(x.reshape(groups, -1, *x.shape[1:]), PartitionSpec("fsdp")),
      (hidden, batch.target, mask),
    )
    chunked = lambda hidden, target, mask: losses.token_logprobs(
      hidden, matrix, target, temperature, chunk, mask, usable
    )
    return jax.tree.map(lambda x: x.reshape(mask.shape), jax.vmap(chunked)(*grouped))

  return logprobs


def micro_loss(config, logprobs, frozen_logprobs, params, batch: structs.Batch, reference):
  """-> (loss, sums of the token metrics) of one micro-batch `[B, T]`. logprobs: of `make_logprobs`
  for the model; frozen_logprobs: for the same model without its adapters."""
  mask = batch.weight > 0
  logprob, entropy = logprobs(params, batch)
  clip = losses.Clip(config.clip_low, config.clip_high, config.clip_dual)
  given = logprob, batch.old_logprob, batch.advantage, clip, mask, batch.segment
  loss, clipped = surrogates.SURROGATES[config.surrogate](*given)
  tokens = {
    "loss/entropy": entropy,
    "loss/clip_fraction": clipped,
    "loss/logprob_gap": jnp.abs(logprob - batch.old_logprob),
  }
  if config.kl_coef:
    kl = losses.kl(logprob, frozen_logprobs(reference, batch)[0], mask)
    loss += config.kl_coef * kl
    tokens["loss/kl"] = kl
  if config.entropy_coef:
    loss -= config.entropy_coef * entropy
  # Selected, not multiplied: 0 * NaN is NaN.
  total = lambda x: jnp.sum(jnp.where(mask, x, 0.0), dtype=jnp.float32)
  return total(batch.weight * loss), {"tokens": total(1.0), **jax.tree.map(total, tokens)}
