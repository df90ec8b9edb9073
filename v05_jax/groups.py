"""What the rollouts of P prompts came to, built once from them: everything downstream reads this.

Rewards are in [-1, 1] here and from here on. A prompt's rollouts are its group: `k` of them have
the mean reward `vbar`, and `s = k (vbar + 1) / 2` is the number of successes among them, fractional
where a reward lies between failure and success.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
  """The groups of P prompts, at most K rollouts each; arrays of numpy, or of jax inside a
  program."""

  reward: np.ndarray  # float32 [P, K] in [-1, 1]; 0 where there is no rollout that counts
  mask: np.ndarray  # bool [P, K]  the rollout exists, has a verdict and counts
  k: np.ndarray  # float32 [P]  rollouts that count
  s: np.ndarray  # float32 [P]  successes among them
  vbar: np.ndarray  # float32 [P]  their mean reward; 0 where there are none
  # float32 [P, K]  added to the reward, not part of vbar: DAPO's penalty for length
  shaping: np.ndarray
  length: np.ndarray  # int32 [P, K]  response tokens
  logprob: np.ndarray  # float32 [P, K]  log-probability of the response, nats
  # float32 [P, K]  sum over its tokens of (1 - p)^2: about the squared length of its gradient
  score: np.ndarray
  row: np.ndarray  # int32 [P]  row of the dataset
  step: np.ndarray  # int32 []  training step
  first: Groups | None = None  # the rollouts whose number no outcome has chosen; None = all of them
  # float32 [P]  of the mean reward around V, as the prior said before any rollout; NaN = it did not
  prior_variance: np.ndarray | None = None

  @property
  def shaped(self):
    """float32 [P, K]: reward and shaping together; 0 where there is no rollout."""
    return (self.reward + self.shaping) * self.mask

  @property
  def unconditional(self) -> Groups:
    """What may be learnt from without bias: `first`, or all of it."""
    return self if self.first is None else self.first


def map_reward(reward, low: float, high: float):
  """Rewards [...] in the verifier's units -> [-1, 1]: clip(2 (x - low) / (high - low) - 1, -1, 1).

  NaN stays NaN: the verifier failed. An array of numpy's stays one. Raises ValueError unless low <
  high, both finite.
  """
  if not -math.inf < low < high < math.inf:
    raise ValueError(f"rewards.low, rewards.high: found {low}, {high}, expected finite low < high")
  return (2.0 * (reward - low) / (high - low) - 1.0).clip(-1.0, 1.0)


def outside(reward, low: float, high: float):
  """bool [...]: the rewards that `map_reward` clips, by more than float32 rounds; NaN is none."""
  reward = np.asarray(reward, np.float32)
  return (reward < np.float32(low)) | (reward > np.float32(high))


def outcomes(reward, mask):
  """(k [P], s [P], vbar [P]) of rewards [P, K] in [-1, 1] where `mask`; numpy's or jax's arrays."""
  k = mask.sum(1).astype(reward.dtype)
  vbar = (reward * mask).sum(1) / k.clip(1.0)
  return k, (vbar + 1.0) / 2.0 * k, vbar


def make(reward, mask, **more) -> Groups:
  """Groups of mapped rewards [P, K], NaN = no verdict, and `mask` bool [P, K]; `more`: other
  fields.

  What is not given is 0, and `row` numbers the prompts.
  """
  reward = np.asarray(reward)
  reward = reward if reward.dtype == np.float64 else reward.astype(np.float32)
  mask = np.asarray(mask, bool) & np.isfinite(reward)
  reward = np.where(mask, reward, reward.dtype.type(0))
  zeros = np.zeros(reward.shape, np.float32)
  rest = {
    "shaping": zeros,
    "length": zeros.astype(np.int32),
    "logprob": zeros,
    "score": zeros,
    "row": np.arange(len(reward), dtype=np.int32),
    "step": np.int32(0),
    "prior_variance": np.full(len(reward), np.nan, np.float32),
  }
  return Groups(reward, mask, *outcomes(reward, mask), **(rest | more))


def leading(groups: Groups, count: int) -> Groups:
  """The first `count` rollouts of every prompt."""
  if count >= groups.mask.shape[1]:
    return groups._replace(first=None)
  cut = {
    name: x[:, :count]
    for name, x in groups._asdict().items()
    if name != "first" and np.ndim(x) == 2
  }
  k, s, vbar = outcomes(cut["reward"], cut["mask"])
  return groups._replace(**cut, k=k, s=s, vbar=vbar, first=None)


def of_rollouts(rolls, rewards, shaping, row, step: int, unconditional: int) -> Groups:
  """The groups of `structs.Rollouts`.

  Args:
    rolls: of one batch of prompts.
    rewards: a `config.rewards`, whose `low` and `high` the verifier's rewards are mapped by.
    shaping: float32 [P, K]. row: int32 [P]. step: of training.
    unconditional: a prompt's first rollouts, whose number no outcome has chosen.
  """
  statistics = np.zeros((2, *rolls.mask.shape), np.float32)
  real = np.arange(rolls.logprob.shape[1]) < rolls.length[rolls.prompt, rolls.index][:, None]
  # A log-probability that is not finite fails the update; it must not stay in the estimators' sums.
  logprob = np.where(real & np.isfinite(rolls.logprob), rolls.logprob, 0.0)
  statistics[:, rolls.prompt, rolls.index] = (
    logprob.sum(1),
    np.square(np.where(real, 1.0 - np.exp(logprob), 0.0)).sum(1),
  )
  groups = make(
    map_reward(rolls.reward, rewards.low, rewards.high),
    rolls.mask,
    shaping=shaping,
    length=rolls.length,
    logprob=statistics[0],
    score=statistics[1],
    row=row,
    step=np.int32(step),
  )
  return groups._replace(first=leading(groups, unconditional))
