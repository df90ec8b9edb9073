"""Estimators that learn from batches, and budgets that divide a batch's rollouts, simulated;
vmapped over seeds.

110 steps of 128 prompts, the first 10 left out of every mean. A prompt's 16 possible rollouts are
drawn at once and its first k count, so that all numbers of rollouts and all estimators see the same
outcomes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.estimator_lab.exact import baseline
from experiments.estimator_lab.population import K_MAX, LEVELS, NORMAL, QUANTILES
from v05_jax import budget, shrinkage
from v05_jax.estimators.beta_shrink import beta_fit
from v05_jax.run.comparison import standard_error

BATCH, STEPS, DROPPED = 128, 110, 10
# Those of the package that need no earlier visits of the same prompt.
ESTIMATORS = ("mean", "value", "v05", "beta_shrink", "batch_shrink", "james_stein", "ewa")


def draw(key, share, sd, h):
  """BATCH prompts of the population: mu [P], prior [P], successes of all possible rollouts bool [P,
  16]."""
  level, quantile, wrong, rollouts = jax.random.split(key, 4)
  mu = jnp.asarray(LEVELS, jnp.float32)[jax.random.choice(level, len(LEVELS), (BATCH,), p=share)]
  z = jnp.asarray(NORMAL, jnp.float32)[jax.random.randint(quantile, (BATCH,), 0, QUANTILES)]
  opposite = mu - 1.2 * jnp.where(mu >= 0, 1, -1)
  value = jnp.clip(jnp.where(jax.random.uniform(wrong, (BATCH,)) < h, opposite, mu + sd * z), -1, 1)
  return mu, value, jax.random.uniform(rollouts, (BATCH, K_MAX)) < (1 + mu[:, None]) / 2


def first(success, k):
  """Successes among the first k rollouts; [P, 16] and a scalar or [P] -> [P]."""
  return jnp.sum(success & (jnp.arange(K_MAX) < jnp.asarray(k)[..., None]), 1).astype(jnp.float32)


def _over_seeds(step, keys):
  """Scans `step` (state, key) -> (state, outputs) over STEPS keys for each seed; means of the
  outputs over steps."""

  def one(key):
    state, outputs = jax.lax.scan(step, shrinkage.ewa_init(), jax.random.split(key, STEPS))
    return state, jax.tree.map(lambda x: jnp.mean(x[DROPPED:]), outputs)

  return jax.vmap(one)(keys)


@jax.jit
def estimators(keys, share, sd, h, k):
  """Every estimator at k rollouts of every prompt.

  EWA has the state of the step before. The moments of the others are those of the batch without the
  prompt itself.

  Returns:
    (EWA at the end, with a leading axis of seeds; {estimator: MSE [seeds]}, and "ewa_var", the MSE
      that EWA expects).
  """

  def step(state, key):
    mu, value, success = draw(key, share, sd, h)
    s, group = first(success, k), jnp.full(BATCH, k, jnp.float32)
    fit = lambda scale: beta_fit(value, s, group, scale, leave_out=True)
    fits = {"beta_shrink": fit(1.0), "batch_shrink": fit(0.0), "james_stein": fit(0.0)}
    found = lambda name: baseline(name, value, s, group, fits.get(name, ()), state)
    error = lambda name: jnp.mean((found(name) - mu) ** 2)
    outputs = {name: error(name) for name in ESTIMATORS}
    outputs["ewa_var"] = jnp.mean(shrinkage.ewa_baseline(state, value, s, group)[2])
    return shrinkage.ewa_update(state, value, s, group), outputs

  return _over_seeds(step, keys)


@functools.partial(jax.jit, static_argnames=("rule",))
def budgets(rule, keys, share, sd, h, k_init, total):
  """EWA after `total` rollouts of the batch, divided by "neyman", "value" or "uniform"; at least
  k_init a prompt.

  With "neyman" EWA learns from the first k_init rollouts alone; the other two fix all numbers in
  advance, and it learns from all.

  Returns:
    {"ewa", "v05": MSE [seeds], "k": mean rollouts [seeds]}.
  """

  def step(state, key):
    mu, value, success = draw(key, share, sd, h)
    k0 = jnp.full(BATCH, k_init)
    s0 = first(success, k0)
    if rule == "uniform":
      k = total // BATCH + (jnp.arange(BATCH) < total % BATCH)
    else:
      nothing = 1.0 - value**2, jnp.inf, jnp.zeros(BATCH)  # V alone is known
      first_stage = (*shrinkage.ewa_baseline(state, value, s0, k0)[1:], k0)
      known = first_stage if rule == "neyman" else nothing
      k = budget.neyman(*known, total, k0, K_MAX)
    s, fixed = first(success, k), rule != "neyman"
    error = lambda name: jnp.mean((baseline(name, value, s, k, state=state) - mu) ** 2)
    outputs = {"ewa": error("ewa"), "v05": error("v05"), "k": jnp.mean(k)}
    return shrinkage.ewa_update(state, value, s if fixed else s0, k if fixed else k0), outputs

  return _over_seeds(step, keys)[1]


def keys(seeds):
  """One key for each seed."""
  return jnp.stack([jax.random.key(int(seed)) for seed in seeds])


def summary(x) -> dict:
  """Mean over seeds and its standard error."""
  x = np.asarray(x, float)
  error = float(standard_error(x)) if len(x) > 1 else None
  return {"mean": float(np.mean(x)), "error": error}
