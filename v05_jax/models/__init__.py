"""The policy: its shape, its parameters on host, and its tokenizer, from `config.policy`."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from v05_jax import rng
from v05_jax.models import decoder, encoding, families, flash, hf, hub, lora, model_config, presets
from v05_jax.models import tokenizer as tokenizers
from v05_jax.names import alike, nearest, suggestion

BUILTIN = Path(__file__).parent.parent / "tasks" / "warm_start"
# Policies of the built-in tasks that the package ships, by what config.policy.path calls them.
SHIPPED = {"builtin": BUILTIN, "builtin_scratchpad": BUILTIN.parent / "warm_start_scratchpad"}
_SHIPPED = ", ".join(f'"{name}"' for name in SHIPPED)


class Policy(NamedTuple):
  config: decoder.ModelConfig
  # the tree of models/decoder.py, numpy arrays on host, float32 (beside adapters: see `lora.add`)
  params: Any
  tokenizer: Any  # a transformers tokenizer with an EOS token
  # tokens that end a response: the tokenizer's EOS first, the end of a turn in its chat template
  stop: tuple[int, ...]


def backend(platform: str | None = None) -> str:
  """`ModelConfig.backend` for a platform of JAX, by default this machine's."""
  return "cpu" if (platform or jax.default_backend()) == "cpu" else "accelerator"


def folder(path: str) -> Path:
  """The directory that `config.policy.path` names; a model of the hub is fetched where there is no
  such folder. Raises ValueError where there is neither."""
  directory = _local(path)
  if directory.is_dir():
    return directory
  if hub.is_name(path):
    return hub.fetch(path, "config.policy.path")
  near = [f'"{name}"' for name in nearest(path, SHIPPED)]
  meant = suggestion(near) or alike(directory)
  raise ValueError(
    f"config.policy.path: found {path!r}, expected {_SHIPPED}, a Hugging Face directory or the "
    f"name of a model on the hub (owner/name); {directory} is not a directory"
    f"{meant}"
  )


def shape(path: str, preset: str, family: str = "") -> decoder.ModelConfig:
  """The shape of a model that need not be here: of the preset, of the folder's config.json, or,
  where there is no such folder, of the preset that the folder is named after. family: as
  `config.policy.family`. Raises ValueError where none of these is known."""
  directory = _local(path)
  name = preset or directory.name.lower()
  if not preset and directory.is_dir():
    return hf.read_config(directory, family=family)
  known = presets.known(family)
  if name not in known:
    key = "preset" if preset else "path"
    raise ValueError(
      f"config.policy.{key}: found {preset or path!r}, expected a Hugging Face directory or the "
      "name of "
      f"a known shape: {', '.join(known)}"
    )
  return known[name]


def adapt(config: decoder.ModelConfig, policy, platform: str | None = None) -> decoder.ModelConfig:
  """The shape as `config.policy` wants it computed on a platform of JAX, by default this
  machine's."""
  platform = platform or jax.default_backend()
  attention = flash.KERNELS.get(platform, "plain") if policy.attention == "flash" else "plain"
  adapters = (
    lora.Lora(policy.lora_rank, policy.lora_alpha, tuple(policy.lora_targets))
    if policy.lora_rank
    else None
  )
  return dataclasses.replace(
    config,
    dtype=policy.dtype,
    remat=policy.remat,
    attention=attention,
    backend=backend(platform),
    adapters=adapters,
  )


def load(policy, seed: int = 0) -> Policy:
  """The policy that `config.policy` names. `path` is a Hugging Face directory, a model's name on
  the hub (owner/name), or a name of SHIPPED for a warm start of the built-in tasks; with `preset`
  the shape is that preset's, the weights are drawn from `seed`, and only the tokenizer comes from
  `path`.

  Raises ValueError, naming the key or file, for whatever cannot be used.
  """
  if policy.dtype not in model_config.DTYPES:
    raise ValueError(
      f"config.policy.dtype: found {policy.dtype!r}, expected one of "
      f"{', '.join(model_config.DTYPES)}"
    )
  known = presets.known(policy.family)
  if policy.preset and policy.preset not in known:
    raise ValueError(
      f'config.policy.preset: found {policy.preset!r}, expected "" or one of {", ".join(known)}'
    )
  directory = folder(policy.path)
  config = (
    known[policy.preset] if policy.preset else hf.read_config(directory, family=policy.family)
  )
  families.check(config)
  tokenizer = tokenizers.load(directory)
  tokenizers.check(tokenizer, config.vocab_size, directory, padded=bool(policy.preset))
  unused = tokenizers.unused_ids(tokenizer, config.vocab_size)
  config = dataclasses.replace(adapt(config, policy), unused_ids=unused)
  if policy.preset:
    params = jax.device_get(jax.jit(lambda: decoder.init(config, rng.at(seed, 0, rng.INIT)))())
  else:
    matrices = policy.dtype if config.adapters else "float32"
    params = hf.load(directory, matrices=matrices, family=policy.family)[1]
    if config.adapters:
      params = lora.join(jax.device_get(lora.init(config, rng.at(seed, 0, rng.INIT))), params)
  ends = *tokenizers.stop_tokens(tokenizer, directory), encoding.end_of_turn(tokenizer)
  return Policy(config, params, tokenizer, tuple(dict.fromkeys(ends)))


def _local(path: str) -> Path:
  return SHIPPED.get(path) or Path(path)
