"""A fixed total, divided by the prior before any rollout: k_i ~ sqrt(1 - V_i^2)."""

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import budget, plug
from v05_jax.budgets.base import Budget, Limits
from v05_jax.budgets.neyman import MEAN, between


@jax.jit
def _divided(value, least, total, most):
  sigma2 = jnp.where(jnp.isfinite(value), 1.0 - jnp.clip(value, -1.0, 1.0) ** 2, 1.0)
  return budget.neyman(sigma2, jnp.inf, jnp.zeros_like(least), total, least, most)


@plug.declare("budget", check=between("value"), k_mean=MEAN)
def value(options, setting):
  """No outcome has part in the numbers: the gradient is unbiased where prompts weigh the same
  (loss.aggregate=prompt)."""
  k = setting.config.budget

  def first(value, real):
    least, most = (np.where(real, x, 0).astype(np.int32) for x in (k.k_init, k.k_max))
    return np.asarray(_divided(value, least, np.int32(round(options.k_mean * real.sum())), most))

  return Budget(Limits(k.k_init, k.k_max, options.k_mean, k.k_max, closes=True), first)
