"""The sampler's device side: prefill and decode, over a fixed set of slots.

Invariant. A slot of the cache holds one rollout: the keys and values of its token at position p lie in column p.
The last token is not yet in the cache; a rollout starts with the last prompt token as its last token, so that
every decode step of an active row samples exactly one response token.

Prompts are prefilled once into the store; a rollout starts by a copy of its prompt's columns. Token t of a
rollout is drawn with `fold_in(rollout_key, t)`: a rollout depends on neither its slot nor its neighbours.

A decode call works on R rows, each a slot, and on the first columns of the cache, for a few pairs (R, columns)
compiled beforehand: ended rollouts and columns that nothing has reached yet cost nothing then. Its loop only reads
the cache; what it computes goes into a small cache of its own, whose columns are moved to the slots behind it.

Slots and store are split over the mesh's data axis; each shard ("lane") owns its own and never looks at
another's. Everything here is pure; `schedule.py` decides on the host what goes where.
"""

from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from v05_jax import rng, sharding
from v05_jax.models import transformer


class Rows(NamedTuple):
  """What one decode call works on, [lanes * R] each; padding rows come last in their lane, with `limit` 0."""

  slot: np.ndarray  # int32    of this lane's cache; every slot in order where R is their number
  entry: np.ndarray  # int32   the prompt's place in this lane's store, for a rollout that starts; -1 = it goes on
  prompt: np.ndarray  # int32  position in the data stream, for the key
  index: np.ndarray  # int32   number of the rollout within its prompt
  token: np.ndarray  # int32   last token, not yet in the cache
  position: np.ndarray  # int32  its position
  count: np.ndarray  # int32   response tokens sampled so far
  limit: np.ndarray  # int32   response tokens at most


class Chunk(NamedTuple):
  """What one decode call sampled; a row's columns behind its last token mean nothing."""

  tokens: jax.Array  # int32 [R, n]
  logprob: jax.Array  # float32 [R, n]          log-softmax(logits / temperature)
  sampled_logprob: jax.Array  # float32 [R, n]  after top-k and top-p
  active: jax.Array  # bool [R]                 still active afterwards
  steps: jax.Array  # int32 [lanes]             decode steps done


class Shape(NamedTuple):
  """Of a decode call in each lane."""

  rows: int
  columns: int


class Programs(NamedTuple):
  """The compiled sampler. Every function has fixed shapes and donates what it replaces."""

  empty: callable  # () -> (cache, store)
  weights: callable  # params -> the parameters as decode wants them, whole along `fsdp`
  prefill: callable  # (params, store, tokens [B, T], length [B], entry [B]) -> store
  decode: dict  # Shape -> (weights, cache, store, Rows, step_key, temperature) -> (cache, Chunk)


def truncate(logprob: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Log-probs `[S, V]` outside the top-k, then outside the nucleus of mass `top_p`, become -inf; renormalised.

  The nucleus is the smallest set of most probable tokens whose mass reaches `top_p` (arXiv 1904.09751);
  ties at its edge stay in. Its threshold is found by bisection on the float's bits: exact, without a sort.
  """
  if top_k:
    kth = lax.top_k(logprob, min(top_k, logprob.shape[-1]))[0][:, -1:]
    logprob = jax.nn.log_softmax(jnp.where(logprob >= kth, logprob, -jnp.inf))
  if top_p < 1.0:
    bits = lax.bitcast_convert_type(jnp.exp(logprob), jnp.int32)  # ordered like the probabilities
    mass = lambda low: jnp.sum(jnp.where(bits >= low, jnp.exp(logprob), 0.0), -1, keepdims=True)

    def halve(_, bounds):
      low, high = bounds  # mass(low) >= top_p > mass(high)
      middle = low + (high - low) // 2
      enough = mass(middle) >= top_p
      return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros_like(bits[:, :1])
    low, _ = lax.fori_loop(0, 31, halve, (low, low + lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32)))
    logprob = jax.nn.log_softmax(jnp.where(bits >= low, logprob, -jnp.inf))
  return logprob


def draw(key: jax.Array, logprob: jax.Array, block: int = 128) -> jax.Array:
  """One token a row from log-probs `[S, V]` by inverting the distribution function; one uniform a row.

  The sum runs over blocks of the vocabulary first, then inside the block that is hit, so that a large
  vocabulary costs one pass and no random number a token.
  """
  probability = jnp.exp(logprob)
  size, vocab = probability.shape
  padded = jnp.pad(probability, ((0, 0), (0, -vocab % block))).reshape(size, -1, block)
  cumulative = jnp.cumsum(padded.sum(-1), -1)  # [S, blocks]
  uniform = jax.vmap(jax.random.uniform)(key)
  target = uniform * cumulative[:, -1]
  hit = jnp.sum(cumulative <= target[:, None], -1).clip(0, padded.shape[1] - 1)
  before = jnp.where(hit > 0, _pick(cumulative, jnp.maximum(hit - 1, 0)), 0.0)
  inside = jnp.take_along_axis(padded, hit[:, None, None], axis=1)[:, 0]
  offset = jnp.sum(jnp.cumsum(inside, -1) <= (target - before)[:, None], -1)
  token = jnp.minimum(hit * block + offset, vocab - 1).astype(jnp.int32)
  # Rounding of the sums may point past the last token of positive probability: take the mode instead.
  return jnp.where(_pick(probability, token) > 0, token, jnp.argmax(probability, -1).astype(jnp.int32))


def _pick(table, index):
  return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]


def sample_token(key, logits, temperature, top_k: int, top_p: float):
  """Draws from softmax(logits / temperature) -> (token, log-prob, log-prob after truncation), each `[S]`.

  The trainer's log-probs are untruncated at the same temperature, so `logprob` is what it compares with.
  """
  logprob = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  sampled = truncate(logprob, top_k, top_p)
  token = draw(key, sampled)
  return token, _pick(logprob, token), _pick(sampled, token)


def weights(config, mesh, params):
  """The parameters for decode, cast and gathered along `fsdp` once, where a loop would do it at every step."""
  whole = lambda where: where.update(spec=PartitionSpec(*(None if a == "fsdp" else a for a in where.spec)))
  at = jax.tree.map(whole, sharding.param_shardings(mesh, params))
  return transformer.decode_weights(config, lax.with_sharding_constraint(params, at))


def prefill(config, params, store, tokens, length, entry):
  """Writes the keys and values of B prompts into the store; entries out of range are dropped (padding)."""
  new = transformer.prefill(config, _whole_embedding(params), tokens, length)
  return jax.tree.map(lambda old, x: old.at[entry].set(x.astype(old.dtype), mode="drop"), store, new)


def _whole_embedding(params):
  """A lookup in an embedding that is split over two axes inside a mapped program aborts XLA (jax 0.12)."""
  whole = lax.with_sharding_constraint(params["embedding"], PartitionSpec())
  return params | {"embedding": whole}


def admit(cache, store, rows: Rows, together: bool):
  """Copies the prompts' columns into the slots of the rollouts that start."""
  starts = rows.entry >= 0

  def copy(cache, row):
    take = lambda kept: lax.dynamic_slice_in_dim(kept, jnp.maximum(rows.entry[row], 0), 1)
    return jax.tree.map(lambda x, kept: _put(x, take(kept), rows.slot[row], (0, 0), starts[row]), cache, store)

  return _each(starts, together, copy, cache)


def commit(cache, fresh, rows: Rows, together: bool):
  """Moves the columns of a decode call into its rows' slots, to where the rows stood."""
  real = rows.limit > 0

  def move(cache, row):
    slot, at = rows.slot[row], rows.position[row]
    put = lambda x, piece, start: _put(x, lax.dynamic_slice_in_dim(piece, row, 1), slot, start, real[row])
    return tuple((put(k, nk, (0, at)), put(v, nv, (at, 0))) for (k, v), (nk, nv) in zip(cache, fresh))

  return _each(real, together, move, cache)


def _each(chosen, together: bool, change, cache):
  """`cache = change(cache, row)` for every row of `chosen` [R]; `together`: for the others too, as lanes must."""
  order = jnp.argsort(~chosen, stable=True)
  count = len(chosen) if together else jnp.sum(chosen)
  return lax.fori_loop(0, count, lambda i, cache: change(cache, order[i]), cache)


def _put(cache, piece, slot, start, wanted):
  """Writes a slot's `piece` [1, KV, a, b] at (slot, 0, *start) where `wanted`."""
  at = (slot, 0, *start)
  old = lax.dynamic_slice(cache, at, piece.shape)
  return lax.dynamic_update_slice(cache, jnp.where(wanted, piece, old), at)


def working_set(cache, rows: Rows, shape: Shape):
  """The rows' first columns: the cache itself where that is all of it, else a copy for this call."""
  def view(x, axis):
    if shape.rows < x.shape[0]:
      x = x.at[rows.slot].get(mode="promise_in_bounds")
    return lax.slice_in_dim(x, 0, shape.columns, axis=axis)

  return tuple((view(k, 3), view(v, 2)) for k, v in cache)


def decode(
  config, weights, cache, store, rows: Rows, step_key, temperature,
  *, shape: Shape, chunk: int, top_k: int, top_p: float, stop: tuple[int, ...], together: bool,
):  # fmt: skip
  """Starts the rollouts that are to start, then samples up to `chunk` tokens for every row -> (cache, Chunk).

  A row is active until it samples a token of `stop` or reaches its limit; the loop ends when none is.
  `together`: the lanes leave their loops at the same step. They must where the model is split over further
  devices: its collectives span all of them, and a lane that had left would be waited for.
  """
  cache = admit(cache, store, rows, together)
  past = working_set(cache, rows, shape)
  keys = jax.vmap(lambda p, i: rng.rollout_key(step_key, p, i))(rows.prompt, rows.index)

  def step(carry):
    i, _, fresh, token, active, *buffers = carry
    hidden, fresh = transformer.decode(config, weights, past, fresh, token, rows.position, i)
    logits = transformer.logits(config, weights, hidden)
    key = jax.vmap(jax.random.fold_in)(keys, rows.count + i)
    drawn = sample_token(key, logits, temperature, top_k, top_p)
    buffers = [lax.dynamic_update_slice_in_dim(b, x[:, None], i, 1) for b, x in zip(buffers, drawn)]
    ended = jnp.isin(drawn[0], jnp.asarray(stop)) | (rows.count + i + 1 >= rows.limit)
    active &= ~ended
    return i + 1, some(active), fresh, drawn[0], active, *buffers

  def some(active):
    found = jnp.any(active)
    return sharding.total(found.astype(jnp.int32)) > 0 if together else found

  # Made from the rows, so that they vary over the mesh as what is written into them does.
  zero = 0 * rows.token
  ints = jnp.zeros((shape.rows, chunk), jnp.int32) + zero[:, None]
  floats = ints.astype(jnp.float32)
  fresh = jax.tree.map(
    lambda x: x + zero[:, None, None, None].astype(x.dtype), transformer.empty_cache(config, shape.rows, chunk)
  )
  active = rows.count < rows.limit
  start = (zero[0], some(active), fresh, rows.token, active, ints, floats, floats)
  steps, _, fresh, _, active, *buffers = lax.while_loop(lambda c: (c[0] < chunk) & c[1], step, start)
  return commit(cache, fresh, rows, together), Chunk(*buffers, active=active, steps=steps[None])


def shapes(sampler, lanes: int) -> list[Shape]:
  """The decode calls' shapes, the cheapest first: all columns for a half, a quarter ... of the rows, and all rows for
  equal parts of the columns."""
  rows, columns = sampler.slots // lanes, sampler.max_prompt + sampler.max_response + sampler.chunk
  fewer = [Shape(-(-rows // 2**i), columns) for i in range(1, sampler.row_sizes)]
  shorter = [Shape(rows, -(-columns * i // sampler.column_sizes)) for i in range(1, sampler.column_sizes)]
  return sorted({Shape(rows, columns), *fewer, *shorter}, key=lambda shape: shape.rows * shape.columns)


def make(config, sampler, stop: tuple[int, ...], mesh) -> Programs:
  """Compiles the programs for a model `config`, a `config.sampler`, the stop tokens and a mesh.

  Raises ValueError where slots, open prompts or the prefill batch do not divide by the data axis.
  """
  lanes = mesh.shape["data"]
  for name in ("slots", "open_prompts", "prefill"):
    if sampler[name] % lanes:
      raise ValueError(
        f"config.sampler.{name}={sampler[name]} does not divide by the mesh's data axis ({lanes} devices)"
      )
  columns = sampler.max_prompt + sampler.max_response + sampler.chunk  # a chunk is moved there as a whole
  split, whole = PartitionSpec("data"), PartitionSpec()

  def empty():
    return (
      transformer.empty_cache(config, sampler.slots // lanes, columns),
      transformer.empty_cache(config, sampler.open_prompts // lanes, sampler.max_prompt),
    )

  loop = partial(
    decode, config, chunk=sampler.chunk, top_k=sampler.top_k, top_p=sampler.top_p, stop=tuple(stop),
    together=mesh.shape["fsdp"] * mesh.shape["tensor"] > 1,
  )  # fmt: skip
  mapped = partial(sharding.mapped, mesh)
  return Programs(
    empty=mapped(empty, in_specs=(), out_specs=split),
    weights=jax.jit(partial(weights, config, mesh)),
    prefill=mapped(
      partial(prefill, config), in_specs=(whole, split, split, split, split), out_specs=split, donate=(1,)
    ),
    decode={
      shape: mapped(
        partial(loop, shape=shape), in_specs=(whole, split, split, split, whole, whole), out_specs=split, donate=(1,)
      )
      for shape in shapes(sampler, lanes)
    },
  )  # fmt: skip
