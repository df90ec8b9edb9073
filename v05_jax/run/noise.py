"""What governs the noise of the policy gradient, exactly: one backward pass a rollout.

The second moment of a gradient (r - b) g is E[|g|^2 (r - b)^2], g the gradient of a response's
log-probability. How much a baseline b can lower it depends on the length of g where r is high and
where it is low: on rho = E[|g|^2 | failure] / E[|g|^2 | success]. Each estimator is assessed in its
leave-one-out form, so that neither a bias, nor the scale that some give to an advantage, looks like
a gain.
"""

import json
import os
from typing import Any

import jax
import numpy as np

from v05_jax import config as configuration
from v05_jax import plug, rewards, rng
from v05_jax.observers import scoreboard
from v05_jax.observers.exact import truth
from v05_jax.run import files, success
from v05_jax.run.export import restored
from v05_jax.run.show import narrowed, number
from v05_jax.sampling import rollouts
from v05_jax.sampling.draw import draw
from v05_jax.setup import Run, setup
from v05_jax.step import learn
from v05_jax.structs import Draw, TrainState
from v05_jax.update import score_norms

CONSTANT, TRUTH = "one constant, b*", "the true success rate"  # baselines beside the estimators'
LEARNING = 2  # steps before the measurement: priors with an empty context speak from the second on
LENGTHS = "gradient", "score"  # |g|^2 itself, and what the sampler's log-probs say of it
PARTS = "reward", "failed", "succeeded", "failed inside", "succeeded inside"  # of `columns`


def noise(config, workdir: str, step: int | None = None, prompts: int = 64) -> dict[str, Any]:
  """`--mode=noise`: rho, the best constant baseline and the noise under every estimator, on a
  run's next prompts -> what it writes to WORKDIR/noise.json.

  Takes the checkpoint of `step`, by default the newest, or, where there is none, the policy of the
  config. Prior and estimators first learn from two steps of `prompts` prompts, as in training; then
  as many further ones are measured, each with `budget.k_init` rollouts. Intervals are 95 %
  bootstrap intervals over these prompts. Nothing else in the workdir changes.

  Raises ValueError for bad input before anything is sampled, and where no rollout has a verdict.
  """
  if prompts < 2:
    raise ValueError(f"--prompts={prompts}: expected at least 2 for --mode=noise")
  folder, few = files.prepare(workdir), plain(config, prompts)
  configuration.validate(few)
  with rewards.load(few) as verifier:
    run = setup(few)
    found, state = restored(run, workdir, step)
    state = state.replace(opt_state=None, mean_k=np.float32(few.budget.k_init))
    collect = rollouts.make(run.policy, few, run.mesh, verifier)
    assessed, learnt = untaught(run)
    for _ in range(LEARNING):
      seen = draw(run, collect, state)
      learnt |= taught(assessed, learnt, seen.taken)
      state = learn(run, state, seen)[0].replace(mean_k=state.mean_k)
    taken = draw(run, collect, state).taken
  measured = measure(
    run, state, taken, squares(run, assessed, learnt | state.estimator, taken, state)
  )
  measured = {"step": found, "k": few.budget.k_init, "baseline": few.baseline} | measured
  files.replace(folder / "noise.json", json.dumps(measured, indent=1) + "\n")
  who = "the policy of the config" if found is None else f"step {found} of {workdir}"
  print(f"{text(who, measured)}\n\n{os.fspath(folder / 'noise.json')}")
  return measured


def plain(config, prompts: int):
  """The config with steps of so many prompts of k_init rollouts each, none selected or replaced; of
  2, where nothing but further rollouts tells what the first is worth."""
  config = config.copy_and_resolve_references()
  single = config.budget.k_init == 1 < config.budget.k_max and not plug.speaks(config)
  number = 2 if single else config.budget.k_init
  fixed = {"rule": "fixed", "k_init": number, "k_max": number, "max_resample": 0}
  config.budget.update(fixed)
  config.selection.pool = 1
  return narrowed(config, prompts)


def untaught(run: Run):
  """(the estimators of `config.observers.noise`, the run's own among them, by label; what they know
  at first)."""
  setting = plug.Setting(run.config, len(run.prompts), run.policy, run.mesh, run.prompts, run.exact)
  assessed = scoreboard.named(run.config.observers.noise.estimators, setting)
  return assessed, scoreboard.initial(assessed)


def taught(assessed, learnt, seen: Draw):
  """What they know after a draw."""
  groups, values, after = seen.groups._replace(first=None), scoreboard.values(assessed, seen), {}
  for label, (estimator, _) in assessed.items():
    after |= jax.jit(estimator.learn)(learnt, groups, values[label])
  return after


def squares(run: Run, assessed, learnt, taken: Draw, state: TrainState) -> dict[str, np.ndarray]:
  """Label -> squared leave-one-out advantage of each rollout [P, K]; where success is exact, that
  of the true success rate too."""
  groups, values, found = taken.groups._replace(first=None), scoreboard.values(assessed, taken), {}
  for label, (estimator, _) in assessed.items():
    unseen = jax.jit(estimator.unseen or estimator.baseline)
    found[label] = (groups.reward - np.asarray(unseen(learnt, groups, values[label]))) ** 2
  known = truth(run.exact, state.params, taken.prompts) if run.exact else np.array([np.nan])
  real = groups.mask.any(1)
  if np.isfinite(known[real[: len(known)]]).all():
    found[TRUTH] = (groups.reward - (2 * known[:, None] - 1)) ** 2
  return found


def measure(run: Run, state: TrainState, taken: Draw, squared) -> dict[str, Any]:
  """The part of noise.json on the rollouts: their data, and statistics with intervals."""
  groups, config = taken.groups, run.config
  norms = score_norms.make(run.policy.config, config.loss, config.sampler.temperature, run.mesh)
  mask = groups.mask & (taken.rolls.length > 0)
  if not mask.any():
    raise ValueError("--mode=noise: found no rollout with a verdict, expected some")
  exact = norms(state.params, taken.prompts, taken.rolls.replace(mask=mask))
  lengths = dict(zip(LENGTHS, (np.where(mask, exact, 0.0), groups.score)))
  real, own = mask.any(1), plug.label(config.baseline)
  reward = groups.reward[real].astype(np.float64)
  constant = np.sum(lengths["gradient"][real] * reward) / max(np.sum(lengths["gradient"]), 1e-30)
  squared = {name: x[real] for name, x in squared.items()} | {CONSTANT: (reward - constant) ** 2}
  lengths = {name: x[real].astype(np.float64) for name, x in lengths.items()}
  column = columns(reward, mask[real], lengths, squared)
  key = rng.at(config.seed, 0, rng.BOOTSTRAP)
  means = success.bootstrap(key, np.stack(list(column.values()), 1))
  drawn = statistics(dict(zip(column, means.T)), list(squared), own)
  whole = statistics({name: x.mean() for name, x in column.items()}, list(squared), own)
  return {
    "prompts": int(real.sum()),
    "rollouts": int(mask.sum()),
    "mean reward": number(np.mean(reward[mask[real]])),
    "statistics": {name: _with_interval(x, drawn[name]) for name, x in whole.items()},
    "data": data(taken, mask, lengths),
  }


def _with_interval(value, drawn) -> dict[str, float | None]:
  low, high = success.interval(drawn)
  return {"value": number(value), "low": number(low), "high": number(high)}


def data(taken: Draw, mask, lengths) -> list[dict[str, Any]]:
  """A JSON object a prompt: its rollouts' rewards in [-1, 1], |g|^2 and scores."""
  found = []
  for i, p in enumerate(np.flatnonzero(mask.any(1))):
    line = {"row": int(taken.prompts.row[p]), "value": number(taken.value[p])}
    line["reward"] = taken.groups.reward[p][mask[p]].tolist()
    found.append(line | {name: x[i][mask[p]].tolist() for name, x in lengths.items()})
  return found


def columns(reward, mask, lengths, squared) -> dict[str, np.ndarray]:
  """Sums over each prompt's rollouts [P], from which `statistics` computes everything.

  reward, mask [P, K]; lengths: name -> [P, K]; squared: name of a baseline -> (r - b)^2 [P, K].
  """
  sums = lambda x: np.sum(np.where(mask, x, 0.0), axis=1)
  failed, succeeded = (1 - reward) / 2, (1 + reward) / 2
  found = {"count": sums(1.0), "failed": sums(failed), "succeeded": sums(succeeded)}
  both = (found["failed"] > 0) & (found["succeeded"] > 0)
  for name, length in lengths.items():
    of = {"": 1.0, " reward": reward, " failed": failed, " succeeded": succeeded, " square": length}
    found |= {f"{name}{what}": sums(length * x) for what, x in of.items()}
    for what in ("failed", "succeeded"):  # means of the prompts that have both
      mean = found[f"{name} {what}"] / np.where(found[what] > 0, found[what], 1.0)
      found[f"{name} {what} inside"] = np.where(both, mean, 0.0)
    found |= {f"{name} {label}": sums(length * x) for label, x in squared.items()}
  found["product"] = sums(np.prod(list(lengths.values()), axis=0))
  return found


def statistics(mean, labels, own: str) -> dict[str, Any]:
  """All that is reported, from the means of `columns` over prompts: numbers, or arrays of bootstrap
  draws. NaN or infinite where there is no failure or no success."""
  found, count = {}, mean["count"]
  with np.errstate(divide="ignore", invalid="ignore"):
    for name in LENGTHS:
      part = {what: mean[f"{name} {what}"] for what in (*PARTS, *labels)}
      failures, successes = part["failed"] / mean["failed"], part["succeeded"] / mean["succeeded"]
      found[f"rho, {name}"] = np.divide(failures, successes)
      found[f"rho inside prompts, {name}"] = np.divide(
        part["failed inside"], part["succeeded inside"]
      )
      found[f"b*, {name}"] = part["reward"] / mean[name]
      found |= {f"{label}, {name}": np.divide(part[label], part[own]) for label in labels}
    x, y = LENGTHS
    spread = lambda name: mean[f"{name} square"] / count - (mean[name] / count) ** 2
    both = mean["product"] / count - mean[x] * mean[y] / count**2
    found["correlation"] = both / np.sqrt(spread(x) * spread(y))
  return found


def text(who: str, measured: dict[str, Any]) -> str:
  """The table that is printed."""
  found, own = measured["statistics"], plug.label(measured["baseline"])
  cell = lambda name: _cell(**found[name])
  row = lambda title, name: (
    "| " + " | ".join([title, *(cell(f"{name}, {x}") for x in LENGTHS)]) + " |"
  )
  labels = [name.removesuffix(", gradient") for name in found if name.endswith(", gradient")]
  labels = [label for label in labels if label not in ("rho", "rho inside prompts", "b*")]
  order = sorted(labels, key=lambda label: found[f"{label}, gradient"]["value"] or 0.0)
  own_first = lambda label: f"{label} (own)" if label == own else label
  missing = (
    []
    if found["rho, gradient"]["value"]
    else ["There is no rho without a failure and a success: take more --prompts, or other ones."]
  )
  return "\n".join(
    [
      f"{who}: {measured['prompts']} prompts, {measured['rollouts']} rollouts, mean reward "
      f"{_plain(measured['mean reward'])}; 95 % bootstrap intervals over prompts",
      "",
      "| | by \\|g\\|^2 | by score |",
      "| --- | --- | --- |",
      row("rho = failures / successes", "rho"),
      row("the same inside prompts with both", "rho inside prompts"),
      row("weighted mean reward b*", "b*"),
      f"| correlation of score and \\|g\\|^2 | {cell('correlation')} | |",
      "",
      f"| second moment of the gradient over {own}'s | by \\|g\\|^2 | by score |",
      "| --- | --- | --- |",
      *(row(own_first(label), label) for label in order),
      *missing,
    ]
  )


def _plain(value) -> str:
  return "none" if value is None else f"{value:.2f}"


def _cell(value, low, high) -> str:
  return _plain(value) + ("" if value is None else f" [{_plain(low)}, {_plain(high)}]")
