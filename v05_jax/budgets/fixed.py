"""The same number of rollouts for every prompt."""

from v05_jax import plug
from v05_jax.budgets.base import fixed_number


def _check(config):
  k = config.budget.k_init
  if config.budget.k_max != k:
    yield "budget.k_max", f"budget.k_init = {k}, since budget.rule is fixed"


@plug.declare("budget", check=_check)
def fixed(options, setting):
  """`k_init` rollouts: what GRPO and most others do."""
  return fixed_number(setting.config.budget.k_init)
