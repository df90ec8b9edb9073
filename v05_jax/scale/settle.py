"""Keys that a config leaves open are set by the machine's memory and the model's size, or by the
run that goes on."""

import contextlib
import os
from pathlib import Path
import sys

import jax

from v05_jax import config as configuration
from v05_jax import models
from v05_jax.run import workdirs
from v05_jax.scale import distributed, fit, sharding, topology

CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def settle(config, workdir: str | None = None):
  """The config with values for what it leaves open (`config.OPEN`: 0, or ""): those of the run in
  `workdir`, else those that fit this machine, which are said on stderr.

  Raises ValueError where the model does not fit the machine.
  """
  config = workdirs.continued(config, workdir)
  if not configuration.left_open(config):
    return config
  policy, place = config.policy, machine(config)
  place = place._replace(memory=distributed.least(place.memory))  # one choice for all processes
  folder = models.folder(policy.path)  # fetched, where it is a name on the hub
  model = models.shape(os.fspath(folder), policy.preset, policy.family)
  return settle_for(config, model, place)


def settle_for(config, model, place: fit.Machine):
  """The same for a model and a machine that need not be here."""
  keys = configuration.left_open(config)
  values, found = fit.choose(model, config, place)
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(values)
  if distributed.first():
    chosen = {key: values[key] for key in keys}
    for line in fit.describe(model, place, chosen, found):
      print(line, file=sys.stderr)
  configuration.validate(config)
  return config


def machine(config, devices=None) -> fit.Machine:
  """What the mesh of a config has of these devices, by default this machine's. Raises ValueError
  for accelerators that do not say how much memory they have."""
  mesh = sharding.make_mesh(config.mesh, devices)
  device = mesh.devices.flat[0] if devices else jax.local_devices()[0]
  cpu = device.platform == "cpu"
  chip = topology.chip(device)
  if not chip and not cpu:
    raise ValueError(
      f"{', '.join(configuration.left_open(config))}: found no value, expected one, since "
      f"{device.device_kind} does not say how much memory it has"
    )
  memory = chip.memory if chip else of_this_machine() / jax.local_device_count()
  axes = {axis: mesh.shape[axis] for axis in sharding.AXES}
  name, kind = ("CPU", "cpu") if cpu else (device.device_kind, "accelerator")
  return fit.Machine(name, kind, memory, **axes)


def of_this_machine() -> float:
  """Bytes of memory that this process may use: what the system has free, within the limit of a
  container."""
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  with contextlib.suppress(OSError, ValueError, IndexError):
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found.append(1024 * int(lines["MemAvailable"].split()[0]))
  for path in CGROUPS:
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
      found.append(int(Path(path).read_text()))
  return float(min(found))
