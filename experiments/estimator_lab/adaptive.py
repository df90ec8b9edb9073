"""The bias of the policy gradient where a prompt's outcomes decide its number of rollouts, by exact
enumeration.

The policy of `gradient.py`: one logit a prompt. Each rollout is left out of its own baseline, so at
a fixed number of rollouts the gradient is unbiased; what is found here is owed to the rule alone. A
prompt's rollouts are averaged (`loss.aggregate=prompt`) or added up (`rollout`: prompts with more
rollouts weigh more).
"""

import numpy as np

from experiments.estimator_lab import exact
from experiments.estimator_lab.population import K_MAX, Cells, S, binomial, mean
from v05_jax import shrinkage


def ends(c: Cells, rule: str, state, k_mean: float) -> np.ndarray:
  """Probability that a prompt ends with k rollouts and s successes, [C, 17, 17]; `rule`: "Neyman, 2
  first"."""
  name, first = rule.split(", ")
  k_init = int(first.split()[0])
  return sequential(c, k_init) if name == "sequential" else neyman(c, k_init, state, k_mean)


def sequential(c: Cells, k_init: int) -> np.ndarray:
  """The paper's rule, V0.5 and one rollout at a time."""
  found = np.zeros((len(c.mu), K_MAX + 1, K_MAX + 1))
  p, alive = (1 + c.mu[:, None]) / 2, binomial(k_init, c.mu)
  for k in range(k_init, K_MAX + 1):
    more = exact.decisions("sequential", c.value, k) > 0
    found[:, k] = np.where(more, 0.0, alive)
    alive = np.where(more, alive, 0.0)
    alive = alive * (1 - p) + np.roll(alive * p, 1, -1)
  return found


def neyman(c: Cells, k_init: int, state, k_mean: float) -> np.ndarray:
  """The Neyman budget of an infinite batch; a fractional number is rounded at random."""
  s = np.arange(k_init + 1.0)
  _, sigma2, var = (
    np.asarray(x) for x in shrinkage.ewa_baseline(state, c.value[:, None], s, float(k_init))
  )
  start = binomial(k_init, c.mu)[:, : k_init + 1]
  share = lambda x: np.clip(k_init + np.sqrt(sigma2) * x - sigma2 / var, k_init, K_MAX)
  low, high = 0.0, 1e4
  for _ in range(80):
    middle = (low + high) / 2
    enough = mean(c, np.sum(start * share(middle), -1)) > k_mean
    low, high = (low, middle) if enough else (middle, high)
  k = share(low)
  found = np.zeros((len(c.mu), K_MAX + 1, K_MAX + 1))
  for total in range(k_init, K_MAX + 1):
    here = start * np.maximum(1 - np.abs(k - total), 0)  # the share of prompts that get this many
    further = binomial(total - k_init, c.mu)
    for i in range(k_init + 1):
      found[:, total, i:] += here[:, i : i + 1] * further[:, : K_MAX + 1 - i]
  return found


def measure(c: Cells, rule: str, estimator: str, state, k_mean: float) -> dict:
  """Mean rollouts, and the expected gradient against the true one.

  Returns:
    "k": mean; "gradient": expected over true, summed over prompts, with "least" and "most" of one
      prompt and "cosine":
    of averaged rollouts; "cosine_sum": of added ones.
  """
  end, p = ends(c, rule, state, k_mean), (1 + c.mu[:, None]) / 2
  average, total, rollouts = (np.zeros(len(c.mu)) for _ in range(3))
  for k in range(1, K_MAX + 1):
    others = lambda s, k=k: np.asarray(
      shrinkage.baseline(
        estimator, c.value[:, None], np.clip(s, 0, k - 1)[None].astype(float), k - 1.0, state=state
      )
    )
    g = S * (1 - others(S - 1)) * (1 - p) - np.maximum(k - S, 0) * (-1 - others(S)) * p
    each = np.sum(end[:, k] * g, -1)
    average, total, rollouts = average + each / k, total + each, rollouts + k * end[:, k].sum(-1)
  true, inside = (1 - c.mu**2) / 2, np.abs(c.mu) < 1
  ratio = average[inside] / true[inside]
  cosine = lambda x: float(mean(c, x * true) / np.sqrt(mean(c, x**2) * mean(c, true**2)))
  return {
    "k": mean(c, rollouts),
    "gradient": mean(c, average) / mean(c, true),
    "least": float(ratio.min()),
    "most": float(ratio.max()),
    "cosine": cosine(average),
    "cosine_sum": cosine(total),
  }
