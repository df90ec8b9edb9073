"""Runs of several processes on this machine: equal to one process, ended together, resumed by any
number."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_train
from tests.test_main import OWN_INPUT
from tests.test_train import lines
from v05_jax import config as configuration
from v05_jax.configs import default
from v05_jax.run import checkpoint, metrics
from v05_jax.scale import distributed, peers, sharding
from v05_jax.train import train

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = "--coordinator", "--num_processes", "--process_id"
LIMIT = 900  # seconds for programs to compile in


def small(**keys):
  """A run of test_train over eight devices."""
  return test_train.small(**({"mesh.data": 8} | keys))


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


class Together:
  """Processes of one run, over eight devices in all, in a workdir whose config.json it writes
  beside it."""

  def __init__(self, workdir, count, config, *flags, own=(), env=None, mode="train"):
    """own: further flags for each of the processes; env: process -> what it alone has in its
    environment."""
    config.cpu_devices, port = 8 // count, free_port()
    self.address = f"127.0.0.1:{port}"
    file = workdir.parent / f"{workdir.name}.json"
    file.write_text(configuration.to_json(config))
    common = os.environ | {
      # half of the time to compile
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
      "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'data' / 'math'}",
    }
    command = [
      sys.executable,
      "-m",
      "v05_jax.main",
      f"--config={file}",
      f"--workdir={workdir}",
      f"--mode={mode}",
    ]
    self.workdir, self.processes = workdir, []
    for i in range(count):
      place = (
        [f"{FLAGS[0]}={self.address}", f"{FLAGS[1]}={count}", f"{FLAGS[2]}={i}"]
        if count > 1
        else []
      )
      more = own[i] if own else ()
      with open(f"{workdir}.log{i}", "w") as log:
        self.processes.append(
          subprocess.Popen(
            [*command, *place, *flags, *more],
            cwd=ROOT,
            env=common | (env or {}).get(i, {}),
            stdout=log,
            stderr=log,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()

  def log(self, i) -> str:
    return pathlib.Path(f"{self.workdir}.log{i}").read_text()

  def wait(self, timeout=LIMIT) -> list[int]:
    """Their exit codes."""
    until = time.monotonic() + timeout
    try:
      return [process.wait(max(until - time.monotonic(), 0.1)) for process in self.processes]
    except subprocess.TimeoutExpired:
      raise AssertionError(
        "\n".join(self.log(i)[-3000:] for i in range(len(self.processes)))
      ) from None

  def succeed(self):
    codes = self.wait()
    assert codes == [0] * len(codes), "\n".join(self.log(i)[-3000:] for i in range(len(codes)))

  def until(self, condition, timeout=LIMIT):
    """Waits for it."""
    until = time.monotonic() + timeout
    while not condition():
      assert time.monotonic() < until, "\n".join(
        self.log(i)[-3000:] for i in range(len(self.processes))
      )
      time.sleep(0.05)

  def going(self) -> list[int]:
    """The numbers of the processes that have not ended."""
    return [i for i, process in enumerate(self.processes) if process.poll() is None]

  def until_line(self, count):
    """Waits for a number of lines of metrics, which all processes that go on now go on for."""
    going = self.going()
    self.until(lambda: len(metrics.read(self.workdir)) >= count or self.going() != going)
    assert self.going() == going, "\n".join(self.log(i)[-3000:] for i in range(len(going)))

  def until_ended(self, i) -> str:
    """Waits for the end of one process and of its helper, which speaks last -> its log."""
    self.processes[i].wait(LIMIT)
    self.until(lambda: not self._helped(i))
    return self.log(i)

  def _helped(self, i) -> bool:
    """Whether a process has the log open still."""
    log = os.path.realpath(f"{self.workdir}.log{i}")
    for fd in pathlib.Path("/proc").glob("[0-9]*/fd/2"):
      with contextlib.suppress(OSError):
        if os.readlink(fd) == log:
          return True
    return False


def run(workdir, count, config, *flags, **options):
  with Together(workdir, count, config, *flags, **options) as together:
    together.succeed()
  return together


def same(a, b, mesh=True):
  """The metrics of two runs agree to 1e-4, counts exactly, and, on the same `mesh`, what the
  sampler did."""
  a, b = lines(a), lines(b)
  assert [line["step"] for line in a] == [line["step"] for line in b]
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      if name.startswith("sampler/") and not mesh:
        continue
      if name.startswith(
        ("k/", "prompts", "rollouts", "sampler/", "response/", "rewards/", "accuracy")
      ):
        assert x[name] == y[name], (x["step"], name, x[name], y[name])
      elif x[name] is None or y[name] is None:
        assert x[name] == y[name], (x["step"], name)
      else:
        assert x[name] == pytest.approx(y[name], abs=1e-4, rel=1e-4), (x["step"], name)


@pytest.mark.long
def test_two_processes_are_one(tmp_path):
  """Prior, estimators and checkpoints: two processes of four devices, one of eight."""
  config = {"num_steps": 3, "eval.period": 0}
  together = run(tmp_path / "two", 2, small(**config))
  train(small(**config), str(tmp_path / "one"))
  same(tmp_path / "one", tmp_path / "two")
  written = metrics.read(tmp_path / "two")
  assert written[0]["prior/accepted"] is None and written[2]["prior/accepted"] is not None
  assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1  # process 0 alone writes
  assert not list((tmp_path / "two").glob(".shared*"))
  assert "error" not in together.log(1)


ADAPTIVE = {
  "budget.rule": "sequential",
  "budget.k_max": 6,
  "prior.min_support": 6,
  "prior.wrappers": ("recalibrate", "fallback", "history"),
  "checkpoint.period": 5,
  "eval.period": 10,
  "data.size": 64,
}


def long(**keys):
  """Twenty steps with all that a run can have."""
  return small(**(ADAPTIVE | {"num_steps": 20, "checkpoint.keep": 1} | keys))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Twenty steps of one process with eight devices."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  run(workdir, 1, long())
  return workdir


@pytest.mark.pod
@pytest.mark.parametrize("count", [2, 4])
def test_twenty_steps_are_those_of_one_process(whole, tmp_path, count):
  run(tmp_path / "run", count, long())
  same(whole, tmp_path / "run")
  compilations = [line["time/compilations"] for line in metrics.read(tmp_path / "run")[1:]]
  assert compilations[2] == compilations[-1], compilations


@pytest.mark.pod
@pytest.mark.parametrize(
  "count, data, fsdp, tensor", [(2, 2, 4, 1), (2, 1, 4, 2), (4, 2, 2, 2), (4, 1, 8, 1)]
)
def test_a_shard_of_the_data_axis_may_span_processes(tmp_path, count, data, fsdp, tensor):
  meshes = {"mesh.fsdp": fsdp, "mesh.tensor": tensor}
  configs = [small(**(ADAPTIVE | meshes | {"num_steps": 4, "eval.period": 2})) for _ in range(2)]
  for config in configs:
    config.mesh.data = data
  run(tmp_path / "one", 1, configs[0])
  run(tmp_path / "run", count, configs[1])
  same(tmp_path / "one", tmp_path / "run")


@pytest.mark.pod
@pytest.mark.parametrize("name", ["neyman", "dapo", "collect", "kl"])
def test_other_kinds_of_runs(tmp_path, name):
  keys = {
    "neyman": {
      "budget.rule": "neyman",
      "budget.k_init": 2,
      "budget.k_max": 8,
      "budgets.neyman.k_mean": 4,
      "baseline": "ewa",
    },
    "dapo": {"budget.max_resample": 1},
    "collect": {
      "observe": (*default.get_config().observe, "pairs"),
      "loss.old_logprob": "recompute",
      "loss.correction": "icepop",
      "selection.pool": 2,
    },
    "kl": {"loss.kl_coef": 0.1, "loss.epochs": 2, "loss.surrogate": "gspo"},
  }[name]
  one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"  # pairs have their workdir's name
  for count, workdir in enumerate((one, two), 1):
    workdir.parent.mkdir()
    run(workdir, count, small(num_steps=3, **keys))
  same(one, two)
  if name == "collect":
    pairs = lambda workdir: [file.read_text() for file in sorted((workdir / "pairs").iterdir())]
    assert pairs(one) == pairs(two)


@pytest.mark.pod
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_which_name_it_and_the_run_goes_on(whole, tmp_path, victim):
  workdir = tmp_path / "run"
  with Together(workdir, 2, long()) as together:
    together.until_line(8)
    together.processes[victim].kill()
    log = together.until_ended(1 - victim)
    assert together.processes[1 - victim].returncode != 0
    assert f"error: process {victim} of 2" in log and "is lost" in log, log[-3000:]
    assert "the run continues from its last checkpoint" in log
  assert 5 <= len(metrics.read(workdir)) < 21
  run(workdir, 2, long())
  same(whole, workdir)


KILLER = """
import os, signal, threading
import jax
from v05_jax.observers.base import Observer

flushes = []

def at_save(options, setting):
  def flush():  # which comes before each checkpoint
    flushes.append(1)
    if jax.process_index() == {victim} and len(flushes) == {when}:
      threading.Timer({after}, os.kill, (os.getpid(), signal.SIGKILL)).start()
  return Observer(lambda state, step: (state, {{}}), flush=flush)
"""


@pytest.mark.pod
@pytest.mark.parametrize("victim, when, after", [(1, 1, 0), (1, 2, 0), (1, 2, 0.05), (0, 2, 0.02)])
def test_a_process_that_is_lost_while_the_other_saves_is_named(tmp_path, victim, when, after):
  (tmp_path / "killer.py").write_text(KILLER.format(victim=victim, when=when, after=after))
  config = small(num_steps=6, **{"eval.period": 0, "checkpoint.period": 1})
  config.observe = (*config.observe, "killer:at_save")
  path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
  with Together(tmp_path / "run", 2, config, env={0: path, 1: path}) as together:
    log = together.until_ended(1 - victim)
  assert f"error: process {victim} of 2" in log and "is lost" in log, log[-3000:]
  assert "could not be written" not in log and "Traceback" not in log, log[-3000:]


@pytest.mark.pod
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_is_lost_too(tmp_path, victim):
  with Together(tmp_path / "run", 2, long()) as together:
    together.until_line(3)
    together.processes[victim].send_signal(signal.SIGSTOP)
    log = together.until_ended(1 - victim)
    assert re.search(f"error: process {victim} of 2.* is lost", log), log[-3000:]


@pytest.mark.pod
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_stops_both_after_the_same_step_and_any_number_goes_on(
  whole, tmp_path, told
):
  workdir = tmp_path / "run"
  with Together(workdir, 2, long()) as together:
    together.until_line(4)
    together.processes[told].send_signal(signal.SIGTERM)
    assert together.wait() == [1, 1]
    ends = [together.log(i).strip().splitlines()[-1] for i in range(2)]
    assert ends[0] == ends[1] and ends[0].startswith("stopped by a signal; saved at step"), ends
    step = checkpoint.Checkpoints(workdir, 1).latest()
    assert f"saved at step {step}," in ends[0] and len(metrics.read(workdir)) == step + 1
  run(workdir, 1, long(), "--config.num_steps=10")
  config = long()
  config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})  # and another mesh
  run(workdir, 4, config)
  same(whole, workdir, mesh=False)


@pytest.mark.pod
def test_evaluation_is_that_of_one_process(whole, tmp_path):
  for workdir, count in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(whole / "checkpoints")
    run(workdir, count, long(), mode="eval")
  one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("one", "two"))
  assert one["step"] == 20 and one.keys() == two.keys()
  for name, value in one.items():
    assert value == (two[name] if name == "intervals" else pytest.approx(two[name], abs=1e-5)), name
  assert (tmp_path / "one" / "eval.md").read_text() == (tmp_path / "two" / "eval.md").read_text()


@pytest.mark.pod
@pytest.mark.parametrize(
  "config, own, message",
  [
    ({"mesh.fsdp": 3}, (), r"config.mesh.data=8, .*: found 8 devices, expected 24"),
    ({}, (["--config.seed=1"], []), r"the config: process 1 of 2 differs from process 0 in seed, "),
    (
      {},
      ([], ["--config.cpu_devices=2"]),
      r"the processes have 4, 2 devices, expected as many in each",
    ),
    (
      {},
      ([], ["--workdir={}"]),
      r"process 1 of 2 does not see what process 0 writes there, expected a folder",
    ),
    (
      {},
      (["--mode=sft"], ["--mode=sft"]),
      r"--mode=sft runs in one process; of several: train and eval",
    ),
  ],
  ids=lambda x: "" if isinstance(x, (dict, tuple)) else x[:30],
)
def test_bad_input_ends_all_processes_with_one_clear_error(tmp_path, config, own, message):
  own = [[flag.format(tmp_path / "elsewhere") for flag in flags] for flags in own]
  with Together(tmp_path / "run", 2, small(**config), own=own) as together:
    codes = together.wait()
  assert codes == [1, 1], codes
  for i in range(2):
    assert re.search(message, together.log(i)) and "Traceback" not in together.log(i), together.log(
      i
    )[-3000:]


@pytest.mark.pod
def test_a_process_too_many_is_refused_and_the_others_go_on(tmp_path):
  """While the others are awaited and once they have begun; it listens at its address alone."""
  config = small(num_steps=4000, **{"eval.period": 0})  # until both that are too many have come
  own = [[f"{FLAGS[1]}=2", f"{FLAGS[2]}={number}"] for number in (0, 1, 1, 0)]
  config.mesh.data = 4
  with Together(tmp_path / "run", 4, config, own=own) as together:
    together.until(lambda: len(together.going()) <= 2)
    going = together.going()
    for i in {0, 1, 2, 3} - set(going):
      log = together.until_ended(i)
      assert together.processes[i].returncode == 1 and "Traceback" not in log, log[-3000:]
      assert re.search(
        rf"error: process {int(i in (1, 2))} of 2 at {together.address}: "
        r"(--process_id=.: pid \d+ on .* has this number already|a run has begun there)",
        log,
      ), log[-3000:]
    host, port = together.address.split(":")
    together.until_line(1)
    with socket.create_connection((host, int(port)), LIMIT):
      pass
    with pytest.raises(OSError):
      socket.create_connection(("127.0.0.2", int(port)), LIMIT)
    together.processes[going[0]].send_signal(signal.SIGTERM)
    for i in going:
      assert "stopped by a signal; saved at step" in together.until_ended(i), together.log(i)


@pytest.mark.pod
def test_other_code_is_named(tmp_path):
  config = default.get_config()
  config.update_from_flattened_dict(OWN_INPUT | {"reward": "mine:score"})
  env = {}
  for i in range(2):
    (folder := tmp_path / str(i)).mkdir()
    (folder / "mine.py").write_text(f"def score(prompt, response, row):\n  return {i / 2}\n")
    env[i] = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
  with Together(tmp_path / "run", 2, config, env=env) as together:
    assert together.wait() == [1, 1]
  for i in range(2):
    message = "error: the code: process 1 of 2 differs from process 0 in mine:score, expected the"
    assert message in together.log(i), together.log(i)[-3000:]


@pytest.mark.pod
def test_each_response_is_verified_by_one_process(tmp_path, monkeypatch):
  monkeypatch.setenv("V05_NOTES", str(tmp_path))
  config = default.get_config()
  config.update_from_flattened_dict(
    OWN_INPUT | {"reward": "own_reward:noted", "num_steps": 2, "eval.period": 0}
  )
  run(tmp_path / "run", 2, config)
  notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
  assert len(notes) == metrics.read(tmp_path / "run")[-1]["rollouts"] == 32
  assert len({note["of"] for note in notes}) == 2


@pytest.mark.pod
def test_processes_that_do_not_agree_in_the_last_digit_go_on_with_those_of_the_first(
  tmp_path, monkeypatch
):
  """As GPUs may not, which choose their kernels by timing them. Here they differ in the first."""
  monkeypatch.setenv("V05_NOTES", str(tmp_path))
  plugs = {"prior.kind": "own_prior:inexact", "observe": ("own_prior:told",)}
  run(tmp_path / "run", 2, small(num_steps=3, **(plugs | {"eval.period": 0})))
  assert len(metrics.read(tmp_path / "run")) == 3
  one, other = (tmp_path / f"told.{i}" for i in range(2))
  assert one.read_text() == other.read_text() and len(one.read_text().splitlines()) == 3
  value, advantage, _ = json.loads(one.read_text().splitlines()[0])
  assert value[0] == 0.0 and any(map(any, advantage))


@pytest.mark.pod
def test_a_reward_that_always_fails_stops_all_processes_and_the_state_is_saved(tmp_path):
  """From the second step on: each process has verdicts of its own, and all stop after one step."""
  (tmp_path / "failing_reward.py").write_text(
    "import os\n"
    "def score(prompt, response, row):\n"
    f"  return row['label'] if os.path.exists({str(tmp_path / 'broken')!r}) else 1.0\n"
  )
  config = default.get_config()
  keys = {"reward": "failing_reward:score", "eval.period": 0, "num_steps": 4000}
  config.update_from_flattened_dict(OWN_INPUT | keys | {"checkpoint.period": 0})
  path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
  with Together(tmp_path / "run", 2, config, env={0: path, 1: path}) as together:
    together.until_line(1)
    (tmp_path / "broken").touch()
    assert together.wait() == [1, 1]
  done = len(metrics.read(tmp_path / "run"))
  said = "\n".join(together.log(i) for i in range(2))
  assert "KeyError: 'label'" in said and f"the state after step {done}" in said, said[-3000:]
  assert (tmp_path / "run" / "checkpoints" / str(done)).is_dir()


@pytest.mark.pod
def test_an_error_of_one_process_ends_all(tmp_path):
  config = default.get_config()
  config.update_from_flattened_dict(OWN_INPUT | {"reward": "own_reward:brief"})
  with Together(tmp_path / "run", 2, config, env={1: {"PYTHONPATH": str(ROOT)}}) as together:
    assert together.wait() == [1, 1]
  assert "error: config.reward = 'own_reward:brief'" in together.log(1)
  assert (
    "error: process 1 of 2 has stopped: ValueError: config.reward = 'own_reward:brief'"
    in together.log(0)
  )


def test_one_process_asks_nobody(monkeypatch):
  def fail(*_):
    raise AssertionError("a collective of one process")

  for name in ("process_allgather", "sync_global_devices", "broadcast_one_to_all"):
    monkeypatch.setattr(distributed.multihost_utils, name, fail)
  monkeypatch.setattr(distributed, "replicate", fail)
  assert distributed.first() and not distributed.several() and all(map(distributed.owner, range(3)))
  assert (
    distributed.anywhere(True) and not distributed.anywhere(False) and distributed.of_first(7) == 7
  )
  tree = {"x": object()}
  assert distributed.from_first(tree) is tree
  distributed.barrier("here")
  distributed.check_same("this", fail)
  mesh = sharding.make_mesh(default.get_config().mesh)
  distributed.connect(mesh)
  x = np.arange(8.0)
  placed = distributed.put({"x": x}, sharding.replicated(mesh))
  np.testing.assert_array_equal(distributed.fetch(placed)["x"], x)


def test_process_0s_arrays_are_sent_whole(monkeypatch):
  monkeypatch.setattr(distributed, "several", lambda: True)
  sent = []
  monkeypatch.setattr(
    distributed.multihost_utils, "broadcast_one_to_all", lambda x: sent.append(x) or x.copy()
  )
  tree = {
    "value": jnp.array([np.nan, -0.5, np.inf], jnp.float32),
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "rows": np.arange(4, dtype=np.int64).reshape(2, 2),
    "flag": np.bool_(True),
    "none": np.zeros((0, 3), np.float32),
    "said": (0.25, 3),
  }
  told = distributed.as_first(lambda x, y: (x, y))(tree, ())
  (array,) = sent
  assert array.dtype == np.uint8 and array.ndim == 1
  assert told[1] == () and jax.tree.structure(told[0]) == jax.tree.structure(tree)
  for x, y in zip(jax.tree.leaves(told[0]), map(np.asarray, jax.tree.leaves(tree)), strict=True):
    assert isinstance(x, np.ndarray) and x.dtype == y.dtype and x.flags.writeable
    np.testing.assert_array_equal(x, y)
  assert distributed.from_first(()) == ()


GIVEN = ("localhost:1234", 2, 1)


def test_the_place_of_a_process_is_said_by_flags_or_by_the_environment():
  env = {"JAX_COORDINATOR_ADDRESS": "[::1]:80", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
  assert peers.find(None, None, None, False, {}) is None
  assert peers.find(*GIVEN, False, {}) == GIVEN
  assert peers.find(None, None, None, False, env) == ("[::1]:80", 4, 0)
  assert peers.find(None, None, 3, False, env) == ("[::1]:80", 4, 3)
  assert peers.find(None, None, None, True, env) == (None, None, None)


@pytest.mark.parametrize(
  "given, env, message",
  [
    (
      (*GIVEN[:2], None, False),
      {},
      r"found no --process_id: expected all three of .* or --distributed alone",
    ),
    ((None, 2, None, False), {}, r"found no --coordinator and no --process_id: "),
    (
      (None, None, None, False),
      {"JAX_COORDINATOR_ADDRESS": "a:1"},
      r"no --num_processes and no --process_id.*JAX_NUM",
    ),
    ((*GIVEN, True), {}, r"--distributed beside --coordinator, --num_processes, --process_id"),
    (("localhost", 2, 0, False), {}, r"--coordinator=localhost: expected HOST:PORT"),
    (("a:1", 0, 0, False), {}, r"--num_processes=0: expected at least 1"),
    *(
      ((address, 2, 0, False), {}, r"--coordinator=.*: expected HOST:PORT, .*\[::1\]:1234")
      for address in (
        *("::1", "::1:1234", "[::1]", "[::1:1", "::1]:1", "[]:1", "[a]:1", "http://a:1", "a b:1"),
        *("a:0", "a:", ":1", "", "a:1/x", " a:1", "a:\uff11", "a,b:1", "*:1", "a:-1", "a:123456"),
      )
    ),
    (("localhost:99999", 2, 0, False), {}, r"--coordinator=localhost:99999: expected HOST:PORT"),
    (("a:1", 2, 2, False), {}, r"--process_id=2: expected 0 to 1, since --num_processes=2"),
    (
      ("a:1", None, 0, False),
      {"JAX_NUM_PROCESSES": "two"},
      r"JAX_NUM_PROCESSES='two': expected a whole number",
    ),
  ],
)
def test_half_a_place_is_one_clear_error(given, env, message):
  with pytest.raises(ValueError, match=message):
    peers.find(*given, env)


@pytest.mark.parametrize(
  "host", ["localhost", "10.0.0.1", "a-b.c_d.org", "[::1]", "[fe80::1%eth0]"]
)
def test_hosts_that_a_coordinator_may_have(host):
  assert peers.find(f"{host}:1234", 2, 1, False, {}) == (f"{host}:1234", 2, 1)
