"""What a model family is: how an architecture's Hugging Face directories are read and written.

A family is a file of this folder, or of the user's own, with a function that returns a `Family`.
The decoder is the same for all: what a family computes in another way is a field of
`decoder.ModelConfig`, which `read` sets, and sharding.RULES goes by the decoder's parameters. The
functions below are what several families need.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import itertools
from typing import Any, NamedTuple

from v05_jax.models import rotary
from v05_jax.models.decoder import ModelConfig

HEAD = "lm_head.weight"
# What many families share: keys of config.json that must be there, and ours.
KEYS = {
  "vocab_size": "vocab_size",
  "hidden_size": "hidden_size",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "num_key_value_heads": "num_kv_heads",
  "intermediate_size": "intermediate_size",
}
# Variants that no family implements: key -> the values that leave a model as it is.
ONLY = {
  "quantization_config": (None,),
  "num_experts": (None, 0),
  "num_local_experts": (None, 0),
  "attn_logit_softcapping": (None,),
  "final_logit_softcapping": (None,),
  "use_sliding_window": (False, None),
  "mlp_bias": (False, None),
  "partial_rotary_factor": (1.0, None),
}
# Names of tensors; a model without biases or QK-norm has not got theirs.
NAMES = {
  "model.embed_tokens.weight": "embedding",
  "model.layers.{i}.input_layernorm.weight": "layers/attention_norm/scale",
  "model.layers.{i}.self_attn.q_proj.weight": "layers/q/kernel",
  "model.layers.{i}.self_attn.q_proj.bias": "layers/q/bias",
  "model.layers.{i}.self_attn.k_proj.weight": "layers/k/kernel",
  "model.layers.{i}.self_attn.k_proj.bias": "layers/k/bias",
  "model.layers.{i}.self_attn.v_proj.weight": "layers/v/kernel",
  "model.layers.{i}.self_attn.v_proj.bias": "layers/v/bias",
  "model.layers.{i}.self_attn.q_norm.weight": "layers/q_norm/scale",
  "model.layers.{i}.self_attn.k_norm.weight": "layers/k_norm/scale",
  "model.layers.{i}.self_attn.o_proj.weight": "layers/o/kernel",
  "model.layers.{i}.post_attention_layernorm.weight": "layers/mlp_norm/scale",
  "model.layers.{i}.mlp.gate_proj.weight": "layers/gate/kernel",
  "model.layers.{i}.mlp.up_proj.weight": "layers/up/kernel",
  "model.layers.{i}.mlp.down_proj.weight": "layers/down/kernel",
  "model.norm.weight": "norm/scale",
  HEAD: "head",
}


class Family(NamedTuple):
  """How one family's config.json and tensors are called.

  names: every tensor's whole name in a safetensors file, in the order of the file, and the
  '/'-joined path of its parameter (decoder.py has the tree). `{i}` in a name is the layer, and the
  parameter then has all layers stacked on its first axis. A parameter whose path ends in `kernel`
  is stored transposed, [out, in], as by torch.nn.Linear; all others as they are. A name whose
  parameter a model does not have (the head of tied embeddings, a bias) is left out for that model;
  a parameter without a name is an error.
  """

  architectures: tuple[str, ...]  # what config.json's "architectures" says of this family
  read: Callable[[dict, Any], ModelConfig]  # (config.json, its path) -> shape; see `shape`
  write: Callable[[ModelConfig], dict]  # the config.json, but for dtype and the end tokens
  names: Mapping[str, str]
  presets: Mapping[str, ModelConfig] = {}  # shapes of published models, for config.policy.preset


class Tensor(NamedTuple):
  """One tensor of a file: its name, and where it stands in the parameters."""

  name: str
  path: tuple[str, ...]
  layer: int | None  # index on the first axis of the parameter; None = the whole of it


def tensors(names: Mapping[str, str], num_layers: int) -> Iterator[Tensor]:
  """The tensors of `Family.names`, in file order: all of a layer, then all of the next."""
  for stacked, group in itertools.groupby(names.items(), key=lambda item: "{i}" in item[0]):
    parts = [(name, tuple(path.split("/"))) for name, path in group]
    for i in range(num_layers) if stacked else (None,):
      yield from (Tensor(name.replace("{i}", str(i)), path, i) for name, path in parts)


def refuse(found: dict, where, only: Mapping[str, tuple]) -> None:
  """Raises ValueError for a variant that is not implemented; only: key of config.json -> the values
  that leave the model as it is, what is supported first (beside those of `ONLY`)."""
  for key, allowed in (ONLY | only).items():
    if found.get(key) not in allowed:
      raise ValueError(f"{where}: {key}: found {found[key]!r}, supported: {allowed[0]!r}")


def refuse_windows(found: dict, where) -> None:
  """Raises ValueError for layers that do not see all that came before."""
  layers = found.get("layer_types") or []
  if not isinstance(layers, list) or any(x != "full_attention" for x in layers):
    raise ValueError(f"{where}: layer_types: found {layers!r}, supported: full_attention")


def shape(found: dict, where, keys: Mapping[str, str], defaults: Mapping, **more) -> ModelConfig:
  """A ModelConfig from config.json's `found`.

  keys: whole numbers that must be there, key of config.json -> field. defaults: keys that may be
  missing -> (field, what transformers takes then, or found -> that). more: further fields; without
  rope_theta among them it is that of `rope`. Raises ValueError that names file and key, what was
  found and what was expected.
  """
  missing = [key for key in keys if not isinstance(found.get(key), int)]
  if missing:
    raise ValueError(f"{where}: {missing[0]}: found {found.get(missing[0])!r}, expected an integer")
  values = {field: found[key] for key, field in keys.items()}
  for key, (field, default) in defaults.items():
    default = default(found) if callable(default) else default
    values[field] = default if found.get(key) is None else found[key]
    if not isinstance(values[field], type(default)):
      raise ValueError(f"{where}: {key}: found {found[key]!r}, expected {type(default).__name__}")
  more = more if "rope_theta" in more else rope(found, where) | more
  try:
    return ModelConfig(**values, **more)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def rope(found: dict, where, kinds: tuple = ("default",), theta: float | None = None) -> dict:
  """The fields rope_theta and rope_scaling of a config.json, which has them at the top level and in
  rope_scaling (transformers 4) or in rope_parameters (5).

  kinds: of scaling that the family knows. theta: what transformers takes where the file has none.
  Raises ValueError for any other kind.
  """
  key = "rope_scaling" if found.get("rope_scaling") else "rope_parameters"
  given = entry(found, key, where)
  scaled = scaling(given, f"{where}: {key}", kinds)
  theta = next(
    (x for x in (given.get("rope_theta"), found.get("rope_theta"), theta) if x is not None), None
  )
  if not _is_number(theta):
    raise ValueError(
      f"{where}: rope_theta: found {theta!r}, expected a number, at the top level or "
      "in rope_parameters"
    )
  return {"rope_theta": float(theta), "rope_scaling": scaled}


def scaling(given: dict, where, kinds: tuple) -> rotary.Scaling | None:
  """The scaling that an object of config.json says, one of `kinds`; None for "default". where: the
  path of the file and the key."""
  nested = [key for key, value in given.items() if isinstance(value, dict)]
  if nested:
    raise ValueError(
      f"{where}.{nested[0]}: found an object, supported: one rotary embedding for all layers"
    )
  kind = given.get("rope_type", given.get("type", "default"))
  if kind not in kinds:
    raise ValueError(f"{where}: found rope type {kind!r}, supported: {', '.join(map(repr, kinds))}")
  if given.get("partial_rotary_factor") not in (None, 1):
    raise ValueError(
      f"{where}.partial_rotary_factor: found {given['partial_rotary_factor']!r}, supported: 1.0"
    )
  if kind == "default":
    return None
  for key in _scaling_keys(kind):
    if not _is_number(given.get(key)):
      raise ValueError(f"{where}.{key}: found {given.get(key)!r}, expected a number")
  try:
    return rotary.Scaling(kind, **{key: given[key] for key in _scaling_keys(kind)})
  except ValueError as error:
    raise ValueError(f"{where}.{error}") from error


def entry(found: dict, key: str, where) -> dict:
  """An object inside another, empty where there is none. Raises ValueError where it is no
  object."""
  given = found.get(key) or {}
  if not isinstance(given, dict):
    raise ValueError(f"{where}: {key}: found {given!r}, expected an object")
  return given


def positive(found: dict, where, key: str, default):
  """A positive number of config.json, a whole one if `default`, which a missing key means, is
  whole."""
  value = found.get(key, default)
  if not isinstance(value, type(default)) or isinstance(value, bool) or value <= 0:
    raise ValueError(
      f"{where}: {key}: found {value!r}, expected a positive {type(default).__name__}"
    )
  return value


def head_dim(found: dict) -> int:
  """The width of a head, where config.json does not say it."""
  return found["hidden_size"] // max(found["num_attention_heads"], 1)


def with_suffix(suffix: str, presets: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
  """The presets, and each again under its name with `suffix`, as models of the same shape that were
  trained further are called."""
  return {name + end: shape for end in ("", suffix) for name, shape in presets.items()}


def write(config: ModelConfig, architecture: str, model_type: str, defaults: Mapping, **more):
  """The config.json of a model; defaults: as for `shape`, beside `KEYS`; more: further keys."""
  ours = {key: field for key, (field, _) in defaults.items()} | KEYS
  return {
    "architectures": [architecture],
    "model_type": model_type,
    **{key: getattr(config, field) for key, field in ours.items()},
    "attention_dropout": 0.0,
    **written_rope(config),
    **more,
  }


def written_rope(config: ModelConfig) -> dict:
  """What `rope` reads: transformers 4 takes the first two keys, 5 the last."""
  scaled = written_scaling(config.rope_scaling)
  return {
    "rope_theta": config.rope_theta,
    **({"rope_scaling": scaled} if config.rope_scaling else {}),
    "rope_parameters": scaled | {"rope_theta": config.rope_theta},
  }


def written_scaling(scaled: rotary.Scaling | None) -> dict:
  """What `scaling` reads."""
  if scaled is None:
    return {"rope_type": "default"}
  kept = ("rope_type", *_scaling_keys(scaled.rope_type))
  return {key: value for key, value in dataclasses.asdict(scaled).items() if key in kept}


def _scaling_keys(kind: str) -> list[str]:
  """The numbers that a kind of scaling has."""
  names = [field.name for field in dataclasses.fields(rotary.Scaling)][1:]
  return names if kind == "llama3" else names[:1]


def _is_number(x) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30
