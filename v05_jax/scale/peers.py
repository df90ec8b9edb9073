"""Joining a run of several processes, and ending together when one of them is lost.

A process that dies leaves the others waiting in a collective. So each tells the coordination
service every few seconds that it is alive, and watches what the others say: where one has been
silent for `SILENCE` seconds, or has stopped with an error, the process says which and ends. The run
then continues from its last checkpoint with the same commands.

The coordination service runs in process 0. JAX aborts a process that does not find or that loses
it, without saying which process is gone and without running any Python: then a helper process says
it, see `_Witness`.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
from jax._src.distributed import global_state  # the address that a cluster has found
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from v05_jax.scale import distributed, roll_call, sources

# Seconds between two signs of life, and seconds without one after which a process is taken for
# lost.
BEAT, SILENCE = 2.0, 24.0
GRACE = 5.0  # seconds in which processes that stop for the same reason can each say so themselves
# JAX's own limit, in seconds: after three quarters of it JAX aborts the processes that are left.
# That happens only where process 0 hangs; otherwise SILENCE ends first.
HEARTBEAT = 52
JOIN = 300  # seconds to wait for all processes at the start
TELL = 60  # seconds for all to exchange what `sources.of` says, once they are connected
KEYS, TOLD = "v05_jax/peers", "v05_jax/told"
AGAIN = (
  "start all processes again with the same commands, and the run continues from its last checkpoint"
)
# host:port, the host a name, an IPv4 address, or an IPv6 one in brackets
ADDRESS = re.compile(r"([\w.-]+|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[\w.-]+)?\]):(?P<port>[0-9]{1,5})")
WAYS = (
  "expected all three of --coordinator=HOST:PORT, --num_processes=N and --process_id=I (or "
  "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), or --distributed alone where "
  "the cluster names them (a TPU pod, Slurm, Open MPI, Kubernetes)"
)


class Place(NamedTuple):
  """Where this process stands among those of a run; all None: the cluster says it."""

  coordinator: str | None  # host:port of process 0
  count: int | None
  index: int | None


def find(
  coordinator, count, index, detect: bool, env: Mapping[str, str] = os.environ
) -> Place | None:
  """The place that flags (None = not given) or environment name; None: the run has this process
  alone.

  Raises ValueError where they are given in part, contradict each other or cannot be.
  """
  flags = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  values = [
    env.get(name) or None if given is None else given for name, given in zip(names, flags.values())
  ]
  if detect:
    if given := [name for name, value in flags.items() if value is not None]:
      raise ValueError(f"--distributed beside {', '.join(given)}: {WAYS}")
    return Place(None, None, None)
  if values == [None] * 3:
    return None
  if None in values:
    missing = [name for name, value in zip(flags, values) if value is None]
    raise ValueError(f"found no {' and no '.join(missing)}: {WAYS}")
  address, (count, index) = (
    str(values[0]),
    (_whole(name, value) for name, value in zip(names[1:], values[1:])),
  )
  if not (found := ADDRESS.fullmatch(address)) or not 0 < int(found["port"]) < 65536:
    raise ValueError(
      f"--coordinator={address}: expected HOST:PORT, of process 0, an IPv6 address in brackets: "
      "[::1]:1234"
    )
  if count < 1:
    raise ValueError(f"--num_processes={count}: expected at least 1")
  if not 0 <= index < count:
    raise ValueError(
      f"--process_id={index}: expected 0 to {count - 1}, since --num_processes={count}"
    )
  return Place(address, count, index)


def _whole(name: str, value) -> int:
  try:
    return int(value)
  except ValueError:
    raise ValueError(f"{name}={value!r}: expected a whole number") from None


class Peers:
  """Context manager around all that a process of a run of several does; `place` is of `find`,
  `told` of `sources.of`.

  Entering waits for the others, each of which must be there once (`roll_call`) and have the same
  code, config and command; leaving without an error, or with an InterruptedError (all stop at
  the same step), waits for them too. Any other error ends the process there: it is told to the
  others, and they end as well. Raises ValueError where the others do not come, or differ.
  """

  def __init__(self, place: Place, told: sources.Told | None = None):
    self._place, self._told = place, told or {}
    self._stop, self._failing = threading.Event(), threading.Event()
    self._following = threading.Event()  # set when this process ends because of another
    self._lost: set[int] = set()

  def __enter__(self):
    # The service would handle SIGTERM, which the training loop does (`checkpoint.Preemption`).
    jax.config.update("jax_enable_preemption_service", False)
    self._witness = _Witness(self._place)
    try:
      self._join(*self._place)
    except BaseException:
      self._witness.dismiss()
      raise
    self._tell("0")
    self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
    self._thread.start()
    return self

  def _join(self, address, count, index):
    if address is None:
      self._connect(address, count, index, None)
    else:
      me = roll_call.myself(index, count)
      with roll_call.claimed(address, me, JOIN):
        self._connect(address, count, index, roll_call.meet(address, me, JOIN))
    self._count, self._index = jax.process_count(), jax.process_index()
    self._client = multihost.get_jax_distributed_client()
    if self._index:
      self._witness.watch(global_state.coordinator_address)
    else:
      self._witness.dismiss()
    devices = [sum(d.process_index == i for d in jax.devices()) for i in range(self._count)]
    if len(set(devices)) > 1:
      raise ValueError(
        f"the processes have {', '.join(map(str, devices))} devices, expected as many in each"
      )
    sources.check(self._tell_what())
    multihost_utils.sync_global_devices("joined")

  def _connect(self, address, count, index, bind):
    try:
      jax.distributed.initialize(
        address,
        count,
        index,
        cluster_detection_method=None if address is None else "deactivate",
        initialization_timeout=JOIN,
        coordinator_bind_address=bind,
        heartbeat_timeout_seconds=HEARTBEAT,
      )
    except (RuntimeError, ValueError, TypeError) as error:
      who = "--distributed" if address is None else f"process {index} of {count} at {address}"
      raise ValueError(f"{who}: {_line(error)}; {WAYS}") from error

  def _tell_what(self) -> list[sources.Told]:
    """What each of the processes has."""
    self._client.key_value_set(f"{TOLD}/{self._index}", json.dumps(self._told))
    try:
      return [
        json.loads(self._client.blocking_key_value_get(f"{TOLD}/{i}", TELL * 1000))
        for i in range(self._count)
      ]
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(
        f"a process did not say within {TELL} s what code it has ({_line(error)}), expected the "
        "same version of v05_jax in all"
      ) from error

  def __exit__(self, kind, error, _):
    if error is not None and not isinstance(error, (InterruptedError, SystemExit)):
      self.end(error)
    self._tell("left")
    self._stop.set()
    self._thread.join()
    jax.distributed.shutdown()
    self._witness.dismiss()

  def end(self, error: BaseException):
    """Tells the others why this process stops, and ends it."""
    self._failing.set()
    if distributed.of_the_runtime(error):
      # A collective has failed, most likely because another process is lost; `_watch` is about to
      # say which.
      _say(f"process {self._index}: {_line(error)}; waiting for word of the others")
      self._failing.clear()
      if self._following.wait(SILENCE + 3 * BEAT):
        time.sleep(GRACE + 6 * BEAT)  # `_watch` has said it, and is about to end the process
      self._failing.set()
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
      _say(f"error: {error}")
    else:
      sys.excepthook(type(error), error, error.__traceback__)
    self._tell(f"stopped: {_line(error)}")
    self._leave()

  def _leave(self):
    """Ends the process at once, as a normal exit would wait for the others. Process 0, where the
    coordination service runs, first gives them time to end."""
    until = time.monotonic() + GRACE + 3 * BEAT
    while not self._index and time.monotonic() < until:
      going = [word for word in self._words().values() if word.startswith("stopped")]
      time.sleep(BEAT / 2)
      if len(going) + len(self._lost) >= self._count:
        break
    with contextlib.suppress(Exception):
      self._witness.dismiss()
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(1)

  def _tell(self, word: str):
    with contextlib.suppress(Exception):  # whoever reads it may be gone
      self._client.key_value_set(f"{KEYS}/{self._index}", word, allow_overwrite=True)

  def _words(self) -> dict[int, str]:
    """Process -> its last word: a number that grows, "left", or "stopped: why"."""
    try:
      return {
        int(key.rsplit("/", 1)[1]): word for key, word in self._client.key_value_dir_get(KEYS)
      }
    except Exception:
      return {}

  def _watch(self):
    last = {i: ("", time.monotonic()) for i in range(self._count) if i != self._index}
    beat = 0
    while not self._stop.wait(BEAT):
      beat += 1
      if not self._failing.is_set():
        self._tell(str(beat))
      words, now = self._words(), time.monotonic()
      last = {
        i: seen if words.get(i, seen[0]) == seen[0] else (words[i], now) for i, seen in last.items()
      }
      for i, (word, since) in last.items():
        if word.startswith("stopped"):
          self._follow(f"process {i} of {self._count} has {word}", GRACE)
        elif word != "left" and now - since > SILENCE:
          self._lost.add(i)
          self._follow(
            f"process {i} of {self._count} is lost: no sign of life for {SILENCE:.0f} s; {AGAIN}",
            0.0,
          )

  def _follow(self, why: str, grace: float):
    """Ends this process because of another, unless it is about to end by itself."""
    if self._failing.wait(grace) or self._stop.is_set():
      return
    self._following.set()
    self._tell(f"stopped: {why}")
    _say(f"error: {why}")
    self._leave()


class _Witness:
  """A helper process that outlives this one by a moment, to report why JAX has aborted it.

  It waits for the end of its input, which comes when this process ends. Before all processes have
  met, it reports just that. Later it connects to the coordinator, which greets every client, and
  reports that process 0 is lost if nothing answers. A process that ends as it should dismisses its
  helper first.
  """

  PROGRAM = """
import socket, sys
unmet, lost = sys.argv[1:]
words = sys.stdin.read().split()
if not words:
  print(unmet, file=sys.stderr)
elif words[-1] != "well":
  host, _, port = words[0].rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), 3) as found:
      found.settimeout(3)
      alive = bool(found.recv(1))
  except OSError:
    alive = False
  if not alive:
    print(lost.replace("ADDRESS", words[0]), file=sys.stderr)
"""

  def __init__(self, place: Place):
    who, where = (
      ("this process", "")
      if place.index is None
      else (f"process {place.index}", f" at {place.coordinator}")
    )
    met = "all processes" if place.count is None else f"all {place.count} processes"
    unmet = (
      f"error: {who} ended before {met} had met{where}: each must be started within {JOIN} s "
      "and reach process 0"
    )
    of = "" if place.count is None else f" of {place.count}"
    lost = f"error: process 0{of}, the coordinator at ADDRESS, is lost; {AGAIN}"
    self._process = subprocess.Popen(
      [sys.executable, "-I", "-S", "-c", self.PROGRAM, unmet, lost],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,
      text=True,
    )

  def watch(self, address: str):
    """Tells it that all processes have met, and the address of the coordinator."""
    self._process.stdin.write(f"{address}\n")
    self._process.stdin.flush()

  def dismiss(self):
    if self._process.poll() is None:
      self._process.communicate("well")


def _line(error: BaseException) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _say(text: str):
  os.write(2, f"{text}\n".encode())
