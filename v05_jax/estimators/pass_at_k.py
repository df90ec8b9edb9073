"""Advantages for pass@n, where n may be more than a prompt has rollouts.

n is the k of pass@k here, where k is the rollouts of a prompt. One of n samples is right with
1 - (1 - p)^n, where p is the success probability, and the gradient of that is the gradient of p
times n (1 - p)^(n - 1). So an advantage for pass@n is one for success times that slope: a prompt
counts the more, the less it is solved.

A group alone gives this gradient without bias only up to n = k (PKPO, arXiv 2505.15201), and to it
all prompts without any success are alike. Here the prior makes up for what the group does not say.
p has the Beta distribution of `beta_shrink`: V', which is V moved by the error that the other
prompts show, is worth n0 rollouts, and with s successes and f failures of the group's others

    p ~ Beta(a, c),  a = n0 (1 + V') / 2 + s,  c = n0 (1 - V') / 2 + f
    baseline = 2 a / (a + c) - 1
    slope    = n E[(1 - p)^(n - 1)] = n prod_{j < n - 1} (c + j) / (a + c + j)

n0 is large in a batch whose outcomes V has hit: then slopes go by V; where V misses, by the group.
n = 1 is `beta_shrink`.

What it is not: unbiased for pass@n. Neither baseline nor slope reads the reward that it is applied
to, so that at a fixed k, and with no group left out for its outcomes, a prompt's gradient is that
of its success, times the expectation of the slope that it is given. The less is known of prompts,
the less these differ from prompt to prompt, and the nearer is the gradient to that of success.
Rewards between failure and success count as a part of a success: with many of them it is the slope
of no pass@n. Shaping, no matter of a prompt's difficulty, is left as it is, and outweighs the
reward where p is large.
"""

import jax
import jax.numpy as jnp

from v05_jax import plug
from v05_jax.estimators.base import at_least_two
from v05_jax.estimators.beta_shrink import beta_shrink

# At more, slopes at p = 0 would go by the least p that V' may have, .005, and not by n.
SAMPLES = plug.Option(8, "n of pass@n", lambda n: 1 <= n <= 128, "1 to 128")


def slope(mean, number, samples: int):
  """n E[(1 - p)^(n - 1)], elementwise, where p is Beta of a mean reward worth `number` rollouts."""
  failures = number * (1.0 - mean) / 2.0
  further = lambda j, x: x * (failures + j) / (number + j)
  return samples * jax.lax.fori_loop(0, samples - 1, further, jnp.ones_like(mean))


def _check(config):
  yield from at_least_two("pass_at_k", "learns from groups what V is worth")(config)
  if config.budget.max_resample:
    yield "budget.max_resample", "0, since baseline pass_at_k learns from all groups"


@plug.declare("estimator", check=_check, samples=SAMPLES)
def pass_at_k(options, setting):
  """`beta_shrink`, with advantages times the slope of pass@n at a prompt's success."""
  estimator = beta_shrink(None, setting)

  def slopes(groups, value, mean, others):
    """Of a mean reward [P] or [P, K] after `others` [P] rollouts."""
    known = estimator.prompt((), groups, value).count + others
    return slope(mean.T, known, options.samples).T

  def scale(state, groups, value, difference):
    mean = estimator.unseen(state, groups, value)
    of_reward = slopes(groups, value, mean, jnp.maximum(groups.k - 1.0, 0.0))
    return (difference - groups.shaping) * of_reward + groups.shaping

  def explain(state, groups, value):
    found = estimator.explain(state, groups, value)
    of_all = slopes(groups, value, found["baseline"], groups.k)
    return found | {f"slope of pass@{options.samples}": of_all}

  return estimator._replace(scale=scale, explain=explain)
