"""What a model family is: how an architecture's Hugging Face directories are read and written.

A family is a file of this folder, or of the user's own, with a function that returns a `Family`.
The decoder is the same for all: what a family computes in another way is a field of
`decoder.ModelConfig`, which `read` sets, and sharding.RULES goes by the decoder's parameters. The
functions below are what several families need.
"""

from collections.abc import Callable, Iterator, Mapping
import itertools
from typing import Any, NamedTuple

from v05_jax.models.decoder import ModelConfig


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
  that leave the model as it is, what is supported first."""
  for key, allowed in only.items():
    if found.get(key) not in allowed:
      raise ValueError(f"{where}: {key}: found {found[key]!r}, supported: {allowed[0]!r}")


def shape(found: dict, where, keys: Mapping[str, str], defaults: Mapping, **more) -> ModelConfig:
  """A ModelConfig from config.json's `found`.

  keys: whole numbers that must be there, key of config.json -> field. defaults: keys that may be
  missing -> (field, what transformers takes then). more: further fields. Raises ValueError that
  names file and key, what was found and what was expected.
  """
  missing = [key for key in keys if not isinstance(found.get(key), int)]
  if missing:
    raise ValueError(f"{where}: {missing[0]}: found {found.get(missing[0])!r}, expected an integer")
  values = {field: found[key] for key, field in keys.items()}
  for key, (field, default) in defaults.items():
    values[field] = default if found.get(key) is None else found[key]
    if not isinstance(values[field], type(default)):
      raise ValueError(f"{where}: {key}: found {found[key]!r}, expected {type(default).__name__}")
  values["rope_theta"] = rope_theta(found, where)
  try:
    return ModelConfig(**values, **more)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def rope_theta(found: dict, where) -> float:
  """rope_theta of a config.json, at the top level (transformers 4) or inside rope_parameters or
  rope_scaling (5). Raises ValueError for a scaled rotary embedding."""
  for key in ("rope_parameters", "rope_scaling"):
    rope = found.get(key) or {}
    if not isinstance(rope, dict):
      raise ValueError(f"{where}: {key}: found {rope!r}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
      raise ValueError(
        f"{where}: {key}: found rope type {kind!r}, expected 'default': scaled rotary "
        "embeddings are not supported"
      )
    if "rope_theta" in rope:
      found = {"rope_theta": rope["rope_theta"]}
      break
  theta = found.get("rope_theta")
  if isinstance(theta, bool) or not isinstance(theta, int | float):
    raise ValueError(
      f"{where}: rope_theta: found {theta!r}, expected a number, at the top level or "
      "in rope_parameters"
    )
  return float(theta)
