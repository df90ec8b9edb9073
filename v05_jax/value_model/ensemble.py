"""The input of the TabPFN head: each estimator's own table of the features, and the constant column
table.

First the functions on host, deterministic numbers by numpy; then those with gradients. Source: the
specification of V0 on tabpfn 6.2.0, sections 4.1 - 4.4; no code of it. Letters: n support rows, m
query rows, F features, F' of them in use, C = F' + 1 columns, e estimators, G groups, E embedding
width.
"""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.random import RandomState, default_rng  # seeded, never numpy's global generator

SEED = 42  # of the column tables
MIN_ROWS = 4  # of a context that the head is made for
ROUNDING = 1e-5  # a column that differs by less of its size differs by rounding alone


class Support(NamedTuple):
  """The n rows of a context."""

  features: jax.Array  # [n, F], or [n, C] after `preprocess`
  labels: jax.Array  # [n]  scores in [0, 1], or their 0/1 labels
  mask: jax.Array | None = None  # bool [n]  rows outside are padding; None = all are real


class Query(NamedTuple):
  """The m rows whose success is asked for."""

  features: jax.Array  # [m, F], or [m, C] after `preprocess`
  mask: jax.Array | None = None  # bool [m]  rows outside are padding; None = all are real


class Ensemble(NamedTuple):
  """What the e estimators differ in, and the features that all of them use."""

  tables: jax.Array  # [>= G, E/4] for all estimators, or [e, >= G, E/4]: see `column_table`
  fingerprints_support: jax.Array  # [e, n] in [0, 1), of `fingerprints` or any uniform source
  fingerprints_query: jax.Array  # [e, m]
  permutations: jax.Array  # int [e, C], of `randomness`
  keep: jax.Array | None = None  # int [F'] of `varying_columns`; None = none is constant


def smoothed(scores, labels, features=None) -> float | None:
  """The success to expect of any prompt in a context that the head is not made for; None in one
  that it is made for.

  The head is made for contexts of both classes, of MIN_ROWS rows and more, whose rows differ. For
  others: (sum of scores + 1) / (rows + 2), Laplace's rule; .5 without any row.

  Args:
    scores: [n] in [0, 1]. labels: bool [n].
    features: [n, F] of the rows, or None: they are taken to differ.
  """
  if len(scores) >= MIN_ROWS and 0 < np.sum(labels) < len(labels):
    if features is None or len(varying_columns(features)):
      return None
  return (float(np.sum(scores)) + 1.0) / (len(scores) + 2.0)


def varying_columns(x_support):
  """Indices [F'] of the features [n, F] that tell rows apart; empty where none does.

  Those that differ by rounding alone are left out: standardised, they would be noise as large as
  any other column. Where all do (one prompt, computed again and again), the largest value
  of the table is the measure, since small columns are differences of large numbers.
  """
  x = np.asarray(x_support, np.float32)
  size, spread = np.abs(x).max(0), np.ptp(x, 0)
  if spread.max() <= ROUNDING * size.max():
    return np.zeros(0, np.int64)
  return np.flatnonzero(~(spread <= ROUNDING * size))  # a NaN is not constant


def randomness(estimators: int, columns: int):
  """(salts int [e], permutations int [e, C]) of an ensemble with random_state 0, deterministic
  (4.2).

  The order of the draws is the library's; numbers that are drawn and not used belong to options
  that V0 switches off.
  """
  most = 2**31 - 1
  rng = default_rng(0)
  rng.integers(0, most)
  shift = rng.integers(0, 1000)
  rng.choice(np.arange(shift, shift + estimators), size=estimators, replace=False)
  rng.integers(0, most)
  seeds = rng.integers(0, most, estimators)
  salts = [default_rng(seed).integers(0, 2**16) for seed in seeds]
  return np.array(salts), np.stack([default_rng(seed).permutation(columns) for seed in seeds])


def fingerprints(z_support, z_query, salt: int):
  """One estimator's fingerprint columns (support [n], query [m]) in [0, 1), float32, from z-scored
  features (4.3).

  A hash of a row's float32 bytes, which a change of one ulp anywhere changes altogether. A support
  row with the hash of an earlier row has 1, 2, ... added until its hash is new; query rows have the
  salt added twice instead.
  """
  salt, seen, support = np.float32(salt), set(), []
  for row in np.asarray(z_support, np.float32) + salt:
    value, shift = _hash(row), 0
    while value in seen and not np.all(np.isnan(row)):
      shift += 1
      value = _hash(row + np.float32(shift))
    seen.add(value)
    support.append(value)
  query = [_hash(row) for row in np.asarray(z_query, np.float32) + salt + salt]
  return np.array(support, np.float32), np.array(query, np.float32)


def _hash(row):
  digest = hashlib.sha256(np.ascontiguousarray(row, "<f4").tobytes()).hexdigest()
  return int(digest, 16) % 10**12 / 10**12


def column_table(groups: int, width: int = 48):
  """The constant table of standard normals float32 [G, E/4], E/4 = `width` (4.4); rows do not
  depend on `groups`.

  At width 48 (E = 192) it is the table of the released v2.5 model, to 2.4e-6. Official tables of
  other widths are those of `torch_table`; for own models this one serves at any width.
  """
  number = np.arange(groups * width, dtype=np.uint64)
  zeros = np.zeros_like(number)
  radius, angle = (
    x * 2.0**-32 + 2.0**-33 for x in philox((zeros, zeros, number, zeros), (SEED, 0))[:2]
  )
  normal = np.sqrt(-2.0 * np.log(radius)) * np.sin(2.0 * np.pi * angle)
  return normal.astype(np.float32).reshape(groups, width)


def torch_table(groups: int, width: int):
  """The same as TabPFN makes it for heads of other widths than the released one's: torch's normals
  on a CPU, float32 [G, E/4], of a generator with seed 42 (4.4).

  The generator is the Mersenne Twister, as numpy's is. Blocks of 16 uniform numbers become normal
  ones by Box and Muller, the first half of a block with the second; numbers that fill no block are
  drawn anew as the last 16.
  """
  count, words = groups * width, RandomState(SEED)
  if count < 16:
    raise ValueError(f"column table: found {groups} x {width} numbers, expected 16 or more")

  def normal(uniform):
    first, second = np.split(uniform.reshape(-1, 16), 2, axis=1)
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - first)), np.float32(2.0 * np.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()

  def uniform(count):
    bits = words.randint(0, 2**32, count, np.uint32) & np.uint32(2**24 - 1)
    return bits.astype(np.float32) * np.float32(2.0**-24)

  drawn = uniform(count)
  whole = normal(drawn[: count // 16 * 16])
  if count % 16:
    whole = np.concatenate([whole[: count - 16], normal(uniform(16))])
  return whole.reshape(groups, width)


# How a head's column table is made: v0.json's "table".
TABLES = {"philox": column_table, "torch": torch_table}


def philox(counter, key):
  """Philox4x32-10 (Salmon et al. 2011): 4 words of 32 bits for `counter` (4 uint64 arrays) and
  `key` (2 integers)."""
  a, b, c, d = counter
  low = np.uint64(2**32 - 1)
  for i in range(10):
    k0, k1 = (
      np.uint64((key[0] + i * 0x9E3779B9) % 2**32),
      np.uint64((key[1] + i * 0xBB67AE85) % 2**32),
    )
    p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
    a, b, c, d = (q >> np.uint64(32)) ^ b ^ k0, q & low, (p >> np.uint64(32)) ^ d ^ k1, p & low
  return a, b, c, d


# --- The table of one estimator


def full_mask(x, mask=None):
  """bool [R] for rows x [R, ...]: all of them where there is no mask."""
  return jnp.ones(x.shape[0], bool) if mask is None else jnp.asarray(mask, bool)


def moments(x, mask=None):
  """(mean, sample standard deviation) [...] of x [n, ...] over the rows where mask, bool [n] or of
  x's shape.

  Of fewer than two rows the deviation is 0. Its gradient at 0 is 0, not NaN.
  """
  mask = full_mask(x, mask)
  mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
  count = jnp.sum(mask, axis=0)
  mean = jnp.sum(jnp.where(mask, x, 0.0), axis=0) / jnp.maximum(count, 1)
  square = jnp.sum(jnp.where(mask, x - mean, 0.0) ** 2, axis=0) / jnp.maximum(count - 1, 1)
  varies = square != 0  # true of NaN too
  return mean, jnp.where(varies, jnp.sqrt(jnp.where(varies, square, 1.0)), 0.0)


def standardize(x, statistics):
  """(x - mean) / std with a std of 0 taken as 1, for x [..., F] and `statistics` = (mean [F], std
  [F])."""
  mean, std = statistics
  return (x - mean) / jnp.where(std == 0, 1.0, std)


def make_columns(features, statistics, fingerprint, permutation, keep=None):
  """Rows of one estimator's table [R, C] from features [R, F]: z-scored, fingerprinted [R],
  permuted [C] (4.1)."""
  features = features if keep is None else features[:, keep]
  fingerprint = jax.lax.stop_gradient(jnp.asarray(fingerprint, jnp.float32))
  return jnp.concatenate([standardize(features, statistics), fingerprint[:, None]], axis=1)[
    :, permutation
  ]


def preprocess(
  support: Support, query: Query, fingerprints, permutation, keep=None
) -> tuple[Support, Query]:
  """One estimator's table, fitted on the support alone (4.1): the rows with its columns [n, C] and
  [m, C] in place of their features, and labels 0 or 1, 1 at scores of .5 and above.

  Args:
    support, query: rows with their features [n, F], [m, F].
    fingerprints: (support [n], query [m]); no gradient passes.
    permutation: int [C]; new column j is old column permutation[j], the last old one being the
      fingerprint.
    keep: int [F'], the features in use, of `varying_columns`; None = all of them.
  """
  used = support.features if keep is None else support.features[:, keep]
  used = used if support.mask is None else jnp.where(support.mask[:, None], used, 0.0)
  statistics = moments(used, support.mask)
  x_support = make_columns(used, statistics, fingerprints[0], permutation)
  x_query = make_columns(query.features, statistics, fingerprints[1], permutation, keep)
  labels = (jnp.asarray(support.labels) >= 0.5).astype(jnp.float32)
  return Support(x_support, labels, support.mask), Query(x_query, query.mask)
