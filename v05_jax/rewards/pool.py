"""Verdicts from worker processes, with a time limit that the parent enforces by killing a worker.

One thread a worker takes jobs from one queue, sends them over a socket, and waits: no thread polls,
and a verdict belongs to its handle, so the order of arrival means nothing.
"""

from concurrent.futures import Future
import json
import logging
import math
from multiprocessing.connection import Connection
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from typing import NamedTuple

START = 120.0  # seconds a worker may take to import the reward function
LONGEST_REPLY = 1 << 16  # bytes
BOOT = (
  "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
  "from v05_jax.rewards import worker; worker.main(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
)

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
  """What a response is worth."""

  reward: float  # the verifier's own units; NaN when it failed
  failure: str = ""  # "" | "timeout" | "crash": an exception, a dead worker, or no finite number
  detail: str = ""  # what happened, for people


class Direct:
  """A trusted, fast function, called as (prompt, response, row) in this process."""

  def __init__(self, function):
    self.function = function

  def submit(self, prompts, responses, rows) -> list[Future]:
    handles = [Future() for _ in prompts]
    for handle, *job in zip(handles, prompts, responses, rows, strict=True):
      handle.set_result(Verdict(float(self.function(*job))))
    return handles

  def close(self):
    pass

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class Pool:
  """`workers` processes that call `target` ("module:function"), one rollout at a time each.

  A verdict has `timeout` seconds; the time counts from when a verdict starts to run, not from its
  submission. `memory`: bytes of address space a worker may use, 0 = no limit. Raises ValueError if
  the first worker cannot load `target`.
  """

  def __init__(self, target: str, workers: int, timeout: float, memory: int = 0):
    self._start = target, memory
    self._timeout = timeout
    self._jobs = queue.SimpleQueue()  # (handle, job), or None for a thread to end
    self._lock = threading.Lock()
    self._closed = False
    self._workers: dict[int, _Worker] = {}
    self._warned: set[str] = set()
    loaded = [Future() for _ in range(workers)]
    self._threads = [
      threading.Thread(target=self._serve, args=(n, done), daemon=True, name=f"rewards-{n}")
      for n, done in enumerate(loaded)
    ]
    for thread in self._threads:
      thread.start()
    if errors := [error for error in (done.result() for done in loaded) if error]:
      self.close()
      raise ValueError(errors[0])

  def submit(self, prompts: list[str], responses: list[str], rows: list[dict]) -> list[Future]:
    """One handle each, in order; `handle.result()` waits for its Verdict."""
    if self._closed:
      raise ValueError("the verifier is closed")
    handles = [Future() for _ in prompts]
    for handle, *job in zip(handles, prompts, responses, rows, strict=True):
      self._jobs.put((handle, job))
    return handles

  def close(self):
    """Ends the workers at once; handles without a verdict are cancelled, a running one fails."""
    with self._lock:
      self._closed = True
      for worker in self._workers.values():
        worker.kill()
    while not self._jobs.empty():
      if item := self._jobs.get():
        item[0].cancel()
    for _ in self._threads:
      self._jobs.put(None)
    for thread in self._threads:
      thread.join()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def _serve(self, slot: int, loaded: Future):
    loaded.set_result(self._launch(slot))
    while item := self._jobs.get():
      handle, job = item
      if handle.set_running_or_notify_cancel():
        verdict = self._verdict(slot, job)
        if verdict.failure and verdict.failure not in self._warned and not self._closed:
          self._warned.add(verdict.failure)
          log.warning("a verdict failed (%s): %s", verdict.failure, verdict.detail)
        handle.set_result(verdict)

  def _launch(self, slot: int) -> str:
    """Starts the slot's worker, waits until it has loaded the function -> "" or what is wrong."""
    with self._lock:
      if self._closed:
        return "the verifier is closed"
      worker = self._workers[slot] = _Worker(*self._start)
    error = worker.receive(START)
    if isinstance(error, Verdict):
      error = error.detail
    if error:
      self._drop(slot)
    return error

  def _drop(self, slot: int):
    with self._lock:
      self._workers.pop(slot).kill()

  def _verdict(self, slot: int, job) -> Verdict:
    if slot not in self._workers and (error := self._launch(slot)):
      return Verdict(math.nan, "crash", error)
    worker = self._workers[slot]
    try:
      worker.connection.send(job)
    except OSError:
      pass  # it died between two verdicts; receive() says so
    except Exception as error:
      return Verdict(math.nan, "crash", f"the row cannot be sent to a worker: {error}")
    reply = worker.receive(self._timeout)
    if isinstance(reply, Verdict):
      self._drop(slot)
      return reply
    reward, error = reply
    return Verdict(reward, "crash" if error else "", error)


class _Worker:
  """A fresh interpreter that runs `rewards.worker.main`, in a session of its own.

  Its own session keeps the terminal's Ctrl-C from it and lets `kill` end the processes that it has
  started.
  """

  def __init__(self, target: str, memory: int):
    path = [p or os.getcwd() for p in sys.path]
    if os.getcwd() not in path:  # where the run was started, and often the user's function lies
      path.append(os.getcwd())
    ours, theirs = socket.socketpair()
    with theirs:
      arguments = [json.dumps(path), str(theirs.fileno()), target, str(memory)]
      self.process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, *arguments],
        stdin=subprocess.PIPE,
        stdout=2,  # what a reward function prints must not mix with the run's own output
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},  # the accelerator is the trainer's
      )
    self.connection = Connection(ours.detach())

  def receive(self, timeout: float):
    """The worker's next message, or a failed Verdict if it is late, dead or talks nonsense."""
    try:
      if not self.connection.poll(timeout):
        return Verdict(math.nan, "timeout", f"no verdict within {timeout:g} s")
      return json.loads(self.connection.recv_bytes(LONGEST_REPLY))
    except (EOFError, OSError, ValueError):
      self.kill()
      return Verdict(math.nan, "crash", f"the worker ended with status {self.process.wait()}")

  def kill(self):
    if self.process.returncode is None:  # else the number may name another process by now
      try:
        os.killpg(self.process.pid, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):  # it is gone already
        pass
      self.process.wait()
    self.process.stdin.close()
