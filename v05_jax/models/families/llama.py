"""Llama 2 and 3.x and SmolLM2: no biases, no QK-norm, a rotary embedding that may be scaled
(transformers' `LlamaForCausalLM`).

The sizes are those of the config.json files that were published with the models
(`meta-llama/Llama-3.2-1B`, `HuggingFaceTB/SmolLM2-135M` and so on).
"""

from v05_jax.models import rotary
from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base

ARCHITECTURE = "LlamaForCausalLM"

# Keys that may be missing: ours, and what transformers' LlamaConfig then takes.
DEFAULTS = {
  "num_key_value_heads": ("num_kv_heads", lambda found: found["num_attention_heads"]),
  "head_dim": ("head_dim", base.head_dim),
  "rms_norm_eps": ("rms_norm_eps", 1e-6),
  "tie_word_embeddings": ("tie_embeddings", False),
  "max_position_embeddings": ("max_positions", 2048),
}
KEYS = {key: field for key, field in base.KEYS.items() if key not in DEFAULTS}
THETA = 10000.0
ROPE = ("default", "linear", "llama3")
ONLY = {"hidden_act": ("silu", None), "attention_bias": (False, None), "sliding_window": (None,)}
FEATURES = {"qk_norm": False}

_ALL = FEATURES | {"rms_norm_eps": 1e-5}
_LLAMA_3 = _ALL | {
  "vocab_size": 128256,
  "num_kv_heads": 8,
  "rope_theta": 5e5,
  "max_positions": 131072,
}
_SMOLLM2 = _ALL | {"vocab_size": 49152, "head_dim": 64, "rope_theta": 1e5, "max_positions": 8192}
PRESETS = base.with_suffix(
  "-instruct",
  {
    "llama-3.2-1b": ModelConfig(
      hidden_size=2048,
      num_layers=16,
      num_heads=32,
      head_dim=64,
      intermediate_size=8192,
      rope_scaling=rotary.Scaling("llama3", 32.0),
      **_LLAMA_3,
    ),
    "llama-3.2-3b": ModelConfig(
      hidden_size=3072,
      num_layers=28,
      num_heads=24,
      head_dim=128,
      intermediate_size=8192,
      rope_scaling=rotary.Scaling("llama3", 32.0),
      **_LLAMA_3,
    ),
    "llama-3.1-8b": ModelConfig(
      hidden_size=4096,
      num_layers=32,
      num_heads=32,
      head_dim=128,
      intermediate_size=14336,
      rope_scaling=rotary.Scaling("llama3", 8.0),
      tie_embeddings=False,
      **_LLAMA_3,
    ),
    "smollm2-135m": ModelConfig(
      hidden_size=576,
      num_layers=30,
      num_heads=9,
      num_kv_heads=3,
      intermediate_size=1536,
      **_SMOLLM2,
    ),
    "smollm2-360m": ModelConfig(
      hidden_size=960,
      num_layers=32,
      num_heads=15,
      num_kv_heads=5,
      intermediate_size=2560,
      **_SMOLLM2,
    ),
    "smollm2-1.7b": ModelConfig(
      hidden_size=2048,
      num_layers=24,
      num_heads=32,
      num_kv_heads=32,
      intermediate_size=8192,
      **_SMOLLM2 | {"rope_theta": 1.3e5},
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
  rope = base.rope(found, where, ROPE, THETA)
  return base.shape(found, where, KEYS, DEFAULTS, **FEATURES, **rope)


def write(config: ModelConfig) -> dict:
  """The config.json of a model."""
  more = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
  return base.write(config, ARCHITECTURE, "llama", DEFAULTS, **more)
