"""One training step in two halves: `sample` (prompts to rollouts) and `learn` (advantages to update)."""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from v05_jax import config as configuration
from v05_jax import (
  data,
  diagnostics,
  dynamic_sampling,
  metrics,
  models,
  policy_gradient,
  rewards,
  rng,
  rollouts,
  sharding,
  shrinkage,
  tasks,
  value_prior,
)
from v05_jax.structs import Context, Prompts, Rollouts, TrainState
from v05_jax.value_prior import context as contexts

MEAN_K_DECAY = 0.8  # of the running mean of rollouts per prompt
# Metrics that are numbers of a step and not means.
TOTALS = ("k/hist/", "prompts", "rewards/failed", "sampler/decode_steps", "sampler/refills", "time/verify")


class Run(NamedTuple):
  """What a config stands for: everything that can be wrong with it has been found when this exists."""

  config: Any
  mesh: Any
  policy: models.Policy  # the first policy; parameters on host
  prompts: data.Dataset
  prior: value_prior.Prior
  update: policy_gradient.Update
  exact: Callable | None  # (params, rows) -> success probability, NaN where it is not exact
  reference: Any  # the first policy's parameters on the mesh, for the KL; None without
  groups: rollouts.Groups
  capacity: int  # prompts of a step, at most

  def init(self) -> TrainState:
    """The state before the first step."""
    params = self.update.place(self.policy.params)
    zero = np.zeros((), np.int32)
    # An adaptive rule has no prior to lean on at first and uses up to k_max rollouts a prompt.
    first_k = self.groups.k_init if self.groups.rule == "fixed" else self.groups.k_max
    return TrainState(
      params=params, opt_state=self.update.init(params), step=zero, cursor=zero, rollouts=zero, skipped=zero,
      mean_k=np.float32(first_k), context=contexts.empty(self.config.prior.context, self.prior.width),
    )  # fmt: skip


class Draw(NamedTuple):
  """The rollouts of one step, and what the state becomes by having taken them."""

  prompts: Prompts
  rolls: Rollouts
  value: np.ndarray  # float32 [P]  the prior that the rollouts were judged with; NaN = it did not speak
  context: Context
  cursor: int
  generated: int  # rollouts, discarded ones included
  metrics: diagnostics.Pairs


def setup(config) -> Run:
  """Checks a config and loads what it names. Raises ValueError that names the key or file at fault."""
  configuration.validate(config)
  mesh = sharding.make_mesh(config.mesh)
  policy = models.load(config.policy, config.seed)
  prompts = data.load(config.data, policy.tokenizer, config.sampler.max_prompt, seed=config.seed)
  groups = rollouts.Groups(**{name: config.budget[name] for name in rollouts.Groups._fields})
  capacity = -(-config.rollouts_per_step // groups.k_init)
  capacity += -capacity % config.loss.minibatches
  update = policy_gradient.make(
    policy.config, config.loss, config.optimizer, mesh, temperature=config.sampler.temperature,
    total_updates=config.num_steps * config.loss.minibatches * config.loss.epochs,
  )  # fmt: skip
  built_in = config.data.path == data.TASKS
  return Run(
    config, mesh, policy, prompts,
    prior=value_prior.load(config.prior, policy, mesh, config.sampler.max_prompt),
    update=update,
    exact=tasks.make_exact(policy.config, policy.tokenizer, config.sampler) if built_in else None,
    reference=update.freeze(policy.params) if config.loss.kl_coef else None,
    groups=groups, capacity=capacity,
  )  # fmt: skip


def prompts_per_step(run: Run, mean_k: float) -> int:
  """`rollouts_per_step / mean_k`, a multiple of the minibatches, within the capacity."""
  parts = run.config.loss.minibatches
  wanted = round(run.config.rollouts_per_step / float(mean_k) / parts) * parts
  return int(np.clip(wanted, parts, run.capacity))


def sample(run: Run, collect, state: TrainState, step: int) -> Draw:
  """Takes the step's prompts, asks the prior, samples and verifies their rollouts.

  With `config.budget.max_resample`, groups without signal are replaced by those of further prompts, as many
  at a time as are missing.
  """
  began = time.perf_counter()
  count = missing = prompts_per_step(run, state.mean_k)
  key = rng.at(run.config.seed, step)
  context, cursor, draws, measured = state.context, int(state.cursor), [], {}
  for _ in range(1 + run.config.budget.max_resample):
    prompts = run.prompts.at(cursor, missing, pad_to=run.capacity)
    cursor += missing
    features = run.prior.features(prompts)
    value = np.asarray(run.prior.predict(state.context, features))
    rolls, stats = collect(state.params, prompts, key, run.groups, value=value)
    success = success_share(run.config, rolls)
    context = contexts.remember(context, features, *first_success(success, rolls.mask, run.groups.k_init))
    found = diagnostics.rollout_metrics(prompts, rolls, success) | leave_one_out(run, rolls, value)
    measured = metrics.merge(measured, stats | found)
    draws.append((prompts, rolls, value))
    keep = [dynamic_sampling.informative(rolls) for _, rolls, _ in draws]
    missing = count - sum(int(chosen.sum()) for chosen in keep)
    if not missing:
      break
  generated = sum(len(rolls.prompt) for _, rolls, _ in draws)
  if run.config.budget.max_resample:
    prompts, rolls, value = dynamic_sampling.select(draws, keep, count)
  # Numbers of the step, not means over its draws.
  measured |= {name: (p[0], 1) for name, p in measured.items() if name.startswith(TOTALS)}
  measured["rollouts_discarded"] = (generated - len(rolls.prompt), 1)
  measured["prior/support"] = (min(int(state.context.count), run.config.prior.context), 1)
  measured["data/epoch"] = (cursor / len(run.prompts), 1)
  measured["time/sample"] = (seconds := time.perf_counter() - began, 1)
  measured["time/tokens_per_second"] = (measured["response/length"][0], seconds)
  return Draw(prompts, rolls, value, context, cursor, generated, measured)


def success_share(config, rolls: Rollouts) -> np.ndarray:
  """Rewards as a share of their range, [P, K] in [0, 1]; NaN where there is none."""
  return (np.asarray(shrinkage.map_reward(rolls.reward, config.rewards.low, config.rewards.high)) + 1) / 2


def first_success(success, mask, k_init: int):
  """(success [P], valid [P]): the mean over a prompt's first `k_init` rollouts, whose number was not chosen
  by their outcome; groups that stopped early would be biased."""
  first, valid = success[:, :k_init], mask[:, :k_init]
  count = valid.sum(1)
  total = np.where(valid, first, 0.0).sum(1)
  return (total / np.maximum(count, 1)).astype(np.float32), count > 0


def leave_one_out(run: Run, rolls: Rollouts, value) -> diagnostics.Pairs:
  """The mean squared leave-one-out advantage of two baselines on every prompt's first `k_init` rollouts,
  whose number was not chosen by their outcome."""
  first, low, high = run.groups.k_init, run.config.rewards.low, run.config.rewards.high
  reward = shrinkage.map_reward(rolls.reward[:, :first], low, high)
  square = lambda kind: shrinkage.sq_loo(kind, reward, rolls.mask[:, :first], value)
  return {f"loo/{kind}": diagnostics.pair(square(kind)) for kind in ("mean", "v05")}


def learn(run: Run, state: TrainState, draw: Draw) -> tuple[TrainState, diagnostics.Pairs]:
  """Turns a draw into advantages and updates the policy; `state.params` and `opt_state` are donated."""
  began = time.perf_counter()
  config, rolls = run.config, draw.rolls
  low, high = config.rewards.low, config.rewards.high
  shaping = rewards.overlong_penalty(rolls.length, config.sampler.max_response, config.rewards.overlong_buffer)
  reward = shrinkage.map_reward(rolls.reward, low, high)
  advantage, fusion = shrinkage.advantage(config.baseline, reward, rolls.mask, draw.value, shaping)
  truth = exact_truth(run, state.params, draw.prompts)

  params, opt_state, measured, updates = state.params, state.opt_state, draw.metrics, {}
  minibatches = policy_gradient.minibatches(
    draw.prompts, rolls, np.asarray(advantage), config.loss, config.sampler.max_response, run.mesh
  )
  for batch, used in minibatches * config.loss.epochs:
    params, opt_state, update = run.update.step(params, opt_state, batch, used, run.reference)
    # The sampler's log-probs are of the parameters before the step's first update.
    gap = updates.get("loss/logprob_gap", update.get("loss/logprob_gap"))
    updates = metrics.merge(updates, update) | {"loss/logprob_gap": gap}

  success = success_share(config, rolls)
  measured = measured | updates
  measured |= diagnostics.baseline_metrics(draw.value, fusion, advantage, success, rolls.mask, truth)
  prompts = int(draw.prompts.mask.sum())
  mean_k = state.mean_k
  if run.groups.rule != "fixed" and prompts:
    mean_k = np.float32(MEAN_K_DECAY * mean_k + (1 - MEAN_K_DECAY) * draw.generated / prompts)
  measured["time/update"] = (time.perf_counter() - began, 1)
  state = state.replace(
    params=params, opt_state=opt_state, step=state.step + np.int32(1), cursor=np.int32(draw.cursor),
    rollouts=state.rollouts + np.int32(draw.generated), mean_k=mean_k, context=draw.context,
    skipped=jnp.where(updates["grad/skipped"][0] > 0, state.skipped + 1, 0) if updates else state.skipped,
  )  # fmt: skip
  return state, measured


def exact_truth(run: Run, params, prompts: Prompts) -> np.ndarray | None:
  """The true success probability of each prompt [P], NaN where the task does not allow it; None without."""
  if run.exact is None:
    return None
  truth = np.full(len(prompts.mask), np.nan)
  truth[: len(prompts.rows)] = run.exact(params, prompts.rows)
  return truth
