"""Which prompts of a pool are worth rollouts, by their value prior, before anything is sampled;
on host.

A prompt that always fails or always succeeds teaches nothing, so the pool is sampled in proportion
to the spread of the reward that the prior expects, sqrt(1 - V^2); SPO's prioritised prompts (arXiv
2509.13232) are the same idea. What the gradient sees is the root of the prompt's own part in its
second moment, which the wrapper `second_moment` of a prior tracks for data that comes back.
"""

import numpy as np

# Added to the spread, so that a prior that is sure and wrong is still put to the test.
LEAST = 0.1
SHARE = 0.1  # the same for second moments, as a share of the mean root


def spread(value) -> np.ndarray:
  """sqrt(1 - V^2) + .1, float64 [M]; value: [M] the prior V, clipped to [-1, 1]; not finite = no
  prior: as if V = 0."""
  value = np.asarray(value, np.float64)
  value = np.clip(np.where(np.isfinite(value), value, 0.0), -1.0, 1.0)
  return np.sqrt(1.0 - value**2) + LEAST


def root(moment) -> np.ndarray:
  """sqrt(m) + .1 mean sqrt(m), float64 [M], of expected second moments m >= 0 [M]; 1 if all are
  0."""
  found = np.sqrt(np.maximum(np.asarray(moment, np.float64), 0.0))
  return found + SHARE * found.mean() if found.any() else np.ones(len(found))


def chances(score, count: int) -> np.ndarray:
  """Probability with which each of M prompts is taken, float64 [M], their sum being `count`.

    pi = min(1, c score),  c such that sum pi = count

  score: [M], above 0: `spread` or `root`.

  Raises ValueError if count exceeds M.
  """
  if count > len(score):
    raise ValueError(f"selection: {count} prompts were asked for out of a pool of {len(score)}")
  certain = np.zeros(len(score), bool)
  while count > certain.sum():
    scale = (count - certain.sum()) / score[~certain].sum()
    more = ~certain & (scale * score >= 1.0)
    if not more.any():
      break
    certain |= more
  return np.where(certain, 1.0, scale * score if count > certain.sum() else 0.0)


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
