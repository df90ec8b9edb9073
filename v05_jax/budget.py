"""How many rollouts a prompt is worth: the paper's equations alone.

The paper's rule is a one-step look-ahead on the estimated MSE of the fused baseline: `mse`, `gain`,
`should_continue` and `final_k`, elementwise, where `delta2` is the estimated squared bias of the
prior (`shrinkage.fuse`) and `k` the rollouts so far. Source: V0.5 (arXiv 2603.10848). `neyman`
instead divides a fixed number of rollouts among the prompts of a batch. Every rule is a file in
`budgets/`, and `extra` asks any of them from outside.
"""

import importlib

import jax
import jax.numpy as jnp

from v05_jax.shrinkage import floats

HALVINGS = 60  # of the interval that holds the Lagrange multiplier
MIN_SIGMA, MAX_NU = 1e-6, 1e4


def __getattr__(name: str):
  if name != "extra":  # what other trainers take from here
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module("v05_jax.budgets.base").extra


@jax.jit
def mse(delta2, k):
  """Estimated MSE of the fused baseline: delta2 / (k delta2 + 1); 1/k without a prior (delta2 =
  inf)."""
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


@jax.jit
def neyman(sigma2, var, k0, total, k_min, k_max):
  """Divides `total` rollouts among P prompts so that the sum of the baselines' squared errors is
  least.

  After k rollouts the squared error of prompt i is about sigma2_i / (nu_i + k), where
  nu_i = sigma2_i / var_i - k0_i:

    k_i = clip(k0_i + sigma_i / lambda - sigma2_i / var_i, k_min_i, k_max)

  with the lambda for which sum k_i = total, rounded by largest remainders, ties in the order of the
  prompts. A total that the bounds do not allow is clipped: every prompt then has its k_min, or its
  k_max. Source: Neyman's allocation (1934).

  Args:
    sigma2: [P] variance of one reward; 0 = nothing to learn.
    var: [P] squared error of the baseline after k0 rollouts; inf = nothing is known.
    k0: [P] rollouts so far. k_min, k_max: bounds, [P] or scalars, k_min <= k_max; never less than
      k0.
    total: rollouts of the batch, those so far included.

  Returns:
    int32 [P].
  """
  sigma2, var, k0, k_min, k_max = floats(sigma2, var, k0, k_min, k_max)
  k_min, k_max = jnp.maximum(k_min, k0), jnp.maximum(k_max, k0)
  # The floor and the cap let every prompt reach k_max at some lambda, so that each feasible total
  # is met.
  sigma = jnp.maximum(jnp.sqrt(jnp.maximum(sigma2, 0.0)), MIN_SIGMA)
  nu = jnp.minimum(sigma2 / jnp.maximum(var, sigma2 / MAX_NU + MIN_SIGMA**2), MAX_NU)
  share = lambda x: jnp.clip(k0 + sigma * x - nu, k_min, k_max)  # x = 1 / lambda

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2.0
    enough = jnp.sum(share(middle)) > total
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  low, _ = jax.lax.fori_loop(
    0, HALVINGS, halve, (jnp.zeros_like(sigma[0]), jnp.max((k_max - k0 + nu) / sigma))
  )
  k = share(low)
  whole = jnp.floor(k)
  left = total - jnp.sum(whole)
  room = whole < k_max
  order = jnp.argsort(jnp.where(room, whole - k, 1.0), stable=True)  # largest remainder first
  rank = jnp.zeros(len(k), jnp.int32).at[order].set(jnp.arange(len(k), dtype=jnp.int32))
  return (whole + (room & (rank < left))).astype(jnp.int32)
