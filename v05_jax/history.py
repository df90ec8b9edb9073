"""A prompt's own past as a second prior: a discounted Beta count for every row of the data, and its
fusion with V.

The tracker is SPO's (arXiv 2509.13232) but for how evidence fades: with the training steps since
the prompt was last seen, where SPO takes the KL divergence between the policies of the two visits
(another forward pass), and without SPO's lower bound, for a prompt not seen for long is to be
forgotten. Values are in [-1, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.groups import Groups
from v05_jax.shrinkage import clean

# Arguments of the `Option` by which a plug with a history declares its half-life.
HALF_LIFE = (
  16.0,
  "training steps in which a prompt's earlier outcomes lose half of their weight",
  lambda x: x > 0,
  "above 0",
)
MOST_KEPT = 0.96  # of the evidence from one visit to the next, as in SPO: at most 25 visits count
DISCOUNT = 0.95  # of the moments, a step
MIN_PROMPTS = 64  # discounted prompts from which on the moments are used; until then:
FIRST_ERROR = 0.16  # squared error of V
MIN_ERROR = 1e-3


class History(NamedTuple):
  """Discounted outcomes of every row of the data, and how well V and they have predicted; zeros at
  first."""

  successes: jax.Array  # float32 [D]
  rollouts: jax.Array  # float32 [D]
  seen: jax.Array  # int32 [D]  the step of the last visit
  # float32 [5] discounted sums of [1, (V - r)(V - H), (H - r)(H - V), 1 / rollouts, 1 - r H]
  moments: jax.Array


def empty(size: int) -> History:
  """Nothing seen yet of `size` rows."""
  zeros = np.zeros(size, np.float32)
  return History(zeros, zeros, np.zeros(size, np.int32), np.zeros(5, np.float32))


@jax.jit
def read(history: History, row, step, half_life):
  """(successes [P], rollouts [P]) of earlier visits to the rows [P], faded to `step`.

  A visit keeps min(2^(-age / half_life), .96) of the evidence before it; `half_life` in training
  steps.
  """
  age = (step - history.seen[row]).astype(jnp.float32)
  kept = jnp.minimum(jnp.exp2(-age / half_life), MOST_KEPT)
  return kept * history.successes[row], kept * history.rollouts[row]


@jax.jit
def remember(history: History, groups: Groups, value, half_life) -> History:
  """Adds the outcomes of groups to their rows; a row may stand there twice.

  `value [P]` is the prior before fusion: how it and the history agree with the new outcomes is what
  `fuse` goes by. The numbers of rollouts are to have been fixed in advance.
  """
  row, step, s, k = groups.row, groups.step, groups.s, groups.k
  past, rollouts = read(history, row, step, half_life)
  mask = k > 0
  where = jnp.where(mask, row, len(history.seen))  # out of range = nowhere
  put = lambda x, new: x.at[where].set(new, mode="drop")
  spoken, prior = clean(value)
  known = mask & spoken & (rollouts > 0)
  count = jnp.where(rollouts > 0, rollouts, 1.0)
  own, reward = 2.0 * past / count - 1.0, 2.0 * s / jnp.where(mask, k, 1.0) - 1.0
  terms = (
    jnp.ones_like(own),
    (prior - reward) * (prior - own),
    (own - reward) * (own - prior),
    1.0 / count,
    1.0 - reward * own,
  )
  batch = jnp.stack([jnp.sum(jnp.where(known, x, 0.0)) for x in terms])
  return History(
    put(history.successes, past).at[where].add(s, mode="drop"),
    put(history.rollouts, rollouts).at[where].add(k, mode="drop"),
    put(history.seen, jnp.full(mask.shape, step, jnp.int32)),
    DISCOUNT * history.moments + batch,
  )


@jax.jit
def fused(history: History, row, step, half_life, value):
  """`fuse` of the rows [P] with what `read` says of them."""
  return fuse(history.moments, value, read(history, row, step, half_life))


@jax.jit
def fuse(moments, value, past):
  """V and a prompt's own history H, weighted by the precisions that both have shown online.

    squared error of V   mean (V - r)(V - H)
    squared error of H   drift + sigma2 / rollouts, on average mean (H - r)(H - V)
    sigma2               mean 1 - r H, the variance of one reward, as E[r H] = E[mu^2]; but no more
                         than the average above allows, since a faded count understates its worth
    drift                what is left of the average: the policy has moved on

  r is the mean reward of a later visit. The three err independently, so that the products leave one
  error each (the three-cornered hat), at any number of rollouts a visit. A prior whose context
  still holds the same prompt's earlier outcomes is not independent of them, and is trusted too
  much.

  Args:
    moments: [5] of a `History`.
    value: [P] the prior V; not finite = none. Then H speaks, with one rollout of reward 0 added.
    past: (successes [P], rollouts [P]) from `read`; without rollouts V stays what it is.

  Returns:
    (value [P] in [-1, 1] or NaN, weight of the history [P] in [0, 1]).
  """
  successes, rollouts = past
  count, prior_error, own_error, inverse, sigma2 = moments
  enough = count >= MIN_PROMPTS
  mean = lambda x, first: jnp.where(enough, x / jnp.where(enough, count, 1.0), first)
  prior_error = jnp.maximum(mean(prior_error, FIRST_ERROR), MIN_ERROR)
  own_error, inverse = jnp.maximum(mean(own_error, 1.0), MIN_ERROR), mean(inverse, 1.0)
  sigma2 = jnp.minimum(jnp.clip(mean(sigma2, 1.0), MIN_ERROR, 1.0), own_error / inverse)
  drift = own_error - sigma2 * inverse
  (spoken, prior), seen = clean(value), rollouts > 0
  number = jnp.where(seen, rollouts, 1.0)
  own = 2.0 * successes / number - 1.0
  weight = jnp.where(seen, prior_error / (prior_error + drift + sigma2 / number), 0.0)
  alone = jnp.where(seen, (2.0 * successes - rollouts) / (1.0 + rollouts), jnp.nan)
  return jnp.where(spoken, (1.0 - weight) * prior + weight * own, alone), jnp.where(
    spoken, weight, seen * 1.0
  )
