"""The paper's equations: the test of the prior and the shrinkage toward it.

Rewards are in [-1, 1]. For one prompt, `k` valid rollouts have the mean reward `vbar`, and the
value prior says `V`. Source: V0.5 (arXiv 2603.10848); it is the positive-part James-Stein rule
toward `V`. Every baseline, this one among them, is a file in `estimators/`.
"""

import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

# What other trainers take from here by name, and where it is.
ELSEWHERE = {
  "advantage": "estimators.base",
  "baseline": "estimators.base",
  "sq_loo": "estimators.base",
  "map_reward": "groups",
  "EWA": "estimators.ewa",
  "ewa_init": "estimators.ewa",
  "ewa_update": "estimators.ewa",
  "ewa_baseline": "estimators.ewa",
}


def __getattr__(name: str):
  if name not in ELSEWHERE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"v05_jax.{ELSEWHERE[name]}"), name)


class Fusion(NamedTuple):
  """A baseline and the test behind it; float arrays of one shape."""

  baseline: jax.Array  # in [-1, 1]
  weight: jax.Array  # of the group mean, in [0, 1]; 0 = the prior alone
  delta2: jax.Array  # estimated squared bias of the prior; 0 = not contradicted, inf = no prior
  statistic: jax.Array  # k (vbar - V)^2; the prior is rejected where it exceeds 1; inf = no prior


@jax.jit
def fuse(vbar, k, value) -> Fusion:
  """V0.5's test and fusion, elementwise; scalars and arrays alike, broadcasting.

    d = vbar - V;  T = k d^2;  delta2 = max(d^2 - 1/k, 0)
    weight = 1 - 1/T if T > 1 else 0;  baseline = V + weight d

  1/k is the worst-case variance of the mean of k rewards in {-1, 1}; |baseline - vbar| <=
  1/sqrt(k).

  V outside [-1, 1] is clipped. V not finite: no prior, weight 1, the baseline is vbar. k = 0: vbar
  is ignored and the baseline is V, or 0 without a prior. Source: V0.5 (arXiv 2603.10848).

  Args:
    vbar: mean reward of the prompt's rollouts, in [-1, 1].
    k: number of rollouts.
    value: the prior V.
  """
  vbar, k, value = floats(vbar, k, value)
  # Every branch not taken gets harmless inputs, so that its gradient is 0 and not NaN.
  (spoken, prior), sampled = clean(value), k > 0
  vbar = jnp.where(sampled, vbar, prior)
  d = vbar - prior
  statistic = k * d * d
  rejected = statistic > 1.0
  weight = jnp.where(rejected, 1.0 - 1.0 / jnp.where(rejected, statistic, 1.0), 0.0)
  # (T - 1) / k, and not d^2 - 1/k, so that rounding cannot make it disagree with the test.
  delta2 = jnp.where(rejected, statistic - 1.0, 0.0) / jnp.where(sampled, k, 1.0)
  return Fusion(
    baseline=jnp.where(spoken, prior + weight * d, vbar),
    weight=jnp.where(spoken, weight, 1.0),
    delta2=jnp.where(spoken, delta2, jnp.inf),
    statistic=jnp.where(spoken, statistic, jnp.inf),
  )


def clean(value):
  """(bool: there is a prior, the prior clipped to [-1, 1] with 0 where there is none)."""
  spoken = jnp.isfinite(value)
  return spoken, jnp.clip(jnp.where(spoken, value, 0.0), -1.0, 1.0)


def floats(*arrays):
  """The arrays broadcast, as floats of one type."""
  dtype = jnp.result_type(*arrays, jnp.float32)
  return jnp.broadcast_arrays(*(jnp.asarray(x).astype(dtype) for x in arrays))
