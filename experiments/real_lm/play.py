"""One job in a process of its own: a training run, a value model, or measurements on checkpoints.

Whatever is complete in the scratch folder is taken as it is, and what was interrupted goes on:
runs, warm starts and value models at their last checkpoint, the noise behind the last step that it
has, evaluations and priors from their beginning.
"""

import importlib.metadata
import json
from pathlib import Path
import shutil
import time
from typing import NamedTuple
import zlib

from experiments.real_lm import plan, process, results, words
from v05_jax import backend
from v05_jax import config as configuration
from v05_jax.run import eval_mode, evaluate, files, lock, metrics
from v05_jax.run.sft import sft
from v05_jax.train import train
from v05_jax.value_model.train import train_value

PAIRS = "pairs"  # the folder of a run that --mode=value learns from


class Places(NamedTuple):
  """Where things are."""

  here: Path  # results
  work: Path  # runs
  model: str  # SmolLM2 as it was released
  problems: str  # folder of the sets of word problems

  @property
  def data(self) -> Path:
    """The prepared word problems."""
    return self.work / "problems"

  def folder(self, run: plan.Run) -> Path:
    return self.work / run.arena / run.name

  def value_model(self, arena: str) -> Path:
    """The V0 of an arena, trained on the other one's runs."""
    return self.work / f"v0-of-{plan.OTHER[arena]}"


# --- A run


def complete(run: plan.Run, places: Places):
  """Trains a run from its seed's warm start, evaluates it on held-out problems, and writes its
  result. A tuning run is not evaluated, and where it diverges it has a result too."""
  prepare(run.arena, places)
  start = warm_start(run, places)
  config = training(run, places)
  folder = places.folder(run)
  begin(config, folder)
  tuned, failed, evaluations = run.seed == plan.TUNING_SEED, "", None
  step = last_step(folder)
  try:
    step = int(train(config, str(folder)).step) if step is None else step
  except FloatingPointError as error:
    if not tuned:
      raise
    failed = str(error)
  if not tuned:
    heldout = plan.heldout(config, run.arena, places.data)
    before = evaluated(heldout_of_start(run, places), started(run, places) / "judged")
    evaluations = heldout, before, evaluated(heldout, folder, step)
  seconds = {"start": start + seconds_of(started(run, places) / "judged").get("judge", 0.0)}
  seconds |= {"judge": seconds_of(folder).get("judge", 0.0)}
  more = {"seconds": seconds, "trained": problems_of(run.arena, places), "failed": failed}
  results.write(places.here, run, folder, config, evaluations, more)
  if not plan.is_measured(run):
    discard(folder)


def discard(folder: Path):
  """Removes a run's checkpoints, 1.6 GB each: at once, so that no kill leaves half of one."""
  trash = folder / "discarded"
  shutil.rmtree(trash, ignore_errors=True)
  if (folder / "checkpoints").is_dir():
    (folder / "checkpoints").rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def last_step(folder: Path) -> int | None:
  """The last step of a run that has been evaluated; None for one that has not."""
  file = folder / "judging.json"
  return json.loads(file.read_text())["step"] if file.is_file() else None


def prepare(arena: str, places: Places):
  """Makes the word problems where they are wanted."""
  if arena == "words":
    words.prepare(places.problems, places.data)


def problems_of(arena: str, places: Places) -> str:
  """What the problems of training depend on beside the config: reasoning-gym's version, or a
  checksum of the prepared files."""
  if arena == "tasks":
    return f"reasoning-gym {importlib.metadata.version('reasoning-gym')}"
  crc = 0
  for name in words.NAMES:
    crc = zlib.crc32((places.data / f"{name}.jsonl").read_bytes(), crc)
  return f"words {crc:08x}"


def training(run: plan.Run, places: Places):
  """The config of a run. Raises ValueError where it wants a V0 that is not there yet."""
  model = places.value_model(run.arena) / "v0"
  config = plan.training(run, places.data, str(started(run, places) / "hf"), str(model))
  if config.prior.kind == "v0" and not model.is_dir():
    raise ValueError(f"{model}: found no value model, expected one: --stages=value makes it")
  return config


def begin(config, folder: Path):
  """Starts the backend, waits for an interrupted run in `folder` that is still saving, and raises
  ValueError where the folder holds a run of another plan."""
  backend.start(config)
  backend.without_torch()
  wait(folder)
  same(folder, config)


def wait(folder: Path):
  """Until no other process is in the folder. Raises ValueError where it does not leave in time."""
  until = time.monotonic() + process.PATIENCE
  while True:
    try:
      with lock.Lock(str(folder)):
        return
    except ValueError:
      if time.monotonic() > until:
        raise
      time.sleep(2)


def same(folder: Path, config):
  """Raises ValueError where a folder's config.json differs from `config` in what matters."""
  saved = folder / "config.json"
  if saved.is_file():
    kept = configuration.from_json(saved.read_bytes(), str(saved))
    if problems := results.changes(results.matters(kept), config):
      raise ValueError(f"{folder}: made by another plan: {problems[0]}: move it away")


# --- The warm start


def started(run: plan.Run, places: Places) -> Path:
  """The folder of a seed's warm start."""
  return places.work / run.arena / f"start-{run.seed}"


def warm_start(run: plan.Run, places: Places) -> float:
  """Makes a seed's warm start where it is not there yet -> the seconds that it took."""
  folder = started(run, places)
  config = plan.warm_start(run.arena, run.seed, places.data, places.model)
  begin(config, folder)
  # The model is complete once its checkpoints are gone.
  if not (folder / "hf" / "config.json").is_file() or (folder / "checkpoints").is_dir():
    print(f"warm start of seed {run.seed}", flush=True)
    began, before = time.monotonic(), seconds_of(folder).get("start", 0.0)
    try:
      sft(config, str(folder))
    finally:  # where it is stopped, too
      remember(folder, "start", before + time.monotonic() - began)
    discard(folder)
  return seconds_of(folder).get("start", 0.0)


def heldout_of_start(run: plan.Run, places: Places):
  """The config by which a seed's warm start is evaluated: as its runs are."""
  start = str(started(run, places) / "hf")
  config = plan.training(run._replace(method="v05"), places.data, start)
  return plan.heldout(config, run.arena, places.data)


# --- Evaluation


def evaluated(config, folder: Path, step: int | None = None) -> evaluate.Result:
  """Success on the held-out problems, sampled where that has not been done yet, of the checkpoint
  of `step`; None = of the config's policy."""
  file, wanted = folder / "judging.json", results.of_evaluation(config) | {"step": step}
  if not file.is_file() or json.loads(file.read_text()) != wanted:
    began = time.monotonic()
    eval_mode.evaluate_workdir(config, str(folder), step)
    remember(folder, "judge", time.monotonic() - began)
    files.replace(file, json.dumps(wanted) + "\n")
  return eval_mode.read(str(folder))


def remember(folder: Path, name: str, seconds: float):
  """Keeps in FOLDER/seconds.json what a part has taken."""
  files.replace(folder / "seconds.json", json.dumps(seconds_of(folder) | {name: seconds}) + "\n")


def seconds_of(folder: Path) -> dict[str, float]:
  file = folder / "seconds.json"
  return json.loads(file.read_text()) if file.is_file() else {}


# --- The value model


def value(arena: str, places: Places):
  """Trains the V0 of an arena on the pairs of all finished runs of the other one. Raises ValueError
  where there is none of V0.5 or of GRPO (16)."""
  other, folders = places.work / plan.OTHER[arena], []
  for method in plan.METHODS:
    runs = [x for seed in plan.SEEDS for x in sorted(other.glob(f"{method}-{seed}-*"))]
    found = [x / PAIRS for x in runs if last_step(x) is not None]
    if not found and method in plan.MEASURED:
      raise ValueError(f"{other / method}-*: found no finished run: --stages=first makes it")
    folders += found
  prepare(arena, places)
  folder = places.value_model(arena)
  config = plan.value_training(arena, folders, places.data, places.model)
  if (folder / "config.json").is_file():  # an interrupted one: of the runs that it began with
    config.value.data = configuration.load(str(folder / "config.json")).value.data
    folders = [Path(x) for x in config.value.data.split(",")]
  backend.start(config)
  backend.without_torch()
  wait(folder)
  began, before = time.monotonic(), seconds_of(folder).get("value", 0.0)
  try:
    train_value(config, str(folder))
  finally:  # where it is stopped, too
    remember(folder, "value", before + time.monotonic() - began)
  lines = metrics.read(str(folder))
  learnt = {key: results.mean(lines[-20:], key) for key in ("value/loss", "value/soft")}
  record = {"runs": [x.parent.name for x in folders], "steps": len(lines), "last": learnt}
  file = places.here / "measured" / f"{arena}-value.json"
  file.parent.mkdir(parents=True, exist_ok=True)
  files.replace(file, json.dumps(record | {"seconds": seconds_of(folder)}, indent=1) + "\n")
  discard(folder)
