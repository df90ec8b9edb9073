"""Many runs in one process: the training step of the package, with programs and models that runs
have in common."""

import json
import time

import jax
import numpy as np

from experiments.headline import controls
from experiments.headline.methods import MARKS
from experiments.headline.summary import PASSES
from v05_jax import config as configuration
from v05_jax import data, models, plug, rewards, tasks
from v05_jax.observers import noise
from v05_jax.observers.base import Step
from v05_jax.run import evaluate as evaluation
from v05_jax.run import metrics
from v05_jax.sampling import rollouts
from v05_jax.sampling.draw import draw
from v05_jax.scale import sharding
from v05_jax.setup import assemble, make_update
from v05_jax.step import learn, update

OBSERVED = ("diagnostics", "exact")  # all that makes a metric of KEPT

# Metrics kept of every step; of the others only the evaluations are.
KEPT = (
  "accuracy",
  "advantage/mean_square",
  "advantage/zero_share",
  "grad/norm",
  "k/mean",
  "loss/clip_fraction",
  "loss/entropy",
  "noise/rho",
  "prior/accepted",
  "prior/true_mse",
  "prompts",
  "rollouts_discarded",
  "selection/chance",
  "shrinkage/true_mse",
  "shrinkage/true_mse_mean",
  "shrinkage/weight",
  "time/sample",
  "time/update",
)


class Session:
  """Makes each part once for all runs that need the same; everything is kept until the process
  ends."""

  def __init__(self):
    self._parts = {}

  def part(self, make, *key):
    """`make()` for a key that is new, else what it made."""
    key = tuple(
      json.dumps(x.to_dict(), sort_keys=True) if hasattr(x, "to_dict") else x for x in key
    )
    if key not in self._parts:
      self._parts[key] = make()
    return self._parts[key]

  def forget(self, name: str):
    """Drops the parts of a name."""
    self._parts = {key: part for key, part in self._parts.items() if key[0] != name}

  def run(self, config, observed=OBSERVED):
    """(Run, collect, evaluate), as `setup.setup`, `rollouts.make` and `evaluate.make` would make
    them, but that `observed` look on."""
    configuration.validate(config)
    config = config.copy_and_resolve_references()
    config.observe = observed
    mesh = self.part(lambda: sharding.make_mesh(config.mesh), "mesh", config.mesh)
    policy = self.part(lambda: models.load(config.policy, config.seed), "policy", config.policy)
    shape = policy.config  # the programs depend on it, and not on the parameters
    longest = config.sampler.max_prompt
    prompts = self.part(
      lambda: data.load(config.data, policy.tokenizer, longest, seed=config.seed),
      "data",
      config.data,
      config.seed,
    )
    updater = self.part(
      lambda: make_update(config, shape, mesh), "update", shape, config.loss, config.optimizer
    )
    exact = self.part(
      lambda: tasks.make_exact(shape, policy.tokenizer, config.sampler),
      "exact",
      shape,
      config.sampler,
    )
    verifier = self.part(
      lambda: rewards.load(config).__enter__(), "verifier", config.reward, config.rewards
    )
    collect = self.part(
      lambda: rollouts.make(policy, config, mesh, verifier),
      "collect",
      shape,
      config.sampler,
      config.rewards,
    )
    evaluate = self.part(
      lambda: evaluation.make(policy, config, collect),
      "evaluate",
      shape,
      config.sampler,
      config.eval,
      data.eval_config(config),
      config.seed,
    )
    run = assemble(plug.Setting(config, len(prompts), policy, mesh, prompts, exact), updater)
    prior = self.part(
      lambda: run.prior, "prior", config.prior, config.priors, config.policy, config.data
    )
    estimator, advantages = self.part(
      lambda: (run.estimator, run.advantages),
      "estimator",
      config.baseline,
      config.estimators,
      config.policy,
      config.prior,
      config.budget,
      len(prompts),
    )
    run = run._replace(prior=prior, estimator=estimator, advantages=advantages)
    return run, collect, evaluate


def play(session: Session, config, control: str, total: int, observed=OBSERVED) -> dict:
  """Trains until `total` rollouts were generated -> everything that the tables want of the run.

  "curve": (rollouts, exact success on held-out prompts, exact pass@k for each of PASSES) at MARKS
  + 1 places; "steps": the KEPT metrics by step; "k": how often a prompt had how many rollouts;
  "seconds": of the steps, evaluations left out. `observed`: who looks on; the metrics of
  others are NaN.
  """
  run, collect, evaluate = session.run(config, observed)
  latest = {}
  truth = controls.make_truth(run, collect, lambda: latest["params"], config.seed)
  run = run._replace(prior=controls.make(control, run.prior, config.seed, truth))
  state = run.init()
  curve, steps, k, marks = [], {name: [] for name in KEPT}, {}, 0
  look = lambda state: curve.append((int(state.rollouts), *success(evaluate(state.params).exact)))
  look(state)
  began, looked = time.perf_counter(), 0.0
  while int(state.rollouts) < total:
    latest["params"] = state.params
    state, measured = advance(run, state, draw(run, collect, state))
    found = metrics.means({name: measured[name] for name in KEPT if name in measured})
    for name in KEPT:
      steps[name].append(float(f"{found.get(name, np.nan):.5g}"))
    for name, (count, _) in measured.items():
      if name.startswith("k/hist/"):
        number = name.split("/")[-1]
        k[number] = k.get(number, 0) + count
    since = time.perf_counter()
    if int(state.rollouts) >= min(total, (marks + 1) * total / MARKS):
      marks = int(state.rollouts * MARKS // total)
      look(state)
    looked += time.perf_counter() - since
  jax.block_until_ready(state.params)
  seconds = time.perf_counter() - began - looked
  return {"curve": curve, "steps": steps, "k": k, "seconds": seconds}


def success(exact: np.ndarray) -> list[float]:
  """Mean success, and mean pass@k = 1 - (1 - p)^k for each of PASSES, of prompts whose probability
  of success p is exact; the others are NaN in `exact` [n] and left out."""
  p = exact[np.isfinite(exact)]
  return [float(p.mean()), *(float(np.mean(1 - (1 - p) ** k)) for k in PASSES)]


def advance(run, state, drawn):
  """The rest of a step as `train` takes it, from rollouts to the next state -> (state, metrics)."""
  taken = drawn.taken
  advantage, test = run.advantages(state.estimator, taken.groups, taken.value)
  look = Step(int(state.step), state.params, drawn.draws, taken, advantage, test)
  observers, seen = run.observers.see(state.observers, look)
  state, updated = update(run, state, taken, advantage)
  state, learnt = learn(run, state, drawn)
  rho = {"noise/rho": noise.rho(noise.of_scores(taken.groups.unconditional))}
  return state.replace(observers=observers), drawn.metrics | seen | updated | learnt | rho


SESSION = Session()
