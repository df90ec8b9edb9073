"""No prior: V is NaN, and only the rollouts count."""

import numpy as np

from v05_jax import plug
from v05_jax.priors.base import Prior


@plug.declare("prior")
def none(options, setting):
  """Never speaks and learns nothing."""
  return Prior(
    lambda state, prompts: (np.full(len(prompts.mask), np.nan, np.float32), {}), learned=False
  )
