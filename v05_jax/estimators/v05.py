"""V0.5: the prior where the rollouts do not contradict it, else shrunk toward the group mean."""

from v05_jax import plug, shrinkage
from v05_jax.estimators.base import compared, from_counts


def _fused(state, prompt, value, s, k):
  return shrinkage.fuse(2.0 * s / k.clip(1.0) - 1.0, k, value).baseline


def _weight(groups, value):
  return shrinkage.fuse(groups.vbar, groups.k, value).weight


@plug.declare("estimator", check=compared("v05"))
def v05(options, setting):
  """As published: the baseline of all k rewards, the own one among them."""
  return from_counts(_fused, leave_out=False, weight=_weight)


@plug.declare("estimator")
def v05_loo(options, setting):
  """The same of the k - 1 others: unbiased at a fixed k (of what gradient: docs/noise.md)."""
  return from_counts(_fused, weight=_weight)
