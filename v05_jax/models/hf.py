"""Hugging Face directories: config.json, safetensors (single or sharded) and tokenizer files.

A directory written here opens in `transformers.AutoModelForCausalLM`, and one that transformers
wrote opens here. Every tensor of the files is accounted for before the first is read.
"""

from collections.abc import Iterator
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from v05_jax.models import decoder, lora
from v05_jax.models.decoder import ModelConfig

ARCHITECTURES = ("Qwen3ForCausalLM",)
STORED = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"

# Keys of config.json that must be there, and ours.
KEYS = {
  "vocab_size": "vocab_size",
  "hidden_size": "hidden_size",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "num_key_value_heads": "num_kv_heads",
  "intermediate_size": "intermediate_size",
}
# Keys that may be missing: ours, and what transformers' Qwen3Config then takes.
DEFAULTS = {
  "head_dim": ("head_dim", 128),
  "rms_norm_eps": ("rms_norm_eps", 1e-6),
  "tie_word_embeddings": ("tie_embeddings", False),
  "max_position_embeddings": ("max_positions", 32768),
}
# Variants of the architecture that are not implemented: key -> the values that leave it as it is.
ONLY = {
  "hidden_act": ("silu", None),
  "attention_bias": (False, None),
  "use_sliding_window": (False, None),
  "quantization_config": (None,),
}
# Name inside model.layers.{i} -> path in our parameters.
LAYER = {
  "input_layernorm": ("attention_norm", "scale"),
  "self_attn.q_proj": ("q", "kernel"),
  "self_attn.k_proj": ("k", "kernel"),
  "self_attn.v_proj": ("v", "kernel"),
  "self_attn.q_norm": ("q_norm", "scale"),
  "self_attn.k_norm": ("k_norm", "scale"),
  "self_attn.o_proj": ("o", "kernel"),
  "post_attention_layernorm": ("mlp_norm", "scale"),
  "mlp.gate_proj": ("gate", "kernel"),
  "mlp.up_proj": ("up", "kernel"),
  "mlp.down_proj": ("down", "kernel"),
}


def load(directory, dtype: str = "float32", matrices: str = "float32") -> tuple[ModelConfig, dict]:
  """(config, float32 numpy parameters) of a Qwen3 directory; `dtype` is the config's compute dtype.

  Weights may be stored in float32, bfloat16 or float16, in one file or in shards; `matrices` is the
  dtype that all but the norms' scales are turned into. Raises ValueError naming file and key or
  tensor for another architecture, a variant that is not implemented, and missing, unexpected,
  misshapen or damaged tensors.
  """
  directory = Path(directory)
  config = read_config(directory, dtype)
  shapes, places = _shapes(config), {name: (path, layer) for name, path, layer in _names(config)}
  files = _locate(directory, stored_shapes(config))
  kept = lambda path: np.float32 if path[-1].key == "scale" else jnp.dtype(matrices)
  params = jax.tree_util.tree_map_with_path(lambda path, s: np.empty(s.shape, kept(path)), shapes)
  for file, names in files.items():
    with _open(file) as tensors:
      for name in names:
        path, layer = places[name]
        target = _at(params, path) if layer is None else _at(params, path)[layer]
        value = tensors.get_tensor(name)
        target[...] = value.T if path[-1] == "kernel" else value
  if config.tie_embeddings:
    _check_head(directory, params["embedding"])
  return config, params


def save(
  directory,
  config: ModelConfig,
  params,
  tokenizer=None,
  dtype: str = "float32",
  shard_bytes: int = 4 << 30,
  stop=(),
):
  """Writes `params` as a Hugging Face directory, stored in `dtype` (float32 or bfloat16).

  Weights beyond `shard_bytes` are split into shards of at most that size (or one tensor). The long
  part is written under temporary names; then an old model is replaced, config.json last: an
  interrupted save leaves the old model, or a directory without config.json, which is none. `params`
  must be addressable from this process. `stop`: tokens that end a response, where it is not the
  tokenizer's EOS alone. Adapters are merged into the matrices beside them, in float32
  (models/lora.py). Raises ValueError for a remote directory, and if `params` have not the shapes of
  `config`.
  """
  if "://" in os.fspath(directory):
    raise ValueError(
      f"{os.fspath(directory)}: found a remote folder, expected a local one: copy it from there"
    )
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, _shapes(config)):
    raise ValueError(f"{directory}: the parameters to save do not have the shapes of {config}")
  if config.adapters:
    config, params = merged(config, params)
  stored = np.dtype({"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype])
  shards = _shards(config, params, stored.itemsize, shard_bytes)
  index, temporary = {}, {}
  try:
    for i, names in enumerate(shards):
      file = WEIGHTS if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
      temporary[file] = directory / f".{file}.{os.getpid()}.tmp"
      save_file(
        {name: _tensor(params, path, layer, stored) for name, path, layer in names},
        temporary[file],
        metadata={"format": "pt"},
      )
      temporary[file].chmod(0o644)  # safetensors makes files that only their owner can read
      index |= {name: file for name, _, _ in names}
    (directory / "config.json").unlink(missing_ok=True)
    for old in (WEIGHTS, INDEX, "model-?????-of-?????.safetensors"):
      for path in directory.glob(old):
        path.unlink()
    for file, path in temporary.items():
      path.rename(directory / file)
  finally:
    for path in temporary.values():
      path.unlink(missing_ok=True)
  if len(shards) > 1:
    total = sum(x.size for x in jax.tree.leaves(params)) * stored.itemsize
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
  if tokenizer is not None:
    tokenizer.save_pretrained(str(directory))
  ends = {
    "eos_token_id": getattr(tokenizer, "eos_token_id", None),
    "pad_token_id": getattr(tokenizer, "pad_token_id", None),
  }
  all_ends = ends | ({"eos_token_id": list(stop)} if len(stop) > 1 else {})
  _write_json(directory / "generation_config.json", {"do_sample": True, **all_ends})
  _write_json(directory / "config.json", _config_json(config, dtype) | ends)


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
  directory, tensors, names = Path(directory), {}, {}
  directory.mkdir(parents=True, exist_ok=True)
  for name, (layer, kind) in LAYER.items():
    if kind == "kernel" and layer in config.adapters.targets:
      names[layer] = name.split(".")[-1]
      for ours, theirs in zip(lora.NAMES, ("lora_A", "lora_B")):
        stacked = jax.device_get(params["layers"][layer][ours])  # [L, in, rank], [L, rank, out]
        for i, x in enumerate(stacked):
          tensors[f"base_model.model.model.layers.{i}.{name}.{theirs}.weight"] = (
            np.ascontiguousarray(x.T)
          )
  save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
  (directory / "adapter_model.safetensors").chmod(0o644)
  _write_json(
    directory / "adapter_config.json",
    {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": base,
      "r": config.adapters.rank,
      "lora_alpha": config.adapters.alpha,
      "target_modules": sorted(names.values()),
      "lora_dropout": 0.0,
      "bias": "none",
      "fan_in_fan_out": False,
      "inference_mode": True,
    },
  )


def read_config(directory, dtype: str = "float32") -> ModelConfig:
  """The ModelConfig of a directory's config.json. Raises ValueError naming the key that is
  wrong."""
  file = Path(directory) / "config.json"
  found = _read_json(file)
  architectures = found.get("architectures") or []
  if not set(architectures) & set(ARCHITECTURES):
    raise ValueError(
      f"{file}: architectures: found {architectures} (model_type "
      f"{found.get('model_type')!r}), supported: {', '.join(ARCHITECTURES)}"
    )
  for key, allowed in ONLY.items():
    if found.get(key) not in allowed:
      raise ValueError(f"{file}: {key}: found {found[key]!r}, supported: {allowed[0]!r}")
  if set(found.get("layer_types") or ()) - {"full_attention"}:
    raise ValueError(
      f"{file}: layer_types: found {sorted(set(found['layer_types']))}, supported: full_attention"
    )
  missing = [key for key in KEYS if not isinstance(found.get(key), int)]
  if missing:
    raise ValueError(f"{file}: {missing[0]}: found {found.get(missing[0])!r}, expected an integer")
  values = {ours: found[key] for key, ours in KEYS.items()}
  for key, (ours, default) in DEFAULTS.items():
    values[ours] = default if found.get(key) is None else found[key]
    if not isinstance(values[ours], type(default)):
      raise ValueError(f"{file}: {key}: found {found[key]!r}, expected {type(default).__name__}")
  values["rope_theta"] = _rope_theta(file, found)
  try:
    return ModelConfig(dtype=dtype, **values)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error


def _rope_theta(file, found) -> float:
  """rope_theta, top-level (transformers 4) or inside rope_parameters / rope_scaling (5)."""
  for key in ("rope_parameters", "rope_scaling"):
    rope = found.get(key) or {}
    if not isinstance(rope, dict):
      raise ValueError(f"{file}: {key}: found {rope!r}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
      raise ValueError(
        f"{file}: {key}: found rope type {kind!r}, expected 'default': scaled rotary "
        "embeddings are not supported"
      )
    if "rope_theta" in rope:
      found = {"rope_theta": rope["rope_theta"]}
      break
  theta = found.get("rope_theta")
  if isinstance(theta, bool) or not isinstance(theta, int | float):
    raise ValueError(
      f"{file}: rope_theta: found {theta!r}, expected a number, at the top level or "
      "in rope_parameters"
    )
  return float(theta)


def _config_json(config: ModelConfig, dtype: str) -> dict:
  ours = {key: name for key, (name, _) in DEFAULTS.items()} | KEYS
  return {
    "architectures": [ARCHITECTURES[0]],
    "model_type": "qwen3",
    **{key: getattr(config, name) for key, name in ours.items()},
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    # transformers 4 reads the first, 5 the second.
    "rope_theta": config.rope_theta,
    "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    "dtype": dtype,
  }


def _names(config: ModelConfig) -> Iterator[tuple[str, tuple, int | None]]:
  """(name in transformers, path in our parameters, layer or None) of every tensor, in file
  order."""
  yield "model.embed_tokens.weight", ("embedding",), None
  for i in range(config.num_layers):
    for name, path in LAYER.items():
      yield f"model.layers.{i}.{name}.weight", ("layers", *path), i
  yield "model.norm.weight", ("norm", "scale"), None
  if not config.tie_embeddings:
    yield HEAD, ("head",), None


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Name in transformers -> shape of every tensor of a file."""
  shapes = _shapes(config)
  return {name: _stored_shape(shapes, path, layer) for name, path, layer in _names(config)}


def _shapes(config: ModelConfig):
  return jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _stored_shape(params, path, layer) -> tuple[int, ...]:
  """Shape of a tensor in the file: without the layer axis, matrices as [out, in]."""
  shape = tuple(_at(params, path).shape)[0 if layer is None else 1 :]
  return shape[::-1] if path[-1] == "kernel" else shape


def _tensor(params, path, layer, dtype) -> np.ndarray:
  value = _at(params, path) if layer is None else _at(params, path)[layer]
  value = np.asarray(jax.device_get(value)).astype(dtype)
  return np.ascontiguousarray(value.T if path[-1] == "kernel" else value)


def _shards(config, params, itemsize, limit) -> list[list[tuple]]:
  """The tensors in file order, cut where a shard would pass `limit` bytes."""
  shards, size = [[]], 0
  for name, path, layer in _names(config):
    item = int(np.prod(_stored_shape(params, path, layer))) * itemsize
    if shards[-1] and size + item > limit:
      shards.append([])
      size = 0
    shards[-1].append((name, path, layer))
    size += item
  return shards


def _locate(directory: Path, expected: dict[str, tuple]) -> dict[Path, list[str]]:
  """File -> names of its tensors, after checking all headers against `expected` (name -> shape)."""
  where, problems = {}, []
  for file in _weight_files(directory):
    with _open(file) as tensors:
      for name in tensors.keys():
        part = tensors.get_slice(name)
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if name == HEAD and name not in expected:
          continue  # written beside tied embeddings by some exporters: see `_check_head`
        if name not in expected:
          problems.append(f"{file}: {name}: found {list(shape)}, expected no such tensor")
        elif name in where:
          problems.append(f"{file}: {name}: found again, expected in {where[name].name} only")
        elif shape != expected[name]:
          problems.append(f"{file}: {name}: found {list(shape)}, expected {list(expected[name])}")
        elif kind not in STORED:
          problems.append(f"{file}: {name}: found type {kind}, expected one of {', '.join(STORED)}")
        where.setdefault(name, file)
  problems += [
    f"{directory}: {name}: found in no file, expected {list(shape)}"
    for name, shape in expected.items()
    if name not in where
  ]
  if problems:
    more = f"\n... and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError("\n".join(problems[:8]) + more)
  files = {}
  for name in expected:
    files.setdefault(where[name], []).append(name)
  return files


def _check_head(directory: Path, embedding):
  """Raises ValueError for a head stored beside tied embeddings that is not the embedding [V, D]."""
  for file in _weight_files(directory):
    with _open(file) as tensors:
      if HEAD in tensors.keys():
        same = tensors.get_slice(HEAD).get_dtype() in STORED
        if not same or not np.array_equal(
          tensors.get_tensor(HEAD).astype(embedding.dtype), embedding
        ):
          raise ValueError(
            f"{file}: {HEAD}: found another matrix than model.embed_tokens.weight, expected the "
            "same one or none, as "
            f"tie_word_embeddings is true in {directory / 'config.json'}; if this head is meant, "
            "set that to false"
          )


def _weight_files(directory: Path) -> list[Path]:
  if (directory / WEIGHTS).is_file():
    return [directory / WEIGHTS]
  if not (directory / INDEX).is_file():
    raise ValueError(f"{directory}: found no weights, expected {WEIGHTS} or {INDEX}")
  index = _read_json(directory / INDEX).get("weight_map")
  if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
    raise ValueError(
      f"{directory / INDEX}: weight_map: found {type(index).__name__}, expected an "
      "object of tensor name -> file name"
    )
  files = [directory / name for name in sorted(set(index.values()))]
  for file in files:
    if file.parent != directory or not file.is_file():
      raise ValueError(
        f"{directory / INDEX}: found the shard {file.name!r}, expected it in {directory}"
      )
  return files


def _open(file: Path):
  try:
    return safetensors.safe_open(file, framework="numpy")
  except (safetensors.SafetensorError, OSError) as error:
    size = file.stat().st_size if file.exists() else 0
    raise ValueError(
      f"{file}: found a damaged file of {size} bytes ({error}), expected "
      "safetensors: copy or download it again"
    ) from error


def _read_json(file: Path) -> dict:
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ValueError(
      f"{file}: found no such file, expected {file.parent} to be a Hugging Face model "
      "directory (or config.policy.preset to be set, for random weights)"
    ) from error
  except (OSError, ValueError) as error:
    raise ValueError(f"{file}: cannot be read as JSON: {error}") from error
  if not isinstance(found, dict):
    raise ValueError(f"{file}: found {type(found).__name__}, expected a JSON object")
  return found


def _write_json(file: Path, value: dict):
  temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
  temporary.replace(file)
