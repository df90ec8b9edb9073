"""V fitted to its own record by an affine map: for a prior that the policy has moved away from."""

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.priors import context as contexts
from v05_jax.priors.base import Layer
from v05_jax.structs import Context

# Pairs added as a prior of the fit, half at V = -1 and half at V = 1, with outcome V.
PRIOR_PAIRS = 16.0


@plug.declare("wrapper")
def recalibrate(options, setting):
  """Keeps the last `prior.context` pairs of V and outcome, and corrects V by them."""
  size = setting.config.prior.context

  def ask(state, prompts, value, asked):
    return affine(state, value), contexts.remembered(state, np.zeros((len(value), 0)), value)

  def learn(state, asked, groups):
    return contexts.learn(state, asked, groups)[0], {}

  return Layer(ask, lambda: contexts.empty(size), learn, corrects=True)


@jax.jit
def affine(context: Context, value):
  """V' = a + b V, within [-1, 1], as the context's pairs of V_i and outcome y_i = 2 success_i - 1
  suggest.

    a, b = argmin over b >= 0 of  sum_i (y_i - a - b V_i)^2 + n0 (a^2 + (b - 1)^2)

  with n0 = PRIOR_PAIRS. With e_i = y_i - V_i, d = b - 1 and n pairs that is, without the bound,

    d = ((n + n0) sum_i e_i V_i - sum_i V_i sum_i e_i) / ((n + n0) (sum_i V_i^2 + n0) - S),
    a = (sum_i e_i - d sum_i V_i) / (n + n0),  where S = (sum_i V_i)^2

  The sum is convex, so with the bound it is the same a at d = max(d, -1). The denominator is at
  least n0^2. Without pairs V' = V; a V that is anticorrelated with the outcomes becomes a constant.

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
