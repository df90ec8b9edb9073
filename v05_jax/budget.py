"""How many rollouts a prompt is worth: one-step look-ahead on the estimated MSE of the fused baseline.

`delta2` is the estimated squared bias of the prior (`shrinkage.fuse`), `k` the rollouts so far. All
functions are elementwise, for scalars and arrays alike. Source: V0.5 (arXiv 2603.10848).
"""

import functools

import jax
import jax.numpy as jnp

from v05_jax import shrinkage

RULES = ("fixed", "sequential", "two_stage")


@jax.jit
def mse(delta2, k):
  """Estimated MSE of the fused baseline: delta2 / (k delta2 + 1); 1/k without a prior (delta2 = inf)."""
  dtype = jnp.result_type(delta2, jnp.float32)
  delta2, k = jnp.asarray(delta2).astype(dtype), jnp.asarray(k).astype(dtype)
  prior, sampled = jnp.isfinite(delta2), k > 0
  finite = jnp.where(prior, delta2, 0.0)
  group_mean = jnp.where(sampled, 1.0 / jnp.where(sampled, k, 1.0), jnp.inf)
  return jnp.where(prior, finite / (k * finite + 1.0), group_mean)


@jax.jit
def gain(delta2, k):
  """What one more rollout takes off the estimated MSE.

    gain = mse(k) - mse(k + 1) = mse(k) mse(k + 1) = 1 / (n (n + 1)),  n = k + 1/delta2

  0 where delta2 = 0; without a prior (delta2 = inf) n = k, and k = 0 then gives inf.
  """
  return mse(delta2, k) * mse(delta2, k + 1)


@jax.jit
def should_continue(delta2, k, cost, k_max):
  """Whether to draw one more rollout: gain > cost and k < k_max.

  With cost = 1/256 a prior with a bias of 2 stops at k = 16 without any k_max.
  """
  return (gain(delta2, k) > cost) & (k < k_max)


@jax.jit
def final_k(delta2, k, cost, k_max):
  """Where `should_continue` would stop if delta2 stayed what it is; int32, never less than k.

    clip(ceil((sqrt(1 + 4 / cost) - 1) / 2 - 1 / delta2), k, k_max)  where delta2 > 0, else k

  cost = 0 goes on to k_max where delta2 > 0.
  """
  dtype = jnp.result_type(delta2, jnp.float32)
  delta2, cost = jnp.asarray(delta2).astype(dtype), jnp.asarray(cost).astype(dtype)
  biased, costly = delta2 > 0, cost > 0
  stop = (jnp.sqrt(1.0 + 4.0 / jnp.where(costly, cost, 1.0)) - 1.0) / 2.0
  wanted = jnp.ceil(stop - 1.0 / jnp.where(biased, delta2, 1.0))
  wanted = jnp.where(costly, jnp.minimum(wanted, k_max), k_max)  # in float: inf has no integer
  return jnp.where(biased, jnp.maximum(wanted, k), k).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("rule",))
def extra(rule, value, s, k, undecided, *, k_max, cost, block):
  """Further rollouts to issue for prompts whose issued rollouts all have verdicts.

    "fixed"       0
    "sequential"  min(block, k_max - k) while should_continue, else 0
    "two_stage"   final_k - k; the caller asks once a prompt

  Args:
    rule: one of RULES (static).
    value: [P] the prior V; NaN = none.
    s: [P] sum of (r + 1) / 2 over the k valid rollouts, r in [-1, 1].
    k: int [P] valid rollouts. A rollout without a verdict is not in k: the caller caps what it issues.
    undecided: bool [P]; elsewhere the answer is 0.
    k_max, block: rollouts. cost: of a rollout, in units of the MSE.

  Returns:
    int32 [P].

  Raises:
    ValueError: unknown rule.
  """
  if rule not in RULES:
    raise ValueError(f"budget.rule: found {rule!r}, expected one of {', '.join(RULES)}")
  vbar = 2.0 * s / jnp.maximum(k, 1) - 1.0
  delta2 = shrinkage.fuse(vbar, k, value).delta2
  if rule == "fixed":
    more = jnp.zeros_like(delta2)
  elif rule == "sequential":
    more = jnp.where(should_continue(delta2, k, cost, k_max), jnp.minimum(block, k_max - k), 0)
  else:
    more = final_k(delta2, k, cost, k_max) - k
  return jnp.where(undecided, more, 0).astype(jnp.int32)
