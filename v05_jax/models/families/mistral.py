"""Mistral without sliding windows: Llama under other names (transformers' `MistralForCausalLM`).

The sizes are those of the config.json that Mistral AI published with the model.
"""

from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base, llama

ARCHITECTURE = "MistralForCausalLM"

# Keys that may be missing: ours, and what transformers' MistralConfig then takes.
DEFAULTS = llama.DEFAULTS | {
  "num_key_value_heads": ("num_kv_heads", 8),
  "max_position_embeddings": ("max_positions", 131072),
}
WINDOW = 4096  # of MistralConfig where config.json has no key for it
ONLY = {"hidden_act": ("silu", None), "attention_bias": (False, None), "sliding_window": (None,)}

PRESETS = {
  name: ModelConfig(
    vocab_size=32768,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    tie_embeddings=False,
    max_positions=32768,
    **llama.FEATURES,
  )
  for name in ("mistral-7b-v0.3", "mistral-7b-instruct-v0.3")
}


def family() -> base.Family:
  """The family, for `families.find`."""
  return base.Family((ARCHITECTURE,), read, write, base.NAMES, PRESETS)


def read(found: dict, where) -> ModelConfig:
  """The shape that a config.json says. Raises ValueError naming the key that is wrong."""
  base.refuse(found, where, ONLY)
  base.refuse_windows(found, where)
  if "sliding_window" not in found:
    raise ValueError(
      f"{where}: sliding_window: found no such key, which means {WINDOW}, supported: null"
    )
  rope = base.rope(found, where, llama.ROPE, llama.THETA)
  return base.shape(found, where, llama.KEYS, DEFAULTS, **llama.FEATURES, **rope)


def write(config: ModelConfig) -> dict:
  """The config.json of a model."""
  more = {"hidden_act": "silu", "sliding_window": None}
  return base.write(config, ARCHITECTURE, "mistral", DEFAULTS, **more)
