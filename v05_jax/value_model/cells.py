"""The first part of the TabPFN head: cells of a table scaled by the support, and made into tokens.

Pure functions, after section 4.5 to 4.7 of the specification; letters as in `tabpfn`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from v05_jax.value_model.adapter import gelu, linear, matmul
from v05_jax.value_model.ensemble import moments

SIGMA = 12.0  # support values farther out are outliers
CLIP = 100.0  # of z-scored cells
NAN, POSITIVE, NEGATIVE = -2.0, 2.0, 4.0  # indicators of cells that are NaN, inf and -inf


class Statistics(NamedTuple):
  """Statistics of the support's cells, [G, g] each, and labels, by which queries are encoded too
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
  """x [R, G, g] bounded softly, by logarithms, to the support's outlier bounds (4.5.4)."""
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
