"""Rewards: what a response is worth, by the built-in tasks, math-verify, arithmetic, reasoning-gym
or the user's function.

`load(config)` returns a verifier: `submit(prompts, responses, rows)` hands rollouts over and
returns one handle each, in order; `handle.result()` waits for its `Verdict`; `close()`, or leaving
the `with` block, ends it. A verifier that hangs, crashes or raises costs one rollout its reward,
and not the run; only one that fails on everything stops it (`sampling.verdicts`).
"""

from collections.abc import Sequence
import logging

from v05_jax.rewards import expression
from v05_jax.rewards.pool import Direct, Pool, Verdict

__all__ = ["Direct", "Pool", "RewardError", "Verdict", "check_answers", "load", "overlong_penalty"]

MATH = "v05_jax.rewards.math:verify"
GYM = "v05_jax.rewards.reasoning_gym:verify"
# Bytes of address space of a worker that calculates what a policy wrote: a tower of powers must not
# take all memory.
CALCULATING_MEMORY = 4 << 30
MOST_WORKERS = 1024
LONGEST_VERDICT = 86_400  # seconds: no wait is without a limit

log = logging.getLogger(__name__)


class RewardError(ValueError):
  """The reward has failed on every response that it was asked about."""


def load(config) -> Direct | Pool:
  """The verifier that `config.reward` names.

  "task" is the built-in tasks' own verifier, "expression" calculates the response's arithmetic;
  both are trusted, bounded, fast and run in this process. "math" (free-form mathematics),
  "reasoning_gym" (its tasks' own verifiers) and "module:function", called as (prompt, response,
  row) -> float, run in `config.rewards.workers` processes, each verdict for
  `config.rewards.timeout` seconds at most.

  Raises ValueError, naming the key, if a worker cannot import the function, or it is none of three
  arguments.
  """
  if config.reward == "task":
    from v05_jax import tasks

    return Direct(tasks.verify)
  if config.reward == "expression":
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
  if config.reward not in own and not all(config.reward.partition(":")):
    raise ValueError(
      f"config.reward = {config.reward!r}: expected task, math, expression, reasoning_gym or "
      "module:function"
    )
  target = own.get(config.reward, config.reward)
  memory = CALCULATING_MEMORY if config.reward in own else 0
  try:
    return Pool(target, config.rewards.workers, config.rewards.timeout, memory)
  except ValueError as error:
    raise ValueError(f"config.reward = {config.reward!r}: {error}") from None


def check_answers(reward: str, rows: Sequence[dict], source: str) -> None:
  """Whether the reward `expression` can compare with the answers of `rows`, drawn from `source`.

  Raises ValueError where no answer is a number, and logs how many are none: a response to these is
  worth 0 whatever it says. Any other reward has its own ideas of an answer.
  """
  if reward != "expression":
    return
  wrong = [row["answer"] for row in rows if not expression.is_number(row["answer"])]
  if wrong and len(wrong) == len(rows):
    raise ValueError(
      f"{source}: found {wrong[0]!r} as the first answer and no number among {len(rows)} of them, "
      "expected numbers, since config.reward is expression"
    )
  if wrong:
    log.warning(
      "%s: %d of %d answers are no numbers, such as %r: their responses are worth 0",
      source,
      len(wrong),
      len(rows),
      wrong[0],
    )


def overlong_penalty(length, max_response: int, buffer: int):
  """DAPO's soft penalty for long responses: min(0, (max_response - buffer - length) / buffer).

  0 up to `max_response - buffer` tokens, then linear to -1 at `max_response`. `length` is an array
  of any shape; `buffer = 0` is off. Added to the mapped reward, [-1, 1], and not clipped. Source:
  arXiv 2503.14476, equation 13.
  """
  if not buffer:
    return (0.0 * length).astype("float32")
  return ((max_response - buffer - length) / buffer).clip(-1.0, 0.0).astype("float32")
