"""BASIS (arXiv 2605.27293): a prompt's value from one rollout of every other prompt of the batch.

    v = beta log(1 + q (exp(1 / beta) - 1))             q = (1 + V) / 2, the success of V
    p_i = v_i sum_{j != i} s_j / (1 - v_j) / sum_{j != i} k_j v_j / (1 - v_j),  b_i = 2 p_i - 1

The paper's text could not be had beyond its abstract (one rollout a prompt, and the information of
the whole batch). A reader's account of it names the parts, without equations: values computed
beforehand for a KL-regularised policy, a weighted mean of the other prompts' rewards with the
weights of the best linear unbiased estimate, and beta chosen on a grid by the squared error against
the batch's rewards. The equations are ours, made of these parts:

- v is beta log E exp(r / beta), the most that reward less beta times the KL divergence from a
  policy of success q can be; 1 / beta = 0 is q itself. q is V's, in the place of samples drawn
  beforehand; without V it is .5.
- Where p_j = c v_j for one c, its best linear unbiased estimate from s_j successes in k_j rollouts,
  of variance k_j v_j (1 - v_j), is the quotient above.
- beta is the one of least error in the steps before, so that no reward has part in its own
  baseline.

The account takes prompts of v near 0 or 1, whose weights would be large, out of the mean and gives
them the baseline 0. Here v is kept within [.02, .98] instead.
"""

import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import Estimator
from v05_jax.estimators.score import DISCOUNT
from v05_jax.shrinkage import clean

INVERSE = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0], np.float32)  # 1 / beta
MIN_CHANCE = 0.02  # of success and of failure in v


def values(value):
  """v [G, P] for each 1 / beta of the grid, from V [P]."""
  spoken, prior = clean(value)
  q = jnp.where(spoken, (1.0 + prior) / 2.0, 0.5)
  inverse = INVERSE[1:, None]
  tilted = jnp.log1p(q * jnp.expm1(inverse)) / inverse
  return jnp.concatenate([q[None], tilted]).clip(MIN_CHANCE, 1.0 - MIN_CHANCE)


def of_others(v, s, k):
  """p [G, P] of each prompt from the s [P] successes in k [P] rollouts of the others; v where there
  are none."""
  weight = 1.0 / (1.0 - v)
  rest = lambda x: jnp.sum(x, axis=-1, keepdims=True) - x
  expected = rest(k * v * weight)
  some = jnp.sum(k) - k > 0
  ratio = jnp.where(some, rest(s * weight) / jnp.where(some, expected, 1.0), 1.0)
  return jnp.clip(v * ratio, 0.0, 1.0)


@plug.declare("estimator")
def basis(options, setting):
  """The same baseline for all rollouts of a prompt, none of which has part in it."""

  def every(groups, value):
    return 2.0 * of_others(values(value), groups.s, groups.k) - 1.0

  def learn(state, groups, value):
    seen = groups.unconditional
    square = jnp.where(seen.mask, (seen.reward - every(seen, value)[..., None]) ** 2, 0.0)
    return DISCOUNT * state + jnp.sum(square, axis=(1, 2))

  chosen = lambda state, groups, value: every(groups, value)[jnp.argmin(state)]
  return Estimator(
    baseline=lambda state, groups, value: chosen(state, groups, value)[:, None],
    init=lambda: np.zeros(len(INVERSE), np.float32),
    learn=learn,
    explain=lambda state, groups, value: {
      "baseline": chosen(state, groups, value),
      "1 / beta": jnp.full_like(groups.vbar, jnp.asarray(INVERSE)[jnp.argmin(state)]),
    },
    of_batch=True,
  )
