"""Rewards: what a response is worth, by the built-in tasks, math-verify or the user's function.

`load(config)` returns a verifier: `submit(prompts, responses, rows)` hands rollouts over and
returns one handle each, in order; `handle.result()` waits for its `Verdict`; `close()`, or leaving
the `with` block, ends it. A verifier that hangs, crashes or raises costs one rollout its reward,
and not the run; only one that fails on everything stops it (`sampling.verdicts`).
"""

from v05_jax.rewards.pool import Direct, Pool, Verdict

__all__ = ["Direct", "Pool", "RewardError", "Verdict", "load", "overlong_penalty"]

MATH = "v05_jax.rewards.math:verify"
MATH_MEMORY = 4 << 30  # bytes of address space: a tower of powers must not take all memory
MOST_WORKERS = 1024
LONGEST_VERDICT = 86_400  # seconds: no wait is without a limit


class RewardError(ValueError):
  """The reward has failed on every response that it was asked about."""


def load(config) -> Direct | Pool:
  """The verifier that `config.reward` names.

  "task" is the built-in tasks' own verifier; it is trusted, takes microseconds and runs in this
  process. "math" (free-form mathematics) and "module:function", called as (prompt, response, row)
  -> float, run in `config.rewards.workers` processes, each verdict for `config.rewards.timeout`
  seconds at most.

  Raises ValueError, naming the key, if a worker cannot import the function, or it is none of three
  arguments.
  """
  if config.reward == "task":
    from v05_jax import tasks

    return Direct(tasks.verify)
  workers, timeout = config.rewards.workers, config.rewards.timeout
  number = lambda x, kinds: isinstance(x, kinds) and not isinstance(x, bool)
  if not (number(workers, int) and 1 <= workers <= MOST_WORKERS):
    expected = f"a whole number from 1 to {MOST_WORKERS}"
    raise ValueError(f"config.rewards.workers: found {workers!r:.80}, expected {expected}")
  if not (number(timeout, (int, float)) and 0 < timeout <= LONGEST_VERDICT):
    expected = f"seconds above 0 and at most {LONGEST_VERDICT}, a day"
    raise ValueError(f"config.rewards.timeout: found {timeout!r:.80}, expected {expected}")
  if config.reward != "math" and not all(config.reward.partition(":")):
    raise ValueError(f"config.reward = {config.reward!r}: expected task, math or module:function")
  math = config.reward == "math"
  target, memory = (MATH, MATH_MEMORY) if math else (config.reward, 0)
  try:
    return Pool(target, config.rewards.workers, config.rewards.timeout, memory)
  except ValueError as error:
    raise ValueError(f"config.reward = {config.reward!r}: {error}") from None


def overlong_penalty(length, max_response: int, buffer: int):
  """DAPO's soft penalty for long responses: min(0, (max_response - buffer - length) / buffer).

  0 up to `max_response - buffer` tokens, then linear to -1 at `max_response`. `length` is an array
  of any shape; `buffer = 0` is off. Added to the mapped reward, [-1, 1], and not clipped. Source:
  arXiv 2503.14476, equation 13.
  """
  if not buffer:
    return (0.0 * length).astype("float32")
  return ((max_response - buffer - length) / buffer).clip(-1.0, 0.0).astype("float32")
