"""What the files of a workdir say: whether its run has ended, and what to do next.

Neither a model nor a checkpoint is loaded, so the answer takes less than a second.
"""

import importlib.util
import json
import os
from pathlib import Path
import re
import sys

from v05_jax import config as configuration
from v05_jax.run import files, metrics

# Mode -> key of its steps, and what it writes after the last of them.
PICTURE = ("summary.png",) if importlib.util.find_spec("matplotlib") else ()
ENDS = {
  "train": ("num_steps", PICTURE),
  "sft": ("sft.steps", ("hf/config.json",)),
  "value": ("value.steps", ("v0",)),
}
OWN_CODE = "own_code.json"  # file of a workdir
WRITTEN = ("metrics.jsonl", "summary.png", "tensorboard", "wandb")  # named at the end of a run
SHOWN = ("eval/accuracy", "eval/mean", "reward", "sft/loss", "value/loss")


def command() -> str:
  """How this program was called: `v05`, or as a module."""
  return "v05" if Path(sys.argv[0]).stem == "v05" else "python -m v05_jax.main"


def latest(workdir) -> int | None:
  """The newest complete checkpoint's step in a local workdir; None without one."""
  return None if files.is_remote(files.folder(workdir)) else max(_steps(workdir), default=None)


def _steps(workdir) -> list[int]:
  """The steps of the complete checkpoints in a workdir, wherever it is."""
  folder = files.folder(workdir) / "checkpoints"
  return [int(x.name) for x in folder.iterdir() if x.name.isdecimal()] if folder.is_dir() else []


def trained(workdir) -> bool:
  """Whether a workdir, wherever it is, has a checkpoint or metrics of a step."""
  return bool(_steps(workdir)) or any(line["step"] for line in metrics.read(workdir))


def kept(workdir) -> str:
  """The message of an interrupted command: what is in the workdir, and how to continue."""
  step = latest(workdir) if workdir else None
  return (
    "nothing was saved yet"
    if step is None
    else f"{workdir} has the state after step {step}, and the same command continues from it"
  )


def finished(config, mode: str, workdir) -> bool:
  """Whether `workdir` holds all that this command would write.

  Raises ValueError where it holds a run of another config.
  """
  path, (key, written) = files.folder(workdir), ENDS[mode]
  steps = configuration.flatten(config)[key]
  if files.is_remote(path) or not steps or latest(workdir) is None:
    return False
  saved = path / "config.json"
  if not saved.exists() or not all((path / name).exists() for name in written):
    return False
  configuration.check_resume(
    configuration.from_json(saved.read_bytes(), os.fspath(saved)), config, os.fspath(path)
  )
  lines, training = metrics.read(workdir), mode == "train"
  if not lines or latest(workdir) != lines[-1]["step"]:
    return False
  evaluated = [any(name.startswith("eval/") for name in line) for line in lines]
  # the last evaluation too, where evaluations measure anything
  wanted = training and config.eval.period and (config.eval.samples or any(evaluated))
  ended = lines[-1]["step"] == steps or (training and spent(config, lines[-1]["rollouts"]))
  return ended and bool(evaluated[-1] or not wanted)


def continued(config, workdir: str | None):
  """The config with its open keys (`config.OPEN`) as the run in `workdir` has them, if there is
  one."""
  keys = configuration.left_open(config)
  saved = files.folder(workdir) / "config.json" if keys and workdir else None
  if saved is None or not saved.exists() or not trained(workdir):
    return config
  found = configuration.flatten(configuration.from_json(saved.read_bytes(), os.fspath(saved)))
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({key: found[key] for key in keys if key in found})
  return config


def own_code(workdir) -> dict[str, str]:
  """Name -> text of the user's own files that the run in `workdir` ran by, in their order."""
  file = files.folder(workdir) / OWN_CODE
  return json.loads(file.read_text()) if file.exists() else {}


def keep_code(workdir, code: dict[str, Path], anew: bool):
  """Keeps the user's own files, by module. A run that begins `anew` has those alone; one that goes
  on by a changed file has it beside that of before, as MODULE.2.py."""
  kept = {} if anew else own_code(workdir)
  for module, file in code.items():
    text = file.read_text(errors="replace")
    earlier = [name for name in kept if re.fullmatch(rf"{re.escape(module)}(\.\d+)?\.py", name)]
    if not earlier or kept[earlier[-1]] != text:
      number = f".{len(earlier) + 1}" if earlier else ""
      kept[f"{module}{number}.py"] = text
  if kept != own_code(workdir):
    files.replace(files.folder(workdir) / OWN_CODE, json.dumps(kept, indent=1) + "\n")


def spent(config, rollouts: int) -> bool:
  """Whether a run has generated all its rollouts, if its config says how many."""
  return 0 < config.num_rollouts <= rollouts


def ending(config, mode: str, workdir) -> str:
  """The message at the end of a run: its last values, where things are, and what may come next."""
  path, (key, _) = files.folder(workdir), ENDS[mode]
  steps, lines = configuration.flatten(config)[key], metrics.read(workdir)
  values = {name: value for line in lines for name, value in line.items() if value is not None}
  shown = [f"{name} {values[name]:.3f}" for name in SHOWN if name in values]
  rollouts = [f"{values['rollouts']:,} rollouts"] if values.get("rollouts") else []
  made = values.get("step", steps)  # fewer, where the rollouts have ended it
  count = f"{made} of {steps} steps" if made == steps else f"{made} steps"
  head = ", ".join([f"{workdir} is finished: {count}", *rollouts, *shown])
  updates = [line.get("grad/skipped") for line in lines if line["step"]]
  if updates and all(skipped == 1 for skipped in updates):
    head += "\n  no update was made: no loss or gradient was finite; the policy is as it was"
  there = [name for name in WRITTEN if (path / name).exists()]
  named = [("in the folder", ", ".join(there)), *_next(config, mode, workdir, values)]
  width = max(len(name) for name, _ in named)
  return "\n".join([head, *(f"  {name:<{width}}  {text}" for name, text in named)])


def _next(config, mode: str, workdir, values) -> list[tuple[str, str]]:
  """(what for, command) of what one may want to do with a finished run."""
  call = f"{command()} {{}} --workdir={workdir}".format
  if mode == "sft":
    return [("train on from it", f"{command()} train --config.policy.path={workdir}/hf ...")]
  if mode == "value":
    path = f"--config.prior.kind=v0 --config.priors.v0.path={workdir}/v0"
    return [("use it as the prior", f"{command()} train {path} ...")]
  samples = "" if config.eval.samples else " --config.eval.samples=8"
  if config.data.path != config.eval.path == "tasks":  # no held-out problems are named yet
    samples += " --config.eval.path=heldout.jsonl"
  found = [
    ("compare runs", f"{call('report')},OTHER"),
    ("read rollouts", call("sample")),
    ("evaluate", call("eval") + samples),
  ]
  if _steps(workdir):
    found.append(("for transformers", f"{call('export')} --out={workdir}/hf"))
  if config.num_steps and config.optimizer.schedule == "constant":
    by_rollouts = spent(config, values.get("rollouts", 0))
    key, most = (
      ("num_rollouts", config.num_rollouts) if by_rollouts else ("num_steps", config.num_steps)
    )
    found.append(("go on", f"{call('train')} --config.{key}={2 * most}"))
  return found
