"""Training of a V0: `--mode=value`.

The backbone is frozen; the adapter learns, and the head with it where none was trained before.
Meant as V0's paper says (arXiv 2602.03584) and not as its released trainer does: the gradient
reaches every feature (there: 4 of 1,008, since padding columns detach the others), the loss is the
pairwise and soft one (`losses`), the intra-context AUC groups by policy too, and what is saved is
what `value_prior.load` predicts with, adapter included.

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
import time
from typing import Any, NamedTuple
import zlib

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from v05_jax import config as configuration
from v05_jax import models, rng
from v05_jax.models import hf
from v05_jax.run import checkpoint, files, writer
from v05_jax.run.progress import Progress
from v05_jax.scale import sharding
from v05_jax.update import optimizer as optimizers
from v05_jax.value_model import (
  adapter,
  batches,
  directory,
  losses,
  measure,
  pairs,
  synthetic,
  tabpfn,
  v0,
)

SYNTHETIC = "synthetic"  # value.data of a head alone
# up to this much, the hidden states of all prompts are computed once and kept on the device
TABLE_BYTES = 2**31
ROWS = 64  # prompts that go through the backbone at once
TASKS = PartitionSpec(sharding.ROWS)  # of a batch's first axis


@struct.dataclass
class State:
  """Everything that the training needs to continue."""

  params: Any  # {"adapter": ..., "head": ...}, one of them alone where the other is frozen
  opt_state: Any
  skipped: Any  # int32 []  updates skipped in a row for a non-finite loss or gradient
  digest: Any  # uint32 []  of the pairs that it learns from


class Trainer(NamedTuple):
  """What a config stands for."""

  model: v0.ValuePrior
  state: State  # the first one
  step: Callable  # (State, step) -> (State, {name: []})
  evaluate: Callable  # ValuePrior -> measure.Judged, or None


def train_value(config, workdir: str) -> v0.ValuePrior:
  """Trains a V0 as `config.value` says, or resumes it in `workdir`, and returns it.

  Writes config.json, metrics.jsonl, TensorBoard events, checkpoints, the model as WORKDIR/v0, which
  `value_prior.load` and `config.prior.path` open, and, with `config.value.heldout`,
  reliability.png. Raises ValueError for bad input before anything expensive, FloatingPointError
  after more than `config.loss.max_skipped` non-finite updates in a row, and `checkpoint.Preempted`
  when a signal asked it to stop.
  """
  configuration.validate(config)
  if files.is_remote(files.folder(workdir)):
    raise ValueError(
      f"--workdir={workdir}: found a remote folder, expected a local one: the model is written "
      "there"
    )
  files.prepare(workdir)
  checkpoint.check_config(workdir, config)
  with (
    checkpoint.Checkpoints(workdir, config.checkpoint.keep) as saved,
    checkpoint.Preemption() as preemption,
  ):
    trainer, total, judged = make(config), config.value.steps, None
    state, first = trainer.state, saved.latest() or 0
    if first:
      state = saved.restore(first, state)
      if state.digest != trainer.state.digest:
        raise ValueError(
          "config.value.data: found other pairs than those that the run has learned from so far, "
          "expected the same: take another workdir"
        )
    with writer.Writer(workdir, config, first) as log, Progress(total, first) as progress:
      for number in range(first, total):
        # of the updates before, which have ended
        began, failed = time.perf_counter(), int(state.skipped)
        state, measured = trainer.step(state, number)
        done, last = number + 1, number + 1 == total
        found = {f"value/{name}": (x, 1) for name, x in measured.items()}
        if last or (config.eval.period and done % config.eval.period == 0):
          judged = trainer.evaluate(with_params(trainer.model, state.params))
          found |= (
            {f"value/heldout/{name}": (x, 1) for name, x in measure.summary(judged).items()}
            if judged
            else {}
          )
        log.write(done, 0, found | {"time/step": (time.perf_counter() - began, 1)})
        progress.update(
          done, log.latest, ("value/loss", "value/heldout/gauc", "value/heldout/rmse")
        )
        if failed > config.loss.max_skipped:
          raise FloatingPointError(
            f"{failed} updates in a row had a non-finite loss or gradient and were skipped, the "
            f"last one at step {done - 1}; the checkpoints before them are kept"
          )
        # While updates fail, the checkpoints before them are kept.
        regular = config.checkpoint.period and done % config.checkpoint.period == 0
        if last or preemption.requested or (regular and not failed):
          log.flush()
          saved.save(done, state)
        if preemption.requested and not last:
          raise checkpoint.Preempted(
            f"stopped by a signal; saved at step {done}, the same command continues"
          )
  model = with_params(trainer.model, state.params)
  folder = files.folder(workdir)
  save(model, folder / "v0")
  judged = judged if first < total else trainer.evaluate(model)
  if judged:
    measure.plot(judged, folder / "reliability.png")
    print("  ".join(f"{name} {x:.3f}" for name, x in measure.summary(judged).items()))
  print(f"the model is in {folder / 'v0'}")
  return model


def make(config) -> Trainer:
  """Reads the pairs, builds the model and the step. Raises ValueError that names the key or file at
  fault."""
  options = config.value
  if not options.data:
    raise ValueError(
      "config.value.data: found '', expected folders of pairs, which runs with "
      "--config.collect=True "
      f"write, or {SYNTHETIC}"
    )
  mesh = sharding.make_mesh(config.mesh)
  shards = sharding.lanes(mesh)
  if options.tasks % shards:
    raise ValueError(
      f"config.value.tasks: found {options.tasks}, expected a multiple of {shards} devices"
    )
  model, evaluate = begin(config), make_evaluation(config)
  both = {"adapter": model.adapter, "head": model.head}
  learnt = {"adapter": ("adapter",), "head": ("head",), "both": ("adapter", "head")}[options.train]
  frozen = {name: x for name, x in both.items() if name not in learnt}
  digest, lookup = 0, ()
  if options.data == SYNTHETIC:
    loss = synthetic_loss(model, options)
    batch = lambda step: jax.random.split(rng.at(config.seed, step, rng.VALUE), options.tasks)
  else:
    texts, contexts = read(options.data, options.window)
    tasks = batches.Tasks(contexts, options.support, options.pairs, config.seed)
    digest = functools.reduce(
      lambda crc, x: zlib.crc32(x.tobytes(), crc), (x for c in contexts for x in c[1:]), 0
    )
    lookup = make_lookup(model, texts, mesh)
    loss = pairs_loss(model, options)
    batch = lambda step: tasks.batch(step * options.tasks, options.tasks)
  optimizer = make_optimizer(options)

  everywhere = sharding.replicated(mesh)

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
    return State(params, opt_state, skipped, state.digest), measured | {
      "loss": value,
      "grad_norm": norm,
    }

  def step(state, number: int):
    place = NamedSharding(mesh, TASKS)
    return update(
      state,
      frozen,
      lookup,
      jax.device_put(batch(number), place),
      rng.at(config.seed, number, rng.VALUE),
    )

  @functools.partial(jax.jit, out_shardings=everywhere)
  def first(params):  # copies, since a step overwrites them
    return State(
      jax.tree.map(jnp.copy, params),
      optimizer.init(params),
      jnp.zeros((), jnp.int32),
      jnp.uint32(digest),
    )

  frozen, state = jax.device_put(frozen, everywhere), first({name: both[name] for name in learnt})
  return Trainer(model, state, step, evaluate)


def begin(config) -> v0.ValuePrior:
  """The model before training: that in `value.start`, or else a new adapter on `config.policy` and
  a new head, or the head of `value.head`."""
  options = config.value
  key = jax.random.fold_in(rng.at(config.seed, 0, rng.INIT), rng.VALUE)
  if options.start:
    model = v0.load(options.start)
    if options.train == "adapter" and model.settings["adapter"]["pooling"] == "last":
      raise ValueError(
        f"config.value.train: found 'adapter', expected head: {options.start} pools the last token"
      )
  else:
    policy = models.load(config.policy, config.seed)
    # As `v0.load` opens it again.
    policy = policy._replace(config=dataclasses.replace(policy.config, dtype="float32"))
    sizes = (policy.config.hidden_size, options.queries, options.width, options.bottleneck)
    built_in = config.policy.path == "builtin" and not config.policy.preset
    settings = {
      "adapter": dict(
        zip(directory.ADAPTER, (*sizes[1:3], options.heads, sizes[3], sizes[0], "dynamic"))
      ),
      "head": new_head(options),
      "temperature": 0.9,
      "estimators": options.estimators,
      "max_tokens": policy.config.max_positions,
      "backbone": directory.BUILTIN if built_in else directory.FOLDER,
    }
    head = init_head(jax.random.fold_in(key, 0), settings["head"])
    first = jax.jit(lambda key: adapter.init(key, *sizes))(jax.random.fold_in(key, 1))
    params = jax.tree.map(jnp.asarray, policy.params)
    model = v0.ValuePrior(settings, policy.config, params, policy.tokenizer, first, head)
  if options.head:
    other = v0.load(options.head)
    taken = {
      key: other.settings[key]
      for key in ("head", "temperature", "licences")
      if key in other.settings
    }
    model = dataclasses.replace(model, head=other.head, settings=model.settings | taken)
  return model


def new_head(options) -> dict[str, Any]:
  """v0.json's "head" for a new one."""
  sizes = (
    options.embed,
    options.attention_heads,
    options.group,
    options.thinking,
    options.layers,
    2,
    2,
    "linear",
    0,
  )
  return dict(zip(directory.HEAD, sizes))


def init_head(key, sizes: dict[str, Any]):
  """A new head, stacked: matrices N(0, 1 / fan-in), those that end a sublayer 0, so that a layer
  changes nothing at first, biases 0, thinking rows N(0, 1)."""

  def draw(key):
    found = {}
    for number, (name, shape) in enumerate(directory.head_shapes(*sizes.values()).items()):
      last = name.endswith(("_w_out", "linear2.weight", "bias"))
      scale = 0.0 if last else 1.0 if "thinking" in name else shape[-1] ** -0.5
      found[name] = scale * jax.random.normal(jax.random.fold_in(key, number), shape)
    return found

  return tabpfn.stack(jax.jit(draw)(key))


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


# --- The loss


def make_lookup(model: v0.ValuePrior, texts, mesh) -> dict[str, Any]:
  """What `features` takes: tokens [N, L] and mask [N, L] of all texts, and either the hidden states
  of all, [N, L, D], or the backbone's parameters."""
  encoded = model.encode(texts)
  longest = max(map(len, encoded))
  tokens, mask = np.zeros((2, len(encoded), longest), np.int32)
  for row, ids in enumerate(encoded):
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
  where = sharding.replicated(mesh)
  params = jax.device_put(model.params, sharding.param_shardings(mesh, model.params))
  table = None
  if 4 * tokens.size * model.config.hidden_size <= TABLE_BYTES:
    size = len(tokens) + -len(tokens) % ROWS
    padded = (v0.pad(x, size).reshape(-1, ROWS, longest) for x in (tokens, mask))
    forward = jax.jit(functools.partial(v0.hidden, model.config))
    table = np.concatenate([np.asarray(forward(params, *part)) for part in zip(*padded)])[
      : len(tokens)
    ]
  put = lambda x: None if x is None else jax.device_put(x, where)
  params = params if table is None else None
  return {"tokens": put(tokens), "mask": put(mask), "table": put(table), "params": params}


def features(model: v0.ValuePrior, params, lookup, prompt, dropout_key=None):
  """Features [R, F] of the texts `prompt` [R] by the adapter `params`, in blocks of ROWS; the
  backward pass computes a block's hidden states once more where they are not kept, so that those of
  one block exist at once."""
  options = model.settings["adapter"]

  def block(prompt, number):
    mask = lookup["mask"][prompt]
    if lookup["table"] is not None:
      states = lookup["table"][prompt]
    else:
      states = jax.lax.stop_gradient(
        v0.hidden(model.config, lookup["params"], lookup["tokens"][prompt], mask)
      )
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
    return adapter.features(params, states, mask, options["heads"], key, options["pooling"])

  if lookup["table"] is not None:
    return block(prompt, 0)
  parts = jnp.pad(prompt, (0, -len(prompt) % ROWS)).reshape(-1, ROWS)
  found = jax.lax.map(lambda part: jax.checkpoint(block)(*part), (parts, jnp.arange(len(parts))))
  return found.reshape(-1, found.shape[-1])[: len(prompt)]


def logits(head, settings, x, labels, masks, key):
  """Logits [m, 2] of features x [n + m, F] whose first n rows are the support with `labels` [n];
  fresh fingerprints."""
  n, estimators = len(labels), settings["estimators"]
  columns = x.shape[1] + 1
  permutations = tabpfn.randomness(estimators, columns)[1]
  groups = -(-columns // tabpfn.group_size(head))
  table = tabpfn.column_table(groups, settings["head"]["E"] // 4)
  marks = jax.random.uniform(key, (estimators, len(x)))
  raw = tabpfn.raw_logits(
    head, x[:n], labels, x[n:], table, marks[:, :n], marks[:, n:], permutations, None, *masks
  )
  return tabpfn.average(raw, settings["temperature"])[0]


def pairs_loss(model: v0.ValuePrior, options) -> Callable:
  """Builds `loss(params, lookup, Batch, key) -> (mean over the tasks, {name: []})`."""
  settings = model.settings

  def one(head, x, batch, key):
    n = len(batch.support)
    z = logits(head, settings, x, batch.score[:n], (batch.support, batch.query), key)
    target = batch.score[n:]
    weight = batch.query * 1.0
    if options.natural:
      weight = losses.natural_weights(target >= 0.5, batch.share, batch.query)
    return losses.total(z, target, weight, batch.query, options.pair_weight)

  def loss(params, lookup, batch, key):
    size, rows = batch.prompt.shape
    dropout, marks = jax.random.split(key)
    dropout = dropout if options.dropout else None
    x = features(model, params["adapter"], lookup, batch.prompt.reshape(-1), dropout)
    each = jax.vmap(functools.partial(one, params["head"]))
    found = each(x.reshape(size, rows, -1), batch, jax.random.split(marks, size))
    return jax.tree.map(jnp.mean, found)

  return loss


def synthetic_loss(model: v0.ValuePrior, options) -> Callable:
  """The same for tasks of `synthetic.draw`, whose true probabilities are the targets: soft
  cross-entropy alone."""

  def one(head, key):
    task, marks = jax.random.split(key)
    n, m = options.support, 2 * options.pairs
    x, success, probability = synthetic.draw(task, n + m, model.width)
    z, true = logits(head, model.settings, x, success[:n], (None, None), marks), probability[n:]
    best = jnp.log(jnp.stack([1.0 - true, true], 1).clip(1e-6))
    return tuple(losses.soft_cross_entropy(z, true, jnp.ones(m)) for z in (z, best))

  def loss(params, lookup, keys, key):
    soft, best = jax.vmap(functools.partial(one, params["head"]))(keys)
    return jnp.mean(soft), {"soft": jnp.mean(soft), "excess": jnp.mean(soft - best)}

  return loss


# --- Around it


def make_evaluation(config) -> Callable:
  """Builds `evaluate(model) -> measure.Judged` on the pairs of `value.heldout`, None without."""
  options = config.value
  if not options.heldout:
    return lambda model: None
  texts, contexts = read(options.heldout, options.window)
  asked = pairs.TYPES.index("test_query")
  contexts = [c for c in contexts if all(map(len, pairs.split(c, asked, np.random.default_rng(0))))]
  if not contexts:
    raise ValueError(
      f"config.value.heldout: found no context in {options.heldout} with pairs to judge and others "
      "to "
      "judge them from"
    )
  return lambda model: measure.judge(model, texts, contexts, options.support, config.seed)


def read(folders: str, window: int):
  """`pairs.read` of folders with commas between."""
  return pairs.read([folder.strip() for folder in folders.split(",")], window)


def with_params(model: v0.ValuePrior, params) -> v0.ValuePrior:
  """The model with the trained parameters."""
  return dataclasses.replace(model, **jax.tree.map(jnp.asarray, jax.device_get(params)))


def save(model: v0.ValuePrior, folder):
  """Writes the directory that `value_prior.load` opens, as a whole."""
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
