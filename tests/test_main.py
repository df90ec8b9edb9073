"""The command line as a user meets it: train on one's own file and model, evaluate, export, report,
errors."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests import support
from v05_jax import config as configuration
from v05_jax import main
from v05_jax.configs import default, own
from v05_jax.run import metrics, workdirs

ROOT = pathlib.Path(__file__).parent.parent
MATH = ROOT / "tests" / "data" / "math"
OWN_INPUT = {
  "policy.path": str(MATH / "model"),
  "data.path": str(MATH / "problems.jsonl"),
  "reward": "math",
  "sampler.max_prompt": 128,
  "sampler.max_response": 24,
  "sampler.slots": 16,
  "sampler.open_prompts": 8,
  "sampler.prefill": 8,
  "rollouts_per_step": 16,
  "num_steps": 3,
  "checkpoint.period": 2,
  "loss.micro_rows": 8,
  "eval.path": str(MATH / "problems.jsonl"),
  "eval.size": 6,
  "eval.samples": 2,
  "eval.period": 3,
  "prior.min_support": 4,
  "sampler.truncated": "score",
}


@pytest.fixture(scope="module")
def cache():
  return os.environ["JAX_COMPILATION_CACHE_DIR"]  # of all tests


def command(cache, *flags, **keys):
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": support.one_device(),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "PYTHONPATH": str(MATH),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  flags = [*flags, *(f"--config.{key}={value}" for key, value in keys.items())]
  return subprocess.run(
    [sys.executable, "-m", "v05_jax.main", *flags],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=500,
  )


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp("own")
  done = command(cache, f"--workdir={workdir}", **OWN_INPUT)
  assert done.returncode == 0, done.stderr
  (workdir / "said.txt").write_text(done.stderr + done.stdout)
  return workdir


def test_what_a_run_says(own_run):
  """Where there is no terminal: stages, what was compiled, the first and the last step, the end."""
  said = (own_run / "said.txt").read_text()
  lines = said.splitlines()
  assert lines[0].startswith("loading ") and "compiling prefill, decode and update" in lines
  first = next(line for line in lines if line.startswith("the first step took"))
  assert re.search(r"compiled: \d+ programs \(\w+ \d+\.\d s", first)
  assert any(re.match(r"step 1/3  \d+ rollouts", line) for line in lines)
  last = next(line for line in lines if line.startswith("step 3/3  "))
  values = metrics.read(own_run)[-1]  # of this step and its evaluation, not of the one before
  assert f"eval/accuracy {values['eval/accuracy']:.3g}  " in last
  assert f"  accuracy {values['accuracy']:.3g}  " in last
  assert f"{own_run} is finished: 3 of 3 steps, " in said
  assert "PyTorch" not in said and "\x1b" not in said and "\r" not in said
  commands = re.findall(r"python -m v05_jax.main (\w+) --workdir", said)
  assert commands == ["report", "sample", "eval", "export", "train"]


def test_a_finished_run_says_so_and_loads_nothing(own_run, cache):
  before = (own_run / "metrics.jsonl").read_bytes()
  done = command(cache, "train", f"--workdir={own_run}", **OWN_INPUT)
  assert done.returncode == 0 and f"{own_run} is finished: 3 of 3 steps" in done.stdout
  assert not done.stderr and (own_run / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_of_another_config_is_refused(own_run):
  config = configuration.from_json((own_run / "config.json").read_text())
  assert workdirs.finished(config, "train", own_run)
  config.seed = 5
  with pytest.raises(ValueError, match="holds a run of another config"):
    workdirs.finished(config, "train", own_run)
  config.update({"seed": 0, "num_steps": 4})
  assert not workdirs.finished(config, "train", own_run)


def test_a_run_whose_last_lines_are_missing_is_not_finished(tmp_path):
  config = default.get_config()
  config.num_steps = 3
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  for name in workdirs.PICTURE:
    (tmp_path / name).touch()
  for steps, period, measured in ((3, 8, True), (3, 8, False), (3, 0, False), (2, 8, True)):
    config.eval.period = period
    last = {"eval/accuracy": 0.5} if measured else {}
    lines = [{"step": n, "rollouts": 4 * n} | last for n in range(1, steps + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for samples in (0, 4):
      config.eval.samples = samples
      (tmp_path / "config.json").write_text(configuration.to_json(config))
      # A missing evaluation is made up for, but where evaluations measure nothing.
      whole = steps == 3 and (measured or not period or not samples)
      assert workdirs.finished(config, "train", tmp_path) == whole


def test_a_command_that_is_stopped_ends_with_the_shells_exit_code():
  code = "from v05_jax import main; main.leave('stopped')"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=300)
  assert (done.returncode, done.stderr) == (130, b"\nstopped\n")


@pytest.mark.parametrize("mode", ["sft", "value", "sample", "noise", "export", "report"])
def test_one_of_several_processes_is_told_what_they_can_do(mode):
  command = main.Command(mode, default.get_config(), "run", "out")
  with pytest.raises(ValueError, match=f"--mode={mode} runs in one process; of several: train and"):
    main.run(command, place=object())


def test_only_what_writes_has_a_folder_of_its_own():
  """`v05 eval --config=v05` would otherwise look at runs/v05, which nobody has named."""
  assert main.usual_folder("train", "v05") == main.usual_folder("sft", "a/v05.py") == "runs/v05"
  assert main.usual_folder("eval", "v05") is main.usual_folder("train", None) is None


def test_help_lists_the_configs_and_says_where_the_keys_are():
  _, _, rest = main.manual().partition("\nConfigs: ")
  names, _, path = rest.partition("\nKeys, with their meaning: ")
  assert {"default", "grpo", "own", "v05"} <= set(names.replace("\n", " ").split(", "))
  assert "c.num_steps" in pathlib.Path(path).read_text()


@pytest.mark.parametrize("gone", ["summary.png", "metrics.jsonl", "checkpoints/3", "config.json"])
def test_a_run_that_lacks_anything_is_not_finished(own_run, tmp_path, gone):
  shutil.copytree(own_run, tmp_path / "run")
  config = configuration.from_json((own_run / "config.json").read_text())
  assert workdirs.finished(config, "train", tmp_path / "run")
  path = tmp_path / "run" / gone
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert not workdirs.finished(config, "train", tmp_path / "run")


@pytest.mark.long
def test_a_second_ctrl_c_ends_the_run_at_once_and_without_a_traceback(cache, tmp_path):
  """While it loads or compiles; the first one would let the step end."""
  flags = [sys.executable, "-m", "v05_jax.main", "train", f"--workdir={tmp_path / 'run'}"]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
  process = subprocess.Popen(flags, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
  said = process.stderr.readline()
  assert said.startswith("loading ")
  process.send_signal(signal.SIGINT)
  while "SIGINT: saving after this step; once more stops at once" not in said:
    said += process.stderr.readline()
  process.send_signal(signal.SIGINT)
  said += process.communicate(timeout=60)[1]
  assert process.returncode == 130 and "Traceback" not in said, said
  assert "stopped at once; nothing was saved yet" in said


def test_own_data_wants_three_flags(cache, tmp_path):
  """As far as the model, which is not there: the config is whole, and the folder has its name."""
  env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  flags = [
    "--config=own",
    f"--config.data.path={MATH / 'problems.jsonl'}",
    "--config.policy.path=no",
  ]
  done = subprocess.run(
    [sys.executable, "-m", "v05_jax.main", "train", *flags],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 1 and "--workdir=runs/own" in done.stderr
  assert "error: config.policy.path: found 'no', expected" in done.stderr
  assert not (tmp_path / "runs").exists()  # nothing is left behind


def test_training_on_ones_own_problems_and_model(own_run):
  lines = metrics.read(own_run)
  assert [line["step"] for line in lines] == [0, 1, 2, 3]
  assert all(line["rewards/failed"] == 0 and line["loss/logprob_gap"] < 1e-4 for line in lines[1:])
  assert lines[-1]["eval/mean"] is not None and "eval/exact" not in lines[-1]


def test_the_result_opens_in_transformers(own_run, cache, tmp_path):
  out = tmp_path / "hf"
  done = command(cache, "--mode=export", f"--workdir={own_run}", f"--out={out}")
  assert done.returncode == 0, done.stderr
  from transformers import AutoConfig, AutoTokenizer

  assert AutoConfig.from_pretrained(out).architectures == ["Qwen3ForCausalLM"]
  tokenizer = AutoTokenizer.from_pretrained(out)
  assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
  pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM

  model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  assert model.config.rope_parameters["rope_theta"] == 5e6


def test_evaluating_a_checkpoint_and_a_report(own_run, cache):
  done = command(cache, "--mode=eval", f"--workdir={own_run}")
  assert done.returncode == 0, done.stderr
  assert "| all |" in done.stdout and done.stdout.endswith(f"\n{own_run / 'eval.md'}\n")
  assert json.loads((own_run / "eval.json").read_text())["step"] == 3
  done = command(cache, "--mode=report", f"--workdir={own_run}", f"--out={own_run}")
  assert done.returncode == 0, done.stderr
  assert (own_run / "comparison.png").exists() and own_run.name in done.stdout


@pytest.mark.long
def test_ones_own_reward_function(cache, tmp_path):
  """From the command line; `make test` has it within a process, in test_extending."""
  keys = OWN_INPUT | {"reward": "own_reward:brief", "num_steps": 1, "eval.period": 0}
  done = command(cache, f"--workdir={tmp_path}", **keys)
  assert done.returncode == 0, done.stderr
  (line,) = metrics.read(tmp_path)
  assert 0 < line["reward"] <= 1


@pytest.mark.parametrize(
  "mode, workdir, out, message",
  [
    ("train", "", None, "--workdir=: found an empty name, expected that of a folder"),
    ("sft", " ", None, "--workdir= : found an empty name"),
    ("value", "", None, "--workdir=: found an empty name"),
    ("eval", "", None, "--workdir=: found an empty name"),
    ("sample", "", None, "--workdir=: found an empty name"),
    ("export", "", "out", "--workdir=: found an empty name"),
    ("export", "run", "", "--out=: found an empty name"),
    ("report", "", None, "--workdir=: found an empty name"),
    ("report", "a,,b", None, "--workdir=a,,b: found an empty name"),
    ("report", "a,", None, "--workdir=a,: found an empty name"),
    ("report", "a", " ", "--out= : found an empty name"),
    ("train", "a,b", None, "--workdir=a,b: found a comma, expected a folder without one"),
    ("sft", "a,b", None, "--workdir=a,b: found a comma"),
    ("value", "gs://a/b,", None, "--workdir=gs://a/b,: found a comma"),
    ("train", "--config.seed=1", None, "--workdir: found the flag --config.seed=1 as its value"),
    ("train", None, None, "--mode=train needs --workdir=FOLDER"),
    ("export", "a", None, "--mode=export needs --out=FOLDER"),
  ],
)
def test_folders_that_are_none(mode, workdir, out, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError) as error:
    main.run(main.Command(mode, default.get_config(), workdir, out))
  assert str(error.value).startswith(message)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["train", "sample", "noise"])
@pytest.mark.parametrize("reward", ["math", [["math", 1.0], ["own_reward:brief", 0.1]]])
def test_own_without_problems_is_told_before_anything_is_written(
  mode, reward, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = own.get_config()
  config.reward = reward
  with pytest.raises(
    ValueError, match=r"data\.path: found 'tasks'.* --config\.data\.path=problems"
  ):
    main.run(main.Command(mode, config, "run"))
  assert not list(tmp_path.iterdir())


def test_own_is_not_evaluated_on_the_built_in_puzzles(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = own.get_config()
  config.data.path = "problems.jsonl"
  with pytest.raises(ValueError, match=r"eval\.path: found 'tasks'.* --config\.eval\.path=held"):
    main.run(main.Command("eval", config, "run"))
  assert not list(tmp_path.iterdir())


LONG = pytest.mark.long


@pytest.mark.parametrize(
  "keys, message",
  [
    # More of the same, in `make test-long`: what is wrong is found by the tests of each part.
    ({"sampler.temprature": 1}, r"did you mean --config.sampler.temperature"),
    pytest.param(
      {"budget.k_init": 8}, r"budget.k_max: found 4, expected budget.k_init = 8", marks=LONG
    ),
    pytest.param(
      {"budget.rule": "sequential", "budgets.sequential.cost": -1},
      r"budgets.sequential.cost",
      marks=LONG,
    ),
    pytest.param({"data.path": "nowhere.jsonl"}, r"nowhere.jsonl does not exist", marks=LONG),
    (
      {"sampler.max_prompt": 16},
      r"problems.jsonl:1: the prompt has \d+ tokens, expected at most .*max_prompt = 16",
    ),
    pytest.param({"policy.path": "nowhere"}, r"policy.path: found 'nowhere'", marks=LONG),
    ({"reward": "own_reward:missing"}, r"config.reward = 'own_reward:missing'"),
  ],
  ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input_is_one_clear_error(cache, tmp_path, keys, message):
  done = command(cache, f"--workdir={tmp_path / 'run'}", **(OWN_INPUT | keys))
  assert done.returncode not in (0, None) and "Traceback" not in done.stderr, done.stderr
  assert re.search(message, done.stderr), done.stderr
