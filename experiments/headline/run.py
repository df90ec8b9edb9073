"""The paper's claim with the controls that its own table lacks: every method at the same number of
rollouts generated.

    python -m experiments.headline.run                everything, resumable at any run
    python -m experiments.headline.run --quick        six methods, two seeds, on what is shipped
    python -m experiments.headline.run --only=report  tables and plots from results.json

Stages, in this order: `prepare` makes the seeds' warm starts and value models, `tune` tries every
method at every learning rate on validation prompts and writes rates.json, `main` runs the reported
seeds at those rates on held-out prompts and writes results.json, `time` measures seconds with
nothing beside, `report` writes table.md and the plots.
"""

import concurrent.futures
import json
import math
import multiprocessing
import os
from pathlib import Path
import subprocess
import time
from typing import NamedTuple
import zlib

from absl import app, flags
import numpy as np

from experiments.headline import methods, prepare, report
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
  out, runs = Path(FLAGS.out), Path(FLAGS.pool)
  if FLAGS.quick:
    return quick(out, runs)
  if "prepare" in FLAGS.only:
    prepare.everything(out, runs)
  if "tune" in FLAGS.only:
    tune(out, runs)
  if "main" in FLAGS.only:
    regimes = [
      (regime, method, rate) for regime in methods.REGIMES for method, rate in rates(regime).items()
    ]
    tasks = [Task("main", *one, seed) for one in regimes for seed in prepare.SEEDS]
    tasks.sort(key=lambda task: not methods.METHODS[task.method].core)
    try:
      play_all(tasks, out, runs)
    finally:  # what is there is a result, even where the rest is not
      write(
        [
          (task, json.loads(task.file(out).read_text()))
          for task in tasks
          if is_complete(task, out, runs)
        ]
      )
  if "time" in FLAGS.only:
    measure_time(out, runs)
  if "report" in FLAGS.only:
    report.report(HERE)


def measure_time(out: Path, runs: Path):
  """times.json: seconds of a run's steps, of the TIMED methods alone on the machine, in turns of
  which the first, with its compilations, does not count; evaluations are left out."""
  start()
  from experiments.headline import session

  seconds, known = {name: [] for name in methods.TIMED}, rates("default")
  for turn in range(1 + TURNS):
    for name, kept in seconds.items():
      config = make_config(Task("time", "default", name, known[name], prepare.SEEDS[0]), out, runs)
      session.SESSION.forget("prior")  # which keeps the features of prompts that it has seen
      found = session.play(session.SESSION, config, "", methods.ROLLOUTS, cosines=False)
      if turn:
        kept.append(round(found["seconds"], 2))
    print(f"turn {turn} of {TURNS} done", flush=True)
  (HERE / "times.json").write_text(
    json.dumps({"cores": os.cpu_count(), "seconds": seconds}, indent=1) + "\n"
  )


def quick(out: Path, runs: Path):
  """The leading methods with two seeds on what the package ships: prints their table.

  The shipped V0 has learned from other runs of the shipped policy, and from two more policies than
  a seed's own.
  """
  known = rates("default")
  tasks = [Task("quick", "default", m, known[m], s) for m in methods.QUICK for s in QUICK_SEEDS]
  lines = [task._asdict() | summary(task, result) for task, result in play_all(tasks, out, runs)]
  print("\n" + report.main_table(report.by_method(lines, "default")))


def rates(regime: str) -> dict[str, float]:
  """Method -> learning rate, of those that the regime has."""
  known = json.loads((HERE / "rates.json").read_text())["rates"]
  return {
    name: known[method.rate_of or name]
    for name, method in methods.METHODS.items()
    if method.core or regime == "default"
  }


def tune(out: Path, runs: Path):
  """Finds the learning rate of every method that has one of its own -> rates.json.

  The rule, the same for all: of the powers of two times 1.2e-3, that of the largest mean area under
  the curve of validation prompts; two are tried first, and further ones until the best is not at
  the edge.
  """
  areas = {name: {} for name, method in methods.METHODS.items() if not method.rate_of}
  while tasks := [
    Task("tune", "default", name, rate, seed)
    for name, known in areas.items()
    for rate in methods.rates_to_try(known)
    for seed in prepare.TUNING
  ]:
    for task, result in play_all(tasks, out, runs):
      areas[task.method].setdefault(task.rate, []).append(round(area(result["curve"]), 4))
  best = {name: methods.best(known) for name, known in areas.items()}
  named = {
    name: {f"{rate:g}": known[rate] for rate in sorted(known)} for name, known in areas.items()
  }
  record = {"rates": best, "areas": named, "seeds": prepare.TUNING}
  (HERE / "rates.json").write_text(json.dumps(record, indent=1) + "\n")
  for name, known in named.items():
    print(
      f"{name:16} {best[name]:g}  "
      + "  ".join(f"{rate}: {np.mean(a):.4f}" for rate, a in known.items())
    )


def area(curve) -> float:
  """Mean height of a curve of (rollouts, success, ...)."""
  x, y = np.array(curve, float)[:, :2].T
  return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def cut(curve, total: int) -> list[list[float]]:
  """A curve whose last point is at `total` rollouts: some methods end a step's last rollouts behind
  it."""
  x, *values = np.array(curve, float).T
  return [*map(list, curve[:-1]), [total, *(float(np.interp(total, x, y)) for y in values)]]


def play_all(tasks: list[Task], out: Path, runs: Path) -> list[tuple[Task, dict]]:
  """Every task with its result; what has a file is taken as it is, the rest is run, one process a
  core."""
  missing = [task for task in tasks if not is_complete(task, out, runs)]
  groups: dict[tuple, list[Task]] = {}
  for task in missing:
    groups.setdefault(task[:-1], []).append(task)
  began, done = time.time(), 0
  if missing:
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), fresh, one_of_many) as pool:
      jobs = {pool.submit(play, group, str(out), str(runs)): group for group in groups.values()}
      for job in concurrent.futures.as_completed(jobs):
        job.result()
        done += len(jobs[job])
        left = (time.time() - began) / done * (len(missing) - done)
        task = jobs[job][0]
        print(
          f"{done}/{len(missing)} runs, {left / 60:.0f} minutes left: {task.stage} {task.regime} "
          f"{task.method} "
          f"{task.rate:g}",
          flush=True,
        )
  return [(task, json.loads(task.file(out).read_text())) for task in tasks]


def is_complete(task: Task, out: Path, runs: Path) -> bool:
  """Whether a task's file holds a run of what the task is now."""
  file = task.file(out)
  return file.exists() and json.loads(file.read_text())["key"] == key(task, out, runs)


def key(task: Task, out: Path, runs: Path) -> int:
  """A checksum of all that a run is: its config, control and length."""
  text = configuration.to_json(make_config(task, out, runs)) + methods.METHODS[task.method].control
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


def play(tasks: list[Task], out: str, runs: str):
  """Runs tasks of one method one after the other and writes their files."""
  from experiments.headline import session

  out, runs = Path(out), Path(runs)
  for task in tasks:
    config, method = make_config(task, out, runs), methods.METHODS[task.method]
    total = methods.REGIMES[task.regime].rollouts
    result = session.play(
      session.SESSION, config, method.control, total, cosines=task.stage == "main"
    )
    result["key"] = key(task, out, runs)
    file = task.file(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(file)


def make_config(task: Task, out: Path, runs: Path):
  """The config of a run; the small version takes what the package ships."""
  quick = task.stage == "quick"
  policy = "builtin" if quick else prepare.policy(task.regime, task.seed, out, runs)
  model = "builtin" if quick else prepare.model(task.seed, out)
  config = methods.config(
    task.regime, methods.METHODS[task.method].changes, task.rate, task.seed, policy, model
  )
  config.eval.split = "validation" if task.stage == "tune" else "heldout"
  return config


def write(found: list[tuple[Task, dict]]):
  """results.json: what the report wants of every run."""
  lines = [task._asdict() | summary(task, result) for task, result in found]
  command = ["git", "rev-parse", "--short", "HEAD"]
  commit = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
  import jax

  record = {
    "commit": commit.stdout.strip(),
    "jax": jax.__version__,
    "cores": os.cpu_count(),
    "runs": lines,
  }
  text = json.dumps(record, allow_nan=False).replace('{"stage"', '\n{"stage"')
  (HERE / "results.json").write_text(text + "\n")


def summary(task: Task, result: dict) -> dict:
  """A run's numbers, the interface of results.json.

  "curve": (rollouts, success, success where it is exact), cut where the run's rollouts should end;
    "area" and "end" of
  its success; means over the steps of the metrics behind the other names, "..._parts" in MARKS
  parts of the steps;
  "grad_norm_cv": standard deviation over the steps / mean; "k": prompts by their number of
    rollouts; "cosine": mean
  over the places where the prior speaks, which it does not at the first; "seconds": of the steps,
  shared machine.
  """
  result = result | {"curve": cut(result["curve"], methods.REGIMES[task.regime].rollouts)}
  steps = {name: np.array(x, float) for name, x in result["steps"].items()}
  mean = lambda name: _number(np.nanmean(steps[name])) if np.isfinite(steps[name]).any() else None
  norm = steps["grad/norm"][np.isfinite(steps["grad/norm"])]
  return {
    "curve": [[x, round(y, 5), round(z, 5)] for x, y, z in result["curve"]],
    "area": _number(area(result["curve"])),
    "end": _number(result["curve"][-1][1]),
    "grad_norm": _number(norm.mean()),
    "grad_norm_cv": _number(norm.std() / norm.mean()),
    "grad_norm_parts": [_number(x.mean()) for x in np.array_split(norm, methods.MARKS)],
    "entropy_parts": [
      _number(x.mean()) for x in np.array_split(steps["loss/entropy"], methods.MARKS)
    ],
    "baseline_mse": mean("shrinkage/true_mse"),
    "group_mse": mean("shrinkage/true_mse_mean"),
    "prior_mse": mean("prior/true_mse"),
    "accepted": mean("prior/accepted"),
    "zero_share": mean("advantage/zero_share"),
    "clipped": mean("loss/clip_fraction"),
    "prompts": int(np.nansum(steps["prompts"])),
    "steps": len(steps["prompts"]),
    "discarded": int(np.nansum(steps["rollouts_discarded"])),
    "k": {k: int(n) for k, n in result["k"].items()},
    "cosine": _number(np.mean(result["cosine"][1:])) if result["cosine"][1:] else None,
    "seconds": _number(result["seconds"]),
  }


def _number(x) -> float | None:
  return float(f"{x:.5g}") if math.isfinite(x) else None


if __name__ == "__main__":
  flags.DEFINE_string("out", "runs/headline", "folder of the runs")
  flags.DEFINE_string("pool", "runs/value_model", "folder of experiments.value_model's runs")
  flags.DEFINE_list("only", list(STAGES), "stages to do")
  flags.DEFINE_bool("quick", False, "the small version")
  app.run(main)
