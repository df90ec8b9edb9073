"""Qwen3: QK-norm, no biases, half-rotated rotary embedding (transformers' `Qwen3ForCausalLM`).

The sizes are those of the config.json files that the Qwen team published with the models
(`Qwen/Qwen3-0.6B` and so on).
"""

from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base

ARCHITECTURE = "Qwen3ForCausalLM"

# Keys that may be missing: ours, and what transformers' Qwen3Config then takes.
DEFAULTS = {
  "head_dim": ("head_dim", 128),
  "rms_norm_eps": ("rms_norm_eps", 1e-6),
  "tie_word_embeddings": ("tie_embeddings", False),
  "max_position_embeddings": ("max_positions", 32768),
}
# Variants of the architecture that are not implemented: key -> the values that leave it as it is.
ONLY = {"hidden_act": ("silu", None), "attention_bias": (False, None)}

_LARGE = {"vocab_size": 151936, "num_kv_heads": 8, "head_dim": 128, "rope_theta": 1e6}
PRESETS = {
  "qwen3-0.6b": ModelConfig(
    hidden_size=1024, num_layers=28, num_heads=16, intermediate_size=3072, **_LARGE
  ),
  "qwen3-1.7b": ModelConfig(
    hidden_size=2048, num_layers=28, num_heads=16, intermediate_size=6144, **_LARGE
  ),
  "qwen3-4b": ModelConfig(
    hidden_size=2560, num_layers=36, num_heads=32, intermediate_size=9728, **_LARGE
  ),
  "qwen3-8b": ModelConfig(
    hidden_size=4096,
    num_layers=36,
    num_heads=32,
    intermediate_size=12288,
    tie_embeddings=False,
    **_LARGE,
  ),
  # The backbone of V0.
  "qwen3-embedding-0.6b": ModelConfig(
    hidden_size=1024,
    num_layers=28,
    num_heads=16,
    intermediate_size=3072,
    **(_LARGE | {"vocab_size": 151669}),
  ),
  "qwen3-4b-instruct-2507": ModelConfig(
    hidden_size=2560,
    num_layers=36,
    num_heads=32,
    intermediate_size=9728,
    max_positions=262144,
    **(_LARGE | {"rope_theta": 5e6}),
  ),
}


def family() -> base.Family:
  """The family, for `families.find`."""
  return base.Family((ARCHITECTURE,), read, write, base.NAMES, PRESETS)


def read(found: dict, where) -> ModelConfig:
  """The shape that a config.json says. Raises ValueError naming the key that is wrong."""
  base.refuse(found, where, ONLY)
  base.refuse_windows(found, where)
  return base.shape(found, where, base.KEYS, DEFAULTS)


def write(config: ModelConfig) -> dict:
  """The config.json of a model."""
  more = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
  return base.write(config, ARCHITECTURE, "qwen3", DEFAULTS, **more)
