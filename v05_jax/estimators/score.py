"""Baselines of least gradient noise: rewards weighted by the squared length of their gradients.

A policy gradient is a mean of (r - b) g, where g is the gradient of a response's log-probability,
the sum of those of its tokens (loss.aggregate=constant; the others weigh them by a length too).
Every b that does not depend on the response gives it the same expectation, so the best one has the
least second moment E[w (r - b)^2], w = |g|^2. That is the w-weighted mean reward:

    b* = E[w r] / E[w] = (p m1 - (1 - p) m0) / (p m1 + (1 - p) m0)

for a prompt of success probability p whose successes have E[w] = m1 and failures m0, rewards in
{-1, 1} (Greensmith, Bartlett and Baxter, 2004). It is the mean reward where rho = m0 / m1 is 1; its
odds (1 + b*) / (1 - b*) are those of success divided by rho.

`groups.score` stands for w: |g|^2 itself takes a backward pass a rollout (`--mode=noise`).

    score      sum(w r) / sum(w) over all prompts of the steps before, discounted
    score_loo  sum(w x) / sum(w) over the k - 1 others of the group, x the shaped reward

Neither reads the reward that it is subtracted from, nor that rollout's w: at a fixed k both leave
the gradient unbiased. Where outcomes choose k, score_loo does not.
"""

import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import Estimator, at_least_two

DISCOUNT = 0.9  # what a step's sums keep at each later step
FLOOR = 1e-6  # added to w, so that rollouts without any score count alike and not at all


def weights(groups):
  """w [P, K] of each rollout, 0 where masked."""
  return jnp.where(groups.mask, groups.score + FLOOR, 0.0)


def mean_of_others(x, w):
  """sum(w x) / sum(w) over the other rollouts of each prompt [P, K]; 0 where there are none."""
  # No total less the rollout's own part: what is left may be a millionth of it.
  others = 1.0 - jnp.eye(w.shape[1], dtype=w.dtype)
  total, weight = (jnp.matmul(y, others, precision="highest") for y in (w * x, w))
  return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def mean_of_all(x, w):
  """sum(w x) / sum(w) of each prompt [P]; 0 without rollouts."""
  weight = jnp.sum(w, axis=1)
  return jnp.sum(w * x, axis=1) / jnp.where(weight > 0, weight, 1.0)


@plug.declare("estimator")
def score(options, setting):
  """The w-weighted mean reward of the steps before, the same for every prompt; at first 0."""

  def learn(state, groups, value):
    seen = groups.unconditional
    w = weights(seen)
    return DISCOUNT * state + jnp.stack([jnp.sum(w), jnp.sum(w * seen.reward)])

  def mean(state):
    weight, reward = state
    return jnp.where(weight > 0, reward / jnp.where(weight > 0, weight, 1.0), 0.0)

  return Estimator(
    baseline=lambda state, groups, value: jnp.broadcast_to(mean(state), (len(groups.k), 1)),
    init=lambda: np.zeros(2, np.float32),
    learn=learn,
    explain=lambda state, groups, value: {"baseline": jnp.full_like(groups.vbar, mean(state))},
  )


@plug.declare("estimator", check=at_least_two("score_loo"))
def score_loo(options, setting):
  """The w-weighted mean of the others. A rollout alone is compared with itself."""

  def baseline(state, groups, value):
    alone = groups.k[:, None] < 2
    return jnp.where(alone, groups.shaped, mean_of_others(groups.shaped, weights(groups)))

  return Estimator(
    baseline=baseline,
    unseen=lambda state, groups, value: mean_of_others(groups.reward, weights(groups)),
    explain=lambda state, groups, value: {"baseline": mean_of_all(groups.reward, weights(groups))},
    of_shaped=True,
  )
