"""Mesh, sharding table, and what `mapped` does to sums and gradients."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from v05_jax import value_model
from v05_jax.models import decoder, decoding, lora, presets
from v05_jax.scale import sharding


def mesh_of(data=1, fsdp=1, tensor=1):
  count = abs(data * fsdp * tensor)
  return sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, jax.devices()[:count])


def shapes(tie=False, config=None):
  config = config or decoder.ModelConfig(10, 8, 3, 4, 2, 6, 12, tie_embeddings=tie)
  return jax.eval_shape(lambda key: decoder.init(config, key), jax.random.key(0))


def names(tree):
  return [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_mesh_fills_the_rest():
  mesh = sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 1})
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert mesh.devices.size == len(jax.devices()) == 8


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((3, 1, 1), "config.mesh.data=3.*found 8 devices, expected 3"),
    ((-1, 3, 1), "config.mesh.fsdp=3.*found 8 devices, expected a multiple of 3"),
    ((-1, 16, 1), "found 8 devices, expected a multiple of 16"),
    ((-1, -1, 1), "at most one axis"),
    ((0, 1, 8), "config.mesh.data=0.*positive"),
  ],
)
def test_mesh_that_does_not_fit(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(dict(zip(sharding.AXES, sizes)))


ADAPTERS = lora.Lora(4, 8.0, lora.TARGETS)


@pytest.mark.parametrize("adapters", [None, ADAPTERS])
@pytest.mark.parametrize(
  "preset", ["tasks-58k", "qwen3-4b", "qwen3-8b", "qwen2.5-1.5b", "gemma-3-1b"]
)
def test_every_parameter_matches_exactly_one_rule(preset, adapters):
  config = dataclasses.replace(presets.PRESETS[preset], adapters=adapters)
  found = names(shapes(config=config))
  assert ("head" in found) == (not config.tie_embeddings)
  for name in found:
    assert sum(bool(re.search(pattern, name)) for pattern, *_ in sharding.RULES) == 1, name


def test_every_rule_is_of_use():
  v0 = value_model.load("builtin")
  config = dataclasses.replace(presets.PRESETS["tasks-58k"], adapters=ADAPTERS, qkv_bias=True)
  found = names({"embedder": shapes(config=config), "adapter": v0.adapter, "value_head": v0.head})
  for name in found:
    assert sum(bool(re.search(pattern, name)) for pattern, *_ in sharding.RULES) == 1, name
  for pattern, *_ in sharding.RULES:
    assert any(re.search(pattern, name) for name in found), pattern


def test_in_decode_nothing_is_split_along_fsdp():
  config = presets.PRESETS["qwen3-4b"]
  weights = jax.eval_shape(
    lambda: decoding.decode_weights(config, decoder.init(config, jax.random.key(0)))
  )
  specs = sharding.param_specs(mesh_of(fsdp=4, tensor=2), weights, decode=True)
  assert specs["layers"][3]["q"]["kernel"] == PartitionSpec(None, "tensor")
  assert specs["layers"][3]["down"]["kernel"] == PartitionSpec("tensor", None)
  assert specs["embedding"] == PartitionSpec("tensor", None) and specs["norm"][
    "scale"
  ] == PartitionSpec(None)


@pytest.mark.parametrize("decode, leading", [(False, (None,)), (True, ())])
def test_biases_are_split_as_the_outputs_of_their_matrices(decode, leading):
  config = presets.PRESETS["qwen2.5-1.5b"]
  make = lambda: decoder.init(config, jax.random.key(0))
  params = jax.eval_shape(lambda: decoding.decode_weights(config, make()) if decode else make())
  specs = sharding.param_specs(mesh_of(fsdp=4, tensor=2), params, decode)
  layer = specs["layers"][0] if decode else specs["layers"]
  assert all(layer[name]["bias"] == PartitionSpec(*leading, "tensor") for name in "qkv")


def test_unknown_parameter():
  with pytest.raises(ValueError, match="no rule for parameter 'layers/new/kernel'"):
    sharding.param_specs(mesh_of(), {"layers": {"new": {"kernel": np.zeros((2, 2))}}})


def test_specs_drop_what_does_not_divide():
  specs = sharding.param_specs(mesh_of(fsdp=4, tensor=2), shapes(True))
  assert specs["layers"]["q"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
  assert specs["layers"]["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
  assert specs["embedding"] == PartitionSpec("tensor", "fsdp")  # 10 by 8
  specs = sharding.param_specs(mesh_of(tensor=4), shapes(True))
  assert specs["embedding"] == PartitionSpec(None, "fsdp")


def test_the_optimiser_is_split_along_data_where_a_dimension_divides():
  tree = {"a": np.zeros((3, 4)), "b": np.zeros((6, 4)), "c": np.zeros(3), "d": np.zeros(())}
  specs = {"a": PartitionSpec(None, "fsdp"), "b": PartitionSpec("tensor", "fsdp")}
  specs |= {"c": PartitionSpec(), "d": PartitionSpec()}
  found = sharding.spread(mesh_of(2, 2), specs, tree)
  assert found == specs | {"b": PartitionSpec("data", "fsdp")}  # `tensor` has one device
  assert sharding.spread(mesh_of(2), specs, tree)["a"] == PartitionSpec(None, "data")
  assert sharding.spread(mesh_of(1, 2), specs, tree) == specs


def test_place_and_shardings():
  mesh = mesh_of(data=2, fsdp=2, tensor=2)
  tree = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes(False))
  placed = jax.device_put(tree, sharding.param_shardings(mesh, tree))
  assert jax.tree.map(lambda x: x.sharding, placed) == sharding.param_shardings(mesh, tree)
  kernel = placed["layers"]["q"]["kernel"]
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4, 12)}
  again = jax.device_put(placed, sharding.param_shardings(mesh, tree))
  for old, new in zip(jax.tree.leaves(placed), jax.tree.leaves(again)):
    first = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in (old, new)]
    assert first[0] == first[1]  # not copied


@pytest.mark.parametrize("sizes", [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 2, 4), (1, 1, 1)])
def test_gradients_of_replicated_values_are_summed_once(sizes):
  """The semantics that the update rests on: without `vary` the sum is there already, with it
  not."""
  mesh = mesh_of(*sizes)
  x = np.arange(1.0, 17.0, dtype=np.float32).reshape(8, 2)
  loss = lambda w, x: jnp.sum((x @ w) ** 2)
  w = np.array([0.5, -2.0], np.float32)

  def both(w, x):
    plain = jax.grad(loss)(w, x)
    own = jax.grad(loss)(sharding.vary(w), x)
    return plain, sharding.total(own), sharding.total(loss(w, x))

  specs = (PartitionSpec(), PartitionSpec("data"))
  plain, summed, value = jax.jit(sharding.mapped(mesh, both, specs, PartitionSpec()))(w, x)
  expected = jax.grad(loss)(w, x)
  np.testing.assert_allclose(plain, expected, rtol=1e-6)
  np.testing.assert_allclose(summed, expected, rtol=1e-6)
  np.testing.assert_allclose(value, loss(w, x), rtol=1e-6)


def test_mapped_rejects_a_result_that_differs_between_devices():
  f = lambda x: jnp.sum(x)  # no sum over data: not the same everywhere
  with pytest.raises(ValueError, match="data"):
    mapped = sharding.mapped(mesh_of(data=8), f, (PartitionSpec("data"),), PartitionSpec())
    jax.jit(mapped)(np.ones(8))
