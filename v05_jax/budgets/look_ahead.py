"""The paper's rule (arXiv 2603.10848): another rollout while it lowers the estimated MSE enough.

Where a group's own outcomes decide its size, the gradient is biased, mostly in its length.
"""

import jax
import numpy as np

from v05_jax import budget, plug, shrinkage
from v05_jax import groups as grouping
from v05_jax.budgets.base import Budget, Limits, constant

COST = plug.Option(
  1 / 256,
  "a further rollout must lower the estimated MSE by more than this",
  lambda x: x >= 0,
  "at least 0",
)


def _limits(config) -> Limits:
  k = config.budget
  return Limits(k.k_init, k.k_max, None, k.k_init, closes=False)


def _check(config):
  if config.budget.k_init > config.budget.k_max:
    yield "budget.k_init", f"at most budget.k_max = {config.budget.k_max}"


@jax.jit
def _wanted(groups, value, cost, most):
  """(the rule says go on, where it would stop if nothing changed), [P] each; `most` [P]."""
  delta2 = shrinkage.fuse(groups.vbar, groups.k, value).delta2
  go_on = budget.should_continue(delta2, groups.k, cost, most)
  return go_on, budget.final_k(delta2, groups.k, cost, most)


def _most(asked, groups, config):
  """Rollouts with a verdict that a prompt may have: `k_max` less those that have none."""
  lost = np.maximum(asked.issued - groups.k.astype(int), 0)
  return (config.budget.k_max - lost).clip(0).astype(np.int32)


@plug.declare(
  "budget",
  check=_check,
  cost=COST,
  block=plug.Option(1, "rollouts issued at once", lambda x: x >= 1, "at least 1"),
)
def sequential(options, setting):
  """`block` more rollouts, again and again, while the gain of one more exceeds the cost."""
  config = setting.config

  def more(state, groups, value, asked):
    most = _most(asked, groups, config)
    go_on, _ = _wanted(groups, value, options.cost, most)
    return np.where(go_on, np.minimum(options.block, most - groups.k.astype(int)), 0)

  explain, first = _explained(config, options.cost), constant(config.budget.k_init)
  return Budget(_limits(config), first, more, explain=explain)


@plug.declare("budget", check=_check, cost=COST)
def two_stage(options, setting):
  """After the first rollouts all that the rule would add if its estimate of the bias stayed."""
  config, first = setting.config, setting.config.budget.k_init

  def more(state, groups, value, asked):
    _, stop = _wanted(groups, value, options.cost, _most(asked, groups, config))
    return np.where(asked.issued > first, 0, np.asarray(stop) - groups.k.astype(int))

  explain = _explained(config, options.cost, first)
  return Budget(_limits(config), constant(first), more, explain=explain)


def _explained(config, cost: float, first: int | None = None):
  """`Budget.explain`; `first`: rollouts after which the rule decided, None = after all of them."""

  def explain(groups, value, bought):
    seen = groups if first is None else grouping.leading(groups, first)
    gain = np.asarray(budget.gain(shrinkage.fuse(seen.vbar, seen.k, value).delta2, seen.k))
    beyond = np.where(bought >= config.budget.k_max, "k_max", "planned")
    return {"stop": np.where(gain <= cost, "cost", beyond), "gain": gain, "cost": cost}

  return explain
