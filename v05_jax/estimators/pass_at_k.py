"""Advantages that follow the gradient of pass@n, of more samples n than a prompt has rollouts.

n is the k of pass@k here, where k is the rollouts of a prompt. One of n samples is right with
1 - (1 - p)^n, where p is the success probability, and the gradient of that is the gradient of p
times n (1 - p)^(n - 1). So an advantage for pass@n is one for success times that weight: a prompt
counts the more, the less it is solved.

The group alone estimates the weight without bias only up to n = k (PKPO, arXiv 2505.15201), and
prompts without any success among k rollouts are all alike to it. Here the prior makes up for what
the group does not say. p has the Beta distribution of `beta_shrink`: V', worth n0 rollouts, and
after the others of the group, s successes and f failures,

    p ~ Beta(a, c),  a = n0 (1 + V') / 2 + s,  c = n0 (1 - V') / 2 + f
    baseline = 2 a / (a + c) - 1
    weight   = n E[(1 - p)^(n - 1)] = n prod_{j < n - 1} (c + j) / (a + c + j)

n0 is large where V hits what the other prompts of the batch show: then the weight goes by V; where
it misses, by the group. Neither baseline nor weight reads the reward that it is applied to, so that
at a fixed k a prompt's gradient is that of its success, times the expectation of its weight. n = 1
is `beta_shrink`. A reward between failure and success counts as that part of a success; shaping,
which is no matter of the prompt's difficulty, is not weighed.
"""

import jax
import jax.numpy as jnp

from v05_jax import plug
from v05_jax.estimators.beta_shrink import MIN_COUNT, beta_shrink

SAMPLES = plug.Option(8, "n of pass@n", lambda n: 1 <= n <= 1024, "1 to 1024")


def weight(mean, number, samples: int):
  """n E[(1 - p)^(n - 1)], elementwise, where p is Beta of a mean reward worth `number` rollouts."""
  failures = number * (1.0 - mean) / 2.0
  further = lambda j, x: x * (failures + j) / (number + j)
  return samples * jax.lax.fori_loop(0, samples - 1, further, jnp.ones_like(mean))


@plug.declare("estimator", samples=SAMPLES)
def pass_at_k(options, setting):
  """`beta_shrink`, with advantages times the weight of a prompt's success in pass@n."""
  estimator = beta_shrink(None, setting)

  def number(groups, value):
    return jnp.maximum(estimator.prompt((), groups, value).count, MIN_COUNT)

  def scale(advantage, groups, value):
    mean = estimator.unseen((), groups, value)
    others = jnp.maximum(groups.k - 1.0, 0.0)
    known = (number(groups, value) + others)[:, None]
    of_reward = advantage - groups.shaping
    return of_reward * weight(mean, known, options.samples) + groups.shaping

  def explain(state, groups, value):
    found = estimator.explain(state, groups, value)
    known = number(groups, value) + groups.k
    of_success = weight(found["baseline"], known, options.samples)
    return found | {f"weight in pass@{options.samples}": of_success}

  return estimator._replace(scale=scale, explain=explain)
