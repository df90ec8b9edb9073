"""Value priors as pure functions of a context and of prompt features: V [P] = 2 success - 1, in
[-1, 1].

`constant` and `neighbours` never train anything; V is NaN, "no prior", until the context holds
`min_support` pairs.
"""

import jax
import jax.numpy as jnp

from v05_jax.priors import context as contexts
from v05_jax.structs import Context
from v05_jax.value_model.ensemble import smoothed  # noqa: F401

MAX_SCORE = 5.0  # standardised features are clipped here: a feature nearly constant in the context
PSEUDO_COUNT = 0.1  # of the context's mean, in units of a pair at distance 0


@jax.jit
def constant(context: Context, features, min_support: int):
  """V [P]: the mean of the context, the same for every prompt."""
  value = jnp.full(features.shape[0], 2.0 * _mean(context) - 1.0)
  return _if_supported(context, value, min_support)


@jax.jit
def neighbours(context: Context, features, bandwidth: float, min_support: int):
  """V [P] by kernel regression over the context (Nadaraya-Watson), shrunk to the context's mean.

    success(x) = (a mean + sum_j w_j success_j) / (a + sum_j w_j),  w_j = exp(-|x - x_j|^2 / (2 h^2
                                                                    m))

  Features are standardised by the context's own mean and standard deviation, those constant in the
  context are left out, and m is the mean squared distance of two pairs of the context (twice the
  number of features left). A prompt unlike everything in the context gets the context's mean.

  Args:
    context: M pairs, of which the valid ones count.
    features: [P, F], of the same kind as the context's.
    bandwidth: h, as a share of the context's typical distance.
    min_support: pairs before V is finite.
  """
  square, typical = distances(context, features)
  weight = jnp.exp(-square / (2.0 * bandwidth**2 * typical))
  weight = jnp.where(contexts.valid(context), weight, 0.0)
  near = jnp.matmul(weight, context.success, precision="highest")
  success = (PSEUDO_COUNT * _mean(context) + near) / (PSEUDO_COUNT + jnp.sum(weight, axis=1))
  return _if_supported(context, 2.0 * success - 1.0, min_support)


def distances(context: Context, features):
  """(|x_p - x_j|^2 [P, M] in standardised features, its typical value m > 0)."""
  valid = contexts.valid(context)[:, None]
  count = jnp.maximum(jnp.sum(valid), 1)
  mean = jnp.sum(jnp.where(valid, context.features, 0.0), axis=0) / count
  centred = jnp.where(valid, context.features - mean, 0.0)
  variance = jnp.sum(centred**2, axis=0) / count
  varies = variance > 1e-10 * mean**2  # above the rounding of the mean
  scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
  support = jnp.clip(centred * scale, -MAX_SCORE, MAX_SCORE)
  query = jnp.clip((features - mean) * scale, -MAX_SCORE, MAX_SCORE)
  product = jnp.matmul(query, support.T, precision="highest")
  square = jnp.sum(query**2, 1)[:, None] + jnp.sum(support**2, 1) - 2.0 * product
  return jnp.maximum(square, 0.0), jnp.maximum(2.0 * jnp.sum(varies), 1.0)


def _mean(context):
  valid = contexts.valid(context)
  return jnp.sum(jnp.where(valid, context.success, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def _if_supported(context, value, min_support):
  return jnp.where(context.count >= min_support, jnp.clip(value, -1.0, 1.0), jnp.nan)
