"""The child process of `rewards.pool`: it imports the reward function and calls it, one rollout at
a time.

Started with a fresh interpreter, not by fork (JAX is not fork-safe) and not by multiprocessing's
spawn (it imports the parent's main module again). Nothing here may import jax: a worker would take
seconds to start and could claim the accelerator.
"""

import contextlib
import ctypes
import importlib
import json
import math
from multiprocessing.connection import Connection
import os
import resource
import signal
import sys
import threading
import traceback

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(descriptor: int, target: str, memory: int):
  """Serves verdicts over the socket `descriptor` until the parent closes it or dies.

  Sends one message at the start, "" or why `target` ("module:function") cannot be used; then
  answers each (prompt, response, row) by `[reward, error]`. Replies are JSON: the parent unpickles
  nothing that a process running a stranger's code has written. `memory`: bytes of address space, 0
  = no limit.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  _follow_parent()
  if memory:
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
      resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
  connection = Connection(descriptor)
  try:
    function = resolve(target)
  except BaseException as error:
    connection.send_bytes(json.dumps(describe(error)).encode())
    return
  connection.send_bytes(json.dumps("").encode())
  while True:
    try:
      job = connection.recv()
    except (EOFError, OSError):
      return
    except Exception as error:  # the row holds an object that this process cannot rebuild
      reply = math.nan, describe(error)
    else:
      reply = verdict(function, *job)
    connection.send_bytes(json.dumps(reply).encode())


def resolve(target: str):
  """The function that "module:function" names; raises ImportError, AttributeError or TypeError."""
  module, _, name = target.partition(":")
  function = importlib.import_module(module)
  for part in name.split("."):
    function = getattr(function, part)
  if not callable(function):
    raise TypeError(f"{name} is a {type(function).__name__}, expected a function")
  return function


def verdict(function, prompt: str, response: str, row: dict) -> tuple[float, str]:
  """(reward, "") or (NaN, what went wrong)."""
  try:
    reward = function(prompt, response, row)
    if hasattr(reward, "__float__") and math.isfinite(value := float(reward)):  # no strings
      return value, ""
    return math.nan, f"returned {reward!r:.100}, expected a finite number"
  except BaseException as error:  # SystemExit and KeyboardInterrupt as well: the worker goes on
    return math.nan, describe(error)


def describe(error: BaseException) -> str:
  """The exception in one line, with the place in the user's file where it was raised."""
  try:
    text = " ".join("".join(traceback.format_exception_only(error)).split())[:500]
  except Exception:  # an exception whose own __str__ raises
    text = type(error).__name__
  frames = traceback.extract_tb(error.__traceback__)
  return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if frames else text


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
