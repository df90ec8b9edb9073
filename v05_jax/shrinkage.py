"""Baselines and advantages: the test of the prior, the shrinkage toward it, and the baselines to compare with.

Rewards are in [-1, 1]. For one prompt, `k` valid rollouts have the mean reward `vbar` and the value prior
says `V`. Source: V0.5 (arXiv 2603.10848); the fusion is the positive-part James-Stein rule toward `V`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# With k = 1 the group kinds (grpo, dr_grpo, rloo) give advantage 0: nothing is left to compare with.
KINDS = ("v05", "grpo", "dr_grpo", "rloo", "value")

STD_EPSILON = 1e-6  # added to the group's standard deviation (GRPO)


class Fusion(NamedTuple):
  """A baseline and the test behind it; float arrays of one shape."""

  baseline: jax.Array  # in [-1, 1]
  weight: jax.Array  # of the group mean, in [0, 1]; 0 = the prior alone
  delta2: (
    jax.Array
  )  # estimated squared bias of the prior; 0 = not contradicted, inf = there is no prior
  statistic: (
    jax.Array
  )  # k (vbar - V)^2; the prior is rejected where it exceeds 1; inf = there is no prior


@functools.partial(jax.jit, static_argnames=("low", "high"))
def map_reward(reward, low: float, high: float):
  """Rewards [...] in the verifier's units -> [-1, 1]: clip(2 (x - low) / (high - low) - 1, -1, 1).

  NaN stays NaN: the verifier failed. Raises ValueError unless low < high.
  """
  if not low < high:
    raise ValueError(f"rewards.low, rewards.high: found {low}, {high}, expected low < high")
  return jnp.clip(2.0 * (reward - low) / (high - low) - 1.0, -1.0, 1.0)


@jax.jit
def fuse(vbar, k, value) -> Fusion:
  """V0.5's test and fusion, elementwise; scalars and arrays alike, broadcasting.

    d = vbar - V;  T = k d^2;  delta2 = max(d^2 - 1/k, 0)
    weight = 1 - 1/T if T > 1 else 0;  baseline = V + weight d

  1/k is the worst-case variance of the mean of k rewards in {-1, 1}; |baseline - vbar| <= 1/sqrt(k).

  V outside [-1, 1] is clipped. V not finite: no prior, weight 1, the baseline is vbar. k = 0: vbar is
  ignored and the baseline is V, or 0 without a prior. Source: V0.5 (arXiv 2603.10848).

  Args:
    vbar: mean reward of the prompt's rollouts, in [-1, 1].
    k: number of rollouts.
    value: the prior V.
  """
  dtype = jnp.result_type(vbar, value, jnp.float32)
  vbar, k, value = jnp.broadcast_arrays(*(jnp.asarray(x).astype(dtype) for x in (vbar, k, value)))
  spoken, sampled = jnp.isfinite(value), k > 0
  # Every branch not taken gets harmless inputs, so that its gradient is 0 and not NaN.
  prior = jnp.clip(jnp.where(spoken, value, 0.0), -1.0, 1.0)
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


@functools.partial(jax.jit, static_argnames=("kind",))
def advantage(kind, reward, mask, value, shaping=0.0):
  """Advantages of the rollouts of P prompts, and the baseline behind them.

  With the reward r, shaping f, x = r + f, and means over a prompt's k valid rollouts:

    "v05"      x - fuse(mean r, k, V).baseline             V0.5, no division by a standard deviation
    "grpo"     (x - mean x) / (std x + 1e-6), std ddof 1   GRPO, and DAPO with other loss settings
    "dr_grpo"  x - mean x                                  Dr.GRPO: the group mean
    "rloo"     x - mean of the others' x                   RLOO: leave-one-out
    "value"    x - V, clipped to [-1, 1]                   the prior alone; with the constant prior this is
                                                           the running mean. Without V: x - mean r

  Shaping (the overlong penalty) is a property of a rollout, not of the prompt's difficulty: it is added to
  the reward after mapping and not clipped, and the group kinds compare shaped rewards (DAPO, arXiv
  2503.14476, 3.4). The test, the fusion and V speak of the verifier's reward, so they see r alone:
  s stays a number of successes, and a rollout pays its penalty in full.

  With k = 1 the group kinds give 0. Sources: arXiv 2603.10848 (V0.5), 2402.03300 (GRPO), 2503.20783
  (Dr.GRPO), 2402.14740 (RLOO).

  Args:
    kind: one of KINDS (static).
    reward: [P, K] in [-1, 1]; a NaN is masked and lowers k.
    mask: bool [P, K], the rollout exists and counts.
    value: [P] the prior V; NaN = it does not speak.
    shaping: [P, K] or a scalar, in units of the mapped reward.

  Returns:
    (advantage [P, K], 0 where masked; Fusion of [P]). `baseline` and `weight` are those of the kind (the
    group kinds: mean r and 1; "value": V and 0); `delta2` and `statistic` always are the test of V.

  Raises:
    ValueError: unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"baseline: found {kind!r}, expected one of {', '.join(KINDS)}")
  reward, mask, k, vbar = _group(reward, mask)
  shaped = jnp.where(mask, reward + shaping, 0.0)
  fusion = fuse(vbar, k, value)

  if kind in ("v05", "value"):
    if kind == "value":
      spoken = jnp.isfinite(value)
      prior = jnp.clip(jnp.where(spoken, value, 0.0), -1.0, 1.0)
      fusion = fusion._replace(
        baseline=jnp.where(spoken, prior, vbar), weight=jnp.where(spoken, 0.0, 1.0)
      )
    return jnp.where(mask, shaped - fusion.baseline[:, None], 0.0), fusion

  fusion = fusion._replace(baseline=vbar, weight=jnp.ones_like(vbar))
  count, others = jnp.maximum(k, 1.0)[:, None], jnp.maximum(k - 1.0, 1.0)[:, None]
  # Measured from the group's best, so that equal rewards give exactly 0: grpo divides by almost 0 there.
  best = jnp.max(jnp.where(mask, shaped, -jnp.inf), axis=1, keepdims=True)
  shaped = jnp.where(mask, shaped - best, 0.0)
  centred = jnp.where(mask, shaped - jnp.sum(shaped, axis=1, keepdims=True) / count, 0.0)
  if kind == "dr_grpo":
    return centred, fusion
  if kind == "rloo":
    return centred * (k[:, None] / others), fusion
  variance = jnp.sum(centred**2, axis=1, keepdims=True) / others
  spread = variance > 0
  std = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)
  return centred / (std + STD_EPSILON), fusion


@functools.partial(jax.jit, static_argnames=("kind",))
def sq_loo(kind, reward, mask, value):
  """Mean over a prompt's rollouts of (r_i - baseline of the k - 1 others)^2, [P]; NaN where k < 2.

  For rewards in {-1, 1} and a k fixed in advance its expectation is E[1 - mu^2] + MSE of the baseline at
  k - 1, so it ranks baselines on real rollouts without knowing the true mean mu. Give the first `k_init`
  rollouts of every prompt: a group that was stopped by its outcome is biased.

  kind: "mean" (the group mean) | "v05". reward, mask [P, K] and value [P] as in `advantage`.
  """
  if kind not in ("mean", "v05"):
    raise ValueError(f"sq_loo: found kind {kind!r}, expected mean or v05")
  reward, mask, k, vbar = _group(reward, mask)
  enough = k >= 2
  k_others = jnp.where(enough, k - 1.0, 1.0)[:, None]
  baseline = ((k * vbar)[:, None] - reward) / k_others
  if kind == "v05":
    baseline = fuse(baseline, k_others, jnp.asarray(value)[:, None]).baseline
  total = jnp.sum(jnp.where(mask, (reward - baseline) ** 2, 0.0), axis=1)
  return jnp.where(enough, total / jnp.maximum(k, 1.0), jnp.nan)


def _group(reward, mask):
  """-> (reward [P, K] with 0 where masked, mask [P, K] without NaN rewards, k [P], vbar [P], 0 if k = 0)."""
  reward = jnp.asarray(reward)
  reward = reward.astype(jnp.result_type(reward, jnp.float32))
  mask = jnp.asarray(mask, bool) & jnp.isfinite(reward)
  reward = jnp.where(mask, reward, 0.0)
  k = jnp.sum(mask, axis=1, dtype=reward.dtype)
  return reward, mask, k, jnp.sum(reward, axis=1) / jnp.maximum(k, 1.0)
