"""The decoder of a language model as pure functions of explicit parameters.

RMSNorm before attention and MLP, RMSNorm of each query and key head before the rotary embedding
(QK-norm), grouped-query attention, SwiGLU, tied or untied head, no biases. The arithmetic is that
of Hugging Face transformers' `Qwen3ForCausalLM` (half-rotated rotary embedding). Parameters are
float32 and are cast to `config.dtype` where they are used; norms, rotary embedding, softmax and
logits are float32 always. How files of a model are called is the matter of families/.

`forward` scans over layers whose parameters are stacked on a leading axis, so that compile time
does not grow with depth. Decoding, a token at a time, is in decoding.py.

Parameters (`F` the MLP width, matrices are `[in, out]`):

    embedding [V, D], norm/scale [D], head [V, D] (untied only), and under layers/, with a leading
    L: attention_norm/scale [D], q/kernel [D, H Dh], k/kernel and v/kernel [D, KV Dh], q_norm/scale
    and k_norm/scale [Dh], o/kernel [H Dh, D], mlp_norm/scale [D], gate/kernel and up/kernel [D, F],
    down/kernel [F, D]
"""

from collections.abc import Callable
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.models import cpu, flash, lora

DTYPES = ("float32", "bfloat16")
LAYERS = 10_000  # of a model, at most: more is a damaged config.json
BACKENDS = ("accelerator", "cpu")
ATTENTION = ("plain", *flash.KERNELS.values())
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
MASKED = cpu.MASKED


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
  # ranges [first, end) of ids that no token has: see `usable`
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
    for name, known in (("backend", BACKENDS), ("remat", tuple(REMAT)), ("attention", ATTENTION)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"ModelConfig.{name}: found {getattr(self, name)!r}, expected one of {known}"
        )
    if self.adapters:
      lora.check(self)


class RMSNorm(nn.Module):
  """`scale * x / sqrt(mean(x^2) + eps)` over the last axis, in float32; returns float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    return scale * (x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps))


class Layer(nn.Module):
  """One decoder layer. `keep_kv`: also return the keys and values, in the cache's layouts.
  `kernel`: see `forward_kernel`."""

  config: ModelConfig
  keep_kv: bool = False
  kernel: Callable | None = None

  def setup(self):
    c = self.config
    residual = 1.0 / (2 * c.num_layers)  # so that the residual stream's variance ignores depth
    product = cpu.dot_general if c.backend == "cpu" else None

    def dense(name, features, scale=1.0):
      init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
      if c.adapters and name in c.adapters.targets:
        return lora.Dense(features, c.adapters, c.dtype, init, product)
      return nn.Dense(
        features, use_bias=False, dtype=c.dtype, kernel_init=init, dot_general=product
      )

    self.attention_norm = RMSNorm(c.rms_norm_eps)
    self.q = dense("q", c.num_heads * c.head_dim)
    self.k = dense("k", c.num_kv_heads * c.head_dim)
    self.v = dense("v", c.num_kv_heads * c.head_dim)
    self.q_norm = RMSNorm(c.rms_norm_eps)
    self.k_norm = RMSNorm(c.rms_norm_eps)
    self.o = dense("o", c.hidden_size, residual)
    self.mlp_norm = RMSNorm(c.rms_norm_eps)
    self.gate = dense("gate", c.intermediate_size)
    self.up = dense("up", c.intermediate_size)
    self.down = dense("down", c.hidden_size, residual)

  def __call__(self, x, rotation, mask):
    """x [N, T, D], rotation 2 x [N, T, Dh/2], mask bool [N, T, T] (`cpu.see` of it on a CPU,
    segments [N, T] for a kernel) -> x, (k, v) or None.

    k [N, KV, Dh, T] has the rotary embedding applied; v [N, KV, T, Dh].
    """
    q, k, v = self._qkv(x, rotation)
    columns = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    if self.kernel:
      out = self.kernel(q, k, v, mask)
    elif self.config.backend == "cpu":
      out = cpu.attend(q, k, v, mask)  # [N, T, KV, G, Dh]
    else:
      out = jnp.moveaxis(attend(jnp.moveaxis(q, 1, 3), *columns, mask), 3, 1)
    x = self._mlp(x + self.o(out.reshape(*x.shape[:2], -1)))
    return x, (columns if self.keep_kv else None)

  def decode(self, x, rotation, attend):
    """One token of each row: x [S, D], rotation 2 x [S, Dh/2] -> x, the new cache.

    attend: (q [S, KV, G, Dh], k and v [S, KV, Dh]) -> (out as q, the cache with k and v in it); see
    decoding.py.
    """
    q, k, v = self._qkv(x, rotation)
    out, cache = attend(q, k, v)
    return self._mlp(x + self.o(out.astype(q.dtype).reshape(x.shape[0], -1))), cache

  def _qkv(self, x, rotation):
    """x [..., D] -> q [..., KV, G, Dh], k and v [..., KV, Dh]."""
    c = self.config
    x = self.attention_norm(x).astype(c.dtype)
    q = self.q(x).reshape(*x.shape[:-1], c.num_kv_heads, -1, c.head_dim)
    k = self.k(x).reshape(*x.shape[:-1], c.num_kv_heads, c.head_dim)
    v = self.v(x).reshape(*x.shape[:-1], c.num_kv_heads, c.head_dim)
    cos, sin = (r[..., None, :] for r in rotation)
    q = rotate(self.q_norm(q), cos[..., None, :], sin[..., None, :]).astype(c.dtype)
    return q, rotate(self.k_norm(k), cos, sin).astype(c.dtype), v

  def _mlp(self, x):
    h = self.mlp_norm(x).astype(self.config.dtype)
    return x + self.down(nn.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
  """Embedding, scanned layers, final norm; also holds the head's matrix, which `logits` applies."""

  config: ModelConfig
  keep_kv: bool = False
  kernel: Callable | None = None

  @nn.compact
  def __call__(self, tokens, positions, mask):
    c = self.config
    init = nn.initializers.normal(c.hidden_size**-0.5)
    embedding = self.param("embedding", init, (c.vocab_size, c.hidden_size))
    if not c.tie_embeddings:
      self.param("head", init, (c.vocab_size, c.hidden_size))
    layer = Layer
    policy = REMAT[c.remat]
    if c.backend == "cpu" and not self.kernel:
      mask, policy = cpu.see(mask, c.num_heads), policy or cpu.saved
    if policy:
      layer = nn.remat(Layer, prevent_cse=False, policy=policy)
    layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=c.num_layers,
    )
    x = embed(c, embedding, tokens)
    x, kv = layers(c, self.keep_kv, self.kernel, name="layers")(x, rotation(c, positions), mask)
    return RMSNorm(c.rms_norm_eps, name="norm")(x).astype(c.dtype), kv


def embed(config, embedding, tokens):
  """Embeddings [..., D] of tokens [...], in the compute dtype."""
  embedding = embedding.astype(config.dtype)
  return (
    cpu.lookup(embedding, tokens)
    if config.backend == "cpu"
    else jnp.take(embedding, tokens, axis=0)
  )


def rotation(config, positions):
  """(cos, sin) [..., Dh/2] of the angles `position * rope_theta^(-2i/Dh)`, float32."""
  exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
  frequency = (1.0 / config.rope_theta**exponent).astype(np.float32)
  angle = positions[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos, sin):
  """Rotary embedding of x [..., Dh]; component i is paired with i + Dh/2, as in transformers."""
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q, k, v, mask):
  """Grouped-query attention `softmax(q k / sqrt(Dh)) v`.

  q [B, KV, G, Q, Dh], k [B, KV, Dh, C], v [B, KV, C, Dh], mask bool [B, Q, C] -> [B, KV, G, Q, Dh].
  The query group is folded into the query axis: one batched matmul per (row, kv head), and keys are
  never repeated.
  """
  shape = q.shape
  q = q.reshape(*shape[:2], -1, shape[-1])
  scores = jnp.matmul(q, k, preferred_element_type=jnp.float32) * shape[-1] ** -0.5
  scores = scores.reshape(*shape[:4], -1)
  scores = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
  weights = scores.astype(v.dtype).reshape(*q.shape[:3], -1)
  return jnp.matmul(weights, v).reshape(shape)


def init(config: ModelConfig, key):
  """Random normal float32 parameters: variance 1/fan_in, of o and down 1/(2 L fan_in), of embedding
  and head 1/D; norm scales are 1. With adapters (`lora.add`) the others are the same."""
  one = jnp.zeros((1, 1), jnp.int32)
  params = Decoder(lora.plain(config)).init(key, one, one, jnp.ones((1, 1, 1), bool))["params"]
  return lora.add(config, params, key)


def forward(config: ModelConfig, params, tokens, positions, segments, prompts=None):
  """Hidden states [N, T, D] after the final norm, in the compute dtype.

  tokens, positions, segments, prompts int32 [N, T]. A token sees the tokens of its own segment and
  of the segment `prompts` up to itself, in row order; segment 0 is padding: it sees padding only,
  so its hidden state is finite and meaningless. `positions` go to the rotary embedding alone.
  """
  mask = causal(segments, prompts)
  return Decoder(config).apply({"params": params}, tokens, positions, mask)[0]


def forward_kernel(kernel, config: ModelConfig, params, tokens, positions, segments):
  """`forward` with attention by a kernel, (q, k, v, segments) -> out as of `flash.attend`. A token
  sees its own segment alone: a kernel knows one segment a token."""
  model = Decoder(config, kernel=kernel)
  return model.apply({"params": params}, tokens, positions, segments)[0]


def causal(segments, prompts=None):
  """Which columns each token sees, bool [N, T, T]: its own segment (padding is one too) and, if
  given, that of its prompt, up to itself."""
  index = jnp.arange(segments.shape[1])
  of = lambda x: x[:, :, None] == segments[:, None, :]
  return (of(segments) if prompts is None else of(segments) | of(prompts)) & (
    index[:, None] >= index
  )


def unembed(config: ModelConfig, params):
  """The head's matrix [V, D], in the compute dtype: the embedding where they are tied."""
  return params["embedding" if config.tie_embeddings else "head"].astype(config.dtype)


def usable(config: ModelConfig) -> np.ndarray | None:
  """bool [V]: the ids that a token has; None where every id has one.

  Embeddings often have more rows than the tokenizer has tokens. The other ids have no probability:
  `logits` and the losses leave them out alike.
  """
  if not config.unused_ids:
    return None
  found = np.ones(config.vocab_size, bool)
  for first, end in config.unused_ids:
    found[first:end] = False
  return found


def logits(config: ModelConfig, params, hidden):
  """float32 logits [..., V] of hidden states [..., D]; `MASKED` where `usable` is False."""
  matrix, ids = unembed(config, params), usable(config)
  found = jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=jnp.float32)
  return found if ids is None else jnp.where(ids, found, MASKED)
