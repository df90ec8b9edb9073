"""Pilot-Commit (arXiv 2605.26606): a few rollouts of every prompt, then the rest for those that
have both succeeded and failed often enough.

    k_max - k_init more  where  low <= success rate of the k_init first <= high

The authors' code (databricks/pilot-commit) has .125 and .75, with 16 or 32 rollouts as a pilot and
64 or 128 in all; it gives up prompts above a third bound for good, defers those that are too hard,
keeps a survivor's pilot for up to four steps in a buffer, and updates by the survivors alone. Here
the second stage follows in the same step, no prompt leaves the data, and all rollouts are in the
update: where a group mean is the baseline, prompts without a second stage whose rewards are all
equal change nothing. Where a group's own outcomes decide its size, the gradient is biased.
"""

import numpy as np

from v05_jax import plug
from v05_jax.budgets.base import Budget, Limits, constant


def _check(config):
  k, bounds = config.budget, config.budgets.pilot_commit
  if k.k_init >= k.k_max:
    yield "budget.k_init", f"below budget.k_max = {k.k_max}, which leaves rollouts to commit"
  if bounds.low > bounds.high:
    yield "budgets.pilot_commit.low", f"at most budgets.pilot_commit.high = {bounds.high}"


@plug.declare(
  "budget",
  check=_check,
  low=plug.Option(
    0.125, "success rate of the pilot, at least", lambda x: 0 <= x <= 1, "at least 0 and at most 1"
  ),
  high=plug.Option(
    0.75, "success rate of the pilot, at most", lambda x: 0 <= x <= 1, "at least 0 and at most 1"
  ),
)
def pilot_commit(options, setting):
  """`k_init` rollouts of every prompt, and `k_max` of those within the bounds."""
  k = setting.config.budget

  def inside(groups):
    rate = groups.s / np.maximum(groups.k, 1)
    return (groups.k > 0) & (rate >= options.low) & (rate <= options.high)

  def more(state, groups, value, asked):
    return np.where(inside(groups) & (asked.issued <= k.k_init), k.k_max - k.k_init, 0)

  limits = Limits(k.k_init, k.k_max, None, k.k_init, closes=False)
  return Budget(limits, constant(k.k_init), more)
