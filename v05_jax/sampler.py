"""The sampler's device side: prefill, fill and decode, one jitted program each, over a fixed set of slots.

Invariant. A slot holds one rollout. Its token at position p lives in cache column p; columns `< position`
are valid, the last token (`token`, at `position`) is not yet in the cache. A rollout starts with the last
prompt token as `token`, so every decode step of an active slot samples exactly one response token. What an
inactive slot holds is never read.

Prompts are prefilled once into the store; a rollout starts by a copy of its prompt's columns. Token t of a
rollout is drawn with `fold_in(rollout_key, t)`: a rollout depends on neither its slot nor its neighbours.

Slots and store are split over the mesh's data axis; each shard ("lane") owns its own and never looks at
another's. Everything here is pure; `rollouts.py` is the host that decides what goes where.
"""

from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from v05_jax import rng, sharding
from v05_jax.models import transformer


class Slots(NamedTuple):
  """The rollouts in flight, `S` slots."""

  cache: tuple  # L x (k [S, KV, Dh, C], v [S, KV, C, Dh])
  key: jax.Array  # uint32 [S, 2]  data of the rollout's key
  token: jax.Array  # int32 [S]    last token, not yet in the cache
  position: jax.Array  # int32 [S] its position
  count: jax.Array  # int32 [S]    response tokens sampled
  limit: jax.Array  # int32 [S]    response tokens at most
  active: jax.Array  # bool [S]


class Chunk(NamedTuple):
  """What one decode call sampled; column i of an inactive slot means nothing."""

  tokens: jax.Array  # int32 [S, n]
  logprob: jax.Array  # float32 [S, n]          log-softmax(logits / temperature)
  sampled_logprob: jax.Array  # float32 [S, n]  after top-k and top-p
  active: jax.Array  # bool [S]                 still active afterwards
  steps: jax.Array  # int32 [lanes]             decode steps done


class Start(NamedTuple):
  """What `fill` puts into each slot; `entry < 0` leaves the slot as it is."""

  entry: jax.Array  # int32 [S]     the prompt's place in this lane's store
  prompt: jax.Array  # int32 [S]    position in the data stream, for the key
  index: jax.Array  # int32 [S]     number of the rollout within its prompt
  token: jax.Array  # int32 [S]     last prompt token
  position: jax.Array  # int32 [S]  its position
  limit: jax.Array  # int32 [S]     response tokens at most


class Programs(NamedTuple):
  """The compiled sampler. Every function is jitted at one fixed shape and donates what it replaces."""

  empty: callable  # () -> (slots, store)
  prefill: callable  # (params, store, tokens [B, T], length [B], entry [B]) -> store
  fill: callable  # (slots, store, step_key, Start) -> slots
  decode: callable  # (params, slots, temperature) -> (slots, Chunk)


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


def prefill(config, params, store, tokens, length, entry):
  """Writes the keys and values of B prompts into the store; entries out of range are dropped (padding)."""
  new = transformer.prefill(config, _whole_embedding(params), tokens, length)
  return jax.tree.map(lambda old, x: old.at[entry].set(x.astype(old.dtype), mode="drop"), store, new)


def _whole_embedding(params):
  """A lookup in an embedding that is split over two axes inside a mapped program aborts XLA (jax 0.12)."""
  whole = lax.with_sharding_constraint(params["embedding"], PartitionSpec())
  return params | {"embedding": whole}


def fill(slots: Slots, store, step_key, start: Start) -> Slots:
  """Starts a rollout in every slot with `start.entry >= 0`: copies its prompt's columns, sets its key."""
  fresh = start.entry >= 0
  entry = jnp.maximum(start.entry, 0)
  keys = jax.vmap(lambda p, i: rng.rollout_key(step_key, p, i))(start.prompt, start.index)

  def copy(cache, kept, axis):
    old = lax.slice_in_dim(cache, 0, kept.shape[axis], axis=axis)
    new = jnp.where(fresh[:, None, None, None], kept[entry], old)
    return lax.dynamic_update_slice_in_dim(cache, new, 0, axis)

  cache = tuple((copy(k, pk, 3), copy(v, pv, 2)) for (k, v), (pk, pv) in zip(slots.cache, store))
  choose = lambda new, old: jnp.where(fresh.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)
  return Slots(
    cache=cache,
    key=choose(jax.random.key_data(keys), slots.key),
    token=choose(start.token, slots.token),
    position=choose(start.position, slots.position),
    count=choose(jnp.zeros_like(slots.count), slots.count),
    limit=choose(start.limit, slots.limit),
    active=fresh | slots.active,
  )


def decode(config, params, slots: Slots, temperature, *, chunk, top_k, top_p, stop, together):
  """Samples up to `chunk` tokens for every active slot in one loop, which ends early when none is left.

  A slot stops being active when it samples a token of `stop` or reaches its limit. `together`: the lanes
  leave the loop at the same step. They must where the model is split over further devices: its collectives
  span all of them, and a lane that had left would be waited for.
  """
  params = _whole_embedding(params)
  size = slots.token.shape[0]
  layers = transformer.unstack(config, params)
  fold = jax.vmap(lambda key, t: jax.random.fold_in(jax.random.wrap_key_data(key), t))

  def step(carry):
    i, _, slots, tokens, logprobs, sampled = carry
    hidden, cache = transformer.decode(config, params, layers, slots.cache, slots.token, slots.position)
    logits = transformer.logits(config, params, hidden)
    token, logprob, kept = sample_token(fold(slots.key, slots.count), logits, temperature, top_k, top_p)
    write = lambda buffer, x: lax.dynamic_update_slice_in_dim(buffer, x[:, None], i, 1)
    buffers = write(tokens, token), write(logprobs, logprob), write(sampled, kept)
    count = slots.count + slots.active
    ended = jnp.isin(token, jnp.asarray(stop)) | (count >= slots.limit)
    slots = slots._replace(
      cache=cache,
      token=jnp.where(slots.active, token, slots.token),
      position=slots.position + slots.active,
      count=count,
      active=slots.active & ~ended,
    )
    return i + 1, some_active(slots), slots, *buffers

  def some_active(slots):
    active = jnp.any(slots.active)
    return sharding.total(active.astype(jnp.int32)) > 0 if together else active

  # Buffers made from the slots, so that they vary over the mesh as what is written into them does.
  ints = jnp.zeros((size, chunk), jnp.int32) + 0 * slots.token[:, None]
  floats = ints.astype(jnp.float32)
  start = (0 * slots.count[0], some_active(slots), slots, ints, floats, floats)
  steps, _, slots, *buffers = lax.while_loop(lambda c: (c[0] < chunk) & c[1], step, start)
  return slots, Chunk(*buffers, active=slots.active, steps=steps[None])


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
  columns = sampler.max_prompt + sampler.max_response
  split, whole = PartitionSpec("data"), PartitionSpec()

  def empty():
    size = sampler.slots // lanes
    zeros = jnp.zeros((size,), jnp.int32)
    slots = Slots(
      cache=transformer.empty_cache(config, size, columns),
      key=jnp.zeros((size, 2), jnp.uint32),
      token=zeros, position=zeros, count=zeros, limit=zeros, active=zeros > 0,
    )  # fmt: skip
    return slots, transformer.empty_cache(config, sampler.open_prompts // lanes, sampler.max_prompt)

  loop = partial(
    decode, config, chunk=sampler.chunk, top_k=sampler.top_k, top_p=sampler.top_p, stop=tuple(stop),
    together=mesh.shape["fsdp"] * mesh.shape["tensor"] > 1,
  )  # fmt: skip
  mapped = partial(sharding.mapped, mesh)
  return Programs(
    empty=mapped(empty, in_specs=(), out_specs=split),
    prefill=mapped(
      partial(prefill, config), in_specs=(whole, split, split, split, split), out_specs=split, donate=(1,)
    ),
    fill=mapped(fill, in_specs=(split, split, whole, split), out_specs=split, donate=(0,)),
    decode=mapped(loop, in_specs=(whole, split, whole), out_specs=split, donate=(1,)),
  )
