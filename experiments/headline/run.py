"""The paper's claim with the controls that its own table lacks: every method at the same number of
rollouts generated, in tasks where failures have the longer scores and in tasks where they have not.

    python -m experiments.headline.run                everything, resumable at any run
    python -m experiments.headline.run --quick        six methods, two seeds, on what is shipped
    python -m experiments.headline.run --only=report  tables and plots from results.json

Stages, in this order: `prepare` makes the seeds' warm starts, `tune` tries every method at every
learning rate on validation prompts and writes rates.json with the recipe, `main` runs the reported
seeds at those rates on held-out prompts and writes results.json after every method, `time` measures
seconds with nothing beside, `report` writes table.md and the plots.
"""

from collections.abc import Iterator
import concurrent.futures
import json
import multiprocessing
import os
from pathlib import Path
import subprocess
import time
from typing import NamedTuple
import zlib

from absl import app, flags

from experiments.headline import methods, prepare, report, summary, tuning
from v05_jax import config as configuration

HERE = Path(__file__).parent
QUICK_SEEDS = (201, 202)  # none whose rollouts the shipped V0 has learned from
TURNS = 2  # of the time stage
STAGES = ("prepare", "tune", "main", "time", "report")
FLAGS = flags.FLAGS


class Task(NamedTuple):
  """One run."""

  stage: str
  regime: str
  method: str
  rate: float
  seed: int

  def file(self, out: Path) -> Path:
    return out / self.stage / self.regime / self.method / f"{self.rate:g}" / f"seed{self.seed}.json"


def main(_):
  out = Path(FLAGS.out)
  if FLAGS.quick:
    return quick(out)
  if "prepare" in FLAGS.only:
    prepare.everything(out)
  if "tune" in FLAGS.only:
    tune(out)
  if "main" in FLAGS.only:
    reported(out)
  if "time" in FLAGS.only:
    measure_time(out)
  if "report" in FLAGS.only:
    report.report(HERE)


def quick(out: Path):
  """The leading methods with two seeds in both toys, on what the package ships: prints their table.

  Of rates.json only the rates are taken. The shipped V0 has learned from other runs of the shipped
  policy, and from other policies.
  """
  known = tuning.load()
  for toy in methods.TOYS:
    rates = tuning.rates(known, toy)
    tasks = [Task("quick", toy, m, rates[m], s) for m in methods.QUICK for s in QUICK_SEEDS]
    lines = [line(task, result) for task, result in play_all(tasks, out)]
    print(f"\n{methods.REGIMES[toy].title}\n\n{report.main_table(report.by_method(lines, toy))}\n")


def tune(out: Path):
  """Finds the learning rate of every method that has one of its own, in both toys, the variants and
  the recipe -> rates.json, by the rules of `tuning`."""
  found = {toy: {name: {} for name in methods.tuned(toy)} for toy in methods.TOYS}
  while tasks := [
    Task("tune", toy, name, rate, seed)
    for toy, known in found.items()
    for name, runs in known.items()
    for rate in tuning.rates_to_try({r: [x[0] for x in pairs] for r, pairs in runs.items()})
    for seed in prepare.TUNING
  ]:
    for task, result in play_all(tasks, out):
      scores = summary.area(result["curve"]), summary.end(result["curve"])["pass@64"]
      found[task.regime][task.method].setdefault(task.rate, []).append(scores)
  chosen = tuning.choose(found) | {"seeds": prepare.TUNING}
  tuning.save(chosen)
  print(json.dumps({toy: x["rates"] for toy, x in chosen["toys"].items()}, indent=1))
  print(f"recipe: {chosen['recipe']}")


def reported(out: Path):
  """results.json: every method, regime and seed at the rates of rates.json."""
  known = tuning.load()
  rates = {regime: tuning.rates(known, regime) for regime in methods.REGIMES}
  tasks = [
    Task("main", regime, name, rate, seed)
    for regime, of_methods in rates.items()
    for name, rate in of_methods.items()
    for seed in prepare.SEEDS
  ]
  warm = prepare.checksums(out)
  print(prepare.compared(warm, read(HERE / "results.json").get("warm_starts", {})), flush=True)
  record = made() | {"recipe": known["recipe"], "warm_starts": warm}
  lines, written = [], time.time()
  try:
    for task, result in play_all(tasks, out):
      lines.append(line(task, result))
      if time.time() > written + 60:
        write(record | {"runs": lines})
        written = time.time()
  finally:  # what is there is a result, even where the rest is not
    if lines:
      write(record | {"runs": lines})


def made() -> dict:
  """What made a result: the commit, jax's version, the cores."""
  import jax

  command = ["git", "rev-parse", "--short", "HEAD"]
  commit = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
  return {"commit": commit.stdout.strip(), "jax": jax.__version__, "cores": os.cpu_count()}


def read(file: Path) -> dict:
  """The object in a JSON file; an empty one where there is no such file."""
  return json.loads(file.read_text()) if file.exists() else {}


def write(record: dict):
  """results.json, a run a line, in the order of REGIMES, METHODS and seeds."""
  orders = [list(x).index for x in (methods.REGIMES, methods.METHODS)]
  place = lambda x: (orders[0](x["regime"]), orders[1](x["method"]), x["seed"])
  record = record | {"runs": sorted(record["runs"], key=place)}
  text = json.dumps(record, allow_nan=False).replace('{"stage"', '\n{"stage"')
  part = HERE / "results.json.part"
  part.write_text(text + "\n")
  part.rename(HERE / "results.json")


def line(task: Task, result: dict) -> dict:
  """A run of results.json."""
  return task._asdict() | summary.summary(result, methods.REGIMES[task.regime].rollouts)


def measure_time(out: Path):
  """times.json: seconds of a run's steps, of the TIMED methods alone on the machine, in turns;
  compilations, evaluations and what only looks on are left out."""
  start()
  from experiments.headline import session

  known, seconds = tuning.load(), {toy: {} for toy in methods.TOYS}
  for turn in range(1 + TURNS):
    total = methods.ROLLOUTS if turn else methods.ROLLOUTS // 16  # the first one compiles
    for toy, kept in seconds.items():
      rates = tuning.rates(known, toy)
      for name in methods.TIMED:
        config = make_config(Task("time", toy, name, rates[name], prepare.SEEDS[0]), out)
        session.SESSION.forget("prior")  # which keeps the features of prompts that it has seen
        found = session.play(session.SESSION, config, "", total, observed=())
        if turn:
          kept.setdefault(name, []).append(round(found["seconds"], 2))
    print(f"turn {turn} of {TURNS} done", flush=True)
  record = {"cores": os.cpu_count(), "seconds": seconds}
  (HERE / "times.json").write_text(json.dumps(record, indent=1) + "\n")


def play_all(tasks: list[Task], out: Path) -> Iterator[tuple[Task, dict]]:
  """Yields every task with its result, as they come; what has a file is taken as it is, the rest is
  run, one process a core."""
  missing = []
  for task in tasks:
    known = read(task.file(out))
    if known.get("key") == key(task, out):
      yield task, known
    else:
      missing.append(task)
  groups: dict[tuple, list[Task]] = {}
  for task in missing:
    groups.setdefault(task[:-1], []).append(task)
  if not missing:
    return
  began, done = time.time(), 0
  fresh = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), fresh, one_of_many) as pool:
    jobs = {pool.submit(play, group, str(out)): group for group in groups.values()}
    for job in concurrent.futures.as_completed(jobs):
      job.result()
      done += len(jobs[job])
      left = (time.time() - began) / done * (len(missing) - done)
      task = jobs[job][0]
      what = f"{task.stage} {task.regime} {task.method} {task.rate:g}"
      print(f"{done}/{len(missing)} runs, {left / 60:.0f} minutes left: {what}", flush=True)
      for task in jobs[job]:
        yield task, read(task.file(out))


def key(task: Task, out: Path) -> int:
  """A checksum of all that a run is: its config, control and length."""
  text = configuration.to_json(make_config(task, out)) + methods.METHODS[task.method].control
  return zlib.crc32(f"{text} {methods.REGIMES[task.regime].rollouts}".encode())


def one_of_many():
  """`start` for a process that has one core: others' programs would only be in its way."""
  os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
  start()


def start():
  """What a process does before its first run."""
  from v05_jax import backend
  from v05_jax.configs import default

  backend.start(default.get_config())
  backend.without_torch()


def play(tasks: list[Task], out: str):
  """Runs tasks of one method one after the other and writes their files."""
  from experiments.headline import session

  out = Path(out)
  for task in tasks:
    config, method = make_config(task, out), methods.METHODS[task.method]
    total = methods.REGIMES[task.regime].rollouts
    observed = () if task.stage == "tune" else session.OBSERVED
    result = session.play(session.SESSION, config, method.control, total, observed)
    result["key"] = key(task, out)
    file = task.file(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(file)
  session.SESSION.forget("estimator")  # no other method has its programs


def make_config(task: Task, out: Path):
  """The config of a run; the small version takes what the package ships."""
  policy = prepare.policy(methods.REGIMES[task.regime].warm, task.seed, out)
  if task.stage == "quick":
    policy = "builtin_scratchpad" if task.regime == "scratchpad" else "builtin"
  changes = methods.METHODS[task.method].changes
  config = methods.config(task.regime, changes, task.rate, task.seed, policy, prepare.MODEL)
  config.eval.split = "validation" if task.stage == "tune" else "heldout"
  return config


if __name__ == "__main__":
  flags.DEFINE_string("out", "runs/headline", "folder of the runs")
  flags.DEFINE_list("only", list(STAGES), "stages to do")
  flags.DEFINE_bool("quick", False, "the small version")
  app.run(main)
