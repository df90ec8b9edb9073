"""Hugging Face directories: config.json, safetensors (single or sharded) and tokenizer files.

A directory written here opens in `transformers.AutoModelForCausalLM`, and one that transformers
wrote opens here. The family knows the names in config.json and of the tensors: see
families/base.py. Every tensor of the files is accounted for before the first is read.
"""

import contextlib
import dataclasses
import math
import os
from pathlib import Path

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from v05_jax.models import decoder, families, files, lora
from v05_jax.models import tokenizer as tokenizers
from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base

SHARD_BYTES = 4 << 30  # of a weights file, at most
ALIGNMENT = 64  # bytes
# Keys of a model's JSON files that are not taken from elsewhere: what ends a response, and, of the
# second, whether transformers is to ignore generation_config.json where config.json says something
# else; then the weights' type, what wrote the file, and code beside it.
OURS = (
  *("eos_token_id", "_from_model_config"),
  *("dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map"),
)


def load(
  directory, dtype: str = "float32", matrices: str = "float32", family: str = ""
) -> tuple[ModelConfig, dict]:
  """(config, float32 numpy parameters) of a directory; `dtype` is the config's compute dtype.

  Weights may be stored in float32, bfloat16 or float16, in one file or in shards; `matrices` is the
  dtype that all but the norms' scales are turned into. family: see `read_config`. Raises ValueError
  naming file and key or tensor for an unknown architecture, a variant that is not implemented, and
  missing, unexpected, misshapen or damaged tensors, and values that are not finite or too large.
  """
  directory = Path(directory)
  config = read_config(directory, dtype, family)
  shapes, places = decoder.shapes(config), {tensor.name: tensor for tensor in tensors(config)}
  head = next((name for name, path in _names(config).items() if path == "head"), None)
  located = files.locate(directory, stored_shapes(config), beside=head)
  kept = lambda path: np.float32 if path[-1].key == "scale" else jnp.dtype(matrices)
  params = jax.tree_util.tree_map_with_path(lambda path, s: aligned(s.shape, kept(path)), shapes)
  for file, names in located.items():
    with files.open_tensors(file) as stored:
      for name in names:
        place = places[name]
        target = _at(params, place.path)
        value = stored.get_tensor(name)
        files.check_weights(file, name, value)
        target[... if place.layer is None else place.layer] = (
          value.T if place.path[-1] == "kernel" else value
        )
  if config.tie_embeddings and head:
    _check_head(directory, config, head, params["embedding"])
  return config, params


def aligned(shape, dtype) -> np.ndarray:
  """An uninitialised array at an address at which a CPU's device arrays may begin: JAX then shares
  its memory with all devices and copies nothing."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def save(directory, config: ModelConfig, params, tokenizer=None, dtype: str = "float32", stop=()):
  """Writes `params` as a Hugging Face directory, stored in `dtype` (float32 or bfloat16).

  Weights beyond `SHARD_BYTES` are split into shards of at most that size (or one tensor). An old
  model is replaced, config.json last: an interrupted save leaves the old model, or no model, a
  directory without config.json. `params` must be addressable from this process. `stop`: tokens
  that end a response, where it is not the tokenizer's EOS alone. Adapters are merged into the
  matrices beside them, in float32 (models/lora.py). Raises ValueError for a remote directory, and
  if `params` have not the shapes of `config`.
  """
  if "://" in os.fspath(directory):
    raise ValueError(
      f"{os.fspath(directory)}: found a remote folder, expected a local one: copy it from there"
    )
  directory = Path(directory)
  _make(directory)
  if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, decoder.shapes(config)):
    raise ValueError(f"{directory}: the parameters to save do not have the shapes of {config}")
  if config.adapters:
    config, params = merged(config, params)
  families.check(config)
  places = {tensor.name: tensor for tensor in tensors(config)}
  tensor = lambda name: stored_tensor(params, places[name], np.float32)
  write(directory, config, tensor, dtype, tokenizer, stop)


def write(directory, config: ModelConfig, tensor, dtype: str, tokenizer=None, stop=()):
  """Writes a model whose tensors are made one after another, into a directory that is there; the
  rest is as for `save`.

  tensor: name in transformers -> float32 array as the file has it. No more than a file's tensors
  are in memory.
  """
  stored = np.dtype({"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype])
  directory = Path(directory)
  files.write_weights(
    directory,
    _shards(stored_shapes(config), stored.itemsize),
    lambda name: np.ascontiguousarray(tensor(name).astype(stored, copy=False)),
  )
  if tokenizer is not None:
    _save_tokenizer(directory, tokenizer)
  ends = {
    "eos_token_id": getattr(tokenizer, "eos_token_id", None),
    "pad_token_id": getattr(tokenizer, "pad_token_id", None),
  }
  all_ends = ends | ({"eos_token_id": list(stop)} if len(stop) > 1 else {})
  files.write_json(directory / "generation_config.json", {"do_sample": True, **all_ends})
  written = families.find(config.family).write(config)
  files.write_json(directory / "config.json", written | {"dtype": dtype} | ends)


def keep(directory, source) -> None:
  """Makes all of a written model that is no weight what it is in `source`, the model that training
  began with: the tokenizer's files byte for byte, and the keys of generation_config.json and, for
  the same architecture, config.json, keys that are unknown here too. What ends a response, and what
  describes the weights, is that of `save`."""
  directory, source = Path(directory), Path(source)
  if directory.resolve() == source.resolve():
    return
  if any((source / name).is_file() for name in tokenizers.FILES):
    for name in tokenizers.FILES:
      files.copy(source / name, directory / name)
  _keep_keys(directory, source, "generation_config.json", OURS[:2])
  with contextlib.suppress(ValueError):  # a tokenizer's folder, for a preset's weights
    found, written = (files.read_json(x / "config.json") for x in (source, directory))
    if found.get("architectures") == written["architectures"]:
      _keep_keys(directory, source, "config.json", (*OURS, *written))


def _keep_keys(directory: Path, source: Path, name: str, ours) -> None:
  """Adds to a written JSON file the keys of the source's, but for those that are `ours`."""
  if (source / name).is_file():
    kept = {key: x for key, x in files.read_json(source / name).items() if key not in ours}
    files.write_json(directory / name, files.read_json(directory / name) | kept)


def _save_tokenizer(directory: Path, tokenizer) -> None:
  """Writes the tokenizer so that transformers 4 opens it too, to which transformers 5 writes a
  class and a list that it does not know."""
  file = directory / "tokenizer_config.json"
  try:
    tokenizer.save_pretrained(str(directory))
  except Exception as error:  # the tokenizers library has no kind of its own for a full disk
    raise files.not_written(directory / "tokenizer.json", error) from error
  settings = files.read_json(file)
  more = settings.pop("extra_special_tokens", None)
  local = ("backend", "is_local", "local_files_only")  # of the process that opened it
  settings = {key: value for key, value in settings.items() if key not in local}
  if settings.get("tokenizer_class") == "TokenizersBackend":
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
  key = "additional_special_tokens" if isinstance(more, list) else "extra_special_tokens"
  files.write_json(file, settings | ({key: more} if more else {}))


def merged(config: ModelConfig, params) -> tuple[ModelConfig, dict]:
  """A model with adapters as one without: (config, float32 parameters on host)."""
  wide = lambda params: jax.tree.map(lambda x: x.astype(jnp.float32), params)
  return lora.plain(config), jax.device_get(
    jax.jit(lambda params: lora.merge(config, wide(params)))(params)
  )


def save_adapters(directory, config: ModelConfig, params, base: str = ""):
  """Writes the adapters alone as PEFT does: adapter_config.json and adapter_model.safetensors, in
  float32.

  base: the model that they belong to, for adapter_config.json. Raises ValueError for a model
  without adapters.
  """
  if not config.adapters:
    raise ValueError(
      f"{directory}: found a model without adapters (config.policy.lora_rank = 0), nothing to save"
    )
  directory, arrays, targets = Path(directory), {}, set()
  _make(directory)
  adapters = jax.device_get(lora.split(params["layers"])[0])
  for name, (_, *layer), i in (tensor for tensor in tensors(config) if tensor.layer is not None):
    if layer[-1] == "kernel" and layer[0] in adapters:
      module = name.removesuffix(".weight")
      targets.add(module.split(".")[-1])
      for ours, theirs in zip(lora.NAMES, ("lora_A", "lora_B")):
        x = adapters[layer[0]][ours][i]  # [in, rank], [rank, out]
        arrays[f"base_model.model.{module}.{theirs}.weight"] = np.ascontiguousarray(x.T)
  files.save_tensors(arrays, directory / "adapter_model.safetensors")
  files.write_json(
    directory / "adapter_config.json",
    {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": base,
      "r": config.adapters.rank,
      "lora_alpha": config.adapters.alpha,
      "target_modules": sorted(targets),
      "lora_dropout": 0.0,
      "bias": "none",
      "fan_in_fan_out": False,
      "inference_mode": True,
    },
  )


def _make(directory: Path):
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise files.not_written(directory, error) from error


def read_config(directory, dtype: str = "float32", family: str = "") -> ModelConfig:
  """The ModelConfig of a directory's config.json, by the `family` of this name (see
  `families.find`), by default the one that config.json says. Raises ValueError naming the key that
  is wrong."""
  file = Path(directory) / "config.json"
  found = files.read_json(file)
  family = family or families.choose(found, file)
  config = families.find(family).read(found, file)
  return dataclasses.replace(config, dtype=dtype, family=family)


def tensors(config: ModelConfig) -> list[base.Tensor]:
  """Every tensor of a model's files, in file order. Raises ValueError for a parameter that its
  family has no name for."""
  here = {"/".join(path) for path in flatten_dict(decoder.shapes(lora.plain(config)))}
  names = {name: path for name, path in _names(config).items() if path in here}
  if missing := sorted(here - set(names.values())):
    raise ValueError(
      f"config.policy.family: {config.family!r} has no name for the parameter {missing[0]!r}"
    )
  return list(base.tensors(names, config.num_layers))


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Name in transformers -> shape of every tensor of a file."""
  shapes = decoder.shapes(config)
  return {tensor.name: _stored_shape(shapes, tensor) for tensor in tensors(config)}


def stored_tensor(params, tensor: base.Tensor, dtype) -> np.ndarray:
  """A tensor as the file has it, from the parameters."""
  value = _at(params, tensor.path)
  value = np.asarray(jax.device_get(value if tensor.layer is None else value[tensor.layer]))
  value = value.astype(dtype)
  return np.ascontiguousarray(value.T if tensor.path[-1] == "kernel" else value)


def _stored_shape(shapes, tensor: base.Tensor) -> tuple[int, ...]:
  """Shape of a tensor in the file: without the layer axis, matrices as [out, in]."""
  shape = tuple(_at(shapes, tensor.path).shape)[0 if tensor.layer is None else 1 :]
  return shape[::-1] if tensor.path[-1] == "kernel" else shape


def _names(config: ModelConfig):
  return families.find(config.family).names


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _shards(shapes: dict[str, tuple], itemsize: int) -> list[list[str]]:
  """The tensors in file order, cut where a shard would pass `SHARD_BYTES`."""
  shards, size = [[]], 0
  for name, shape in shapes.items():
    item = int(np.prod(shape)) * itemsize
    if shards[-1] and size + item > SHARD_BYTES:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += item
  return shards


def _check_head(directory: Path, config: ModelConfig, head: str, embedding):
  """Some exporters write a head beside tied embeddings: raises ValueError where it is not the
  embedding [V, D]."""
  table = next(name for name, path in _names(config).items() if path == "embedding")
  for file in files.weight_files(directory):
    with files.open_tensors(file) as stored:
      if head in stored.keys():
        same = stored.get_slice(head).get_dtype() in files.STORED
        if not same or not np.array_equal(
          stored.get_tensor(head).astype(embedding.dtype), embedding
        ):
          raise ValueError(
            f"{file}: {head}: found another matrix than {table}, expected the same one or "
            f"none, as tie_word_embeddings is true in {directory / 'config.json'}; if this head "
            "is meant, set that to false"
          )
