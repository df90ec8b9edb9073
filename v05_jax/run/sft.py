"""Supervised fine-tuning: a warm start before reinforcement learning.

    loss = - sum over response tokens of log p(token | those before it) / number of response tokens

It is the update of reinforcement learning, packed rows, micro-batches and mesh included, with the
loss `reinforce` and the advantage 1. Built-in tasks are taught by fresh draws of their noisy
demonstrator at every step, rows of a file by their response, or else their answer; EOS follows.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from etils import epath
from flax import struct
import jax
import numpy as np

from v05_jax import config as configuration
from v05_jax import data, models, problems, rng, row_files, sinks, tasks
from v05_jax.models import encoding, hf
from v05_jax.observers.base import pair
from v05_jax.run import checkpoint, files, lock, supervised
from v05_jax.scale import distributed, sharding
from v05_jax.structs import Prompts, Rollouts
from v05_jax.update import packing, policy_gradient

SHOWN = ("sft/loss", "sft/heldout", "eval/exact")  # on the terminal
RESPONSE = "response"  # field of a row that is learnt instead of the answer, where rows have it


@struct.dataclass
class State:
  """Everything that the training needs to continue."""

  params: Any
  opt_state: Any
  skipped: Any  # int32 []  updates skipped in a row for a non-finite loss or gradient


class Examples(NamedTuple):
  """Prompts with one response each."""

  prompts: Prompts  # [config.sft.batch], padded
  responses: list[list[int]]  # of the real prompts: tokens, EOS included


class Trainer(NamedTuple):
  """What a config names, loaded: model, update, examples and evaluation."""

  policy: models.Policy
  update: policy_gradient.Update
  pack: Callable  # Examples -> (Batch, micro-batches in use)
  examples: Callable  # step -> Examples
  evaluate: Callable  # params -> pairs
  rows: dict[str, str]  # config key -> digest of the rows that it names

  def init(self) -> State:
    """The state before the first step."""
    params = self.update.place(self.policy.params)
    return State(params, self.update.init(params), np.zeros((), np.int32))

  def step(self, state: State, number: int) -> tuple[State, dict]:
    """One update on the examples of step `number`, and what it measured."""
    batch, used = self.pack(self.examples(number))
    params, opt_state, found = self.update.step(state.params, state.opt_state, batch, used)
    skipped = (found["grad/skipped"][0] * (state.skipped + 1)).astype(np.int32)
    measured = {name: found[name] for name in ("grad/norm", "grad/skipped")}
    return State(params, opt_state, skipped), measured | {"sft/loss": found["loss/total"]}


def sft(config, workdir: str) -> dict[str, float]:
  """Trains `config.policy` on demonstrations of `config.data` for `config.sft.steps` steps, or
  resumes that in `workdir`.

  AdamW of `config.optimizer` with the learning rate and the warm-up of `config.sft`, cosine to
  zero; rows, micro-batches and mesh as `config.loss` and `config.mesh` say. Writes config.json,
  metrics.jsonl (`sft/loss` every step; every `config.eval.period` steps the loss on the rows of
  `config.eval.path` as `sft/heldout`, and for the built-in tasks the exact success on them),
  TensorBoard events, checkpoints, and the policy as a Hugging Face directory WORKDIR/hf. Returns
  the last values.

  Raises ValueError for bad input before anything expensive, FloatingPointError after more than
  `config.loss.max_skipped` non-finite updates in a row, and `checkpoint.Preempted` when a signal
  asked it to stop.
  """
  prepare(config, workdir)
  trainer = make(config)
  state = trainer.init()
  trainer = trainer._replace(policy=trainer.policy._replace(params=None))  # now in the state
  training = supervised.Training(
    state,
    trainer.step,
    lambda state: trainer.evaluate(state.params),
    config.sft.steps,
    SHOWN,
    at_first=True,
    data=trainer.rows,
  )
  with lock.Lock(workdir) as held:
    state, latest = supervised.train(config, workdir, held, training)
  policy = trainer.policy
  params = jax.device_get(state.params)
  directory = epath.Path(workdir) / "hf"
  hf.save(directory, policy.config, params, policy.tokenizer, stop=policy.stop)
  hf.keep(directory, models.folder(config.policy.path))
  return latest


def prepare(config, workdir: str):
  """Raises ValueError for a wrong config, a remote workdir, and one that holds a run of another
  config."""
  configuration.validate(config)
  files.check_local(workdir)
  problems.check(config)
  row_files.check(config.data.path)
  row_files.check(config.eval.path, "eval.path")
  checkpoint.check_config(workdir, config)
  sinks.check(config)


def make(config) -> Trainer:
  """Loads what a config names. Raises ValueError that names the key, file or row at fault."""
  mesh = sharding.make_mesh(config.mesh)
  distributed.connect(mesh)
  policy = models.load(config.policy, config.seed)
  source, batch = responses_key(config.data, "data.path"), config.sft.batch
  dataset = data.load(source, policy.tokenizer, config.sampler.max_prompt, seed=config.seed)
  examples = make_examples(config, source, dataset, policy.tokenizer)
  loss = config.loss.copy_and_resolve_references()
  loss.update({"surrogate": "reinforce", "aggregate": "token", "kl_coef": 0.0, "entropy_coef": 0.0})
  loss.update({"minibatches": 1, "epochs": 1, "replay": 0})
  optimizer = config.optimizer.copy_and_resolve_references()
  options = {name: config.sft[name] for name in ("learning_rate", "warmup_steps")}
  optimizer.update(options | {"schedule": "cosine"})
  update = policy_gradient.make(
    policy.config, loss, optimizer, mesh, temperature=1.0, total_updates=config.sft.steps
  )
  pack = functools.partial(packed, loss, mesh, config.sampler.max_response)
  heldout = heldout_rows(config, policy.tokenizer)
  evaluate = make_evaluation(config, policy, update, pack, heldout)
  rows = {"data.path": dataset.digest} | ({"eval.path": heldout.digest} if heldout else {})
  return Trainer(policy, update, pack, lambda step: examples(step * batch, batch), evaluate, rows)


def responses_key(source, key: str):
  """`config.data` or the like with the field that is learnt as its `answer_key`: what the user has
  set, else "response" where the first row of a file has that. key: of the path, for errors."""
  found = source.copy_and_resolve_references()
  path = data.benchmarks.names(found.path)[0]
  if not found.answer_key and path.endswith(data.benchmarks.FILES):
    _, row = next(row_files.read_file(path, key), ("", {}))
    found.answer_key = RESPONSE if RESPONSE in row else ""
  return found


def make_examples(config, source, dataset: data.Dataset, tokenizer) -> Callable:
  """Builds `examples(cursor, n) -> Examples`, a function of its arguments alone: of n rows, at most
  `config.sft.batch`, from position `cursor` of the stream on.

  source: the `config.data`, or the like, that `dataset` comes from. A response ends as a turn
  does in the chat template, where that is used, or with EOS. Raises ValueError naming the first row
  whose response with its end exceeds `config.sampler.max_response`.
  """
  built_in = source.path == data.TASKS
  chat = source.chat_template and not built_in
  end = encoding.end_of_turn(tokenizer) if chat else tokenizer.eos_token_id
  encode = functools.partial(encoding.encode_text, tokenizer)
  encode_one = functools.lru_cache(maxsize=1 << 16)(encode)  # short answers come up again and again
  answers = (
    [] if built_in else [_answer(encode, source, *row) for row in enumerate(dataset.rows, 1)]
  )
  pad = source.scratchpad and source.scratchpad + len(tasks.SCRATCHPAD)
  longest = tasks.MAX_RESPONSE + pad if built_in else 1 + max(map(len, answers))
  if longest > config.sampler.max_response:
    long = [i for i, ids in enumerate(answers) if len(ids) >= config.sampler.max_response]
    where = f"{source.path}: row {long[0] + 1}: the answer" if long else "an answer of the tasks"
    raise ValueError(
      f"{where} is longer than config.sampler.max_response = {config.sampler.max_response} tokens, "
      f"its end included; the longest has {longest}"
    )

  def examples(cursor: int, n: int) -> Examples:
    prompts = dataset.at(cursor, n, config.sft.batch)
    if built_in:
      draw = np.random.default_rng([config.seed, rng.SFT, cursor // n])
      found = [encode_one(tasks.demonstration(row, draw)) for row in prompts.rows]
    else:
      found = [answers[i] for i in dataset.index(cursor, n)]
    return Examples(prompts, [[*ids, end] for ids in found])

  return examples


def _answer(encode, source, number: int, row) -> list[int]:
  try:
    return encode(row["answer"])
  except ValueError as error:
    raise ValueError(f"{source.path}: row {number}: the answer: {error}") from None


def packed(loss_config, mesh, longest: int, examples: Examples):
  """-> (Batch [M, B, T], micro-batches in use), in which every response token weighs the same.
  longest: tokens of a response, EOS included, at most."""
  mask = np.asarray(examples.prompts.mask)[:, None]
  tokens, length = np.zeros((mask.size, longest), np.int32), np.zeros(mask.shape, np.int32)
  for i, ids in enumerate(examples.responses):
    tokens[i, : len(ids)], length[i] = ids, len(ids)
  nothing, one = np.zeros(tokens.shape, np.float32), np.ones(mask.shape, np.float32)
  rollouts = Rollouts(
    tokens=tokens,
    logprob=nothing,
    sampled_logprob=nothing,
    prompt=np.arange(mask.size, dtype=np.int32),
    index=np.zeros(mask.size, np.int32),
    length=length,
    reward=one,
    ended=mask,
    mask=mask,
  )
  (batch,) = packing.minibatches(examples.prompts, rollouts, one, loss_config, mesh)
  return batch


def heldout_rows(config, tokenizer) -> data.Dataset | None:
  """What `config.eval` names; None where training is on a file and evaluation on the built-in
  tasks."""
  source = responses_key(data.eval_config(config), "eval.path")
  if data.TASKS in (config.data.path, source.path) and config.data.path != source.path:
    return None
  return data.load(source, tokenizer, config.sampler.max_prompt, shuffle=False, key="eval.path")


def make_evaluation(config, policy, update, pack, dataset: data.Dataset | None) -> Callable:
  """Builds `evaluate(params) -> pairs`: the exact success on `config.eval`, overall and by family,
  for the built-in tasks; else the loss on the rows of `config.eval.path`, nats a token. Nothing
  without a dataset (of `heldout_rows`)."""
  if dataset is None:
    return lambda params: {}
  source = data.eval_config(config)
  if source.path == data.TASKS:
    return make_exact_evaluation(policy, config.sampler, dataset.rows)
  examples, n = make_examples(config, source, dataset, policy.tokenizer), config.sft.batch

  def evaluate(params):
    total, count = 0.0, 0.0
    for first in range(0, len(dataset), n):
      batch, used = pack(examples(first, min(n, len(dataset) - first)))
      ((batch, _),), _ = update.recompute(params, [(batch, used)])
      mask = batch.weight > 0
      total -= float((np.asarray(batch.old_logprob) * mask).sum())
      count += float(mask.sum())
    return {"sft/heldout": (total, count)}

  return evaluate


def make_exact_evaluation(policy, sampler_config, rows) -> Callable:
  """Builds `evaluate(params) -> pairs` of the exact success on rows of the built-in tasks."""
  exact = tasks.make_exact(policy.config, policy.tokenizer, sampler_config)
  families = np.array([row["family"] for row in rows])

  def evaluate(params):
    success = exact(params, rows)
    pairs = {f"eval/exact/{f}": pair(success, families == f) for f in sorted({*families})}
    return {name: p for name, p in {"eval/exact": pair(success), **pairs}.items() if p[1]}

  return evaluate
