"""The exact policy gradient, where success is a probability that can be differentiated, and how
near an update is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import tasks
from v05_jax.models import decoder
from v05_jax.models import tokenizer as tokenizers
from v05_jax.structs import Draw, TrainState
from v05_jax.update import losses, packing

PROMPTS = 512  # that the exact gradient is the mean over
ROWS = 64  # at once


def make(run):
  """Builds `exact(params) -> gradient` of the mean success probability of the data's first PROMPTS
  exact prompts."""
  rows = [row for row in run.prompts.rows if row["family"] in tasks.EXACT][:PROMPTS]
  rows = rows[: len(rows) // ROWS * ROWS]
  tokenizer, width = (
    run.policy.tokenizer,
    run.config.sampler.max_prompt + run.config.sampler.max_response,
  )
  tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width - 1), bool)
  for i, row in enumerate(rows):
    start = tokenizers.encode_prompt(tokenizer, row["prompt"], False)
    answer = tokenizer(tasks.canonical(row), add_special_tokens=False)["input_ids"]
    ids = [*start, *answer, tokenizer.eos_token_id]
    tokens[i, : len(ids)], mask[i, len(start) - 1 : len(ids) - 1] = ids, True
  parts = tokens.reshape(-1, ROWS, width), mask.reshape(-1, ROWS, width - 1)
  return functools.partial(
    mean_gradient, run.policy.config, float(run.config.sampler.temperature), *parts
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def mean_gradient(config, temperature, tokens, mask, params):
  """Gradient of the mean of exp(log-prob of the one right response); tokens [n, ROWS, T], mask [n,
  ROWS, T - 1]."""

  def success(params, tokens, mask):
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    place = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    inside = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0  # prompt and response, no padding
    hidden = decoder.forward(config, params, inputs, place, inside.astype(jnp.int32))
    matrix = decoder.unembed(config, params)
    logprob, _ = losses.token_logprobs(hidden, matrix, targets, temperature, targets.size, mask)
    return jnp.mean(jnp.exp(jnp.sum(jnp.where(mask, logprob, 0.0), axis=1)))

  add = lambda total, part: (jax.tree.map(jnp.add, total, jax.grad(success)(params, *part)), None)
  total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (tokens, mask))
  return jax.tree.map(lambda x: x / len(tokens), total)


def cosine(run, exact, state: TrainState, draw: Draw) -> float:
  """Cosine of a step's direction, over its prompts of exact success, with the exact gradient."""
  config, rolls = run.config, draw.rolls
  advantage, _ = run.advantages(state.estimator, draw.groups, draw.value)
  of_exact = np.zeros(len(draw.prompts.mask), bool)
  of_exact[: len(draw.prompts.rows)] = [row["family"] in tasks.EXACT for row in draw.prompts.rows]
  batches = packing.minibatches(
    draw.prompts,
    rolls,
    np.where(of_exact[:, None], np.asarray(advantage), 0.0),
    config.loss,
    run.mesh,
    importance=draw.importance,
  )
  found = [run.update.loss_and_grad(state.params, batch, used)[1] for batch, used in batches]
  own = jax.tree.map(lambda *x: -sum(x), *found)
  true = exact(state.params)
  dot = lambda a, b: float(
    sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
  )
  return dot(own, true) / max((dot(own, own) * dot(true, true)) ** 0.5, 1e-30)
