"""A workdir belongs to one run at a time: who is refused, what a dead run leaves, what stands in
for the kernel's locks where there are none."""

import fcntl
import json
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from v05_jax.run import checkpoint, lock
from v05_jax.run.lock import Lock

ROOT = pathlib.Path(__file__).parents[1]
# Holds a workdir until it is killed; no JAX program runs.
HOLDER = """
import sys, time
from v05_jax.run.lock import Lock
with Lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def leave(workdir, **changes):
  """What a run left in running.json that ended without giving the workdir back."""
  facts = {"host": socket.gethostname(), "pid": 1, "start": "long ago", "token": "other"}
  text = json.dumps(facts | {"alive": time.time()} | changes)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / lock.HOLDER).write_text(text)


def other_process(workdir):
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(workdir)], env=env, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "held\n"
  return process


def test_a_second_process_is_refused_and_after_a_kill_the_workdir_is_free_at_once(tmp_path, caplog):
  process = other_process(tmp_path)
  try:
    for _ in range(2):  # a refusal changes nothing
      with pytest.raises(ValueError) as error, Lock(tmp_path):
        pass
      text = str(error.value)
      assert f"workdir {tmp_path}: found the run of process {process.pid} on " in text
      assert socket.gethostname() in text and time.strftime("started %Y-", time.gmtime()) in text
    with pytest.raises(ValueError, match="expected one run at a time"), Lock(f"{tmp_path}/."):
      pass
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  with caplog.at_level(logging.WARNING), Lock(tmp_path):
    pass
  assert f"taken over from the run of process {process.pid} on" in caplog.text


def test_a_run_gives_back_what_it_held(tmp_path, caplog):
  for _ in range(2):
    with caplog.at_level(logging.WARNING), Lock(tmp_path / "run"):
      facts = json.loads((tmp_path / "run" / lock.HOLDER).read_text())
      assert facts["pid"] == os.getpid() and facts["host"] == socket.gethostname()
      assert time.time() - facts["alive"] < 600
      with pytest.raises(ValueError, match=f"process {os.getpid()} on"), Lock(tmp_path / "run"):
        pass
      with Lock(tmp_path / "another"):
        pass
    assert not (tmp_path / "run" / lock.HOLDER).exists()
  with pytest.raises(KeyError), Lock(tmp_path / "run"):
    raise KeyError  # a run that fails
  assert not (tmp_path / "run" / lock.HOLDER).exists()
  assert not caplog.records


def test_another_host_is_known_by_its_signs_of_life(tmp_path, caplog):
  leave(tmp_path, host="elsewhere", alive=time.time() - lock.LIMIT / 2)
  with pytest.raises(ValueError) as error, Lock(tmp_path):
    pass
  text = str(error.value)
  assert "process 1 on elsewhere, started long ago" in text
  assert f"{lock.LIMIT:.0f} s after the last sign of life, which was 45 s ago" in text
  assert str(tmp_path / lock.HOLDER) in text
  leave(tmp_path, host="elsewhere", alive=time.time() - lock.LIMIT - 1)
  with caplog.at_level(logging.WARNING), Lock(tmp_path):
    pass
  assert "taken over from the run of process 1 on elsewhere" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\xff"])
def test_a_torn_name_holds_nothing(tmp_path, text):
  (tmp_path / lock.HOLDER).write_text(text)
  with Lock(tmp_path):
    pass


@pytest.mark.parametrize(
  "facts", [{"pid": 10**30}, {"pid": 0}, {"pid": True}, {"alive": float("inf")}, {"alive": 10**400}]
)
def test_what_no_run_writes_holds_nothing(tmp_path, monkeypatch, facts):
  monkeypatch.setattr(Lock, "_lock_file", lambda self: False)
  leave(tmp_path, **facts)
  with Lock(tmp_path):
    pass


def test_a_clock_that_is_ahead_is_named(tmp_path):
  leave(tmp_path, host="elsewhere", alive=time.time() + 1e6)
  with pytest.raises(ValueError, match="by a clock that is ahead"), Lock(tmp_path):
    pass


def test_who_has_just_begun_is_named_and_no_dead_run(tmp_path):
  """Two starts within a moment: the second comes before the first has written its name."""
  leave(tmp_path, pid=2**31 - 1)  # no system has so many
  with open(tmp_path / lock.LOCK, "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    begun = threading.Timer(0.3, leave, (tmp_path,), {"pid": os.getpid()})
    begun.start()
    with pytest.raises(ValueError, match=f"found the run of process {os.getpid()} on"):
      Lock(tmp_path).__enter__()
    begun.join()


def test_without_the_kernels_locks_the_process_or_its_signs_of_life_decide(root, monkeypatch):
  """An object store, and a file system without flock."""
  monkeypatch.setattr(Lock, "_lock_file", lambda self: False)
  workdir = root / "run"
  with Lock(workdir), pytest.raises(ValueError, match=f"process {os.getpid()} on"), Lock(workdir):
    pass
  dead = subprocess.Popen([sys.executable, "-c", ""])
  dead.wait()
  for facts in (
    {"pid": dead.pid},  # killed a moment ago
    {"pid": os.getppid(), "alive": time.time() - lock.LIMIT - 1},  # its number has another process
    {"host": "elsewhere", "alive": time.time() - lock.LIMIT - 1},
  ):
    leave(workdir, **facts)
    with Lock(workdir):
      pass
  for facts in ({"pid": os.getppid()}, {"host": "elsewhere"}):
    leave(workdir, **facts)
    with pytest.raises(ValueError, match="one run at a time"), Lock(workdir):
      pass


def test_a_run_whose_workdir_was_taken_saves_nothing_more(root, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.01)
  workdir = root / "run"
  with Lock(workdir) as held:
    held.check()
    first = json.loads((workdir / lock.HOLDER).read_text())
    leave(workdir, host="elsewhere")
    while held._thread.is_alive():
      time.sleep(0.01)
    with pytest.raises(ValueError, match=r"process 1 on elsewhere, .* has taken it"):
      held.check()
    with pytest.raises(ValueError, match="has taken it"):
      checkpoint.Checkpoints(workdir, 2, held).save(1, {})
  assert json.loads((workdir / lock.HOLDER).read_text())["token"] == "other" != first["token"]


def test_a_holder_gives_signs_of_life(root, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.01)
  alive = lambda: json.loads((root / lock.HOLDER).read_text())["alive"]
  with Lock(root):
    first = alive()
    while alive() == first:
      time.sleep(0.01)
    (root / lock.HOLDER).unlink()
    while not (root / lock.HOLDER).exists():
      time.sleep(0.01)
