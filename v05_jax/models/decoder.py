"""The decoder of a language model as pure functions of explicit parameters.

RMSNorm before attention and MLP, half-rotated rotary embedding, grouped-query attention, a gated
MLP, tied or untied head. What model families compute in different ways is a field of `ModelConfig`:
RMSNorm of query and key heads (QK-norm), biases of q, k and v, the gate's activation, RMSNorm of
what attention and MLP add, layers with a window, and so on. The arithmetic is that of Hugging Face
transformers' `Qwen3ForCausalLM`, `LlamaForCausalLM`, `Gemma3ForCausalLM` and so on. Parameters are
float32 and are cast to `config.dtype` where they are used; norms, rotary embedding, softmax and
logits are float32 always. families/ knows how the files of a model name all this.

`forward` scans over layers whose parameters are stacked on a leading axis, so that compile time
does not grow with depth. Decoding, a token at a time, is in decoding.py.

Parameters (`F` the MLP width, matrices are `[in, out]`):

    embedding [V, D], norm/scale [D], head [V, D] (untied only), and under layers/, with a leading
    L: attention_norm/scale [D], q/kernel [D, H Dh], k/kernel and v/kernel [D, KV Dh], o/kernel
    [H Dh, D], mlp_norm/scale [D], gate/kernel and up/kernel [D, F], down/kernel [F, D]
    with config.qk_norm: q_norm/scale and k_norm/scale [Dh]
    with config.qkv_bias: q/bias [H Dh], k/bias and v/bias [KV Dh]
    with config.post_norms: post_attention_norm/scale and post_mlp_norm/scale [D]
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.models import cpu, lora, rotary
from v05_jax.models.model_config import ACTIVATIONS, REMAT, ModelConfig

MASKED = cpu.MASKED


class RMSNorm(nn.Module):
  """`scale * x / sqrt(mean(x^2) + eps)` over the last axis, in float32; returns float32.
  unit_offset: 1 + scale takes the place of scale."""

  eps: float
  unit_offset: bool = False

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
    scale = self.param("scale", init, (x.shape[-1],))
    scale = 1.0 + scale if self.unit_offset else scale
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

    def dense(name, features, scale=1.0, bias=False):
      init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
      given = {"use_bias": bias, "dtype": c.dtype, "kernel_init": init, "dot_general": product}
      if c.adapters and name in c.adapters.targets:
        return lora.Dense(features, c.adapters, **given)
      return nn.Dense(features, **given)

    norm = partial(RMSNorm, c.rms_norm_eps, c.unit_offset)
    self.attention_norm = norm()
    self.q = dense("q", c.num_heads * c.head_dim, bias=c.qkv_bias)
    self.k = dense("k", c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
    self.v = dense("v", c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
    if c.qk_norm:
      self.q_norm, self.k_norm = norm(), norm()
    self.o = dense("o", c.hidden_size, residual)
    self.mlp_norm = norm()
    self.gate = dense("gate", c.intermediate_size)
    self.up = dense("up", c.intermediate_size)
    self.down = dense("down", c.hidden_size, residual)
    if c.post_norms:
      self.post_attention_norm, self.post_mlp_norm = norm(), norm()

  def __call__(self, x, rotation, mask, local=None):
    """x [N, T, D], rotation 2 x [N, T, Dh/2], mask bool [N, T, T] (`cpu.see` of it on a CPU,
    segments [N, T] for a kernel) -> x, (k, v) or None.

    local: int32 [], whether this is a layer of `config.local`, where there are any; then rotation
    and mask (not segments) have both kinds of layers on a leading axis of 2, local ones second.
    k [N, KV, Dh, T] has the rotary embedding applied; v [N, KV, T, Dh].
    """
    if local is not None:
      here = lambda kinds: jax.tree.map(lambda x: x[local], kinds)
      rotation, mask = here(rotation), mask if self.kernel else here(mask)
    q, k, v = self._qkv(x, rotation)
    columns = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    if self.kernel:
      out = self.kernel(q, k, v, mask, *(() if local is None else (local,)))
    elif self.config.backend == "cpu":
      out = cpu.attend(q, k, v, mask)  # [N, T, KV, G, Dh]
    else:
      out = jnp.moveaxis(attend(jnp.moveaxis(q, 1, 3), *columns, mask), 3, 1)
    x = self._add(x, out.reshape(*x.shape[:2], -1))
    return x, (columns if self.keep_kv else None)

  def decode(self, x, rotation, attend):
    """One token of each row: x [S, D], rotation 2 x [S, Dh/2] -> x, the new cache.

    attend: (q [S, KV, G, Dh], k and v [S, KV, Dh]) -> (out as q, the cache with k and v in it); see
    decoding.py.
    """
    q, k, v = self._qkv(x, rotation)
    out, cache = attend(q, k, v)
    return self._add(x, out.astype(q.dtype).reshape(x.shape[0], -1)), cache

  def _qkv(self, x, rotation):
    """x [..., D] -> q [..., KV, G, Dh], k and v [..., KV, Dh]."""
    c = self.config
    x = self.attention_norm(x).astype(c.dtype)
    q = self.q(x).reshape(*x.shape[:-1], c.num_kv_heads, -1, c.head_dim)
    k = self.k(x).reshape(*x.shape[:-1], c.num_kv_heads, c.head_dim)
    v = self.v(x).reshape(*x.shape[:-1], c.num_kv_heads, c.head_dim)
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    if c.query_scalar:  # attention divides by the root of head_dim
      q = q * (c.head_dim / c.query_scalar) ** 0.5
    cos, sin = (r[..., None, :] for r in rotation)
    q = rotary.rotate(q, cos[..., None, :], sin[..., None, :]).astype(c.dtype)
    return q, rotary.rotate(k, cos, sin).astype(c.dtype), v

  def _add(self, x, attended):
    """x [..., D] after attention, whose heads' outputs are `attended` [..., H Dh], and MLP."""
    c = self.config
    normed = lambda norm, x: norm(x).astype(c.dtype)
    out = self.o(attended)
    x = x + (normed(self.post_attention_norm, out) if c.post_norms else out)
    h = normed(self.mlp_norm, x)
    out = self.down(ACTIVATIONS[c.activation](self.gate(h)) * self.up(h))
    return x + (normed(self.post_mlp_norm, out) if c.post_norms else out)


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
    turn, local = rotation(c, positions), None
    if c.local:
      turn = stack(turn, rotation(c, positions, local=True))
      local = np.array(c.local.layers, np.int32)
    if not self.kernel:
      masks = (mask, mask & near(c, positions)) if c.local else (mask,)
      if c.backend == "cpu":
        masks, policy = [cpu.see(each, c.num_heads) for each in masks], policy or cpu.saved
      mask = stack(*masks) if c.local else masks[0]
    if policy:
      layer = nn.remat(Layer, prevent_cse=False, policy=policy)
    layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast, 0),
      length=c.num_layers,
    )
    x = embed(c, embedding, tokens)
    x, kv = layers(c, self.keep_kv, self.kernel, name="layers")(x, turn, mask, local)
    return final_norm(c, name="norm")(x).astype(c.dtype), kv


def stack(*kinds):
  """Trees of the same shapes as one, their leaves on a new leading axis."""
  return jax.tree.map(lambda *x: jnp.stack(x), *kinds)


def final_norm(config, **given) -> RMSNorm:
  """The norm behind the last layer."""
  return RMSNorm(config.rms_norm_eps, config.unit_offset, **given)


def embed(config, embedding, tokens):
  """Embeddings [..., D] of tokens [...], in the compute dtype."""
  embedding = embedding.astype(config.dtype)
  x = (
    cpu.lookup(embedding, tokens)
    if config.backend == "cpu"
    else jnp.take(embedding, tokens, axis=0)
  )
  return x if config.embedding_scale == 1 else x * jnp.asarray(config.embedding_scale, x.dtype)


def rotation(config, positions, local: bool = False):
  """(cos, sin) float32 [..., Dh/2] of positions [...]; local: for the layers of `config.local`,
  whose angles are never scaled."""
  theta, scaling = config.rope_theta, config.rope_scaling
  if local:
    theta, scaling = config.local.rope_theta, None
  return rotary.rotation(positions, rotary.frequencies(config.head_dim, theta, scaling))


def near(config, positions):
  """Which tokens are not behind the window of a local layer, bool [N, T, T], of positions
  [N, T]."""
  return positions[:, :, None] - positions[:, None, :] < config.local.window


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


def shapes(config: ModelConfig):
  """The shapes and dtypes of the parameters that `init` makes; traced once for each config."""
  return _first.eval_shape(config)


@partial(jax.jit, static_argnums=0)
def _first(config):
  return init(config, jax.random.key(0))


def forward(config: ModelConfig, params, tokens, positions, segments, prompts=None):
  """Hidden states [N, T, D] after the final norm, in the compute dtype.

  tokens, positions, segments, prompts int32 [N, T]. A token sees the tokens of its own segment and
  of the segment `prompts` up to itself, in row order; segment 0 is padding: it sees padding only,
  so its hidden state is finite and meaningless. `positions` go to the rotary embedding and to the
  windows of local layers.
  """
  mask = causal(segments, prompts)
  return Decoder(config).apply({"params": params}, tokens, positions, mask)[0]


def forward_kernel(kernel, config: ModelConfig, params, tokens, positions, segments):
  """`forward` with attention by a kernel, (q, k, v, segments) -> out as of `flash.attend`; with
  `config.local` it is called with one argument more, int32 [], whether the layer is one of these. A
  token sees its own segment alone: a kernel knows one segment a token."""
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
