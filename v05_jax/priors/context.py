"""The ring buffer of the policy's own last (prompt, success) pairs: what a prior is conditioned on.

It holds with every outcome the V that was asked before it was seen, so that V is assessed, and
corrected, on outcomes that had no part in it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.structs import Context


def empty(size: int, width: int = 0) -> Context:
  """A context of `size` pairs with `width` features, none of them written."""
  return Context(
    features=np.zeros((size, width), np.float32),
    value=np.full(size, np.nan, np.float32),
    success=np.zeros(size, np.float32),
    count=np.zeros((), np.int32),
  )


def remembered(context: Context, features, value) -> dict[str, np.ndarray]:
  """What `learn` is to be told of prompts that were asked about: arrays [P, ...]."""
  value = np.asarray(value, np.float32)
  support = np.full(len(value), min(int(context.count), len(context.success)))
  return {"features": np.asarray(features), "value": value, "support": support}


def learn(context: Context, asked, groups):
  """Remembers the unconditional rollouts of a step -> (Context, metrics).

  `asked` is what `remembered` made when the prior was asked.
  """
  seen = groups.unconditional
  success = (np.asarray(seen.vbar) + 1) / 2
  context, rmse, bias = _taken_in(context, asked["features"], asked["value"], success, seen.k > 0)
  return context, {
    "prior/support": (float(np.max(asked["support"])), 1),  # the same for all of a step's prompts
    "prior/rmse": (rmse, 1),
    "prior/bias": (bias, 1),
  }


@jax.jit
def _taken_in(context, features, value, success, mask):
  context = remember(context, features, value, success, mask)
  return context, *errors(context)


@jax.jit
def remember(context: Context, features, value, success, mask) -> Context:
  """Appends the pairs of P prompts where `mask`, in order; pair i goes to row i % M, over the
  oldest.

  A pair is one prompt with the mean success, in [0, 1], of its first `k_init` rollouts: their
  number was fixed before anything was seen. The mean of a group that the budget stopped by its
  outcome is biased. A pair whose success is NaN is left out; of more than M pairs the last M stay.

  Args:
    context: M pairs.
    features: float [P, F].
    value: float [P], the prior's own V, not recalibrated and without history, of the context before
      this one: the record of V against outcomes that had no part in it. NaN = the prior did not
      speak.
    success: float [P].
    mask: bool [P].
  """
  size = context.success.shape[0]
  mask = jnp.asarray(mask, bool) & jnp.isfinite(success)
  number = context.count + jnp.cumsum(mask) - 1  # of each pair since the beginning
  count = (context.count + jnp.sum(mask)).astype(jnp.int32)
  # Every row is written once: the order of writes to one row would be undefined.
  row = jnp.where(mask & (number >= count - size), number % size, size)  # `size` = nowhere
  return Context(
    features=context.features.at[row].set(features, mode="drop"),
    value=context.value.at[row].set(value, mode="drop"),
    success=context.success.at[row].set(success, mode="drop"),
    count=count,
  )


def valid(context: Context):
  """bool [M]: the rows that hold a pair."""
  return jnp.arange(context.success.shape[0]) < context.count


def mean_success(context: Context):
  """The mean success of the pairs; 0 without any."""
  known = valid(context)
  return jnp.sum(jnp.where(known, context.success, 0.0)) / jnp.maximum(jnp.sum(known), 1)


@jax.jit
def mean_value(context: Context, min_support: int):
  """V []: the mean of the context; NaN until it holds `min_support` pairs."""
  return if_supported(context, 2.0 * mean_success(context) - 1.0, min_support)


def if_supported(context: Context, value, min_support: int):
  """V, clipped to [-1, 1]; NaN until the context holds `min_support` pairs."""
  return jnp.where(context.count >= min_support, jnp.clip(value, -1.0, 1.0), jnp.nan)


@jax.jit
def errors(context: Context):
  """(root mean square, mean) of V_i - y_i over the context's pairs with a V; NaN without any.

  y_i is the mean reward of a few rollouts, whose noise is part of the first: even the true success
  probability has an error of sqrt(mean (1 - mu^2) / k). The second is above 0 where V is too
  optimistic.
  """
  error = context.value - (2.0 * context.success - 1.0)
  known = jnp.isfinite(error)
  mean = lambda x: jnp.sum(jnp.where(known, x, 0.0)) / jnp.sum(known)
  return jnp.sqrt(mean(error**2)), mean(error)
