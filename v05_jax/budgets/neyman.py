"""A fixed total, divided after a first stage by where EWA-Beta expects the largest error."""

import jax
import numpy as np

from v05_jax import budget, plug
from v05_jax.budgets.base import Budget, Limits, constant
from v05_jax.estimators import ewa

MEAN = plug.Option(
  4.0, "rollouts of a prompt on average, which the rule divides", lambda x: x >= 1, "at least 1"
)


def between(name: str):
  """The check of a rule that divides `budgets.NAME.k_mean` rollouts a prompt."""

  def check(config):
    k, mean = config.budget, config.budgets[name].k_mean
    if k.k_init > k.k_max:
      yield "budget.k_init", f"at most budget.k_max = {k.k_max}"
    if not k.k_init <= mean <= k.k_max:
      bounds = f"between budget.k_init = {k.k_init} and budget.k_max = {k.k_max}"
      yield f"budgets.{name}.k_mean", bounds

  return check


@jax.jit
def _divided(state, s, k, value, total, most):
  _, sigma2, var = ewa.ewa_baseline(state, value, s, k)
  return budget.neyman(sigma2, var, k, total, k, most)


@plug.declare("budget", check=between("neyman"), k_mean=MEAN)
def neyman(options, setting):
  """`k_init` rollouts of every prompt, then the rest of the total in one decision for all of
  them."""
  k = setting.config.budget

  def more(state, groups, value, asked):
    real = asked.issued > 0
    if not asked.ended[real].all() or (asked.issued > k.k_init).any():
      return np.zeros(len(real), int)
    counted = groups.k.astype(np.int32)
    lost = np.maximum(asked.issued - counted, 0)  # rollouts without a verdict are part of the total
    total = np.int32(round(options.k_mean * real.sum()) - lost.sum())
    most = np.where(real, k.k_max - lost, 0).astype(np.int32)
    return np.asarray(_divided(state, groups.s, counted, value, total, most)) - counted

  def learn(state, groups, value):
    seen = groups.unconditional
    return ewa.ewa_update(state, value, seen.s, seen.k)

  limits = Limits(k.k_init, k.k_max, options.k_mean, k.k_init, closes=True)
  return Budget(limits, constant(k.k_init), more, ewa.ewa_init, learn=learn)
