"""Results of runs as files: results/ARENA/METHOD-SEED-RATE.json, kept in the repository.

A result holds all of its run's config that could have changed it, so that a change of plan is told
from a change of anything else: a result of another plan is named, and neither taken nor replaced.
"""

import collections
import itertools
import json
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from experiments.headline.run import made
from experiments.real_lm import plan
from v05_jax import config as configuration
from v05_jax import plug
from v05_jax.configs import default
from v05_jax.run import evaluate, files, metrics
from v05_jax.run.evaluate import Result

LAST = 5  # steps at the end of a run over which its own metrics are averaged
KEPT = (
  *("loss/entropy", "grad/norm", "prior/mse", "prior/constant_mse", "prior/bias", "noise/rho"),
  *("k/mean", "prompts", "rollouts_discarded", "response/truncated", "response/length"),
)
# Parts of the config that change no result: where things are, what looks on, memory and devices.
IDLE = (
  *("policy.path", "priors.v0.path", "data.folder", "policy.remat", "observe", "observers."),
  *("metrics.", "sinks.", "checkpoint.", "value.", "rewards.workers", "rewards.timeout"),
  *("cpu_devices", "mesh.", "sampler.slots", "sampler.open_prompts", "sampler.prefill"),
  *("sampler.chunk", "sampler.share", "sampler.slot_sizes", "sampler.column_sizes"),
  *("loss.micro_rows", "loss.vocab_chunk"),
)
OF_PLUGS = ("priors.", "estimators.", "budgets.")  # options of which those in use count


# --- What a result depends on


def matters(config) -> dict[str, Any]:
  """Dotted key -> value, as JSON has it, of all that could change what a run comes to."""
  used = {plug.label(name) for _, name in plug.chosen(config)}
  found = {}
  for key, value in configuration.flatten(config).items():
    idle = key.startswith(IDLE) or (key.startswith(OF_PLUGS) and key.split(".")[1] not in used)
    if not idle:
      is_file = isinstance(value, str) and value.endswith(".jsonl")
      found[key] = Path(value).name if is_file else value
  return json.loads(json.dumps(found))


def changes(kept: dict[str, Any], config) -> list[str]:
  """The keys, with both values, in which `config` is not what `kept` was made with.

  A key that has come since counts where it is not at its default; one that has gone does not.
  """
  now, usual = matters(config), configuration.flatten(default.get_config())
  usual = json.loads(json.dumps(usual))
  was = {key: kept.get(key, usual.get(key)) for key in now}
  return [f"{key}: found {was[key]!r}, expected {x!r}" for key, x in now.items() if was[key] != x]


def of_evaluation(config) -> dict[str, Any]:
  """The same of the evaluation on held-out problems."""
  return {key: x for key, x in matters(config).items() if key.startswith(("eval.", "data.seed"))}


def stale(record: dict) -> list[str]:
  """In what the plan is not that of a result; [] where it is. A method that has gone is named."""
  run, nowhere = plan.Run.of(record), Path("-")
  if run.method not in plan.METHODS or run.arena not in plan.ARENAS:
    return [f"method: found {run.method!r} in {run.arena!r}, expected one of plan.py"]
  config = plan.training(run, nowhere, "-", "-")
  problems = changes(record["config"], config)
  if record["after"] is not None:
    wanted = of_evaluation(plan.heldout(config, run.arena, nowhere))
    problems += [
      f"held out: {key}: found {record['judged'].get(key)!r}, expected {x!r}"
      for key, x in wanted.items()
      if record["judged"].get(key) != x
    ]
  return problems


# --- Files


def path(here: Path, run: plan.Run) -> Path:
  return here / "results" / run.arena / f"{run.name}.json"


def read(here: Path) -> list[dict]:
  """All results. Raises ValueError that names a file which is none."""
  found = []
  for file in sorted((here / "results").glob("*/*.json")):
    try:
      record = json.loads(file.read_text())
      missing = {*plan.Run._fields, "config", "curve", "prompts", "after"} - set(record)
    except (ValueError, TypeError) as error:
      raise ValueError(f"{file}: found no JSON object ({error}), expected a result") from None
    if record.get("after") and "solved" not in record["after"]:
      missing.add("after.solved")
    if missing:
      raise ValueError(f"{file}: found no {sorted(missing)[0]}, expected a result of run.py")
    found.append(record)
  return found


def current(here: Path) -> tuple[list[dict], dict[Path, str]]:
  """(the results of this plan, file -> what is wrong with it of each of another one)."""
  good, others = [], {}
  for record in read(here):
    if problems := stale(record):
      run = plan.Run.of(record)
      more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
      file = path(here, run)
      others[file] = f"{file}: made by another plan: {problems[0]}{more}"
    else:
      good.append(record)
  return good, others


def rate(records: list[dict], arena: str, method: str) -> float | None:
  """The learning rate that the plan gives to a method, or else that whose validation curve in the
  tuning runs is highest on average, of the method that `method` takes it from; None until all rates
  were tried."""
  if plan.METHODS[method].rate:
    return plan.METHODS[method].rate
  heights = {}
  for record in records:
    tuned = record["seed"] == plan.TUNING_SEED and record["arena"] == arena
    if tuned and record["method"] == plan.rate_of(method):
      curve = record["curve"][1:]
      heights[record["rate"]] = -np.inf if record["failed"] else np.mean([x[1] for x in curve])
  return max(heights, key=heights.get) if set(heights) >= set(plan.RATES) else None


def write(here: Path, run: plan.Run, folder: Path, config, evaluations, more: dict[str, Any]):
  """The result of the run in `folder`.

  evaluations: None for a tuning run, else (config, Result before, Result after); more: "seconds" of
  the parts beside training, "trained": what names the problems of training, "failed": why it ended
  early, or "".
  """
  first, *lines = metrics.read(str(folder))
  steps = step_seconds(lines)
  record = {
    **run._asdict(),
    "failed": more["failed"],
    "made": made(),
    "problems": {"trained": more["trained"]},
    "config": matters(config),
    "rollouts": lines[-1]["rollouts"] if lines else 0,
    "steps": len(lines),
    "prompts": int(sum(line.get("prompts") or 0 for line in lines)),
    "seconds": parts(lines, steps) | more["seconds"],
    "curve": curve([first, *lines], [0.0, *steps]),
    "first": {key: mean(lines[:1], key) for key in KEPT},
    "last": {key: mean(lines[-LAST:], key) for key in KEPT},
    "judged": None,
    "before": None,
    "after": None,
  }
  if evaluations:
    heldout, before, after = evaluations
    record["problems"]["judged"] = digest(after)
    record["judged"] = of_evaluation(heldout)
    record |= {"before": summary(before), "after": summary(after)}
  file = path(here, run)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.replace(file, json.dumps(record) + "\n")


def total(record: dict) -> float:
  """Seconds of a run's own training and evaluation, its warm start left out."""
  return record["seconds"]["train"] + record["seconds"]["judge"]


# --- What is kept of a run


def step_seconds(lines: list[dict]) -> list[float]:
  """Seconds of sampling and update of each step; of a process's first step, which compiles, the
  median of the others. A process has begun where fewer programs have been compiled than before."""
  found = [line.get("time/sample", 0.0) + line.get("time/update", 0.0) for line in lines]
  counts = [np.inf, *(line.get("time/compilations", 0.0) for line in lines)]
  first = [now < before for before, now in itertools.pairwise(counts)]
  others = [x for x, begun in zip(found, first) if not begun] or found
  return [float(np.median(others)) if begun else x for x, begun in zip(found, first)]


def parts(lines: list[dict], steps: list[float]) -> dict[str, float]:
  """Seconds: "sample" and "update", "steps" of both without compilation, "train" of everything."""
  of = lambda key: float(sum(line.get(key, 0.0) for line in lines))
  found = {"sample": of("time/sample"), "update": of("time/update"), "train": of("time/step")}
  return found | {"steps": float(sum(steps))}


def curve(lines: list[dict], steps: list[float]) -> list[list[float]]:
  """[rollouts, validation success, seconds of sampling and update so far] where there is an
  evaluation."""
  so_far = np.cumsum(steps).tolist()
  return [
    [x["rollouts"], x["eval/mean"], seconds]
    for x, seconds in zip(lines, so_far)
    if x.get("eval/mean") is not None
  ]


def mean(lines: list[dict], key: str) -> float | None:
  """The mean of a metric over the lines that have it."""
  found = [line[key] for line in lines if line.get(key) is not None]
  return float(np.mean(found)) if found else None


def summary(result: Result) -> dict[str, Any]:
  """Per problem: mean success, the share of samples that are right in full ("solved"), whether any
  is; over all: tokens, truncated share; of each benchmark the mean success and its answers."""
  values = evaluate.per_prompt(result)
  labels = np.array([evaluate.label(row) for row in result.rows])
  names = sorted(set(labels) - {""})
  return {
    "mean": [round(float(x), 4) for x in values["mean"]],
    "solved": [round(float(x), 4) for x in result.solved.mean(1)],
    "pass": [round(float(x), 4) for x in values["pass"]],
    "length": float(values["length"].mean()),
    "truncated": float(values["truncated"].mean()),
    "benchmarks": {name: float(values["mean"][labels == name].mean()) for name in names},
    "answers": {name: answers(result.responses[labels == name]) for name in names},
  }


def answers(responses) -> dict[str, float]:
  """Of responses [problems, samples]: how many of a problem's are different, on average, and the
  share of all that the most frequent one has."""
  texts = [[text.strip() for text in row] for row in responses]
  counts = collections.Counter(text for row in texts for text in row)
  different = float(np.mean([len(set(row)) for row in texts]))
  return {"different": different, "commonest": max(counts.values()) / counts.total()}


def digest(result: Result) -> int:
  """A checksum of the problems and their answers, in their order."""
  return zlib.crc32(json.dumps([[x["prompt"], x["answer"]] for x in result.rows]).encode())
