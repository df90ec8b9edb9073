"""Qwen2 and Qwen2.5: biases of q, k and v, no QK-norm (transformers' `Qwen2ForCausalLM`).

The sizes are those of the config.json files that the Qwen team published with the models
(`Qwen/Qwen2.5-0.5B` and so on).
"""

from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base

ARCHITECTURE = "Qwen2ForCausalLM"

# Keys that may be missing: ours, and what transformers' Qwen2Config then takes.
DEFAULTS = {
  "head_dim": ("head_dim", base.head_dim),
  "rms_norm_eps": ("rms_norm_eps", 1e-6),
  "tie_word_embeddings": ("tie_embeddings", False),
  "max_position_embeddings": ("max_positions", 32768),
}
ONLY = {"hidden_act": ("silu", None)}
FEATURES = {"qk_norm": False, "qkv_bias": True}

_ALL = FEATURES | {
  "vocab_size": 151936,
  "num_kv_heads": 2,
  "head_dim": 128,
  "rope_theta": 1e6,
  "max_positions": 32768,
}
PRESETS = base.with_suffix(
  "-instruct",
  {
    "qwen2.5-0.5b": ModelConfig(
      hidden_size=896,
      num_layers=24,
      num_heads=14,
      intermediate_size=4864,
      **_ALL | {"head_dim": 64},
    ),
    "qwen2.5-1.5b": ModelConfig(
      hidden_size=1536, num_layers=28, num_heads=12, intermediate_size=8960, **_ALL
    ),
    "qwen2.5-3b": ModelConfig(
      hidden_size=2048, num_layers=36, num_heads=16, intermediate_size=11008, **_ALL
    ),
    "qwen2.5-7b": ModelConfig(
      hidden_size=3584,
      num_layers=28,
      num_heads=28,
      intermediate_size=18944,
      tie_embeddings=False,
      **_ALL | {"vocab_size": 152064, "num_kv_heads": 4},
    ),
  },
)


def family() -> base.Family:
  """The family, for `families.find`."""
  return base.Family((ARCHITECTURE,), read, write, base.NAMES, PRESETS)


def read(found: dict, where) -> ModelConfig:
  """The shape that a config.json says. Raises ValueError naming the key that is wrong."""
  base.refuse(found, where, ONLY)
  base.refuse_windows(found, where)
  return base.shape(found, where, base.KEYS, DEFAULTS, **FEATURES)


def write(config: ModelConfig) -> dict:
  """The config.json of a model."""
  more = {"hidden_act": "silu", "use_sliding_window": False}
  return base.write(config, ARCHITECTURE, "qwen2", DEFAULTS, **more)
