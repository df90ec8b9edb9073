"""The sampler's device side: prefill and decode, over a fixed set of slots.

Invariant. A slot holds one rollout. The keys and values of its prompt lie in the store, once for
all of the prompt's rollouts, except those of the last prompt token: it is the rollout's first
input, so that every decode step of an active slot samples exactly one response token. What the
rollout has put in so far lies in the first `count` columns of its slot's cache; its last token is
not yet there.

Decoding only reads the store and the cache; what it computes goes into a small cache of its own,
whose columns are moved to the slots behind the loop. The cache has one of a few shapes (slots,
columns), compiled beforehand: ended rollouts and columns that nothing has reached yet then cost
nothing.

Token t of a rollout is drawn with `fold_in(rollout_key, t)`: a rollout depends on neither its slot
nor its neighbours. Slots and store are split over the mesh's `data` and `fsdp` axes; each shard
("lane") owns its own and never looks at another's. Everything here is pure; `schedule.py` decides
on the host what goes where.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from v05_jax import rng
from v05_jax.models import decoder, decoding
from v05_jax.sampling import categorical
from v05_jax.scale import sharding


class Rows(NamedTuple):
  """What one decode call is told of every slot, [lanes * S] each; an idle slot has `limit` 0."""

  # int32  entry of its prompt in the lane's store * `share` + a number below `share`: no two
  # rollouts in flight have the same
  place: np.ndarray
  prompt: np.ndarray  # int32  position in the data stream, for the key
  index: np.ndarray  # int32  number of the rollout within its prompt
  token: np.ndarray  # int32  last token, not yet in the cache
  position: np.ndarray  # int32  its position
  count: np.ndarray  # int32  response tokens sampled so far
  limit: np.ndarray  # int32  response tokens at most


class Chunk(NamedTuple):
  """What one decode call sampled; a slot's columns behind its last token mean nothing."""

  tokens: jax.Array  # int32 [S, n]
  logprob: jax.Array  # float32 [S, n]          log-softmax(logits / temperature)
  sampled_logprob: jax.Array  # float32 [S, n]  after top-k and top-p
  active: jax.Array  # bool [S]                 still active afterwards
  steps: jax.Array  # int32 [lanes]             decode steps done


class Shape(NamedTuple):
  """The size of a lane's cache."""

  slots: int
  columns: int


class Programs(NamedTuple):
  """The compiled sampler. Every function has fixed shapes; prefill and decode donate what they
  replace."""

  store: callable  # () -> store
  cache: callable  # Shape -> cache
  # Shape -> (a layer's cache, slots [lanes * S]) -> the same of these slots, in the new order
  resize: callable
  weights: callable  # params -> the parameters as decode wants them, whole along `fsdp`
  prefill: callable  # (params, store, tokens [B, T], length [B], entry [B]) -> store
  # (weights, cache, store, (length [lanes * E], Rows), step_key, temperature) -> (cache, Chunk)
  decode: callable


def weights(config, mesh, params):
  """The parameters for decode, cast and gathered along `fsdp` once, where a loop would do it at
  every step."""
  out = decoding.decode_weights(config, params)
  return lax.with_sharding_constraint(out, sharding.param_shardings(mesh, out, decode=True))


def put(store, new, entry):
  """Writes the keys and values of B prompts into the store; entries out of range are dropped
  (padding)."""
  return jax.tree.map(
    lambda old, x: old.at[entry].set(x.astype(old.dtype), mode="drop"), store, new
  )


def resize(layer, slots, shape: Shape):
  """These slots of a layer's (k, v), in this order, with as many columns as the new shape has; new
  columns mean nothing. Called for one layer after another, so that memory never holds the old cache
  and the new one."""

  def change(x, axis):
    x = x.at[slots].get(mode="clip")
    missing = [(0, 0)] * 4
    missing[axis] = (0, max(shape.columns - x.shape[axis], 0))
    return lax.slice_in_dim(jnp.pad(x, missing), 0, shape.columns, axis=axis)

  k, v = layer
  return change(k, 3), change(v, 2)


def commit(cache, fresh, rows: Rows, together: bool):
  """Moves the columns of a decode call into their slots, behind those that are there.

  The loop is over the slots in use alone, but over all where the lanes must stay `together`.
  """
  real = rows.limit > 0
  order = jnp.argsort(~real, stable=True)

  def move(i, cache):
    slot = order[i]

    def put(x, new, start):
      piece = lax.dynamic_slice_in_dim(new, slot, 1)
      old = lax.dynamic_slice(x, (slot, 0, *start), piece.shape)
      return lax.dynamic_update_slice(x, jnp.where(real[slot], piece, old), (slot, 0, *start))

    at = rows.count[slot]
    return tuple(
      (put(k, nk, (0, at)), put(v, nv, (at, 0))) for (k, v), (nk, nv) in zip(cache, fresh)
    )

  return lax.fori_loop(0, len(real) if together else jnp.sum(real), move, cache)


def make_decode(config, sampler, stop: tuple[int, ...], together: bool):
  """-> decode(weights, cache, store, (length, rows), step_key, temperature) -> (cache, Chunk):
  samples up to `sampler.chunk` tokens for every active slot.

  A slot is active until it samples a token of `stop` or reaches its limit; the loop ends when none
  is. `length` int32 [E]: columns of each prompt. `together`: the lanes leave their loops at the
  same step. They must where the model is split over further devices: its collectives span all of
  them, and the others would wait for a lane that had left.
  """
  chunk = sampler.chunk

  def some(active):
    found = jnp.any(active)
    return sharding.total(found.astype(jnp.int32), sharding.ROWS) > 0 if together else found

  def decode(weights, cache, store, asked, step_key, temperature):
    length, rows = asked
    keys = jax.vmap(lambda p, i: rng.rollout_key(step_key, p, i))(rows.prompt, rows.index)
    shared = shared_prompts(rows, length, sampler.share)

    def step(carry):
      i, _, fresh, token, active, *buffers = carry
      caches = decoding.Caches(store, shared, cache, rows.count, fresh, i)
      hidden, fresh = decoding.decode(config, weights, caches, token, rows.position + i)
      logits = decoder.logits(config, weights, hidden)
      key = jax.vmap(jax.random.fold_in)(keys, rows.count + i)
      drawn = categorical.sample_token(key, logits, temperature, sampler.top_k, sampler.top_p)
      buffers = [
        lax.dynamic_update_slice_in_dim(b, x[:, None], i, 1) for b, x in zip(buffers, drawn)
      ]
      ended = jnp.isin(drawn[0], jnp.asarray(stop)) | (rows.count + i + 1 >= rows.limit)
      active &= ~ended
      return i + 1, some(active), fresh, drawn[0], active, *buffers

    # Inside `shard_map` the loop's carry must vary over the mesh from the start: adding a zero of
    # the rows, which do, makes these zeros vary too.
    zero = 0 * rows.token
    ints = jnp.zeros((len(zero), chunk), jnp.int32) + zero[:, None]
    floats = ints.astype(jnp.float32)
    fresh = jax.tree.map(
      lambda x: x + zero[:, None, None, None].astype(x.dtype),
      decoding.empty_cache(config, len(zero), chunk),
    )
    active = rows.count < rows.limit
    start = (zero[0], some(active), fresh, rows.token, active, ints, floats, floats)
    steps, _, fresh, _, active, *buffers = lax.while_loop(
      lambda c: (c[0] < chunk) & c[1], step, start
    )
    return commit(cache, fresh, rows, together), Chunk(*buffers, active=active, steps=steps[None])

  return decode


def shared_prompts(rows: Rows, length, share: int) -> decoding.Shared:
  """Which slots go on from which of the E prompts of `length` [E] columns; `share`: rollouts of a
  prompt in flight at most."""
  size, entries = len(rows.token), len(length)
  place = jnp.where(rows.limit > 0, rows.place, entries * share)
  table = (
    jnp.full((entries * share,), size)
    .at[place]
    .set(jnp.arange(size), mode="drop")
    .reshape(entries, share)
  )
  return decoding.Shared(table, place, length)


def shapes(sampler, lanes: int) -> list[Shape]:
  """The cache's shapes, the cheapest first: all columns for a half, a quarter ... of the slots, and
  all slots for equal parts of the columns."""
  slots, columns = sampler.slots // lanes, sampler.max_response
  fewer = [(max(slots // 2**i, 1), columns) for i in range(1, sampler.slot_sizes)]
  shorter = [
    (slots, -(-columns * i // sampler.column_sizes)) for i in range(1, sampler.column_sizes)
  ]
  # a chunk is moved as a whole
  found = {Shape(n, c + sampler.chunk) for n, c in [(slots, columns), *fewer, *shorter]}
  return sorted(found, key=lambda shape: shape.slots * shape.columns)


class Arguments(NamedTuple):
  """What stands for the programs' arguments where they are lowered: shapes and shardings."""

  store: callable  # () -> store
  cache: callable  # Shape -> cache
  weights: callable  # params -> weights
  prompts: callable  # () -> (tokens, length, entry) of `prefill`
  rows: callable  # Shape -> (length, Rows) of `decode`
  slots: callable  # Shape -> slots of `resize`


def arguments(config, sampler, mesh) -> Arguments:
  """The arguments of `make`'s programs, of which nothing is allocated."""
  lanes, at = sharding.lanes(mesh), cache_sharding(config, mesh)
  ints = lambda *size: jax.ShapeDtypeStruct(size, np.int32)
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  def cache(shape):
    empty = jax.eval_shape(
      partial(decoding.empty_cache, config, lanes * shape.slots, shape.columns)
    )
    return jax.tree.map(lambda x: place(x, at), empty)

  def weights(params):
    found = jax.eval_shape(partial(decoding.decode_weights, config), params)
    return jax.tree.map(place, found, sharding.param_shardings(mesh, found, decode=True))

  return Arguments(
    store=lambda: cache(Shape(sampler.open_prompts // lanes, sampler.max_prompt)),
    cache=cache,
    weights=weights,
    prompts=lambda: (
      ints(sampler.prefill, sampler.max_prompt),
      ints(sampler.prefill),
      ints(sampler.prefill),
    ),
    rows=lambda shape: (
      ints(sampler.open_prompts),
      Rows(*(ints(lanes * shape.slots) for _ in Rows._fields)),
    ),
    slots=lambda shape: ints(lanes * shape.slots),
  )


def cache_sharding(config, mesh) -> NamedSharding:
  """Of every array of store and cache: [slots, KV, ...]."""
  heads = "tensor" if config.num_kv_heads % mesh.shape["tensor"] == 0 else None
  return NamedSharding(mesh, PartitionSpec(sharding.ROWS, heads))


def make(config, sampler, stop: tuple[int, ...], mesh) -> Programs:
  """Compiles the programs for a model `config`, a `config.sampler`, the stop tokens and a mesh.

  Raises ValueError where slots, open prompts or the prefill batch do not divide by the data axis.
  """
  lanes = sharding.lanes(mesh)
  for name in ("slots", "open_prompts", "prefill"):
    if sampler[name] % lanes:
      raise ValueError(
        f"config.sampler.{name}: found {sampler[name]}, expected a multiple of {lanes}, the "
        "devices along config.mesh.data and config.mesh.fsdp; it may change when a run goes on"
      )
  split, whole = PartitionSpec(sharding.ROWS), PartitionSpec()
  mapped = partial(sharding.mapped, mesh, axes=sharding.ROWS)
  # Each program's cache is the next one's argument. Were its sharding left to the compiler, two
  # programs could choose differently, and the second would compile again for what it is given.
  at = cache_sharding(config, mesh)

  @cache
  def empty(size, columns):
    fill = partial(decoding.empty_cache, config, size, columns)
    return jax.jit(mapped(fill, (), split), out_shardings=at)

  @cache
  def resized(shape):
    part = mapped(partial(resize, shape=shape), (split, split), split)
    return jax.jit(part, out_shardings=at)

  return Programs(
    store=empty(sampler.open_prompts // lanes, sampler.max_prompt),
    cache=lambda shape: empty(*shape)(),
    resize=resized,
    weights=jax.jit(partial(weights, config, mesh)),
    prefill=jax.jit(make_prefill(config, mesh), donate_argnums=1, out_shardings=at),
    decode=jax.jit(
      mapped(
        make_decode(config, sampler, tuple(stop), together=mesh.shape["tensor"] > 1),
        (whole, split, split, split, whole, whole),
        split,
      ),
      donate_argnums=1,
      out_shardings=(at, None),
    ),
  )


def make_prefill(config, mesh):
  """-> prefill(params, store, tokens [B, T], length [B], entry [B]) -> store.

  The compiler splits the work: rows over the devices, and each layer's parameters are gathered in
  its turn. Only the writing into the store is mapped.
  """
  split, at = PartitionSpec(sharding.ROWS), cache_sharding(config, mesh)
  mapped = sharding.mapped(mesh, put, (split, split, split), split, sharding.ROWS)
  write = jax.jit(mapped, out_shardings=at)
  constrain = lax.with_sharding_constraint

  def prefill(params, store, tokens, length, entry):
    # A lookup in an embedding that is split over two axes may abort XLA (jax 0.12).
    params = params | {"embedding": constrain(params["embedding"], sharding.replicated(mesh))}
    tokens, length = constrain((tokens, length), NamedSharding(mesh, split))
    return write(store, constrain(decoding.prefill(config, params, tokens, length), at), entry)

  return prefill
