"""Kernel regression over the context, on features of the frozen first policy: needs no training."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from v05_jax import plug
from v05_jax.budgets import base as budgets
from v05_jax.models import decoder
from v05_jax.priors import context as contexts
from v05_jax.priors.base import Prior
from v05_jax.scale import distributed, sharding
from v05_jax.scale.programs import OF_PRIOR, Program
from v05_jax.shapes import shapes
from v05_jax.structs import Context

MAX_SCORE = 5.0  # standardised features are clipped here: a feature nearly constant in the context
PSEUDO_COUNT = 0.1  # of the context's mean, in units of a pair at distance 0
SPLIT = PartitionSpec(sharding.ROWS)  # of prompts over the mesh
TOKENS_PER_CALL = 8192  # of prompts embedded at once on a device: bounds the memory of attention


@plug.declare(
  "prior",
  bandwidth=plug.Option(
    0.25, "of the kernel, as a share of the context's typical distance", lambda x: x > 0, "above 0"
  ),
)
def neighbours(options, setting):
  """V of a prompt from those of the context that are like it."""
  config, policy = setting.config, setting.policy
  features = make_features(policy.config, policy.params, setting.mesh, config.sampler.max_prompt)

  def ask(state, prompts):
    found = features(prompts)
    value = kernel_regression(state, found, options.bandwidth, config.prior.min_support)
    return value, contexts.remembered(state, found, value)

  width = 2 * policy.config.hidden_size
  return Prior(ask, lambda: contexts.empty(config.prior.context, width), contexts.learn)


@jax.jit
def kernel_regression(context: Context, features, bandwidth: float, min_support: int):
  """V [P] by kernel regression over the context (Nadaraya-Watson), shrunk to the context's mean.

    success(x) = (a mean + sum_j w_j success_j) / (a + sum_j w_j)
    w_j = exp(-|x - x_j|^2 / (2 h^2 m))

  Features are standardised by the context's own mean and standard deviation, those constant in the
  context are left out, and m is the mean squared distance of two pairs of the context (twice the
  number of features left). A prompt unlike everything in the context gets the context's mean.

  Args:
    context: M pairs, of which the valid ones count.
    features: [P, F], of the same kind as the context's.
    bandwidth: h, as a share of the context's typical distance.
    min_support: pairs before V is finite.
  """
  square, typical = distances(context, features)
  weight = jnp.exp(-square / (2.0 * bandwidth**2 * typical))
  weight = jnp.where(contexts.valid(context), weight, 0.0)
  near = jnp.matmul(weight, context.success, precision="highest")
  success = (PSEUDO_COUNT * contexts.mean_success(context) + near) / (
    PSEUDO_COUNT + jnp.sum(weight, axis=1)
  )
  return contexts.if_supported(context, 2.0 * success - 1.0, min_support)


def distances(context: Context, features):
  """(|x_p - x_j|^2 [P, M] in standardised features, its typical value m > 0)."""
  valid = contexts.valid(context)[:, None]
  count = jnp.maximum(jnp.sum(valid), 1)
  mean = jnp.sum(jnp.where(valid, context.features, 0.0), axis=0) / count
  centred = jnp.where(valid, context.features - mean, 0.0)
  variance = jnp.sum(centred**2, axis=0) / count
  varies = variance > 1e-10 * mean**2  # above the rounding of the mean
  scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
  support = jnp.clip(centred * scale, -MAX_SCORE, MAX_SCORE)
  query = jnp.clip((features - mean) * scale, -MAX_SCORE, MAX_SCORE)
  product = jnp.matmul(query, support.T, precision="highest")
  square = jnp.sum(query**2, 1)[:, None] + jnp.sum(support**2, 1) - 2.0 * product
  return jnp.maximum(square, 0.0), jnp.maximum(2.0 * jnp.sum(varies), 1.0)


def make_features(config, params, mesh, max_prompt: int) -> Callable:
  """Builds `features(prompts) -> float32 [P, 2 D]`: the last hidden state of the prompt and their
  mean.

  The prompts go through in blocks of a fixed number of rows, one compiled shape for a given P.
  """
  params = cast(config, params)
  params = distributed.keep(params, sharding.param_shardings(mesh, params))
  rows, embed = NamedSharding(mesh, SPLIT), make_embed(config, mesh)
  devices, most = sharding.lanes(mesh), most_rows(mesh, max_prompt)

  def features(prompts) -> np.ndarray:
    count = len(prompts.length)
    block = min(most, count + -count % devices)
    padding = -count % block
    tokens = np.pad(prompts.tokens, ((0, padding), (0, 0)))
    length = np.pad(prompts.length, (0, padding), constant_values=1)
    parts = [
      embed(params, *distributed.put((tokens[i : i + block], length[i : i + block]), rows))
      for i in range(0, count, block)
    ]
    found = np.concatenate([np.asarray(x) for x in parts])[:count]
    if len(wrong := np.flatnonzero(~np.isfinite(found).all(1))):
      text = prompts.rows[wrong[0]]["prompt"] if wrong[0] < len(prompts.rows) else ""
      raise FloatingPointError(
        f"the first policy's features of {text!r:.60} are not finite: its weights are damaged, or "
        "too large for config.policy.dtype"
      )
    return found

  return features


def cast(config, params):
  """Matrices in the compute dtype, to which the model casts them anyway: half the memory in
  bfloat16."""
  wanted = lambda path, x: x.dtype if path[-1].key == "scale" else jnp.dtype(config.dtype)
  change = lambda path, x: x if x.dtype == wanted(path, x) else x.astype(wanted(path, x))
  return jax.tree_util.tree_map_with_path(change, params)


def most_rows(mesh, max_prompt: int) -> int:
  """Prompts that go through `make_embed`'s program at once, at most."""
  return sharding.lanes(mesh) * max(TOKENS_PER_CALL // max_prompt, 1)


def make_embed(config, mesh):
  """`embed_prompts` as a program on a mesh."""
  return jax.jit(functools.partial(embed_prompts, config), out_shardings=sharding.replicated(mesh))


def embed_prompts(config, params, tokens, length):
  """tokens int32 [N, T], length int32 [N] -> float32 [N, 2 D]: (last hidden state, mean hidden
  state)."""
  index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  inside = index < length[:, None]
  hidden = decoder.forward(config, params, tokens, index, inside.astype(jnp.int32))
  hidden = jnp.where(inside[..., None], hidden.astype(jnp.float32), 0.0)
  last = jnp.sum(jnp.where((index == length[:, None] - 1)[..., None], hidden, 0.0), axis=1)
  return jnp.concatenate([last, jnp.sum(hidden, axis=1) / length[:, None]], axis=-1)


def programs(config, model, mesh, params):
  """For --mode=compile -> (what the prior keeps on the devices, its programs); `params`: shapes and
  shardings of the policy's."""
  embedder = jax.eval_shape(functools.partial(cast, model), params)
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  embedder = jax.tree.map(place, embedder, sharding.param_shardings(mesh, embedder))
  width = config.sampler.max_prompt
  pool = shapes(config, budgets.make(plug.Setting(config)).limits).pool
  count = min(most_rows(mesh, width), pool)
  count += -count % sharding.lanes(mesh)
  ints = lambda *size: jax.ShapeDtypeStruct(size, np.int32, sharding=NamedSharding(mesh, SPLIT))
  lower = lambda: make_embed(model, mesh).lower(embedder, ints(count, width), ints(count))
  work = f"features of {count} prompts of {width} tokens"
  knobs = "sampler.max_prompt, a larger mesh.fsdp"
  return embedder, [Program("prior", lower, OF_PRIOR, 1, work, knobs)]
