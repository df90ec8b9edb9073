"""A pretrained language model of 135 million parameters gets better at problems, on two CPU cores.

    make lm
    python -m experiments.lm.run --methods=v05,grpo16,grpo4     all three, after or instead of it

Fetches and converts SmolLM2 (`fetch.py`), gives it a warm start on problems of reasoning-gym with
their answers, trains from there by reinforcement learning on fresh problems, and evaluates the
results on problems of the held-out split. What is complete in runs/lm is taken as it is, what was
interrupted is continued. Ends with the curve, a table with intervals, five problems before and
after, and the report page.
"""

from pathlib import Path
import shutil
import sys
import time

from absl import app, flags

from experiments.lm import fetch, table
from v05_jax import backend, logs, problems
from v05_jax.configs import smollm2
from v05_jax.run import checkpoint, eval_mode, evaluate, report
from v05_jax.run.sft import sft
from v05_jax.train import train

METHODS = flags.DEFINE_list("methods", ["v05", "grpo16"], "keys of configs/smollm2.py's METHODS")
RUNS = flags.DEFINE_string("runs", "runs/lm", "folder of the runs, the tables and the plots")
MODEL = flags.DEFINE_string("model_folder", ".cache/lm", "folder in which the model is made, or is")

COST = """This downloads 93 MB and takes about {minutes:.0f} minutes on two free cores, {memory} GB
of memory and {disk} GB of disk. Ctrl-C stops it; the same command continues.
"""
HELDOUT = {"split": "heldout", "size": 480, "samples": 4}  # what is evaluated in the end
MEMORY, DISK = 7, 6  # GB
SFT_MINUTES, MINUTES = 6, 8  # of the warm start with its evaluation; of a method with its own


def main(argv):
  if argv[1:]:
    raise app.UsageError(f"found {' '.join(argv[1:])}, expected flags alone")
  logs.start()
  try:
    run(Path(RUNS.value), Path(MODEL.value), METHODS.value)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


def run(out: Path, model: Path, methods: list[str]):
  """All of it. Raises ValueError for bad input, before anything expensive."""
  check(methods)
  began, config = time.monotonic(), smollm2.get_config()
  config.policy.path = str(model / "smollm2")
  backend.start(config)
  backend.without_torch()
  problems.check(config)
  print(COST.format(minutes=SFT_MINUTES + MINUTES * len(methods), memory=MEMORY, disk=DISK))
  room(out)
  fetch.model(model)
  start = warm_start(config, out / "sft")
  results = {"warm start": evaluated(with_policy(smollm2.get_config(), start), out / "start")}
  for method in methods:
    name = smollm2.METHODS[method]
    config = with_policy(smollm2.get_config(method), start)
    rollouts = config.num_steps * config.rollouts_per_step
    print(f"\n{name}: {rollouts:,} rollouts -> {out / method}", flush=True)
    train(config, str(out / method))
    results[name] = evaluated(config, out / method)
  print()
  names = [smollm2.METHODS[method] for method in methods]
  workdirs = [str(out / method) for method in methods]
  report.report(workdirs, str(out), names=names)
  print(table.write(out, results))
  minutes = (time.monotonic() - began) / 60
  print(f"\n{minutes:.1f} minutes; the curve is {report.stem(workdirs, str(out))}.png", flush=True)


def check(methods: list[str]):
  """Raises ValueError for no method, or an unknown one."""
  for method in methods or [""]:
    if method not in smollm2.METHODS:
      raise ValueError(f"--methods: found {method!r}, expected of {', '.join(smollm2.METHODS)}")


def room(out: Path):
  """Raises ValueError where the disk has no room and nothing has been run yet."""
  place = next(x for x in [out, *out.absolute().parents] if x.is_dir())
  free = shutil.disk_usage(place).free / 1e9
  if free < DISK and not (out / "sft").is_dir():
    raise ValueError(f"{out}: found {free:.1f} GB free, expected {DISK} GB")


def with_policy(config, path: Path):
  """The config with another policy."""
  config.policy.path = str(path)
  return config


def warm_start(config, workdir: Path) -> Path:
  """The policy of which reinforcement learning starts, trained where it is not there yet -> its
  Hugging Face directory."""
  # Another seed than training: its first problems are not those of the warm start.
  config.data.seed = 1
  config.eval.update({"size": 48, "period": 0})
  print(f"warm start: {config.sft.steps} steps -> {workdir}", flush=True)
  done = workdir / "hf"
  if done.is_dir():
    checkpoint.check_config(str(workdir), config)
  else:
    sft(config, str(workdir))
  return done


def evaluated(config, workdir: Path) -> evaluate.Result:
  """Success on held-out problems, sampled where that has not been done yet."""
  config.eval.update(HELDOUT)
  if not (workdir / "eval.jsonl").is_file():
    print(f"{config.eval.size} held-out problems, {config.eval.samples} samples each", flush=True)
    eval_mode.evaluate_workdir(config, str(workdir))
  return eval_mode.read(str(workdir))


if __name__ == "__main__":
  app.run(main)
