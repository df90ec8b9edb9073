"""The TabPFN-v2.5 classifier as V0 calls it: support rows with 0/1 labels and query rows -> logits,
as pure functions.

A table's cells are embedded in groups of columns, a target column holds the labels, and every layer
attends over the columns of a row, then over the rows of a column. Support rows and thinking rows
see each other, a query row sees them and never another query: `context` runs them once and keeps
what query rows attend to, `query` streams rows through it. Source: the specification of V0 on
tabpfn 6.2.0 (section 4), whose numbering "4.x" below refers to; no code of either.

Letters: n support rows, m query rows, F features, C = F + 1 columns (with the fingerprint), g
columns a group, G groups, T thinking rows, N = T + n, E embedding width, h heads, d = E / h, e
estimators, L layers. All sizes are read off the parameters: a flat dict under the official names,
layers stacked (`stack`), float32, matrices [out, in]:

    encoder.5.layer.weight [E, 2 g], or encoder.5.mlp.0.weight [H, 2 g] and encoder.5.mlp.2.weight
    [E, H] y_encoder.2.layer.{weight [E, 2], bias}, feature_positional_embedding_embeddings.{weight
    [E, E/4], bias} add_thinking_tokens.row_token_values [T, E], decoder_dict.standard.{0,
    2}.{weight, bias} layers.self_attn_between_{features, items}.{_w_qkv [L, 3, h, d, E], _w_out [L,
    h, d, E]} layers.mlp.{linear1.weight [L, f E, E], linear2.weight [L, E, f E]}
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.value_model.adapter import EPS, MASKED, einsum, gelu, linear, matmul
from v05_jax.value_model.ensemble import (
  column_table,
  fingerprints,
  full_mask,
  keep_columns,
  make_columns,
  moments,
  preprocess,
  randomness,
  standardize,
)

__all__ = (
  "average",
  "column_table",
  "context",
  "fingerprints",
  "forward",
  "keep_columns",
  "make_columns",
  "moments",
  "predict",
  "preprocess",
  "query",
  "randomness",
  "raw_logits",
  "stack",
  "standardize",
)

CLASSES = 2  # of the decoder's outputs, those in use
TEMPERATURE = 0.9
SIGMA = 12.0  # support values farther out are outliers
CLIP = 100.0  # of z-scored cells
# indicators: of a cell not finite, of a row without a label
NAN, POSITIVE, NEGATIVE, QUERY = -2.0, 2.0, 4.0, -2.0
LAYER = "transformer_encoder.layers."


class Statistics(NamedTuple):
  """What the support says of the cells, [G, g] each, and of the labels; queries are encoded by it
  (4.5, 4.6)."""

  constant: jax.Array  # bool, after the reordering: these cells are 0
  fill: jax.Array  # in place of a value that is not finite
  lower: jax.Array  # outlier bounds
  upper: jax.Array
  mean: jax.Array
  std: jax.Array  # > 0
  used: jax.Array  # int32 [G, 1]: columns of the group that vary, at least 1
  order: jax.Array  # int32: the column of its group that stands here
  label: jax.Array  # []: mean label


class Cache(NamedTuple):
  """What query rows need of a context. Keys and values are head 0's; the last layer needs the
  target column alone."""

  statistics: Statistics
  keys: jax.Array  # [L - 1, G + 1, N, d]
  values: jax.Array
  target_keys: jax.Array  # [1, N, d]
  target_values: jax.Array
  mask: jax.Array  # bool [N]: a real row


def stack(state_dict):
  """Parameters from a checkpoint's `state_dict` {official name: array}: layers stacked as
  "layers.<name>" [L, ...].

  ValueError where the layers are not 0 .. L-1 with the same tensors each.
  """
  params, layers = {}, {}
  for name, value in state_dict.items():
    value = np.asarray(value, np.float32)
    if name.startswith(LAYER):
      number, _, rest = name.removeprefix(LAYER).partition(".")
      layers.setdefault(rest, {})[int(number)] = value
    else:
      params[name] = jax.device_put(value)
  depth = max((max(found) for found in layers.values()), default=-1) + 1
  for name, found in layers.items():
    if sorted(found) != list(range(depth)):
      raise ValueError(f"{LAYER}*.{name}: found layers {sorted(found)}, expected 0 to {depth - 1}")
    params[f"layers.{name}"] = jax.device_put(np.stack([found[i] for i in range(depth)]))
  return params


def unstack(params):
  """The `state_dict` that `stack` takes: {official name: numpy array}."""
  found = {name: np.asarray(x) for name, x in params.items() if not name.startswith("layers.")}
  for name, stacked in params.items():
    if name.startswith("layers."):
      found |= {
        f"{LAYER}{i}.{name.removeprefix('layers.')}": x for i, x in enumerate(np.asarray(stacked))
      }
  return found


# --- Cells to tokens


def constant_columns(x, mask):
  """bool [...]: the columns of x [R, ...] that are equal in all rows where mask [R]; a NaN equals
  nothing."""
  mask = mask.reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.all((x == x[jnp.argmax(mask)]) | ~mask, axis=0)


def into_groups(x, size):
  """x [..., C] -> [..., G, g], zero columns (False ones) at the end."""
  groups = -(-x.shape[-1] // size)
  padding = [(0, 0)] * (x.ndim - 1) + [(0, groups * size - x.shape[-1])]
  return jnp.pad(x, padding).reshape(*x.shape[:-1], groups, size)


def reorder(statistics, x):
  """Groups [R, G, g] of x [R, C] with the columns that vary in front, in order, and zeros behind
  (4.5.2)."""
  x = into_groups(x, statistics.order.shape[1])
  x = jnp.take_along_axis(x, statistics.order[None], axis=2)
  return jnp.where(statistics.constant, 0.0, x)


def make_statistics(x, y, mask, others, size):
  """`Statistics` of support rows x [n, C] with labels y [n] where mask [n], for groups of `size`
  columns.

  `others` = (rows, mask): a column is constant if it is so over the support and them.
  """
  every = jnp.concatenate([x, others[0]]), jnp.concatenate([mask, others[1]])
  constant = ~into_groups(~constant_columns(*every), size)  # padding counts as constant
  order = jnp.argsort(constant, axis=1, stable=True).astype(jnp.int32)
  constant = jnp.take_along_axis(constant, order, axis=1)
  zeros = jnp.zeros(constant.shape, jnp.float32)
  label = jnp.sum(jnp.where(mask, y, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
  s = Statistics(
    constant, zeros, zeros, zeros, zeros, zeros, jnp.ones((len(order), 1)), order, label
  )
  x = reorder(s, x)
  s = s._replace(
    fill=moments(jnp.where(jnp.isfinite(x), x, 0.0), mask[:, None, None] & jnp.isfinite(x))[0]
  )
  x, inside = fill(s, x)[0], jnp.broadcast_to(mask[:, None, None], x.shape)
  mean, std = moments(x, inside)
  mean, std = moments(x, inside & (x >= mean - SIGMA * std) & (x <= mean + SIGMA * std))
  s = s._replace(lower=mean - SIGMA * std, upper=mean + SIGMA * std)
  mean, std = moments(clip(s, x), inside)
  s = s._replace(mean=mean, std=jnp.where(std == 0, 1.0, std) + 1e-16)
  varies = ~constant_columns(normalize(s, fill(s, reorder(s, every[0]))[0]), every[1])
  return s._replace(used=jnp.maximum(jnp.sum(varies, axis=1, keepdims=True), 1))


def fill(statistics, x):
  """(x with its values that are not finite replaced, their indicators), [R, G, g] both (4.5.3)."""
  indicators = jnp.where(
    jnp.isnan(x), NAN, jnp.where(x == jnp.inf, POSITIVE, jnp.where(x == -jnp.inf, NEGATIVE, 0.0))
  )
  return jnp.where(jnp.isfinite(x), x, statistics.fill), indicators


def clip(statistics, x):
  """x [R, G, g] bounded softly, by logarithms, to what the support calls usual (4.5.4)."""
  x = jnp.maximum(x, statistics.lower - jnp.log1p(jnp.abs(x)))
  return jnp.minimum(x, statistics.upper + jnp.log1p(jnp.abs(x)))


def normalize(statistics, x):
  """x [R, G, g] clipped and z-scored by the support (4.5.4, 4.5.5)."""
  return jnp.clip((clip(statistics, x) - statistics.mean) / statistics.std, -CLIP, CLIP)


def scale(statistics, x):
  """Groups [R, G, g] of `reorder` -> (what the network sees of them, indicators), [R, G, g] both
  (4.5.3 - 4.5.6)."""
  x, indicators = fill(statistics, x)
  return normalize(statistics, x) * jnp.sqrt(x.shape[2] / statistics.used), indicators


def embed_cells(params, x, indicators):
  """[R, G, E] of `scale`'s two [R, G, g] (4.5.7)."""
  x = jnp.concatenate([x, indicators], axis=-1)
  if "encoder.5.layer.weight" in params:
    return matmul(x, params["encoder.5.layer.weight"])
  return matmul(gelu(matmul(x, params["encoder.5.mlp.0.weight"])), params["encoder.5.mlp.2.weight"])


def embed_columns(params, table, groups):
  """[G, E]: what is added to every row's cells, from the table [>= G, E/4] (4.7)."""
  name = "feature_positional_embedding_embeddings"
  width = params[f"{name}.weight"].shape[1]
  if table.shape[0] < groups or table.shape[1] != width:
    raise ValueError(
      f"table: found shape {table.shape}, expected at least {groups} rows of {width}"
    )
  return linear(params, name, table[:groups])


def make_tokens(params, statistics, x, y, table):
  """Tokens [R, G + 1, E] of rows x [R, C] with y [R, 2] = (label, indicator), the target column
  last."""
  cells = embed_cells(params, *scale(statistics, reorder(statistics, x)))
  cells = cells + embed_columns(params, table, cells.shape[1])
  return jnp.concatenate([cells, linear(params, "y_encoder.2.layer", y)[:, None]], axis=1)


def group_size(params):
  """g."""
  name = (
    "encoder.5.layer.weight" if "encoder.5.layer.weight" in params else "encoder.5.mlp.0.weight"
  )
  return params[name].shape[1] // 2


# --- Layers; `layer` holds one layer's parameters without the prefix "layers."


def split_layers(params):
  """(the first L - 1 layers, stacked; the last one)."""
  layers = {
    name.removeprefix("layers."): x for name, x in params.items() if name.startswith("layers.")
  }
  return {name: x[:-1] for name, x in layers.items()}, {name: x[-1] for name, x in layers.items()}


def mix_columns(layer, tokens, target=False):
  """Self-attention over the columns of each row: [R, K, E] -> the same, or [R, 1, E] for the last
  column alone."""
  weight, out = (layer[f"self_attn_between_features.{x}"] for x in ("_w_qkv", "_w_out"))
  asking = tokens[:, -1:] if target else tokens
  q, k, v = project(weight[:1], asking)[0], *project(weight[1:], tokens)  # [R, K, h, d]
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  found = attend(q, k, v).swapaxes(1, 2)
  return layer_norm(asking + matmul(found.reshape(*asking.shape[:2], -1), flatten(out).T))


def mix_rows(layer, tokens, keys, values, mask):
  """Attention of rows [R, K, E] over the training rows of their column: keys and values [K, N, d],
  or [K, h, N, d].

  `mask` bool [N]. Query rows are given head 0's keys and values for all their heads, training rows
  every head's.
  """
  weight, out = (layer[f"self_attn_between_items.{x}"] for x in ("_w_qkv", "_w_out"))
  rows, columns, _ = tokens.shape
  q = project(weight[:1], tokens)[0].swapaxes(0, 1)  # [K, R, h, d]
  if keys.ndim == 4:
    found = attend(q.swapaxes(1, 2), keys, values, mask).swapaxes(1, 2)
  else:
    found = attend(q.reshape(columns, -1, q.shape[-1]), keys, values, mask)
  found = found.reshape(columns, rows, -1).swapaxes(0, 1)
  return layer_norm(tokens + matmul(found, flatten(out).T))


def attend(q, k, v, mask=None):
  """softmax(q k / sqrt(d)) v for q [..., Q, d], k and v [..., S, d], over the sources where mask
  [S].

  The division by softmax's sum waits for the product with v: one pass less over the scores.
  """
  scores = einsum("...qd,...sd->...qs", q * q.shape[-1] ** -0.5, k)
  scores = scores if mask is None else scores + jnp.where(mask, 0.0, MASKED)
  share = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
  return einsum("...qs,...sd->...qd", share, v) / jnp.sum(share, -1, keepdims=True)


def project(weight, tokens):
  """[J, ..., h, d] of tokens [..., E] by weight [J, h, d, E], in one matrix product."""
  found = matmul(tokens, flatten(weight))
  return jnp.moveaxis(found.reshape(*tokens.shape[:-1], *weight.shape[:3]), -3, 0)


def flatten(weight):
  """[..., E] -> [the product of the rest, E]."""
  return weight.reshape(-1, weight.shape[-1])


def keys_and_values(layer, tokens):
  """All heads' keys and values of training rows [N, K, E], two [K, h, N, d]."""
  found = project(layer["self_attn_between_items._w_qkv"][1:], tokens)  # [2, N, K, h, d]
  return tuple(found.transpose(0, 2, 3, 1, 4))


def mlp(layer, tokens):
  """The last sublayer, on every token."""
  return layer_norm(
    tokens + matmul(gelu(matmul(tokens, layer["mlp.linear1.weight"])), layer["mlp.linear2.weight"])
  )


def layer_norm(x):
  """LayerNorm over the last axis, without parameters."""
  x = x - jnp.mean(x, -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)


def decode(params, target):
  """All outputs [R, 10] of the decoder for the target column's tokens [R, E] (4.9)."""
  return linear(
    params, "decoder_dict.standard.2", gelu(linear(params, "decoder_dict.standard.0", target))
  )


# --- The forward pass of one estimator


@jax.jit
def context(params, x_support, y, table, support_mask=None, others=None) -> Cache:
  """Runs thinking and support rows through all layers: what `query` needs of them.

  Args:
    params: of `stack`.
    x_support, y: [n, C], [n] of `preprocess`.
    table: [>= G, E/4], see `column_table`.
    support_mask: bool [n]; rows outside are padding and change nothing. None = all are real.
    others: the query rows [m, C] and their mask, bool [m], where they are known: nothing of them is
      kept but which columns are constant. The model leaves out the columns constant over support
      and queries (4.5.2, 4.5.6); None = those constant over the support, as in a stream. The two
      agree for every table of `preprocess` with `keep_columns`, which has dropped them already.
  """
  mask = full_mask(x_support, support_mask)
  x_support, y = jnp.where(mask[:, None], x_support, 0.0), jnp.where(mask, y, 0.0)
  others = (x_support[:0], mask[:0]) if others is None else others
  statistics = make_statistics(x_support, y, mask, others, group_size(params))
  tokens = make_tokens(params, statistics, x_support, jnp.stack([y, jnp.zeros_like(y)], 1), table)
  thinking = params["add_thinking_tokens.row_token_values"]
  thinking = jnp.broadcast_to(thinking[:, None], (len(thinking), *tokens.shape[1:]))
  tokens, mask = (
    jnp.concatenate([thinking, tokens]),
    jnp.concatenate([jnp.ones(len(thinking), bool), mask]),
  )

  def step(tokens, layer):
    tokens = mix_columns(layer, tokens)
    keys, values = keys_and_values(layer, tokens)
    return mlp(layer, mix_rows(layer, tokens, keys, values, mask)), (keys[:, 0], values[:, 0])

  first, last = split_layers(params)
  tokens, (keys, values) = jax.lax.scan(step, tokens, first)
  target = keys_and_values(last, mix_columns(last, tokens, target=True))
  return Cache(statistics, keys, values, *(x[:, 0] for x in target), mask)


@jax.jit
def query(params, cache: Cache, x_query, table):
  """Raw logits [m, 2] of rows x_query [m, C]; rows do not see each other, so that any split gives
  the same."""
  y = jnp.broadcast_to(jnp.stack([cache.statistics.label, QUERY]), (x_query.shape[0], 2))
  tokens = make_tokens(params, cache.statistics, x_query, y, table)

  def step(tokens, inputs):
    layer, keys, values = inputs
    return mlp(layer, mix_rows(layer, mix_columns(layer, tokens), keys, values, cache.mask)), None

  first, last = split_layers(params)
  tokens, _ = jax.lax.scan(step, tokens, (first, cache.keys, cache.values))
  target = mix_rows(
    last, mix_columns(last, tokens, target=True), cache.target_keys, cache.target_values, cache.mask
  )
  return decode(params, mlp(last, target)[:, 0])[:, :CLASSES]


@jax.jit
def forward(params, x_support, y, x_query, table, support_mask=None, query_mask=None):
  """Raw logits [m, 2] of one estimator's table (`preprocess`); rows outside the masks [n], [m] are
  padding.

  Padding query rows get finite logits without a meaning.
  """
  others = x_query, full_mask(x_query, query_mask)
  return query(params, context(params, x_support, y, table, support_mask, others), x_query, table)


@jax.jit
def raw_logits(
  params,
  features_support,
  labels,
  features_query,
  tables,
  fingerprints_support,
  fingerprints_query,
  permutations,
  keep=None,
  support_mask=None,
  query_mask=None,
):
  """Logits [e, m, 2] of every estimator, before temperature; arguments as of `predict`."""

  def one(table, fingerprints, permutation):
    x, y, x_query = preprocess(
      features_support, labels, features_query, fingerprints, permutation, keep, support_mask
    )
    return forward(params, x, y, x_query, table, support_mask, query_mask)

  tables = jnp.broadcast_to(tables, (len(permutations), *tables.shape[-2:]))
  return jax.vmap(one)(tables, (fingerprints_support, fingerprints_query), permutations)


def predict(
  params,
  features_support,
  labels,
  features_query,
  tables,
  fingerprints_support,
  fingerprints_query,
  permutations,
  keep=None,
  temperature=TEMPERATURE,
  support_mask=None,
  query_mask=None,
):
  """(logits [m, 2], probabilities of success [m]): estimators averaged before the softmax (4.9).

  Args:
    params: of `stack`.
    features_support, labels, features_query: [n, F], [n] (scores or 0/1), [m, F], see `preprocess`.
    tables: [>= G, E/4] for all estimators, or [e, >= G, E/4].
    fingerprints_support, fingerprints_query: [e, n], [e, m] in [0, 1), of `fingerprints` or any
      uniform source.
    permutations: int [e, C], of `randomness`.
    keep: int [F'] of `keep_columns`; None = no feature is constant over the support.
    temperature: divides the logits.
    support_mask, query_mask: bool [n], [m]; rows outside are padding. None = all rows are real.
  """
  raw = raw_logits(
    params,
    features_support,
    labels,
    features_query,
    tables,
    fingerprints_support,
    fingerprints_query,
    permutations,
    keep,
    support_mask,
    query_mask,
  )
  return average(raw, temperature)


def average(raw, temperature=TEMPERATURE):
  """(logits [m, 2], probabilities of success [m]) of raw logits [e, m, 2]."""
  logits = jnp.mean(raw / temperature, axis=0)
  return logits, jax.nn.softmax(logits)[:, 1]
