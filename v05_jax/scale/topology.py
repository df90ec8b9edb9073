"""Devices to compile for: those of this machine, or those of a TPU slice that need not be here."""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

GIB = 1 << 30


class Chip(NamedTuple):
  """What bounds a program on one device. Peaks are the vendor's, of the whole device; memory is
  what XLA may use."""

  memory: float  # bytes
  flops: float  # bfloat16 operations a second
  bandwidth: float  # bytes a second to and from memory
  network: float  # bytes a second that a device sends to its neighbours
  clock: float  # cycles a second, in which the compiler counts


# By jax.Device.device_kind. Memory: what libtpu 0.0.42 says is available when a program needs more.
# The other numbers: cloud.google.com/tpu/docs/v5e, v5p and v6e; the clock is that at which the
# matrix units reach the peak.
CHIPS = {
  "TPU v5 lite": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 1.5e9),
  "TPU v5": Chip(95.73 * GIB, 459e12, 2765e9, 600e9, 1.75e9),
  "TPU v6 lite": Chip(31.24 * GIB, 918e12, 1640e9, 448e9, 1.75e9),
}
EXAMPLES = "v5e:4x8, v5e:8x16, v5p:2x4x4, v6e:4x4"


def devices(name: str) -> list:
  """The devices of a topology, `name` such as "v5e:4x8" (libtpu's names), "" = this machine's.

  Raises ValueError where libtpu is missing or does not know the name.
  """
  if not name:
    return jax.devices()
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"--topology={name}: found no libtpu, expected the tpu extra: pip install -e '.[tpu]' (it "
      "needs no TPU)"
    )
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu waits for a server
  # libtpu expects several chips on a host; a single one has to be said.
  alone = {"chips_per_host_bounds": [1, 1, 1]} if re.fullmatch(r"\w+:1(x1)+", name) else {}
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices)
  except Exception as error:  # of several kinds, by version
    message = " ".join(str(error).split())[:200]
    raise ValueError(
      f"--topology: found {name!r}, expected a TPU slice such as {EXAMPLES} ({message})"
    ) from error


def chip(device) -> Chip | None:
  """What is known of a device; None where it is not in the table. Of a GPU, at least its memory."""
  if device.device_kind in CHIPS:
    return CHIPS[device.device_kind]
  try:
    limit = (device.memory_stats() or {}).get("bytes_limit")
  except Exception:  # a description of a device has none
    limit = None
  return Chip(limit, *(float("nan"),) * 4) if limit else None
