"""Costs read from compiled programs: as XLA counts them where nothing loops, times the trips where
something does."""

import dataclasses
from functools import partial
import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, SingleDeviceSharding
import numpy as np
import pytest

from v05_jax.models import decoder, presets
from v05_jax.scale import sharding, topology
from v05_jax.scale.cost import Module, group

ROWS, TOKENS = 4, 32


def compiled(layers, unroll=False, preset="tiny", device=None):
  """The gradient of a decoder; unrolled, every layer is a decoder's own."""
  config = dataclasses.replace(presets.PRESETS[preset], num_layers=layers)
  one = dataclasses.replace(config, num_layers=1)

  def loss(params, tokens):
    if not unroll:
      return jnp.sum(decoder.forward(config, params, tokens, tokens, tokens) ** 2)
    x = decoder.embed(config, params["embedding"], tokens)
    turn, mask = decoder.rotation(config, tokens), decoder.causal(tokens)
    for i in range(layers):
      layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
      x, _ = decoder.Layer(one).apply({"params": layer}, x, turn, mask)
    return jnp.sum(decoder.RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x) ** 2)

  params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  at = SingleDeviceSharding(device or jax.devices()[0])
  tokens = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
  return jax.jit(jax.grad(loss), in_shardings=at).lower(params, tokens).compile()


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_loop_costs_what_its_unrolled_layers_cost(layers):
  scanned, unrolled = (
    Module(compiled(layers, unroll).as_text()).cost() for unroll in (False, True)
  )
  assert scanned.flops == unrolled.flops  # to the product
  # A scan also slices its parameters and stacks what the backward pass needs.
  assert 0.9 < scanned.bytes / unrolled.bytes < 1.7


@pytest.mark.pod
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_on_a_tpu_as_well(layers):
  """Whose compiler computes a product twice where that saves a pass over memory."""
  device = topology.devices("v5e:1x1")[0]
  scanned, unrolled = (compiled(layers, unroll, "throughput-s", device) for unroll in (False, True))
  cost = Module(unrolled.as_text()).cost()
  np.testing.assert_allclose(cost.flops, unrolled.cost_analysis()["flops"], rtol=0.03)
  np.testing.assert_allclose(Module(scanned.as_text()).cost().flops, cost.flops, rtol=0.1)


def test_without_the_trips_bytes_are_those_of_xla():
  program = compiled(4)
  cost = Module(program.as_text()).cost(once=True)
  np.testing.assert_allclose(cost.bytes, program.cost_analysis()["bytes accessed"], rtol=0.01)
  # XLA counts additions and the like too.
  assert 0.8 < cost.flops / program.cost_analysis()["flops"] <= 1


def test_products_are_counted_exactly_and_loops_of_unknown_length_are_given():
  def chain(x, n):
    return jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ x), x)

  x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
  module = Module(jax.jit(chain).lower(x, jax.ShapeDtypeStruct((), jnp.int32)).compile().as_text())
  assert module.cost(7).flops == 7 * module.cost(1).flops == 7 * 2 * 32**3
  module = Module(jax.jit(partial(chain, n=5)).lower(x).compile().as_text())
  assert module.cost(7).flops == module.cost(1).flops == 5 * 2 * 32**3


def test_collectives_in_loops():
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
  size = 1000

  def add(x):
    return jax.lax.fori_loop(
      0, 3, lambda i, x: jax.lax.pcast(jax.lax.psum(x, "data"), "data", to="varying") * 0.5, x
    )

  f = jax.jit(sharding.mapped(mesh, add, PartitionSpec("data"), PartitionSpec("data")))
  cost = Module(f.lower(jax.ShapeDtypeStruct((4 * size,), jnp.float32)).compile().as_text()).cost()
  assert cost.sent == {"all-reduce": 3 * 2 * (3 / 4) * 4 * size}


# What a TPU's compiler writes and a CPU's does not: two iterations in one, prefetched slices,
# products as convolutions with a padded window, an instruction over several lines, the two halves
# of an asynchronous collective.
TPU = """HloModule jit_f, is_scheduled=true

%bitcast_fusion (p.1: bf16[8,128]) -> bf16[8,128] {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %b = bf16[8,128]{1,0:T(8,128)(2,1)} bitcast(%p.1)
}

%product (p.2: bf16[4,8], p.3: bf16[8,128]) -> f32[4,128] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  %p.3 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %inner = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%p.3), kind=kLoop, calls=%bitcast_fusion
  ROOT %c = f32[4,128]{1,0} convolution(%p.2, %inner), dim_labels=bf_io->bf
}

%begin (p.4: f32[2,128]) -> (f32[2,128], f32[8,128]) {
  %p.4 = f32[2,128]{1,0} parameter(0)
  %g.1 = f32[8,128]{1,0} all-gather(%p.4), replica_groups=[8,4]<=[32], dimensions={0}
  ROOT %s = (f32[2,128]{1,0}, f32[8,128]{1,0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%finish (p.5: f32[2,128]) -> f32[8,128] {
  %p.5 = f32[2,128]{1,0} parameter(0)
  %g.2 = f32[8,128]{1,0} all-gather(%p.5), replica_groups=[8,4]<=[32], dimensions={0}
  ROOT %d = f32[8,128]{1,0} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}

%body (p.6: (s32[], f32[2,128])) -> (s32[], f32[2,128]) {
  %p.6 = (s32[]{:T(128)}, f32[2,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.6), index=0
  %x = f32[2,128]{1,0} get-tuple-element(%p.6), index=1, frontend_attributes={kernel_metadata={
"note":"over several lines"
}}, metadata={op_name="jit(f)/while"}
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %start = (f32[2,128]{1,0}, f32[8,128]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %done = f32[8,128]{1,0} fusion(%x), kind=kCustom, calls=%finish
  ROOT %t = (s32[]{:T(128)}, /*index=1*/f32[2,128]{1,0}) tuple(%next, %x)
}

%condition (p.7: (s32[], f32[2,128])) -> pred[] {
  %p.7 = (s32[]{:T(128)}, f32[2,128]{1,0}) parameter(0)
  %eight = s32[]{:T(128)} constant(8)
  %j = s32[]{:T(128)} get-tuple-element(%p.7), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %eight), direction=LT
}

ENTRY %main (a: bf16[4,8], b.1: bf16[8,128], c.1: f32[2,128], d.1: bf16[5,3,16], e.1: bf16[5,7,16]) -> f32[4,128] {
  %a = bf16[4,8]{1,0:S(1)} parameter(0)
  %b.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %c.1 = f32[2,128]{1,0} parameter(2)
  %d.1 = bf16[5,3,16]{2,1,0} parameter(3)
  %e.1 = bf16[5,7,16]{2,1,0} parameter(4)
  %zero = s32[] constant(0)
  %init = (s32[]{:T(128)}, f32[2,128]{1,0}) tuple(%zero, %c.1)
  %loop = (s32[]{:T(128)}, f32[2,128]{1,0}) while(%init), condition=%condition, body=%body
  %slice = ((bf16[8,128]{1,0}), bf16[4,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%b.1), slice={[0:4], [0:128]}
  %batched = f32[5,3,7]{2,1,0:S(1)} convolution(%d.1, %e.1), window={size=5 stride=4 lhs_dilate=5}, dim_labels=LABELS
  ROOT %out = f32[4,128]{1,0} fusion(%a, %b.1), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"123"}
}
"""


def test_the_text_of_a_tpu():
  module = Module(TPU.replace("LABELS", "0bf_0oi->0bf"))
  loop = module.computations["main"]["loop"]
  assert module.trips(loop) == 4  # 0, 2, 4, 6
  cost = module.cost()
  assert cost.sent == {"all-gather": 4 * 3 / 4 * 8 * 128 * 4}  # once for both halves, in four trips
  assert cost.cycles == 123
  product, slices = 2 * 4 * 128 * 8, 4 * 128 * 2
  batched = 2 * 5 * 3 * 7 * 16  # each of five matrices meets its own alone
  assert cost.flops == product + batched
  read = module.traffic(module.computations["main"]["out"], module.computations["main"])
  assert read == 8 * 128 * 2 + 4 * 128 * 4  # `a` lies in on-chip memory
  assert module.traffic(module.computations["main"]["slice"], module.computations["main"]) == slices


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("(f32[512]{0}, f32[256]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}", 2 * 3 / 4 * 3072),
    ("(f32[512]{0}, f32[2048]{0}) all-gather-start(%a), replica_groups={{0,1,2,3}}", 3 / 4 * 8192),
    ("(f32[128]{0}, f32[64]{0}) reduce-scatter(%a, %b), replica_groups={{0,1,2,3}}", 3 / 4 * 3072),
    (
      "(f32[512]{0}, f32[512]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}",
      2048,
    ),
  ],
)
def test_collectives_of_several_arrays(line, expected):
  module = Module(f"""HloModule m

ENTRY %main (a: f32[512], b: f32[256]) -> f32[512] {{
  %a = f32[512]{{0}} parameter(0)
  %b = f32[256]{{0}} parameter(1)
  ROOT %c = {line}
}}
""")
  assert sum(module.cost().sent.values()) == expected


def test_products_of_a_gpu():
  module = Module(
    """HloModule m

ENTRY %main (a: bf16[4,8], b: bf16[8,16]) -> f32[4,16] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  ROOT %c = (f32[4,16]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
}
""".replace("\\\n", "")
  )
  assert module.cost().flops == 2 * 4 * 8 * 16


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("replica_groups=[8,4]<=[32]", 4),
    ("replica_groups={{0,4,8},{1,5,9}}", 3),
    ("replica_groups={}", 1),
    ("replica_groups=mesh['axis_0'=8,'axis_1'=4] {'axis_1'}, x={}", 4),
  ],
)
def test_groups(text, count):
  assert group(text) == count
