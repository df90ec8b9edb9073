"""Every shape of the mesh on eight devices gives what one device gives: the update, the samples,
the prior.

`make test-pod`; single shapes are in `make test`, in the tests of each part.
"""

import functools
import itertools

import jax
import numpy as np
import pytest

from tests import support, test_policy_gradient
from v05_jax import rng
from v05_jax.budgets.base import fixed_number
from v05_jax.priors import neighbours
from v05_jax.sampling import rollouts
from v05_jax.sampling.ledger import Order
from v05_jax.scale import sharding
from v05_jax.value_model import v0 as value_model

SHAPES = [
  shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) in (2, 4, 8)
]
pytestmark = [pytest.mark.pod, pytest.mark.parametrize("shape", SHAPES, ids=str)]


@functools.cache
def gradient(shape):
  rows, c = test_policy_gradient.sample(), test_policy_gradient.config()
  update = test_policy_gradient.built(*shape)
  params = test_policy_gradient.parameters()
  return jax.device_get(
    update.loss_and_grad(params, *test_policy_gradient.batches(rows, c, *shape)[0])[:2]
  )


@functools.cache
def samples(shape):
  c = support.config()
  mesh = mesh_of(shape)
  params = jax.device_put(support.params(), sharding.param_shardings(mesh, support.params()))
  collect = rollouts.make(support.policy(), c, mesh, support.Verifier())
  return collect(params, support.prompts(14), rng.at(0, 0), Order(fixed_number(4)))[0]


@functools.cache
def features(shape):
  mesh = mesh_of(shape)
  embed = neighbours.make_features(support.MODEL, support.params(), mesh, 10)
  return embed(support.prompts(14))


def mesh_of(shape):
  return sharding.make_mesh(dict(zip(sharding.AXES, shape)), jax.devices()[: int(np.prod(shape))])


def test_update(shape):
  assert test_policy_gradient.distance(gradient(shape), gradient((1, 1, 1))) < 1e-4


def test_samples(shape):
  found, expected = samples(shape), samples((1, 1, 1))
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_allclose(found.logprob, expected.logprob, atol=1e-4)


def test_prior(shape):
  np.testing.assert_allclose(features(shape), features((1, 1, 1)), atol=1e-4)


def test_v0(shape):
  spread = value_model.load("builtin", mesh_of(shape))
  texts = [f"{a}+{a + 3}=" for a in range(20)]
  one = value_model.load("builtin")
  given = texts[:12], np.arange(12) % 2, texts[12:]
  np.testing.assert_allclose(spread.predict(*given), one.predict(*given), atol=1e-4)
