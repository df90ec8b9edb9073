"""A prompt's own earlier outcomes fused into its prior: for data seen more than once."""

import functools

import numpy as np

from v05_jax import history as histories
from v05_jax import plug
from v05_jax.priors.base import Layer


@plug.declare("wrapper", half_life=plug.Option(*histories.HALF_LIFE))
def history(options, setting):
  """V and the history, by the precisions that both have shown (`history.fuse`)."""

  def ask(state, prompts, value, asked):
    fused, weight = histories.fused(state, prompts.row, prompts.step, options.half_life, value)
    return fused, {"before": value, "weight": np.asarray(weight), "real": prompts.mask}

  def learn(state, asked, groups):
    after = histories.remember(state, groups.unconditional, asked["before"], options.half_life)
    weight = asked["weight"][asked["real"]].astype(float)
    return after, {"prior/history": (float(weight.sum()), float(len(weight)))}

  return Layer(ask, functools.partial(histories.empty, setting.rows), learn)
