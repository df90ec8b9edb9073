"""Which programs a config runs, and what it keeps on its devices, from shapes alone."""

from typing import Any

import jax
import numpy as np

from v05_jax import plug
from v05_jax.budgets import base as budgets
from v05_jax.sampling import sampler
from v05_jax.scale import sharding
from v05_jax.scale.programs import ALWAYS, Program, others
from v05_jax.shapes import shapes
from v05_jax.tasks import exact
from v05_jax.update import optimizer as optimizers
from v05_jax.update import policy_gradient


def plan(config, model, mesh, platform: str) -> tuple[dict[str, Any], list[Program]]:
  """-> (`programs.PARTS` as trees of shapes with shardings, the programs)."""
  optimizer = optimizers.make(config.optimizer, max(config.num_steps, 1))
  _, params, state = policy_gradient.layout(model, optimizer, mesh)
  # On a CPU the sampler's buffers are kept from step to step, as fresh memory is slow there.
  kept = ("store", "cache") if platform == "cpu" else ()
  # What lives beside the programs outside of sampling and the update.
  beside = others("params", "weights", *(() if kept else ("store", "cache")))
  made = plug.beside("prior", config.prior.kind, "programs")
  prior, of_prior = made(config, model, mesh, params) if made else ((), [])
  of_prior = [program._replace(beside=(*program.beside, *kept)) for program in of_prior]
  buffers, of_sampling = sampling_programs(config, model, mesh, params, beside)
  # With adapters the frozen parameters are the reference: there is no copy.
  copied = bool(config.loss.kl_coef) and not model.adapters
  parts = {"params": params, "optimizer": state, **buffers, "prior": prior}
  parts["reference"] = params if copied else ()
  programs = [*of_prior, *of_sampling, *update_programs(config, model, mesh, kept, beside)]
  if config.eval.period and config.eval.path == "tasks":
    programs.append(evaluation_program(config, model, params, beside))
  return parts, programs


def sampling_programs(
  config, model, mesh, params, beside: tuple[str, ...]
) -> tuple[dict[str, Any], list[Program]]:
  """-> (the sampler's weights, store and cache, its programs); `beside`: what lives beside the one
  that makes the weights."""
  options = config.sampler
  build, given = sampler.make(model, options, (0,), mesh), sampler.arguments(model, options, mesh)
  largest = max(
    sampler.shapes(options, sharding.lanes(mesh)), key=lambda size: size.slots * size.columns
  )
  weights, store, cache = given.weights(params), given.store(), given.cache(largest)
  key, temperature = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), np.float32)
  columns = f"{largest.columns} columns in each of {options.slots} slots"
  return {"weights": weights, "store": store, "cache": cache}, [
    Program(
      "weights",
      lambda: build.weights.lower(params),
      beside,
      1,
      "decode weights from the parameters",
      "a larger mesh.tensor",
    ),
    Program(
      "prefill",
      lambda: build.prefill.lower(params, store, *given.prompts()),
      others("params", "store"),
      1,
      f"{options.prefill} prompts of {options.max_prompt} tokens",
      "sampler.prefill, sampler.open_prompts, sampler.max_prompt",
    ),
    Program(
      "decode",
      lambda: build.decode.lower(weights, cache, store, given.rows(largest), key, temperature),
      ALWAYS,
      options.chunk,
      f"{options.chunk} tokens in every slot, {columns}",
      "sampler.slots, sampler.open_prompts, a larger mesh.tensor",
    ),
  ]


def update_programs(
  config, model, mesh, kept: tuple[str, ...], beside: tuple[str, ...]
) -> list[Program]:
  """The update, and the pass before it where it computes the old log-probs again; `kept` of the
  sampler's buffers live beside the first, `beside` beside the second."""
  options, loss = config.sampler, config.loss
  update = policy_gradient.make(
    model,
    loss,
    config.optimizer,
    mesh,
    temperature=options.temperature,
    total_updates=optimizers.total_updates(config),
  )
  sizes = shapes(config, budgets.make(plug.Setting(config)).limits)
  micros, rows, length = sizes.batch(config.loss, mesh)
  longest = options.max_prompt + options.max_response - 1
  # Micro-batches of a minibatch with the average number of rollouts, all as long as can be.
  used = -(-config.rollouts_per_step // (loss.minibatches * (length // longest) * rows))
  programs = [
    Program(
      "update",
      lambda: update.lower((micros, rows, length)),
      ("prior", *kept),
      used,
      f"{used} micro-batches of {rows} rows of {length} tokens",
      "loss.micro_rows, policy.remat=full, policy.attention=flash, loss.vocab_chunk, a larger "
      "mesh.fsdp",
    )
  ]
  if loss.old_logprob == "recompute":
    programs.append(
      Program(
        "recompute",
        lambda: update.lower((micros, rows, length), recompute=True),
        beside,
        used,
        f"log-probs of {used} micro-batches",
        "loss.micro_rows, policy.attention=flash, loss.vocab_chunk",
      )
    )
  return programs


def evaluation_program(config, model, params, beside: tuple[str, ...]) -> Program:
  """The exact success of the built-in tasks."""
  options, count = config.sampler, exact.PROMPTS_PER_CALL
  score = exact.make_score(model, config.eval.temperature)
  tokens = jax.ShapeDtypeStruct((count, options.max_prompt + options.max_response), np.int32)
  length = jax.ShapeDtypeStruct((count,), np.int32)
  return Program(
    "evaluate",
    lambda: score.lower(params, tokens, length),
    beside,
    1,
    f"{count} prompts with their answers",
    "sampler.max_prompt, sampler.max_response",
  )
