"""Verdicts from worker processes, with a time limit that the parent enforces by killing a worker.

One thread a worker takes jobs from one queue, sends them over a socket, and waits: no thread polls,
and a verdict belongs to its handle, so the order of arrival means nothing. Whatever happens in a
thread becomes a failed verdict, and every wait in it has a limit.
"""

from collections.abc import Callable
from concurrent.futures import Future
import logging
import math
import pickle
import queue
import threading
from typing import NamedTuple

from v05_jax.rewards.process import Lost, Worker
from v05_jax.rewards.worker import BATCHED, HEAD, describe

START = 120.0  # seconds a worker may take to import the reward function
PAUSES = (0.1, 1.0, 5.0)  # seconds between attempts to start a process, when the system is short
JOIN = 30.0  # seconds that a thread may take to end after its worker was killed

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
  """What a response is worth."""

  reward: float  # the verifier's own units; NaN when it failed
  failure: str = ""  # "" | "timeout" | "crash": an exception, a dead worker, or no finite number
  detail: str = ""  # what happened, for people
  parts: tuple[float, ...] = ()  # of several rewards, each one's own


class Direct:
  """A trusted, fast function, called as (prompt, response, row) in this process."""

  batched = False

  def __init__(self, function):
    self.function = function

  def submit(self, prompts, responses, rows, groups=None) -> list[Future]:
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
  """`workers` processes that call `target` ("module:function"), with one rollout at a time each, or
  with all those of a prompt, where the function is of that kind (`worker.load`): `batched`.

  Where a worker ends that had given verdicts before, the verdict is asked for once more, of a fresh
  worker: what earlier verdicts left behind (a timer, a thread, memory) may have ended the old one.

  A verdict has `timeout` seconds; the time counts from when a verdict starts to run, not from its
  submission. `memory`: bytes of address space a worker may use, 0 = no limit. Raises ValueError if
  the first worker cannot load `target`.
  """

  def __init__(self, target: str, workers: int, timeout: float, memory: int = 0):
    self._function = target, memory, timeout
    self.dropped = 0  # replies that belonged to no present verdict
    self._timeout = timeout
    self.batched = False  # until a worker has loaded the function
    self._jobs = queue.SimpleQueue()  # (handles, job), or None for a thread to end
    self._next = 1  # number of the next verdict
    self._lock = threading.Lock()
    self._closed = threading.Event()
    self._workers: dict[int, Worker] = {}
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

  def submit(self, prompts: list[str], responses: list[str], rows: list[dict], groups=None):
    """One handle each, in order; `handle.result()` waits for its Verdict.

    groups: of each response a number or name; a batched function is called once for each group. By
    default responses belong together that have the same prompt and the same row object.
    """
    handles = [Future() for _ in prompts]
    jobs = list(zip(prompts, responses, rows, strict=True))
    work = [([handle], job) for handle, job in zip(handles, jobs)]
    if self.batched:
      keys = [(prompt, id(row)) for prompt, _, row in jobs] if groups is None else groups
      work = _by_group(keys, handles, jobs)
    with self._lock:  # else a job could come after `close` has emptied the queue
      if self._closed.is_set():
        raise ValueError("the verifier is closed")
      for item in work:
        self._jobs.put(item)
    return handles

  def close(self):
    """Ends the workers at once; handles without a verdict are cancelled, a running one fails."""
    with self._lock:
      self._closed.set()
      workers = list(self._workers.values())
    for worker in workers:
      worker.kill()
    while True:
      try:
        item = self._jobs.get_nowait()  # the workers' threads take from it, too
      except queue.Empty:
        break
      for handle in item[0] if item else ():
        handle.cancel()
    for _ in self._threads:
      self._jobs.put(None)
    for thread in self._threads:
      thread.join(JOIN)
    if self.dropped:
      log.warning(
        "%d replies of verifiers were dropped: they belonged to no present verdict", self.dropped
      )
      self.dropped = 0

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def _serve(self, slot: int, loaded: Future):
    """The work of a thread: loads the function, then takes jobs. Whatever happens, `loaded` gets ""
    or what is wrong, and every handle gets its verdict."""

    def load():
      self._launch(slot)
      return [Verdict(0.0)]

    loaded.set_result(self._guarded(slot, load)[0].detail)
    while item := self._jobs.get():
      handles, job = item
      if self._closed.is_set():
        for handle in handles:
          handle.cancel()
      running = [handle.set_running_or_notify_cancel() for handle in handles]
      if any(running):
        found = self._verdicts(slot, job, len(handles))
        for handle, goes_on, verdict in zip(handles, running, found, strict=True):
          if goes_on:
            handle.set_result(verdict)
    self._drop(slot)

  def _verdicts(self, slot: int, job, count: int) -> list[Verdict]:
    with self._lock:
      numbers = range(self._next, self._next + count)
      self._next += count
    try:
      text = pickle.dumps(job)
    except BaseException as error:  # of an object in the row
      reason = f"the row cannot be sent to a worker: {describe(error)}"
      found = [Verdict(math.nan, "crash", reason)] * count
    else:
      message = HEAD.pack(numbers[0], len(text)) + text
      found = self._guarded(slot, lambda: self._ask(slot, numbers, message), count)
    name = self._function[0]
    for failed in (verdict for verdict in found if verdict.failure):
      if not self._closed.is_set():
        self._say(failed.failure, f"a verdict failed ({failed.failure}): {name}: {failed.detail}")
    return found

  def _guarded(self, slot: int, work: Callable[[], list[Verdict]], count: int = 1) -> list[Verdict]:
    """The `count` verdicts that `work` returns. Where it raises, all of them have failed and the
    slot gets a new worker."""
    try:
      return work()
    except TimeoutError as error:
      found = Verdict(math.nan, "timeout", str(error))
    except Lost as error:
      found = Verdict(math.nan, "crash", str(error))
    except BaseException as error:
      found = Verdict(math.nan, "crash", describe(error))
    self._drop(slot)
    return [found] * count

  def _ask(self, slot: int, numbers: range, message: bytes) -> list[Verdict]:
    worker = self._workers.get(slot)
    if worker and worker.ended():
      self._say("ended", f"between two verdicts {worker.ending()}; it is started again")
      self._drop(slot)
      worker = None
    worker = worker or self._launch(slot)
    try:
      found = worker.exchange(numbers, message, self._timeout)
    except TimeoutError:
      raise TimeoutError(f"no verdict within {self._timeout:g} s") from None
    except Lost as lost:
      if not worker.judged or self._closed.is_set():
        raise
      # Something of an earlier verdict may have ended the process: a fresh one decides.
      self._say("again", f"{lost}; the verdict is asked for once more, of a fresh one")
      self._drop(slot)
      return self._ask(slot, numbers, message)
    worker.judged = True
    return [Verdict(reward, "crash" if error else "", error) for reward, error in found]

  def _launch(self, slot: int) -> Worker:
    """Starts the slot's worker and waits until it has loaded the function. Raises `Lost` or
    TimeoutError with what is wrong."""
    worker = self._start()
    with self._lock:
      self._workers[slot] = worker
      if self._closed.is_set():
        raise Lost("the verifier is closed")
    try:
      ((kind, error),) = worker.exchange(range(1), b"", START)
    except TimeoutError:
      raise TimeoutError(f"the function was not loaded within {START:g} s") from None
    if error:
      raise Lost(error)
    self.batched = kind == BATCHED
    return worker

  def _start(self) -> Worker:
    """A process; tried again where the system has no room for one at the moment."""
    for pause in (*PAUSES, None):
      try:
        return Worker(*self._function, self._dropped)
      except (OSError, MemoryError) as error:
        problem = f"a worker cannot be started: {describe(error)}"
      if pause is None or self._closed.wait(pause):
        raise Lost(problem)

  def _drop(self, slot: int):
    with self._lock:
      worker = self._workers.pop(slot, None)
    if worker:
      worker.kill()
      worker.close()

  def _dropped(self):
    """A worker has replied to another job than its present one."""
    with self._lock:
      self.dropped += 1
    self._say(
      "dropped",
      "a reply that belongs to no present verdict was dropped: does the reward "
      "function fork, or write to other programs' files?",
    )

  def _say(self, kind: str, message: str):
    """Warns, once of each kind."""
    if kind not in self._warned:
      self._warned.add(kind)
      log.warning("%s", message)


def _by_group(keys, handles, jobs) -> list[tuple[list[Future], tuple]]:
  """(handles, (prompt, responses, row)) of each group, in the order in which they begin."""
  groups: dict = {}
  for key, handle, job in zip(keys, handles, jobs, strict=True):
    groups.setdefault(key, []).append((handle, job))
  return [
    (
      [handle for handle, _ in found],
      (found[0][1][0], [job[1] for _, job in found], found[0][1][2]),
    )
    for found in groups.values()
  ]
