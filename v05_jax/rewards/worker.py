"""The child process of `rewards.pool`: it imports the reward function and calls it, one rollout at
a time.

Started with a fresh interpreter, not by fork (JAX is not fork-safe) and not by multiprocessing's
spawn (it imports the parent's main module again). Nothing here may import jax: a worker would take
seconds to start and could claim the accelerator. What every verdict needs of other modules is
imported by its name, since the reward function may replace it there.
"""

import asyncio
import builtins
import contextlib
import ctypes
import functools
import inspect
from json import dumps
import math
import os
from pickle import loads
import resource
import signal
from signal import setitimer
import socket
import struct
import sys
from sys import setrecursionlimit
import threading
import traceback
import warnings

from v05_jax.names import describe, resolve

HEAD = struct.Struct("!QQ")  # before each job: its number, and the bytes of its pickle
BATCHED = 1.0  # the reward of the first reply, where the function takes all responses at once
WANTED = (
  "expected a function (prompt, response, row) -> float, or (prompt, responses, row) -> list, or "
  "TRL's (prompts, completions, **columns) -> list"
)
LARGEST = 3.4028234e38  # float32's, which rewards are kept in
MODULES = sys.modules
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(descriptor: int, target: str, memory: int, timeout: float):
  """Serves verdicts over the socket `descriptor` until the parent closes it or dies.

  A job is a `HEAD` and a pickled (prompt, response, row). Its reply is a line of JSON, [the job's
  number, reward, error]: the parent unpickles nothing that a process with the user's code has
  written. A job for a batched function has a list of responses, and its reply is a line for each,
  numbered from the job's number on. The first line, with number 0, says whether `target`
  ("module:function") can be used, and whether it is batched.
  `memory`: bytes of address space, 0 = no limit. `timeout`: seconds that the parent gives a job; an
  `LLMJudge` gives up before that, and can say what it has waited for.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  _follow_parent()
  if memory:
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
      resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
  try:
    _serve(socket.socket(fileno=descriptor), target, timeout)
  except OSError:  # the connection is closed
    pass
  except BaseException:
    traceback.print_exc()
  os._exit(1)  # and does not wait for threads that the function has started


def _serve(connection: socket.socket, target: str, timeout: float):
  """Answers the jobs that come over the connection, until it ends.

  Processes that the reward function starts cannot use the connection: it is closed in every one
  that it forks or executes, and a fork that returns from the function ends.
  """
  descriptor, own = connection.fileno(), os.getpid()
  os.set_inheritable(descriptor, False)
  os.register_at_fork(after_in_child=lambda: _close(descriptor))

  def reply(number: int, reward: float, error: str):
    if os.getpid() != own:
      os._exit(0)
    connection.sendall(dumps([number, reward, error]).encode() + b"\n")

  try:
    function = load(target)
    if hasattr(function, "within"):
      from v05_jax.rewards.llm_judge import LLMJudge

      function = function.within(timeout) if isinstance(function, LLMJudge) else function
    batched = is_batched(function)
  except BaseException as error:
    return reply(0, math.nan, describe(error))
  reply(0, BATCHED if batched else 0.0, "")
  jobs = connection.makefile("rb")
  while len(head := jobs.read(HEAD.size)) == HEAD.size:
    number, size = HEAD.unpack(head)
    try:
      job = loads(jobs.read(size))
    except Exception as error:  # the row holds an object that this process cannot rebuild
      reply(number, math.nan, describe(error))
    else:
      if not batched:
        reply(number, *verdict(function, *job))
      else:
        for i, found in enumerate(verdicts(function, *job)):
          reply(number + i, *found)


def _close(descriptor: int):
  with contextlib.suppress(OSError):  # the function has closed it before
    os.close(descriptor)


def load(target: str):
  """The reward function that "module:function" names, as it is called here. What it may be, with or
  without async:

      (prompt, response, row) -> float           a response at a time
      (prompt, responses, row) -> list           batched: all responses of a prompt at once, where
                                                 its second parameter is called `responses`
      (prompts, completions, **columns) -> list  TRL's, by these names, of which `completions` is
                                                 enough (`adapters.trl`)

  Raises what `resolve` does, and TypeError for anything else.
  """
  function, name = resolve(target), target.partition(":")[2]
  for kind in (inspect.isgeneratorfunction, inspect.isasyncgenfunction):
    if kind(function):
      raise TypeError(f"{name} is a generator, {WANTED}")
  if {"completions", "completion_ids"} & set(parameters(function)):
    from v05_jax.rewards import adapters

    return adapters.trl(function)
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # some functions that are written in C have none
    return function
  try:
    signature.bind("prompt", "response", {})
  except TypeError as error:
    raise TypeError(f"{name}{signature} has other parameters ({error}), {WANTED}") from None
  return function


def parameters(function) -> list[str]:
  """The names of a function's parameters; [] where it does not tell."""
  try:
    return list(inspect.signature(function).parameters)
  except (TypeError, ValueError):
    return []


def is_batched(function) -> bool:
  """Whether a function takes all responses of a prompt at once."""
  return parameters(function)[1:2] == ["responses"]


def verdict(function, prompt: str, response: str, row: dict) -> tuple[float, str]:
  """(reward, "") or (NaN, what went wrong)."""
  try:
    with _Undone():
      found = function(prompt, response, row)
    return checked(_waited(found))
  except BaseException as error:  # SystemExit and KeyboardInterrupt as well: the worker goes on
    return math.nan, describe(error)


def verdicts(function, prompt: str, responses: list[str], row: dict) -> list[tuple[float, str]]:
  """The same of a batched function, for each of the responses."""
  count = len(responses)
  try:
    with _Undone():
      found = function(prompt, list(responses), row)
    found = _waited(found)
    is_list = hasattr(found, "__len__") and not isinstance(found, (str, bytes, dict, set))
    if not is_list or len(found) != count:
      kind = "" if is_list else f" ({type(found).__name__})"
      what = f"{found!r:.100}{kind}, expected a list of {count} numbers, one for each response"
      return [(math.nan, f"returned {what}")] * count
    return [_checked_alone(reward) for reward in found]
  except BaseException as error:
    return [(math.nan, describe(error))] * count


class _Undone:
  """Stops timers that an earlier verdict has set, and afterwards restores the builtins, the loaded
  modules, the warnings' filters and the recursion limit. The builtins come first, as the rest needs
  them."""

  def __enter__(self):
    self._warnings = warnings.catch_warnings()
    self._warnings.__enter__()
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
      setitimer(timer, 0)
    self._builtins, self._modules = builtins.__dict__.copy(), MODULES.copy()
    self._depth = sys.getrecursionlimit()

  def __exit__(self, *error):
    builtins.__dict__.update(self._builtins)
    MODULES.update(self._modules)
    setrecursionlimit(self._depth)
    self._warnings.__exit__(*error)


def _checked_alone(reward) -> tuple[float, str]:
  """`checked`; where a reward raises, it alone has failed."""
  try:
    return checked(reward)
  except BaseException as error:
    return math.nan, describe(error)


def checked(reward) -> tuple[float, str]:
  """(reward, "") of what a function has returned, or (NaN, what is wrong with it)."""
  if _is_number(reward) and abs(value := float(reward)) <= LARGEST:
    return value, ""
  return math.nan, f"returned {reward!r:.100}, expected a finite number"


@functools.cache
def _runner() -> asyncio.Runner:
  return asyncio.Runner()  # one event loop: a function may keep connections that belong to it


def _waited(found):
  """The value, or the result of an awaitable; tasks that it has started and not awaited are
  cancelled."""
  if not inspect.isawaitable(found):
    return found

  async def alone():
    try:
      return await found
    finally:
      rest = asyncio.all_tasks() - {asyncio.current_task()}
      for task in rest:
        task.cancel()
      await asyncio.gather(*rest, return_exceptions=True)

  with _Undone():
    return _runner().run(alone())


def _is_number(reward) -> bool:
  """Whether it is a real number, of Python, an array library or the user's own; no text that could
  be read as one."""
  kind = getattr(getattr(reward, "dtype", None), "kind", "f")  # of numpy
  text = isinstance(reward, (str, bytes, complex)) or kind in tuple("cSUOMm")
  return hasattr(reward, "__float__") and not text


def _follow_parent():
  """Ends this process and its children when the parent ends, however it does.

  Standard input is a pipe that only the parent holds open. A thread waits for its end; where a
  hanging verifier keeps Python's lock so that the thread cannot run, Linux's parent-death signal
  does it.
  """
  lifeline = os.dup(0)
  with open(os.devnull) as nothing:
    os.dup2(nothing.fileno(), 0)

  def wait():
    os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)

  threading.Thread(target=wait, daemon=True).start()
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
      with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # short of memory, the kernel ends this process and not the training
    except OSError:
      pass
