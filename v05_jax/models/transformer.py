"""The Qwen3 decoder as pure functions of explicit parameters.

RMSNorm before attention and MLP, RMSNorm of each query and key head before the rotary embedding
(QK-norm), grouped-query attention, SwiGLU, tied or untied head, no biases. The arithmetic is that of
Hugging Face transformers' `Qwen3ForCausalLM` (half-rotated rotary embedding). Parameters are float32
and are cast to `config.dtype` where they are used; norms, rotary embedding, softmax and logits are
float32 always.

`forward` and `prefill` scan over layers whose parameters are stacked on a leading axis, so that
compile time does not grow with depth. `decode` is unrolled over layers and keeps one cache array per
layer: a cache stacked over layers is copied at every step of a decode loop. It reads a cache that the loop
does not change, and writes into a small one beside it: neither is copied nor scattered into at a step.

Parameters (`F` the MLP width, matrices are `[in, out]`):

    embedding [V, D], norm/scale [D], head [V, D] (untied only), and under layers/, with a leading L:
    attention_norm/scale [D], q/kernel [D, H Dh], k/kernel and v/kernel [D, KV Dh], q_norm/scale
    and k_norm/scale [Dh], o/kernel [H Dh, D], mlp_norm/scale [D], gate/kernel and up/kernel [D, F],
    down/kernel [F, D]
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16")
MASKED = -1e30  # a score that softmax turns into 0, finite so that no row can become NaN


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of a Qwen3 decoder. Hashable, so that it can be a static argument of a jitted function."""

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
  remat: bool = False  # recompute each layer in the backward pass
  onehot_embedding: bool = False  # look tokens up by a matmul: its gradient needs no scatter

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, float) and (isinstance(value, bool) or not value > 0):
        raise ValueError(f"ModelConfig.{field.name}: found {value!r}, expected a positive number")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"ModelConfig.num_heads: found {self.num_heads}, expected a multiple of "
                       f"num_kv_heads = {self.num_kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"ModelConfig.head_dim: found {self.head_dim}, expected an even number "
                       "(the rotary embedding turns pairs)")
    if self.dtype not in DTYPES:
      raise ValueError(f"ModelConfig.dtype: found {self.dtype!r}, expected one of {DTYPES}")


class RMSNorm(nn.Module):
  """`scale * x / sqrt(mean(x^2) + eps)` over the last axis, in float32; returns float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    return scale * (x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps))


class Layer(nn.Module):
  """One decoder layer. `keep_kv`: also return the keys and values, in the cache's layouts."""

  config: ModelConfig
  keep_kv: bool = False

  def setup(self):
    c = self.config
    residual = 1.0 / (2 * c.num_layers)  # so that the residual stream's variance ignores depth

    def dense(features, scale=1.0):
      init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
      return nn.Dense(features, use_bias=False, dtype=c.dtype, kernel_init=init)

    self.attention_norm = RMSNorm(c.rms_norm_eps)
    self.q = dense(c.num_heads * c.head_dim)
    self.k = dense(c.num_kv_heads * c.head_dim)
    self.v = dense(c.num_kv_heads * c.head_dim)
    self.q_norm = RMSNorm(c.rms_norm_eps)
    self.k_norm = RMSNorm(c.rms_norm_eps)
    self.o = dense(c.hidden_size, residual)
    self.mlp_norm = RMSNorm(c.rms_norm_eps)
    self.gate = dense(c.intermediate_size)
    self.up = dense(c.intermediate_size)
    self.down = dense(c.hidden_size, residual)

  def __call__(self, x, rotation, mask):
    """x [N, T, D], rotation 2 x [N, T, Dh/2], mask bool [N, T, T] -> x, (k, v) or None.

    k [N, KV, Dh, T] has the rotary embedding applied; v [N, KV, T, Dh].
    """
    q, k, v = self._qkv(x, rotation)
    q = jnp.moveaxis(q, 1, 3)  # [N, KV, G, T, Dh]
    k = k.transpose(0, 2, 3, 1)
    v = v.transpose(0, 2, 1, 3)
    out = jnp.moveaxis(attend(q, k, v, mask), 3, 1)  # [N, T, KV, G, Dh]
    x = self._mlp(x + self.o(out.reshape(*x.shape[:2], -1)))
    return x, ((k, v) if self.keep_kv else None)

  def decode(self, x, rotation, past, fresh, seen, step):
    """x [S, D], rotation 2 x [S, Dh/2], this layer's caches, masks [S, C] and [1, n] -> x, fresh."""
    q, k, v = self._qkv(x, rotation)
    fresh = (jax.lax.dynamic_update_slice_in_dim(fresh[0], k[..., None], step, 3),
             jax.lax.dynamic_update_slice_in_dim(fresh[1], v[:, :, None], step, 2))
    out = attend_cached(q, (past, fresh), seen)
    return self._mlp(x + self.o(out.reshape(x.shape[0], -1))), fresh

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

  @nn.compact
  def __call__(self, tokens, positions, mask):
    c = self.config
    init = nn.initializers.normal(c.hidden_size**-0.5)
    embedding = self.param("embedding", init, (c.vocab_size, c.hidden_size))
    if not c.tie_embeddings:
      self.param("head", init, (c.vocab_size, c.hidden_size))
    layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
    layers = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True},
                     in_axes=(nn.broadcast, nn.broadcast), length=c.num_layers)
    x = embed(c, embedding, tokens)
    x, kv = layers(c, self.keep_kv, name="layers")(x, rotation(c, positions), mask)
    return RMSNorm(c.rms_norm_eps, name="norm")(x).astype(c.dtype), kv


def embed(config, embedding, tokens):
  """Embeddings [..., D] of tokens [...], in the compute dtype."""
  embedding = embedding.astype(config.dtype)
  if not config.onehot_embedding:
    return jnp.take(embedding, tokens, axis=0)
  onehot = jax.nn.one_hot(tokens, config.vocab_size, dtype=config.dtype)
  return jnp.matmul(onehot, embedding, precision="highest")  # exact: one product is not zero


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
  scores = jnp.matmul(q, k, preferred_element_type=jnp.float32) * shape[-1]**-0.5
  scores = scores.reshape(*shape[:4], -1)
  scores = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
  weights = scores.astype(v.dtype).reshape(*q.shape[:3], -1)
  return jnp.matmul(weights, v).reshape(shape)


def attend_cached(q, caches, seen):
  """The attention of one token a row over several caches, whose columns are never joined.

  q [S, KV, G, Dh]; caches: pairs k [S, KV, Dh, C], v [S, KV, C, Dh]; seen: for each a mask bool [S or 1, C].
  A row must see a column of the last cache. -> [S, KV, G, Dh].
  """
  scores = [jnp.matmul(q, k, preferred_element_type=jnp.float32) * q.shape[-1]**-0.5 for k, _ in caches]
  scores = [jnp.where(mask[:, None, None], s, MASKED) for s, mask in zip(scores, seen, strict=True)]
  highest = jnp.maximum(*(jnp.max(s, -1, keepdims=True) for s in scores))
  scores = [jnp.exp(s - highest) for s in scores]
  total = sum(jnp.sum(s, -1, keepdims=True) for s in scores)
  parts = [jnp.matmul(s.astype(v.dtype), v, preferred_element_type=jnp.float32)
           for s, (_, v) in zip(scores, caches, strict=True)]
  return (sum(parts) / total).astype(q.dtype)


def init(config: ModelConfig, key):
  """Random normal float32 parameters: variance 1/fan_in, of o and down 1/(2 L fan_in), of embedding
  and head 1/D; norm scales are 1."""
  one = jnp.zeros((1, 1), jnp.int32)
  return Decoder(config).init(key, one, one, jnp.ones((1, 1, 1), bool))["params"]


def forward(config: ModelConfig, params, tokens, positions, segments):
  """Hidden states [N, T, D] after the final norm, in the compute dtype.

  tokens, positions, segments int32 [N, T]. A token sees the tokens of its own segment up to itself, in row
  order; segment 0 is padding: it sees padding only, so its hidden state is finite and meaningless.
  `positions` go to the rotary embedding alone.
  """
  return Decoder(config).apply({"params": params}, tokens, positions, causal(segments))[0]


def causal(segments):
  """Which columns each token sees, bool [N, T, T]: its own segment (padding is one too), up to itself."""
  index = jnp.arange(segments.shape[1])
  return (segments[:, :, None] == segments[:, None, :]) & (index[:, None] >= index)


def unembed(config: ModelConfig, params):
  """The head's matrix [V, D], in the compute dtype: the embedding where they are tied."""
  return params["embedding" if config.tie_embeddings else "head"].astype(config.dtype)


def logits(config: ModelConfig, params, hidden):
  """float32 logits [..., V] of hidden states [..., D]."""
  matrix = unembed(config, params)
  return jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=jnp.float32)


def decode_weights(config: ModelConfig, params):
  """The parameters as `decode` and `logits` want them: matrices in the compute dtype, `layers` a tuple of L trees."""
  def cast(path, x):
    return x if path[-1].key == "scale" else x.astype(config.dtype)
  params = jax.tree_util.tree_map_with_path(cast, params)
  layer = lambda i: jax.tree.map(lambda x: x[i], params["layers"])
  return params | {"layers": tuple(map(layer, range(config.num_layers)))}


def empty_cache(config: ModelConfig, slots: int, columns: int):
  """Zeroed cache: a tuple of L pairs (k [S, KV, Dh, C], v [S, KV, C, Dh]) in the compute dtype."""
  shape = (slots, config.num_kv_heads)
  return tuple((jnp.zeros((*shape, config.head_dim, columns), config.dtype),
                jnp.zeros((*shape, columns, config.head_dim), config.dtype))
               for _ in range(config.num_layers))


def prefill(config: ModelConfig, params, tokens, length):
  """The cache of prompts: a tuple of L pairs (k [N, KV, Dh, T], v [N, KV, T, Dh]).

  tokens int32 [N, T] right-padded, length int32 [N]. The rotary embedding is applied to k. Columns at
  and after `length` are finite and meaningless.
  """
  index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = causal((index < length[:, None]).astype(jnp.int32))
  _, (k, v) = Decoder(config, keep_kv=True).apply({"params": params}, tokens, index, mask)
  return tuple((k[i], v[i]) for i in range(config.num_layers))


def decode(config: ModelConfig, weights, past, fresh, token, start, step):
  """One token for every row: (hidden [S, D] after the final norm, `fresh` with this token's k and v).

  A row's columns lie in two caches: those before `start` in `past`, which is only read; the token at
  position `start + step` in column `step` of `fresh`, where it sees columns 0..step.

  Args:
    weights: `decode_weights(config, params)`.
    past, fresh: L pairs (k [S, KV, Dh, C], v [S, KV, C, Dh]) of C columns, and of as many as there are steps.
    token, start: int32 [S].
    step: int32 [], the same for all rows.
  """
  x = jnp.take(weights["embedding"], token, axis=0)
  turn = rotation(config, start + step)
  seen = (jnp.arange(past[0][0].shape[-1]) < start[:, None], (jnp.arange(fresh[0][0].shape[-1]) <= step)[None])
  new = []
  for layer, old, kv in zip(weights["layers"], past, fresh, strict=True):
    x, kv = Layer(config).apply({"params": layer}, x, turn, old, kv, seen, step, method="decode")
    new.append(kv)
  x = RMSNorm(config.rms_norm_eps).apply({"params": weights["norm"]}, x)
  return x.astype(config.dtype), tuple(new)
