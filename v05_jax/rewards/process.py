"""A worker process of `rewards.pool`, seen from the parent: started, asked, ended."""

from collections.abc import Callable
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time

LONGEST_REPLY = 1 << 16  # bytes
ENDING = 5.0  # seconds a process may take to end, by itself or when it is killed
BOOT = (
  "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
  "module, function, *arguments = json.loads(sys.argv[3]); "
  "getattr(importlib.import_module(module), function)(int(sys.argv[2]), *arguments)"
)

log = logging.getLogger(__name__)


class Lost(Exception):
  """A worker is of no further use; says why."""


def start(module: str, function: str, arguments: list, environment: dict[str, str]):
  """A fresh interpreter that calls `function(descriptor, *arguments)` of a module of the package
  -> (its process, our end of the socket whose other end is its `descriptor`).

  It runs in a session of its own, which keeps the terminal's Ctrl-C from it, with `environment`
  beside this process's own; its standard input is a pipe that nothing is written to. Raises OSError
  where the system has no room for a further process.
  """
  path = [p or os.getcwd() for p in sys.path]
  if os.getcwd() not in path:  # where the run was started, and often the user's function lies
    path.append(os.getcwd())
  ours, theirs = socket.socketpair()
  with theirs:
    given = [json.dumps(path), str(theirs.fileno()), json.dumps([module, function, *arguments])]
    try:
      process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, *given],
        stdin=subprocess.PIPE,
        stdout=2,  # the user's code must not print into the run's own output
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        env=os.environ | environment,
      )
    except BaseException:
      ours.close()
      raise
  return process, ours


class Worker:
  """A process that runs `rewards.worker.main`.

  Its own session lets `kill` end the processes that it has started. `dropped` is called for each
  reply to another job than the present one. Raises OSError as `start` does.
  """

  def __init__(self, target: str, memory: int, timeout: float, dropped: Callable[[], None]):
    self._dropped, self._unread = dropped, b""
    self.judged = False  # whether it has given a verdict
    self.process, self._socket = start(
      "v05_jax.rewards.worker",
      "main",
      [target, memory, timeout],
      {"JAX_PLATFORMS": "cpu"},  # the accelerator is the trainer's
    )

  def exchange(self, numbers: range, message: bytes, timeout: float) -> list[tuple[float, str]]:
    """Sends a message and waits for the replies of these numbers -> (reward, error) of each.

    Raises TimeoutError after `timeout` seconds, and `Lost` where the process ends or replies what
    is none.
    """
    end, found = time.monotonic() + timeout, {}
    try:
      self._socket.settimeout(timeout)
      self._socket.sendall(message)
      while len(found) < len(numbers):
        number, reward, error = parse(self._line(end))
        if number in numbers and number not in found:
          found[number] = reward, error
        else:
          self._dropped()
      return [found[number] for number in numbers]
    except TimeoutError:
      raise
    except OSError:  # it has closed the socket, most often since it is dead
      raise Lost(self.ending()) from None

  def _line(self, end: float) -> bytes:
    """The next line; raises TimeoutError at `end`, OSError or `Lost` where none can come."""
    while True:
      line, found, rest = self._unread.partition(b"\n")
      if len(line) > LONGEST_REPLY:
        raise Lost(f"the worker replied more than {LONGEST_REPLY} bytes")
      if (left := end - time.monotonic()) <= 0:
        raise TimeoutError
      if found:
        self._unread = rest
        return line
      self._socket.settimeout(left)
      if not (more := self._socket.recv(LONGEST_REPLY)):
        raise OSError("the socket is closed")
      self._unread += more

  def ended(self) -> bool:
    """Whether the process, which nobody has asked anything, has closed the socket or is dead."""
    self._socket.settimeout(0)
    try:
      return not self._socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
      return False
    except OSError:
      return True

  def ending(self) -> str:
    """How the process ended; one that has closed its socket and goes on is given some seconds."""
    try:
      status = self.process.wait(ENDING)
    except subprocess.TimeoutExpired:
      return "the worker closed its connection"
    finally:
      self.kill()
    if status >= 0:
      return f"the worker ended with status {status}"
    return f"the worker was killed by signal {-status} ({signal.strsignal(-status)})"

  def kill(self):
    """Ends the process and those that it has started; any thread may call it."""
    if self.process.returncode is None:  # else the number may name another process by now
      try:
        os.killpg(self.process.pid, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):  # it is gone already
        pass
      try:
        self.process.wait(ENDING)
      except subprocess.TimeoutExpired:
        log.warning("the verifier's process %d does not end when killed", self.process.pid)

  def close(self):
    """Closes the sockets and pipes of a killed worker; only its own thread may call it."""
    self._socket.close()
    self.process.stdin.close()


def parse(line: bytes) -> tuple[int, float, str]:
  """(number, reward, "") or (number, NaN, error) of a worker's reply; raises `Lost` for anything
  else."""
  try:
    reply = json.loads(line)
    if isinstance(reply, list) and len(reply) == 3:
      number, reward, error = reply
      if type(number) is int and type(reward) in (int, float) and type(error) is str:
        if error:
          return number, math.nan, error
        if math.isfinite(float(reward)):
          return number, float(reward), ""
  except (ValueError, RecursionError, OverflowError, MemoryError):
    pass
  raise Lost(f"the worker replied {line[:80]!r}, expected [number, reward, error]")
