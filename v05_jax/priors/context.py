"""The ring buffer of the policy's own last (prompt, success) pairs: what a value prior conditions
on."""

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.structs import Context


def empty(size: int, width: int) -> Context:
  """A context of `size` pairs with `width` features, none of them written."""
  return Context(
    features=np.zeros((size, width), np.float32),
    value=np.full(size, np.nan, np.float32),
    success=np.zeros(size, np.float32),
    count=np.zeros((), np.int32),
  )


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
