"""--mode=compile: memory of what a run really holds, programs that do not fit, topologies, and real
TPU compilers."""

from functools import partial
import importlib.util
import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from v05_jax import models
from v05_jax.configs import default, v05, v05_qwen3_0_6b_one_chip, v05_qwen3_4b
from v05_jax.models import flash
from v05_jax.sampling import sampler
from v05_jax.scale import compile as compiling
from v05_jax.scale import hlo, plan, programs, sharding, topology
from v05_jax.scale.cost import Module
from v05_jax.value_model import v0

GIB = topology.GIB
PROGRAMS = [
  "prior",
  "value_head",
  "weights",
  "prefill",
  "decode",
  "update",
  "recompute",
  "evaluate",
]
has_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture(scope="module")
def reported():
  c, file = v05.get_config(), io.StringIO()
  c.loss.old_logprob = "recompute"
  c.mesh.update({"data": 2, "fsdp": 1, "tensor": 1})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(topology, "devices", lambda name: jax.devices()[:2])
    rows = compiling.report(c, "", file)
  return rows, file.getvalue()


def test_one_row_a_program_with_what_lives_beside_it(reported):
  rows, text = reported
  lines = text.splitlines()
  assert [json.loads(line)["program"] for line in lines if line.startswith("{")] == PROGRAMS
  assert [row["program"] for row in rows] == PROGRAMS
  assert sum(line.startswith("| ") for line in lines) == len(PROGRAMS) + 2
  by = {row["program"]: row for row in rows}
  assert set(by["update"]["beside"]) == {"prior", "store", "cache"}  # which a CPU keeps
  assert set(by["decode"]["beside"]) == {"params", "optimizer", "prior"}
  for row in rows:
    assert row["fits"] is None and row["limit"] is None  # of a CPU
    assert row["total"] == row["peak"] + sum(row["beside"].values()) and row["peak"] > row[
      "temporaries"
    ] >= (row["program"] != "weights")
    assert (row["flops"] > 0 or row["program"] == "weights") and row["bytes"] > row["arguments"] / 4
  assert by["update"]["sent"]["all-reduce"] > 0


def test_held_is_what_arrays_take_on_a_device():
  c = support.config()
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  given, build = (
    sampler.arguments(support.MODEL, c.sampler, mesh),
    sampler.make(support.MODEL, c.sampler, (1,), mesh),
  )
  params = jax.device_put(support.params(), sharding.param_shardings(mesh, support.params()))
  shape = sampler.Shape(4, 16)
  for found, real in (
    (given.store(), build.store()),
    (given.cache(shape), build.cache(shape)),
    (given.weights(params), build.weights(params)),
  ):
    alike = lambda x, y: (
      (x.shape, x.dtype) == (y.shape, y.dtype) and x.sharding.is_equivalent_to(y.sharding, x.ndim)
    )
    assert all(jax.tree.leaves(jax.tree.map(alike, found, real)))
    assert programs.held(found) == sum(
      x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real)
    )


def test_a_program_that_does_not_fit_says_what_is_large_and_what_helps(reported):
  """Beside the same program, on a device with a little less memory than it needs."""
  c = v05.get_config()
  mesh = support.mesh()
  model = models.adapt(models.shape("builtin", ""), c.policy, "cpu")
  parts, found = plan.plan(c, model, mesh, "cpu")
  sizes = {part: programs.held(tree) for part, tree in parts.items()}
  update = next(x for x in found if x.name == "update")
  total = compiling.row(update, sizes, None)["total"]
  chip = topology.Chip(total - 1, 1e12, 1e12, 1e12, 1e9)
  row = compiling.row(update, sizes, chip)
  assert row["fits"] is False and "loss.micro_rows" in row["knobs"] and len(row["largest"]) == 3
  assert all("GiB" in x for x in row["largest"])
  text = compiling.table([row | {"topology": "", "devices": 1}], sizes)
  assert "| NO |" in text and "update does not fit. Largest: " in text
  assert compiling.row(update, sizes, chip._replace(memory=total))["fits"] is True
  assert set(row["seconds"]) == {"compiler", "flops", "memory", "network"}


def test_an_uncompiled_program_names_its_largest_arrays():
  text = "tensor<4x8xf32> tensor<1024x1024x1024xbf16> tensor<2xi32> tensor<f32>"
  largest, *_ = compiling.largest_lowered(text)
  assert largest == "bf16[1024,1024,1024] (2.00 GiB over all devices along fsdp and tensor)"


@pytest.mark.parametrize(
  ("path", "preset", "width"),
  [("builtin", "", 48), ("models/Qwen3-4B", "", 2560), ("anything", "qwen3-0.6b", 1024)],
)
def test_a_shape_needs_no_model(path, preset, width):
  assert models.shape(path, preset).hidden_size == width


def test_what_cannot_be_compiled(monkeypatch):
  c = default.get_config()
  c.policy.path = "no/such-model"
  with pytest.raises(ValueError, match=r"config.policy.path: found 'no/such-model'.*qwen3-4b"):
    compiling.report(c, "")
  c = default.get_config()
  c.mesh.data = 3
  with pytest.raises(ValueError, match=r"config.mesh.data=3.*found 8 devices"):
    compiling.report(c, "")
  c.mesh.data, c.sampler.slots = -1, 15
  with pytest.raises(ValueError, match=r"config.sampler.slots: found 15, expected a multiple of"):
    compiling.report(c, "")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ValueError, match=r"found no libtpu, expected the tpu extra: pip install -e '.\[tpu\]'"
  ):
    compiling.report(default.get_config(), "v5e:4x8")


def test_the_released_v0_has_its_shapes():
  settings, backbone = v0.shapes("not/here")
  parts = v0.abstract(settings, backbone, sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
  count = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
  assert 595e6 < count(parts["embedder"]) < 597e6  # Qwen3-Embedding-0.6B
  assert 10e6 < count(parts["value_head"]) < 12e6  # TabPFN-2.5
  built_in = v0.abstract(*v0.shapes("builtin"), support.mesh())
  loaded = v0.load("builtin")
  for name, tree in (
    ("embedder", loaded.params),
    ("adapter", loaded.adapter),
    ("value_head", loaded.head),
  ):
    assert jax.tree.map(lambda x: x.shape, built_in[name]) == jax.tree.map(lambda x: x.shape, tree)


@has_libtpu
def test_a_topology_that_the_compiler_does_not_know():
  with pytest.raises(
    ValueError, match="--topology: found 'v5e:3x5', expected a TPU slice such as v5e:4x8"
  ):
    topology.devices("v5e:3x5")


@has_libtpu
def test_a_program_beyond_the_chip_is_a_row():
  """What the compiler says of its needs has the arguments in it."""
  at = jax.sharding.SingleDeviceSharding(topology.devices("v5e:1x1")[0])
  x = jax.ShapeDtypeStruct((3 << 30,), np.float32, sharding=at)
  program = programs.Program(
    "update", lambda: jax.jit(lambda x: x + 1).lower(x), ("params",), 1, "one call", "less"
  )
  row = compiling.row(program, {"params": GIB}, topology.CHIPS["TPU v5 lite"])
  assert row["fits"] is False and 24 * GIB == row["peak"] == row["total"] - GIB  # 12 in, 12 out
  assert row["largest"][0].startswith("f32[3221225472] (12.00 GiB")
  json.loads(json.dumps(row))


# --- `make test-pod`: minutes each


@pytest.fixture(scope="module")
def on_v5e():
  return compiling.report(v05_qwen3_4b.get_config(), "v5e:4x8", io.StringIO())


@pytest.mark.pod
@pytest.mark.timeout(1800)
@has_libtpu
def test_the_papers_setting_fits_32_chips(on_v5e):
  c = v05_qwen3_4b.get_config()
  assert c.sampler.slots >= 256 and c.sampler.max_prompt + c.sampler.max_response == 5120
  assert c.rollouts_per_step >= 512 and c.policy.path.lower() in models.presets.PRESETS
  for rows in (on_v5e, compiling.report(c, "v5p:2x4x4", io.StringIO())):
    assert [row["program"] for row in rows] == PROGRAMS[:-1]
    for row in rows:
      assert (
        row["fits"] and row["total"] < {"v5e:4x8": 15.75, "v5p:2x4x4": 95}[row["topology"]] * GIB
      ), row["program"]
      assert row["compile_seconds"] < 300
    update = rows[-2]
    assert int(update["work"].split()[0]) * c.loss.minibatches <= 16  # micro-batches


@pytest.mark.pod
@pytest.mark.timeout(1800)
@has_libtpu
@pytest.mark.parametrize("path", ["Gemma-3-1B", "Llama-3.2-1B", "Qwen2.5-1.5B"])
def test_one_chip_is_enough_for_a_model_of_each_family(path):
  """With adapters, and what docs/models.md says must be set."""
  c = v05_qwen3_0_6b_one_chip.get_config()
  c.policy.path = path
  for row in compiling.report(c, "v5e:1x1", io.StringIO()):
    assert row["fits"] and row["total"] < 15.75 * GIB, row["program"]


@pytest.mark.pod
@has_libtpu
@pytest.mark.parametrize(
  "width, window, tokens", [(64, None, 1407), (128, None, 2100), (256, None, 1024), (256, 512, 640)]
)
def test_splash_attention_compiles_for_the_heads_of_every_family(width, window, tokens):
  at = jax.sharding.SingleDeviceSharding(topology.devices("v5e:1x1")[0])
  given = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=at)
  q, k = (given(jnp.bfloat16, 1, tokens, 2, *heads, width) for heads in ((4,), ()))
  attend = partial(flash.attend, ("splash", window) if window else "splash")
  total = lambda *x: jnp.sum(attend(*x).astype(jnp.float32))
  lowered = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, k, given(jnp.int32, 1, tokens))
  assert lowered.compile().as_text().count("tpu_custom_call") >= 3


@pytest.mark.pod
@has_libtpu
def test_decode_copies_no_cache_and_reads_everything_once(on_v5e):
  decode = next(row for row in on_v5e if row["program"] == "decode")
  assert decode["temporaries"] < 0.05 * decode["arguments"]
  steps = v05_qwen3_4b.get_config().sampler.chunk
  # weights and cache are its arguments
  assert 1 <= decode["bytes"] / steps / decode["arguments"] < 1.3


@pytest.mark.pod
@has_libtpu
def test_the_update_holds_no_logits_of_a_whole_row():
  c = v05_qwen3_4b.get_config()
  mesh = sharding.make_mesh(c.mesh, topology.devices("v5e:4x8"))
  model = compiling.shape(c.policy, "tpu")
  update = next(x for x in plan.plan(c, model, mesh, "tpu")[1] if x.name == "update")
  sizes = {model.vocab_size, model.vocab_size // mesh.shape["tensor"]}
  tables = Module(update.lower().compile().as_text()).computations.values()
  shapes = {hlo.dims(line.type) for table in tables for line in table.values() if "[" in line.type}
  # of the embedding and its parts
  widths = {model.hidden_size, model.hidden_size // mesh.shape["fsdp"]}
  rows = {
    s: np.prod(s) // max(sizes & set(s)) for s in shapes if sizes & set(s) and not widths & set(s)
  }
  assert c.loss.vocab_chunk in rows.values()  # a chunk's logits
  assert max(rows.values()) < c.loss.row_length, rows  # and no row's


@pytest.mark.pod
@pytest.mark.timeout(1800)
@has_libtpu
def test_arguments_halve_with_every_doubling_of_the_slice():
  c, found = v05_qwen3_4b.get_config(), []
  model = compiling.shape(c.policy, "tpu")
  for name in ("v5e:4x8", "v5e:8x8", "v5e:8x16"):
    mesh = sharding.make_mesh(c.mesh, topology.devices(name))
    update = next(x for x in plan.plan(c, model, mesh, "tpu")[1] if x.name == "update")
    found.append(update.lower().compile().memory_analysis().argument_size_in_bytes)
  for larger, smaller in itertools.pairwise(found):
    assert abs(smaller / (larger / 2) - 1) < 0.1, found
