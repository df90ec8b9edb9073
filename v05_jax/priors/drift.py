"""A prior that no longer fits the policy: what its own record says, its recalibration, and when to
do without it.

The context holds with every outcome the V that was asked before it was seen, so that V is judged,
and corrected, on outcomes that had no part in it. Values are in [-1, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.structs import Context

# as many further pairs, half at V = -1 and half at V = 1, that came out exactly as V says
PRIOR_PAIRS = 16.0


class Drift(NamedTuple):
  """Which prior is in use, V or the context's mean, and for how long the other has been the better
  one; on host."""

  streak: np.ndarray  # int32 []  consecutive steps in which the prior not in use was the better one
  fallen: np.ndarray  # bool []   the context's mean is in use


def init() -> Drift:
  """V is in use and nothing speaks against it."""
  return Drift(np.zeros((), np.int32), np.zeros((), bool))


def update(drift: Drift, worse: bool, patience: int) -> Drift:
  """One step's lesson: after `patience` steps in a row in which it was worse, the prior in use
  gives way to the other.

  Args:
    drift: before.
    worse: the prior in use had the larger squared error on the step's prompts: V where not
      `drift.fallen`, else the context's mean.
    patience: steps, the same in both directions; 0 = never.
  """
  streak = (int(drift.streak) + 1) * bool(worse)
  turn = 0 < patience <= streak
  return Drift(np.array(0 if turn else streak, np.int32), np.array(bool(drift.fallen) != turn))


@jax.jit
def recalibrate(context: Context, value):
  """V' = a + b V, within [-1, 1], as the context's pairs of V_i and outcome y_i = 2 success_i - 1
  suggest.

    a, b = argmin over b >= 0 of  sum_i (y_i - a - b V_i)^2 + n0 (a^2 + (b - 1)^2),  n0 =
                                  PRIOR_PAIRS

  With e_i = y_i - V_i and d = b - 1 that is, without the bound,

    d = ((n + n0) sum_i e_i V_i - sum_i V_i sum_i e_i) / ((n + n0) (sum_i V_i^2 + n0) - (sum_i
    V_i)^2) a = (sum_i e_i - d sum_i V_i) / (n + n0)

  and with it the same a at d = max(d, -1), for the sum is convex. The denominator is at least n0^2.
  Without pairs V' = V; a V that points the wrong way becomes a constant and never its own opposite.

  Args:
    context: M pairs, of which those with a finite V count; rows not yet written have none.
    value: [P]; NaN stays NaN.

  Returns:
    V' [P].
  """
  known, asked, outcome = jnp.isfinite(context.value), context.value, 2.0 * context.success - 1.0
  total = lambda x: jnp.sum(jnp.where(known, x, 0.0))
  error, pairs = outcome - asked, total(1.0) + PRIOR_PAIRS
  first, off = total(asked), total(error)
  slope = pairs * total(error * asked) - first * off
  slope = jnp.maximum(slope / (pairs * (total(asked**2) + PRIOR_PAIRS) - first**2), -1.0)
  shift = (off - slope * first) / pairs
  return jnp.clip(shift + (1.0 + slope) * value, -1.0, 1.0)


@jax.jit
def errors(context: Context):
  """(root mean square, mean) of V_i - y_i over the context's pairs with a V; NaN without any.

  y_i is the mean reward of a few rollouts, whose noise is part of the first: even the true success
  probability has an error of sqrt(mean (1 - mu^2) / k). The second is above 0 where V is too
  optimistic.
  """
  error = context.value - (2.0 * context.success - 1.0)
  known = jnp.isfinite(error)
  mean = lambda x: jnp.sum(jnp.where(known, x, 0.0)) / jnp.sum(known)
  return jnp.sqrt(mean(error**2)), mean(error)
