"""EWA-Beta: a baseline that learns online how far to trust the prior, an average over 30 Beta
experts.

Each expert believes that a prompt's success probability was drawn from a Beta distribution around
the prior's value, or, with the probability eps that the prior hallucinates, from the population of
prompts. The experts differ in how much they scale the prior (A), how many rollouts it is worth to
them (n) and in eps. They are weighted by how well each has predicted every rollout from the others
of its prompt (exponentially weighted average). `s` is the number of successes among `k` rollouts, a
prompt's sum of (r + 1) / 2; values are in [-1, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import from_counts
from v05_jax.shrinkage import clean, floats

SCALES, COUNTS, DOUBTS = (0.6, 1.0), (0.5, 2.0, 8.0, 32.0, 128.0), (0.0, 0.15, 0.4)
# [A, n] pairs share their Beta functions: the three doubts differ in the mixture alone.
_A, _N = (np.array(x) for x in zip(*((a, n) for a in SCALES for n in COUNTS)))

DISCOUNT = 0.8  # of the moments and losses, an update
LEARNING_RATE = 1 / 8  # of the expert weights, in units of a rollout's squared error
MIN_PROMPTS = 8  # discounted prompts from which on the moments are used


class EWA(NamedTuple):
  """What EWA-Beta has learnt; all zeros at first."""

  # [8] discounted sums of [1, rbar, rbar^2, v/k, v | 1, V, rbar]: with k >= 2 | with a prior
  moments: jax.Array
  # [30] discounted leave-one-out squared errors of the experts, in the order (A, n, eps)
  losses: jax.Array


class _Population(NamedTuple):
  """The moments as scalars."""

  a: jax.Array  # Beta(a, b): the success probabilities of all prompts
  b: jax.Array
  reward: jax.Array  # mean reward of the prompts that have a prior
  value: jax.Array  # their mean prior


def ewa_init() -> EWA:
  """The state before anything was seen: equal weights, the population Beta(.5, .5)."""
  # device_put compiles no program
  return EWA(*jax.device_put((np.zeros(8, np.float32), np.zeros(30, np.float32))))


def ewa_weights(state: EWA):
  """[30] weights of the experts: softmax(-losses / 8)."""
  return jax.nn.softmax(-state.losses * LEARNING_RATE)


@jax.jit
def ewa_update(state: EWA, value, s, k) -> EWA:
  """Learns from the rollouts of P prompts, whose numbers were fixed before any of them was seen.

  The mean of a group that the budget stopped by its outcome is biased: give the first stage alone.

  Args:
    state: before.
    value: [P] the prior V; not finite = none, such prompts teach the population alone.
    s: [P] successes, fractional for rewards between failure and success.
    k: [P] rollouts; prompts with 0 are left out.
  """
  value, s, k = floats(value, s, k)
  spoken, prior = clean(value)
  group = jnp.where(k > 0, k, 1.0)
  rbar = jnp.where(k > 0, 2.0 * s / group - 1.0, 0.0)
  variance = (1.0 - rbar**2) * k / jnp.where(k > 1, k - 1.0, 1.0)  # of one reward, unbiased
  ones = jnp.ones_like(k)
  sums = lambda where, *columns: jnp.stack([jnp.sum(jnp.where(where, x, 0.0)) for x in columns])
  batch = jnp.concatenate(
    [
      sums(k >= 2, ones, rbar, rbar**2, variance / group, variance),
      sums((k >= 1) & spoken, ones, prior, rbar),
    ]
  )
  moments = DISCOUNT * state.moments + batch
  # Each rollout is predicted from the k - 1 others: all s successes alike, and all k - s failures.
  others = jnp.maximum(k - 1.0, 0.0)
  population = _population(moments)
  # successes among them
  before = jnp.stack([jnp.clip(s - 1.0, 0.0, others), jnp.minimum(s, others)])
  after_success, after_failure = jnp.moveaxis(_experts(population, value, before, others)[0], 1, 0)
  error = s * (2.0 - 2.0 * after_success) ** 2 + (k - s) * (2.0 * after_failure) ** 2
  losses = DISCOUNT * state.losses + jnp.sum(jnp.where(k > 0, error, 0.0), axis=1)
  return EWA(moments, losses)


@jax.jit
def ewa_baseline(state: EWA, value, s, k):
  """The experts' average after s successes in k rollouts, elementwise; k may be 0.

  With P1 and P2 the averaged first and second moment of the success probability:

    baseline = 2 P1 - 1;  sigma2 = 4 (P1 - P2);  var = 4 (P2 - P1^2)

  Args:
    state: with the state of the previous step, and s and k of a rollout's k - 1 others, the
      baseline does not depend on the reward that it is subtracted from.
    value: the prior V; not finite = none. value, s and k broadcast.

  Returns:
    (baseline in [-1, 1], sigma2: expected variance of one reward, var: expected squared error of
      the baseline).
  """
  p1, p2 = _experts(_population(state.moments), *floats(value, s, k))
  p1, p2 = (
    jnp.tensordot(ewa_weights(state).astype(p.dtype), p, 1, precision="highest") for p in (p1, p2)
  )
  return 2.0 * p1 - 1.0, 4.0 * jnp.maximum(p1 - p2, 0.0), 4.0 * jnp.maximum(p2 - p1**2, 0.0)


def _population(moments) -> _Population:
  """Moments -> the population's Beta, by matching mean and variance (noise taken off), and the
  prior's offset."""
  count, rbar, square, noise, variance, priors, value, reward = moments
  known, compared = count >= MIN_PROMPTS, priors >= MIN_PROMPTS
  count, priors = jnp.where(known, count, 1.0), jnp.where(compared, priors, 1.0)
  spread = jnp.maximum(square / count - (rbar / count) ** 2 - noise / count, 1e-3)
  n = jnp.where(known, jnp.clip(variance / count / spread, 0.05, 50.0), 1.0)
  q = jnp.where(known, jnp.clip((1.0 + rbar / count) / 2.0, 0.02, 0.98), 0.5)
  offset = lambda x: jnp.where(compared, x / priors, 0.0)
  return _Population(n * q, n * (1.0 - q), offset(reward), offset(value))


def _experts(population: _Population, value, s, k):
  """First and second posterior moments of the success probability, each [30, ...]."""
  value, s, k = jnp.broadcast_arrays(value, s, k)
  spoken, prior = clean(value)
  # Experts come first: the long axis is the last one, along which processors work.
  scale, n = (jnp.asarray(x, s.dtype).reshape(-1, *(1,) * s.ndim) for x in (_A, _N))
  q = jnp.clip((1.0 + population.reward + scale * (prior - population.value)) / 2.0, 0.005, 0.995)
  beside = lambda x, last: jnp.concatenate([x, jnp.full((1, *s.shape), last, s.dtype)])
  # [11, ...], the population at the end
  a, b = beside(n * q, population.a), beside(n * (1.0 - q), population.b)
  # log of B(a + s, b + k - s) / B(a, b): the outcomes' probability under Beta(a, b).
  after, before = (
    gammaln(jnp.stack([a + s, b + k - s, a + b])),
    gammaln(jnp.stack([a, b, a + b + k])),
  )
  evidence = jnp.sum(after - before, axis=0)
  # [10, 3, ...]
  g = jnp.stack([_trust(evidence[:-1] - evidence[-1], spoken, eps) for eps in DOUBTS], axis=1)

  def mixture(mean):
    return (mean[-1] + g * (mean[:-1] - mean[-1])[:, None]).reshape(-1, *s.shape)

  first = (a + s) / (a + b + k)
  return mixture(first), mixture(first * (a + s + 1.0) / (a + b + k + 1.0))


def _trust(ratio, spoken, eps: float):
  """Posterior probability that the prior does not hallucinate; 1 if eps = 0, and 0 where there is
  no prior."""
  odds = jax.nn.sigmoid(ratio + np.log1p(-eps) - np.log(eps)) if eps else jnp.ones_like(ratio)
  return jnp.where(spoken, odds, 0.0)


@plug.declare(
  "estimator",
  update=plug.Option(
    "after",
    "after | before the step's advantages: when it learns from them; after keeps them unseen",
    lambda x: x in ("after", "before"),
    "one of after, before",
  ),
)
def ewa(options, setting):
  """The experts' average, after the k - 1 other rollouts."""

  def learn(state, groups, value):
    seen = groups.unconditional
    return ewa_update(state, value, seen.s, seen.k)

  known = lambda state, groups, value: state
  if options.update == "before":
    known = learn
  estimator = from_counts(lambda state, _, value, s, k: ewa_baseline(state, value, s, k)[0])

  def explain(state, groups, value):
    mean, _, expected = ewa_baseline(known(state, groups, value), value, groups.s, groups.k)
    return {"baseline": mean, "expected_mse": expected}

  def baseline(state, groups, value):
    return estimator.baseline(known(state, groups, value), groups, value)

  return estimator._replace(
    init=ewa_init,
    learn=learn,
    baseline=baseline,
    explain=explain,
    of_batch=options.update == "before",
  )
