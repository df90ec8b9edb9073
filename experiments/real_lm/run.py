"""V0.5, GRPO and their rivals on a real language model: SmolLM2-135M, two arenas, several seeds.

    python -m experiments.real_lm.run --arenas=tasks --only=v05,grpo16,grpo4,rloo4 --seeds=0,1,2,3
    python -m experiments.real_lm.run --tune              # learning rates, on validation problems
    python -m experiments.real_lm.run --report            # table.md from the results that are there

Runs one after another, a process each. What has a result is left alone, what was interrupted goes
on at its last checkpoint; `--minutes` starts no further run after so long. A result is one file,
results/ARENA/METHOD-SEED-RATE.json, kept in the repository.
"""

from pathlib import Path
import shutil
import subprocess
import sys
import time

from absl import app, flags, logging

from experiments.lm import fetch
from experiments.real_lm import plan, results, table, words
from v05_jax import backend
from v05_jax.run import evaluate
from v05_jax.run.sft import sft
from v05_jax.train import train

HERE = Path(__file__).parent
ARENAS = flags.DEFINE_list("arenas", ["tasks"], f"of {', '.join(plan.ARENAS)}")
ONLY = flags.DEFINE_list("only_methods", list(plan.METHODS), "of plan.py's METHODS")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3"], "seeds of data, sampling and warm start")
TUNE = flags.DEFINE_bool("tune", False, "runs every learning rate with a seed of its own")
REPORT = flags.DEFINE_bool("only_report", False, "trains nothing")
MINUTES = flags.DEFINE_float("minutes", 0, "starts no run after so many minutes; 0 = no limit")
WORK = flags.DEFINE_string("scratch", "runs/real_lm", "folder of the runs")
MODEL = flags.DEFINE_string("model_dir", ".cache/lm", "folder in which SmolLM2 is made, or is")
PROBLEMS = flags.DEFINE_string("problems", "benchmarks", "folder of asdiv, mawps and svamp .jsonl")
ONE = flags.DEFINE_string("one", "", "ARENA,METHOD,SEED,RATE: this run alone, in this process")


def main(argv):
  if argv[1:]:
    raise app.UsageError(f"found {' '.join(argv[1:])}, expected flags alone")
  logging.set_verbosity(logging.WARNING)  # Orbax reports every checkpoint otherwise
  work = Path(WORK.value)
  try:
    if ONE.value:
      arena, method, seed, rate = ONE.value.split(",")
      return play(plan.Task(arena, method, int(seed), float(rate)), work, PROBLEMS.value)
    if not REPORT.value:
      run(tasks(), work)
    print(table.write(HERE))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


def tasks() -> list[plan.Task]:
  """The runs that the flags ask for, seed after seed. Raises ValueError for unknown names."""
  for flag, found, known in (
    ("arenas", ARENAS.value, plan.ARENAS),
    ("only_methods", ONLY.value, plan.METHODS),
  ):
    if unknown := [name for name in found if name not in known]:
      raise ValueError(f"--{flag}: found {unknown[0]!r}, expected of {', '.join(known)}")
  if bad := [seed for seed in SEEDS.value if not seed.isdigit()]:
    raise ValueError(f"--seeds: found {bad[0]!r}, expected whole numbers with commas between")
  chosen, seeds = results.rate(HERE), [int(seed) for seed in SEEDS.value]
  if TUNE.value:
    seeds = [plan.TUNING_SEED]
  return [
    plan.Task(arena, method, seed, rate)
    for arena in ARENAS.value
    for seed in seeds
    for method in ONLY.value
    for rate in (plan.RATES if TUNE.value else [chosen(arena, method)])
  ]


def run(wanted: list[plan.Task], work: Path):
  """Every run that has no result yet, each in a process of its own."""
  began = time.monotonic()
  fetch.model(Path(MODEL.value))
  left = [task for task in wanted if not results.path(HERE, task).is_file()]
  for i, task in enumerate(left):
    minutes = (time.monotonic() - began) / 60
    if MINUTES.value and minutes > MINUTES.value:
      print(f"{minutes:.0f} minutes are over: {len(left) - i} runs are left", flush=True)
      return
    print(f"[{minutes:5.1f} min] {i + 1} of {len(left)}: {task.arena} {task.name}", flush=True)
    flag = f"--one={task.arena},{task.method},{task.seed},{task.rate!r}"
    places = [f"--scratch={work}", f"--model_dir={MODEL.value}", f"--problems={PROBLEMS.value}"]
    command = [sys.executable, "-m", "experiments.real_lm.run", flag, *places]
    if code := subprocess.run(command).returncode:
      raise ValueError(f"{task.arena} {task.name}: the run ended with {code}; see above")


def policy() -> str:
  """The directory of the model as it was released."""
  return str(Path(MODEL.value) / "smollm2")


def play(task: plan.Task, work: Path, problems: str):
  """Trains a run from its seed's warm start, judges it, and writes its result. problems: the folder
  of the sets of word problems."""
  data, folder = work / "words", work / task.arena / task.name
  if task.arena == "words":
    words.prepare(problems, data)
  start, before = warm_start(task, work, data)
  config = plan.training(task, data, str(start))
  backend.start(config)
  backend.without_torch()
  train(config, str(folder))
  after = judged(plan.heldout(config, task.arena, data), folder)
  results.write(HERE, task, folder, before, after)
  shutil.rmtree(folder / "checkpoints")  # 1.6 GB; curve, samples and config stay


def warm_start(task: plan.Task, work: Path, data: Path) -> tuple[Path, evaluate.Result]:
  """The Hugging Face directory of a seed's warm start and how good it is, made where it is not
  there yet."""
  folder = work / task.arena / f"start-{task.seed}"
  config = plan.warm_start(task.arena, task.seed, data, policy())
  backend.start(config)
  backend.without_torch()
  if not (folder / "hf").is_dir():
    print(f"warm start of seed {task.seed}", flush=True)
    sft(config, str(folder))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
  config = plan.training(task._replace(method="v05"), data, str(folder / "hf"))
  return folder / "hf", judged(plan.heldout(config, task.arena, data), folder / "judged")


def judged(config, folder: Path) -> evaluate.Result:
  """Success on the held-out problems, sampled where that has not been done yet."""
  if not (folder / "eval.jsonl").is_file():
    evaluate.evaluate_workdir(config, str(folder))
  return evaluate.read(str(folder))


if __name__ == "__main__":
  app.run(main)
