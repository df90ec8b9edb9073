"""Count, mean and spread of numbers that come in batches, without keeping any of them."""

import jax.numpy as jnp


def merged(kept, number, mean, square):
  """What is kept of all numbers so far, after a batch of further ones (Welford, by batches: Chan,
  Golub and LeVeque, 1979).

  kept: a NamedTuple with `count`, `mean` and `square`, the sum of squared deviations from the mean;
  its other fields stay. number, mean, square: the same of the batch. All of shapes that broadcast.
  """
  count, shift = kept.count + number, mean - kept.mean
  share = number / jnp.maximum(count, 1.0)
  return kept._replace(
    count=count,
    mean=kept.mean + share * shift,
    square=kept.square + square + shift**2 * kept.count * share,
  )
