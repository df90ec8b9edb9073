"""A workdir belongs to one run at a time.

Whoever writes a run into a workdir holds it, from before its first file to after its last:

    WORKDIR/.lock         locked by the kernel (flock) while the run lives, so that a kill frees it
                          at once; local folders alone, and it stays as an empty file
    WORKDIR/running.json  who holds it: host, pid, start, and a sign of life every `BEAT` seconds;
                          removed at the end

A local folder whose holder was on the same host is free as soon as the kernel has no lock on it.
Where the kernel cannot tell, for a holder on another host or a workdir in an object store, the
signs of life decide: a holder that gave none for `LIMIT` seconds is taken to be dead (clocks are
taken to agree to much less than that). An object store has no exclusive creation here: of two runs
that start within the same second both may believe to hold it; the one that wrote first finds the
other's name at its next sign of life, and stops before it saves anything more.
"""

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time

from absl import logging

from v05_jax.run import files
from v05_jax.scale import distributed

LOCK, HOLDER = ".lock", "running.json"
BEAT, LIMIT = 15.0, 90.0  # seconds
NAMING = 2.0  # seconds in which whoever has taken a lock has written its name


class Lock:
  """Holds a workdir while it is entered; of several processes the first one does, for all.

  Entering makes the folder, and raises ValueError, naming host, pid and start of the run that has
  it. What a dead run has left is taken over, with a line in the log.
  """

  def __init__(self, workdir):
    self._folder = files.folder(workdir)
    self._mine = {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "start": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
      "token": secrets.token_hex(8),  # tells this run from an earlier one of the same pid
    }
    self._file, self._stop, self._thread = None, threading.Event(), None
    self._stranger = None  # who has taken the workdir from this run

  def check(self):
    """Raises ValueError where another run has taken the workdir meanwhile."""
    if self._stranger is not None:
      raise ValueError(
        f"workdir {self._folder}: {_name(self._stranger)} has taken it while this run was in it, "
        "which stops here: expected one run at a time"
      )

  def __enter__(self):
    if distributed.first():
      files.prepare(self._folder)
      kernel = self._lock_file()
      try:
        self._take(kernel)
      except BaseException:
        self._close_file()
        raise
      self._thread = threading.Thread(target=self._live, name="lock", daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *error):
    if self._thread is None:
      return
    self._stop.set()
    self._thread.join(timeout=LIMIT)
    self._thread = None
    with contextlib.suppress(Exception):  # a bucket that is gone holds nothing back
      if self._stranger is None:
        (self._folder / HOLDER).unlink(missing_ok=True)
    self._close_file()

  def _lock_file(self) -> bool:
    """Whether the kernel says that no other process of this host has the workdir."""
    if files.is_remote(self._folder):
      return False
    try:
      import fcntl
    except ImportError:  # Windows
      return False
    path = self._folder / LOCK
    with files.writes(path):
      self._file = open(path, "a")  # not inherited by child processes, which may outlive this one
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._close_file()
      raise ValueError(self._refusal(self._present())) from None
    except OSError:  # a file system without locks
      return False
    return True

  def _present(self) -> dict | None:
    """Who has the kernel's lock: it writes its name a moment after it has taken it, and until then
    there is none, or that of a dead run."""
    until = time.monotonic() + NAMING
    while time.monotonic() < until:
      holder = self._holder()
      if holder and (holder["host"] != self._mine["host"] or _runs(holder["pid"])):
        return holder
      time.sleep(0.05)
    return None

  def _take(self, kernel: bool):
    """Writes this run's name in place of a dead one's. Raises ValueError where it lives."""
    holder = self._holder()
    if holder and self._lives(holder, kernel):
      ago = time.time() - holder["alive"]
      when = (
        f"{ago:.0f} s ago" if ago >= 0 else f"in {-ago:.0f} s, by a clock that is ahead of this"
      )
      raise ValueError(
        f"{self._refusal(holder)}; if it is dead: a workdir is free {LIMIT:.0f} s after the last "
        f"sign of life, which was {when}, or at once without the file {self._folder / HOLDER}"
      )
    if holder:
      logging.warning(
        "workdir %s: taken over from %s, which has ended without giving it back",
        self._folder,
        _name(holder),
      )
    self._write()
    if files.is_remote(self._folder) and (other := self._holder()) and self._is_other(other):
      raise ValueError(self._refusal(other))

  def _lives(self, holder: dict, kernel: bool) -> bool:
    """Whether a run is alive; `kernel`: whether the kernel says that it is not on this host."""
    if holder["host"] == self._mine["host"] and (kernel or not _runs(holder["pid"])):
      return False
    return time.time() < holder["alive"] + LIMIT

  def _live(self):
    """Gives signs of life until the end, or until another run's name stands here."""
    while not self._stop.wait(BEAT):
      with contextlib.suppress(Exception):  # a full disk, a bucket out of reach: the next one
        holder = self._holder()
        if holder and self._is_other(holder):
          self._stranger = holder
          return
        self._write()

  def _write(self):
    text = json.dumps(self._mine | {"alive": time.time()}) + "\n"
    files.replace(self._folder / HOLDER, text)

  def _holder(self) -> dict | None:
    """What running.json says; None where there is none, or none that can be read."""
    path = self._folder / HOLDER
    try:
      found = json.loads(path.read_text())
      kinds = {"host": str, "pid": int, "start": str, "token": str, "alive": float}
      known = all(type(found[key]) is kind for key, kind in kinds.items())
      return found if known and 0 < found["pid"] < 2**31 and math.isfinite(found["alive"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
      return None

  def _is_other(self, holder: dict) -> bool:
    return holder["token"] != self._mine["token"]

  def _refusal(self, holder: dict | None) -> str:
    return (
      f"workdir {self._folder}: found {_name(holder)} in it, expected one run at a time: wait for "
      "it, stop it, or take another workdir"
    )

  def _close_file(self):
    file, self._file = self._file, None
    if file is not None:
      file.close()


def _name(holder: dict | None) -> str:
  if holder is None:
    return "another run"
  return f"the run of process {holder['pid']} on {holder['host']}, started {holder['start']}"


def _runs(pid: int) -> bool:
  """Whether this host has a process of that number."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # it is another user's
    return True
  return True
