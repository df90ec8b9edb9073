"""From prompts to rollouts: a step's prompts, what the prior says of them, and what was sampled."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from v05_jax import data, rewards, rng
from v05_jax import groups as grouping
from v05_jax.observers.base import merged, pair
from v05_jax.priors import base as priors
from v05_jax.run.metrics import Pairs
from v05_jax.sampling import resample, selection
from v05_jax.sampling.ledger import Order
from v05_jax.sampling.rollouts import row_limits
from v05_jax.structs import Draw, Prompts, TrainState


class Drawn(NamedTuple):
  """All that a step has sampled."""

  taken: Draw  # what the update sees
  draws: tuple[Draw, ...]  # all of it: several where groups without signal were replaced
  cursor: int  # of the data stream, after the prompts that were taken or passed over
  metrics: Pairs

  @property
  def generated(self) -> int:
    """Rollouts, those that were replaced included."""
    return sum(len(draw.rolls.prompt) for draw in self.draws)


def draw(run, collect, state: TrainState) -> Drawn:
  """Takes the step's prompts, asks the prior, samples and verifies their rollouts.

  With `config.budget.max_resample`, groups without signal are replaced by those of further prompts,
  as many at a time as are missing.
  """
  began, config = time.perf_counter(), run.config
  count = missing = run.prompts_per_step(float(state.mean_k))
  key, cursor = rng.at(config.seed, int(state.step)), int(state.cursor)
  draws, keep, measured = [], [], []
  for _ in range(1 + config.budget.max_resample):
    chosen = choose(run, state, cursor, missing)
    cursor += missing * config.selection.pool
    said = priors.variance(run.prior, chosen.asked, len(chosen.prompts.mask))
    order = Order(run.budget, state.budget, chosen.value, prior_variance=said)
    rolls, stats = collect(state.params, chosen.prompts, key, order)
    groups = group(run, chosen.prompts, rolls, said)
    draws.append(Draw(*chosen[:3], rolls, groups, chosen.importance))
    measured.append(stats | chosen.metrics)
    keep.append(resample.informative(draws[-1].groups))
    missing -= int(keep[-1].sum())
    if missing <= 0:
      break
  taken = resample.select(draws, keep, count) if config.budget.max_resample else draws[0]
  found, seconds = merged(measured), time.perf_counter() - began
  found["data/epoch"] = (cursor / len(run.prompts), 1)
  found["time/sample"] = (seconds, 1)
  found["time/tokens_per_second"] = (found["response/length"][0], seconds)
  return Drawn(taken, tuple(draws), cursor, found)


def group(run, prompts: Prompts, rolls, variance) -> grouping.Groups:
  """The groups of a batch's rollouts, with the shaping that the config asks for and the variance
  [P] that the prior has said."""
  config = run.config
  limits = row_limits(prompts, config.sampler.max_response)
  shaping = rewards.overlong_penalty(rolls.length, limits, config.rewards.overlong_buffer)
  if rolls.parts is not None:
    centred = not run.estimator.of_shaped
    shaping = shaping + rewards.others(config, rolls.parts, rolls.mask, centred)
  unconditional = run.budget.limits.unconditional
  groups = grouping.of_rollouts(
    rolls, config.rewards, shaping, prompts.row, int(prompts.step), unconditional
  )
  said = {"prior_variance": variance}
  return groups._replace(first=groups.first._replace(**said), **said)


class Chosen(NamedTuple):
  """The prompts of a draw and what the prior says of them."""

  prompts: Prompts
  value: np.ndarray  # float32 [P]
  asked: Any  # what the prior remembers of having been asked, arrays [P, ...]
  importance: np.ndarray  # float32 [P]
  metrics: Pairs


def choose(run, state: TrainState, cursor: int, count: int) -> Chosen:
  """The next `count` prompts with their prior, or `count` drawn from a pool of `selection.pool`
  times as many, with chances in proportion to their `score`."""
  pool, capacity = run.config.selection.pool, run.shapes.prompts
  prompts = run.prompts.at(cursor, count * pool, pad_to=capacity * pool)
  prompts = prompts.replace(step=np.int32(state.step))
  value, asked = run.prior.ask(state.prior, prompts)
  every = Chosen(prompts, value, asked, np.ones(capacity * pool, np.float32), {})
  return every if pool == 1 else select(run, state, every, count)


def select(run, state: TrainState, pool: Chosen, count: int) -> Chosen:
  """`count` prompts of a pool, each with its chance; with `config.selection.weighted` their
  importance is 1 / that chance."""
  capacity, size = run.shapes.prompts, len(pool.prompts.rows)
  chance = selection.chances(score(run, state, *pool[:3]), count)
  uniform = jax.random.uniform(rng.at(run.config.seed, int(state.step), rng.SELECT))
  index = selection.systematic(chance, float(uniform))
  importance = np.ones(capacity, np.float32)
  if run.config.selection.weighted:
    importance[:count] = count / size / chance[index]
  # Padding of the draw is padding of the pool, which has some wherever the draw has.
  padded = np.pad(index, (0, capacity - count), constant_values=size)
  asked = jax.tree.map(lambda x: np.asarray(x)[padded], pool.asked)
  taken = data.take(pool.prompts, index, capacity)
  metrics = {"selection/chance": pair(chance[index])}
  return Chosen(taken, pool.value[padded], asked, importance, metrics)


def score(run, state: TrainState, prompts: Prompts, value, asked) -> np.ndarray:
  """[M] of the real prompts of a pool: what their chances of being taken are in proportion to, as
  `config.selection.score` says."""
  size = len(prompts.rows)
  if run.config.selection.score == "second_moment":
    return selection.root(asked["second_moment"]["expected"][:size])
  expected = run.estimator.expect(state.estimator, prompts.row, prompts.step, value)
  return selection.spread(np.asarray(expected)[:size])
