"""The population of prompts: true means mu, priors V and their masses, and what s successes in k
rollouts weigh.

mu is one of 11 values with the masses of real mean scores; V = clip(mu + sd z), z at 200 normal
quantiles, except in a share h of the mass, where the prior is hallucinated: V = clip(mu - 1.2 sgn
mu), sgn 0 = +1.
"""

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# Prompts with the mean score -1, -.8, ..., 1 of ten rollouts: the public sample of V0, 3,072 rows.
COUNTS = (505, 236, 177, 147, 156, 171, 143, 191, 251, 338, 757)
LEVELS = np.arange(-10, 11, 2) / 10
QUANTILES = 200
NORMAL = np.array([NormalDist().inv_cdf((q + 0.5) / QUANTILES) for q in range(QUANTILES)])

K_MAX = 16
S = np.arange(K_MAX + 1)  # successes; one shape for every k, so that each function compiles once
TABLE_ROWS = tuple((sd, h) for h in (0.0, 0.1) for sd in (0.1, 0.2, 0.4, 0.6))
ROWS = tuple((sd, h) for h in (0.0, 0.1) for sd in (0.1, 0.2, 0.3, 0.4, 0.6, 0.8))


class Cells(NamedTuple):
  """Kinds of prompts; the mass sums to 1."""

  mu: np.ndarray  # [C] true mean reward
  value: np.ndarray  # [C] the prior
  mass: np.ndarray  # [C]
  wrong: np.ndarray  # bool [C], the prior is hallucinated


def counts(path: str) -> tuple[int, ...]:
  """Prompts at each of the 11 mean scores of a .jsonl file with a "score" in [-1, 1]; COUNTS
  without that file."""
  if not path or not Path(path).exists():
    return COUNTS
  scores = [
    json.loads(line)["score"] for line in Path(path).read_text().splitlines() if line.strip()
  ]
  index = np.rint((np.array(scores) + 1) * 5).astype(int)
  if not len(index) or index.min() < 0 or index.max() > 10:
    raise ValueError(f"--data: found scores outside [-1, 1], or none, in {path}")
  return tuple(np.bincount(index, minlength=11).tolist())


def cells(sd: float, h: float, number=COUNTS) -> Cells:
  """The population with an error of the prior of `sd` before clipping and a share h of
  hallucinations."""
  share = np.array(number) / np.sum(number)
  mu = np.repeat(LEVELS, QUANTILES)
  value = mu + sd * np.tile(NORMAL, 11)
  wrong = LEVELS - 1.2 * np.where(LEVELS >= 0, 1, -1)
  return Cells(
    mu=np.concatenate([mu, LEVELS]),
    value=np.clip(np.concatenate([value, wrong]), -1, 1),
    mass=np.concatenate([np.repeat(share, QUANTILES) * (1 - h) / QUANTILES, share * h]),
    wrong=np.repeat([False, True], [11 * QUANTILES, 11]),
  )


def rmse(c: Cells) -> float:
  """Root mean squared error of the prior."""
  return float(np.sqrt(np.sum(c.mass * (c.value - c.mu) ** 2)))


def binomial(k: int, mu):
  """Probability of s successes in k rollouts, [..., 17]."""
  p = (1 + np.asarray(mu)[..., None]) / 2
  return np.array([math.comb(k, s) for s in S]) * p**S * (1 - p) ** np.maximum(k - S, 0)


def mean(c: Cells, x) -> float:
  """Mean of x [C] over the prompts."""
  return float(np.sum(c.mass * x))
