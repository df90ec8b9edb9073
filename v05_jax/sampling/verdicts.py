"""Verdicts on finished rollouts: who asks for them, who is told, and when a reward is given up."""

from collections.abc import Callable
from concurrent.futures import Future, wait
import logging
import math
import time

import numpy as np

from v05_jax import groups as grouping
from v05_jax import rewards
from v05_jax.models import tokenizer as tokenizers
from v05_jax.scale import distributed
from v05_jax.structs import Prompts

ENOUGH = 4  # failed verdicts in a row by which a reward is given up, where a step has no other
PATIENCE = 10.0  # seconds that a run which is asked to stop waits for verdicts
LOOK = 0.5  # seconds between two looks whether it is

log = logging.getLogger(__name__)


class Interrupted(InterruptedError):
  """The run was asked to stop, and verdicts did not come."""


class Judge:
  """Hands rollouts to a verifier (`rewards.load`), for a policy and a run's config.

  `stopping()` says whether the run has been asked to stop: then it waits for `PATIENCE` at most.
  """

  def __init__(self, policy, config, verifier, stopping: Callable[[], bool] = lambda: False):
    self._tokenizer, self._stop, self._verifier = policy.tokenizer, policy.stop, verifier
    self._stopping, self._asked = stopping, None  # when it was first seen to be stopping
    self._all, self._config = config.sampler.truncated == "score", config
    self._slots = config.sampler.slots
    self._warned = False  # of a reward outside of low .. high
    self._in_a_row = 0  # failed verdicts since the last that did not
    self._begin()

  def _begin(self):
    """Counts anew: rollouts, verdicts, those that failed or lie outside of low .. high."""
    self._rollouts = self._judged = self._failed = self._outside = 0
    self._failure: rewards.Verdict | None = None  # the first of this process's own

  def _wanted(self, rollout) -> bool:
    """Whether the rollout (`schedule.Sampled`) is judged."""
    return self._all or rollout.tokens[-1][-1] in self._stop

  def submit(self, ended: list, prompts: Prompts) -> list[Callable[[], float]]:
    """Hands over the rollouts (`schedule.Sampled`) -> for each a function that waits for its
    reward.

    A truncated rollout is not judged and has the reward of a failure, unless `sampler.truncated` is
    score; of several processes each judges the rollouts of its own prompts.
    """
    judged = [r for r in ended if self._wanted(r) and distributed.owner(r.prompt)]
    rows = [prompts.rows[r.prompt] for r in judged]
    decode = lambda r: tokenizers.decode_response(
      self._tokenizer, np.concatenate(r.tokens), self._stop
    )
    texts = [row["prompt"] for row in rows]
    handles = self._verifier.submit(texts, [decode(r) for r in judged], rows)
    mine = {id(r): lambda h=h: self._reward(h) for r, h in zip(judged, handles, strict=True)}
    return [mine.get(id(r), lambda: self._config.rewards.low) for r in ended]

  def _reward(self, handle) -> float:
    """Waits for a verdict -> its reward, NaN where the verifier failed, infinite where the run
    stops without it."""
    if isinstance(handle, Future) and not self._comes(handle):
      return math.inf
    verdict = handle.result()
    low, high = self._config.rewards.low, self._config.rewards.high
    if math.isnan(verdict.reward):
      self._failure = self._failure or verdict
    elif not self._warned and grouping.outside(verdict.reward, low, high):
      self._warned = True
      log.warning(
        "a reward of %g lies outside of rewards.low .. rewards.high = %g .. %g and counts as %g: "
        "set --config.rewards.low and --config.rewards.high to the range of the reward (said once; "
        "the metric rewards/clipped counts them)",
        *(verdict.reward, low, high, low if verdict.reward < low else high),
      )
    return verdict.reward

  def _comes(self, handle: Future) -> bool:
    """Waits for a verdict; False = it is waited for no longer, since the run is to stop."""
    while not wait([handle], LOOK).done:
      if self._stopping():
        self._asked = self._asked or time.monotonic()
        if time.monotonic() - self._asked > PATIENCE:
          return False
    return True

  def rewards(self, ended: list, verdicts: list[Callable[[], float]]) -> list[float]:
    """The rollouts' rewards, NaN where the verifier failed: a process waits for the verdicts on its
    own prompts and is told the others. Raises `Interrupted`, in all processes alike, where one of
    them stops waiting."""
    found = self._told(ended, verdicts)
    if any(map(math.isinf, found)):
      raise Interrupted("stopped by a signal while verdicts did not come")
    self._rollouts += len(ended)
    self._judged += sum(map(self._wanted, ended))
    self._failed += int(np.isnan(found).sum())
    options = self._config.rewards
    self._outside += int(grouping.outside(found, options.low, options.high).sum())
    return found

  def _told(self, ended, verdicts) -> list[float]:
    if not distributed.several():
      return [verdict() for verdict in verdicts]
    if not ended:
      return []
    rewards = np.zeros(self._slots, np.float32)  # always as many: one program
    for i, (rollout, verdict) in enumerate(zip(ended, verdicts)):
      if distributed.owner(rollout.prompt):
        rewards[i] = verdict()
    told = distributed.exchange(rewards)
    return [float(told[rollout.prompt % len(told), i]) for i, rollout in enumerate(ended)]

  def finish(self) -> dict[str, tuple[float, float]]:
    """Ends a step or an evaluation -> what is to be written of its verdicts, (sum, count) by name.

    Raises `rewards.RewardError` where all of its verdicts failed: at least `ENOUGH` in a row, or
    one on every rollout. All processes do so alike.
    """
    rollouts, judged, failed, outside = self._rollouts, self._judged, self._failed, self._outside
    failure = self._failure
    self._begin()
    self._in_a_row = self._in_a_row + failed if failed == judged else 0
    if judged == failed > 0 and (self._in_a_row >= ENOUGH or judged == rollouts):
      raise rewards.RewardError(given_up(self._config, failed, failure))
    found = {"rewards/failed": (failed, 1)}
    return found | {"rewards/clipped": (outside, 1)} if outside else found


def given_up(config, failed: int, first: rewards.Verdict | None) -> str:
  """What a run says that stops because its reward always fails; `first` is None where another
  process has asked for the verdicts."""
  why = f"{first.failure}: {first.detail}" if first else "another process says which"
  timeout = config.rewards.timeout
  mend = (
    f"make the function faster, or raise config.rewards.timeout = {timeout:g} seconds,"
    if first and first.failure == "timeout"
    else "mend the function"
  )
  return (
    f"config.reward = {config.reward!r}: all {failed} verdicts failed, so that there is nothing to "
    f"learn from or to measure. The first failure: {why}. To go on, {mend} and start the run again"
  )
