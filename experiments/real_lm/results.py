"""Results of runs as files: results/ARENA/METHOD-SEED-RATE.json."""

import json
from pathlib import Path

import numpy as np

from experiments.real_lm import plan
from v05_jax.run import evaluate, files, metrics
from v05_jax.run.evaluate import Result

SECONDS = ("time/sample", "time/update")
LAST = 5  # steps at the end of a run over which its own metrics are averaged
KEPT = ("loss/entropy", "prior/mse", "prior/constant_mse", "prior/bias", "noise/rho", "k/mean")


def path(here: Path, task: plan.Task) -> Path:
  return here / "results" / task.arena / f"{task.name}.json"


def write(here: Path, task: plan.Task, folder: Path, before: Result, after: Result):
  """The result of the run in `folder`, judged before and after it."""
  first, *lines = metrics.read(str(folder))
  record = {
    **task._asdict(),
    "rollouts": lines[-1]["rollouts"],
    "seconds": {key: sum(line.get(key, 0.0) for line in lines) for key in SECONDS},
    "curve": [[x["rollouts"], x["eval/mean"]] for x in (first, *lines) if "eval/mean" in x],
    "last": {key: last(lines, key) for key in KEPT},
    "before": summary(before),
    "after": summary(after),
  }
  file = path(here, task)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.replace(file, json.dumps(record) + "\n")


def last(lines: list[dict], key: str) -> float | None:
  """The mean of a metric over the last steps that have it."""
  found = [line[key] for line in lines if line.get(key) is not None][-LAST:]
  return float(np.mean(found)) if found else None


def summary(result: Result) -> dict:
  """Per problem: mean success, whether any sample succeeds; over all: tokens, truncated share."""
  values = evaluate.per_prompt(result)
  return {
    "mean": [round(float(x), 4) for x in values["mean"]],
    "pass": [round(float(x), 4) for x in values["pass"]],
    "length": float(values["length"].mean()),
    "truncated": float(values["truncated"].mean()),
  }


def read(here: Path) -> list[dict]:
  """All results."""
  return [json.loads(x.read_text()) for x in sorted((here / "results").glob("*/*.json"))]


def rate(here: Path):
  """-> rate(arena, method): the learning rate whose validation curve in the tuning runs is highest
  on average; plan.RATE where not all rates were tried."""
  areas = {}
  for record in read(here):
    if record["seed"] == plan.TUNING_SEED:
      rates = areas.setdefault((record["arena"], record["method"]), {})
      rates[record["rate"]] = np.mean([height for _, height in record["curve"][1:]])

  def chosen(arena: str, method: str) -> float:
    found = areas.get((arena, method), {})
    return max(found, key=found.get) if set(found) >= set(plan.RATES) else plan.RATE

  return chosen
