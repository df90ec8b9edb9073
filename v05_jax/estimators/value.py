"""The prior alone, whatever the rollouts say; without a prior the group mean."""

import jax.numpy as jnp

from v05_jax import plug, shrinkage
from v05_jax.estimators.base import compared, from_counts, mean_reward


def _prior(state, prompt, value, s, k):
  spoken, prior = shrinkage.clean(value)
  return jnp.where(spoken, prior, mean_reward(s, k))


@plug.declare("estimator", check=compared("value"))
def value(options, setting):
  """V, which does not depend on the prompt's rollouts."""
  weight = lambda groups, value: jnp.where(jnp.isfinite(value), 0.0, 1.0)
  return from_counts(_prior, leave_out=False, weight=weight)
