"""A run read back: what `metrics.jsonl` and `config.json` of its workdir say, and nothing else."""

import math
import os
import re
from typing import Any, NamedTuple
import zlib

from etils import epath
import numpy as np

from v05_jax import config as configuration
from v05_jax.names import alike
from v05_jax.run import files, metrics, workdirs
from v05_jax.scale import sources

# Keys whose functions decide what a run learns.
LEARNS = ("reward", "baseline", "budget.rule", "prior.kind", "prior.wrappers", "policy.family")
# Panels of a run's metrics: title, then label -> metric.
PANELS = (
  ("held-out success", {"exact": "eval/exact", "exact or sampled": "eval/accuracy"}),
  ("success of the rollouts", {"accuracy": "accuracy"}),
  ("reward, verifier's units", {"reward": "reward"}),
  ("rollouts per prompt", {"k": "k/mean"}),
  ("prior's error |V - vbar|, value units", {"|V - vbar|": "prior/abs_error"}),
  ("shares", {"weight of vbar": "shrinkage/weight", "priors accepted": "prior/accepted"}),
  (
    "baseline MSE, value units squared",
    {
      "fused, true": "shrinkage/true_mse",
      "group mean, true": "shrinkage/true_mse_mean",
      "fused, estimated": "shrinkage/estimated_mse",
    },
  ),
  ("gradient norm before clipping", {"norm": "grad/norm"}),
  ("entropy, nats a token", {"entropy": "loss/entropy"}),
  ("response length, tokens", {"length": "response/length"}),
)


class Run(NamedTuple):
  """One workdir."""

  name: str  # its folder's, or one that was given to it
  parent: str  # name of the folder around it
  folder: str  # its own, with the one around it
  key: str  # the config but for its seed, and own code: runs of one key are seeds of one method
  lines: list[dict]  # of metrics.jsonl
  keys: dict[str, Any]  # of config.json, flat, and of own code; empty without one
  when: float  # Unix time of its start; of its last line where the start is not known

  @property
  def seed(self) -> int | None:
    """The config's seed; None without a config."""
    return self.keys["seed"] if self.keys else None

  @property
  def axis(self) -> str:
    """What its curves are drawn over: rollouts, or steps where it has none (a warm start)."""
    return "rollouts" if self.lines[-1]["rollouts"] else "step"

  def curve(self, name: str, axis: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(place on the axis, by default its own; value) of the lines that hold a metric."""
    points = [
      (line[axis or self.axis], line[name]) for line in self.lines if line.get(name) is not None
    ]
    places, values = np.array(points, float).reshape(-1, 2).T
    return places, values

  def total(self, *names: str) -> float:
    return sum(line.get(name) or 0.0 for line in self.lines for name in names)

  @property
  def seconds(self) -> float:
    """Wall-clock time of its steps without compilation: a step in which a program was compiled
    counts as the median of the others."""
    times, compiled, before = [], [], 0
    for line in self.lines:
      of = lambda *names, line=line: sum(line.get(name) or 0.0 for name in names)
      times.append(of("time/step") or of("time/sample", "time/update"))
      now = line.get("time/compilations")
      compiled.append(now is not None and now != before)
      before = before if now is None else now
    others = [t for t, c in zip(times, compiled) if t and not c]
    usual = float(np.median(others)) if others else math.inf
    return sum(min(t, usual) if c else t for t, c in zip(times, compiled))


def load(workdir: str) -> Run:
  """The run in a workdir. Raises ValueError if it holds no metrics, or not those of one run
  (`metrics.read`)."""
  path = files.folder(workdir)
  lines = metrics.read(path)
  if not lines:
    begun = (path / metrics.FILE).exists() or (path / "config.json").exists()
    gone = "" if path.exists() else ", as there is no such folder"
    found = "a run without a first line yet" if begun else f"no metrics.jsonl{gone}"
    near = ("" if begun else alike(workdir)) or ","
    raise ValueError(f"workdir {workdir}: found {found}{near} expected the metrics of a run")
  if bare := next((line for line in lines if "rollouts" not in line), None):
    raise ValueError(f"{path / metrics.FILE}: found no rollouts in the line of step {bare['step']}")
  key, keys, saved = os.fspath(path), {}, path / "config.json"
  if saved.exists():
    found = configuration.from_json(saved.read_bytes(), os.fspath(saved))
    keys = configuration.flatten(configuration.completed(found))
    keys |= own_code(path, keys)
    ignored = ("seed", *configuration.RESUMABLE)
    key = repr(sorted((k, v) for k, v in keys.items() if k not in ignored))
  folder = f"{path.parent.name}/{path.name}"
  keys = keys if "seed" in keys else {}
  return Run(path.name, path.parent.name, folder, key, lines, keys, _when(path))


def own_code(path: epath.Path, keys: dict[str, Any]) -> dict[str, str]:
  """A key "own_code/FILE" -> digest of the user's own files behind the keys of `LEARNS`."""
  digest = lambda text: f"{zlib.crc32(text.encode()):08x}"
  found = {f"own_code/{name}": digest(text) for name, text in workdirs.own_code(path).items()}
  return behind(" ".join(str(keys.get(key)) for key in LEARNS), found)


def behind(names: str, keys: dict[str, Any]) -> dict[str, Any]:
  """Of a run's keys those of the user's own files whose functions a text names."""
  files_of = tuple(f"own_code/{module}." for module in sources.PLUG.findall(names))
  return {key: value for key, value in keys.items() if key.startswith(files_of)}


def _when(path: epath.Path) -> float:
  """Unix time at which the run in `path` began, from the names of TensorBoard's files: copying a
  folder does not change those."""
  events = path / "tensorboard"
  names = [file.name for file in events.iterdir()] if events.is_dir() else []
  matches = [re.match(r"events\.out\.tfevents\.(\d+)", name) for name in names]
  begun = [float(match[1]) for match in matches if match]
  return min(begun) if begun else float((path / metrics.FILE).stat().mtime)


def moving_mean(y: np.ndarray, width: int) -> np.ndarray:
  """Centred mean over `width` points, fewer at the ends."""
  weights = np.ones(max(width, 1))
  return np.convolve(y, weights, "same") / np.convolve(np.ones(len(y)), weights, "same")


def panels(run: Run) -> list[tuple[str, dict]]:
  """(title, label -> (place, value, of an evaluation?)) of a run's PANELS with something to show.

  A curve that repeats an earlier one is left out: reward = accuracy where a reward is 0 or 1.
  """
  found, seen = [], []
  for title, names in PANELS:
    curves = {}
    for label, name in names.items():
      curve = run.curve(name)
      if len(curve[0]) and not any(np.array_equal(curve, other) for other in seen):
        seen.append(curve)
        curves[label] = (*curve, name.startswith("eval/"))
    if curves:
      only = f": {next(iter(curves))}" if len(curves) == 1 < len(names) else ""
      found.append((title.split(",")[0] + only if only else title, curves))
  return found


def standings(*runs: Run) -> list[tuple[str, float, float]]:
  """(estimator, difference, standard error) of the scoreboards' last lines, best first; [] without
  one.

  Of several runs of one method the mean over those that have a scoreboard.
  """
  boards = [board for run in runs if (board := _board(run.lines[-1]))]
  found = []
  for name in boards[0] if boards else ():
    differences, errors = zip(*(board[name] for board in boards))
    found.append(
      (name, float(np.mean(differences)), float(np.sqrt(np.sum(np.square(errors))) / len(boards)))
    )
  return sorted(found, key=lambda row: row[1])


def _board(last: dict) -> dict[str, tuple[float, float]]:
  names = {name.split("/")[1] for name in last if name.startswith("scoreboard/")}
  own = {name for name in names if f"scoreboard/{name}/difference" not in last}
  rows = {
    x: (last[f"scoreboard/{x}/difference"], last.get(f"scoreboard/{x}/standard_error"))
    for x in names - own
  }
  if any(None in row for row in rows.values()):  # nothing was assessed
    return {}
  return rows | {f"{name} (own)": (0.0, 0.0) for name in own}
