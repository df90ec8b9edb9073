"""V0 as its users call it: prompts with scores as context, and target prompts -> probabilities of
success.

    model = value_model.load("v0-converted")  # made by `python -m v05_jax.value_model.convert`
    p = model.predict(context_prompts, context_scores, target_prompts)

Frozen backbone -> adapter -> TabPFN head. Texts are read raw, without instruction or chat template.
Source: the specification of V0 (arXiv 2602.03584; released code Now-Join-Us/V0). Two things are as
intended and not as released: the adapter is used (the released helper pools the last token), and a
context that the head was never made for, with one class, fewer than four rows or one prompt alone,
has a defined answer, the smoothed success rate.
"""

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from v05_jax import models
from v05_jax.models import decoder, encoding, hf
from v05_jax.models import tokenizer as tokenizers
from v05_jax.scale import distributed, sharding
from v05_jax.value_model import adapter, directory, ensemble, tabpfn
from v05_jax.value_model.cells import group_size

BUILTIN = Path(__file__).parent.parent / "tasks" / "value_model"  # made by experiments/value_model
TOKENS_PER_CALL = 16384  # of prompts embedded at once: bounds the memory of attention
BY_ROWS = PartitionSpec(sharding.ROWS)  # of texts: their rows over the devices
QUERIES_PER_CALL = 256  # query rows that go through the head at once
SMALLEST = 16  # of the buckets that rows and tokens are padded to: powers of two


@dataclasses.dataclass(frozen=True)
class ValuePrior:
  """A converted V0, on one device or over a mesh: the backbone split like a policy, adapter and
  head on each device."""

  settings: dict[str, Any]  # v0.json
  config: decoder.ModelConfig  # of the backbone
  params: Any
  tokenizer: Any
  adapter: dict[str, jax.Array]
  head: dict[str, jax.Array]  # of `tabpfn.stack`
  mesh: Mesh | None = None
  # another column table [>= G, E/4] than `settings` names
  column_table: np.ndarray | None = None

  def predict(
    self, context_prompts: Iterable[str], context_scores, target_prompts: Iterable[str]
  ) -> np.ndarray:
    """Probability of success of each target prompt, float32 [n].

    Args:
      context_prompts, context_scores: prompts that the policy has tried, and its mean success in
        [0, 1].
      target_prompts: prompts whose success is asked for.

    Raises:
      ValueError: prompts that are one text instead of several, or no texts; numbers of prompts and
        scores that differ; a score outside [0, 1].
    """
    context_prompts = listed("context_prompts", context_prompts)
    target_prompts = listed("target_prompts", target_prompts)
    scores = numbers("context_scores", context_scores)
    if scores.shape != (len(context_prompts),):
      raise ValueError(
        f"context_scores: found shape {scores.shape}, expected ({len(context_prompts)},), one a "
        "prompt"
      )
    if not np.all((scores >= 0) & (scores <= 1)):
      raise ValueError(
        f"context_scores: found {scores[~((scores >= 0) & (scores <= 1))][0]}, expected 0 to 1"
      )
    texts = list(dict.fromkeys([*context_prompts, *target_prompts]))  # every text once
    place = {text: i for i, text in enumerate(texts)}
    features = self.features(texts)
    rows = lambda prompts: features[[place[text] for text in prompts]]
    marks = self.marks(context_prompts, target_prompts)
    return self.predict_from_features(rows(context_prompts), scores, rows(target_prompts), marks)

  def features(self, prompts: Iterable[str], rows: int | None = None) -> np.ndarray:
    """What the head sees of each text, float32 [N, F]; texts longer than the backbone was trained
    for are cut.

    rows: texts that go through the backbone at once on each device, by default as many as fit and
      are needed. With a fixed number a text gets the same bits whichever texts it is computed
      with, as far as the compiler keeps rows apart.
    """
    prompts = listed("prompts", prompts)
    shards = sharding.lanes(self.mesh) if self.mesh else 1
    at, whole = (
      NamedSharding(self.mesh, spec) if self.mesh else None for spec in (BY_ROWS, PartitionSpec())
    )
    heads, pooling = self.settings["adapter"]["heads"], self.settings["adapter"]["pooling"]
    embed = make_embed(self.config, heads, pooling, whole)
    encoded = self.encode(prompts)
    found = np.zeros((len(prompts), self.width), np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # alike lengths together
    while order:
      width = bucket(len(encoded[order[0]]))
      size = shards * (rows or max(TOKENS_PER_CALL // width, 1))
      batch = [i for i in order if len(encoded[i]) <= width][:size]
      order = order[len(batch) :]
      count = size if rows else min(bucket(len(batch)), size)
      tokens, mask = np.zeros((2, count + -count % shards, width), np.int32)
      mask[:, 0] = 1  # of padding rows
      for row, i in enumerate(batch):
        tokens[row, : len(encoded[i])], mask[row, : len(encoded[i])] = encoded[i], 1
      out = embed(self.params, self.adapter, *distributed.put((tokens, mask), at))
      found[batch] = np.asarray(out)[: len(batch)]
    if len(wrong := np.flatnonzero(~np.isfinite(found).all(1))):
      raise ValueError(
        f"the value model's features of {prompts[wrong[0]]!r:.60} are not finite: the weights of "
        "its backbone or adapter are damaged, or too large"
      )
    return found

  def encode(self, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, read raw; texts longer than the backbone was trained for are cut."""
    most = self.settings["max_tokens"]
    encoded = [encoding.encode_raw(self.tokenizer, text) for text in prompts]
    # The end token is kept: V0's tokenizer appends it after cutting.
    return [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in encoded]

  def marks(self, support: Sequence[str], query: Sequence[str]):
    """The fingerprint columns of texts, per estimator (support [n], query [m]): see
    `predict_from_features`."""
    return [
      (fingerprints(f"support {i}", support), fingerprints(f"query {i}", query))
      for i in range(self.settings["estimators"])
    ]

  @property
  def width(self) -> int:
    """F, the features of a prompt."""
    return directory.features(self.settings)

  def predict_from_features(
    self, support, scores, query, fingerprints=None, capacity: int = 0
  ) -> np.ndarray:
    """Probabilities of success [m] of query features [m, F], given support features [n, F] with
    scores [n] in [0, 1].

    Args:
      fingerprints: per estimator (support [n], query [m]) in [0, 1); default the released ones,
        hashes of the features, which one ulp of difference changes altogether. `predict` hashes
        the texts instead.
      capacity: support rows to prepare for, so that a context that grows to it compiles nothing
        anew.
    """
    labels = np.asarray(scores) >= 0.5
    usual = ensemble.smoothed(scores, labels, support)
    if usual is not None or not len(query):
      return np.full(len(query), usual if usual is not None else 0.0, np.float32)
    columns = self._columns(support, query, fingerprints)
    table = self._table(columns[0][0].shape[1])
    size = bucket(max(len(support), capacity))
    y, mask = pad(labels.astype(np.float32), size), np.arange(size) < len(support)
    starts, most = range(0, len(query), QUERIES_PER_CALL), QUERIES_PER_CALL
    raw = []  # of each estimator, for each part of the queries
    for given, asked in columns:
      cache = tabpfn.context(self.head, ensemble.Support(pad(given, size), y, mask), table)
      parts = [asked[i : i + most] for i in starts]
      asking = (pad(part, bucket(len(part))) for part in parts)
      raw.append([tabpfn.query(self.head, cache, part, table) for part in asking])
      jax.block_until_ready(raw[-1])
      del cache  # before the next estimator makes its own
    found = (average(list(part), self.settings["temperature"]) for part in zip(*raw))
    found = np.concatenate([np.asarray(part)[:most] for part in found])[: len(query)]
    if not np.isfinite(found).all():
      raise ValueError(
        "the value model's probabilities are not finite: the weights of its head are damaged, or "
        "too large"
      )
    return found

  def _columns(self, support, query, fingerprints) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each estimator, the rows of its table: (support [n, C], query [m, C]), float32."""
    keep = ensemble.varying_columns(support)
    mean, std = support[:, keep].mean(0), support[:, keep].std(0, ddof=1)
    z = [(x[:, keep] - mean) / np.where(std == 0, 1, std) for x in (support, query)]
    found = []
    drawn = ensemble.randomness(self.settings["estimators"], len(keep) + 1)
    for i, (salt, permutation) in enumerate(zip(*drawn)):
      marks = ensemble.fingerprints(*z, salt) if fingerprints is None else fingerprints[i]
      found.append(
        tuple(
          np.c_[x, mark][:, permutation].astype(np.float32)
          for x, mark in zip(z, marks, strict=True)
        )
      )
    return found

  def _table(self, columns: int):
    """The column table of the head, for so many columns, on its devices."""
    table = self.column_table
    if table is None:
      groups = -(-columns // group_size(self.head))
      table = directory.column_table(self.settings, groups)
    return distributed.put(table, sharding.replicated(self.mesh) if self.mesh else None)


def listed(name: str, texts: Iterable[str]) -> list[str]:
  """The texts of any iterable. Raises ValueError, which names the argument, for one text in place
  of several, and for what is no text."""
  if isinstance(texts, (str, bytes)):
    raise ValueError(f"{name}: found one text, {texts[:40]!r}, expected a list of texts: [text]")
  if isinstance(texts, (set, frozenset)):
    raise ValueError(f"{name}: found a set, which has no order, expected a list of texts")
  try:
    found = list(texts)
  except TypeError:
    raise ValueError(f"{name}: found {type(texts).__name__}, expected a list of texts") from None
  for i, text in enumerate(found):
    if not isinstance(text, str):
      raise ValueError(f"{name}[{i}]: found {type(text).__name__} {text!r:.40}, expected a text")
  return found


def numbers(name: str, values) -> np.ndarray:
  """The numbers of an array or any iterable, float32. Raises ValueError, which names the argument,
  for what is no number."""
  if isinstance(values, (str, bytes, dict, set, frozenset)):
    raise ValueError(f"{name}: found a {type(values).__name__}, expected a list of numbers")
  try:
    found = np.asarray(values if hasattr(values, "__array__") else list(values))
    if found.dtype.kind in "cSU":
      raise TypeError(f"a {found.dtype.type.__name__}")
    return found.astype(np.float32)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(f"{name}: found {values!r:.60} ({error}), expected numbers") from None


@jax.jit
def average(raw, temperature):
  """Probabilities of success [m] of the estimators' raw logits, each [m, 2]."""
  return tabpfn.average(jnp.stack(raw), temperature)[1]


def pad(x, count: int):
  """x [n, ...] with rows of zeros behind, `count` in all."""
  return np.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1))


def fingerprints(salt: str, texts: Sequence[str]) -> np.ndarray:
  """A number in [0, 1) for each text, float32: a function of the text and the salt alone."""
  hashes = (hashlib.sha256(f"{salt}\n{text}".encode()).digest() for text in texts)
  return np.array([int.from_bytes(x[:3], "big") / 2**24 for x in hashes], np.float32)


def bucket(count: int) -> int:
  """The power of two, at least SMALLEST, that `count` rows or tokens are padded to, so that few
  shapes are compiled."""
  return max(SMALLEST, 1 << (count - 1).bit_length())


@functools.cache
def make_embed(config, heads: int, pooling: str, where: NamedSharding | None):
  """Builds `embed(params, adapter_params, tokens, mask) -> features float32 [N, F]`, a program, for
  right-padded tokens int32 [N, L] where mask int [N, L]; `where`: the features' sharding."""

  @jax.jit
  def embed(params, adapter_params, tokens, mask):
    states = hidden(config, params, tokens, mask)
    found = adapter.features(adapter_params, states, mask, heads, pooling=pooling)
    return found if where is None else jax.lax.with_sharding_constraint(found, where)

  return embed


def hidden(config, params, tokens, mask):
  """The backbone's hidden states float32 [N, L, D] of right-padded tokens [N, L] where mask [N,
  L]. In float32 they are the same beside a policy of any dtype: on an accelerator, too."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  exact = config.dtype == "float32"
  with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
    return decoder.forward(config, params, tokens, positions, mask).astype(jnp.float32)


def shapes(path: str) -> tuple[dict[str, Any], decoder.ModelConfig]:
  """(v0.json, the backbone's shape) of a directory as `load` takes it; where there is no such
  directory, those of the released V0."""
  path = BUILTIN if os.fspath(path) == directory.BUILTIN else Path(path)
  if not path.is_dir():
    return directory.RELEASED, models.shape("", "qwen3-embedding-0.6b")
  settings = directory.load(path)[0]
  built_in = settings["backbone"] == directory.BUILTIN
  return settings, models.shape("builtin" if built_in else f"{path}/{directory.FOLDER}", "")


def abstract(settings, config: decoder.ModelConfig, mesh: Mesh) -> dict[str, Any]:
  """Shapes and shardings of a V0's parameters on a mesh: "embedder" (the backbone), "adapter", and
  "value_head" (the head), the names of `sharding.RULES`."""
  queries, width, _, bottleneck, hidden_size, _ = settings["adapter"].values()
  key = jax.random.key(0)
  head = directory.stacked(settings["head"])
  parts = {
    "embedder": decoder.shapes(config),
    "adapter": jax.eval_shape(lambda: adapter.init(key, hidden_size, queries, width, bottleneck)),
    "value_head": {name: jax.ShapeDtypeStruct(size, np.float32) for name, size in head.items()},
  }
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(place, parts, sharding.param_shardings(mesh, parts))


def load(path: str, mesh: Mesh | None = None) -> ValuePrior:
  """The V0 in a directory made by `value_model.convert` or `--mode=value`; "builtin" is that of the
  built-in tasks.

  mesh: devices to spread it over; None = one. Raises ValueError that names what is missing or
  wrong.
  """
  path = BUILTIN if os.fspath(path) == directory.BUILTIN else path
  settings, adapter_params, head = directory.load(path)
  backbone = (
    models.BUILTIN if settings["backbone"] == directory.BUILTIN else f"{path}/{directory.FOLDER}"
  )
  config, params = hf.load(backbone)
  config = dataclasses.replace(config, backend=models.backend())
  tokenizer = tokenizers.load(backbone)
  tokenizers.check(tokenizer, config.vocab_size)
  parts = {"embedder": params, "adapter": adapter_params, "value_head": tabpfn.stack(head)}
  some = lambda: (np.ravel(x)[:: max(1, x.size // 4096)] for x in jax.tree.leaves(parts))
  distributed.check_same("the value model", lambda: [repr(settings), repr(config), *some()])
  parts = distributed.put(parts, sharding.param_shardings(mesh, parts) if mesh else None)
  return ValuePrior(
    settings, config, parts["embedder"], tokenizer, parts["adapter"], parts["value_head"], mesh
  )
