"""The arrays of a run's state as a checkpoint holds them: each by its dotted name."""

import jax
import numpy as np

from v05_jax.scale import distributed


def names(tree) -> list[str]:
  """Dotted name of each leaf."""
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def named(tree) -> dict[str, object]:
  """Dotted name -> leaf, without empty arrays, which Orbax refuses."""
  return {name: x for name, x in zip(names(tree), jax.tree.leaves(tree)) if 0 not in x.shape}


def tensors(arrays) -> dict[str, str]:
  """Name -> dtype[shape]."""
  shape = lambda x: f"{np.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"
  return {name: shape(x) for name, x in arrays.items()}


def differences(stored: dict[str, str], expected: dict[str, str]) -> list[str]:
  """A line for each name at which the `tensors` of two states differ."""
  return [
    f"{name}: found {stored.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
    for name in dict.fromkeys((*expected, *stored))
    if stored.get(name) != expected.get(name)
  ]


def remade(stored, wanted, fields) -> list[str]:
  """A line for each plug in these fields of a state (prior, ...) that two states both have, and of
  which they have arrays of other names."""
  of = lambda names: {
    plug: sorted(name for name in names if f"{name}.".startswith(f"{plug}."))
    for plug in {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] in fields}
  }
  found, expected = of(stored), of(wanted)
  return [
    f"{plug}: found {', '.join(found[plug])}, expected {', '.join(expected[plug])}"
    for plug in sorted(set(found) & set(expected))
    if found[plug] != expected[plug]
  ]


def saveable(x):
  """The array as Orbax is to save it. One that every device holds whole becomes a numpy array:
  Orbax would cut it into one slice a device, and compile a program for each. Where there is a
  single accelerator Orbax fetches one array after another, of which the host may not hold all."""
  whole = isinstance(x, jax.Array) and x.is_fully_replicated and not alone(x.sharding.device_set)
  return np.asarray(x) if whole or isinstance(x, np.generic) else x


def alone(devices) -> bool:
  """Whether they are the one accelerator of the run."""
  platforms = {x.platform for x in devices}
  return len(devices) == 1 and "cpu" not in platforms and not distributed.several()


def outline(state):
  """The state with the shapes and shardings of parameters and moments in the place of their arrays:
  an example for `Checkpoints.restore` without a second copy of them on the devices."""
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if x.size else x
  big = {name: jax.tree.map(shape, getattr(state, name)) for name in ("params", "opt_state")}
  return state.replace(**big)


def vacated(state):
  """`outline` of a state whose parameters and moments are taken off the devices: nothing may use
  them any more, whoever still holds the state."""
  example = outline(state)
  for x in jax.tree.leaves((state.params, state.opt_state)):
    if isinstance(x, jax.Array) and x.size:
      x.delete()
  return example


def on_device(x) -> bool:
  """Whether it is an array of jax, or the outline of one."""
  return isinstance(x, jax.Array | jax.ShapeDtypeStruct)


def abstract(x):
  """The shape and sharding with which Orbax restores the array. One that each process of several
  has to itself is restored as a numpy array by each; `as_example` puts it on its device."""
  if on_device(x) and not (distributed.several() and x.sharding.is_fully_addressable):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return np.zeros(x.shape, x.dtype)


def as_example(x, saved):
  """A restored value as an array like x; x itself where x is empty, as no checkpoint holds it."""
  if saved is None:
    return x
  return jax.device_put(saved) if on_device(x) and isinstance(saved, np.ndarray) else saved
