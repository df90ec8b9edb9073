"""The mean success of the context, the same for every prompt."""

import numpy as np

from v05_jax import plug
from v05_jax.priors import context as contexts
from v05_jax.priors.base import Prior


@plug.declare("prior")
def constant(options, setting):
  """The running mean of the last `prior.context` prompts."""
  size, least = setting.config.prior.context, setting.config.prior.min_support

  def ask(state, prompts):
    count = len(prompts.mask)
    value = np.full(count, np.asarray(contexts.mean_value(state, least)))
    return value, contexts.remembered(state, np.zeros((count, 1), np.float32), value)

  return Prior(ask, lambda: contexts.empty(size, 1), contexts.learn, learned=False)
