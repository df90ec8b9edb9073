"""Adapters: the base at first and for ever, the gradient of the merged form, memory, merging, a
run, files, errors."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import test_policy_gradient as tools
from tests.test_train import small
from v05_jax import config as configuration
from v05_jax import models
from v05_jax.configs import v05_qwen3_tiny
from v05_jax.models import decoder, hf, lora
from v05_jax.run import checkpoint, metrics, sft
from v05_jax.run.export import export
from v05_jax.scale import sharding
from v05_jax.setup import setup
from v05_jax.train import train
from v05_jax.update import optimizer as optimizers
from v05_jax.update import policy_gradient

pytestmark = pytest.mark.usefixtures("few_devices")

ADAPTERS = lora.Lora(3, 4.5, lora.TARGETS)
MODEL = dataclasses.replace(tools.MODEL, adapters=ADAPTERS)
KL = {"kl_coef": 0.3, "entropy_coef": 0.1}


@functools.cache
def parameters(seed=0, model=MODEL):
  """The base of `tools.parameters` with adapters that are far from zero."""
  draw = np.random.default_rng(seed).normal
  drawn = jax.tree.map(
    lambda x: draw(0, 0.5, x.shape).astype(np.float32), lora.init(model, jax.random.key(seed))
  )
  return lora.join(drawn, tools.parameters())


@functools.cache
def built(*sizes, model=MODEL, **loss):
  c = tools.config(**loss)
  return policy_gradient.make(
    model,
    c.loss,
    c.optimizer,
    tools.mesh_of(*sizes),
    temperature=tools.TEMPERATURE,
    total_updates=10,
  )


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_model_is_at_first_exactly_the_one_without_adapters():
  model, tokens = (
    dataclasses.replace(MODEL, dtype="bfloat16"),
    np.arange(14, dtype=np.int32).reshape(2, 7),
  )
  plain = lora.plain(model)
  params = jax.device_get(jax.jit(decoder.init, static_argnums=0)(model, jax.random.key(0)))
  base = jax.tree.map(lambda x: x / 2, tools.parameters())  # of the same seed, doubled there
  trainable, frozen = lora.split(params)
  kept = {"scale": np.float32, "kernel": jnp.bfloat16, "embedding": jnp.bfloat16}
  assert all(
    x.dtype == kept[path[-1].key] for path, x in jax.tree_util.tree_leaves_with_path(frozen)
  )
  assert_equal(frozen, jax.tree.map(lambda x, y: x.astype(y.dtype), base, frozen))
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(trainable))
  assert all((trainable["layers"][name][lora.B] == 0).all() for name in lora.TARGETS)
  variance = np.var(trainable["layers"]["down"][lora.A]) * MODEL.intermediate_size
  assert 0.25 < variance < 0.42 and trainable["layers"]["k"][lora.A].shape == (2, 16, 3)
  forward = jax.jit(decoder.forward, static_argnums=0)
  assert_equal(
    *(forward(m, p, tokens, tokens, tokens * 0 + 1) for m, p in ((model, params), (plain, base)))
  )
  assert_equal(lora.merge_layers(model, params["layers"]), frozen["layers"])


def test_split_and_join():
  params = parameters()
  trainable, frozen = lora.split(params)
  assert_equal(lora.join(trainable, frozen), params)
  assert jax.tree.structure(frozen) == jax.tree.structure(tools.parameters())
  assert (
    lora.split(frozen)[0] is frozen
    and lora.split(frozen)[1] == {}
    and lora.join(frozen, {}) is frozen
  )
  some = dataclasses.replace(MODEL, adapters=lora.Lora(1, 1.0, ("v", "o")))
  trainable, _ = lora.split(lora.add(some, tools.parameters(), jax.random.key(0)))
  assert set(trainable["layers"]) == {"v", "o"}


@pytest.mark.parametrize("sizes, backend", [((2, 2, 2), "accelerator"), ((1, 1, 1), "cpu")])
def test_gradient_is_that_of_the_merged_form(sizes, backend):
  """By the chain rule through W + A B alpha / rank, from a reference on merged matrices; the KL is
  to the base."""
  rows, model = tools.sample(1), dataclasses.replace(MODEL, backend=backend)
  prompts, sampled, advantage = rows
  tokens, length, place = tools.padded(prompts, sampled)
  (expected, sums), dense = tools.reference_loss(
    lora.merge(MODEL, parameters()),
    tools.parameters(),
    tokens,
    length,
    place,
    sampled.logprob,
    advantage[sampled.prompt, sampled.index][:, None],
    tools.hand_weights("prompt", sampled),
    (0.2, 0.2, 0.3, 0.1),
  )
  ((batch, used),) = tools.batches(rows, tools.config(**KL), *sizes)
  update = built(*sizes, model=model, **KL)
  loss, grads, metrics = update.loss_and_grad(parameters(), batch, used)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(tools.mean(metrics, "loss/kl"), sums["kl"], rtol=1e-5)
  assert sums["kl"] > 0.1
  assert jax.tree.structure(grads) == jax.tree.structure(lora.split(parameters())[0])
  for name in lora.TARGETS:
    now, kernel = parameters()["layers"][name], np.asarray(dense["layers"][name]["kernel"])
    a = ADAPTERS.scale * np.einsum("lio,lro->lir", kernel, now[lora.B])
    b = ADAPTERS.scale * np.einsum("lio,lir->lro", kernel, now[lora.A])
    assert tools.distance(grads["layers"][name], {lora.A: a, lora.B: b}) < 2e-5, name
  assert update.freeze(parameters()) is None  # no second copy: the reference is the base
  with pytest.raises(ValueError, match=r"kl_coef=0.3 takes no reference .*with adapters: none"):
    update.loss_and_grad(parameters(), batch, used, parameters())
  where = jax.tree.map(lambda x: x.sharding, grads)
  assert where == lora.split(sharding.param_shardings(tools.mesh_of(*sizes), parameters()))[0]


def test_memory_of_the_update():
  """By the compiler: the base once, updated in place; Adam's moments, gradient and its sum for the
  adapters alone. In float32, as a CPU turns bfloat16 matrices into float32 before a product; what
  lies there is bfloat16 otherwise."""
  model = decoder.ModelConfig(64, 128, 4, 4, 2, 32, 384, remat="full", adapters=ADAPTERS)
  mesh = tools.mesh_of()
  optimizer = optimizers.make(tools.config().optimizer, 10)
  _, *like = policy_gradient.layout(model, optimizer, mesh)
  ((batch, _),) = tools.batches(tools.sample(), tools.config())
  at = sharding.shardings(mesh, policy_gradient.BATCH)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), batch)
  used = jax.ShapeDtypeStruct((), np.int32, sharding=sharding.replicated(mesh))
  memory = built(model=model).program.lower(*like, batch, used, None).compile().memory_analysis()
  adapters, base = (sum(x.size for x in jax.tree.leaves(part)) for part in lora.split(like[0]))
  assert adapters < 0.05 * base
  rows, slack = sum(x.size * 4 for x in jax.tree.leaves(batch)), 2048
  assert abs(memory.argument_size_in_bytes - 4 * base - 12 * adapters - rows) < slack
  assert memory.alias_size_in_bytes > 4 * base + 12 * adapters - slack
  assert memory.temp_size_in_bytes < 2 * base  # a gradient would take 4
  half, *_ = policy_gradient.layout(dataclasses.replace(model, dtype="bfloat16"), optimizer, mesh)[
    1:
  ]
  stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(lora.split(half)[1]))
  assert 2 * base < stored < 2.02 * base  # scales are float32


@pytest.mark.parametrize("size", [1.0, 0.02])
def test_merged_matrices_are_right_in_the_mean_where_bfloat16_is_too_coarse(size):
  """Adapters of `size` last digits of the base: rounded to the nearest, small ones would all be
  lost."""
  draw = np.random.default_rng(0).normal
  kernel = draw(0, 0.03, (2, 128, 192)).astype(jnp.bfloat16)
  a, b = draw(0, 1, (2, 128, 4)), draw(0, 1, (2, 4, 192))
  b *= size * 0.03 * 2**-8 / 2 / ADAPTERS.scale
  params = {
    "layers": {"q": {"kernel": kernel, lora.A: a.astype(np.float32), lora.B: b.astype(np.float32)}}
  }
  exact = kernel.astype(np.float64) + a @ b * ADAPTERS.scale
  drawn = np.random.default_rng(1).integers(0, 2**16, (128, 256), np.uint16)
  found = jax.jit(lora.merge, static_argnums=0)(MODEL, params, drawn)["layers"]["q"]["kernel"]
  assert found.dtype == jnp.bfloat16
  wanted = exact - kernel.astype(np.float64)
  share = lambda x: np.sum((np.float64(x) - kernel.astype(np.float64)) * wanted) / np.sum(wanted**2)
  assert 0.95 < share(found) < 1.05
  assert size > 0.1 or share(exact.astype(jnp.bfloat16)) < 0.3
  digit = 2**16 * np.spacing(
    np.maximum(np.abs(np.float32(found)), np.abs(np.float32(exact)))
  ).astype(np.float64)
  assert (np.abs(np.float64(found) - exact) < digit).all()
  wide = lora.merge(MODEL, jax.tree.map(lambda x: x.astype(jnp.float32), params))["layers"]["q"][
    "kernel"
  ]
  np.testing.assert_allclose(wide, exact, atol=1e-8)
  last = jnp.uint16(2**16 - 1)
  assert str(lora.round_at_random(jnp.float32([np.nan, np.inf, 1, -2]), last)) == "[nan inf 1 -2]"
  model = dataclasses.replace(MODEL, dtype="bfloat16")
  drawn = lora.thresholds(model)
  assert (
    drawn.shape == (24, 24)
    and abs(drawn.mean() / 2**15 - 1) < 0.1
    and lora.thresholds(MODEL) is None
  )


def tiny(**keys):
  c = small(v05_qwen3_tiny.get_config())
  c.mesh.update({"data": 2, "fsdp": 2, "tensor": 1})
  c.update_from_flattened_dict(
    {
      "num_steps": 2,
      "checkpoint.period": 1,
      "policy.dtype": "float32",
      "policy.remat": "none",
      "eval.period": 0,
      "prior.kind": "none",
      "loss.kl_coef": 0.1,
      **keys,
    }
  )
  return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of two steps on four devices: (config, workdir, state)."""
  workdir = tmp_path_factory.mktemp("lora")
  return tiny(), workdir, train(tiny(), str(workdir))


def test_a_run_trains_the_adapters_alone_and_saves_all_of_it(run):
  config, workdir, state = run
  written = metrics.read(workdir)
  # merged = not merged
  assert all(line["loss/logprob_gap"] < 1e-4 and line["grad/norm"] > 0 for line in written)
  assert 0 < written[0]["loss/kl"] < written[1]["loss/kl"]
  trained, frozen = lora.split(jax.device_get(state.params))
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(trained))
  assert_equal(frozen, models.load(configuration.load("configs/default.py").policy).params)
  assert all(x.any() for x in jax.tree.leaves(trained))
  with checkpoint.Checkpoints(workdir, 2) as saved:
    assert_equal(*jax.device_get((saved.restore(2, setup(config).init()), state)))


def test_what_is_exported_is_the_policy(run, tmp_path):
  """As transformers reads it, merged and as base and adapter, where torch is installed; and as this
  package does."""
  config, workdir, state = run
  export(config, str(workdir), str(tmp_path))
  policy = models.load(config.policy)
  tokens = np.random.default_rng(0).integers(2, 32, (3, 20)).astype(np.int32)
  place = np.broadcast_to(np.arange(20), tokens.shape)

  @functools.partial(jax.jit, static_argnums=0)
  def logits(config, params):
    return decoder.logits(
      config, params, decoder.forward(config, params, tokens, place, place * 0 + 1)
    )

  expected = np.asarray(logits(policy.config, jax.device_get(state.params)))
  assert np.abs(expected - logits(policy.config, policy.params)).max() > 1e-2
  loaded, params = hf.load(tmp_path)
  np.testing.assert_allclose(logits(loaded, params), expected, rtol=1e-5, atol=1e-5)
  adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
  assert (adapter["peft_type"], adapter["r"], adapter["lora_alpha"], adapter["bias"]) == (
    "LORA",
    8,
    8.0,
    "none",
  )
  tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
  assert len(tensors) == 2 * 7 * 2 and {x.dtype.name for x in tensors.values()} == {"float32"}

  torch = pytest.importorskip("torch")
  import transformers

  def of(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

  def run_torch(model):
    with torch.no_grad():
      return model(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()

  np.testing.assert_allclose(run_torch(of(tmp_path)), expected, rtol=1e-5, atol=1e-5)
  base = of(models.BUILTIN)
  matrices = dict(base.named_parameters())
  for name, b in tensors.items():  # as PEFT names and multiplies them
    if name.endswith("lora_B.weight"):
      target = name.removeprefix("base_model.model.").replace("lora_B.", "")
      assert target.split(".")[-2] in adapter["target_modules"]
      change = b @ tensors[name.replace("lora_B", "lora_A")] * adapter["lora_alpha"] / adapter["r"]
      matrices[target].data += torch.tensor(change)
  np.testing.assert_allclose(run_torch(base), expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_scaled_as_in_the_run(run, tmp_path):
  config, workdir, _ = run
  other = config.copy_and_resolve_references()
  other.policy.lora_alpha = 32.0
  with pytest.raises(ValueError, match=r"policy.lora_alpha: found 32, expected 8, as the run in"):
    export(other, str(workdir), str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_model_is_named(run, tmp_path):
  """A copy of the run whose config.json is gone: what keeps one from mixing up runs by their
  config."""
  _, workdir, _ = run
  shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
  with pytest.raises(
    ValueError, match=r"not fit this config's model.*\n  params\.layers\.down\.lora_a: found .*,8\]"
  ):
    train(tiny(**{"policy.lora_rank": 4}), str(tmp_path))


@pytest.mark.pod
def test_sft_trains_adapters_and_writes_the_merged_model(tmp_path):
  c = tiny(
    **{
      "policy.dtype": "bfloat16",
      "sft.steps": 2,
      "sft.batch": 16,
      "eval.period": 0,
      "eval.samples": 0,
    }
  )
  last = sft.sft(c, str(tmp_path))
  assert np.isfinite(last["sft/loss"])
  _, params = hf.load(tmp_path / "hf")
  _, base = hf.load(models.BUILTIN)
  np.testing.assert_array_equal(
    params["embedding"], base["embedding"].astype(jnp.bfloat16).astype(np.float32)
  )
  change = params["layers"]["v"]["kernel"] - base["layers"]["v"]["kernel"].astype(
    jnp.bfloat16
  ).astype(np.float32)
  assert change.any() and (np.linalg.svd(change[0], compute_uv=False)[8:] < 1e-5).all()


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"lora_targets": ("q", "head")},
      "config.policy.lora_targets: found 'head', expected names of q, k, v, o, gate",
    ),
    ({"lora_targets": ()}, "config.policy.lora_targets: found none"),
    (
      {"lora_rank": 25},
      "config.policy.lora_rank: found 25, expected 1 to 24, the smaller side of the matrix 'k'",
    ),
    (
      {"lora_rank": 50, "lora_targets": ("up",)},
      "config.policy.lora_rank: found 50, expected 1 to 48.*matrix 'up'",
    ),
  ],
)
def test_adapters_that_cannot_be_name_their_key(changes, message):
  policy = v05_qwen3_tiny.get_config().policy
  policy.update(changes)
  with pytest.raises(ValueError, match=message):
    models.load(policy)


@pytest.mark.parametrize(
  "key, value",
  [
    ("lora_targets", ("q", "w")),
    ("lora_targets", ("q", "q")),
    ("lora_targets", ()),
    ("lora_rank", -1),
    ("lora_alpha", 0.0),
  ],
)
def test_the_config_names_such_keys_before_anything_is_loaded(key, value):
  c = v05_qwen3_tiny.get_config()
  c.policy[key] = value
  with pytest.raises(ValueError, match=f"policy.{key}: found .*, expected (at least|above)"):
    configuration.validate(c)
  assert configuration.RULES["policy.lora_targets"].holds(lora.TARGETS)
