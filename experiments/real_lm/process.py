"""Processes that do one job each: they neither outlive their parent nor lose what they have."""

import os
import signal
import subprocess
import threading
import time

PATIENCE = 180  # seconds in which an interrupted run has saved its state and is gone


def run(command: list[str], longest: float):
  """Runs a command. Raises ValueError where it fails, or takes more than `longest` seconds."""
  process = subprocess.Popen(command)
  try:
    code = process.wait(longest)
  except subprocess.TimeoutExpired:
    stop(process)
    raise ValueError(f"took more than {longest:g} seconds, and was stopped") from None
  except BaseException:  # Ctrl-C, SIGTERM: it saves its state first
    stop(process)
    raise
  if code:
    raise ValueError(f"the process ended with {code}; see above")


def stop(process: subprocess.Popen):
  """Asks a run to save and end; what does not end in time is killed."""
  process.send_signal(signal.SIGTERM)
  try:
    process.wait(PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


def end_with_parent():
  """Stops this process as SIGTERM does, a run after it has saved, once its parent is gone."""
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()
