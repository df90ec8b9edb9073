"""Rollouts of earlier steps in a further update: advantage-prioritised replay (arXiv 2606.04560).

The buffer holds single rollouts, not groups, each with the advantage that it had and the
log-probabilities of the policy that sampled it, so that the surrogate's ratio is to that policy.
Every update has all fresh rollouts and `config.loss.replay` older ones beside them, drawn without
replacement in proportion to |advantage| from those of the last `config.loss.replay_age` steps.

Left open by the abstract, which is what was read: how many may wait (here `replay * replay_age`,
those of the largest |advantage|), whether one may be drawn again (yes, until it is too old), and
how a replayed rollout is weighed (as a prompt with one rollout).
"""

from typing import NamedTuple

import jax
import numpy as np

from v05_jax import rng
from v05_jax.run.metrics import Pairs
from v05_jax.sampling import selection
from v05_jax.structs import Draw, Prompts, Rollouts
from v05_jax.update import packing

NEVER = -1  # step of an empty place


class Buffer(NamedTuple):
  """C rollouts that wait, on host; an empty place has the step NEVER."""

  prompt: np.ndarray  # int32 [C, T]  tokens of the prompt
  prompt_length: np.ndarray  # int32 [C]
  tokens: np.ndarray  # int32 [C, R]  of the response
  logprob: np.ndarray  # float32 [C, R]  of these, by the policy that sampled them
  length: np.ndarray  # int32 [C]
  advantage: np.ndarray  # float32 [C]
  importance: np.ndarray  # float32 [C]  of the prompt in the loss
  step: np.ndarray  # int32 [C]  that sampled it


def init(config) -> dict[str, Buffer]:
  """What the train state keeps before the first step; nothing without replay."""
  count, sampler = config.loss.replay * config.loss.replay_age, config.sampler
  if not count:
    return {}
  whole, real = np.zeros(count, np.int32), np.zeros(count, np.float32)
  of = lambda x, width: np.zeros((count, width), x.dtype)
  buffer = Buffer(
    prompt=of(whole, sampler.max_prompt),
    prompt_length=whole,
    tokens=of(whole, sampler.max_response),
    logprob=of(real, sampler.max_response),
    length=whole,
    advantage=real,
    importance=real,
    step=np.full(count, NEVER, np.int32),
  )
  return {"buffer": buffer}


def extend(config, state, taken: Draw, advantage) -> tuple[Draw, np.ndarray, dict, Pairs]:
  """A step's draw and its advantages [P, K] with older rollouts behind them, as further prompts
  [P + replay] -> (draw, advantages, what waits for later steps, metrics)."""
  step, buffer = int(state.step), state.replay["buffer"]
  uniform = jax.random.uniform(rng.at(config.seed, step, rng.REPLAY))
  index = choose(buffer, step, config.loss.replay, config.loss.replay_age, float(uniform))
  age = step - buffer.step[index]
  found = {
    "replay/rollouts": (len(index), 1),
    "replay/age": (age.sum(), len(age)),
    "replay/advantage": (np.abs(buffer.advantage[index]).sum(), len(age)),
  }
  kept = {"buffer": keep(buffer, taken, advantage, step, config.loss.replay_age)}
  return *join(taken, advantage, buffer, index, config.loss.replay), kept, found


def waits(buffer: Buffer, step: int, age: int) -> np.ndarray:
  """bool [C]: the rollouts that are not too old at this step."""
  return (buffer.step != NEVER) & (step - buffer.step <= age)


def choose(buffer: Buffer, step: int, count: int, age: int, uniform: float) -> np.ndarray:
  """Places of up to `count` rollouts, each with a chance in proportion to |advantage|; `uniform`
  in [0, 1) decides."""
  places = np.flatnonzero(waits(buffer, step, age))
  if len(places) <= count:
    return places
  chance = selection.chances(np.abs(buffer.advantage[places]), count)
  return places[selection.systematic(chance, uniform)]


def keep(buffer: Buffer, taken: Draw, advantage, step: int, age: int) -> Buffer:
  """What waits after a step: of what will not be too old at the next one and of the step's own
  rollouts, those of the largest |advantage|; one without an advantage teaches nothing."""
  prompts, rolls = taken.prompts, taken.rolls
  flat = packing.counted(prompts, rolls)
  fresh = Buffer(
    prompt=prompts.tokens[flat.prompt],
    prompt_length=prompts.length[flat.prompt],
    tokens=rolls.tokens[flat.row],
    logprob=rolls.logprob[flat.row],
    length=flat.size,
    advantage=np.nan_to_num(advantage[flat.prompt, flat.index], posinf=0.0, neginf=0.0),
    importance=taken.importance[flat.prompt],
    step=np.full(len(flat.row), step, np.int32),
  )
  every = jax.tree.map(_behind, buffer, fresh)
  # A rollout whose log-probs are not finite would have every update that it is in skipped.
  usable = waits(every, step + 1, age) & np.isfinite(every.logprob).all(1)
  weight = np.where(usable, np.abs(every.advantage), -1.0)
  largest = np.argsort(-weight, kind="stable")[: len(buffer.step)]
  kept = jax.tree.map(lambda x: x[largest], every)
  return kept._replace(step=np.where(weight[largest] > 0, kept.step, NEVER).astype(np.int32))


def join(taken: Draw, advantage, buffer: Buffer, index, count: int) -> tuple[Draw, np.ndarray]:
  """The draw with `count` further prompts of one rollout each, the buffer's places `index` first
  and padding behind them; `groups`, `value` and `asked` stay those of the step's own prompts."""
  prompts, rolls, used = taken.prompts, taken.rolls, len(index)
  pad = lambda x: np.pad(x, [(0, count - used)] + [(0, 0)] * (np.ndim(x) - 1))
  old = jax.tree.map(lambda x: x[index], buffer)
  more = lambda x, new: _behind(x, pad(new))

  def dense(x, new):  # a replayed rollout is the first of its prompt
    columns = np.zeros((count, np.shape(x)[1]), np.asarray(x).dtype)
    columns[:used, 0] = new
    return np.concatenate([x, columns])

  longer = Prompts(
    tokens=more(prompts.tokens, old.prompt),
    length=np.maximum(more(prompts.length, old.prompt_length), 1),
    position=more(prompts.position, np.full(used, -1)),
    mask=more(prompts.mask, np.ones(used, bool)),
    row=more(prompts.row, np.full(used, -1)),
    rows=prompts.rows,
    step=prompts.step,
  )
  exists = np.ones(used, bool)
  rolled = Rollouts(
    tokens=_behind(rolls.tokens, old.tokens),
    logprob=_behind(rolls.logprob, old.logprob),
    sampled_logprob=_behind(rolls.sampled_logprob, old.logprob),
    prompt=_behind(rolls.prompt, len(prompts.mask) + np.arange(used)),
    index=_behind(rolls.index, np.zeros(used)),
    length=dense(rolls.length, old.length),
    reward=dense(rolls.reward, np.nan),
    ended=dense(rolls.ended, exists),
    mask=dense(rolls.mask, exists),
  )
  importance = more(taken.importance, old.importance)
  joined = taken._replace(prompts=longer, rolls=rolled, importance=importance)
  return joined, dense(advantage, old.advantage)


def _behind(x, new) -> np.ndarray:
  """Further rows behind those of x, in its dtype."""
  x = np.asarray(x)
  return np.concatenate([x, np.asarray(new, x.dtype)])
