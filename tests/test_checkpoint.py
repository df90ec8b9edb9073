import json
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from v05_jax import config as configuration
from v05_jax import history
from v05_jax.configs import default, own
from v05_jax.estimators import ewa
from v05_jax.observers import scoreboard
from v05_jax.priors import fallback
from v05_jax.run import checkpoint, leaves, workdirs
from v05_jax.scale import distributed
from v05_jax.structs import Context, TrainState
from v05_jax.update import replay

ROOT = pathlib.Path(__file__).parents[1]
SCHEDULE = optax.linear_schedule(1e-3, 0.0, 100)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE))


def new_state(width=16, features=8, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  layers = {"q": draw(2, width, width), "norm": draw(2, width)}
  params = {"embedding": draw(32, width), "layers": layers}
  zero = np.zeros((), np.int32)
  record = lambda width: Context(draw(64, width), draw(64), draw(64), jnp.int32(7))
  drift = fallback.Drift(np.int32(3), np.bool_(True))
  learnt = {"rloo": (), "ewa": ewa.EWA(draw(8), draw(30))}
  board = scoreboard.Scores(learnt, scoreboard.Board(draw(), draw(2), draw(2)))
  return TrainState(
    params=params,
    opt_state=OPTIMIZER.init(params),
    step=zero,
    cursor=zero,
    rollouts=zero,
    mean_k=np.float32(4),
    skipped=zero,
    prior={"neighbours": record(features), "fallback": fallback.Fallback(record(1), drift)},
    budget={"neyman": jax.tree.map(lambda x: x + 2, ewa.ewa_init())},
    estimator={"spo": jax.tree.map(lambda x: x + 1, history.empty(5))},
    observers={"scoreboard": board, "exact": ()},
    replay={"buffer": replay.Buffer(*(draw(6) for _ in replay.Buffer._fields))},
  )


@jax.jit
def train(state):
  grads = jax.tree.map(lambda x: jnp.sin(x * 7), state.params)
  updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = state.replace(step=state.step + 1, cursor=state.cursor + 64)
  return state.replace(params=params, opt_state=opt_state)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert x.dtype == y.dtype


def test_a_restored_run_is_the_unbroken_one_bit_for_bit(tmp_path):
  state = new_state()
  with checkpoint.Checkpoints(tmp_path / "run", 2) as saved:
    assert saved.latest() is None and not (tmp_path / "run").exists()
    for step in range(1, 4):
      state = train(state)
      saved.save(step, state)
  with checkpoint.Checkpoints(tmp_path / "run", 2) as saved:
    assert saved.latest() == 3
    restored = saved.restore(3, new_state(seed=1))
    same(restored, state)
    example = leaves.outline(new_state(seed=1))
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(example.params))
    same(saved.restore(3, example), state)
    same(train(restored), train(state))
    assert int(saved.restore(2, new_state()).step) == 2
  assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "3"]


def test_of_one_accelerator_arrays_are_saved_from_where_they_are(tmp_path, monkeypatch):
  """Orbax fetches one after another, where all at once may be more than the host holds."""
  monkeypatch.setattr(leaves, "alone", lambda devices: len(devices) == 1)
  state = train(new_state())
  kept = [leaves.saveable(x) for x in jax.tree.leaves(state.params)]
  assert all(isinstance(x, jax.Array) for x in kept)
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    saved.save(1, state)
    same(saved.restore(1, leaves.outline(new_state(seed=1))), state)


def test_processes_take_the_newest_checkpoint_that_process_0_sees(tmp_path, monkeypatch):
  """Another may look later, when a run that goes on has saved once more."""
  with checkpoint.Checkpoints(tmp_path, 3) as saved:
    for step in (1, 2, 3):
      saved.save(step, new_state())
    newest = {"of process 0": 2}
    of_first = lambda value: value if isinstance(value, bool) else newest["of process 0"]
    monkeypatch.setattr(distributed, "of_first", of_first)
    assert saved.steps() == [1, 2] and saved.latest() == 2
    newest["of process 0"] = 4  # not seen here yet
    with pytest.raises(ValueError, match=r"checkpoints/4: found it in process 0 and not in every"):
      saved.latest()


def test_arrays_without_elements(tmp_path):
  state = new_state(features=0)
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    saved.save(1, state)
    same(saved.restore(1, new_state(features=0, seed=1)), state)


def test_restored_onto_the_shardings_of_the_example(tmp_path):
  def place(x, devices, *spec):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("x",))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return {"q": put(x, *spec), "step": put(jnp.int32(x[0, 0]))}

  x = np.arange(128, dtype=np.float32).reshape(8, 16)
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    saved.save(1, place(x + 1, 8, None, "x"))
    for example in (place(x, 4, "x"), place(x, 1), {"q": jnp.zeros((8, 16)), "step": jnp.int32(0)}):
      restored = saved.restore(1, example)
      same(restored, {"q": x + 1, "step": np.int32(1)})
      assert restored["q"].sharding == example["q"].sharding


def test_another_architecture_is_named(tmp_path):
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    saved.save(1, new_state(width=16))
    with pytest.raises(ValueError, match="does not fit") as error:
      saved.restore(1, new_state(width=24))
    text = str(error.value)
    assert f"{tmp_path}/checkpoints/1" in text and "and 3 more" in text
    assert "params.embedding: found float32[32,16], expected float32[32,24]" in text

    example = new_state()
    params = {**example.params, "head": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"params.head: found nothing, expected float32\[3\]"):
      saved.restore(1, example.replace(params=params))
    params = {"layers": example.params["layers"]}
    with pytest.raises(ValueError, match=r"embedding: found float32\[32,16\], expected nothing"):
      saved.restore(1, example.replace(params=params))
    sgd = example.replace(opt_state=optax.sgd(0.1).init(example.params))
    with pytest.raises(ValueError, match=r"opt_state.1.0.mu.embedding: .* expected nothing"):
      saved.restore(1, sgd)


def test_what_a_new_plug_has_learnt_starts_empty_and_the_log_says_so(tmp_path, caplog):
  """An observer that is named from now on, and one of a plug's fields that has no leaves."""
  state, example = new_state(), new_state(seed=1)
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    saved.save(1, state.replace(observers={"exact": ()}))
    with caplog.at_level(logging.WARNING):
      restored = saved.restore(1, example)
  (said,) = (x.getMessage() for x in caplog.records if "start" in x.getMessage())
  assert said == (
    f"checkpoint {tmp_path}/checkpoints/1 has nothing of observers.scoreboard, which start empty"
  )
  same(restored.observers, example.observers)
  same(restored.replace(observers={}), state.replace(observers={}))


def test_what_a_plug_had_learnt_that_is_no_longer_named_is_dropped(tmp_path, caplog):
  state = new_state()
  example = new_state(seed=1).replace(observers={"exact": ()})
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    saved.save(1, state)
    with caplog.at_level(logging.WARNING):
      restored = saved.restore(1, example)
    same(restored, state.replace(observers={"exact": ()}))
    assert not caplog.records
    saved.save(2, restored)  # and it is gone
    assert "observers" not in " ".join(leaves.named(restored))
    same(saved.restore(2, example), restored)


def test_a_plug_whose_state_has_another_form_is_named(tmp_path):
  state = new_state()
  board = state.observers["scoreboard"].board
  more = scoreboard.Board(board.count, jnp.zeros(3), jnp.zeros(3))
  scores = scoreboard.Scores(state.observers["scoreboard"].learnt, more)
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    saved.save(1, state)
    with pytest.raises(ValueError, match=r"scoreboard.*mean: found float32\[2\], expected float32"):
      saved.restore(1, state.replace(observers={"scoreboard": scores}))


@pytest.mark.parametrize("field", ["context.success", "drift.streak", "estimator.board.mean"])
def test_a_checkpoint_of_the_old_form_is_refused(tmp_path, field):
  """As versions before the plugs wrote them: context, drift and the board had fields of their
  own."""
  state = new_state()
  arrays = leaves.named(state.replace(prior={}, budget={}, estimator={}, observers={}))
  old = {name: np.asarray(x) for name, x in arrays.items()} | {field: np.zeros(4, np.float32)}
  handler = ocp.StandardCheckpointHandler()
  with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=handler) as manager:
    manager.save(3, args=ocp.args.StandardSave(old))
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    assert saved.latest() == 3
    with pytest.raises(ValueError) as error:
      saved.restore(3, state)
  text = str(error.value)
  assert text.startswith(f"checkpoint {tmp_path}/checkpoints/3 was written by a version of v05_jax")
  assert "start in a new workdir, or export it with that version" in text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
@pytest.mark.parametrize("damage", ["data", "metadata"])
def test_an_unreadable_checkpoint_names_the_one_before(tmp_path, damage):
  state = new_state()
  with checkpoint.Checkpoints(tmp_path, 3) as saved:
    saved.save(1, state)
    saved.save(2, state)
  folder = tmp_path / "checkpoints" / "2" / "default"
  for file in (folder / "_METADATA",) if damage == "metadata" else folder.rglob("d/*"):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with checkpoint.Checkpoints(tmp_path, 3) as saved:
    with pytest.raises(ValueError, match=r"checkpoints/2 cannot be read; .* goes on from step 1"):
      saved.restore(2, state)
    same(saved.restore(1, new_state(seed=1)), state)


WRITER = """
import sys
import jax.numpy as jnp
from v05_jax.run import checkpoint
with checkpoint.Checkpoints(sys.argv[1] + "/run", 2) as saved:
  first = (saved.latest() or 0) + 1
  for step in range(first, 10_000):
    saved.save(step, {"x": jnp.full((200, 100), step), "y": [jnp.int32(step)] * 8})
    open(sys.argv[1] + "/done", "w").write(str(step))
"""


def test_killed_at_any_moment_leaves_the_last_checkpoint(tmp_path):
  """A stopped process leaves on disk what a killed one leaves: one process, many moments."""
  source = tmp_path / "source"
  source.mkdir()
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.Popen([sys.executable, "-c", WRITER, str(source)], env=environment)
  draw, unfinished = random.Random(0), 0
  example = {"x": jnp.zeros((200, 100), jnp.int32), "y": [jnp.int32(0)] * 8}
  try:
    while not (source / "done").exists():
      assert process.poll() is None
      time.sleep(0.05)
    for moment in range(8):
      time.sleep(draw.uniform(0.0, 0.25))
      process.send_signal(signal.SIGSTOP)
      os.waitpid(process.pid, os.WUNTRACED)
      copy = tmp_path / f"copy{moment}"
      shutil.copytree(source, copy)
      process.send_signal(signal.SIGCONT)
      names = [p.name for p in (copy / "run" / "checkpoints").iterdir()]
      unfinished += any(checkpoint.UNFINISHED in name for name in names)
      with checkpoint.Checkpoints(copy / "run", 2) as saved:
        latest = saved.latest()
        assert latest >= int((copy / "done").read_text() or 0)
        restored = saved.restore(latest, example)
        assert all((np.asarray(x) == latest).all() for x in jax.tree.leaves(restored))
        saved.save(latest + 1, restored)  # goes on where it was killed
      left = sorted(int(p.name) for p in (copy / "run" / "checkpoints").iterdir())
      assert left == [latest, latest + 1]
  finally:
    process.kill()
    process.wait()
  assert unfinished  # some of the moments were inside a save


def test_a_failed_write_keeps_the_last_checkpoint(tmp_path):
  small, large = new_state(), {"x": jax.random.normal(jax.random.key(0), (1 << 20,))}
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    saved.save(1, small)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
      message = r"checkpoints/2 could not be written: .*; it needs about 4.2 MB, .* of step 1$"
      with pytest.raises(ValueError, match=message):
        saved.save(2, large)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    same(saved.restore(1, new_state(seed=1)), small)
    saved.save(2, small)
    assert saved.latest() == 2


def test_a_full_disk(tmp_path, small_disk):
  disk = small_disk(tmp_path / "disk", 2048)
  with checkpoint.Checkpoints(disk / "run", 1) as saved:
    saved.save(1, new_state())
    with pytest.raises(ValueError, match=r"could not be written: the disk is full; .* of step 1"):
      saved.save(2, {"x": jax.random.normal(jax.random.key(0), (1 << 20,))})
    same(saved.restore(1, new_state(seed=1)), new_state())


def test_the_config_of_a_resumed_run(tmp_path):
  config = default.get_config()
  checkpoint.check_config(tmp_path, config)  # an empty workdir
  (tmp_path / "config.json").write_text(configuration.to_json(config))
  config.num_steps, config.eval.period, config.checkpoint.period = 7, 3, 1
  config.observe = ("exact", "scoreboard")
  checkpoint.check_config(tmp_path, config)
  config.optimizer.learning_rate, config.budget.k_max = 0.5, 12
  config.priors.own = {"rate": 0.5}
  begun = {"step": 0, "rollouts": 0}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(begun) + "\n")
  checkpoint.check_config(tmp_path, config)  # nothing has been trained: a mistake may be mended
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  with pytest.raises(ValueError, match=str(tmp_path)) as error:
    checkpoint.check_config(tmp_path, config)
  text = str(error.value)
  assert "optimizer.learning_rate: found 0.5, expected 0.0012" in text
  assert "budget.k_max: found 12, expected 4" in text
  assert "num_steps" not in text and "observe" not in text
  assert "priors.own.rate: found 0.5, expected nothing" in text
  (tmp_path / "checkpoints" / "3").rmdir()
  (tmp_path / "metrics.jsonl").write_text(json.dumps(begun | {"step": 1}) + "\n")
  with pytest.raises(ValueError, match="holds a run of another config"):
    checkpoint.check_config(tmp_path, config)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config.json, line 1"):
    checkpoint.check_config(tmp_path, config)


def test_sizes_of_a_run_that_has_trained_nothing_are_chosen_anew(tmp_path):
  config, kept = own.get_config(), own.get_config()
  kept.sampler.slots = 3
  (tmp_path / "config.json").write_text(configuration.to_json(kept))
  assert workdirs.continued(config, str(tmp_path)).sampler.slots == 0
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  assert workdirs.continued(config, str(tmp_path)).sampler.slots == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number):
  found = signal.getsignal(number)
  # A shell's background jobs ignore Ctrl-C: begin from Python's own handlers.
  before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
  signal.signal(number, before)
  with checkpoint.Preemption() as preemption:
    assert not preemption.requested
    os.kill(os.getpid(), number)
    assert preemption.requested
    if number == signal.SIGINT:
      with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(1)
    else:
      os.kill(os.getpid(), number)
  assert signal.getsignal(number) == before
  signal.signal(number, found)


def test_signals_are_left_alone_in_other_threads():
  entered = []

  def work():
    with checkpoint.Preemption() as preemption:
      entered.append(preemption.requested)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert entered == [False]
