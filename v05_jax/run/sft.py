"""Supervised fine-tuning: how the shipped policy of the built-in tasks came to be.

    loss = - sum over response tokens of log p(token | those before it) / number of response tokens

Built-in tasks are taught by fresh draws of their noisy demonstrator at every step, rows of a file
by their answer; EOS follows either.
"""

from collections.abc import Callable
import functools
from functools import partial
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax

from v05_jax import config as configuration
from v05_jax import data, models, rng, tasks
from v05_jax.models import decoder, hf, lora
from v05_jax.observers.base import pair
from v05_jax.run import files, writer
from v05_jax.run.progress import Progress
from v05_jax.scale import sharding
from v05_jax.update import losses, policy_gradient
from v05_jax.update import optimizer as optimizers

BY_ROWS = PartitionSpec(sharding.ROWS)  # of a Batch: its rows over the devices


class Batch(NamedTuple):
  """Prompt and response side by side, right-padded. T tokens hold the longest prompt and
  response."""

  tokens: Any  # int32 [N, T]
  prompt: Any  # int32 [N]  tokens of the prompt
  length: Any  # int32 [N]  tokens of prompt and response, EOS included


def sft(config, workdir: str) -> dict[str, float]:
  """Trains `config.policy` on demonstrations of `config.data` for `config.sft.steps` steps.

  AdamW of `config.optimizer` with the learning rate and the warm-up of `config.sft`, cosine to
  zero. Writes config.json, metrics.jsonl (`sft/loss` every step; for the built-in tasks the exact
  success on the prompts of `config.eval` every `config.eval.period` steps), TensorBoard events, and
  the policy as a Hugging Face directory WORKDIR/hf. Returns the last values. It does not resume: a
  second start begins again.

  Raises ValueError for bad input before anything expensive.
  """
  configuration.validate(config)
  if files.is_remote(files.folder(workdir)):
    raise ValueError(
      f"--workdir={workdir}: found a remote folder, expected a local one: the model is written "
      "there"
    )
  if (files.folder(workdir) / "checkpoints").exists():
    raise ValueError(
      f"--workdir={workdir}: found the checkpoints of another run, expected a workdir of its own "
      "for --mode=sft"
    )
  mesh = sharding.make_mesh(config.mesh)
  shards = sharding.lanes(mesh)
  if config.sft.batch % shards:
    raise ValueError(
      f"config.sft.batch: found {config.sft.batch}, expected a multiple of {shards} devices"
    )
  policy = models.load(config.policy, config.seed)
  dataset = data.load(config.data, policy.tokenizer, config.sampler.max_prompt, seed=config.seed)
  batch = make_batches(config, dataset, policy.tokenizer)
  evaluate = make_evaluation(config, policy)
  params, opt_state, step = make_step(config, policy, mesh)
  place = sharding.shardings(mesh, BY_ROWS)
  total = config.sft.steps
  with writer.Writer(workdir, config) as log, Progress(total) as progress:
    log.write(0, 0, evaluate(params))
    for i in range(total):
      params, opt_state, loss = step(params, opt_state, jax.device_put(batch(i), place))
      measured = {"sft/loss": (loss, 1)}
      if i + 1 == total or (config.eval.period and (i + 1) % config.eval.period == 0):
        measured |= evaluate(params)
      log.write(i + 1, 0, measured)
      progress.update(i + 1, log.latest, ("sft/loss", "eval/exact"))
    log.flush()
    directory = epath.Path(workdir) / "hf"
    hf.save(directory, policy.config, jax.device_get(params), policy.tokenizer, stop=policy.stop)
    hf.keep_generation(directory, models.folder(config.policy.path))
    return dict(log.latest)


def make_batches(config, dataset: data.Dataset, tokenizer) -> Callable[[int], Batch]:
  """Builds `batch(step) -> Batch` [config.sft.batch, T], a function of the step alone.

  Raises ValueError naming the first row of a file whose answer with EOS exceeds
  `config.sampler.max_response`.
  """
  n, built_in = config.sft.batch, config.data.path == data.TASKS
  encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
  encode_one = functools.lru_cache(maxsize=1 << 16)(encode)  # short answers come up again and again
  if built_in:
    answers, longest = None, tasks.MAX_RESPONSE
  else:
    answers = encode([row["answer"] for row in dataset.rows])
    longest = 1 + max(map(len, answers))
  if longest > config.sampler.max_response:
    long = [i for i, ids in enumerate(answers or []) if len(ids) >= config.sampler.max_response]
    where = (
      f"{config.data.path}: row {long[0] + 1}: the answer"
      if long
      else "an answer of the built-in tasks"
    )
    raise ValueError(
      f"{where} is longer than config.sampler.max_response = {config.sampler.max_response} tokens, "
      f"EOS included; the longest has {longest}"
    )
  width = int(np.diff(dataset.start).max()) + longest

  def batch(step: int) -> Batch:
    prompts = dataset.at(step * n, n)
    if built_in:
      draw = np.random.default_rng([config.seed, rng.SFT, step])
      responses = [encode_one(tasks.demonstration(row, draw)) for row in prompts.rows]
    else:
      responses = [answers[i] for i in dataset.index(step * n, n)]
    tokens = np.zeros((n, width), np.int32)
    length = np.zeros(n, np.int32)
    for i, (start, ids) in enumerate(zip(prompts.length, responses, strict=True)):
      ids = [*prompts.tokens[i, :start], *ids, tokenizer.eos_token_id]
      tokens[i, : len(ids)], length[i] = ids, len(ids)
    return Batch(tokens, prompts.length, length)

  return batch


def make_evaluation(config, policy) -> Callable:
  """Builds `evaluate(params) -> pairs` of the exact success, overall and by family; none for file
  data."""
  if config.data.path != data.TASKS or config.eval.path != data.TASKS:
    return lambda params: {}
  source = data.eval_config(config)
  rows = data.load(source, policy.tokenizer, config.sampler.max_prompt, shuffle=False).rows
  exact = tasks.make_exact(policy.config, policy.tokenizer, config.sampler)
  families = np.array([row["family"] for row in rows])

  def evaluate(params):
    success = exact(params, rows)
    pairs = {f"eval/exact/{f}": pair(success, families == f) for f in sorted({*families})}
    return {name: p for name, p in {"eval/exact": pair(success), **pairs}.items() if p[1]}

  return evaluate


def make_step(config, policy, mesh):
  """(params, opt_state, step) on the mesh, where `step(params, opt_state, Batch)` overwrites both
  and returns (params, opt_state, loss)."""
  options = config.optimizer.copy_and_resolve_references()
  options.learning_rate, options.warmup_steps = config.sft.learning_rate, config.sft.warmup_steps
  options.schedule = "cosine"
  optimizer = optimizers.make(options, config.sft.steps)
  _, *like = policy_gradient.layout(policy.config, optimizer, mesh)
  at_params, at_state = jax.tree.map(lambda x: x.sharding, like)
  loss = partial(mean_loss, policy.config, config.loss.vocab_chunk)

  @partial(
    jax.jit, donate_argnums=(0, 1), out_shardings=(at_params, at_state, sharding.replicated(mesh))
  )
  def step(params, opt_state, batch):
    params, frozen = lora.split(params)
    value, gradient = jax.value_and_grad(lambda params: loss(lora.join(params, frozen), batch))(
      params
    )
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return lora.join(optax.apply_updates(params, updates), frozen), opt_state, value

  params = jax.device_put(policy.params, at_params)
  return params, jax.jit(optimizer.init, out_shardings=at_state)(lora.split(params)[0]), step


def mean_loss(model_config, vocab_chunk: int, params, batch: Batch):
  """Mean over the response tokens of -log p, nats."""
  inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
  place = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
  segments = (place < batch.length[:, None]).astype(jnp.int32)
  hidden = decoder.forward(model_config, params, inputs, place, segments)
  matrix = decoder.unembed(model_config, params)
  mask = (place >= batch.prompt[:, None] - 1) & (place < batch.length[:, None] - 1)
  logprob, _ = losses.token_logprobs(hidden, matrix, targets, 1.0, vocab_chunk, mask)
  return -jnp.sum(jnp.where(mask, logprob, 0.0)) / jnp.sum(mask)
