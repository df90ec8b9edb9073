"""pass@k from n sampled responses a prompt, and bootstrap intervals of a score over prompts."""

import jax
import numpy as np

# Bootstrap samples: enough that another draw does not change an interval's third digit.
DRAWS = 2000
LEVEL = 0.95


def pass_at(count, n: int, k: int) -> np.ndarray:
  """The chance that k responses, drawn without replacement from a prompt's n of which `count`
  succeed, hold a success.

  1 - C(n - count, k) / C(n, k): unbiased for the chance of k fresh responses, which 1 - (1 - count
  / n)^k is not. Source: arXiv 2107.03374, equation 1. `count` is of any shape, 1 <= k <= n, else
  ValueError.
  """
  if not 1 <= k <= n:
    raise ValueError(f"pass@k: found k = {k}, expected 1 to n = {n} responses")
  failures = n - np.asarray(count, np.float64)
  drawn = np.arange(k)  # where k > failures, one of the factors is 0
  return 1 - np.prod((failures[..., None] - drawn) / (n - drawn), axis=-1)


def passes(n: int) -> list[int]:
  """The k of which pass@k is reported: the powers of two from 2 below n, and n."""
  return [2**i for i in range(1, n.bit_length()) if 2**i < n] + [n]


def bootstrap(key: jax.Array, values, draws: int = DRAWS) -> np.ndarray:
  """Means `[draws, M]` of `values [n, M]` over n prompts drawn with replacement, the same ones for
  every column.

  A prompt is drawn with all its responses, so the spread covers the choice of the prompts and that
  of the responses; on a benchmark of 30 problems both matter.
  """
  values = np.asarray(values, np.float64)
  index = np.asarray(jax.random.randint(key, (draws, len(values)), 0, len(values)))
  return np.stack([column[index].mean(1) for column in values.T], 1)


def interval(draws) -> tuple[float, float]:
  """The (low, high) between which the middle 95 % of `draws` lie."""
  low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return float(low), float(high)


def interval_of_mean(values) -> tuple[float, float]:
  """The bootstrap interval of the mean of values [n] over n prompts, by a key of its own."""
  return interval(bootstrap(jax.random.key(0), np.asarray(values)[:, None]))
