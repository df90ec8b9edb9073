"""SAO's online critic (arXiv 2607.07508): a value head that is updated twice a step.

    V = clip(w x + c),  twice a step: one step of Adam on mean (w x + c - mean reward)^2

x are the features of the prompt by the frozen first policy (priors/neighbours.py), standardised by
all prompts seen. With one rollout a prompt, `baseline=value` and `loss.surrogate=dis` it is SAO's
estimator; configs/sao.py puts these together.

The paper's critic is a language model whose attention is frozen, trained beforehand on rollouts and
then online, two updates for each of the policy, with a value of every token and generalised
advantage estimation between them. What differs here: the whole body is frozen and the head alone
learns, as often as the policy where that has two minibatches (`priors.critic.updates`); there is
one value, that of the prompt, so that with one reward at the end the advantage of every token is
r - V (lambda = gamma = 1); and nothing is trained beforehand, so the critic does not speak before
`prior.min_support` prompts. Its step size is ours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from v05_jax import plug
from v05_jax.moments import merged
from v05_jax.priors import neighbours
from v05_jax.priors.base import Prior

MAX_SCORE = neighbours.MAX_SCORE  # standardised features are clipped here


class Critic(NamedTuple):
  """What the critic has learnt; F features."""

  count: jax.Array  # []  prompts seen
  mean: jax.Array  # [F]  of their features
  square: jax.Array  # [F]  sum of squared deviations
  head: dict  # {"weight": [F], "bias": []}
  adam: tuple  # its optimiser's state


def empty(width: int) -> Critic:
  """Nothing seen yet."""
  zeros = np.zeros(width, np.float32)
  head = {"weight": zeros, "bias": np.float32(0)}
  state = jax.tree.map(np.asarray, optax.adam(1.0).init(head))
  return Critic(np.float32(0), zeros, zeros, head, state)


def standardised(critic: Critic, features):
  """Features [P, F] in units of those seen; 0 where they do not vary."""
  variance = critic.square / jnp.maximum(critic.count, 1.0)
  varies = variance > 1e-10 * critic.mean**2 + 1e-20
  scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
  return jnp.clip((features - critic.mean) * scale, -MAX_SCORE, MAX_SCORE)


def linear(head, x):
  """w x + c [P] of standardised features [P, F]."""
  return jnp.matmul(x, head["weight"], precision="highest") + head["bias"]


@jax.jit
def predict(critic: Critic, features, min_support):
  """V [P]; NaN until `min_support` prompts were seen."""
  value = linear(critic.head, standardised(critic, features)).clip(-1.0, 1.0)
  return jnp.where(critic.count >= min_support, value, jnp.nan)


@jax.jit
def learn(critic: Critic, features, reward, mask, rate_and_updates) -> Critic:
  """Takes in the prompts of `mask`, with the mean reward of each, by so many steps of Adam."""
  rate, updates = rate_and_updates
  number = jnp.sum(mask, dtype=jnp.float32)
  average = lambda x: jnp.sum(jnp.where(mask[:, None], x, 0.0), axis=0) / jnp.maximum(number, 1.0)
  own = average(features)
  square = average((features - own) ** 2) * number
  critic = merged(critic, number, own, square)
  x, optimizer = standardised(critic, features), optax.adam(rate)

  def loss(head):
    error = jnp.where(mask, linear(head, x) - reward, 0.0)
    return jnp.sum(error**2) / jnp.maximum(number, 1.0)

  def step(_, state):
    head, adam = state
    change, adam = optimizer.update(jax.grad(loss)(head), adam)
    return optax.apply_updates(head, change), adam

  # without any verdict Adam's momentum alone would move the head
  updates = jnp.where(number > 0, updates, 0)
  head, adam = jax.lax.fori_loop(0, updates, step, (critic.head, critic.adam))
  return critic._replace(head=head, adam=adam)


@plug.declare(
  "prior",
  updates=plug.Option(2, "of the head for each step of the policy", lambda x: x >= 1, "at least 1"),
  learning_rate=plug.Option(1e-2, "of the head's Adam", lambda x: x > 0, "above 0"),
)
def critic(options, setting):
  """V by a linear head on the frozen first policy's features of the prompt."""
  config, policy = setting.config, setting.policy
  features = neighbours.make_features(
    policy.config, policy.params, setting.mesh, config.sampler.max_prompt
  )

  def ask(state, prompts):
    found = features(prompts)
    return predict(state, found, config.prior.min_support), {"features": found}

  def taught(state, asked, groups):
    seen = groups.unconditional
    given = np.float32(options.learning_rate), np.int32(options.updates)
    after = learn(state, asked["features"], seen.vbar, seen.k > 0, given)
    return after, {"prior/support": (float(state.count), 1)}

  return Prior(ask, functools.partial(empty, 2 * policy.config.hidden_size), taught)


programs = neighbours.programs
