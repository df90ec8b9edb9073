"""Verdicts on finished rollouts: who asks for them, and who is told."""

from collections.abc import Callable

import numpy as np

from v05_jax.models import tokenizer as tokenizers
from v05_jax.scale import distributed
from v05_jax.structs import Prompts


class Judge:
  """Hands rollouts to a verifier (`rewards.load`), for a policy and a run's config."""

  def __init__(self, policy, config, verifier):
    self._tokenizer, self._stop, self._verifier = policy.tokenizer, policy.stop, verifier
    self._all, self._low = config.sampler.truncated == "score", config.rewards.low
    self._slots = config.sampler.slots

  def submit(self, ended: list, prompts: Prompts) -> list[Callable[[], float]]:
    """Hands over the rollouts (`schedule.Sampled`) -> for each a function that waits for its
    reward.

    A truncated rollout is not judged and has the reward of a failure, unless `sampler.truncated` is
    score; of several processes each judges the rollouts of its own prompts.
    """
    wanted = lambda r: self._all or r.tokens[-1][-1] in self._stop
    judged = [r for r in ended if wanted(r) and distributed.owner(r.prompt)]
    rows = [prompts.rows[r.prompt] for r in judged]
    decode = lambda r: tokenizers.decode_response(
      self._tokenizer, np.concatenate(r.tokens), self._stop
    )
    texts = [row["prompt"] for row in rows]
    handles = self._verifier.submit(texts, [decode(r) for r in judged], rows)
    mine = {id(r): lambda h=h: h.result().reward for r, h in zip(judged, handles, strict=True)}
    return [mine.get(id(r), lambda: self._low) for r in ended]

  def rewards(self, ended: list, verdicts: list[Callable[[], float]]) -> list[float]:
    """The rollouts' rewards, NaN where the verifier failed: a process waits for the verdicts on its
    own prompts and is told the others."""
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
