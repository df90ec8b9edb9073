"""Classification tasks drawn at random, from which a head learns, without any data, to condition on
a context.

A task has 1 to 8 hidden causes z. Features are random mixtures of them, some bent, some rounded,
some pure noise; the probability of success is sigmoid(strength f(z) + bias), where f is linear, a
small network, a product of two causes, or a level for each of 6 kinds of row. In the spirit of
prior-fitted networks (arXiv 2112.10510, 2207.01848), small.
"""

import jax
import jax.numpy as jnp

CAUSES, HIDDEN, CLUSTERS = 8, 16, 6
LABELS = (1, 2, 4, 10)  # rollouts behind a label


def draw(key, rows: int, width: int):
  """(features [rows, width], mean success [rows] of a few rollouts, its true probability [rows]) of
  one task."""
  keys = iter(jax.random.split(key, 20))
  normal = lambda *shape: jax.random.normal(next(keys), shape)
  # Tasks with few causes are easy: without them a head takes long to begin to use the context.
  z = normal(rows, CAUSES) * (
    jnp.arange(CAUSES) < jax.random.randint(next(keys), (), 1, CAUSES + 1)
  )
  x = z @ normal(CAUSES, width) + 0.3 * normal(rows, width)
  kind = jax.random.uniform(next(keys), (3, width))
  x = jnp.where(kind[0] < 0.3, jnp.tanh(x), x)
  x = jnp.where(kind[1] < 0.2, jnp.round(x / CAUSES**0.5), x)
  x = jnp.where(kind[2] < jax.random.uniform(next(keys)), normal(rows, width), x)
  net = jnp.tanh(1.5 * z @ normal(CAUSES, HIDDEN)) @ normal(HIDDEN)
  kinds = normal(CLUSTERS)[jnp.argmax(z @ normal(CAUSES, CLUSTERS), axis=1)]
  shapes = jnp.stack([z @ normal(CAUSES), net, z[:, 0] * (z[:, 1] + normal()), kinds])
  score = shapes[jax.random.randint(next(keys), (), 0, len(shapes))]
  score = (score - jnp.mean(score)) / jnp.maximum(jnp.std(score), 1e-3)
  probability = jax.nn.sigmoid(jnp.exp(1.0 + 0.7 * normal()) * score + 1.2 * normal())
  k = jax.random.choice(next(keys), jnp.array(LABELS))
  success = jax.random.uniform(next(keys), (rows, max(LABELS))) < probability[:, None]
  return x, jnp.sum(success & (jnp.arange(max(LABELS)) < k), axis=1) / k, probability
