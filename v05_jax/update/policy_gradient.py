"""The policy-gradient update: one program at static shapes, mapped over the device mesh.

    loss = sum over response tokens of weight * (surrogate + kl_coef * kl - entropy_coef * entropy)

with the weights of `losses.rollout_weights`, whose denominators are those of the whole minibatch.
No mean is taken anywhere, so rows, micro-batches and devices may split the tokens in any way, and
loss, gradient and gradient norm stay the same.

The default aggregation, `prompt`, is the mean over prompts of each prompt's token mean. An adaptive
budget gives surprising prompts up to four times the rollouts of others; with `token` or `rollout`
they would also count four times in the objective, which changes what is learned, not only how well
it is estimated. See `losses.rollout_weights` for the measurement.

The gradients of the micro-batches are added up in float32 in a loop whose trip count is an
argument: any number of rollouts runs through the same compiled program. Each device adds up its
own, and the sum over the `data` axis is taken once, behind the loop.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax

from v05_jax import structs
from v05_jax.models import decoder, flash, lora
from v05_jax.scale import distributed, sharding
from v05_jax.update import losses, packing
from v05_jax.update import optimizer as optimizers

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count)

CPU_CHUNK = 256  # tokens whose logits exist at once on a CPU, at most: they stay in cache

ROWS = PartitionSpec(None, sharding.ROWS)  # of a Batch [M, B, T]


class Update(NamedTuple):
  """The update for one model, loss, optimiser and mesh; arguments may lie anywhere, on host too.

  `used` is the number of micro-batches of a Batch `[M, B, T]` that hold rollouts: the first ones.
  `reference` is what `freeze` returns, given if and only if `kl_coef > 0` and the model has no
  adapters (models/lora): with them it is the frozen part of the parameters, and gradient and
  optimiser state are of the trainable part.
  """

  place: Callable  # params -> params on the mesh, in the dtypes that they are kept in
  # params -> a copy on the mesh that no update overwrites, None with adapters: the reference
  freeze: Callable
  init: Callable  # params -> opt_state on the mesh
  step: Callable  # (params, opt_state, batch, used, reference=None) -> (params, opt_state, Metrics)
  loss_and_grad: Callable  # (params, batch, used, reference=None) -> (loss, gradient, Metrics)
  # (params, [(batch, used)]) -> ([(batch, used)], (sum, count)): see `recompute` below
  recompute: Callable
  program: Any  # the jitted step, (params, opt_state, batch, used, reference)
  # ((M, B, T), recompute=False) -> jax.stages.Lowered of the step, or of `recompute`, for such a
  # Batch
  lower: Callable


def make(
  model_config: decoder.ModelConfig,
  loss_config,
  optimizer_config,
  mesh: jax.sharding.Mesh,
  *,
  temperature: float,
  total_updates: int,
) -> Update:
  """Builds the update of `config.loss` and `config.optimizer` for a model on a mesh.

  temperature: the sampler's, by which the log-probs are taken. total_updates: the schedule's end.

  `step` overwrites (donates) params and opt_state. Where loss or gradient norm is not finite, both
  come back unchanged, `grad/skipped` is 1 and every other metric has count 0.

  Metrics are (sum, count): `loss/total`, `grad/norm` (before clipping) and `grad/skipped` over
  updates; `loss/entropy`, `loss/clip_fraction`, `loss/kl` (with `kl_coef` only) and
  `loss/logprob_gap` (mean |log-prob - old log-prob|: the sampler-trainer gap, as long as the
  parameters are those that sampled and the old log-probs the sampler's) over response tokens.

  `recompute` replaces the sampler's log-probs in batches by those of the given parameters, with the
  sampler-trainer gap as a metric: see `config.loss.old_logprob`.

  Raises ValueError for a schedule that does not exist; `step` for a `used` outside 1..M and for a
  reference that is missing or not wanted.
  """
  optimizer = optimizers.make(optimizer_config, total_updates)
  specs, *like = layout(model_config, optimizer, mesh)
  at_params, at_state = jax.tree.map(lambda x: x.sharding, like)
  at_rows, whole = sharding.shardings(mesh, ROWS), sharding.replicated(mesh)
  copied = loss_config.kl_coef and not model_config.adapters
  attend, groups = kernel(model_config, mesh), mesh.shape["fsdp"]
  of = lambda config: partial(token_logprobs, config, loss_config, temperature, groups, attend)
  logprobs, frozen = of(model_config), of(lora.plain(model_config))
  gradient = partial(accumulate, partial(micro_loss, loss_config, logprobs, frozen), specs)

  mapped = partial(sharding.mapped, mesh, check=model_config.attention == "plain")
  # Manual over data only: fsdp stands in the jit's shardings and is the compiler's inside.
  split, same = PartitionSpec(None, "data"), PartitionSpec()
  program = mapped(
    partial(update, optimizer, gradient),
    in_specs=(same, same, split, same, same),
    out_specs=same,
    donate=(0, 1),
    in_shardings=(at_params, at_state, at_rows, whole, at_params if copied else None),
    out_shardings=(at_params, at_state, whole),
  )
  at_gradient = whole, lora.split(at_params)[0], whole
  only_gradient = mapped(gradient, (same, split, same, same), same, out_shardings=at_gradient)
  again = mapped(
    partial(recompute, logprobs), (same, split, same), (split, same), out_shardings=(at_rows, whole)
  )
  initialise = jax.jit(lambda params: optimizer.init(lora.split(params)[0]), out_shardings=at_state)

  # Everything is placed before the call, so that the program sees one kind of argument and compiles
  # once, whether parameters come from a file, a checkpoint or the last step.
  place = lambda params: distributed.put(jax.tree.map(_as, params, like[0]), at_params)
  feed = partial(_feed, at_rows, whole)

  def others(batch, used, reference):
    _check_reference(loss_config.kl_coef, copied, reference)
    return *feed(batch, used), None if reference is None else place(reference)

  def step(params, opt_state, batch, used, reference=None):
    opt_state = jax.device_put(opt_state, at_state)
    return program(place(params), opt_state, *others(batch, used, reference))

  return Update(
    place=place,
    freeze=lambda params: None if model_config.adapters else jax.tree.map(jnp.copy, place(params)),
    init=lambda params: initialise(place(params)),
    step=step,
    loss_and_grad=lambda params, batch, used, ref=None: only_gradient(
      place(params), *others(batch, used, ref)
    ),
    recompute=lambda params, batches: recompute_all(again, feed, place(params), batches),
    program=program,
    lower=partial(lower, program, again, *like, at_rows, whole, bool(copied)),
  )


def lower(program, again, params, state, at_rows, whole, reference: bool, shape, recompute=False):
  """The step for a Batch of shape (M, B, T), without data; compiled, it is what the first such call
  finds done."""
  dtype = lambda name: np.float32 if name in ("weight", "advantage", "old_logprob") else np.int32
  fields = (field.name for field in dataclasses.fields(structs.Batch))
  batch = structs.Batch(
    **{name: jax.ShapeDtypeStruct(shape, dtype(name), sharding=at_rows) for name in fields}
  )
  used = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
  if recompute:
    return again.lower(params, batch, used)
  return program.lower(params, state, batch, used, params if reference else None)


def _feed(at_rows, whole, batch, used):
  micros = batch.tokens.shape[0]
  if not 1 <= used <= micros:
    raise ValueError(f"used={used}: expected 1 to {micros}, the micro-batches of the batch")
  return distributed.put(batch, at_rows), distributed.put(np.int32(used), whole)


def _check_reference(kl_coef, copied, reference):
  if (reference is not None) != bool(copied):
    verb = "needs" if copied else "takes no"
    raise ValueError(
      f"config.loss.kl_coef={kl_coef} {verb} reference parameters (with adapters: none)"
    )


def layout(model_config, optimizer, mesh):
  """-> specs of the parameters, and what stands for them and for the optimiser state, which follows
  them: shapes and shardings."""
  params = jax.eval_shape(lambda: decoder.init(model_config, jax.random.key(0)))
  state = jax.eval_shape(optimizer.init, lora.split(params)[0])
  specs, at_state = (sharding.param_specs(mesh, tree) for tree in (params, state))
  at_params, at_state = (sharding.shardings(mesh, tree) for tree in (specs, at_state))
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return specs, jax.tree.map(place, params, at_params), jax.tree.map(place, state, at_state)


def kernel(model_config, mesh) -> Callable | None:
  """The attention kernel of `model_config.attention` inside `sharding.mapped`; None = plain."""
  if model_config.attention == "plain":
    return None
  heads = "tensor" if model_config.num_kv_heads % mesh.shape["tensor"] == 0 else None
  rows, each = PartitionSpec("fsdp"), PartitionSpec("fsdp", None, heads)
  return sharding.split(
    partial(flash.attend, model_config.attention), (each, each, each, rows), each
  )


def token_logprobs(model_config, config, temperature, groups, kernel, params, batch: structs.Batch):
  """-> (log-prob of each target, entropy), float32 [B, T], of one micro-batch; meaningless where
  its weight is 0.

  groups: devices of `fsdp`.
  """
  mask = batch.weight > 0
  constrain = jax.lax.with_sharding_constraint
  # The head is gathered along `fsdp`, like a layer's matrices in its turn: left alone, the compiler
  # sums whole chunks of logits instead. The embedding is gathered whole, as XLA aborts on the
  # lookup in a split table where data, fsdp and tensor are all used.
  matrix = constrain(decoder.unembed(model_config, params), PartitionSpec("tensor"))
  params = params | {"embedding": constrain(params["embedding"], PartitionSpec())}
  hidden = decoder.forward(
    model_config, params, batch.tokens, batch.position, batch.segment, batch.prompt, kernel
  )
  if model_config.backend == "cpu" and groups == 1:
    chunk = min(config.vocab_chunk, CPU_CHUNK)
    return losses.counted_logprobs(hidden, matrix, batch.target, temperature, chunk, mask)
  # A chunk of tokens from several devices along `fsdp` would make each of them compute all of its
  # log-probs, so each group of rows, one device's, is cut into chunks of its own.
  grouped = jax.tree.map(
    lambda x: constrain(x.reshape(groups, -1, *x.shape[1:]), PartitionSpec("fsdp")),
    (hidden, batch.target, mask),
  )
  chunked = lambda hidden, target, mask: losses.token_logprobs(
    hidden, matrix, target, temperature, config.vocab_chunk, mask
  )
  return jax.tree.map(lambda x: x.reshape(mask.shape), jax.vmap(chunked)(*grouped))


def micro_loss(config, logprobs, frozen_logprobs, params, batch: structs.Batch, reference):
  """-> (loss, sums of the token metrics) of one micro-batch `[B, T]`. logprobs, and frozen_logprobs
  of the model without adapters: `token_logprobs` of (params, batch)."""
  mask = batch.weight > 0
  logprob, entropy = logprobs(params, batch)
  loss, clipped = losses.surrogate(
    logprob,
    batch.old_logprob,
    batch.advantage,
    config.clip_low,
    config.clip_high,
    config.clip_dual,
    mask,
  )
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


def accumulate(token_loss, specs, params, batch: structs.Batch, used, reference):
  """Inside `sharding.mapped` -> (loss, gradient of the trainable parameters, Metrics): sums over
  all of `data`.

  The first `used` micro-batches of this device's `batch` `[M, B, T]` are gone through in a loop.
  """
  # Varying parameters have this device's own gradient: one sum at the end, not one a micro-batch.
  pin, of_gradient = partial(jax.tree.map, jax.lax.with_sharding_constraint), lora.split(specs)[0]
  local, frozen = lora.split(pin(sharding.vary(params), specs))
  reference = frozen or reference
  differentiate = jax.value_and_grad(
    lambda x, *rest: token_loss(lora.join(x, frozen), *rest), has_aux=True
  )

  def part(i):
    rows = _micro(batch, i)
    (loss, sums), grads = differentiate(local, rows, reference)
    return loss, pin(grads, of_gradient), sums

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, 0))
  add = lambda i, sums: jax.tree.map(jnp.add, sums, part(i))
  loss, grads, sums = jax.lax.fori_loop(0, used, add, sharding.vary(zeros))
  loss, grads, sums = sharding.total((loss, grads, sums))
  tokens = sums.pop("tokens")
  return loss, pin(grads, of_gradient), {name: (x, tokens) for name, x in sums.items()}


def _micro(batch: structs.Batch, i) -> structs.Batch:
  """The i-th micro-batch `[B, T]`, its rows split along `fsdp`."""
  take = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
  return jax.tree.map(
    lambda x: jax.lax.with_sharding_constraint(take(x), PartitionSpec("fsdp")), batch
  )


def recompute(logprobs, params, batch: structs.Batch, used):
  """Inside `sharding.mapped` -> (log-probs [M, B, T] under `params`, gap (sum, count)).

  Of the first `used` micro-batches, in a batch that holds the sampler's `old_logprob`; these stay
  in the others. The gap is |log-prob - the sampler's| over response tokens.
  """

  def part(i, carry):
    found, gap, count = carry
    rows = _micro(batch, i)
    mask = rows.weight > 0
    logprob = jnp.where(mask, logprobs(params, rows)[0], rows.old_logprob)
    gap += jnp.sum(jnp.abs(logprob - rows.old_logprob))
    return found.at[i].set(logprob), gap, count + jnp.sum(mask, dtype=jnp.float32)

  zero = sharding.vary(jnp.float32(0))
  found, *gap = jax.lax.fori_loop(0, used, part, (batch.old_logprob, zero, zero))
  return found, tuple(sharding.total(gap))


def recompute_all(again, feed, params, batches):
  """-> (`batches` with the log-probs under `params`, (sum, count) of the gap); `again` is
  `recompute`, mapped."""
  out, gaps = [], []
  for batch, used in batches:
    batch, count = feed(batch, used)
    old_logprob, gap = again(params, batch, count)
    out.append((batch.replace(old_logprob=old_logprob), used))
    gaps.append(gap)
  return out, jax.tree.map(lambda *x: sum(x), *gaps) if gaps else (0.0, 0)


def update(optimizer, gradient, params, opt_state, batch, used, reference):
  """Inside `sharding.mapped` -> (params, opt_state, Metrics): one optimiser step, or none."""
  loss, grads, metrics = gradient(params, batch, used, reference)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  params, frozen = lora.split(params)
  updates, new_state = optimizer.update(grads, opt_state, params)
  new_params = optax.apply_updates(params, updates)
  keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
  one = jnp.float32(1)
  metrics = {**metrics, "loss/total": (loss, one), "grad/norm": (norm, one)}
  metrics = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), metrics)
  metrics["grad/skipped"] = (1.0 - finite.astype(jnp.float32), one)
  return lora.join(keep(new_params, params), frozen), keep(new_state, opt_state), metrics


def batch_shape(loss_config, prompts: int, most: int, longest: int, mesh) -> tuple[int, int, int]:
  """(M, B, T) of a minibatch, whatever its rollouts are: T is `row_length`, B is `micro_rows` for
  each device along `data` and `fsdp`, and M is what rollouts of full length would need.

  prompts: of a step, at most; most: rollouts of a prompt; longest: tokens of a prompt and a
  response, less one.

  Raises ValueError for a `row_length` that the longest possible rollout does not fit.
  """
  length = loss_config.row_length or longest
  if length < longest:
    raise ValueError(
      f"config.loss.row_length={length}: expected at least {longest} (longest prompt + longest"
      " response - 1), or 0 for just that"
    )
  micro = loss_config.micro_rows * sharding.lanes(mesh)
  rollouts = math.ceil(prompts / loss_config.minibatches) * most
  rows = math.ceil(rollouts / (length // longest))  # so many fit in every row: see packing.fit
  return math.ceil(rows / micro), micro, length


def minibatches(
  prompts: structs.Prompts,
  rollouts: structs.Rollouts,
  advantage: np.ndarray,
  loss_config,
  max_response: int,
  mesh,
  members: np.ndarray | None = None,
  importance: np.ndarray | None = None,
) -> list[tuple[structs.Batch, int]]:
  """One epoch: (Batch `[M, B, T]` of numpy arrays, micro-batches in use) for each minibatch.

  The prompts of `members` bool [P] (default: `prompts.mask`) are cut into `config.loss.minibatches`
  contiguous parts; a part without any rollout that counts is left out. advantage float [P, K];
  importance float [P] multiplies all of a prompt's loss (default: 1); `max_response` in tokens is
  the denominator of `aggregate = constant`.

  M, B and T are those of `batch_shape`, which raises ValueError for a `row_length` that is too
  short.
  """
  members = np.asarray(prompts.mask if members is None else members, bool)
  longest = prompts.tokens.shape[1] + rollouts.tokens.shape[1] - 1
  micros, micro, length = batch_shape(loss_config, *rollouts.mask.shape, longest, mesh)
  out = []
  for part in np.array_split(np.flatnonzero(members), loss_config.minibatches):
    chosen = np.isin(np.arange(members.size), part)
    mask = np.asarray(rollouts.mask) & chosen[:, None]
    weight = losses.rollout_weights(loss_config.aggregate, rollouts.length, mask, max_response)
    if importance is not None:
      weight = weight * importance[:, None]
    batch, used = packing.pack(
      prompts,
      rollouts,
      advantage,
      weight,
      length,
      micros * micro,
      chosen,
      loss_config.share_prompts,
    )
    if used:
      batch = jax.tree.map(lambda x: x.reshape(micros, micro, length), batch)
      out.append((batch, math.ceil(used / micro)))
  return out


def _as(x, like):  # no copy where it is already: donating the result then frees the argument
  return x if x.dtype == like.dtype else x.astype(like.dtype)
