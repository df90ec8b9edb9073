"""What the processes of one run tell each other. In a run of one process these functions do
nothing.

Every process runs the same program on the same mesh, which spans the devices of all. Decisions are
made on the host, by each process for itself, from numbers that all of them have, so that all decide
the same. What only one process knows (a verdict, a signal, what lies in a folder) goes to all at a
fixed place in the program, by the functions below. They are collective: all processes must call
them, in the same order.
"""

from collections.abc import Callable, Iterable
import functools
import itertools
import os
import zlib

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
import numpy as np


def several() -> bool:
  """Whether the run has more than one process."""
  return jax.process_count() > 1


def first() -> bool:
  """Whether this is process 0, which alone writes files (checkpoints apart)."""
  return jax.process_index() == 0


def owner(number: int) -> bool:
  """Whether this process does the piece of work with this number: the processes take turns."""
  return number % jax.process_count() == jax.process_index()


def exchange(values) -> np.ndarray:
  """values [...] of each process -> all of them [processes, ...], in the order of the processes.
  The shape must be the same everywhere; each new one compiles a program."""
  return np.asarray(multihost_utils.process_allgather(np.asarray(values)))


def anywhere(flag: bool) -> bool:
  """Whether the flag is set in any process."""
  return bool(exchange(np.int32(flag)).any()) if several() else bool(flag)


def of_first(value: int) -> int:
  """Process 0's value."""
  return int(exchange(np.int64(value))[0]) if several() else value


def least(value: float) -> float:
  """The least of the processes' values."""
  return float(exchange(np.float32(value)).min()) if several() else value


def barrier(name: str):
  """Returns when all processes are here."""
  if several():
    multihost_utils.sync_global_devices(name)


def of_the_runtime(error: BaseException | None) -> bool:
  """Whether an error, or what it was raised from, is one of JAX's runtime: in a run of several
  processes most likely a collective that another process has left."""
  seen = []
  while error is not None and error not in seen:
    if isinstance(error, jax.errors.JaxRuntimeError):
      return True
    seen.append(error)
    error = error.__cause__ or error.__context__
  return False


def connect(mesh):
  """Connects the processes' CPUs for collectives along any axes of the mesh.

  Otherwise they connect when a collective is first used, and give up where one process comes 30 s
  after another, as it may while programs compile.
  """
  if not several() or mesh.devices.flat[0].platform != "cpu":
    return
  names = [name for name, size in mesh.shape.items() if size > 1]
  for count in range(1, len(names) + 1):
    for axes in itertools.combinations(names, count):
      add = functools.partial(jax.lax.psum, axis_name=axes)
      program = jax.shard_map(
        add,
        mesh=mesh,
        in_specs=PartitionSpec(mesh.axis_names),
        out_specs=PartitionSpec(tuple(name for name in mesh.axis_names if name not in axes)),
      )
      jax.block_until_ready(jax.jit(program)(np.ones(mesh.size, np.float32)))


def check_same(what: str, parts: Callable[[], Iterable]):
  """Raises ValueError, naming processes, where `parts()`, texts and arrays, are not the same in all
  of them."""
  if not several():
    return
  checksum = 0
  for part in parts():
    checksum = zlib.crc32(
      part.encode() if isinstance(part, str) else np.ascontiguousarray(part), checksum
    )
  found = exchange(np.uint32(checksum))
  others = np.flatnonzero(found != found[0])
  if len(others):
    names = ", ".join(map(str, others))
    raise ValueError(
      f"{what}: process {names} of {len(found)} differs from process 0, expected the same in all"
    )


def check_shared(what: str, folder):
  """Raises ValueError, naming processes, where one does not see what process 0 writes in a folder,
  a path of `pathlib` or `epath`."""
  # of a name that no other command has which starts here at the same time
  probe = folder / f".shared-{of_first(os.getpid())}"
  if first():
    probe.write_text("")
  barrier("the folder is there")
  seen = exchange(np.bool_(probe.exists()))
  if first():
    probe.unlink(missing_ok=True)
  if not seen.all():
    blind = ", ".join(map(str, np.flatnonzero(~seen)))
    raise ValueError(
      f"{what} {os.fspath(folder)}: process {blind} of {len(seen)} does not see what process 0 "
      "writes there, expected a folder that all processes share"
    )


def from_first(tree):
  """Process 0's tree of arrays, as numpy arrays; in a run of one process the tree as it is.

  For what each process calculates on a device of its own: two devices need not agree in the last
  bit, as GPUs choose their kernels by timing them. The shapes must be the same everywhere.
  """
  leaves, form = jax.tree.flatten(tree)
  if not several() or not leaves:
    return tree
  own = [np.asarray(x) for x in leaves]
  said = np.frombuffer(b"".join(x.tobytes() for x in own), np.uint8)
  told = np.asarray(multihost_utils.broadcast_one_to_all(said))
  parts = np.split(told, np.cumsum([x.nbytes for x in own])[:-1])
  arrays = [
    np.frombuffer(part.tobytes(), x.dtype).reshape(x.shape).copy() for part, x in zip(parts, own)
  ]
  return jax.tree.unflatten(form, arrays)


def as_first(function: Callable) -> Callable:
  """The function with `from_first` of what it returns."""
  return functools.wraps(function)(lambda *args: from_first(function(*args)))


def put(tree, shardings):
  """Places a tree of host or device arrays that every process holds whole; `shardings`: one, or a
  prefix tree of them.

  `jax.device_put` does the same, but first sends each array to all other processes, to compare
  them. Here a process takes the parts that its own devices hold, and nothing is sent.
  """
  if not several():
    return jax.device_put(tree, shardings)

  def place(where, x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, where)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda part: x[part])

  of = lambda where, part: jax.tree.map(functools.partial(place, where), part)
  return jax.tree.map(of, shardings, tree, is_leaf=lambda x: isinstance(x, Sharding))


def keep(tree, shardings):
  """`put`, where no later program can overwrite it. Device arrays are copied, as placing may share
  their memory and donation gives that away; the memory of host arrays is never overwritten."""
  own = lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x
  return put(jax.tree.map(own, tree), shardings)


def fetch(tree):
  """`jax.device_get` of arrays that may lie on several processes' devices; all processes get them
  whole."""
  if not several():
    return jax.device_get(tree)
  leaves = jax.tree.leaves(tree)
  meshes = {x.sharding.mesh for x in leaves if isinstance(x.sharding, NamedSharding)}
  if len(meshes) == 1:
    tree = replicate(*meshes)(tree)
  return jax.device_get(tree)


@functools.cache
def replicate(mesh) -> Callable:
  """The program by which every device of the mesh gets a whole tree of arrays, as `fetch` calls
  it."""
  return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
