"""The loop end to end on the built-in tasks: what it writes, that it resumes bit for bit, that it
compiles once."""

import json
import os
import pathlib
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from tests import attack_kills
from v05_jax import config as configuration
from v05_jax import data, history, main, models, rewards
from v05_jax.configs import dapo, default, demo, ewa, grpo, own, rloo, spo, v05
from v05_jax.estimators import ewa as experts
from v05_jax.models import hf
from v05_jax.observers import scoreboard
from v05_jax.priors import context as contexts
from v05_jax.run import checkpoint, export, leaves, lock, metrics, workdirs
from v05_jax.sampling import draw as drawing
from v05_jax.sampling import verdicts
from v05_jax.setup import setup
from v05_jax.train import Housekeeping, train
from v05_jax.value_model import convert, v0

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("few_devices")


LONG = pytest.mark.long  # `make test-long`


def small(config=None, **keys):
  """A run of seconds: the shipped policy, 32 rollouts a step, everything switched on."""
  c = default.get_config() if config is None else config
  c.observe = (*c.observe, "scoreboard") if config is None else c.observe
  c.num_steps, c.rollouts_per_step, c.data.size, c.mesh.data = 4, 32, 256, 2
  c.sampler.update({"slots": 16, "open_prompts": 8, "prefill": 8, "chunk": 4})
  c.eval.update({"period": 2, "size": 24, "samples": 2})
  c.prior.update({"context": 32, "min_support": 8} if c.prior.kind != "none" else {})
  c.loss.micro_rows, c.checkpoint.period = 16, 2
  c.budget.max_resample = min(c.budget.max_resample, 1)
  c.update_from_flattened_dict(keys)
  return c


def lines(workdir):
  """metrics.jsonl without what may differ between two runs of the same seed."""
  return [
    {k: v for k, v in line.items() if not k.startswith("time/")} for line in metrics.read(workdir)
  ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  return workdir, train(small(), str(workdir))


def at_step_2(workdir, folder):
  """A copy in `folder` of a run of four steps, whose newest checkpoint is of the second."""
  shutil.copytree(workdir, folder / "run")
  shutil.rmtree(folder / "run" / "checkpoints" / "4")
  return folder / "run"


def test_a_run_writes_its_metrics_config_checkpoint_and_plot(unbroken):
  workdir, state = unbroken
  written = metrics.read(workdir)
  assert [line["step"] for line in written] == [0, 1, 2, 3, 4]
  assert [line["rollouts"] for line in written] == [0, 32, 64, 96, 128]
  assert (
    int(state.step) == 4 and int(state.cursor) == 32 and int(state.prior["neighbours"].count) == 32
  )
  train_names = {
    "reward",
    "accuracy",
    "k/mean",
    "prior/accepted",
    "prior/abs_error",
    "shrinkage/weight",
    "shrinkage/estimated_mse",
    "shrinkage/true_mse",
    "scoreboard/ewa/sq_adv",
    "scoreboard/rloo/difference",
    "scoreboard/spo/standard_error",
    "grad/norm",
    "loss/entropy",
    "loss/logprob_gap",
    "loss/clip_fraction",
    "sampler/utilisation",
    "time/tokens_per_second",
    "time/compilations",
  }
  assert all(train_names <= line.keys() for line in written[1:])
  assert all(("eval/accuracy" in line) == (line["step"] % 2 == 0) for line in written)
  # support of 8 by then
  assert written[1]["prior/accepted"] is None and written[3]["prior/accepted"] is not None
  assert all(line["loss/logprob_gap"] < 1e-4 for line in written[1:])  # sampler and trainer agree
  assert (workdir / "summary.png").stat().st_size > 10_000
  assert json.loads((workdir / "config.json").read_text())["seed"] == 0
  assert list((workdir / "tensorboard").iterdir())
  assert checkpoint.Checkpoints(workdir, 2).latest() == 4


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(unbroken, tmp_path):
  workdir, state = unbroken
  run = at_step_2(workdir, tmp_path)
  written = (run / "metrics.jsonl").read_text().splitlines(True)
  # Written after the checkpoint, then killed.
  more = ['{"step": 3, "rollouts": 96, "reward": 0.5}\n', '{"step": 4, "ro']
  (run / "metrics.jsonl").write_text("".join([*written[:3], *more]))
  resumed = train(small(), str(run))
  assert lines(run) == lines(workdir)
  for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_evaluation_that_has_failed_is_made_up_for(unbroken, tmp_path):
  """The last one: its step has a checkpoint and a line, which lacks what was evaluated."""
  workdir, _ = unbroken
  shutil.copytree(workdir, tmp_path / "run")
  *before, last = metrics.read(workdir)
  there = {name: value for name, value in last.items() if not name.startswith("eval/")}
  assert there != last
  written = [json.dumps(line) + "\n" for line in (*before, there)]
  (tmp_path / "run" / "metrics.jsonl").write_text("".join(written))
  train(small(), str(tmp_path / "run"))
  assert metrics.read(tmp_path / "run") == [*before, last]


def test_a_run_with_v0_as_its_prior_resumes_bit_for_bit(tmp_path):
  """The prior in full, with random weights: text to features, the run's own context, the head's
  prediction."""
  data, v0 = ROOT / "tests" / "data" / "v0", str(tmp_path / "v0")
  convert.convert(
    str(data / "v0_checkpoint.pt"),
    str(data / "tabpfn-v2.5-tiny.ckpt"),
    str(data / "backbone"),
    v0,
    heads=3,
    table="torch",
  )
  keys = {"prior.kind": "v0", "priors.v0.path": v0, "data.size": 24, "eval.period": 0}
  config = small(**keys)
  train(config, str(tmp_path / "whole"))
  parts = at_step_2(tmp_path / "whole", tmp_path)
  train(config, str(parts))
  written = metrics.read(tmp_path / "whole")
  assert written[0]["prior/accepted"] is None and 0 <= written[3]["prior/accepted"] <= 1
  smoothed = [line["prior/smoothed"] for line in written]
  assert smoothed[0] == 0 and set(smoothed) <= {0, 1}
  assert written[-1]["data/epoch"] > 1  # prompts seen before, whose features are kept
  assert lines(parts) == lines(tmp_path / "whole")


@pytest.mark.parametrize(
  "old, correction", [("sampler", "none"), ("recompute", "none"), ("recompute", "icepop")]
)
def test_recomputed_logprobs_take_the_place_of_a_sampler_that_is_off(
  old, correction, monkeypatch, tmp_path
):
  """A sampler whose log-probs are too low by 0.5: the gap is seen either way, the ratio is right
  where recomputed, and IcePop leaves out every token whose ratio to the sampler is beyond 1.2."""

  def off(*arguments):
    drawn = draw(*arguments)
    rolls = drawn.taken.rolls
    rolls = rolls.replace(logprob=rolls.logprob - np.float32(0.5))
    return drawn._replace(taken=drawn.taken._replace(rolls=rolls))

  draw = drawing.draw
  monkeypatch.setattr("v05_jax.train.draw", off)
  train(
    small(
      num_steps=1,
      observe=("diagnostics",),
      **{"loss.old_logprob": old, "loss.minibatches": 1, "eval.period": 0},
      **{"loss.correction": correction, "loss.correction_high": 1.2},
    ),
    str(tmp_path),
  )
  (line,) = metrics.read(tmp_path)
  assert line["loss/logprob_gap"] == pytest.approx(0.5, abs=1e-3)
  assert line["loss/clip_fraction"] == 0 if old == "recompute" else line["loss/clip_fraction"] > 0.1
  assert line["grad/norm"] == 0 if correction == "icepop" else line["grad/norm"] > 0


def test_another_seed_is_another_run(unbroken, tmp_path):
  train(small(seed=1, num_steps=1), str(tmp_path))
  assert lines(tmp_path)[1] != lines(unbroken[0])[1]


def test_a_workdir_of_another_config_is_refused(unbroken):
  with pytest.raises(ValueError, match=r"optimizer\.learning_rate: found 0\.5, expected 0\.0012"):
    train(small(**{"optimizer.learning_rate": 0.5}), str(unbroken[0]))


def test_a_workdir_that_another_run_is_in_is_refused(tmp_path):
  with lock.Lock(tmp_path), pytest.raises(ValueError, match=f"the run of process {os.getpid()} on"):
    train(small(), str(tmp_path))
  assert {p.name for p in tmp_path.iterdir()} == {lock.LOCK}  # before anything is written


@pytest.mark.parametrize("key", ["data.path", "eval.path"])
def test_other_rows_of_the_same_number_are_refused(unbroken, tmp_path, monkeypatch, key):
  shutil.copytree(unbroken[0], tmp_path / "run")
  before = metrics.read(tmp_path / "run")
  load, split = data.load, "train" if key == "data.path" else "heldout"

  def other(config_data, *arguments, **keys):
    dataset = load(config_data, *arguments, **keys)
    if config_data.split == split:
      dataset.rows[7]["answer"] = "1000"
    return dataset

  monkeypatch.setattr(data, "load", other)
  message = rf"config.{key}: found rows with the digest \w{{16}}, expected \w{{16}}"
  with pytest.raises(ValueError, match=message):
    train(small(num_steps=5), str(tmp_path / "run"))
  assert metrics.read(tmp_path / "run") == before


def test_other_weights_in_the_same_folder_are_refused(tmp_path):
  """The reference of the KL and priors read the first policy's again."""
  folder = shutil.copytree(models.BUILTIN, tmp_path / "policy")
  config = small(num_steps=1, **{"eval.period": 0, "policy.path": str(folder), "prior.kind": "v0"})
  config.priors.v0.path = str(shutil.copytree(v0.BUILTIN, tmp_path / "v0"))
  train(config, str(tmp_path / "run"))
  config.num_steps = 2
  changed = {}
  for key, name in (("policy.path", "policy/model"), ("priors.v0.path", "v0/head")):
    file = tmp_path / f"{name}.safetensors"
    changed[file] = file.read_bytes()
    file.write_bytes(changed[file][:-4] + b"\0\0\0\0")  # of as many bytes
    message = rf"config.{key}: found weights with the digest \w{{16}}, expected \w{{16}}"
    with pytest.raises(ValueError, match=message):
      train(config, str(tmp_path / "run"))
    file.write_bytes(changed[file])
  assert int(train(config, str(tmp_path / "run")).step) == 2


def test_a_reward_whose_file_has_changed_is_said(tmp_path, monkeypatch, caplog):
  monkeypatch.syspath_prepend(tmp_path)
  file = tmp_path / "mended.py"
  keys = {"reward": "mended:score", "rewards.workers": 1, "eval.period": 0}
  run = lambda steps: train(
    small(grpo.get_config(), num_steps=steps, **keys), str(tmp_path / "run")
  )
  file.write_text("def score(prompt, response, row): return 0.0\n")
  run(1)
  run(2)
  assert "has changed" not in caplog.text
  file.write_text("def score(prompt, response, row): return 1.0\n")
  run(3)
  assert "mended.py has changed since" in caplog.text
  assert [line["reward"] for line in metrics.read(tmp_path / "run")] == [0, 0, 1]
  # what ran is in the workdir
  kept = workdirs.own_code(tmp_path / "run")
  assert [(name, text[-4:]) for name, text in kept.items()] == [
    ("mended.py", "0.0\n"),
    ("mended.2.py", "1.0\n"),
  ]
  # what only looks at the run says so too
  caplog.clear()
  config = small(grpo.get_config(), num_steps=3, **keys)
  export.restored(setup(config), str(tmp_path / "run"))
  assert "has changed" not in caplog.text
  file.write_text("def score(prompt, response, row): return 0.5\n")
  export.restored(setup(config), str(tmp_path / "run"))
  assert "mended.py has changed since" in caplog.text


def test_a_run_of_no_steps_ends_well(tmp_path, caplog):
  train(small(num_steps=0, **{"eval.period": 0}), str(tmp_path / "nothing"))
  assert "there is nothing to do" in caplog.text
  assert metrics.read(tmp_path / "nothing") == []
  train(small(num_steps=0), str(tmp_path / "evaluated"))
  (line,) = metrics.read(tmp_path / "evaluated")
  assert line["step"] == 0 and line["eval/accuracy"] > 0
  said = workdirs.ending(small(num_steps=0), "train", tmp_path / "evaluated")
  assert "0 of 0 steps" in said and "export" not in said  # there is nothing to export


def test_a_run_without_an_update_says_so_at_its_end(tmp_path):
  lines = [{"step": n, "rollouts": n, "grad/skipped": 1.0 if n else None} for n in range(3)]
  file = tmp_path / "metrics.jsonl"
  write = lambda: file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  write()
  said = lambda: workdirs.ending(small(num_steps=2), "train", tmp_path)
  assert "no update was made: no loss or gradient was finite" in said()
  lines[-1]["grad/skipped"] = 0.5
  write()
  assert "no update" not in said()
  del lines[0]  # as where nothing is evaluated
  lines[0]["grad/skipped"], lines[1]["grad/skipped"] = 0.0, 1.0
  write()
  assert "no update" not in said()
  lines[0]["grad/skipped"] = 1.0
  write()
  assert "no update" in said()


def test_a_run_ends_with_the_step_that_makes_its_number_of_rollouts(unbroken, tmp_path):
  """That step is the last one in every way, and the same command then has nothing to do."""
  config = small(num_steps=9, num_rollouts=70, **{"eval.period": 8, "checkpoint.period": 8})
  state = train(config, str(tmp_path))
  assert (int(state.step), int(state.rollouts)) == (3, 96)
  written, whole = lines(tmp_path), lines(unbroken[0])
  assert [line["step"] for line in written] == [0, 1, 2, 3]
  assert written[3]["reward"] == whole[3]["reward"] and "eval/accuracy" in written[3]
  assert int(train(config, str(tmp_path)).step) == 3 and lines(tmp_path) == written
  assert workdirs.finished(config, "train", tmp_path)
  said = workdirs.ending(config, "train", tmp_path)
  assert "is finished: 3 steps, 96 rollouts" in said and "--config.num_rollouts=140" in said
  config.num_rollouts = 0
  config.num_steps = 4
  assert int(train(config, str(tmp_path)).step) == 4
  assert lines(tmp_path)[4]["reward"] == whole[4]["reward"]


def test_observers_may_change_when_a_run_goes_on(unbroken, tmp_path, caplog):
  """One that is new starts empty, one that is gone is dropped, and neither changes what is
  learnt."""
  run = at_step_2(unbroken[0], tmp_path)
  fewer = train(small(num_steps=3, observe=("diagnostics",)), str(run))
  assert set(fewer.observers) == {"diagnostics"} and "start empty" not in caplog.text
  state = train(small(), str(run))
  assert "has nothing of observers.scoreboard, which start empty" in caplog.text
  written, whole = lines(run), lines(unbroken[0])
  assessed = [[key for key in line if key.startswith("scoreboard/")] for line in written]
  assert [bool(keys) for keys in assessed] == [False, True, True, False, True]
  for key in ("reward", "prior/rmse", "loss/entropy", "grad/norm"):
    assert [line.get(key) for line in written] == [line.get(key) for line in whole], key
  evaluated = [line.get("eval/accuracy") for line in written]
  evaluated[3] = None  # a run of three steps ends with an evaluation
  assert evaluated == [line.get("eval/accuracy") for line in whole]
  jax.tree.map(np.testing.assert_array_equal, state.params, unbroken[1].params)


def test_a_plain_run_is_plain(monkeypatch, tmp_path):
  """GRPO without a prior: nothing of EWA-Beta, histories, scoreboards or contexts runs or is
  kept."""

  def raising(*arguments, **keys):
    raise AssertionError("not part of GRPO")

  for module in (experts, history, scoreboard, contexts):
    for name, value in vars(module).items():
      ours = getattr(value, "__module__", "") == module.__name__
      plain = not isinstance(value, type) and not hasattr(value, "plug")
      if ours and callable(value) and plain:
        monkeypatch.setattr(module, name, raising)
  for name in ("ewa_baseline", "remember", "empty", "update", "assessment", "learn", "mean_value"):
    assert any(vars(m).get(name) is raising for m in (experts, history, scoreboard, contexts)), name
  keys = {"prior.kind": "none", "baseline": "grpo", "eval.period": 0, "checkpoint.period": 1}
  state = train(small(default.get_config(), num_steps=2, **keys), str(tmp_path))
  learnt = (state.prior, state.budget, state.estimator, state.observers)
  assert not jax.tree.leaves(learnt)
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    names = set(leaves.named(saved._manager().item_metadata(2)))
  fields = {name.split(".")[0] for name in names}
  own = {"params", "opt_state", "step", "cursor", "rollouts", "mean_k", "skipped"}
  assert fields == own
  written = metrics.read(tmp_path)
  assert len(written) == 2 and written[-1]["grad/norm"] > 0
  for line in written:
    assert not [key for key in line if key.startswith(("scoreboard/", "prior/"))]


@pytest.mark.parametrize(
  "name",
  ["v05", "grpo", "dapo", "ewa", "spo", *(pytest.param(x, marks=LONG) for x in ("demo", "rloo"))],
)
def test_no_config_compiles_after_its_second_step(name, tmp_path):
  modules = {
    "demo": demo,
    "v05": v05,
    "grpo": grpo,
    "dapo": dapo,
    "rloo": rloo,
    "ewa": ewa,
    "spo": spo,
  }
  config = modules[name].get_config()
  more = {
    "v05": {"rollouts_per_step": 96, "prior.min_support": 6},
    # steps draw a different number of times
    "dapo": {
      **{"budget.k_init": 4, "budget.k_max": 4, "rollouts_per_step": 16, "num_steps": 8},
      **{"prior.kind": "neighbours", "observe": ("diagnostics", "scoreboard", "noise")},
      "observers.scoreboard.estimators": ("ewa",),
      "observers.noise.estimators": ("score",),
    },
    "ewa": {"prior.wrappers": ("fallback", "history"), "data.size": 16},
  }
  config = small(config, **{"num_steps": 5} | more.get(name, {}))
  train(config, str(tmp_path))
  written = metrics.read(tmp_path)
  compilations = [line["time/compilations"] for line in written[1:]]
  assert compilations[1] == compilations[-1], compilations
  assert all(line["grad/skipped"] == 0 for line in written[1:])
  if name == "v05":
    assert len({line["prompts"] for line in written[1:]}) > 1  # the number of prompts adapts
    assert max(line["k/mean"] for line in written[1:]) > 4
  if name == "dapo":
    assert len({line["prompts"] for line in written[2:]}) > 2
    seen = np.cumsum([line["prompts"] for line in written[1:]])
    assert [line["prior/support"] for line in written[1:]] == [0, *seen[:-1]]
  if name == "ewa":  # two stages, and the number of rollouts of a step is always the same
    assert [line["rollouts"] for line in written] == [0, 32, 64, 96, 128, 160]
    # every prompt comes back in each second step
    shares = [line["prior/history"] for line in written[1:]]
    assert shares[:2] == [0, 0] and all(0 < share <= 1 for share in shares[2:])
    assert max(len([key for key in line if key.startswith("k/hist/")]) for line in written[1:]) > 1
  # 32 of 128 prompts a step, of 256: the second step is of the second half, then all are known
  if name == "spo":
    assert [line["data/epoch"] for line in written[1:]] == [0.5, 1, 1.5, 2, 2.5]
    # at random at first, then by each prompt's past
    chances = [line["selection/chance"] for line in written[1:]]
    np.testing.assert_allclose(chances[:2], 0.25)
    assert all(abs(chance - 0.25) > 1e-4 for chance in chances[2:])
  if name == "dapo":
    assert sum(line["rollouts_discarded"] for line in written[1:]) > 0


def test_updates_that_keep_failing_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
  broken = tmp_path / "broken"
  policy = models.load(default.get_config().policy)
  # each finite, as a policy's must be, and so large that their products are not
  large = lambda path, x: x * 1e15 if {p.key for p in path} & {"gate", "up", "down"} else x
  params = jax.tree_util.tree_map_with_path(large, policy.params)
  hf.save(broken, policy.config, params, policy.tokenizer)
  keys = {"policy.path": str(broken), "loss.max_skipped": 2, "eval.period": 0}
  with pytest.raises(FloatingPointError, match=r"first policy.s features of .A.*are not finite"):
    train(small(num_steps=1, **keys, **{"prior.kind": "neighbours"}), str(tmp_path / "prior"))
  keys |= {"prior.kind": "none", "prior.wrappers": ()}
  config = small(num_steps=9, observe=("diagnostics",), **keys)
  with pytest.raises(
    FloatingPointError, match=r"3 steps in a row.*max_skipped=2.*there is no checkpoint yet"
  ):
    train(config, str(tmp_path / "run"))
  written = metrics.read(tmp_path / "run")
  assert len(written) == 4 and all(line["grad/skipped"] == 1 for line in written)


REWARD = """
import os

def score(prompt, response, row):
  if os.path.exists("broken"): return row["label"]
  return float(response.strip() == str(row["answer"]))
"""


@pytest.mark.parametrize("more", [0, pytest.param(1, marks=LONG)])
def test_a_reward_that_always_fails_stops_the_run_and_the_state_is_saved(
  tmp_path, monkeypatch, more
):
  """The state before the step that failed; it is lost by no further attempt, and, with `more`
  steps, goes on when the reward is mended."""
  (tmp_path / "failing_reward.py").write_text(REWARD)
  monkeypatch.chdir(tmp_path)
  keys = {"reward": "failing_reward:score", "checkpoint.period": 0, "eval.period": 0}
  keys["observe"] = ("diagnostics",)
  run = lambda steps, **other: train(small(num_steps=steps, **keys, **other), str(tmp_path / "run"))

  def break_it():
    while len(metrics.read(tmp_path / "run")) < 1:
      time.sleep(0.01)
    (tmp_path / "broken").touch()

  thread = threading.Thread(target=break_it, daemon=True)
  thread.start()
  error = r"all \d+ verdicts failed.*crash: KeyError: 'label' \(.*failing_reward.py:5\).*mend"
  with pytest.raises(rewards.RewardError, match=error) as found:
    run(400)
  thread.join()
  done = len(metrics.read(tmp_path / "run"))
  assert 1 <= done < 400 and str(found.value).endswith(f"the state after step {done}")
  assert checkpoint.Checkpoints(tmp_path / "run", 2).steps() == [done]
  if more:
    with pytest.raises(rewards.RewardError, match=f"the state after step {done}"):
      run(400)
    (tmp_path / "broken").unlink()
    state = run(done + more, **{"rewards.workers": 1, "rewards.timeout": 30.0})
    steps = [line["step"] for line in metrics.read(tmp_path / "run")]
    assert steps == list(range(1, done + more + 1)) and int(state.step) == done + more


@pytest.mark.long
def test_a_signal_is_heard_while_verdicts_do_not_come(tmp_path, monkeypatch):
  """A reward that hangs for ten minutes: the run saves the state before the step, and stops."""
  text = REWARD.replace('return row["label"]', "time.sleep(600)").replace("os\n", "os, time\n")
  (tmp_path / "hanging_reward.py").write_text(text)
  monkeypatch.chdir(tmp_path)
  keys = {"reward": "hanging_reward:score", "checkpoint.period": 0, "rewards.timeout": 600.0}

  def stop():
    while len(metrics.read(tmp_path / "run")) < 1:
      time.sleep(0.01)
    (tmp_path / "broken").touch()
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop, daemon=True).start()
  began = time.monotonic()
  with pytest.raises(checkpoint.Preempted, match=r"verdicts did not come; saved in .*: the state"):
    train(small(num_steps=4000, **keys, **{"eval.period": 0}), str(tmp_path / "run"))
  assert time.monotonic() - began < 300
  steps = [line["step"] for line in metrics.read(tmp_path / "run")]
  assert checkpoint.Checkpoints(tmp_path / "run", 2).steps() == steps[-1:]


@pytest.mark.long
def test_a_reward_that_fails_in_an_evaluation_stops_the_run_after_its_line(tmp_path, monkeypatch):
  """The step before the evaluation has its line, without the evaluation, and its checkpoint."""
  (tmp_path / "failing_reward.py").write_text(
    "def score(prompt, response, row):\n  return 1.0 if len(row['prompt']) < 60 else row['label']\n"
  )
  row = json.dumps({"prompt": "0" * 80, "answer": "1"})
  (tmp_path / "long.jsonl").write_text(f"{row}\n" * 4)
  monkeypatch.chdir(tmp_path)
  keys = {"reward": "failing_reward:score", "eval.path": "long.jsonl", "checkpoint.period": 0}
  config = small(num_steps=3, **keys, **{"sampler.max_prompt": 100})
  monkeypatch.setattr(Housekeeping, "begin", lambda *_: None)
  with pytest.raises(rewards.RewardError, match=r"saved in .*: the state after step 2"):
    train(config, str(tmp_path / "run"))
  written = metrics.read(tmp_path / "run")
  assert [line["step"] for line in written] == [1, 2] and "eval/mean" not in written[1]
  monkeypatch.undo()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(rewards.RewardError, match=r"saved in .*: the state after step 2"):
    train(config, str(tmp_path / "run"))  # it is tried again, before the next step
  assert metrics.read(tmp_path / "run") == written


@LONG
def test_a_run_goes_on_with_sizes_that_fit_a_smaller_machine(unbroken, tmp_path):
  """Out of memory: fewer slots and rows at once in the same workdir, by numbers that differ by
  rounding alone."""
  workdir = at_step_2(unbroken[0], tmp_path)
  sizes = {"sampler.slots": 8, "sampler.open_prompts": 4, "sampler.prefill": 4}
  sizes |= {"loss.micro_rows": 4, "loss.vocab_chunk": 64, "policy.remat": "full"}
  train(small(**sizes), str(workdir))
  assert lines(workdir)[:2] == lines(unbroken[0])[:2]
  for found, expected in zip(lines(workdir)[2:], lines(unbroken[0])[2:], strict=True):
    for key in ("accuracy", "k/mean", "reward", "loss/entropy", "grad/norm"):
      assert found[key] == pytest.approx(expected[key], rel=1e-3)
  assert configuration.load(str(workdir / "config.json")).sampler.slots == 8


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path):
  """One SIGKILL of a plain run; that the rest is bit for bit that of an unbroken run is shown
  within one process above, and after many kills by the last test."""
  config = small(grpo.get_config(), num_steps=400, **{"checkpoint.period": 1, "eval.period": 0})
  config.mesh.data = 1
  (tmp_path / "config.json").write_text(configuration.to_json(config))
  workdir, cache = tmp_path / "run", tmp_path / "cache"  # which a kill may damage
  process = attack_kills.start(workdir, cache)
  attack_kills.wait_for_lines(process, workdir, 2)
  with pytest.raises(ValueError, match=f"the run of process {process.pid} on"):
    train(config, str(workdir))  # it is not disturbed by this
  process.kill()
  process.wait()
  before = lines(workdir)
  assert 2 <= len(before) < 400, process.stderr.read()
  process = attack_kills.start(workdir, cache, num_steps=len(before) + 2)
  assert process.wait(timeout=500) == 0, process.stderr.read()
  assert [line["step"] for line in lines(workdir)] == list(range(1, len(before) + 3))
  assert lines(workdir)[: len(before)] == before


def test_a_run_stopped_by_a_signal_saves_its_step_and_goes_on(unbroken, tmp_path):
  """SIGTERM in the second step; the whole is the unbroken run, bit for bit."""

  def stop():
    while len(metrics.read(tmp_path)) < 2:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=stop, daemon=True)
  thread.start()
  with pytest.raises(checkpoint.Preempted, match=r"saved (at step|in)"):  # or in an evaluation
    train(small(num_steps=40), str(tmp_path))
  thread.join()
  assert 2 <= len(metrics.read(tmp_path)) < 41
  train(small(), str(tmp_path))
  assert lines(tmp_path)[:5] == lines(unbroken[0])


def test_a_signal_during_an_evaluation_saves_at_once(unbroken, tmp_path, monkeypatch):
  """SIGTERM in the evaluation after the second step, which is made up for."""
  check, seen = verdicts.Judge.check, []

  def stop(judge):
    seen.append(len(metrics.read(tmp_path)))
    if seen[-1] == 2:  # the lines of steps 0 and 1
      os.kill(os.getpid(), signal.SIGTERM)
    check(judge)

  monkeypatch.setattr(verdicts.Judge, "check", stop)
  with pytest.raises(checkpoint.Preempted, match=r"during an evaluation; saved .* after step 2"):
    train(small(**{"checkpoint.period": 100}), str(tmp_path))
  assert seen.count(2) == 1
  monkeypatch.undo()
  train(small(**{"checkpoint.period": 100}), str(tmp_path))
  assert lines(tmp_path) == lines(unbroken[0])


def test_a_missing_file_is_named_before_the_model_is_loaded(tmp_path, monkeypatch):
  monkeypatch.setattr(models, "load", lambda *_: pytest.fail("the model was loaded"))
  monkeypatch.setattr(models, "folder", lambda *_: pytest.fail("the model was fetched"))
  (tmp_path / "some.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n')
  some, none = str(tmp_path / "some.jsonl"), str(tmp_path / "none.jsonl")
  for key, paths in (("data.path", (none, some)), ("eval.path", (some, none))):
    keys = {"data.path": paths[0], "eval.path": paths[1], "reward": "math"}
    for start in (train, lambda c, workdir: main.run(main.Command("train", c, workdir))):
      c = small(own.get_config(), **keys, **{"policy.path": "some/model"})
      with pytest.raises(ValueError, match=rf"config.{key}: .*none.jsonl does not exist"):
        start(c, str(tmp_path / "run"))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_a_run_loses_nothing(tmp_path):
  """A dozen kills; `python -m tests.attack_kills --kills=100` has as many as a night allows. `make
  test` has one SIGKILL, and one SIGTERM within its own process."""
  said = attack_kills.attack(tmp_path, kills=12, seed=0)
  assert "12 SIGKILLs and 1 SIGTERM" in said
