"""A probe of the policy's own features that knows its error: Bayesian logistic regression, online.

It needs no training run and no files: it learns from every (prompt, success) pair of the run, and
forgets old pairs at the rate at which its predictions are best (`priors/logistic.py`). V and
`variance` are mean and variance of a prompt's mean reward given these pairs; the baseline
`precision` uses both.

Features are those of `neighbours`, of the frozen first policy: the last hidden state of the prompt
and the mean of its hidden states. The first `SAMPLE` prompts of the data give their mean and
principal components; of these as many as `dimensions` are kept, each divided by the root of its
standard deviation: the leading ones stay the larger ones, but not by as much.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.budgets import base as budgets
from v05_jax.priors import context as contexts
from v05_jax.priors import logistic, neighbours
from v05_jax.priors.base import Prior
from v05_jax.shapes import shapes
from v05_jax.structs import Context

SAMPLE = 512  # prompts from which the principal components are computed
MAX_SCORE = 5.0  # components are clipped here
ROUNDING = 1e-6  # of a feature, as a share of the largest
LEAST_SPREAD = 1e-4  # of a component's standard deviation, as a share of the first one's
# Hyperparameters of the ensemble's members, in all combinations (`logistic.Members`): the share
# kept from step to step, the variance of the log-odds that no linear function explains, and the
# prior variance of what the features explain.
KEPT, MISFIT, SPREAD = (0.85, 0.95, 1.0), (0.5, 2.0, 8.0), (4.0,)
MEMBERS = logistic.Members(
  *(np.float32(x) for x in zip(*itertools.product(KEPT, MISFIT, SPREAD), strict=True))
)

programs = neighbours.programs  # for --mode=compile: the features are the same


class Probe(NamedTuple):
  """What the prior keeps, on host."""

  mean: np.ndarray  # float32 [F]  of the features
  basis: np.ndarray  # float32 [F, D]  from centred features to components
  learnt: logistic.Learnt
  record: Context  # the last pairs of V and outcome, without features


@plug.declare(
  "prior",
  dimensions=plug.Option(
    128, "principal components of the features that are used", lambda x: x >= 1, "at least 1"
  ),
)
def probe(options, setting):
  """V and its variance from the log-odds that a linear function of the features gives."""
  config, policy = setting.config, setting.policy
  features = neighbours.make_features(
    policy.config, policy.params, setting.mesh, config.sampler.max_prompt
  )
  least, prompts = config.prior.min_support, setting.prompts
  size = shapes(config, budgets.make(setting).limits).pool

  def init():
    mean, basis = components(sampled(prompts, size, features), options.dimensions)
    learnt = logistic.empty(MEMBERS, basis.shape[1])
    return Probe(mean, basis, learnt, contexts.empty(config.prior.context))

  def ask(state, prompts):
    x = np.asarray(projected(state.mean, state.basis, features(prompts)))
    value, variance = (np.asarray(y) for y in logistic.predict(MEMBERS, state.learnt, x))
    known = int(state.record.count) >= least
    value, variance = (np.where(known, y, np.nan).astype(np.float32) for y in (value, variance))
    asked = contexts.remembered(state.record, np.zeros((len(value), 0), np.float32), value)
    seen = np.full(len(value), int(state.record.count))
    return value, asked | {"x": x, "variance": variance, "support": seen}

  def learn(state, asked, groups):
    seen = groups.unconditional
    learnt = logistic.learn(MEMBERS, state.learnt, asked["x"], seen.s, seen.k)
    record, metrics = contexts.learn(state.record, asked, groups)
    return state._replace(learnt=learnt, record=record), metrics

  return Prior(ask, init, learn, variance=lambda asked: asked["variance"])


def sampled(prompts, size: int, features) -> np.ndarray:
  """Features [N, F] of the first prompts of the data, asked for in batches of `size`."""
  count = min(SAMPLE, len(prompts))
  parts = []
  for first in range(0, count, size):
    number = min(size, count - first)
    parts.append(features(prompts.at(first, number, pad_to=size))[:number])
  return np.concatenate(parts)


def components(x, most: int) -> tuple[np.ndarray, np.ndarray]:
  """(mean [F], basis [F, D]) of features [N, F]: their D <= `most` leading principal components,
  each divided by the root of its standard deviation and all by one number, so that their variances
  are 1 on average; D is less where fewer vary, and at least 1."""
  x = np.asarray(x, np.float64)
  mean = x.mean(0)
  _, spread, axes = np.linalg.svd(x - mean, full_matrices=False)
  kept = max(int(np.sum(spread[:most] > LEAST_SPREAD * spread[0])), 1)
  spread = spread[:kept] / np.sqrt(len(x))
  noise = ROUNDING * np.abs(x).max() * (1 + np.sqrt(x.shape[1] / len(x)))  # its largest component
  varies = spread > noise  # not where all prompts are one
  scale = np.where(varies, 1.0 / np.sqrt(np.maximum(spread * spread.mean(), 1e-30)), 0.0)
  return mean.astype(np.float32), np.ascontiguousarray(axes[:kept].T * scale, np.float32)


@jax.jit
def projected(mean, basis, features):
  """Components [P, D] of features [P, F]."""
  found = jnp.matmul(features - mean, basis, precision="highest")
  return jnp.clip(found, -MAX_SCORE, MAX_SCORE)
