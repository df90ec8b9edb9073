"""V0's residual query adapter, a pure function: hidden states of a prompt -> a fixed number of
features.

Learned static queries plus a correction from the last token read the prompt's tokens through one
narrow multi-head attention. Source: the specification of the released V0 (Now-Join-Us/V0), section
3. Of its options, "dynamic" is the model; "fixed" leaves out the correction; "last" is the last
token's hidden state itself.

Letters: N prompts, L tokens, D backbone width, Q queries, d their width, B bottleneck. Parameters
are a flat dict under the official names, matrices [out, in], float32:

    static_queries [1, Q, d]
    proj_kv.{weight [d, D], bias}
    ln_q.{weight, bias} [d], ln_kv.{weight, bias} [d]
    generator.0.{weight [B, D], bias}
    generator.1.{weight, bias} [B] (LayerNorm)
    generator.4.{weight [Q d, B], bias}
    mha.in_proj_weight [3 d, d] (rows q, k, v), mha.in_proj_bias [3 d]
    mha.out_proj.{weight [d, d], bias}
"""

import functools

import jax
import jax.numpy as jnp

POOLINGS = ("dynamic", "fixed", "last")
DROPOUT = 0.2  # of the generator's bottleneck, in training
EPS = 1e-5  # of every LayerNorm
MASKED = -1e30  # a score that softmax turns into 0, finite so that no row can become NaN

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def init(key, hidden_size: int, queries: int = 168, width: int = 6, bottleneck: int = 128):
  """Random parameters: static queries N(0, 1), matrices and their biases uniform in
  +-1/sqrt(fan_in), in-projection Xavier uniform, attention biases 0, the generator's last layer 0,
  so that the correction is 0 at first."""
  keys = iter(jax.random.split(key, 7))
  uniform = lambda shape, bound: jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound)
  ones, zeros = jnp.ones, jnp.zeros
  return {
    "static_queries": jax.random.normal(next(keys), (1, queries, width)),
    "generator.0.weight": uniform((bottleneck, hidden_size), hidden_size**-0.5),
    "generator.0.bias": uniform((bottleneck,), hidden_size**-0.5),
    "generator.1.weight": ones(bottleneck),
    "generator.1.bias": zeros(bottleneck),
    "generator.4.weight": zeros((queries * width, bottleneck)),
    "generator.4.bias": zeros(queries * width),
    "proj_kv.weight": uniform((width, hidden_size), hidden_size**-0.5),
    "proj_kv.bias": uniform((width,), hidden_size**-0.5),
    "ln_q.weight": ones(width),
    "ln_q.bias": zeros(width),
    "ln_kv.weight": ones(width),
    "ln_kv.bias": zeros(width),
    "mha.in_proj_weight": uniform((3 * width, width), (6.0 / (4 * width)) ** 0.5),
    "mha.in_proj_bias": zeros(3 * width),
    "mha.out_proj.weight": uniform((width, width), width**-0.5),
    "mha.out_proj.bias": zeros(width),
  }


@functools.partial(jax.jit, static_argnames=("num_heads", "pooling"))
def features(params, hidden, mask, num_heads: int, dropout_key=None, pooling: str = "dynamic"):
  """float32 [N, Q d] (feature = query d + dimension), or [N, D] for "last".

  Args:
    params: of `init`, or official ones.
    hidden: [N, L, D], the backbone's hidden states after its final norm; padding may hold anything
      finite.
    mask: bool or int [N, L], not 0 at real tokens, which may stand left or right. A row without any
      gives finite values without a meaning.
    num_heads: of the attention; it divides d.
    dropout_key: a key in training; None = no dropout.
    pooling: one of `POOLINGS`.
  """
  if pooling not in POOLINGS:
    raise ValueError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
  hidden, mask = hidden.astype(jnp.float32), jnp.asarray(mask) != 0
  last = last_token(hidden, mask)
  if pooling == "last":
    return last
  static = params["static_queries"]
  queries = jnp.broadcast_to(static, (hidden.shape[0], *static.shape[1:]))
  if pooling == "dynamic":
    queries = queries + correction(params, last, dropout_key)
  return read(params, queries, tokens(params, hidden), mask, num_heads).reshape(hidden.shape[0], -1)


def last_token(hidden, mask):
  """[N, D]: the hidden state of each row's last real token."""
  index = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]


def correction(params, last, dropout_key=None):
  """What is added to the static queries, [N, Q, d], from the last token [N, D]."""
  x = gelu(layer_norm(params, "generator.1", linear(params, "generator.0", last)))
  if dropout_key is not None:
    x = jnp.where(
      jax.random.bernoulli(dropout_key, 1.0 - DROPOUT, x.shape), x / (1.0 - DROPOUT), 0.0
    )
  return linear(params, "generator.4", x).reshape(-1, *params["static_queries"].shape[1:])


def tokens(params, hidden):
  """[N, L, d]: the tokens that the queries read, from hidden [N, L, D]."""
  return linear(params, "proj_kv", hidden)


def read(params, queries, tokens, mask, num_heads: int):
  """Multi-head attention of queries [N, Q, d] over tokens [N, L, d] where mask [N, L] -> [N, Q, d].

  Queries and keys are normalised, values are not.
  """
  weights, biases = (jnp.split(params[f"mha.in_proj_{x}"], 3) for x in ("weight", "bias"))
  inputs = layer_norm(params, "ln_q", queries), layer_norm(params, "ln_kv", tokens), tokens
  q, k, v = (
    (matmul(x, w) + b).reshape(*x.shape[:2], num_heads, -1)
    for x, w, b in zip(inputs, weights, biases, strict=True)
  )
  scores = einsum("nqhd,nlhd->nhql", q, k) * q.shape[-1] ** -0.5
  share = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
  out = einsum("nhql,nlhd->nqhd", share, v).reshape(queries.shape)
  return linear(params, "mha.out_proj", out)


def matmul(x, weight):
  """x [..., in] -> [..., out], weight [out, in]."""
  return einsum("...i,oi->...o", x, weight)


def linear(params, name, x):
  """The same with the weight and bias of a layer."""
  return matmul(x, params[f"{name}.weight"]) + params[f"{name}.bias"]


def layer_norm(params, name, x):
  """LayerNorm over the last axis, with weight and bias."""
  x = x - jnp.mean(x, -1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)
  return x * params[f"{name}.weight"] + params[f"{name}.bias"]


def gelu(x):
  """The exact GELU. Written with erf, which XLA's CPU code computes faster than jax.nn.gelu's
  erfc."""
  return 0.5 * x * (1.0 + jax.lax.erf(x * 2.0**-0.5))
