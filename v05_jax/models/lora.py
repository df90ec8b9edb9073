"""Low-rank adapters (LoRA, arXiv 2106.09685): what is trained is a difference of low rank beside
frozen matrices.

    y = x W + (x A) B alpha / rank        A [in, rank] is drawn, B [rank, out] is zero at the start

The adapters are further leaves of the parameter tree, beside the matrix they belong to:
layers/q/kernel [L, in, out] has layers/q/lora_a [L, in, rank] and layers/q/lora_b [L, rank, out].
The adapters are float32; the matrices, which nothing updates, are kept in the compute dtype. The
trainer uses the form above, so that gradients, optimiser state and accumulators exist for the
adapters alone; the sampler and saved models have the merged matrices `W + A B alpha / rank`, of
which each is made once.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # matrices of a layer that can have an adapter
A, B = NAMES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which matrices have adapters, and their shape. Hashable, as a part of ModelConfig."""

  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


class Dense(nn.Module):
  """`flax.linen.Dense` with an adapter; x [..., in] -> [..., features] in `dtype`."""

  features: int
  lora: Lora
  use_bias: bool
  dtype: Any
  kernel_init: Callable
  dot_general: Callable | None = None

  @nn.compact
  def __call__(self, x):
    width, rank, zeros = x.shape[-1], self.lora.rank, nn.initializers.zeros
    parts = (
      self.param("kernel", self.kernel_init, (width, self.features)),
      self.param(A, zeros, (width, rank)),  # drawn by `init`
      self.param(B, zeros, (rank, self.features)),
    )
    x, kernel, a, b = nn.dtypes.promote_dtype(x, *parts, dtype=self.dtype)
    dot = self.dot_general or jax.lax.dot_general
    last = (((x.ndim - 1,), (0,)), ((), ()))
    y = dot(x, kernel, last) + (dot(x, a, last) @ b) * self.lora.scale
    return y + self.param("bias", zeros, (self.features,)).astype(y.dtype) if self.use_bias else y


def check(config):
  """Raises ValueError, naming the key of `config.policy`, for adapters that a ModelConfig cannot
  have."""
  lora = config.adapters
  unknown = [name for name in lora.targets if name not in TARGETS]
  if unknown or not lora.targets:
    found = repr(unknown[0]) if unknown else "none"
    raise ValueError(
      f"config.policy.lora_targets: found {found}, expected names of {', '.join(TARGETS)}"
    )
  smaller = {name: min(sizes) for name, sizes in _sizes(config).items()}
  name = min(smaller, key=smaller.get)
  if not 1 <= lora.rank <= smaller[name]:
    raise ValueError(
      f"config.policy.lora_rank: found {lora.rank}, expected 1 to {smaller[name]}, the smaller "
      "side of the matrix "
      f"{name!r} in config.policy.lora_targets (or 0: no adapters)"
    )


def _sizes(config) -> dict[str, tuple[int, int]]:
  """Target -> (in, out) of its matrix."""
  width, queries, keys = (
    config.hidden_size,
    config.num_heads * config.head_dim,
    config.num_kv_heads * config.head_dim,
  )
  inner = {"o": queries, "down": config.intermediate_size}
  outer = {
    "q": queries,
    "k": keys,
    "v": keys,
    "gate": config.intermediate_size,
    "up": config.intermediate_size,
  }
  return {
    name: (inner.get(name, width), outer.get(name, width)) for name in config.adapters.targets
  }


def init(config, key):
  """The adapters of a ModelConfig: A uniform with variance 1 / (3 in), as in PEFT, so that what is
  known of learning rates holds here; B is zero, so that the model at first computes what it does
  without adapters."""
  layers, rank, found = config.num_layers, config.adapters.rank, {}
  for name, (width, out) in _sizes(config).items():
    drawn = jax.random.uniform(
      jax.random.fold_in(key, TARGETS.index(name)), (layers, width, rank), minval=-1.0
    )
    found[name] = {A: drawn * width**-0.5, B: jnp.zeros((layers, rank, out))}
  return {"layers": found}


def plain(config):
  """A ModelConfig without its adapters: of merged parameters, or of the frozen ones."""
  return dataclasses.replace(config, adapters=None) if config.adapters else config


def split(params):
  """(trainable, frozen): two trees of dictionaries, each with its own leaves only.

  With adapters these are the trainable ones; without, everything is, and the frozen tree is empty.
  It goes by names: a tree of what stands for parameters (shapes, shardings) is split alike. The
  frozen tree is that of the model without adapters (`plain`).
  """
  flat = flatten_dict(params)
  adapters = {path: x for path, x in flat.items() if path[-1] in NAMES}
  if not adapters:
    return params, {}
  return unflatten_dict(adapters), unflatten_dict(
    {path: x for path, x in flat.items() if path not in adapters}
  )


def join(trainable, frozen):
  """The tree that `split` has split."""
  return unflatten_dict(flatten_dict(frozen) | flatten_dict(trainable)) if frozen else trainable


def add(config, params, key):
  """Parameters of a model without adapters -> those of `config`: matrices in the compute dtype,
  adapters from `key`."""
  if not config.adapters:
    return params
  cast = lambda path, x: x if path[-1].key == "scale" else x.astype(config.dtype)
  return join(init(config, key), jax.tree_util.tree_map_with_path(cast, params))


def merge_layers(config, layers):
  """`merge` of stacked layers, one after another: float32 matrices exist for one layer at a time,
  and a program holds the arithmetic of one layer and not of all."""
  if not config.adapters:
    return layers
  drawn = thresholds(config)
  return jax.lax.map(lambda layer: merge(config, layer, drawn), layers)


def thresholds(config) -> jax.Array | None:
  """uint16 [in, out], the largest of both: what `merge` rounds by; None where nothing is
  rounded."""
  if config.dtype != "bfloat16":
    return None
  # Without the barrier the compiler would draw the numbers itself and store them in the program.
  key = jax.random.wrap_key_data(
    jax.lax.optimization_barrier(jax.random.key_data(jax.random.key(0)))
  )
  return jax.random.bits(key, tuple(map(max, zip(*_sizes(config).values()))), jnp.uint16)


def merge(config, params, drawn=None):
  """Parameters of the model without adapters: each matrix that has one becomes `W + A B alpha /
  rank`, in W's dtype.

  params: a model's tree, its layers stacked, or that of one layer; drawn: `thresholds`. In float32
  the sum is not rounded. A bfloat16 has 3 digits: a change of less than half the last one, which is
  what a small learning rate makes at first, would be rounded away in every element, and the sampler
  would have the frozen policy. So elements are rounded up or down at random, and the merged matrix
  is right on average over its elements. The random numbers are the same for all matrices and steps:
  the result is a function of the parameters.
  """
  flat = flatten_dict(params)
  for path in [path[:-1] for path in flat if path[-1] == A]:
    a, b = (flat.pop((*path, name)).astype(jnp.float32) for name in NAMES)
    kernel = flat[*path, "kernel"]
    merged = (
      kernel.astype(jnp.float32) + jnp.matmul(a, b, precision="highest") * config.adapters.scale
    )
    if kernel.dtype == jnp.bfloat16:
      merged = round_at_random(merged, drawn[: merged.shape[-2], : merged.shape[-1]])
    flat[*path, "kernel"] = merged
  return unflatten_dict(flat)


def round_at_random(x, threshold):
  """float32 x -> bfloat16, one of its two neighbours, the nearer the likelier for a `threshold`
  uniform in uint16, so that the mean is x. What is a bfloat16 already stays as it is."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + threshold
  rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
