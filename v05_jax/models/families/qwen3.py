"""Qwen3: QK-norm, no biases, half-rotated rotary embedding (transformers' `Qwen3ForCausalLM`).

The sizes are those of the config.json files that the Qwen team published with the models
(`Qwen/Qwen3-0.6B` and so on).
"""

from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base

ARCHITECTURE = "Qwen3ForCausalLM"
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
NAMES = {
  "model.embed_tokens.weight": "embedding",
  "model.layers.{i}.input_layernorm.weight": "layers/attention_norm/scale",
  "model.layers.{i}.self_attn.q_proj.weight": "layers/q/kernel",
  "model.layers.{i}.self_attn.k_proj.weight": "layers/k/kernel",
  "model.layers.{i}.self_attn.v_proj.weight": "layers/v/kernel",
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
  return base.Family((ARCHITECTURE,), read, write, NAMES, PRESETS)


def read(found: dict, where) -> ModelConfig:
  """The shape that a config.json says. Raises ValueError naming the key that is wrong."""
  base.refuse(found, where, ONLY)
  layers = found.get("layer_types") or []
  if not isinstance(layers, list) or any(x != "full_attention" for x in layers):
    raise ValueError(f"{where}: layer_types: found {layers!r}, supported: full_attention")
  return base.shape(found, where, KEYS, DEFAULTS)


def write(config: ModelConfig) -> dict:
  """The config.json of a model."""
  ours = {key: field for key, (field, _) in DEFAULTS.items()} | KEYS
  return {
    "architectures": [ARCHITECTURE],
    "model_type": "qwen3",
    **{key: getattr(config, field) for key, field in ours.items()},
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    # transformers 4 reads the first, 5 the second.
    "rope_theta": config.rope_theta,
    "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
  }
