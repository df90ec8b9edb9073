"""Rewards: what a response is worth, by the built-in tasks, math-verify, arithmetic, reasoning-gym
or the user's function, or by several of these.

`load(config)` returns a verifier: `submit(prompts, responses, rows)` hands rollouts over and
returns one handle each, in order; `handle.result()` waits for its `Verdict`; `close()`, or leaving
the `with` block, ends it. A verifier that hangs, crashes or raises costs one rollout its reward,
and not the run; only one that fails on everything stops it (`sampling.verdicts`).
"""

from collections.abc import Sequence
import contextlib
import logging

import numpy as np

from v05_jax.rewards import expression
from v05_jax.rewards.mixture import combine, others, success, targets, terms
from v05_jax.rewards.pool import Direct, Pool, Verdict
from v05_jax.rewards.several import Several

__all__ = [
  "Direct",
  "Pool",
  "RewardError",
  "Several",
  "Verdict",
  "check_answers",
  "combine",
  "load",
  "others",
  "overlong_penalty",
  "success",
  "targets",
  "terms",
]

MATH = "v05_jax.rewards.math:verify"
GYM = "v05_jax.rewards.reasoning_gym:verify"
# Bytes of address space of a worker that calculates what a policy wrote: 9^9^9 must not take all
# memory.
CALCULATING_MEMORY = 4 << 30
MOST_WORKERS = 1024
LONGEST_VERDICT = 86_400  # seconds: no wait is without a limit

log = logging.getLogger(__name__)


class RewardError(ValueError):
  """The reward has failed on every response that it was asked about."""


def load(config) -> Direct | Pool | Several:
  """The verifier that `config.reward` names, or that of several with weights.

  "task" is the built-in tasks' own verifier, "expression" calculates the response's arithmetic;
  both are trusted, bounded, fast and run in this process. "math" (free-form mathematics),
  "reasoning_gym" (its tasks' own verifiers) and "module:function" (`worker.load` says how it may be
  called) run in `config.rewards.workers` processes each, a call for `config.rewards.timeout`
  seconds at most.

  Raises ValueError, naming the key, if a worker cannot import the function, or it has other
  arguments.
  """
  try:
    found = terms(config.reward)
  except ValueError as error:
    raise ValueError(f"config.reward = {config.reward!r:.200}: {error}") from None
  if isinstance(config.reward, str):
    return _one(config, config.reward)
  with contextlib.ExitStack() as stack:  # where one cannot be loaded, the others are closed
    verifiers = {term.name: stack.enter_context(_one(config, term.target)) for term in found}
    stack.pop_all()
  return Several(verifiers)


def _one(config, target: str) -> Direct | Pool:
  """The verifier of one name."""
  if target == "task":
    from v05_jax import tasks

    return Direct(tasks.verify)
  if target == "expression":
    return Direct(expression.verify)
  workers, timeout = config.rewards.workers, config.rewards.timeout
  number = lambda x, kinds: isinstance(x, kinds) and not isinstance(x, bool)
  if not (number(workers, int) and 1 <= workers <= MOST_WORKERS):
    expected = f"a whole number from 1 to {MOST_WORKERS}"
    raise ValueError(f"config.rewards.workers: found {workers!r:.80}, expected {expected}")
  if not (number(timeout, (int, float)) and 0 < timeout <= LONGEST_VERDICT):
    expected = f"seconds above 0 and at most {LONGEST_VERDICT}, a day"
    raise ValueError(f"config.rewards.timeout: found {timeout!r:.80}, expected {expected}")
  own = {"math": MATH, "reasoning_gym": GYM}
  memory = CALCULATING_MEMORY if target in own else 0
  try:
    return Pool(own.get(target, target), workers, timeout, memory)
  except ValueError as error:
    of = "" if target == config.reward else f"{target}: "
    raise ValueError(f"config.reward = {config.reward!r}: {of}{error}") from None


def check_answers(reward, rows: Sequence[dict], source: str) -> None:
  """Checks that the reward `expression` can compare with the answers of `rows`, from `source`.

  Raises ValueError where no answer is a number, and logs how many are not: any response to those is
  worth 0. Other rewards read answers in their own way and are not checked.
  """
  if "expression" not in targets(reward):
    return
  wrong = [row["answer"] for row in rows if not expression.is_number(row["answer"])]
  if wrong and len(wrong) == len(rows):
    raise ValueError(
      f"{source}: found {wrong[0]!r} as the first answer and no number among {len(rows)} of them, "
      "expected numbers, since config.reward names expression"
    )
  if wrong:
    log.warning(
      "%s: %d of %d answers are no numbers, such as %r: their responses are worth 0",
      source,
      len(wrong),
      len(rows),
      wrong[0],
    )


def overlong_penalty(length, limit, buffer: int):
  """DAPO's soft penalty for long responses: min(0, (limit - buffer - length) / buffer).

  0 up to `limit - buffer` tokens, then linear to -1 at `limit`, the most tokens that a response may
  have, of arrays that fit together; a buffer longer than its limit is all of it. `buffer = 0` is
  off. Added to the mapped reward, [-1, 1], and not clipped. Source:
  arXiv 2503.14476, equation 13.
  """
  if not buffer:
    return (0.0 * length).astype("float32")
  buffer = np.minimum(buffer, limit)
  return ((limit - buffer - length) / buffer).clip(-1.0, 0.0).astype("float32")
