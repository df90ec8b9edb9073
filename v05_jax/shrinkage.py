"""Baselines and advantages: the test of the prior, the shrinkage toward it, and the baselines to
compare with.

Rewards are in [-1, 1]. For one prompt, `k` valid rollouts have the mean reward `vbar`, and the
value prior says `V`; `s` is the number of successes, the sum of (r + 1) / 2, so that vbar = 2 s / k
- 1. Source of the test and the fusion: V0.5 (arXiv 2603.10848); it is the positive-part James-Stein
rule toward `V`. EWA-Beta, the baseline that learns how far to trust the prior, has a file of its
own (`ewa.py`) and is used from here.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# What EWA-Beta offers is part of this module's interface.
from v05_jax.ewa import EWA, clean, ewa_baseline, ewa_init, ewa_update, floats  # noqa: F401

# What a baseline may be: of the k - 1 other rollouts in `sq_loo`, and in the advantages that leave
# one out.
ESTIMATORS = (
  "mean",
  "value",
  "v05",
  "ewa",
  "beta_shrink",
  "batch_shrink",
  "james_stein",
  "tracker",
)
# Kinds of advantage -> the estimator behind it.
KINDS = {
  "v05": "v05",
  "v05_loo": "v05",
  "ewa": "ewa",
  "beta_shrink": "beta_shrink",
  "batch_shrink": "batch_shrink",
  "james_stein": "james_stein",
  "spo": "tracker",
  "grpo": "mean",
  "dr_grpo": "mean",
  "rloo": "mean",
  "value": "value",
}

STD_EPSILON = 1e-6  # added to standard deviations that divide (GRPO, SPO)
MAX_PRIOR = 0.99  # |V'| in BetaShrink
MIN_SPREAD = 1e-3  # variance of the prior's error, or of the prompts, at least


class Fusion(NamedTuple):
  """A baseline and the test behind it; float arrays of one shape."""

  baseline: jax.Array  # in [-1, 1]
  # of the group mean, in [0, 1]; 0 = the prior alone; NaN = no such number exists (EWA)
  weight: jax.Array
  # estimated squared bias of the prior; 0 = not contradicted, inf = there is no prior
  delta2: jax.Array
  # k (vbar - V)^2; the prior is rejected where it exceeds 1; inf = there is no prior
  statistic: jax.Array


def map_reward(reward, low: float, high: float):
  """Rewards [...] in the verifier's units -> [-1, 1]: clip(2 (x - low) / (high - low) - 1, -1, 1).

  NaN stays NaN: the verifier failed. An array of numpy's stays one. Raises ValueError unless low <
  high.
  """
  if not low < high:
    raise ValueError(f"rewards.low, rewards.high: found {low}, {high}, expected low < high")
  return (2.0 * (reward - low) / (high - low) - 1.0).clip(-1.0, 1.0)


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


class Fit(NamedTuple):
  """What the other prompts of a batch say, for the empirical-Bayes baselines; float arrays of one
  shape."""

  count: jax.Array  # rollouts that the prior is worth: n0 of BetaShrink
  offset: jax.Array  # mean reward minus A times the mean prior: the prior is V' = offset + A V
  center: jax.Array  # mean reward
  noise: jax.Array  # mean v / k: the variance of a group mean around its prompt's true mean
  spread: jax.Array  # variance of the group means around `center`


@functools.partial(jax.jit, static_argnames=("leave_out",))
def beta_fit(value, s, k, scale=1.0, leave_out=False) -> Fit:
  """Moments of a batch of P prompts: how much its priors (A = `scale`), or its mean (A = 0), are
  worth.

    v = (1 - vbar^2) k / (k - 1);  d = vbar - A V;  tau2 = max(var d - mean(v / k), 1e-3);  n0 =
                                   mean v / tau2

  d is taken over the prompts with a prior, or all with A = 0 in its place where no prompt has one;
  variances over those with k >= 2. With none of them n0 = 1, and means of nothing are 0.

  Args:
    value, s, k: [P].
    leave_out: a prompt's fit leaves itself out, so that no baseline depends on the rollout it
      judges.

  Returns:
    Fit of scalars, or of [P] with `leave_out`.
  """
  value, s, k = floats(value, s, k)
  spoken, prior = clean(value)
  spoken = spoken | (jnp.asarray(scale) == 0.0) | ~jnp.any(spoken & (k > 0))
  vbar = 2.0 * s / jnp.where(k > 0, k, 1.0) - 1.0
  group = jnp.where(k >= 2, k, 2.0)
  variance = (1.0 - vbar**2) * group / (group - 1.0)
  d = vbar - scale * prior

  def mean(x, where):
    own = jnp.where(where, x, 0.0)
    number = jnp.sum(where) - (where if leave_out else 0)
    return (jnp.sum(own) - (own if leave_out else 0.0)) / jnp.maximum(number, 1)

  def var(x, where):
    return jnp.maximum(mean(x**2, where) - mean(x, where) ** 2, 0.0)

  pairs = spoken & (k >= 2)
  noise = mean(variance / group, pairs)
  n0 = mean(variance, pairs) / jnp.maximum(var(d, pairs) - noise, MIN_SPREAD)
  known = mean(jnp.ones_like(d), pairs) > 0
  return Fit(
    jnp.where(known, n0, 1.0), mean(d, spoken & (k > 0)), mean(vbar, k > 0), noise, var(vbar, pairs)
  )


def beta_shrink(value, s, k, fit: Fit, scale=1.0):
  """BetaShrink, elementwise: (n0 V' + sum r) / (n0 + k), V' = clip(offset + A V, -.99, .99).

  A prompt without a prior has V' = the batch's mean reward, and so has every prompt with A = 0
  (shrinkage to the batch mean). `fit` is to be made with the same A. At fixed n0 the advantages
  with and without the rollout itself are proportional: A_full = (n0 + k - 1) / (n0 + k) A_loo.
  """
  value, s, k = floats(value, s, k)
  spoken, prior = clean(value)
  prior = jnp.where(spoken, fit.offset + scale * prior, fit.center)
  n0 = jnp.maximum(fit.count, 1e-6)  # k = 0 must not divide by 0
  return (n0 * jnp.clip(prior, -MAX_PRIOR, MAX_PRIOR) + 2.0 * s - k) / (n0 + k)


def james_stein(s, k, fit: Fit):
  """The James-Stein baseline of arXiv 2511.03710, elementwise: group mean and batch mean by the
  batch's moments.

    lambda = noise / (noise + spread);  baseline = (1 - lambda) vbar + lambda center

  With `fit` of the other prompts and s, k of the other rollouts it is the leave-one-out form of the
  authors' code (guanning03/JSPO-Official): `spread` is the variance of the observed means, noise
  included, and lambda that of all k rollouts. With k = 0, or where the fit knows no prompt, only
  one of the two means is left.
  """
  s, k = floats(s, k)
  total = fit.noise + fit.spread
  varies = total > 1e-6  # more than rounding errors, of which no weight could be made
  weight = jnp.where(varies, fit.noise / jnp.where(varies, total, 1.0), 0.0)
  weight = jnp.where(k > 0, weight, 1.0)
  vbar = 2.0 * s / jnp.where(k > 0, k, 1.0) - 1.0
  return (1.0 - weight) * vbar + weight * fit.center


def tracked(value, s, k, history):
  """A per-prompt Beta tracker (SPO, arXiv 2509.13232), elementwise: the posterior mean, mapped to
  [-1, 1].

  `history`: (successes, rollouts), discounted, of the prompt's earlier visits
  (`value_prior/history.py`). The Beta prior behind it is worth one rollout, of value V or, without
  one, 0; SPO samples eight to start with.
  """
  successes, rollouts = history
  _, prior = clean(jnp.asarray(value))
  return (prior + 2.0 * (successes + s) - (rollouts + k)) / (1.0 + rollouts + k)


def baseline(estimator, value, s, k, fits=None, state=None, history=None):
  """One of ESTIMATORS after s successes in k rollouts, elementwise, in [-1, 1]; k may be 0.

  Without rollouts "mean" is 0 and the others say what their prior says; "value" and "v05" without a
  prior are the group mean.

  Args:
    estimator: one of ESTIMATORS (static).
    value, s, k: broadcast.
    fits: {"beta_shrink": Fit with A = 1, "batch_shrink": Fit with A = 0}; "james_stein" takes the
      latter.
    state: EWA, for "ewa".
    history: for "tracker", as in `tracked`.
  """
  value, s, k = floats(value, s, k)
  vbar = jnp.where(k > 0, 2.0 * s / jnp.where(k > 0, k, 1.0) - 1.0, 0.0)
  if estimator == "mean":
    return vbar
  if estimator == "value":
    spoken, prior = clean(value)
    return jnp.where(spoken, prior, vbar)
  if estimator == "v05":
    return fuse(vbar, k, value).baseline
  if estimator == "ewa":
    return ewa_baseline(state, value, s, k)[0]
  if estimator == "tracker":
    return tracked(value, s, k, history)
  if estimator == "james_stein":
    return james_stein(s, k, fits["batch_shrink"])
  if estimator not in ESTIMATORS:
    raise ValueError(f"estimator: found {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
  return beta_shrink(value, s, k, fits[estimator], scale=float(estimator == "beta_shrink"))


@functools.partial(jax.jit, static_argnames=("kind",))
def advantage(kind, reward, mask, value, shaping=0.0, state=None, history=None):
  """Advantages of the rollouts of P prompts, and the baseline behind them.

  With the reward r, shaping f, x = r + f, and means over a prompt's k valid rollouts:

    "v05"           x - fuse(mean r, k, V).baseline             V0.5, no division by a standard
                    deviation
    "v05_loo"       x - fuse of the k - 1 others                the same without its bias
    "ewa"           x - ewa_baseline of the others              EWA-Beta
    "beta_shrink"   x - beta_shrink of the others               empirical Bayes toward V
    "batch_shrink"  x - beta_shrink of the others with A = 0    the same toward the batch's mean: no
                    prior
    "james_stein"   x - james_stein of the others               arXiv 2511.03710
    "spo"           (x - tracked, of the others) / std          SPO: centred and scaled over the
                    whole batch
    "grpo"          (x - mean x) / (std x + 1e-6), std ddof 1   GRPO, and DAPO with other loss
                    settings
    "dr_grpo"       x - mean x                                  Dr.GRPO: the group mean
    "rloo"          x - mean of the others' x                   RLOO: leave-one-out
    "value"         x - V, clipped to [-1, 1]                   the prior alone; with the constant
                    prior this is
                                                                the running mean. Without V: x -
                                                                mean r

  Of the others' baselines, the batch's moments leave the whole prompt out, and `state` and
  `history` are to be those of the step before: then no baseline depends on the rollout that it
  judges, and at a fixed k the policy gradient is unbiased.

  Shaping (the overlong penalty) is a property of a rollout, not of the prompt's difficulty: it is
  added to the reward after mapping and not clipped, and the group kinds compare shaped rewards
  (DAPO, arXiv 2503.14476, 3.4). The test, the fusion and V speak of the verifier's reward, so they
  see r alone: s stays a number of successes, and a rollout pays its penalty in full.

  With k = 1 the group kinds give 0. Sources: arXiv 2603.10848 (V0.5), 2402.03300 (GRPO), 2503.20783
  (Dr.GRPO), 2402.14740 (RLOO).

  Args:
    kind: one of KINDS (static).
    reward: [P, K] in [-1, 1]; a NaN is masked and lowers k.
    mask: bool [P, K], the rollout exists and counts.
    value: [P] the prior V; NaN = it does not speak.
    shaping: [P, K] or a scalar, in units of the mapped reward.
    state: EWA, for "ewa". history: ([P] successes, [P] rollouts), for "spo".

  Returns:
    (advantage [P, K], 0 where masked; Fusion of [P]). `baseline` and `weight` are those of the
      kind, with all k
    rollouts (the group kinds: mean r and 1; "value": V and 0); `delta2` and `statistic` always are
      the test of V.

  Raises:
    ValueError: unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"baseline: found {kind!r}, expected one of {', '.join(KINDS)}")
  reward, mask, k, vbar = _group(reward, mask)
  shaped = jnp.where(mask, reward + shaping, 0.0)
  fusion = fuse(vbar, k, value)
  estimator = KINDS[kind]
  if estimator == "mean":
    fusion = fusion._replace(baseline=vbar, weight=jnp.ones_like(vbar))
    return _group_advantage(kind, shaped, mask, k), fusion

  full, others = _both(estimator, reward, k, vbar, value, state, history)
  if kind in ("v05", "value"):
    others = full[:, None]
  spoken = jnp.isfinite(value)
  weight = {"v05": fusion.weight, "value": jnp.where(spoken, 0.0, 1.0)}.get(
    estimator, jnp.full_like(vbar, jnp.nan)
  )
  result = jnp.where(mask, shaped - others, 0.0)
  if kind == "spo":
    total = jnp.maximum(jnp.sum(mask), 1)
    result = jnp.where(mask, result - jnp.sum(result) / total, 0.0)
    result = result / (jnp.sqrt(jnp.sum(result**2) / total) + STD_EPSILON)
  return result, fusion._replace(baseline=full, weight=weight)


def _group_advantage(kind, shaped, mask, k):
  """Advantages that compare a prompt's rollouts with each other alone, [P, K]."""
  count, others = jnp.maximum(k, 1.0)[:, None], jnp.maximum(k - 1.0, 1.0)[:, None]
  # Measured from the group's best, so that equal rewards give exactly 0: grpo divides by almost 0
  # there.
  best = jnp.max(jnp.where(mask, shaped, -jnp.inf), axis=1, keepdims=True)
  shaped = jnp.where(mask, shaped - best, 0.0)
  centred = jnp.where(mask, shaped - jnp.sum(shaped, axis=1, keepdims=True) / count, 0.0)
  if kind == "dr_grpo":
    return centred
  if kind == "rloo":
    return centred * (k[:, None] / others)
  variance = jnp.sum(centred**2, axis=1, keepdims=True) / others
  spread = variance > 0
  std = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0)
  return centred / (std + STD_EPSILON)


def _both(estimator, reward, k, vbar, value, state, history):
  """The baseline of all k rollouts [P], and for each rollout that of the k - 1 others [P, K]."""
  s = (vbar + 1.0) / 2.0 * k
  fits = {}
  if estimator in ("beta_shrink", "batch_shrink", "james_stein"):
    scale = float(estimator == "beta_shrink")
    fits = {
      "beta_shrink" if scale else "batch_shrink": beta_fit(value, s, k, scale, leave_out=True)
    }
  full = baseline(estimator, value, s, k, fits, state, history)
  column = functools.partial(jax.tree.map, lambda x: x[:, None])
  k_others = jnp.maximum(k - 1.0, 0.0)[:, None]
  s_others = jnp.clip(s[:, None] - (reward + 1.0) / 2.0, 0.0, k_others)
  return full, baseline(
    estimator, column(value), s_others, k_others, column(fits), state, column(history)
  )


@functools.partial(jax.jit, static_argnames=("estimator",))
def sq_loo(estimator, reward, mask, value, state=None, history=None):
  """Mean over a prompt's rollouts of (r_i - baseline of the k - 1 others)^2, [P]; NaN where there
  is no rollout.

  For rewards in {-1, 1} and a k fixed in advance its expectation is E[1 - mu^2] + MSE of the
  baseline at k - 1, so it ranks baselines on real rollouts without knowing the true mean mu. Give
  the first `k_init` rollouts of every prompt: a group that was stopped by its outcome is biased.
  With k = 1 nothing but the priors is judged ("mean" is 0 then).

  estimator: one of ESTIMATORS; the other arguments as in `advantage`.
  """
  if estimator not in ESTIMATORS:
    raise ValueError(f"sq_loo: found {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
  reward, mask, k, vbar = _group(reward, mask)
  _, others = _both(estimator, reward, k, vbar, value, state, history)
  total = jnp.sum(jnp.where(mask, (reward - others) ** 2, 0.0), axis=1)
  return jnp.where(k > 0, total / jnp.maximum(k, 1.0), jnp.nan)


@jax.jit
def outcomes(reward, mask):
  """Rewards [P, K] in [-1, 1] and their mask -> (successes s [P], rollouts k [P]); a NaN reward
  does not count."""
  _, _, k, vbar = _group(reward, mask)
  return (vbar + 1.0) / 2.0 * k, k


def _group(reward, mask):
  """-> (reward [P, K] with 0 where masked, mask [P, K] without NaN rewards, k [P], vbar [P], 0 if k
  = 0)."""
  reward = jnp.asarray(reward)
  reward = reward.astype(jnp.result_type(reward, jnp.float32))
  mask = jnp.asarray(mask, bool) & jnp.isfinite(reward)
  reward = jnp.where(mask, reward, 0.0)
  k = jnp.sum(mask, axis=1, dtype=reward.dtype)
  return reward, mask, k, jnp.sum(reward, axis=1) / jnp.maximum(k, 1.0)
