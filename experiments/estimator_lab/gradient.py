"""What a baseline does to the policy gradient, by exact enumeration, for the smallest policy there
is.

Each prompt has one parameter, the logit of its success probability p = (1 + mu) / 2, so that the
score of a success is 1 - p and of a failure -p, and d mu / d logit = (1 - mu^2) / 2. The estimate
of k rollouts is the mean of A score.
"""

import jax.numpy as jnp
import numpy as np

from experiments.estimator_lab.population import Cells, binomial, mean
from v05_jax import shrinkage
from v05_jax.estimators.beta_shrink import MIN_SPREAD, Fit

BATCH_KINDS = ("beta_shrink", "batch_shrink", "james_stein")
# "oracle": the true mean as the baseline. SPO is left out: it needs earlier visits of the same
# prompt.
KINDS = (
  "oracle",
  "ewa",
  "beta_shrink",
  "v05_loo",
  "v05",
  "value",
  "james_stein",
  "batch_shrink",
  "rloo",
  "dr_grpo",
  "grpo",
)
UNBIASED = ("ewa", "beta_shrink", "batch_shrink", "james_stein", "v05_loo", "rloo")


def infinite_batch(c: Cells, k: int, scale: float) -> Fit:
  """What `beta_shrink.beta_fit` tends to as the batch grows, k rollouts a prompt."""
  noise, center = mean(c, 1 - c.mu**2), mean(c, c.mu)
  d = c.mu - scale * c.value
  var = lambda x: mean(c, x**2) - mean(c, x) ** 2
  return Fit(noise / max(var(d), MIN_SPREAD), mean(c, d), center, noise / k, var(c.mu) + noise / k)


def advantages(kind: str, c: Cells, k: int, state):
  """Advantage of a success and of a failure in a group with s successes, each [C, k + 1], s = 0 ..
  k."""
  if kind == "oracle":
    both = np.stack([1 - c.mu, -1 - c.mu])
    return np.repeat(both[:, :, None], k + 1, 2)
  if kind in BATCH_KINDS:
    fit = infinite_batch(c, k, float(kind == "beta_shrink"))
    s = np.arange(k + 1.0)
    others = lambda s: np.asarray(shrinkage.baseline(kind, c.value[:, None], s[None], k - 1.0, fit))
    return np.stack([1 - others(np.maximum(s - 1, 0)), -1 - others(np.minimum(s, k - 1))])
  found = []
  for s in range(k + 1):
    reward = np.tile(np.where(np.arange(k) < s, 1.0, -1.0), (len(c.mu), 1))
    a, _ = shrinkage.advantage(
      kind, jnp.asarray(reward), np.ones(reward.shape, bool), c.value, state=state
    )
    found.append(np.asarray(a)[:, [0, -1]])
  return np.stack(found, -1).swapaxes(0, 1)


def measure(kind: str, c: Cells, k: int, state) -> dict:
  """Bias and noise of one kind of advantage.

  Returns:
    "a2": E[A^2].
    "gradient": expected gradient over the true one, summed over prompts; "least", "most": of one
      prompt.
    "cosine": of the expected and the true gradient.
    "a2_scaled": a2 / gradient^2.
    "noise": variance of the mean gradient over prompts at equal rollouts, times the rollouts, over
      its squared expectation, for given prompts.
    "noise_drawn": the same with the prompts drawn too.
  """
  success, failure = advantages(kind, c, k, state)
  s, p = np.arange(k + 1), (1 + c.mu[:, None]) / 2
  weight = binomial(k, c.mu)[:, : k + 1]
  a2 = np.sum(weight * (s * success**2 + (k - s) * failure**2), -1) / k
  g = (s * success * (1 - p) - (k - s) * failure * p) / k
  expected, square = np.sum(weight * g, -1), np.sum(weight * g**2, -1)
  true, inside = (1 - c.mu**2) / 2, np.abs(c.mu) < 1
  ratio = expected[inside] / true[inside]
  total = mean(c, expected)
  return {
    "a2": mean(c, a2),
    "gradient": total / mean(c, true),
    "least": float(ratio.min()),
    "most": float(ratio.max()),
    "cosine": mean(c, expected * true) / np.sqrt(mean(c, expected**2) * mean(c, true**2)),
    "a2_scaled": mean(c, a2) / (total / mean(c, true)) ** 2,
    "noise": k * mean(c, square - expected**2) / total**2,
    "noise_drawn": k * (mean(c, square) - total**2) / total**2,
  }


def identity(c: Cells, k: int, kind: str, a2: float) -> float:
  """E[A_loo^2] - E[1 - mu^2] - MSE at k - 1: 0, for RLOO and leave-one-out V0.5, whose MSE needs no
  batch."""
  s = np.arange(k)
  b = shrinkage.baseline(kind, c.value[:, None], s[None].astype(float), k - 1.0)
  error = np.sum(binomial(k - 1, c.mu)[:, :k] * (np.asarray(b) - c.mu[:, None]) ** 2, -1)
  return a2 - mean(c, 1 - c.mu**2) - mean(c, error)
