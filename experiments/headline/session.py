"""Many runs in one process: the training step of the package, with programs and models that runs
have in common."""

import json
import time

import jax
import numpy as np

from experiments.headline import controls, gradient
from experiments.headline.methods import MARKS
from v05_jax import config as configuration
from v05_jax import data, models, rewards, tasks
from v05_jax import priors as value_prior
from v05_jax.run import evaluate as evaluation
from v05_jax.run import metrics
from v05_jax.sampling import rollouts
from v05_jax.scale import sharding
from v05_jax.step import Run, capacity, learn, sample
from v05_jax.update import policy_gradient

# Metrics kept of every step; of the others only the evaluations are.
KEPT = (
  "accuracy",
  "advantage/mean_square",
  "advantage/zero_share",
  "grad/norm",
  "k/mean",
  "loss/clip_fraction",
  "loss/entropy",
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

  def run(self, config):
    """(Run, collect, evaluate), as `step.setup`, `rollouts.make` and `evaluate.make` would make
    them."""
    configuration.validate(config)
    mesh = self.part(lambda: sharding.make_mesh(config.mesh), "mesh", config.mesh)
    policy = self.part(lambda: models.load(config.policy, config.seed), "policy", config.policy)
    shape = policy.config  # the programs depend on it, and not on the parameters
    longest, temperature = config.sampler.max_prompt, config.sampler.temperature
    prompts = self.part(
      lambda: data.load(config.data, policy.tokenizer, longest, seed=config.seed),
      "data",
      config.data,
      config.seed,
    )
    update = self.part(
      lambda: policy_gradient.make(
        shape,
        config.loss,
        config.optimizer,
        mesh,
        temperature=temperature,
        total_updates=config.num_steps * config.loss.minibatches * config.loss.epochs,
      ),
      "update",
      shape,
      config.loss,
      config.optimizer,
    )
    prior = self.part(
      lambda: value_prior.make(config.prior, policy, mesh, longest),
      "prior",
      config.prior,
      config.policy,
      config.data,
    )
    exact = self.part(
      lambda: tasks.make_exact(shape, policy.tokenizer, config.sampler), "exact", shape
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
      lambda: evaluation.make(policy, config, mesh, collect),
      "evaluate",
      shape,
      config.sampler,
      config.eval,
      config.data.seed,
      config.seed,
    )
    groups = rollouts.Groups(**{name: config.budget[name] for name in rollouts.Groups._fields})
    run = Run(config, mesh, policy, prompts, prior, update, exact, None, groups, capacity(config))
    return run, collect, evaluate

  def true_gradient(self, run):
    """`gradient.make` for the data of a run."""
    config = run.config
    return self.part(lambda: gradient.make(run), "gradient", run.policy.config, config.data)


def play(session: Session, config, control: str, total: int, cosines: bool) -> dict:
  """Trains until `total` rollouts were generated -> everything that the tables want of the run.

  "curve": (rollouts, success on held-out prompts, the same where it is exact) at MARKS + 1 places;
    "steps": the KEPT
  metrics by step; "k": how often a prompt had how many rollouts; "cosine": of the update's gradient
  with the exact one at four places, over prompts whose success is exact.
  """
  run, collect, evaluate = session.run(config)
  latest = {}
  truth = controls.make_truth(run, collect, lambda: latest["params"], config.seed)
  run = run._replace(prior=controls.make(control, run.prior, config.seed, truth))
  state = run.init()
  curve, steps, k, angles, marks = [], {name: [] for name in KEPT}, {}, [], 0

  def look(state):
    found = metrics.means(evaluation.summarise(evaluate(state.params)))
    curve.append((int(state.rollouts), found["eval/accuracy"], found["eval/exact"]))

  look(state)
  began, step, looked = time.perf_counter(), 0, 0.0
  while int(state.rollouts) < total:
    latest["params"] = state.params
    draw = sample(run, collect, state, step)
    since = time.perf_counter()
    if cosines and marks % 2 == 0 and len(angles) <= marks // 2:
      angles.append(gradient.cosine(run, session.true_gradient(run), state, draw))
    looked += time.perf_counter() - since
    state, measured = learn(run, state, draw)
    found = metrics.means({name: measured[name] for name in KEPT if name in measured})
    for name in KEPT:
      steps[name].append(float(f"{found.get(name, np.nan):.5g}"))
    for name, (count, _) in measured.items():
      if name.startswith("k/hist/"):
        number = name.split("/")[-1]
        k[number] = k.get(number, 0) + count
    step += 1
    since = time.perf_counter()
    if int(state.rollouts) >= min(total, (marks + 1) * total / MARKS):
      marks = int(state.rollouts * MARKS // total)
      look(state)
    looked += time.perf_counter() - since
  jax.block_until_ready(state.params)
  return {
    "curve": curve,
    "steps": steps,
    "k": k,
    "cosine": angles,
    "seconds": time.perf_counter() - began - looked,
  }


SESSION = Session()
