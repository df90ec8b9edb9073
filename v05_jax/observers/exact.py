"""The errors of prior and baseline against the true success probability, where a task has one."""

import numpy as np

from v05_jax import plug
from v05_jax.observers.base import Observer, Step, pair


@plug.declare("observer")
def exact(options, setting):
  """One teacher-forced pass over the step's prompts; nothing where success is never exact."""
  success, has_prior = setting.exact, plug.speaks(setting.config)
  if success is None:
    return Observer(lambda state, step: (state, {}))

  def see(state, step: Step):
    draw = step.taken
    mu = 2 * truth(success, step.params, draw.prompts) - 1
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
