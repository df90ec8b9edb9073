"""Training of a V0: `--mode=value`.

The backbone is frozen; the adapter learns, and the head with it where none was trained before. All
is as V0's paper says (arXiv 2602.03584) and not as its released trainer does: the gradient reaches
every feature (there 4 of 1,008, since padding columns detach the others), the loss is the pairwise
and soft one (`losses`), the intra-context AUC groups by policy too, and what is saved is what
`value_model.load` predicts with, adapter included.

Where it differs from V0's recipe by default: queries weigh as their context's own share of
successes (`value.natural`); a run's pairs are split anew into asked and given ones in every epoch,
where V0 has fixed rows for either; a context never borrows rows of another. V0's own values are
learning_rate 2e-4, tasks 4, pairs 4, natural False.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
import shutil
from typing import Any, NamedTuple
import zlib

from absl import logging
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from v05_jax import config as configuration
from v05_jax import models, rng, sinks
from v05_jax.models import hf
from v05_jax.run import checkpoint, files, lock, supervised
from v05_jax.scale import sharding, sources
from v05_jax.update import optimizer as optimizers
from v05_jax.value_model import batches, directory, measure, objective, pairs, tabpfn, v0
from v05_jax.value_model.initial import begin

Pairs = tuple[list[str], list[pairs.Context]]  # (texts, contexts), as `pairs.read` has them
SYNTHETIC = "synthetic"  # value.data of a head alone
BY_TASKS = PartitionSpec(sharding.ROWS)  # of a batch: its tasks over the devices
HELDOUT = "value/heldout/"  # prefix of the measures on held-out pairs
SHOWN = ("value/loss", "value/heldout/gauc", "value/heldout/rmse")  # on the terminal


@struct.dataclass
class State:
  """Everything that the training needs to continue."""

  params: Any  # {"adapter": ..., "head": ...}, one of them alone where the other is frozen
  opt_state: Any
  skipped: Any  # int32 []  updates skipped in a row for a non-finite loss or gradient
  digest: Any  # uint32 []  of the pairs that it learns from


class Source(NamedTuple):
  """What a training learns from."""

  loss: Callable  # (params, lookup, batch, key) -> (loss [], {name: []})
  batch: Callable  # step -> batch
  lookup: Any  # what the loss needs of all texts
  digest: int  # of the pairs


class Trainer(NamedTuple):
  """What a config names, made: model, first state, step and evaluation."""

  model: v0.ValuePrior
  state: State  # the first one
  step: Callable  # (State, step) -> (State, pairs)
  evaluate: Callable  # ValuePrior -> measure.Predictions, or None


def train_value(config, workdir: str) -> v0.ValuePrior:
  """Trains a V0 as `config.value` says, or resumes it in `workdir`, and returns it.

  Writes config.json, metrics.jsonl, TensorBoard events, checkpoints, the model as WORKDIR/v0, which
  `value_model.load` and `config.priors.v0.path` open, and, with `config.value.heldout`,
  reliability.png. Raises ValueError for bad input before anything expensive, FloatingPointError
  after more than `config.loss.max_skipped` non-finite updates in a row, and `checkpoint.Preempted`
  when a signal asked it to stop.
  """
  prepare(config, workdir)
  folder = files.folder(workdir)
  with lock.Lock(workdir) as held:
    trainer = make(config)
    model_of = lambda state: with_params(trainer.model, state.params)
    evaluate = lambda state: heldout(trainer.evaluate(model_of(state)), folder)
    check = functools.partial(check_pairs, trainer.state)
    training = supervised.Training(
      trainer.state,
      trainer.step,
      evaluate,
      config.value.steps,
      SHOWN,
      check,
      data=weights_of(config),
    )
    state, latest = supervised.train(config, workdir, held, training)
    model = model_of(state)
    save(model, folder / "v0")
  if measures := [f"{name} {x:.3f}" for name, x in latest.items() if name.startswith(HELDOUT)]:
    print("  ".join(measures))
  print(f"the model is in {folder / 'v0'}")
  return model


def prepare(config, workdir: str):
  """Makes the workdir. Raises ValueError for a wrong config, a remote workdir, and one that holds a
  run of another config."""
  configuration.validate(config)
  files.check_local(workdir)
  files.prepare(workdir)
  checkpoint.check_config(workdir, config)
  sinks.check(config)


def check_pairs(first: State, restored: State):
  """Raises ValueError where the restored state has learned from other pairs than `first` will."""
  if restored.digest != first.digest:
    raise ValueError(
      "config.value.data: found other pairs than those that the run has learned from so far (or a "
      "run of an earlier version, which did not count texts), expected the same: take another "
      "workdir"
    )


def weights_of(config) -> dict[str, str]:
  """Config key -> digest of the weights that it names and that a resumed training reads again."""
  options, policy, found = config.value, config.policy, {}
  if not options.start and not policy.preset:
    found["policy.path"] = sources.of_folder(models.folder(policy.path))
  for key in ("start", "head"):
    if options[key]:
      found[f"value.{key}"] = directory.digest(options[key])
  return found


def heldout(predictions: measure.Predictions | None, folder) -> dict[str, tuple]:
  """The measures on the held-out pairs as metrics, and their plot in `folder`; without any
  predictions {} and none."""
  if predictions is None:
    return {}
  measure.plot(predictions, folder / "reliability.png")
  return {f"{HELDOUT}{name}": (x, 1) for name, x in measure.summary(predictions).items()}


def make(config) -> Trainer:
  """Reads the pairs, builds the model and the step. Raises ValueError that names the key or file at
  fault."""
  options = config.value
  if not options.data:
    raise ValueError(
      "config.value.data: found '', expected folders of pairs, which runs with "
      f"--config.observe=pairs write, or {SYNTHETIC}"
    )
  mesh = sharding.make_mesh(config.mesh)
  shards = sharding.lanes(mesh)
  if options.tasks % shards:
    raise ValueError(
      f"config.value.tasks: found {options.tasks}, expected a multiple of {shards} devices"
    )
  model = begin(config)
  told = None if options.data == SYNTHETIC else read(options.data, options.window)
  evaluate = make_evaluation(config, model, told)
  both = {"adapter": model.adapter, "head": model.head}
  learnt = {"adapter": ("adapter",), "head": ("head",), "both": ("adapter", "head")}[options.train]
  source = make_source(config, model, mesh, told)
  optimizer = make_optimizer(options)
  everywhere, by_tasks = sharding.replicated(mesh), NamedSharding(mesh, BY_TASKS)
  update = make_update(source.loss, optimizer, everywhere)

  @functools.partial(jax.jit, out_shardings=everywhere)
  def first(params):  # copies, since a step overwrites them
    params = jax.tree.map(jnp.copy, params)
    return State(
      params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.uint32(source.digest)
    )

  frozen = {name: x for name, x in both.items() if name not in learnt}
  frozen, state = jax.device_put(frozen, everywhere), first({name: both[name] for name in learnt})

  def step(state, number: int):
    batch = jax.device_put(source.batch(number), by_tasks)
    key = rng.at(config.seed, number, rng.VALUE)
    state, measured = update(state, frozen, source.lookup, batch, key)
    return state, {f"value/{name}": (x, 1) for name, x in measured.items()}

  return Trainer(model, state, step, evaluate)


def make_source(config, model: v0.ValuePrior, mesh, learnt: Pairs | None) -> Source:
  """The pairs of `config.value.data`, or, without any, synthetic tasks."""
  options = config.value
  if learnt is None:
    batch = lambda step: jax.random.split(rng.at(config.seed, step, rng.VALUE), options.tasks)
    return Source(objective.synthetic_loss(model, options), batch, (), 0)
  texts, contexts = learnt
  tasks = batches.Tasks(contexts, options.support, options.pairs, config.seed)
  told = [*(x.tobytes() for c in contexts for x in c[1:]), *(text.encode() for text in texts)]
  digest = functools.reduce(lambda crc, x: zlib.crc32(x, crc), told, 0)
  lookup = objective.make_lookup(model, texts, mesh)
  batch = lambda step: tasks.batch(step * options.tasks, options.tasks)
  return Source(objective.pairs_loss(model, options), batch, lookup, digest)


def make_update(loss: Callable, optimizer: optax.GradientTransformation, everywhere) -> Callable:
  """Builds `update(state, frozen, lookup, batch, key) -> (State, {name: []})`, a program that
  overwrites the state; a non-finite loss or gradient changes nothing but `skipped`."""

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
  def update(state, frozen, lookup, batch, key):
    value_and_grad = jax.value_and_grad(
      lambda params: loss(params | frozen, lookup, batch, key), has_aux=True
    )
    (value, measured), gradient = value_and_grad(state.params)
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    after = optax.apply_updates(state.params, updates), opt_state
    fine = jnp.isfinite(value) & jnp.isfinite(norm)
    params, opt_state = jax.tree.map(
      lambda x, y: jnp.where(fine, x, y), after, (state.params, state.opt_state)
    )
    skipped = jnp.where(fine, 0, state.skipped + 1)
    measured |= {"loss": value, "grad_norm": norm}
    return State(params, opt_state, skipped, state.digest), measured

  return update


def make_optimizer(options) -> optax.GradientTransformation:
  """V0's: AdamW behind clipping, a linear warm-up, whose first update is not 0, and then a cosine
  to 0; biases and the LayerNorm weights of queries and keys do not decay."""
  warmup = round(options.warmup * options.steps)
  rate = optax.cosine_decay_schedule(options.learning_rate, max(options.steps - warmup, 1))
  rate = optimizers.warm_up(rate, options.learning_rate, warmup)
  kept = ("bias", "ln_q.weight", "ln_kv.weight")
  decays = functools.partial(
    jax.tree_util.tree_map_with_path, lambda path, _: not path[-1].key.endswith(kept)
  )
  adamw = optax.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=options.weight_decay, mask=decays)
  return optax.chain(optax.clip_by_global_norm(options.clip_norm), adamw)


def make_evaluation(config, model: v0.ValuePrior, learnt: Pairs | None) -> Callable:
  """Builds `evaluate(model) -> measure.Predictions` on the pairs of `value.heldout`; without them
  it returns None. Raises ValueError also for a text that the model's tokenizer refuses, and for a
  context that is among those learnt from."""
  options = config.value
  if not options.heldout:
    return lambda model: None
  texts, contexts = read(options.heldout, options.window)
  model.encode(texts)
  asked = pairs.TYPES.index("test_query")
  if learnt:
    check_apart(options.heldout, (texts, contexts), learnt)
  contexts = [c for c in contexts if all(map(len, pairs.split(c, asked, np.random.default_rng(0))))]
  if not contexts:
    raise ValueError(
      f"config.value.heldout: found no context in {options.heldout} with pairs to rank and others "
      "to rank them from"
    )
  return lambda model: measure.predict(model, texts, contexts, options.support, config.seed)


def check_apart(folders: str, heldout: Pairs, learnt: Pairs):
  """Raises ValueError where the rows of a held-out context are those of one that is learnt from,
  unless some are marked as queries of the test; says how many held-out prompts are learnt from."""
  rows = lambda texts, c: sorted((texts[i], float(x)) for i, x in zip(c.prompt, c.score))
  known = [rows(learnt[0], context) for context in learnt[1]]
  tell = [context for context in heldout[1] if len(np.unique(context.score)) > 1]
  for context in tell:  # two policies may fail at everything alike
    if not context.type.any() and rows(heldout[0], context) in known:
      raise ValueError(
        f"config.value.heldout: found the pairs of {context.key[2]} at step {context.key[3]}, "
        "which config.value.data has too, expected others: what is measured there says nothing"
      )
  asked = lambda pair, mark: {
    pair[0][i]
    for c in pair[1]
    for i in c.prompt[(c.type == pairs.TYPES.index(mark)) | (not c.type.any())]
  }
  questions = asked(heldout, "test_query")
  shared = len(questions & (asked(learnt, "train_query") | asked(learnt, "context")))
  if shared:
    logging.warning(
      "value.heldout=%s: %d of %d prompts are among those of value.data: the measures are of "
      "policies that the model has not seen, not of prompts",
      *(folders, shared, len(questions)),
    )


def read(folders: str, window: int) -> Pairs:
  """`pairs.read` of folders with commas between."""
  return pairs.read([folder.strip() for folder in folders.split(",")], window)


def with_params(model: v0.ValuePrior, params) -> v0.ValuePrior:
  """The model with the trained parameters."""
  return dataclasses.replace(model, **jax.tree.map(jnp.asarray, jax.device_get(params)))


def save(model: v0.ValuePrior, folder):
  """Writes the directory that `value_model.load` opens, as a whole."""
  work = f"{os.fspath(folder)}.new"
  shutil.rmtree(work, ignore_errors=True)
  os.makedirs(work)
  head = tabpfn.unstack(model.head)
  directory.save(work, model.settings, model.adapter, head)
  if model.settings["backbone"] == directory.FOLDER:
    hf.save(
      f"{work}/{directory.FOLDER}", model.config, jax.device_get(model.params), model.tokenizer
    )
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(work, folder)
