"""The shape of a decoder: sizes, what its family computes in its own way, and how it is computed
here."""

import dataclasses

from flax import linen as nn
import jax

from v05_jax.models import flash, lora, rotary

DTYPES = ("float32", "bfloat16")
LAYERS = 10_000  # of a model, at most: more is a damaged config.json
BACKENDS = ("accelerator", "cpu")
ATTENTION = ("plain", *flash.KERNELS.values())
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": nn.gelu}
# What the forward pass of a layer stores for its backward pass, which computes the rest again.
REMAT = {
  # everything
  "none": None,
  # the layer's input
  "full": jax.checkpoint_policies.nothing_saveable,
  # the layer's input and what splash attention returns
  "attention": jax.checkpoint_policies.save_only_these_names(flash.NAME),
  # the layer's input and its products with weights
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Local:
  """Layers that see a window of the newest tokens alone, with a rotary embedding of their own."""

  window: int  # tokens, the token itself among them
  rope_theta: float
  layers: tuple[bool, ...]  # [L] whether a layer is one of them


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of a decoder. Hashable, so that it can be a static argument of a jitted function."""

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  intermediate_size: int
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  tie_embeddings: bool = True
  max_positions: int = 40960  # recorded in config.json; the rotary embedding itself has no limit
  dtype: str = "float32"  # of the computation; parameters are float32
  remat: str = "none"  # a key of REMAT
  attention: str = "plain"  # of the update, one of ATTENTION: see flash.py
  backend: str = "accelerator"  # that XLA compiles for; "cpu" takes the training pass of cpu.py
  adapters: lora.Lora | None = None  # where there are any, nothing else is trained
  family: str = "qwen3"  # that reads and writes its files: see families.find
  # What families compute in different ways; the defaults are Qwen3's.
  qk_norm: bool = True  # RMSNorm of each query and key head
  qkv_bias: bool = False
  rope_scaling: rotary.Scaling | None = None
  activation: str = "silu"  # of the gate, a key of ACTIVATIONS
  unit_offset: bool = False  # RMSNorm multiplies by 1 + scale
  post_norms: bool = False  # RMSNorm of what attention and MLP add, too
  embedding_scale: float = 1.0  # embeddings are multiplied by it
  query_scalar: float | None = None  # scores are divided by its root; None = head_dim
  local: Local | None = None
  # ranges [first, end) of ids that no token has: see `decoder.usable`
  unused_ids: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      most = LAYERS if field.name == "num_layers" else 2**31 - 1
      if field.type in (int, float) and (isinstance(value, bool) or not 0 < value <= most):
        raise ValueError(
          f"ModelConfig.{field.name}: found {value!r}, expected a positive number, at most {most}"
        )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"ModelConfig.num_heads: found {self.num_heads}, expected a multiple of "
        f"num_kv_heads = {self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(
        f"ModelConfig.head_dim: found {self.head_dim}, expected an even number "
        "(the rotary embedding turns pairs)"
      )
    if self.dtype not in DTYPES:
      raise ValueError(f"ModelConfig.dtype: found {self.dtype!r}, expected one of {DTYPES}")
    for name, known in (
      ("backend", BACKENDS),
      ("remat", tuple(REMAT)),
      ("attention", ATTENTION),
      ("activation", tuple(ACTIVATIONS)),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"ModelConfig.{name}: found {getattr(self, name)!r}, expected one of {known}"
        )
    if self.local and len(self.local.layers) != self.num_layers:
      raise ValueError(
        f"ModelConfig.local: found {len(self.local.layers)} layers, expected num_layers = "
        f"{self.num_layers}"
      )
    if self.adapters:
      lora.check(self)
    flash.check(self)
