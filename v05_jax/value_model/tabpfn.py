"""The TabPFN-v2.5 classifier as V0 calls it, as pure functions: support rows with 0/1 labels and
query rows -> logits.

A table's cells are embedded in groups of columns (`cells`), a target column holds the labels, and
every layer attends over the columns of a row, then over the rows of a column. Support rows and
thinking rows see each other; a query row sees them and never another query. So `context` runs them
once and keeps what query rows attend to, and `query` streams rows through it. Source: the
specification of V0 on tabpfn 6.2.0 (section 4), to which numbers "4.x" refer; no code of either.

Letters: n support rows, m query rows, F features, C = F + 1 columns (with the fingerprint), g
columns a group, G groups, T thinking rows, N = T + n, E embedding width, h heads, d = E / h, e
estimators, L layers. All sizes are read off the parameters: a flat dict under the official names,
layers stacked (`stack`), float32, matrices [out, in]:

    encoder.5.layer.weight [E, 2 g], or encoder.5.mlp.0.weight [H, 2 g] and
      encoder.5.mlp.2.weight [E, H]
    y_encoder.2.layer.{weight [E, 2], bias}
    feature_positional_embedding_embeddings.{weight [E, E/4], bias}
    add_thinking_tokens.row_token_values [T, E]
    decoder_dict.standard.{0, 2}.{weight, bias}
    layers.self_attn_between_{features, items}.{_w_qkv [L, 3, h, d, E], _w_out [L, h, d, E]}
    layers.mlp.{linear1.weight [L, f E, E], linear2.weight [L, E, f E]}
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.value_model.adapter import EPS, MASKED, einsum, gelu, linear, matmul
from v05_jax.value_model.cells import Statistics, group_size, make_statistics, make_tokens
from v05_jax.value_model.ensemble import Ensemble, Query, Support, full_mask, preprocess

CLASSES = 2  # of the decoder's outputs, those in use
TEMPERATURE = 0.9
NO_LABEL = -2.0  # indicator of a row without a label
LAYER = "transformer_encoder.layers."
BLOCK = 2**23  # numbers that a sublayer makes at once on the way, 34 MB: see `in_blocks`


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

  def mix(tokens):
    asking = tokens[:, -1:] if target else tokens
    q, k, v = project(weight[:1], asking)[0], *project(weight[1:], tokens)  # [R, K, h, d]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    found = attend(q, k, v).swapaxes(1, 2)
    return layer_norm(asking + matmul(found.reshape(*asking.shape[:2], -1), flatten(out).T))

  columns, heads = tokens.shape[1], weight.shape[1]
  return in_blocks(mix, tokens, heads * columns * (1 if target else columns))


def mix_rows(layer, tokens, keys, values, mask):
  """Attention of rows [R, K, E] over the training rows of their column: keys and values [K, N, d],
  or [K, h, N, d].

  `mask` bool [N]. Query rows are given head 0's keys and values for all their heads, training rows
  every head's.
  """
  weight, out = (layer[f"self_attn_between_items.{x}"] for x in ("_w_qkv", "_w_out"))

  def mix(tokens):
    rows, columns, _ = tokens.shape
    q = project(weight[:1], tokens)[0].swapaxes(0, 1)  # [K, R, h, d]
    if keys.ndim == 4:
      found = attend(q.swapaxes(1, 2), keys, values, mask).swapaxes(1, 2)
    else:
      found = attend(q.reshape(columns, -1, q.shape[-1]), keys, values, mask)
    found = found.reshape(columns, rows, -1).swapaxes(0, 1)
    return layer_norm(tokens + matmul(found, flatten(out).T))

  return in_blocks(mix, tokens, weight.shape[1] * tokens.shape[1] * keys.shape[-2])


def mix_training_rows(layer, tokens, mask):
  """What is left of a layer after `mix_columns` for the training rows [N, K, E] where mask [N]:
  (their tokens, (head 0's keys, its values)), which query rows need, [K, N, d] both."""

  def mix(tokens):
    keys, values = keys_and_values(layer, tokens)
    tokens = mlp(layer, mix_rows(layer, tokens, keys, values, mask))
    return tokens, (keys[:, 0].swapaxes(0, 1), values[:, 0].swapaxes(0, 1))

  heads = layer["self_attn_between_items._w_qkv"].shape[1]
  tokens, found = in_blocks(mix, tokens, heads * len(tokens) ** 2, axis=1)
  return tokens, jax.tree.map(lambda x: x.swapaxes(0, 1), found)


def in_blocks(function, x, numbers: int, axis: int = 0):
  """function(x) in blocks along an axis whose places do not depend on each other. `numbers`: how
  many the function computes on the way for each place; a block has at most `BLOCK` of them.

  So memory grows with the places and not with their square. `function` returns arrays with as many
  places on that axis. Where one block holds all, it is called once.
  """
  places = x.shape[axis]
  size = max(min(BLOCK // numbers, places), 1)
  if size == places:
    return function(x)
  take = lambda start: jax.lax.dynamic_slice_in_dim(x, start, size, axis)

  def empty(part):
    return jnp.zeros((*part.shape[:axis], places, *part.shape[axis + 1 :]), part.dtype)

  def step(number, found):
    # the last block begins inside of the one before
    start = jnp.minimum(number * size, places - size)
    put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)
    return jax.tree.map(put, found, function(take(start)))

  found = jax.tree.map(empty, jax.eval_shape(lambda: function(take(0))))
  return jax.lax.fori_loop(0, -(-places // size), step, found)


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
  first, second = layer["mlp.linear1.weight"], layer["mlp.linear2.weight"]
  run = lambda tokens: layer_norm(tokens + matmul(gelu(matmul(tokens, first)), second))
  return in_blocks(run, tokens, tokens.shape[1] * len(first))


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
def context(params, support: Support, table, asked: Query | None = None) -> Cache:
  """Runs thinking and support rows through all layers: what `query` needs of them.

  Args:
    params: of `stack`.
    support: of `preprocess`, features [n, C]; rows outside its mask change nothing.
    table: [>= G, E/4], see `ensemble.column_table`.
    asked: the query rows, where they are known: nothing of them is kept but which columns are
      constant. The model leaves out the columns constant over support and queries (4.5.2, 4.5.6);
      None = those constant over the support, as in a stream. The two agree for every table of
      `preprocess` whose `keep` has left them out already.
  """
  x, y, mask = support.features, support.labels, full_mask(support.features, support.mask)
  x, y = jnp.where(mask[:, None], x, 0.0), jnp.where(mask, y, 0.0)
  others = (
    (x[:0], mask[:0]) if asked is None else (asked.features, full_mask(asked.features, asked.mask))
  )
  statistics = make_statistics(x, y, mask, others, group_size(params))
  tokens = make_tokens(params, statistics, x, jnp.stack([y, jnp.zeros_like(y)], 1), table)
  thinking = params["add_thinking_tokens.row_token_values"]
  thinking = jnp.broadcast_to(thinking[:, None], (len(thinking), *tokens.shape[1:]))
  tokens, mask = (
    jnp.concatenate([thinking, tokens]),
    jnp.concatenate([jnp.ones(len(thinking), bool), mask]),
  )

  def step(tokens, layer):
    return mix_training_rows(layer, mix_columns(layer, tokens), mask)

  first, last = split_layers(params)
  tokens, (keys, values) = jax.lax.scan(step, tokens, first)
  target = keys_and_values(last, mix_columns(last, tokens, target=True))
  return Cache(statistics, keys, values, *(x[:, 0] for x in target), mask)


@jax.jit
def query(params, cache: Cache, x_query, table):
  """Raw logits [m, 2] of rows x_query [m, C]; rows do not see each other, so that any split gives
  the same."""
  y = jnp.broadcast_to(jnp.stack([cache.statistics.label, NO_LABEL]), (x_query.shape[0], 2))
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
def forward(params, support: Support, asked: Query, table):
  """Raw logits [m, 2] of one estimator's table, `support` and `asked` of `preprocess`; rows outside
  their masks are padding.

  Padding query rows get finite logits without a meaning.
  """
  return query(params, context(params, support, table, asked), asked.features, table)


@jax.jit
def raw_logits(params, support: Support, asked: Query, ensemble: Ensemble):
  """Logits [e, m, 2] of every estimator, before temperature; arguments as of `predict`."""

  def one(table, fingerprints, permutation):
    columns = preprocess(support, asked, fingerprints, permutation, ensemble.keep)
    return forward(params, *columns, table)

  tables, permutations = ensemble.tables, ensemble.permutations
  tables = jnp.broadcast_to(tables, (len(permutations), *tables.shape[-2:]))
  fingerprints = ensemble.fingerprints_support, ensemble.fingerprints_query
  return jax.vmap(one)(tables, fingerprints, permutations)


def predict(
  params, support: Support, asked: Query, ensemble: Ensemble, temperature: float = TEMPERATURE
):
  """(logits [m, 2], probabilities of success [m]): estimators averaged before the softmax (4.9).

  Args:
    params: of `stack`.
    support, asked: features [n, F], [m, F], and the support's labels [n], scores or 0/1.
    ensemble: what the estimators differ in.
    temperature: divides the logits.
  """
  return average(raw_logits(params, support, asked, ensemble), temperature)


def average(raw, temperature=TEMPERATURE):
  """(logits [m, 2], probabilities of success [m]) of raw logits [e, m, 2]."""
  logits = jnp.mean(raw / temperature, axis=0)
  return logits, jax.nn.softmax(logits)[:, 1]
