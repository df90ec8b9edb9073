"""The errors of prior and baseline against the true success probability, where a task has one."""

import numpy as np

from v05_jax import plug
from v05_jax.observers.base import Observer, Step, pair
from v05_jax.priors.base import speaks


@plug.declare("observer")
def exact(options, setting):
  """One teacher-forced pass over the step's prompts; nothing where success is never exact."""
  if setting.exact is None:
    return Observer(lambda state, step: (state, {}))
  has_prior = speaks(setting.config)

  def see(state, step: Step):
    draw = step.taken
    mu = 2 * truth(setting.exact, step.params, draw.prompts) - 1
    real = draw.groups.mask.any(1)
    error = lambda x, where: pair(np.square(np.asarray(x) - mu), where)
    metrics = {
      "shrinkage/true_mse": error(step.explained["baseline"], real),
      "shrinkage/true_mse_mean": error(draw.groups.vbar, real),
    }
    if has_prior:
      spoken = real & np.isfinite(draw.value)
      metrics["prior/true_mse"] = error(np.clip(draw.value, -1, 1), spoken)
    return state, metrics

  return Observer(see)


def truth(exact, params, prompts) -> np.ndarray:
  """The true success probability of each prompt [P], NaN where the task does not allow it."""
  found = np.full(len(prompts.mask), np.nan)
  found[: len(prompts.rows)] = exact(params, prompts.rows)
  return found
