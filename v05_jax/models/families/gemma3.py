"""Gemma 3, text alone: norms that multiply by 1 + scale, before and behind attention and MLP,
QK-norm, GELU, scaled embeddings, and layers with a window beside layers without (transformers'
`Gemma3ForCausalLM`).

The sizes are those of the config.json files that Google published with the models
(`google/gemma-3-270m`, `google/gemma-3-1b-pt`).
"""

import dataclasses

from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base
from v05_jax.models.model_config import Local

ARCHITECTURE = "Gemma3ForCausalLM"
LOCAL, WHOLE = "sliding_attention", "full_attention"

# Keys that may be missing: ours, and what transformers' Gemma3TextConfig then takes.
DEFAULTS = {
  "head_dim": ("head_dim", 256),
  "rms_norm_eps": ("rms_norm_eps", 1e-6),
  "tie_word_embeddings": ("tie_embeddings", True),
  "max_position_embeddings": ("max_positions", 131072),
}
WINDOW, PATTERN, SCALAR = 4096, 6, 256
THETA = {WHOLE: 1e6, LOCAL: 1e4}
ONLY = {
  "hidden_activation": ("gelu_pytorch_tanh", None),
  "attention_bias": (False, None),
  "use_bidirectional_attention": (False, None),
}
FEATURES = {"activation": "gelu_tanh", "unit_offset": True, "post_norms": True}
NAMES = {
  "model.embed_tokens.weight": "embedding",
  "model.layers.{i}.input_layernorm.weight": "layers/attention_norm/scale",
  "model.layers.{i}.self_attn.q_proj.weight": "layers/q/kernel",
  "model.layers.{i}.self_attn.k_proj.weight": "layers/k/kernel",
  "model.layers.{i}.self_attn.v_proj.weight": "layers/v/kernel",
  "model.layers.{i}.self_attn.q_norm.weight": "layers/q_norm/scale",
  "model.layers.{i}.self_attn.k_norm.weight": "layers/k_norm/scale",
  "model.layers.{i}.self_attn.o_proj.weight": "layers/o/kernel",
  "model.layers.{i}.post_attention_layernorm.weight": "layers/post_attention_norm/scale",
  "model.layers.{i}.pre_feedforward_layernorm.weight": "layers/mlp_norm/scale",
  "model.layers.{i}.mlp.gate_proj.weight": "layers/gate/kernel",
  "model.layers.{i}.mlp.up_proj.weight": "layers/up/kernel",
  "model.layers.{i}.mlp.down_proj.weight": "layers/down/kernel",
  "model.layers.{i}.post_feedforward_layernorm.weight": "layers/post_mlp_norm/scale",
  "model.norm.weight": "norm/scale",
  base.HEAD: "head",
}


def _preset(hidden_size: int, num_layers: int, intermediate_size: int) -> ModelConfig:
  local = tuple((i + 1) % PATTERN > 0 for i in range(num_layers))
  return ModelConfig(
    vocab_size=262144,
    hidden_size=hidden_size,
    num_layers=num_layers,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    intermediate_size=intermediate_size,
    max_positions=32768,
    embedding_scale=hidden_size**0.5,
    local=Local(512, THETA[LOCAL], local),
    **FEATURES,
  )


PRESETS = base.with_suffix(
  "-it", {"gemma-3-270m": _preset(640, 18, 2048), "gemma-3-1b": _preset(1152, 26, 6912)}
)


def family() -> base.Family:
  """The family, for `families.find`."""
  return base.Family((ARCHITECTURE,), read, write, NAMES, PRESETS)


def read(found: dict, where) -> ModelConfig:
  """The shape that a config.json says. Raises ValueError naming the key that is wrong."""
  base.refuse(found, where, ONLY)
  whole, theta = ropes(found, where)
  config = base.shape(found, where, base.KEYS, DEFAULTS, **FEATURES, **whole)
  scalar = base.positive(found, where, "query_pre_attn_scalar", SCALAR)
  local = local_layers(found, where, config.num_layers)
  window = base.positive(found, where, "sliding_window", WINDOW) if any(local) else None
  return dataclasses.replace(
    config,
    embedding_scale=config.hidden_size**0.5,
    query_scalar=None if scalar == config.head_dim else scalar,
    local=Local(window, theta, local) if any(local) else None,
  )


def ropes(found: dict, where) -> tuple[dict, float]:
  """(the fields rope_theta and rope_scaling, of layers without a window; rope_theta of those with
  one): at the top level and in rope_scaling (transformers 4), or in rope_parameters, which has an
  object for each kind of layer (5)."""
  kinds = base.entry(found, "rope_parameters", where)
  unknown = sorted(set(kinds) - set(THETA))
  if unknown:
    raise ValueError(
      f"{where}: rope_parameters.{unknown[0]}: found {kinds[unknown[0]]!r}, expected objects named "
      f"{' and '.join(THETA)}"
    )
  each = {kind: base.entry(kinds, kind, f"{where}: rope_parameters") for kind in THETA}
  each[WHOLE] = each[WHOLE] | base.entry(found, "rope_scaling", where)
  ask = lambda kind, theta, scaled: base.rope(
    {"rope_theta": found.get(theta), "rope_parameters": each[kind]},
    f"{where}: {kind}",
    scaled,
    THETA[kind],
  )
  whole = ask(WHOLE, "rope_theta", ("default", "linear"))
  return whole, ask(LOCAL, "rope_local_base_freq", ("default",))["rope_theta"]


def local_layers(found: dict, where, num_layers: int) -> tuple[bool, ...]:
  """Which layers have a window: those that layer_types says, or all but each PATTERN-th."""
  kinds = found.get("layer_types")
  if kinds is None:
    pattern = base.positive(found, where, "sliding_window_pattern", PATTERN)
    return tuple((i + 1) % pattern > 0 for i in range(num_layers))
  if not isinstance(kinds, list) or len(kinds) != num_layers or set(map(str, kinds)) - set(THETA):
    raise ValueError(
      f"{where}: layer_types: found {kinds!r}, expected {num_layers} of {', '.join(THETA)}"
    )
  return tuple(kind == LOCAL for kind in kinds)


def write(config: ModelConfig) -> dict:
  """The config.json of a model."""
  local = config.local or Local(WINDOW, THETA[LOCAL], (False,) * config.num_layers)
  scalar = config.query_scalar or config.head_dim
  more = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
    "sliding_window": local.window,
    "layer_types": [LOCAL if here else WHOLE for here in local.layers],
    "rope_local_base_freq": local.rope_theta,
    "rope_parameters": {
      WHOLE: base.written_rope(config)["rope_parameters"],
      LOCAL: {"rope_type": "default", "rope_theta": local.rope_theta},
    },
  }
  return base.write(config, ARCHITECTURE, "gemma3_text", DEFAULTS, **more)
