"""Results by prompt and rollout as the verdicts come in, and what the budget makes of them."""

from typing import Any, NamedTuple

import numpy as np

from v05_jax import groups as grouping
from v05_jax.budgets.base import Asked, Budget
from v05_jax.sampling.schedule import Sampled, Schedule
from v05_jax.structs import Prompts, Rollouts


class Order(NamedTuple):
  """What is to be sampled of each prompt."""

  budget: Budget
  state: Any = ()  # what the budget has learnt
  value: np.ndarray | None = None  # float32 [P]  V, by which an adaptive rule goes
  temperature: float | None = None  # None = config.sampler.temperature
  # int [P, K] response tokens at most; None = the data row's `max_tokens`, where it has one
  limit: np.ndarray | None = None
  prior_variance: np.ndarray | None = None  # float32 [P]  what the prior said beside V
  # a run that is asked to stop does so at once: an evaluation can be made up for, a step is ended
  interruptible: bool = False


class Ledger:
  """The books of one `collect` call."""

  def __init__(self, prompts: Prompts, order: Order, config, stop: tuple[int, ...]):
    shape = (len(prompts.mask), order.budget.limits.most)
    value = np.full(shape[0], np.nan, np.float32) if order.value is None else order.value
    self.budget, self.state, self.value = order.budget, order.state, np.asarray(value)
    self.real, self.stop, self.rewards = np.asarray(prompts.mask), stop, config.rewards
    self.known = {"row": np.asarray(prompts.row), "step": np.int32(prompts.step)}
    if order.prior_variance is not None:
      self.known["prior_variance"] = order.prior_variance
    self.counts_truncated = config.sampler.truncated != "mask"
    self.done: list[Sampled] = []
    self.length = np.zeros(shape, np.int32)
    self.reward = np.full(shape, np.nan, np.float32)
    self.ended = np.zeros(shape, bool)
    self.mask = np.zeros(shape, bool)
    count = 0 if isinstance(config.reward, str) else len(config.reward)
    self.parts = np.full((*shape, count), np.nan, np.float32) if count else None
    self.changed: set[int] = set()

  def first(self) -> np.ndarray:
    """int [P]: rollouts to begin with."""
    return np.asarray(self.budget.first(self.value, self.real))

  def record(self, rollout: Sampled, reward: float, *parts: float):
    """One verdict: the verifier's reward, NaN where it failed, and those of several rewards."""
    at = rollout.prompt, rollout.index
    self.done.append(rollout)
    self.length[at] = rollout.length
    self.ended[at] = rollout.tokens[-1][-1] in self.stop
    self.reward[at] = reward
    if parts:
      self.parts[at] = parts
    self.mask[at] = np.isfinite(reward) and (self.ended[at] or self.counts_truncated)
    self.changed.add(rollout.prompt)

  def decide(self, schedule: Schedule) -> list[tuple[int, int]]:
    """(prompt, further rollouts) for each open prompt that has all its verdicts; 0 = it is done."""
    changed, self.changed = sorted(self.changed), set()
    if self.budget.more is None or not changed:
      return [] if self.budget.limits.closes else [(p, 0) for p in changed]
    recorded = (self.length > 0).sum(1)
    ended = self.real & (recorded == schedule.asked)
    together = self.budget.limits.closes  # prompts are closed by now, and may be opened again
    ready = [p for p in changed if ended[p] and (together or not schedule.closed[p])]
    if not ready:
      return []
    if not together:
      ended = np.isin(np.arange(len(recorded)), ready)
    reward = grouping.map_reward(self.reward, self.rewards.low, self.rewards.high)
    groups = grouping.make(reward, self.mask, length=self.length, **self.known)
    more = self.budget.more(self.state, groups, self.value, Asked(schedule.asked, ended))
    more = np.where(ended, more, 0)
    if together:
      return [(p, int(more[p])) for p in np.flatnonzero(more > 0).tolist()]
    return [(p, int(more[p])) for p in ready]

  def rollouts(self, max_response: int) -> Rollouts:
    """Flat rows in the order of (prompt, index), whatever the order in which they ended."""
    done = sorted(self.done, key=lambda r: (r.prompt, r.index))

    def rows(name, dtype):
      out = np.zeros((len(done), max_response), dtype)
      for row, rollout in zip(out, done):
        row[: rollout.length] = np.concatenate(getattr(rollout, name))
      return out

    return Rollouts(
      tokens=rows("tokens", np.int32),
      logprob=rows("logprob", np.float32),
      sampled_logprob=rows("sampled_logprob", np.float32),
      prompt=np.array([r.prompt for r in done], np.int32),
      index=np.array([r.index for r in done], np.int32),
      length=self.length,
      reward=self.reward,
      ended=self.ended,
      mask=self.mask,
      parts=self.parts,
    )
