"""Decoding with the parameters of `decoder.py`: one token for every row against its cached keys and
values.

`decode` is unrolled over layers and keeps one cache array per layer, since XLA copies a cache that
is stacked over layers at every step of a decode loop. It reads caches that the loop does not change
and writes into a small one beside them, so that no step copies a cache or scatters into it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from v05_jax.models import lora
from v05_jax.models.decoder import (
  MASKED,
  Decoder,
  Layer,
  ModelConfig,
  causal,
  embed,
  final_norm,
  rotation,
)


class Shared(NamedTuple):
  """Which of the E prompts in a cache each of S rows goes on from, up to m rows of a prompt."""

  rows: jax.Array  # int32 [E, m]  the rows that go on from a prompt; S where there are fewer
  place: jax.Array  # int32 [S]    index of a row in `rows.ravel()`; anything for an idle row
  length: jax.Array  # int32 [E]   columns of the prompt


class Caches(NamedTuple):
  """What S rows attend to: three caches, each a tuple of L pairs (k [., KV, Dh, C], v [., KV, C,
  Dh]), and which of their columns hold something."""

  prompts: tuple  # [E]  read once for all rows of a prompt: the columns `< shared.length`
  shared: Shared
  past: tuple  # [S]  a row's own tokens before this loop, which only reads it: columns `< count`
  count: jax.Array  # int32 [S]
  fresh: tuple  # [S]  a row's newest tokens, one column a step, written here: columns `<= step`
  step: jax.Array  # int32 []  the same for all rows


def attend_part(q, cache, mask):
  """Attention over a part of the columns, to be joined with that over the others: q [B, KV, Q, Dh],
  k [B, KV, Dh, C], v [B, KV, C, Dh], mask bool [B or 1, C], or [B, Q, C] where each query has its
  own.

  -> (sum of exp(score - most) v [B, KV, Q, Dh], sum of exp(score - most), most [B, KV, Q, 1]),
    float32, where `most` is the highest score of the part.
  """
  k, v = cache
  scores = jnp.matmul(q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  scores = jnp.where(mask[:, None] if mask.ndim == 3 else mask[:, None, None], scores, MASKED)
  most = jnp.max(scores, -1, keepdims=True)
  weights = jnp.exp(scores - most)
  out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return out, jnp.sum(weights, -1, keepdims=True), most


def attend_shared(q, cache, shared, mask, reach=None):
  """`attend_part` of q [S, KV, G, Dh] over the prompts: each is read once for all rows that go on
  from it. mask: bool [E, C], the columns of the prompts; reach: bool [S, C], which of them a row
  can see, where that is not all."""
  count, most = shared.rows.shape
  _, heads, group, width = q.shape
  if reach is not None:
    reach = reach.at[shared.rows].get(mode="fill", fill_value=False)  # [E, m, C]
    mask = jnp.repeat(mask[:, None] & reach, group, axis=1)
  q = q.at[shared.rows].get(mode="fill", fill_value=0)  # [E, m, KV, G, Dh]
  parts = attend_part(q.swapaxes(1, 2).reshape(count, heads, most * group, width), cache, mask)

  def back(x):
    x = x.reshape(count, heads, most, group, -1).swapaxes(1, 2)
    return x.reshape(count * most, heads, group, -1).at[shared.place].get(mode="clip")

  return tuple(map(back, parts))


def join(*parts):
  """The attention over all columns, from what `attend_part` returns for parts of them; a query must
  see a column in one part at least."""
  highest = functools.reduce(jnp.maximum, (most for *_, most in parts))
  scales = [jnp.exp(most - highest) for *_, most in parts]
  out = sum(out * scale for (out, *_), scale in zip(parts, scales))
  return out / sum(total * scale for (_, total, _), scale in zip(parts, scales))


def decode_weights(config: ModelConfig, params):
  """The parameters as `decode` and `logits` want them: matrices in the compute dtype, with their
  adapters merged into them, `layers` a tuple of L trees."""

  def cast(path, x):
    return x if path[-1].key in ("scale", *lora.NAMES) else x.astype(config.dtype)

  params = jax.tree_util.tree_map_with_path(cast, params)
  layers = lora.merge_layers(config, params["layers"])
  layer = lambda i: jax.tree.map(lambda x: x[i], layers)
  return params | {"layers": tuple(map(layer, range(config.num_layers)))}


def empty_cache(config: ModelConfig, slots: int, columns: int):
  """Zeroed cache: a tuple of L pairs (k [S, KV, Dh, C], v [S, KV, C, Dh]) in the compute dtype."""
  shape = (slots, config.num_kv_heads)
  return tuple(
    (
      jnp.zeros((*shape, config.head_dim, columns), config.dtype),
      jnp.zeros((*shape, columns, config.head_dim), config.dtype),
    )
    for _ in range(config.num_layers)
  )


def prefill(config: ModelConfig, params, tokens, length):
  """The cache of prompts: a tuple of L pairs (k [N, KV, Dh, T], v [N, KV, T, Dh]).

  tokens int32 [N, T] right-padded, length int32 [N]. The rotary embedding is applied to k. Columns
  at and after `length` are finite and meaningless.
  """
  index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = causal((index < length[:, None]).astype(jnp.int32))
  _, (k, v) = Decoder(config, keep_kv=True).apply({"params": params}, tokens, index, mask)
  return tuple((k[i], v[i]) for i in range(config.num_layers))


def decode(config: ModelConfig, weights, caches: Caches, token, position):
  """One token for every row: (hidden [S, D] after the final norm, `caches.fresh` with this token's
  k and v).

  weights: `decode_weights(config, params)`; token and its position (for the rotary embedding) int32
  [S]. Rows do not touch each other.
  """
  plain = lora.plain(config)
  kinds = [(rotation(config, position), seen_columns(caches))]
  if config.local:
    kinds.append((rotation(config, position, local=True), near_columns(config, caches, position)))
  local = config.local.layers if config.local else (False,) * config.num_layers
  x = embed(config, weights["embedding"], token)
  new, parts = [], zip(local, caches.prompts, caches.past, caches.fresh, strict=True)
  for layer, (kind, prompts, past, fresh) in zip(weights["layers"], parts, strict=True):
    own = caches._replace(prompts=prompts, past=past, fresh=fresh)
    x, kv = _decode_layer(plain, layer, x, *kinds[kind], own)
    new.append(kv)
  x = final_norm(config).apply({"params": weights["norm"]}, x)
  return x.astype(config.dtype), tuple(new)


class Columns(NamedTuple):
  """Which columns of `Caches` hold something that a layer sees, bool."""

  prompts: jax.Array  # [E, C]
  past: jax.Array  # [S, C]
  fresh: jax.Array  # [1, C]
  reach: jax.Array | None = None  # [S, C] columns of its prompt that a row sees; None = all


def seen_columns(caches: Caches) -> Columns:
  """What a layer without a window sees."""
  columns = lambda cache: jnp.arange(cache[0][0].shape[-1])
  return Columns(
    columns(caches.prompts) < caches.shared.length[:, None],
    columns(caches.past) < caches.count[:, None],
    columns(caches.fresh)[None] <= caches.step,
  )


def near_columns(config: ModelConfig, caches: Caches, position) -> Columns:
  """What a layer of `config.local` sees of it: columns at a distance below the window from the
  position [S] of each row's token. A prompt's columns are its positions, and a row's own tokens
  follow one another up to the token at `caches.step`."""
  seen, window = seen_columns(caches), config.local.window
  columns = lambda cache: jnp.arange(cache[0][0].shape[-1])
  behind = caches.count[:, None] + caches.step
  return Columns(
    seen.prompts,
    seen.past & (behind - columns(caches.past) < window),
    seen.fresh & (caches.step - columns(caches.fresh)[None] < window),
    position[:, None] - columns(caches.prompts) < window,
  )


@functools.partial(jax.jit, static_argnums=0)
def _decode_layer(config, weights, x, turn, seen: Columns, caches: Caches):
  """One layer of `decode` -> (x [S, D], the pair `caches.fresh` with this token's k and v).

  caches: this layer's pairs. Jitted so that it is traced once and not once a layer (once each with
  and without a window); XLA inlines the calls.
  """

  def attend(q, k, v):
    keys, values = caches.fresh
    fresh = (
      jax.lax.dynamic_update_slice_in_dim(keys, k[..., None], caches.step, 3),
      jax.lax.dynamic_update_slice_in_dim(values, v[:, :, None], caches.step, 2),
    )
    out = join(
      attend_shared(q, caches.prompts, caches.shared, seen.prompts, seen.reach),
      attend_part(q, caches.past, seen.past),
      attend_part(q, fresh, seen.fresh),
    )
    return out, fresh

  return Layer(config).apply({"params": weights}, x, turn, attend, method="decode")
