"""What the runs of a comparison were: task, model, data, date."""

import datetime

from v05_jax.run.comparison import Row, text_of
from v05_jax.run.runs import Run

UNKNOWN = "not known: no config.json"


def facts(rows: list[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
  """(name of a fact, [(methods, its value)]); the methods are "" where it is the same for all."""
  found = []
  for title, of in ABOUT.items():
    values = [" / ".join(dict.fromkeys(of(run) for run in row.runs)) for row in rows]
    methods: dict[str, list[str]] = {}
    for row, value in zip(rows, values):
      methods.setdefault(value, []).append(row.name)
    if any(methods):
      alone = len(methods) == 1
      found.append((title, [("" if alone else ", ".join(m), v) for v, m in methods.items()]))
  return [*found, ("Date", [("", dates(run for row in rows for run in row.runs))])]


def dates(runs) -> str:
  """The days from the first to the last of when runs were begun, UTC."""
  times = [run.when for run in runs if run.when]
  if not times:
    return "not known"
  days = [datetime.datetime.fromtimestamp(t, datetime.UTC) for t in (min(times), max(times))]
  return " to ".join(dict.fromkeys(f"{day.day} {day:%B %Y}" for day in days))


def task(run: Run) -> str:
  return _data(run, run.keys.get("data.path")) if run.keys else UNKNOWN


def held_out(run: Run) -> str:
  """The problems that evaluations are on; "" without evaluations."""
  keys = run.keys
  if not keys or not any(name.startswith("eval/") for line in run.lines for name in line):
    return ""
  split = "" if keys.get("eval.path") != "tasks" else f", split {keys.get('eval.split')}"
  asked = _data(run, keys.get("eval.path"))
  return f"{asked}{split}, up to {keys.get('eval.size'):,} prompts, {_samples(run)}"


def _samples(run: Run) -> str:
  samples = run.keys.get("eval.samples")
  return f"{samples} samples a prompt" if samples else "exact success alone"


def _data(run: Run, path) -> str:
  families = run.keys.get("data.families") or ()
  return f"the built-in tasks {', '.join(families)}" if path == "tasks" else text_of(path)


def model(run: Run) -> str:
  if not run.keys:
    return UNKNOWN
  path, preset = run.keys.get("policy.path"), run.keys.get("policy.preset")
  rank = run.keys.get("policy.lora_rank")
  name = "the built-in policy" if path == "builtin" else text_of(path)
  name = f"{preset}, random weights" if preset else name
  return f"{name}, LoRA of rank {rank}" if rank else name


def reward(run: Run) -> str:
  found = run.keys.get("reward") if run.keys else None
  return "" if found is None else text_of(found)


ABOUT = {"Task": task, "Held-out prompts": held_out, "Model": model, "Reward": reward}
