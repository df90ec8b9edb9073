"""Bayesian logistic regression that forgets, several of them side by side.

A prompt's log-odds of success are z = x . u + e, where x are its features with a 1 before them, the
same u holds for all prompts and e ~ N(0, misfit) is what no u explains. A member of the ensemble
has its own misfit, forgetting and prior of u; their predictions are mixed by how well each has
predicted outcomes that it had not seen yet. That is dynamic model averaging (Raftery, Karny and
Ettler, 2010) with a logistic likelihood.

A step's outcomes, s successes among k rollouts of each prompt, are taken in together. Their mean is
found by the ascent of a quadratic bound of the likelihood (Jaakkola and Jordan, 2000),

    log p(s | z) >= (s - k / 2) z - h z^2 / 2 + const,   h = k tanh(q / 2) / (2 q),   q^2 = E z^2,

which cannot overshoot; the precision is the likelihood's own there, k p (1 - p), as Laplace's
method has it. After the step the policy moves on, and what was learnt counts less: with `kept` in
(0, 1] precision and shift become kept * (theirs) + (1 - kept) * (the prior's).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CONSTANT = 4.0  # variance that the prior gives to the constant of u
ROUNDS = 6  # of the bound's ascent in a step
RECORD = 0.95  # discount of the record, a step
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)  # E f(z) of a normal z by quadrature
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Members(NamedTuple):
  """What the members of an ensemble differ in, arrays [E]."""

  kept: np.ndarray  # share of what was learnt that remains after a step
  misfit: np.ndarray  # variance of e, in log-odds squared
  spread: np.ndarray  # variance of the log-odds that the prior gives to all features together


class Learnt(NamedTuple):
  """What an ensemble knows: a Gaussian over u for each member, and how well it has predicted."""

  precision: jax.Array  # float32 [E, D + 1, D + 1]
  shift: jax.Array  # float32 [E, D + 1]  precision times mean
  record: jax.Array  # float32 [E]  discounted log-probability of what was seen, less the largest


def prior_precision(members: Members, width: int):
  """float32 [E, D + 1, D + 1] of u before anything was seen, for D = `width` features whose squares
  are 1 on average."""
  spread = jnp.asarray(members.spread, jnp.float32)[:, None]
  first = jnp.full_like(spread, 1.0 / CONSTANT)
  diagonal = jnp.concatenate([first, jnp.tile(width / spread, (1, width))], axis=1)
  return diagonal[:, :, None] * jnp.eye(width + 1)


def empty(members: Members, width: int) -> Learnt:
  """Nothing seen yet: u ~ its prior, of mean 0."""
  precision = np.asarray(prior_precision(members, width))
  return Learnt(
    precision, np.zeros(precision.shape[:2], np.float32), np.zeros(len(precision), np.float32)
  )


@jax.jit
def predict(members: Members, learnt: Learnt, features):
  """(V [P], variance [P]): of the mean reward 2 p - 1 of prompts with these features [P, D], where
  p = 1 / (1 + exp(-z)), its mean and variance over z and over the members."""
  _, mean, variance = _solved(learnt.precision, learnt.shift, _with_constant(features))
  reward = jnp.tanh(_nodes(mean, variance + members.misfit[:, None]) / 2.0)
  chance = jax.nn.softmax(learnt.record)
  weights = jnp.asarray(WEIGHTS, reward.dtype)
  expected = lambda x: jnp.einsum("epn,n,e->p", x, weights, chance, precision="highest")
  value = expected(reward)
  return value, expected((reward - value[:, None]) ** 2)


@jax.jit
def learn(members: Members, learnt: Learnt, features, s, k) -> Learnt:
  """After the outcomes of a step, and after what is forgotten until the next.

  Args:
    members: of the ensemble.
    learnt: before.
    features: [P, D].
    s: [P] successes, fractional where rewards lie between failure and success.
    k: [P] rollouts; prompts with 0 are left out.
  """
  x, misfit = _with_constant(features), jnp.asarray(members.misfit)[:, None]
  _, mean, variance = _solved(learnt.precision, learnt.shift, x)
  before = mean, variance + misfit  # of z
  half = s - k / 2.0

  def taken_in(h):
    """(precision, shift) with outcomes whose bounds have the curvature h [E, P] in z."""
    more = jnp.einsum("ep,pi,pj->eij", h / (1.0 + misfit * h), x, x, precision="highest")
    pull = jnp.matmul(half / (1.0 + misfit * h), x, precision="highest")
    return learnt.precision + more, learnt.shift + pull

  def posterior(h):
    """u [E, D + 1], and mean and variance [E, P] of z."""
    u, mean, variance = _solved(*taken_in(h), x)
    rest = 1.0 / (1.0 + misfit * h)  # share of e's variance that the outcome leaves, given x . u
    return u, (mean + misfit * half) * rest, variance * rest**2 + misfit * rest

  def curvature(mean, variance):
    root = jnp.sqrt(mean**2 + variance + 1e-6)
    return k * jnp.tanh(root / 2.0) / (2.0 * root)

  ascend = lambda _, h: curvature(*posterior(h)[1:])
  u, z, _ = posterior(jax.lax.fori_loop(0, ROUNDS, ascend, curvature(*before)))
  p = jax.nn.sigmoid(z)
  precision, _ = taken_in(k * p * (1.0 - p))
  shift = jnp.einsum("eij,ej->ei", precision, u, precision="highest")
  record = RECORD * learnt.record + jnp.sum(_log_probability(*before, s, k), axis=1)
  kept = jnp.asarray(members.kept)[:, None]
  first = prior_precision(members, features.shape[1])
  precision = kept[..., None] * precision + (1.0 - kept)[..., None] * first
  return Learnt(precision, kept * shift, record - jnp.max(record))


def _with_constant(features):
  return jnp.concatenate([jnp.ones_like(features[:, :1]), features], axis=1)


def _solved(precision, shift, x):
  """The mean [E, D + 1] of u, and mean and variance [E, P] of x . u.

  A member at a time: jaxlib 0.10 hands the systems of a batch to the threads of which one waits for
  them, and on a CPU with few of these a program with two batches, or one beside collectives, waits
  for ever.
  """

  def of_member(learnt):
    precision, shift = learnt
    factor = jnp.linalg.cholesky(precision)
    solve = functools.partial(jax.scipy.linalg.solve_triangular, factor, lower=True)
    return solve(solve(shift), trans=1), jnp.sum(solve(x.T) ** 2, axis=0)

  u, variance = jax.lax.map(of_member, (precision, shift))
  return u, jnp.matmul(u, x.T, precision="highest"), variance


def _nodes(mean, variance):
  """z [E, P, N] at the nodes of normal distributions."""
  return mean[..., None] + jnp.sqrt(variance)[..., None] * jnp.asarray(NODES, mean.dtype)


def _log_probability(mean, variance, s, k):
  """log E p^s (1 - p)^(k - s) [E, P] for normal z: the probability of the outcomes one by one."""
  z = _nodes(mean, variance)
  likely = s[:, None] * jax.nn.log_sigmoid(z) + (k - s)[:, None] * jax.nn.log_sigmoid(-z)
  return jax.nn.logsumexp(likely, axis=2, b=jnp.asarray(WEIGHTS, z.dtype))
