"""Which prompts of a pool are worth rollouts, judged by their value prior before anything is
sampled; on host.

A prompt that always fails or always succeeds teaches nothing, so the pool is sampled in proportion
to the spread of the reward that the prior expects, sqrt(1 - V^2); SPO's prioritised prompts (arXiv
2509.13232) are the same idea.
"""

import numpy as np

LEAST = 0.1  # added to the spread, so that a prior that is sure and wrong is still put to the test


def inclusion(value, count: int) -> np.ndarray:
  """Probability with which each of M prompts is taken, float64 [M], their sum being `count`.

    pi = min(1, c (sqrt(1 - V^2) + .1)),  c such that sum pi = count

  Args:
    value: [M] the prior V, clipped to [-1, 1]; not finite = no prior: as if V = 0.
    count: prompts to take, at most M.

  Raises ValueError if count exceeds M.
  """
  value = np.asarray(value, np.float64)
  value = np.clip(np.where(np.isfinite(value), value, 0.0), -1.0, 1.0)
  if count > len(value):
    raise ValueError(f"selection: {count} prompts were asked for out of a pool of {len(value)}")
  spread = np.sqrt(1.0 - value**2) + LEAST
  certain = np.zeros(len(value), bool)
  while count > certain.sum():
    scale = (count - certain.sum()) / spread[~certain].sum()
    more = ~certain & (scale * spread >= 1.0)
    if not more.any():
      break
    certain |= more
  return np.where(certain, 1.0, scale * spread if count > certain.sum() else 0.0)


def systematic(pi, uniform: float) -> np.ndarray:
  """Indices, ascending, of the prompts taken: exactly sum pi of them, prompt i with probability
  pi_i.

  One number in [0, 1) decides: prompt i is taken when [pi_1 + .. + pi_(i-1), pi_1 + .. + pi_i)
  holds one of uniform, uniform + 1, ...
  """
  pi = np.asarray(pi, np.float64)
  count = round(float(pi.sum()))
  upper = np.cumsum(pi)
  upper[-1] = max(count, upper[-1])  # rounding must not lose the last one
  return np.searchsorted(upper, uniform + np.arange(count), side="right")
