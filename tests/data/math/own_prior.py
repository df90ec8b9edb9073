"""A prior as a GPU may calculate it: in the last digits it is another one in every process."""

import jax
import numpy as np

from v05_jax.priors.base import Prior


def inexact(options, setting):
  """0.5 and the mean reward so far, both a little larger in every further process."""
  more = np.float32(1e-7 * jax.process_index())

  def ask(state, prompts):
    value = np.full(len(prompts.mask), 0.5, np.float32) + more
    return value, {"said": value}

  def learn(state, asked, groups):
    return 0.9 * state + np.mean(asked["said"] * groups.vbar) + more, {}

  return Prior(ask, lambda: np.zeros(2, np.float32), learn)
