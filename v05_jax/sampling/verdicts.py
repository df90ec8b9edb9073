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
from v05_jax.run import metrics
from v05_jax.scale import distributed
from v05_jax.structs import Prompts

ENOUGH = 4  # failed verdicts in a row that end the run, where a step has no others
MANY = 16  # rollouts of the first step from which on a warning says that none has any reward
PATIENCE = 10.0  # seconds that a run which is asked to stop waits for verdicts
LOOK = 0.5  # seconds between two checks whether it is asked to stop

log = logging.getLogger(__name__)


class Interrupted(InterruptedError):
  """The run was asked to stop, and does so before its step or evaluation has ended."""


class Judge:
  """Hands rollouts to a verifier (`rewards.load`), for a policy and a run's config.

  `stopping()` says whether the run has been asked to stop: then it waits for `PATIENCE` at most.
  """

  def __init__(self, policy, config, verifier, stopping: Callable[[], bool] = lambda: False):
    self._tokenizer, self._stop, self._verifier = policy.tokenizer, policy.stop, verifier
    self._stopping, self._asked = stopping, None  # when it was first seen to be stopping
    self._all, self._config = config.sampler.truncated == "score", config
    single = isinstance(config.reward, str)
    self._names = [] if single else [term.name for term in rewards.terms(config.reward)]
    metrics.document(
      {f"reward/{n}": f"mean of the reward {n}, in its own units" for n in self._names}
    )
    # of a rollout that is not judged: the reward of a failure, and none of the several
    self._failure_row = [config.rewards.low, *(math.nan for _ in self._names)]
    self._slots = config.sampler.slots
    self._warned = False  # of a reward outside of low .. high
    self._in_a_row = 0  # failed verdicts since the last good one
    self._best: float | None = -math.inf  # reward of the first step; None once that is over
    self._begin()

  def _begin(self):
    """Sets the counts to 0: rollouts, verdicts, those that failed or lie outside of low .. high."""
    self._rollouts = self._judged = self._failed = self._outside = 0
    self._failure: rewards.Verdict | None = None  # the first of this process's own
    self._parts = [[] for _ in self._names]  # of several rewards, each one's own
    self._held = []  # rollouts that have ended and wait for others of their prompt

  def check(self):
    """Raises `Interrupted`, in all processes alike, where one of them is asked to stop."""
    if distributed.anywhere(self._stopping()):
      raise Interrupted("stopped by a signal during an evaluation")

  def _wanted(self, rollout) -> bool:
    """Whether the rollout (`schedule.Sampled`) is judged."""
    return self._all or rollout.tokens[-1][-1] in self._stop

  def ready(self, ended: list, unfinished) -> list:
    """Of the rollouts that have ended (`schedule.Sampled`), now or before, those to be judged now:
    all, or where the verifier looks at all responses of a prompt at once, those of prompts that
    have no other under way; `unfinished` [P] counts these."""
    if not getattr(self._verifier, "batched", False):
      return ended
    self._held += ended
    found = [r for r in self._held if not unfinished[r.prompt]]
    self._held = [r for r in self._held if unfinished[r.prompt]]
    return sorted(found, key=lambda r: (r.prompt, r.index))

  def submit(self, ended: list, prompts: Prompts) -> list[Callable]:
    """Hands over the rollouts (`schedule.Sampled`) -> for each a function that waits for its
    reward, and returns it alone or, of several rewards, with each of them behind it.

    A truncated rollout is not judged and has the reward of a failure, unless `sampler.truncated` is
    score; of several processes each judges the rollouts of its own prompts.
    """
    judged = [r for r in ended if self._wanted(r) and distributed.owner(r.prompt)]
    rows = [prompts.rows[r.prompt] for r in judged]
    decode = lambda r: tokenizers.decode_response(
      self._tokenizer, np.concatenate(r.tokens), self._stop
    )
    texts = [row["prompt"] for row in rows]
    batched = getattr(self._verifier, "batched", False)
    groups = ([r.prompt for r in judged],) if batched else ()
    handles = self._verifier.submit(texts, [decode(r) for r in judged], rows, *groups)
    mine = {id(r): lambda h=h: self._reward(h) for r, h in zip(judged, handles, strict=True)}
    return [mine.get(id(r), lambda: self._failure_row) for r in ended]

  def _reward(self, handle) -> list[float]:
    """Waits for a verdict -> its reward, NaN where the verifier failed, infinite where the run
    stops without it, and behind it those of several."""
    if isinstance(handle, Future) and not self._comes(handle):
      return [math.inf, *(math.nan for _ in self._names)]
    verdict = handle.result()
    reward, options = verdict.reward, self._config.rewards
    if self._names and not math.isnan(reward):
      reward = rewards.combine(self._config.reward, options.success, verdict.parts)
    low, high = options.low, options.high
    if math.isnan(reward):
      self._failure = self._failure or verdict
    elif not self._warned and grouping.outside(reward, low, high):
      self._warned = True
      log.warning(
        "a reward of %g lies outside of rewards.low .. rewards.high = %g .. %g and counts as %g: "
        "set --config.rewards.low and --config.rewards.high to the range of the reward (said once; "
        "the metric rewards/clipped counts them)",
        *(reward, low, high, low if reward < low else high),
      )
    return [reward, *verdict.parts] if self._names else [reward]

  def _comes(self, handle: Future) -> bool:
    """Waits for a verdict; False = it is waited for no longer, since the run is to stop."""
    while not handle.done():
      if self._stopping():
        self._asked = self._asked or time.monotonic()
        if time.monotonic() - self._asked > PATIENCE:  # of all that are waited for together
          return False
      wait([handle], LOOK)
    return True

  def rewards(self, ended: list, verdicts: list[Callable]) -> np.ndarray:
    """The rollouts' rewards, float [n, 1 + rewards], the first of each the one that success looks
    at, NaN where the verifier failed: a process waits for the verdicts on its own prompts and is
    told the others. Raises `Interrupted`, in all processes alike, where one of them stops
    waiting."""
    told = self._told(ended, verdicts)
    found = told[:, 0]
    if np.isinf(found).any():
      raise Interrupted("stopped by a signal while verdicts did not come")
    self._rollouts += len(ended)
    self._judged += sum(map(self._wanted, ended))
    self._failed += int(np.isnan(found).sum())
    options = self._config.rewards
    self._outside += int(grouping.outside(found, options.low, options.high).sum())
    if self._best is not None:
      self._best = np.max(np.nan_to_num(found, nan=-math.inf), initial=self._best)
    for kept, column in zip(self._parts, told[:, 1:].T):
      kept += column[np.isfinite(column)].tolist()
    return told

  def _told(self, ended, verdicts) -> np.ndarray:
    width = 1 + len(self._names)
    several = distributed.several()
    found = self._exchanged(ended, verdicts, width) if several else [ask() for ask in verdicts]
    return np.array(found, float).reshape(-1, width)

  def _exchanged(self, ended, verdicts, width: int) -> list[np.ndarray]:
    """The rewards of all processes, of which each waits for those of its own prompts."""
    found = []
    for first in range(0, len(ended), self._slots):  # always as many: one program
      part, rewards = ended[first : first + self._slots], np.zeros((self._slots, width), np.float32)
      for i, (rollout, verdict) in enumerate(zip(part, verdicts[first:])):
        if distributed.owner(rollout.prompt):
          rewards[i] = verdict()
      told = distributed.exchange(rewards)
      found += [told[rollout.prompt % len(told), i] for i, rollout in enumerate(part)]
    return found

  def finish(self) -> dict[str, tuple[float, float]]:
    """Ends a step or an evaluation -> what is to be written of its verdicts, (sum, count) by name.

    Raises `rewards.RewardError` where all of its verdicts failed: at least `ENOUGH` in a row, or
    one on every rollout. All processes do so alike.
    """
    rollouts, judged, failed, outside = self._rollouts, self._judged, self._failed, self._outside
    failure, parts = self._failure, self._parts
    self._begin()
    self._in_a_row = self._in_a_row + failed if failed == judged else 0
    if judged == failed > 0 and (self._in_a_row >= ENOUGH or judged == rollouts):
      raise rewards.RewardError(given_up(self._config, failed, failure))
    self._look(rollouts)
    found = {"rewards/failed": (failed, 1)}
    found |= {f"reward/{n}": (sum(x), len(x)) for n, x in zip(self._names, parts)}
    return found | {"rewards/clipped": (outside, 1)} if outside else found

  def _look(self, rollouts: int):
    """Warns after the first step or evaluation where none of its rollouts has any reward."""
    best, self._best, low = self._best, None, self._config.rewards.low
    if best is None or best > low or rollouts < MANY or not distributed.first():
      return
    length = self._config.data.scratchpad
    of_tasks = f"; of the built-in tasks: is data.scratchpad = {length} what the policy was taught?"
    log.warning(
      "none of the first %d rollouts has a reward above rewards.low = %g: a policy that is never "
      "right learns nothing. v05 sample shows them; v05 sft makes a warm start%s",
      *(rollouts, low, of_tasks if self._config.data.path == "tasks" else ""),
    )


def given_up(config, failed: int, first: rewards.Verdict | None) -> str:
  """The message of a run that stops because its reward always fails; `first` is None where another
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
