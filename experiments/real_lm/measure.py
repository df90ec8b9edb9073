"""What the gradient's noise is made of, and how good priors are, at a run's checkpoints.

`noise` is what `--mode=noise` says at the start, the middle and the end of a run of V0.5 and of a
run of GRPO. `prior` replays a run of V0.5: every prior is told what the run has seen, in its order,
and asked about the same prompts; at the three checkpoints 64 rollouts of each of the next 64
prompts stand for the truth. Nothing is trained.
"""

import json
from pathlib import Path
import time
from typing import NamedTuple

import numpy as np

from experiments.headline.run import made
from experiments.real_lm import measured, plan, play, results
from v05_jax import groups as grouping
from v05_jax import plug, rewards, rng, shrinkage
from v05_jax.budgets.base import fixed_number
from v05_jax.priors import base as priors
from v05_jax.run import files, success
from v05_jax.run.export import restored
from v05_jax.run.noise import noise as noise_of
from v05_jax.sampling import rollouts
from v05_jax.sampling.ledger import Order
from v05_jax.setup import setup
from v05_jax.structs import Prompts
from v05_jax.value_model import pairs, scores

ASKED, SAMPLES = 64, 64  # prompts at a checkpoint, and rollouts of each
GROUPS = 64  # in how many groups of rollouts a prior is fused with each prompt's
KINDS = ("constant", "neighbours", "probe", "v0")
TRUTH = "mean of 64 rollouts"  # the best possible prior


# --- Noise


def noise(arena: str, places: play.Places):
  """MEASURED/ARENA-noise.json: "methods": method -> step -> statistics of `--mode=noise`. It is
  written after each step: what one that was interrupted has measured is not measured again, but of
  another run."""
  found = (measured.read(places.here, arena, "noise") or {"methods": {}})["methods"]
  keep = lambda complete: write(
    places,
    f"{arena}-noise",
    {
      "methods": found,
      "seconds": sum(x["seconds"] for steps in found.values() for x in steps.values()),
      "complete": complete,
    },
  )
  for method, prompts in plan.MEASURED.items():
    folder, config = opened(arena, method, places)
    found.setdefault(method, {})
    for step in (0, *at_halves(folder, config)):
      if found[method].get(str(step), {}).get("of") != folder.name:
        began = time.monotonic()
        where = folder if step else folder / "before"  # without checkpoints: the warm start
        said = noise_of(config, str(where), step or None, prompts)
        kept = {key: said[key] for key in ("prompts", "rollouts", "mean reward", "statistics")}
        by = {"of": folder.name, "made": made(), "seconds": time.monotonic() - began}
        found[method][str(step)] = kept | by
        keep(complete=False)
  keep(complete=True)
  release(arena, places)


def opened(arena: str, method: str, places: play.Places):
  """(folder, config) of a measured run. Raises ValueError where it has not been made."""
  rate = results.rate(results.current(places.here)[0], arena, method)
  if rate is None:
    raise ValueError(f"{arena}: found no learning rate of {method}: --stages=tune finds it")
  run = plan.Run(arena, method, plan.MEASURED_SEED, rate)
  folder = places.folder(run)
  if not checkpoints(folder):
    raise ValueError(f"{folder}: found no checkpoints, expected some: --stages=first makes them")
  play.prepare(arena, places)
  config = play.training(run, places)
  play.begin(config, folder)
  return folder, config


def checkpoints(folder: Path) -> list[int]:
  """The steps of the checkpoints that a run still has."""
  return sorted(int(x.name) for x in (folder / "checkpoints").glob("[0-9]*") if x.name.isdigit())


def at_halves(folder: Path, config) -> list[int]:
  """The steps of a run's middle and end, without a save where it was stopped on the way."""
  return [step for step in checkpoints(folder) if step % config.checkpoint.period == 0]


def release(arena: str, places: play.Places):
  """Removes the measured runs' checkpoints once both measurements are there, V0's too."""
  lacking = measured.lacks_v0(places.here, arena)
  if not lacking and all(complete(arena, part, places) for part in ("noise", "prior")):
    for method in plan.MEASURED:
      for folder in (places.work / arena).glob(f"{method}-{plan.MEASURED_SEED}-*"):
        play.discard(folder)


def complete(arena: str, part: str, places: play.Places) -> bool:
  """Whether a measurement has been made to its end; that of priors with V0, once there is one."""
  found = measured.complete(places.here, arena, part)
  if part == "prior" and found and (places.value_model(arena) / "v0").is_dir():
    found = "v0" in measured.read(places.here, arena, part)["run"]
  return found


def write(places: play.Places, name: str, found: dict):
  """MEASURED/NAME.json."""
  file = places.here / "measured" / f"{name}.json"
  file.parent.mkdir(parents=True, exist_ok=True)
  files.replace(file, json.dumps(found, indent=1) + "\n")


# --- Priors


def prior(arena: str, places: play.Places):
  """MEASURED/ARENA-prior.json: {"run": prior -> measures on all steps of a V0.5 run, "checkpoints":
  step -> prior -> measures against 64 rollouts}."""
  began = time.monotonic()
  folder, config = opened(arena, "v05", places)
  config.prior.wrappers = ()
  steps = at_halves(folder, config)
  with rewards.load(config) as verifier:
    run = setup(config)
    collect = rollouts.make(run.policy, config, run.mesh, verifier)
    batches = replayed(folder, run)
    asked, said = {}, {}
    model = places.value_model(arena) / "v0"
    for kind in KINDS if model.is_dir() else KINDS[:-1]:
      said[kind], asked[kind] = ask(kind, config, run, model, batches, steps)
    truths = {}
    for step in (0, *steps):
      state = restored(run, str(folder if step else folder / "before"), step or None)[1]
      truths[step] = sampled(run, collect, state.params, upcoming(run, batches, step))
      del state
  outcomes = np.concatenate([batch.groups.vbar for batch in batches])
  found = {"run": {kind: over_run(v, outcomes) for kind, v in said.items()}, "checkpoints": {}}
  for step, truth in truths.items():
    values = {kind: v[step] for kind, v in asked.items()}
    found["checkpoints"][str(step)] = at_checkpoint(values, *truth)
  by = {"of": folder.name, "made": made(), "seconds": time.monotonic() - began}
  write(places, f"{arena}-prior", found | by)
  release(arena, places)


class Batch(NamedTuple):
  """A step of the replayed run: its prompts and what their rollouts came to."""

  prompts: Prompts
  groups: grouping.Groups


def replayed(folder: Path, run) -> list[Batch]:
  """The steps of a run without selection, from the pairs that it has written. Raises ValueError
  where they are not of the prompts that the run's config names."""
  by_step: dict[int, list[dict]] = {}
  file = folder / pairs.FOLDER / pairs.FILE
  for line in map(json.loads, file.read_text().splitlines()):
    by_step.setdefault(line["step"], []).append(line)
  batches, cursor = [], 0
  for step in sorted(by_step):
    found = by_step[step]
    prompts = run.prompts.at(cursor, len(found), pad_to=run.shapes.prompts)
    if [line["id"] for line in found] != prompts.row[: len(found)].tolist():
      raise ValueError(f"{file}: step {step}: found other prompts than the run's config draws")
    batches.append(Batch(prompts.replace(step=np.int32(step)), groups_of(found, prompts, step)))
    cursor += len(found)
  return batches


def groups_of(found: list[dict], prompts, step: int) -> grouping.Groups:
  """Groups in which each rollout has its prompt's mean reward: number, successes and mean are
  those of the run."""
  reward = np.zeros((len(prompts.mask), max(line["rollouts"] for line in found)), np.float32)
  mask = np.zeros(reward.shape, bool)
  for i, line in enumerate(found):
    reward[i], mask[i, : line["rollouts"]] = line["score"], True
  return grouping.make(reward, mask, row=prompts.row, step=np.int32(step))


def ask(kind: str, config, run, model: Path, batches: list[Batch], steps: list[int]):
  """(V of every prompt of the run, asked before its outcome [N]; step -> V of the next ASKED
  prompts after so many steps)."""
  config = config.copy_and_resolve_references()
  config.prior.kind = kind
  config.priors.v0.path = str(model)
  if kind == "v0":
    config.prior.context = plan.SUPPORT
  setting = plug.Setting(config, len(run.prompts), run.policy, run.mesh, run.prompts, run.exact)
  prior = priors.make(setting)
  state, said, asked = prior.init(), [], {}
  for number in range(len(batches) + 1):
    if number in (0, *steps):
      parts = [prior.ask(state, x)[0][: len(x.rows)] for x in upcoming(run, batches, number)]
      asked[number] = np.concatenate(parts)
    if number < len(batches):
      batch = batches[number]
      value, remembered = prior.ask(state, batch.prompts)
      said.append(value[: len(batch.prompts.rows)])
      state, _ = prior.learn(state, remembered, batch.groups)
  return np.concatenate(said), asked


def upcoming(run, batches: list[Batch], step: int) -> list:
  """The next ASKED prompts after so many steps, in batches of a step's size."""
  cursor, size = sum(len(x.prompts.rows) for x in batches[:step]), run.shapes.prompts
  return [
    run.prompts.at(cursor + i, min(size, ASKED - i), pad_to=size) for i in range(0, ASKED, size)
  ]


def sampled(run, collect, params, batches: list) -> tuple[np.ndarray, np.ndarray]:
  """(rewards in [-1, 1], w = about |g|^2) [ASKED, SAMPLES] of the prompts."""
  order, key = Order(fixed_number(SAMPLES)), rng.at(run.config.seed, 0, rng.EVAL)
  reward, score = [], []
  for prompts in batches:
    rolls, _ = collect(params, prompts, key, order)
    shaping = np.zeros(rolls.mask.shape, np.float32)
    groups = grouping.of_rollouts(rolls, run.config.rewards, shaping, prompts.row, 0, SAMPLES)
    reward.append(groups.reward[: len(prompts.rows)])
    score.append(groups.score[: len(prompts.rows)])
  return np.concatenate(reward), np.concatenate(score)


# --- Measures


def over_run(value, outcome) -> dict[str, float]:
  """Of V [N] where it was said, against the mean reward of each prompt's rollouts, whose noise is
  part of the MSE and the same for every prior."""
  known = np.isfinite(value)
  p, t = (value[known] + 1) / 2, (outcome[known] + 1) / 2
  return {
    "prompts": int(known.sum()),
    "mse": float(np.mean((value[known] - outcome[known]) ** 2)),
    "auc": scores.auc(p, t >= 0.5),
    "bias": float(np.mean(value[known] - outcome[known])),
    "ece": scores.ece(p, t),
  }


def at_checkpoint(values: dict[str, np.ndarray], reward, score) -> dict[str, dict]:
  """prior -> its measures, of V [P] against rewards [P, K] and their w; the best possible prior and
  the group mean alone beside them. A prior that does not speak yet is left out.

  "mse" is of the true mean: the noise of the mean of K rollouts is taken off. "noise over b*'s" is
  the gradient's second moment at one rollout a prompt with V as the baseline, over that with the
  best constant. "fused mse" is that of V0.5's baseline from 4 rollouts, drawn from the K as if they
  were all there is.
  """
  mean, count = reward.mean(1), reward.shape[1]
  constant = np.sum(score * reward) / max(np.sum(score), 1e-30)  # b*
  second = lambda baseline: float(np.sum(score * (reward - baseline) ** 2))
  groups = drawn(reward)
  positive = (reward >= 0).ravel()
  found = {}
  for name, v in values.items():
    if np.isfinite(v).all():
      found[name] = {
        **error((v - mean) ** 2 - reward.var(1, ddof=1) / count),
        "auc": scores.auc(np.repeat(v, count), positive),
        "bias": float(np.mean(v - mean)),
        "ece": scores.ece((v + 1) / 2, (mean + 1) / 2),
        "noise over b*'s": second(v[:, None]) / second(constant),
        "fused mse": fused(groups, v, mean),
      }
  others = (count * mean[:, None] - reward) / (count - 1)  # what each knows nothing of
  half = count // 2
  found[TRUTH] = {
    "mse": 0.0,
    # The first half is ranked by the second: a rollout has a part in the mean of all.
    "auc": scores.auc(np.repeat(reward[:, half:].mean(1), half), (reward[:, :half] >= 0).ravel()),
    "noise over b*'s": second(others) / second(constant),
    "fused mse": fused(groups, mean, mean),
  }
  found[measured.ALONE] = {"fused mse": fused(groups, np.full(len(mean), np.nan), mean)}
  return found


def error(square) -> dict[str, float]:
  """Mean of squared errors [P] and its 95 % bootstrap interval over prompts."""
  low, high = success.interval_of_mean(square)
  return {"mse": float(square.mean()), "low": low, "high": high}


def drawn(reward) -> np.ndarray:
  """[P, GROUPS, 4]: groups of rollouts drawn from those [P, K] of each prompt, with replacement."""
  size = len(reward), GROUPS * measured.GROUP
  place = np.random.default_rng(0).integers(reward.shape[1], size=size)
  return np.take_along_axis(reward, place, 1).reshape(len(reward), GROUPS, measured.GROUP)


def fused(groups, value, mean) -> float:
  """Mean squared error against `mean` [P] of V0.5's baseline from groups [P, G, 4] and V [P]; NaN =
  no prior."""
  vbar = groups.mean(2)
  baseline = np.asarray(shrinkage.fuse(vbar, groups.shape[2], value[:, None]).baseline)
  return float(np.mean((baseline - mean[:, None]) ** 2))
