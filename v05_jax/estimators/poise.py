"""POISE (arXiv 2605.07579): a rollout's baseline, predicted from the other rollouts of its prompt.

    b_i = mean over j != i of g(phi_j),  A_i = r_i - b_i
    g of least sum over rollouts of (g(phi_j) - mean of the rewards beside r_j)^2 + alpha |w|^2

g is linear on standardised features, alpha = .01, and its values are clipped to those of a reward.
Neither the features nor the reward of a rollout have part in its own baseline. The paper samples
two rollouts a prompt, and has as phi the policy's hidden states of the last tokens of the prompt
and of the reasoning, and three statistics of the tokens' entropy; it fits g to a buffer of the last
steps after each update.

What differs here: an estimator sees no hidden states. In the place of the prompt's stands V, whose
prior reads those of the first policy (neighbours); those of the response are left out, as they
would take one more forward pass. Statistics of its tokens are the mean log-probability, the mean of
(1 - p)^2, and the logarithm of the length. Left open: more than two rollouts (the mean above), and
how many steps the buffer has (here each step's sums keep .9 at the next). Before the first step g
is V.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.estimators.base import Estimator, at_least_two
from v05_jax.estimators.score import DISCOUNT, mean_of_others
from v05_jax.shrinkage import clean

ALPHA = 0.01  # of the ridge
WIDTH = 4  # of phi


class Fit(NamedTuple):
  """Discounted sums over rollouts, y the target."""

  count: jax.Array  # []
  x: jax.Array  # [WIDTH]
  xx: jax.Array  # [WIDTH, WIDTH]
  y: jax.Array  # []
  xy: jax.Array  # [WIDTH]


def empty() -> Fit:
  """Nothing seen yet."""
  shapes = (), (WIDTH,), (WIDTH, WIDTH), (), (WIDTH,)
  return Fit(*(np.zeros(shape, np.float32) for shape in shapes))


def features(groups, value):
  """phi [P, K, WIDTH] of every rollout."""
  length = jnp.maximum(groups.length, 1).astype(groups.reward.dtype)
  own = groups.logprob / length, groups.score / length, jnp.log(length)
  prior = jnp.broadcast_to(clean(value)[1][:, None], length.shape)
  return jnp.stack([prior, *own], axis=-1)


def of_others(x, mask):
  """The mean over the other rollouts of each prompt, [P, K, ...]; 0 where there are none."""
  weight = mask.astype(x.dtype)
  if x.ndim == 2:
    return mean_of_others(x, weight)
  return jnp.stack([mean_of_others(x[..., i], weight) for i in range(x.shape[-1])], axis=-1)


def update(fit: Fit, groups, value) -> Fit:
  """Takes in the rollouts that have others beside them."""
  mask = groups.mask & (groups.k > 1)[:, None]
  x, y = features(groups, value), of_others(groups.reward, groups.mask)
  total = lambda z, axes: jnp.tensordot(mask.astype(x.dtype), z, axes, precision="highest")
  outer = x[..., :, None] * x[..., None, :]
  sums = total(x, 2), total(outer, 2), total(y, 2), total(x * y[..., None], 2)
  new = Fit(jnp.sum(mask, dtype=x.dtype), *sums)
  return jax.tree.map(lambda old, more: DISCOUNT * old + more, fit, new)


def solved(fit: Fit):
  """(mean of phi [WIDTH], weights [WIDTH], mean target): g(phi) = target + weights (phi - mean)."""
  count = jnp.maximum(fit.count, 1.0)
  mean, target = fit.x / count, fit.y / count
  spread = fit.xx / count - mean[:, None] * mean
  variance = jnp.diagonal(spread)
  varies = variance > 1e-6
  scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
  gram = count * spread * scale[:, None] * scale + ALPHA * jnp.eye(WIDTH)
  weights = jnp.linalg.solve(gram, count * scale * (fit.xy / count - mean * target))
  return mean, scale * weights, target


def predicted(fit: Fit, phi, value):
  """g [...] of features [..., WIDTH], whose V [...] it is before anything is learnt."""
  mean, weights, target = solved(fit)
  linear = target + jnp.sum(weights * (phi - mean), axis=-1)
  return jnp.where(fit.count > 0, linear, clean(value)[1]).clip(-1.0, 1.0)


@plug.declare("estimator", check=at_least_two("poise", "predicts a rollout from the others"))
def poise(options, setting):
  """Predicted from the k - 1 others; a rollout alone from V and the usual statistics."""

  def baseline(state, groups, value):
    phi, alone = features(groups, value), (groups.k < 2)[:, None, None]
    usual = jnp.concatenate(
      [phi[..., :1], jnp.broadcast_to(solved(state)[0][1:], phi[..., 1:].shape)], -1
    )
    phi = jnp.where(alone, usual, of_others(phi, groups.mask))
    return predicted(state, phi, value[:, None])

  return Estimator(
    baseline=baseline,
    init=empty,
    learn=lambda state, groups, value: update(state, groups.unconditional, value),
  )
