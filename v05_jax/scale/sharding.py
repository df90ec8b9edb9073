"""The device mesh, one ordered table of parameter shardings, and the mapped step.

Three axes: `data` and `fsdp` split rows, prompts and slots; `fsdp` splits parameters and optimiser
state too, `tensor` splits matrices and the heads of the cache. `data` is manual inside `mapped`,
and `fsdp` in the sampler's decode, which has the parameters whole along it; all else is left to the
compiler (GSPMD).
"""

from functools import partial
import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that rows, prompts and slots are split over

# (pattern, sharding in training, sharding in decode): the first rule holds whose pattern is found
# in a parameter's '/'-joined path. In decode nothing is split over `fsdp`, as its loop would gather
# it at every step. The names are those of models/decoder.py, whatever the model's family, with the
# value model's `adapter` and `value_head` as prefixes. In training layers are stacked on a
# leading axis, which is never split, since a scan slices it; in decode they are a tuple without it.
RULES = (
  (r"^(adapter|value_head)/", PartitionSpec(), PartitionSpec()),
  (r"(^|/)(embedding|head)$", PartitionSpec("tensor", "fsdp"), PartitionSpec("tensor")),  # [V, D]
  # [D, out]
  (
    r"(^|/)(q|k|v|gate|up)/kernel$",
    PartitionSpec(None, "fsdp", "tensor"),
    PartitionSpec(None, "tensor"),
  ),
  (r"(^|/)(q|k|v)/bias$", PartitionSpec(None, "tensor"), PartitionSpec("tensor")),  # [out]
  # [in, D]
  (r"(^|/)(o|down)/kernel$", PartitionSpec(None, "tensor", "fsdp"), PartitionSpec("tensor")),
  # Low-rank adapters, which decode has merged into the matrices.
  (r"(^|/)(q|k|v|gate|up)/lora_a$", PartitionSpec(None, "fsdp", None), None),  # [L, D, rank]
  (r"(^|/)(q|k|v|gate|up)/lora_b$", PartitionSpec(None, None, "tensor"), None),  # [L, rank, out]
  (r"(^|/)(o|down)/lora_a$", PartitionSpec(None, "tensor", None), None),  # [L, in, rank]
  (r"(^|/)(o|down)/lora_b$", PartitionSpec(None, None, "fsdp"), None),  # [L, rank, D]
  (r"norm/scale$", PartitionSpec(), PartitionSpec()),  # [D], [Dh]
)


def make_mesh(config, devices=None) -> Mesh:
  """The mesh of `config.mesh`: the number of devices along each axis, -1 = all that are left.

  `devices` defaults to all of them. Raises ValueError where the product is not their number.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = {axis: config[axis] for axis in AXES}
  asked = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
  if any(size != -1 and size < 1 for size in sizes.values()):
    raise ValueError(f"{asked}: expected a positive number of devices each, or -1 = all left")
  unknown = [axis for axis, size in sizes.items() if size == -1]
  if len(unknown) > 1:
    raise ValueError(f"{asked}: at most one axis may be -1")
  known = math.prod(size for size in sizes.values() if size != -1)
  for axis in unknown:
    sizes[axis] = max(len(devices) // known, 1)
  if math.prod(sizes.values()) != len(devices):
    multiple = "a multiple of " if unknown else ""
    raise ValueError(f"{asked}: found {len(devices)} devices, expected {multiple}{known}")
  # The default would be Explicit axes, under which every ambiguous operation needs an annotation.
  types = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(sizes.values()), AXES, types, devices=devices)


def path_name(path) -> str:
  """The '/'-joined name of a pytree path, as in `layers/q/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def lanes(mesh: Mesh) -> int:
  """Parts that rows, prompts and slots are split into: the devices along `data` and `fsdp`."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def param_specs(mesh: Mesh, params, decode: bool = False):
  """A PartitionSpec for every parameter, from `RULES`; `params` holds arrays or their shapes.

  decode: of `decoding.decode_weights`. Whatever holds parameters will do: an optimiser's state,
  whose single numbers are replicated. A mesh axis that does not divide its dimension is left out,
  and the dimension replicated over it. Raises ValueError for a parameter that no rule matches.
  """

  def find(path, x):
    name = path_name(path)
    if not x.ndim:
      return PartitionSpec()
    for pattern, *columns in RULES:
      if re.search(pattern, name):
        spec = columns[decode]
        axes = (*spec, *(None,) * (x.ndim - len(spec)))
        fits = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, x.shape))
        return PartitionSpec(*fits)
    raise ValueError(f"sharding.RULES has no rule for parameter {name!r} of shape {x.shape}")

  return jax.tree_util.tree_map_with_path(find, params)


def spread(mesh: Mesh, specs, tree):
  """`specs` of a tree of arrays, or of their shapes, with the first free dimension that divides
  split along `data` too."""
  size = mesh.shape["data"]

  def split(spec, x):
    axes = (*spec, *(None,) * (x.ndim - len(spec)))
    whole = lambda axis: axis is None or mesh.shape[axis] == 1
    free = (i for i, n in enumerate(x.shape) if whole(axes[i]) and n % size == 0)
    chosen = next(free, None) if size > 1 else None
    return spec if chosen is None else PartitionSpec(*axes[:chosen], "data", *axes[chosen + 1 :])

  return jax.tree.map(split, specs, tree, is_leaf=_is_spec)


def shardings(mesh: Mesh, specs):
  """The same tree with every PartitionSpec made a NamedSharding on `mesh`."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)


def param_shardings(mesh: Mesh, params, decode: bool = False):
  """A NamedSharding for every parameter: see `param_specs`."""
  return shardings(mesh, param_specs(mesh, params, decode))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def mapped(mesh: Mesh, f, in_specs, out_specs, axes=("data",), check=True):
  """`jax.shard_map(f)`, manual over `axes` alone: f sees its device's part along them. To be called
  inside a `jax.jit`.

  `in_specs` and `out_specs` name these axes only; the others inside f are the compiler's. Give
  `in_shardings` and `out_shardings` of jax.jit where a result is the next call's argument and its
  sharding over those must not vary.

  The types track what varies over `axes` (`check_vma`), with one consequence to know: the gradient
  with respect to a *replicated* argument arrives summed over them already; one more sum counts it
  twice and more, and Adam and clipping hide the factor. The gradient with respect to `vary(x)` is
  the device's own. `check=False` tracks no types, for kernels, which have none; then every gradient
  is the device's own.
  """
  # XLA fails on a sum over a manual axis of one device beside larger automatic ones
  # ("Cross-partition allreduce must be in (partial) manual partitioning mode"): over such an axis
  # nothing may vary.
  strip = partial(_without, {axis for axis in axes if mesh.shape[axis] == 1})
  in_specs, out_specs = (
    jax.tree.map(strip, specs, is_leaf=_is_spec) for specs in (in_specs, out_specs)
  )
  return jax.shard_map(
    f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=check
  )


def split(f, in_specs, out_specs):
  """Inside a `mapped` with check=False: f on each device's part along `fsdp` and `tensor` too,
  which the specs name; for a kernel, which the compiler cannot split."""
  return jax.shard_map(
    f, in_specs=in_specs, out_specs=out_specs, axis_names=set(AXES) - {"data"}, check_vma=False
  )


def vary(tree):
  """Inside `mapped`: replicated values, typed as varying over `data`, so that their gradient is the
  device's own and not the sum over devices."""
  if jax.lax.axis_size("data") == 1:
    return tree
  return jax.lax.pcast(tree, ("data",), to="varying")


def total(tree, axes=("data",)):
  """Inside `mapped`: the sum over its `axes`, the same on every device."""
  larger = tuple(axis for axis in axes if jax.lax.axis_size(axis) > 1)
  return jax.lax.psum(tree, larger) if larger else tree


def _is_spec(x):
  return isinstance(x, PartitionSpec)


def _without(axes, spec):
  """`spec` without these axes."""

  def keep(part):
    left = tuple(
      axis for axis in (part if isinstance(part, tuple) else (part,)) if axis not in axes
    )
    return left if len(left) > 1 else left[0] if left else None

  return PartitionSpec(*map(keep, spec))
