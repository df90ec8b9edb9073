"""One training step in two halves: `sample` (prompts to rollouts) and `learn` (advantages to
update)."""

from collections.abc import Callable
from functools import partial
import math
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import (
  budget,
  data,
  diagnostics,
  estimator,
  models,
  rewards,
  rng,
  scoreboard,
  shrinkage,
  tasks,
)
from v05_jax import config as configuration
from v05_jax import priors as value_prior
from v05_jax.priors import context as contexts
from v05_jax.priors import drift as drifts
from v05_jax.priors import history as histories
from v05_jax.priors import prior as priors
from v05_jax.run import metrics
from v05_jax.sampling import dynamic_sampling, rollouts, selection
from v05_jax.scale import distributed, sharding
from v05_jax.structs import Context, Prompts, Rollouts, TrainState
from v05_jax.update import packing, policy_gradient

MEAN_K_DECAY = 0.8  # of the running mean of rollouts per prompt
LEARNED = ("neighbours", "v0")  # priors that can be wrong about single prompts: what drift is about
# Metrics that are numbers of a step and not means.
TOTALS = (
  "k/hist/",
  "prompts",
  "rewards/failed",
  "sampler/decode_steps",
  "sampler/refills",
  "time/verify",
)


class Run(NamedTuple):
  """What a config stands for: everything that can be wrong with it has been found when this
  exists."""

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
    groups = self.groups
    # A rule that stops by the outcome has no prior to lean on at first and uses up to k_max
    # rollouts a prompt.
    first_k = {"fixed": groups.k_init} | dict.fromkeys(budget.BATCH_RULES, groups.k_mean)
    return TrainState(
      params=params,
      opt_state=self.update.init(params),
      step=zero,
      cursor=zero,
      rollouts=zero,
      skipped=distributed.put(zero, sharding.replicated(self.mesh)),
      mean_k=np.float32(first_k.get(groups.rule, groups.k_max)),
      estimator=estimator.init(len(self.prompts)),
      context=contexts.empty(self.config.prior.context, self.prior.width),
      drift=drifts.init(),
    )

  def batch_shape(self) -> tuple[int, int, int]:
    """(M, B, T) of an update's batch."""
    return batch_shape(self.config, self.mesh)


class Draw(NamedTuple):
  """The rollouts of one step, and what the state becomes by having taken them."""

  prompts: Prompts
  rolls: Rollouts
  # float32 [P] the prior that the rollouts were judged with; NaN = it did not speak
  value: np.ndarray
  # float32 [P] of a prompt in the loss: 1, or 1 / its chance of having been selected
  weight: np.ndarray
  context: Context
  estimator: estimator.Estimator
  drift: drifts.Drift
  cursor: int
  generated: int  # rollouts, discarded ones included
  # row of the dataset, mean reward in [-1, 1], rollouts: see `sample`
  pairs: tuple[np.ndarray, np.ndarray, np.ndarray]
  metrics: diagnostics.Pairs


def setup(config) -> Run:
  """Checks a config and loads what it names. Raises ValueError that names the key or file at
  fault."""
  configuration.validate(config)
  mesh = sharding.make_mesh(config.mesh)
  distributed.connect(mesh)
  policy = models.load(config.policy, config.seed)
  weights = jax.tree.leaves(policy.params)
  distributed.check_same(
    "config.policy",
    lambda: [
      repr(policy.config),
      repr(policy.stop),
      *(np.ravel(x)[:: max(1, x.size // 4096)] for x in weights),
    ],
  )
  prompts = data.load(config.data, policy.tokenizer, config.sampler.max_prompt, seed=config.seed)
  distributed.check_same(
    "config.data", lambda: [prompts.tokens, prompts.start, *(str(row) for row in prompts.rows)]
  )
  groups = rollouts.Groups(**{name: config.budget[name] for name in rollouts.Groups._fields})
  update = policy_gradient.make(
    policy.config,
    config.loss,
    config.optimizer,
    mesh,
    temperature=config.sampler.temperature,
    total_updates=config.num_steps * config.loss.minibatches * config.loss.epochs,
  )
  built_in = config.data.path == data.TASKS
  return Run(
    config,
    mesh,
    policy,
    prompts,
    prior=value_prior.make(config.prior, policy, mesh, config.sampler.max_prompt),
    update=update,
    exact=tasks.make_exact(policy.config, policy.tokenizer, config.sampler) if built_in else None,
    reference=update.freeze(policy.params) if config.loss.kl_coef else None,
    groups=groups,
    capacity=capacity(config),
  )


def capacity(config) -> int:
  """Prompts of a step, at most."""
  batch = config.budget.rule in budget.BATCH_RULES
  fewest = config.budget.k_mean if batch else config.budget.k_init  # rollouts of a prompt
  most = math.ceil(config.rollouts_per_step / fewest)
  return most + -most % config.loss.minibatches


def batch_shape(config, mesh) -> tuple[int, int, int]:
  """(M, B, T) of an update's batch."""
  longest = config.sampler.max_prompt + config.sampler.max_response - 1
  return packing.batch_shape(config.loss, capacity(config), config.budget.k_max, longest, mesh)


def prompts_per_step(run: Run, mean_k: float) -> int:
  """`rollouts_per_step / mean_k`, a multiple of the minibatches, within the capacity."""
  parts = run.config.loss.minibatches
  wanted = round(run.config.rollouts_per_step / float(mean_k) / parts) * parts
  return int(np.clip(wanted, parts, run.capacity))


def sample(run: Run, collect, state: TrainState, step: int) -> Draw:
  """Takes the step's prompts, asks the prior, samples and verifies their rollouts.

  With `config.budget.max_resample`, groups without signal are replaced by those of further prompts,
  as many at a time as are missing.
  """
  began = time.perf_counter()
  count = missing = prompts_per_step(run, state.mean_k)
  key = rng.at(run.config.seed, step)
  context, learnt, cursor, draws, measured = (
    state.context,
    state.estimator,
    int(state.cursor),
    [],
    {},
  )
  pairs = []  # of every prompt asked, with the rollouts whose number was fixed in advance
  for _ in range(1 + run.config.budget.max_resample):
    asked = ask(run, state, cursor, missing, step)
    prompts, value, cursor = asked.prompts, asked.value, asked.cursor
    rolls, stats = collect(
      state.params, prompts, key, run.groups, value=value, ewa=state.estimator.ewa
    )
    first = run.groups.unconditional  # rollouts whose number was not chosen by their outcome
    success = success_share(run.config, rolls)
    mean, valid = mean_success(success[:, :first], rolls.mask[:, :first])
    seen = valid & np.isfinite(mean)
    pairs.append((prompts.row[seen], 2 * mean[seen] - 1, rolls.mask[:, :first].sum(1)[seen]))
    context, learnt, told = take_in(
      context,
      learnt,
      (asked.features, asked.raw, mean, valid),
      prompts.row,
      np.int32(step),
      2 * success[:, :first] - 1,
      rolls.mask[:, :first],
      value,
      asked.prior,
      own=shrinkage.KINDS[run.config.baseline],
      half_life=run.config.prior.half_life,
    )
    found = (
      diagnostics.rollout_metrics(prompts, rolls, success) | scored(told.squares) | asked.metrics
    )
    if len(asked.rivals) > 1:
      found |= diagnostics.rival_metrics(asked.rivals, mean, valid)
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
  measured |= standings(learnt.board, told.spread, shrinkage.KINDS[run.config.baseline])
  measured |= record(run, state, told.errors)
  measured["rollouts_discarded"] = (generated - len(rolls.prompt), 1)
  measured["prior/support"] = (min(int(state.context.count), run.config.prior.context), 1)
  measured["data/epoch"] = (cursor / len(run.prompts), 1)
  measured["time/sample"] = (seconds := time.perf_counter() - began, 1)
  measured["time/tokens_per_second"] = (measured["response/length"][0], seconds)
  drift = state.drift
  if not run.prior.smoothed(state.context):  # a rate that stood in for V does not speak against it
    drift = watch(drift, measured, run.config.prior.fallback, step)
  pairs = tuple(np.concatenate(x) for x in zip(*pairs))
  return Draw(
    prompts, rolls, value, asked.weight, context, learnt, drift, cursor, generated, pairs, measured
  )


class Told(NamedTuple):
  """What a draw's rollouts say of the estimators and of V."""

  squares: jax.Array  # [E, P] of `estimator.learn`
  spread: jax.Array  # [E] of `scoreboard.standard_error`
  errors: tuple[jax.Array, jax.Array]  # of `drift.errors`


@partial(jax.jit, static_argnames=("own",))
def take_in(context, learnt, pairs, row, step, reward, mask, value, prior, *, own, half_life):
  """What is learnt from rollouts whose number was fixed in advance, as one program -> (Context,
  Estimator, Told).

  `pairs` are those of `context.remember`; the others are the arguments of `estimator.learn`.
  """
  context = contexts.remember(context, *pairs)
  learnt, squares = estimator.learn(learnt, row, step, reward, mask, value, prior, own, half_life)
  return (
    context,
    learnt,
    Told(squares, scoreboard.standard_error(learnt.board), drifts.errors(context)),
  )


class Asked(NamedTuple):
  """The prompts of a draw and what the prior says of them."""

  prompts: Prompts
  features: np.ndarray  # [P, F]
  raw: np.ndarray  # float32 [P]  the prior's own V, which the context is to remember
  rivals: np.ndarray  # float32 [1 or 2, P]  of `predict`
  prior: np.ndarray  # float32 [P]  the V in use: one of the rivals
  # float32 [P] V, with the prompt's own history where `config.prior.history` says so
  value: np.ndarray
  weight: np.ndarray  # float32 [P]
  cursor: int  # behind the prompts that were taken or passed over
  metrics: diagnostics.Pairs


def ask(run: Run, state: TrainState, cursor: int, count: int, step: int) -> Asked:
  """The next `count` prompts with their prior, or the `count` that are worth most of a pool several
  times as large."""
  options, size = run.config.selection, count * run.config.selection.pool
  prompts = run.prompts.at(cursor, size, pad_to=run.capacity * options.pool)
  features = run.prior.features(prompts)
  raw, rivals = predict(run, state.context, features)
  prior = value = best = rivals[int(state.drift.fallen)]
  own = state.estimator.history, prompts.row, np.int32(step), run.config.prior.half_life
  known = {}
  if run.config.prior.history:
    value, weight = histories.fused(*own, prior)
    best, known["prior/history"] = value, diagnostics.pair(weight, prompts.mask)
  elif run.config.baseline == "spo" and options.pool > 1:
    best = shrinkage.tracked(prior, 0.0, 0.0, histories.read(*own))
  value = np.asarray(value)
  weight = np.ones(run.capacity, np.float32)
  if options.pool > 1:
    chance = selection.inclusion(np.asarray(best)[:size], count)
    uniform = jax.random.uniform(rng.at(run.config.seed, step, rng.SELECT))
    index = selection.systematic(chance, float(uniform))
    if options.weighted:
      weight[:count] = count / size / chance[index]
    known["selection/chance"] = diagnostics.pair(chance[index])
    padded = np.pad(index, (0, run.capacity - count))
    prompts = data.take(prompts, index, run.capacity)
    features, raw, rivals, prior, value = (
      features[padded],
      raw[padded],
      rivals[:, padded],
      prior[padded],
      value[padded],
    )
  return Asked(prompts, features, raw, rivals, prior, value, weight, cursor + size, known)


def predict(run: Run, context: Context, features) -> tuple[np.ndarray, np.ndarray]:
  """(the prior's own V [P], rivals [1 or 2, P]): V, recalibrated where the config says so; with a
  fallback, the context's mean as well."""
  options = run.config.prior
  raw = value = run.prior.predict(context, features)
  rivals = []
  if options.kind in LEARNED and options.recalibrate:
    value = drifts.recalibrate(context, raw)
  if options.kind in LEARNED and options.fallback:
    rivals = [priors.constant(context, features, options.min_support)]
  return np.asarray(raw), np.stack([np.asarray(value), *rivals])


def record(run: Run, state: TrainState, errors) -> diagnostics.Pairs:
  """How V has fared over the context that the step leaves behind (`drift.errors`), and whether V
  was in use."""
  rmse, bias = errors
  found = {"prior/rmse": (rmse, 1), "prior/bias": (bias, 1)}
  if run.config.prior.kind in LEARNED and run.config.prior.fallback:
    found["prior/fallback"] = (float(state.drift.fallen), 1)
  if run.config.prior.kind == "v0":
    found["prior/smoothed"] = (float(run.prior.smoothed(state.context)), 1)
  return found


def watch(
  drift: drifts.Drift, measured: diagnostics.Pairs, patience: int, step: int
) -> drifts.Drift:
  """Which of V and the context's mean the next step is to use; a change is logged.

  A step that cannot tell, for want of a prompt where both speak, changes nothing.
  """
  (own, count), (mean, _) = (
    measured.get(name, (0.0, 0)) for name in ("prior/mse", "prior/constant_mse")
  )
  if not count:
    return drift
  after = drifts.update(drift, own < mean if drift.fallen else own > mean, patience)
  if after.fallen != drift.fallen:
    left, used = (
      ("the prior", "the context's mean") if after.fallen else ("the context's mean", "the prior")
    )
    logging.warning(
      "step %d: %s was worse than %s for %d steps in a row (mean squared error of the prior %.4f, "
      "of the context's mean"
      " %.4f); from now on %s is used",
      step + 1,
      left,
      used,
      patience,
      own / count,
      mean / count,
      used,
    )
  return after


def scored(squares) -> diagnostics.Pairs:
  """The scoreboard of one draw; `squares` [E, P]."""
  rows = zip(shrinkage.ESTIMATORS, np.asarray(squares))
  return {f"scoreboard/{name}/sq_adv": diagnostics.pair(row) for name, row in rows}


def standings(board: scoreboard.Board, error, own: str) -> diagnostics.Pairs:
  """The scoreboard of the run so far: each estimator's lead or lag against the run's own, and its
  standard `error`."""
  found, error = {}, np.asarray(error)
  difference = np.where(np.asarray(board.count) > 0, np.asarray(board.mean), np.nan)
  for name, mean, spread in zip(shrinkage.ESTIMATORS, difference, error):
    if name != own:
      found |= {
        f"scoreboard/{name}/difference": (mean, 1),
        f"scoreboard/{name}/standard_error": (spread, 1),
      }
  return found


def success_share(config, rolls: Rollouts) -> np.ndarray:
  """Rewards as a share of their range, [P, K] in [0, 1]; NaN where there is none."""
  return (
    shrinkage.map_reward(np.asarray(rolls.reward), config.rewards.low, config.rewards.high) + 1
  ) / 2


def mean_success(success, mask):
  """(success [P], valid [P]): the mean over a prompt's valid rollouts [P, K]."""
  count = mask.sum(1)
  total = np.where(mask, success, 0.0).sum(1)
  return (total / np.maximum(count, 1)).astype(np.float32), count > 0


def learn(run: Run, state: TrainState, draw: Draw) -> tuple[TrainState, diagnostics.Pairs]:
  """Turns a draw into advantages and updates the policy; `state.params` and `opt_state` are
  donated."""
  began = time.perf_counter()
  config, rolls = run.config, draw.rolls
  advantage, fusion, expected = judge(config, state, draw)
  truth = exact_truth(run, state.params, draw.prompts)

  params, opt_state, measured, updates = state.params, state.opt_state, draw.metrics, {}
  minibatches = packing.minibatches(
    draw.prompts, rolls, np.asarray(advantage), config.loss, run.mesh, importance=draw.weight
  )
  if config.loss.old_logprob == "recompute" and minibatches:
    minibatches, updates["loss/logprob_gap"] = run.update.recompute(params, minibatches)
  for batch, used in minibatches * config.loss.epochs:
    params, opt_state, update = run.update.step(params, opt_state, batch, used, run.reference)
    # The sampler's log-probs are of the parameters before the step's first update: only there is it
    # a gap.
    gap = updates.get("loss/logprob_gap", update.get("loss/logprob_gap"))
    updates = metrics.merge(updates, update) | {"loss/logprob_gap": gap}

  success = success_share(config, rolls)
  measured = measured | updates
  measured |= diagnostics.baseline_metrics(
    draw.value, fusion, advantage, success, rolls.mask, truth
  )
  if config.baseline == "ewa":
    measured["shrinkage/estimated_mse"] = diagnostics.pair(expected, rolls.mask.any(1))
  prompts = int(draw.prompts.mask.sum())
  mean_k = state.mean_k
  if run.groups.rule not in ("fixed", *budget.BATCH_RULES) and prompts:
    mean_k = np.float32(MEAN_K_DECAY * mean_k + (1 - MEAN_K_DECAY) * draw.generated / prompts)
  measured["time/update"] = (time.perf_counter() - began, 1)
  state = state.replace(
    params=params,
    opt_state=opt_state,
    step=state.step + np.int32(1),
    cursor=np.int32(draw.cursor),
    rollouts=state.rollouts + np.int32(draw.generated),
    mean_k=mean_k,
    context=draw.context,
    estimator=draw.estimator,
    drift=draw.drift,
    skipped=in_a_row(state.skipped, updates["grad/skipped"][0]) if updates else state.skipped,
  )
  return state, measured


def judge(config, state: TrainState, draw: Draw):
  """What a draw's rollouts are worth: `advantages`, with what the run has learnt before or by this
  step."""
  rolls, before = draw.rolls, state.estimator
  shaping = rewards.overlong_penalty(
    rolls.length, config.sampler.max_response, config.rewards.overlong_buffer
  )
  reward = shrinkage.map_reward(rolls.reward, config.rewards.low, config.rewards.high)
  ewa = draw.estimator.ewa if config.ewa_update == "before" else before.ewa
  past = before.history, draw.prompts.row, state.step, config.prior.half_life
  return advantages(config.baseline, reward, rolls.mask, draw.value, shaping, ewa, *past)


@partial(jax.jit, static_argnames=("kind",))
def advantages(kind, reward, mask, value, shaping, ewa, history, row, step, half_life):
  """`shrinkage.advantage` with the history of the prompts' rows, and for EWA-Beta the squared error
  that it expects of its baseline [P], as one program -> (advantage, Fusion, expected or None)."""
  past = histories.read(history, row, step, half_life)
  expected = (
    shrinkage.ewa_baseline(ewa, value, *shrinkage.outcomes(reward, mask))[2]
    if kind == "ewa"
    else None
  )
  return *shrinkage.advantage(kind, reward, mask, value, shaping, ewa, past), expected


@jax.jit
def in_a_row(before, skipped):
  """Steps in a row with a skipped update, an int32 that stays on the device; `skipped`: updates of
  this step."""
  return jnp.where(skipped > 0, before + 1, 0)


def exact_truth(run: Run, params, prompts: Prompts) -> np.ndarray | None:
  """The true success probability of each prompt [P], NaN where the task does not allow it; None
  without."""
  if run.exact is None:
    return None
  truth = np.full(len(prompts.mask), np.nan)
  truth[: len(prompts.rows)] = run.exact(params, prompts.rows)
  return truth
