"""Hugging Face directories: parity with transformers' Qwen3, round trips, and files that are wrong.

The stored models and outputs are made by tests/data/qwen3/make.py; the tests marked as live build
them again where torch is installed.
"""

import dataclasses
from functools import partial
import importlib.util
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import support
from v05_jax import models
from v05_jax.configs import default
from v05_jax.models import decoder, files, hf, presets
from v05_jax.models import tokenizer as tokenizers

DATA = Path(__file__).parent / "data" / "qwen3"
KINDS = ("tied", "untied")
HEAD = "lm_head.weight"


def make():
  """The script that made the stored outputs, as a module."""
  spec = importlib.util.spec_from_file_location("qwen3_make", DATA / "make.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, real):
  """Logits [N, T, V]; `real` int32 [N, T] is 0 on padding."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden = decoder.forward(config, params, tokens, positions, real)
  return decoder.logits(config, params, hidden)


@partial(jax.jit, static_argnums=0)
def outputs(config, params, tokens, real):
  """As make.outputs: logits of all tokens, gradients of the mean next-token NLL of the real
  ones."""

  def loss(params):
    found = logits(config, params, tokens, real)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(found[:, :-1]), tokens[:, 1:, None], -1)[
      ..., 0
    ]
    return -jnp.sum(logprob * real[:, 1:]) / jnp.sum(real[:, 1:]), found

  grads, found = jax.grad(loss, has_aux=True)(params)
  return found, grads


def assert_parity(directory, expected):
  config, params = hf.load(directory)
  real = (np.arange(expected["tokens"].shape[1]) < np.array(make().LENGTH)[:, None]).astype(
    np.int32
  )
  found, grads = jax.device_get(outputs(config, params, expected["tokens"], real))
  at = real > 0
  np.testing.assert_allclose(found[at], expected["logits"][at], rtol=0, atol=1e-4)
  names = set()
  for tensor in hf.tensors(config):
    name, found = tensor.name, hf.stored_tensor(grads, tensor, np.float32)
    np.testing.assert_allclose(found, expected[f"grad.{name}"], rtol=0, atol=1e-4, err_msg=name)
    assert np.abs(expected[f"grad.{name}"]).max() > 1e-2, name  # the tolerance means something
    names.add(f"grad.{name}")
  assert names == {name for name in expected if name.startswith("grad.")}


@pytest.fixture
def stored(tmp_path):
  """A copy of the stored tied model, to be damaged."""
  return Path(shutil.copytree(DATA / "tied", tmp_path / "model"))


def edit(file, **changes):
  """Sets keys of a JSON file; None removes one."""
  found = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers_stored(kind):
  assert_parity(DATA / kind, load_file(DATA / kind / "outputs.safetensors"))


@pytest.mark.parametrize("change", [{"rope_theta": 1e6}, {"rms_norm_eps": 1e-6}])
def test_parity_would_see_a_wrong_constant(change):
  expected = load_file(DATA / "tied" / "outputs.safetensors")
  config, params = hf.load(DATA / "tied")
  assert (config.rope_theta, config.rms_norm_eps) == (5e6, 1e-3)
  config = dataclasses.replace(config, **change)
  found = logits(config, params, expected["tokens"], np.ones_like(expected["tokens"]))
  assert np.abs(found[0] - expected["logits"][0]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers_live(kind, tmp_path):
  pytest.importorskip("torch")
  policy, tokens = make().model(kind == "tied", seed=1), make().tokens(seed=1)
  policy.save_pretrained(tmp_path, max_shard_size="10KB")
  assert (tmp_path / files.INDEX).exists()
  assert_parity(tmp_path, make().outputs(policy, tokens))


@pytest.mark.parametrize(
  "kind, dtype, shard_bytes",
  [("tied", "float32", 1 << 30), ("untied", "float32", 10_000), ("tied", "bfloat16", 1 << 30)],
)
def test_what_is_written_here_opens_in_transformers(
  kind, dtype, shard_bytes, tmp_path, monkeypatch
):
  torch = pytest.importorskip("torch")
  import transformers

  config, params = hf.load(DATA / kind)
  params = jax.tree.map(lambda x: (1.1 * x).astype(ml_dtypes.bfloat16).astype(np.float32), params)
  tokenizer = support.character_tokenizer("0123456789", 64)
  monkeypatch.setattr(hf, "SHARD_BYTES", shard_bytes)
  hf.save(tmp_path, config, params, tokenizer, dtype)
  policy, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info.values()), info
  assert policy.config.rope_parameters["rope_theta"] == 5e6
  assert policy.generation_config.eos_token_id == policy.config.eos_token_id == 1
  tokens = make().tokens(seed=2)
  with torch.no_grad():
    expected = policy(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  found = logits(config, params, tokens, np.ones_like(tokens))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  assert transformers.AutoTokenizer.from_pretrained(tmp_path)("42")["input_ids"] == [6, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [1 << 30, 10_000])
def test_round_trip(kind, shard_bytes, tmp_path, monkeypatch):
  config, params = hf.load(DATA / kind)
  tokenizer = support.character_tokenizer("0123456789", 64)
  monkeypatch.setattr(hf, "SHARD_BYTES", shard_bytes)
  hf.save(tmp_path, config, jax.device_put(params), tokenizer)
  written = sorted(f.name for f in tmp_path.glob("*.safetensors"))
  assert (written == [files.WEIGHTS]) == (shard_bytes > 1 << 20)
  assert all((tmp_path / f).stat().st_size < shard_bytes + 4096 for f in written)
  assert len({f.stat().st_mode & 0o044 for f in tmp_path.iterdir()}) == 1  # as readable as the rest
  # What transformers 4 does not know: a class, and a list.
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert "extra_special_tokens" not in settings
  found = hf.load(tmp_path)
  assert found[0] == config
  assert_equal(found[1], params)
  assert tokenizers.load(tmp_path).eos_token_id == 1
  if shard_bytes == 10_000:  # a second model in the same place leaves nothing of the first
    monkeypatch.undo()
    hf.save(tmp_path, config, params, tokenizer)
    assert [f.name for f in tmp_path.glob("model*")] == [files.WEIGHTS]
    assert_equal(hf.load(tmp_path)[1], params)


@pytest.mark.parametrize("dtype, digits", [("bfloat16", 8), ("float16", 11)])
def test_half_precision_files_are_widened_exactly(dtype, digits, stored):
  _, params = hf.load(stored)
  tensors = load_file(stored / files.WEIGHTS)
  save_file({k: v.astype(dtype) for k, v in tensors.items()}, stored / files.WEIGHTS)
  _, found = hf.load(stored)
  assert_equal(found, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=2.0**-digits, atol=1e-6), found, params)


def test_save_stores_bfloat16(tmp_path):
  config, params = hf.load(DATA / "tied")
  hf.save(tmp_path, config, params, dtype="bfloat16")
  assert load_file(tmp_path / files.WEIGHTS)["model.norm.weight"].dtype == ml_dtypes.bfloat16
  assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_stored_head_beside_tied_embeddings_is_accepted(stored):
  tensors = load_file(stored / files.WEIGHTS)
  head = tensors["model.embed_tokens.weight"]
  save_file(tensors | {HEAD: head}, stored / files.WEIGHTS)
  assert_equal(hf.load(stored), hf.load(DATA / "tied"))
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(x.dtype), hf.load(stored)[1])
  found = hf.load(stored, matrices="bfloat16")[1]
  assert_equal(found["embedding"], half["embedding"])
  assert (
    found["embedding"].dtype == ml_dtypes.bfloat16 and found["norm"]["scale"].dtype == np.float32
  )
  other = head.copy()
  other[7, 3] += 0.5
  for wrong in (other, head[:-1], head.astype(np.int8)):
    save_file(tensors | {HEAD: wrong}, stored / files.WEIGHTS)
    message = (
      rf"{files.WEIGHTS}: {HEAD}: found another matrix than .*tie_word_embeddings is true "
      rf"in .*config\.json"
    )
    with pytest.raises(ValueError, match=message):
      hf.load(stored)
  edit(stored / "config.json", tie_word_embeddings=False)
  save_file(tensors | {HEAD: other}, stored / files.WEIGHTS)
  np.testing.assert_array_equal(hf.load(stored)[1]["head"], other)


@pytest.mark.parametrize("size", ["0.6b", "1.7b", "4b", "8b"])
def test_every_tensor_of_the_published_models_has_its_place(size):
  """The names and shapes are those of transformers' own models: tests/data/qwen3_names.py."""
  published = json.loads((DATA.parent / "qwen3_names.json").read_text())[size]
  expected = {
    name.format(i=i): tuple(shape)
    for name, shape in published["tensors"].items()
    for i in range(published["layers"])
  }
  config = presets.PRESETS[f"qwen3-{size}"]
  assert hf.stored_shapes(config) == expected
  assert presets.num_params(config) == sum(np.prod(shape) for shape in expected.values())


def test_the_published_names_are_those_that_transformers_has_now():
  pytest.importorskip("torch")
  spec = importlib.util.spec_from_file_location("qwen3_names", DATA.parent / "qwen3_names.py")
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  stored = json.loads((DATA.parent / "qwen3_names.json").read_text())
  assert script.folded(script.tensors(*script.PUBLISHED["8b"]), 36) == stored["8b"]
  assert stored.keys() == script.PUBLISHED.keys()


@pytest.mark.parametrize(
  "changes, theta",
  [
    ({"rope_parameters": None, "rope_theta": 5e5}, 5e5),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e6}, "rope_theta": 1e4}, 7e6),
    ({"rope_parameters": None, "rope_scaling": None, "rope_theta": 1000000}, 1e6),
    ({"rope_parameters": None, "rope_scaling": {"rope_theta": 3e6}}, 3e6),
  ],
)
def test_rope_theta_of_old_and_new_transformers(changes, theta, stored):
  edit(stored / "config.json", **changes)
  assert hf.read_config(stored).rope_theta == theta


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"architectures": ["GPT2LMHeadModel"]},
      r"found \['GPT2LMHeadModel'\].*supported: .*Qwen3ForCausalLM",
    ),
    ({"architectures": None}, r"architectures: found \[\]"),
    (
      {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"},
      r"found \['Qwen3MoeForCausalLM'\] \(model_type 'qwen3_moe'\), .*Qwen3ForCausalLM;",
    ),
    ({"attention_bias": True}, "attention_bias: found True, supported: False"),
    ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
    ({"use_sliding_window": True}, "use_sliding_window: found True"),
    ({"layer_types": ["sliding_attention"]}, "layer_types: found .*sliding_attention"),
    ({"quantization_config": {"bits": 4}}, "quantization_config: found"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "found rope type 'yarn'"),
    (
      {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None},
      "rope type 'linear'",
    ),
    ({"rope_parameters": None}, "rope_theta: found None, expected a number"),
    ({"hidden_size": None}, "hidden_size: found None, expected an integer"),
    ({"hidden_size": "16"}, "hidden_size: found '16', expected an integer"),
    ({"num_key_value_heads": 3}, "num_heads: found 4, expected a multiple of num_kv_heads = 3"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps: found 'small', expected float"),
  ],
)
def test_a_config_that_is_not_supported_names_file_and_key(changes, message, stored):
  edit(stored / "config.json", **changes)
  with pytest.raises(ValueError, match=message) as error:
    hf.load(stored)
  assert str(stored / "config.json") in str(error.value)


def test_unreadable_json(stored, tmp_path):
  (stored / "config.json").write_text('{"architectures": [')
  with pytest.raises(ValueError, match=r"config\.json: cannot be read as JSON"):
    hf.load(stored)
  with pytest.raises(
    ValueError, match=r"config\.json: found no such file, expected .*model directory"
  ):
    hf.load(tmp_path)


def test_what_follows_from_the_config_may_stand_in_the_weights(stored):
  """As in old exports of Llama."""
  tensors = load_file(stored / files.WEIGHTS)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
  save_file(tensors, stored / files.WEIGHTS)
  hf.load(stored)


NORM = "model.layers.1.self_attn.q_norm.weight"


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.pop(NORM), rf"model: {NORM}: found in no file, expected \[8\]"),
    (
      lambda t: t.update(extra=np.ones(3, np.float32)),
      r"extra: found \[3\], expected no such tensor",
    ),
    (lambda t: t.update({NORM: np.ones(9, np.float32)}), rf"{NORM}: found \[9\], expected \[8\]"),
    (
      lambda t: t.update({NORM: np.ones(8, np.int8)}),
      rf"{NORM}: found type I8, expected one of F32",
    ),
    (lambda t: [t.pop(k) for k in list(t) if ".1." in k], r"and 3 more$"),
  ],
)
def test_every_tensor_is_accounted_for(change, message, stored):
  tensors = load_file(stored / files.WEIGHTS)
  change(tensors)
  save_file(tensors, stored / files.WEIGHTS)
  with pytest.raises(ValueError, match=message) as error:
    hf.load(stored)
  assert str(stored) in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(stored, dtype):
  file, most = stored / files.WEIGHTS, ml_dtypes.finfo(dtype)
  for value in (most.max, most.min, most.smallest_subnormal, -0.0):
    files.check_finite(file, "x", np.full((3, 5), value, dtype))
  for value in (np.nan, -np.nan, np.inf, -np.inf):
    for x in (np.zeros((), dtype), np.zeros((300, 1000), dtype)):
      x.flat[-1] = value
      with pytest.raises(ValueError, match=rf"{file}: x: found 1 of {x.size} values that are not"):
        files.check_finite(file, "x", x)
  tensors = {name: x.astype(dtype) for name, x in load_file(file).items()}
  name = "model.layers.1.mlp.down_proj.weight"
  tensors[name].flat[7:9] = np.nan
  save_file(tensors, file)
  with pytest.raises(ValueError) as error:
    hf.load(stored)
  found = f"found 2 of {tensors[name].size} values that are not finite, expected none"
  assert str(error.value) == f"{file}: {name}: {found}"


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_whose_squares_are_infinite_are_refused_by_name(stored, dtype):
  file, name = stored / files.WEIGHTS, "model.layers.1.mlp.down_proj.weight"
  tensors = {name: x.astype(dtype) for name, x in load_file(file).items()}
  tensors[name].flat[7] = -1e18
  save_file(tensors, file)
  hf.load(stored)
  tensors[name].flat[7:9] = 1e30, -(2.0**64)
  save_file(tensors, file)
  with pytest.raises(
    ValueError, match=rf"{file}: {name}: found 2 of \d+ values of 1.84467e\+19 or"
  ):
    hf.load(stored)


def test_a_full_disk_is_named_and_leaves_nothing_torn(small_disk, tmp_path):
  config, params = hf.load(DATA / "tied")
  tokenizer = support.character_tokenizer("0123456789", 64)
  for kilobytes in (4, 16, 40, 60, 80):  # a little more fits each time
    disk = small_disk(tmp_path / str(kilobytes), kilobytes)
    try:
      hf.save(disk, config, params, tokenizer)
    except OSError as error:
      assert str(error).startswith(f"{disk}/") and "No space left on device" in str(error)
      assert "cannot be written" in str(error) and str(error).endswith(" MB are free")
      assert not (disk / "config.json").exists()
      assert not [path for path in disk.iterdir() if path.name.endswith(".tmp")]
    else:
      assert_equal(hf.load(disk)[1], params)
      assert kilobytes > 40
      return
  pytest.fail("no disk was large enough")


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000, -1])
def test_a_truncated_file_is_named(keep, stored):
  file = stored / files.WEIGHTS
  whole = file.read_bytes()
  file.write_bytes(whole[:keep])
  with pytest.raises(ValueError, match=r"model\.safetensors: found a damaged file of \d+ bytes"):
    hf.load(stored)
  file.write_bytes(b"\xff" * len(whole))
  with pytest.raises(ValueError, match="found a damaged file"):
    hf.load(stored)


def test_shards_and_index_that_do_not_fit(stored, monkeypatch):
  config, params = hf.load(stored)
  monkeypatch.setattr(hf, "SHARD_BYTES", 10_000)
  hf.save(stored, config, params)
  first, *_, last = sorted(stored.glob("model-*"))
  shutil.copy(first, last)
  with pytest.raises(ValueError, match=rf"{last.name}: \S+: found again, expected in {first.name}"):
    hf.load(stored)
  last.unlink()
  with pytest.raises(ValueError, match=f"index.json: found the shard '{last.name}'"):
    hf.load(stored)
  edit(stored / files.INDEX, weight_map=[])
  with pytest.raises(ValueError, match="weight_map: found list"):
    hf.load(stored)
  edit(stored / files.INDEX, weight_map={"x": "../other.safetensors"})
  with pytest.raises(ValueError, match="expected it in"):
    hf.load(stored)
  (stored / files.INDEX).unlink()
  with pytest.raises(ValueError, match="found no weights, expected"):
    hf.load(stored)


def test_an_interrupted_save_keeps_the_old_model_or_leaves_none(stored, monkeypatch):
  config, params = hf.load(stored)
  other = jax.tree.map(lambda x: x + 1, params)
  before = sorted(f.name for f in stored.iterdir())
  written = []

  def full_disk(tensors, file, **rest):
    written.append(file)
    Path(file).write_bytes(b"part of it")
    if len(written) > 2:
      raise OSError(28, "No space left on device")

  for shard_bytes in (10_000, 1 << 30):  # the second has the old model's file name
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
      patch.setattr(files, "save_file", full_disk)
      patch.setattr(hf, "SHARD_BYTES", shard_bytes)
      hf.save(stored, config, other)
    assert sorted(f.name for f in stored.iterdir()) == before
    assert_equal(hf.load(stored)[1], params)
  assert len(written) == 4

  with monkeypatch.context() as patch, pytest.raises(OSError, match="interrupted"):

    def interrupted(*_):
      raise OSError("interrupted")

    patch.setattr(files, "write_json", interrupted)
    hf.save(stored, config, other)
  with pytest.raises(ValueError, match=r"config\.json"):
    hf.load(stored)


def test_save_refuses_parameters_of_another_shape(stored):
  config, params = hf.load(stored)
  with pytest.raises(ValueError, match="do not have the shapes"):
    hf.save(stored, dataclasses.replace(config, num_layers=3), params)
  assert_equal(hf.load(stored)[1], params)


def policy_config(**changes):
  return ConfigDict(default.get_config().policy.to_dict() | changes)


def test_load_policy(stored):
  support.character_tokenizer("0123456789", 64).save_pretrained(stored)
  found = models.load(policy_config(path=str(stored), dtype="bfloat16", remat="dots"))
  assert (found.config.dtype, found.config.remat) == ("bfloat16", "dots")
  assert (found.config.backend, found.config.attention) == ("cpu", "plain")
  on_tpu = models.adapt(found.config, policy_config(attention="flash"), "tpu")
  assert (on_tpu.backend, on_tpu.attention) == ("accelerator", "splash")
  assert_equal(found.params, hf.load(stored)[1])
  assert found.tokenizer.eos_token_id == 1
  first, again, other = (
    models.load(policy_config(path=str(stored), preset="tiny"), seed) for seed in (3, 3, 4)
  )
  assert first.config == dataclasses.replace(presets.PRESETS["tiny"], backend="cpu")
  assert_equal(first.params, again.params)
  assert (first.params["embedding"] != other.params["embedding"]).any()
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(first.params))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"dtype": "float16"}, r"config\.policy\.dtype: found 'float16'"),
    ({"preset": "qwen3-5b"}, r"config\.policy\.preset: found 'qwen3-5b'.*qwen3-4b"),
    ({"path": "nowhere"}, r"config\.policy\.path: found 'nowhere'"),
  ],
)
def test_a_policy_that_cannot_be_names_its_key(changes, message):
  with pytest.raises(ValueError, match=message):
    models.load(policy_config(**changes))


def test_a_policy_needs_a_tokenizer_that_fits(stored):
  with pytest.raises(ValueError, match="found no tokenizer"):
    models.load(policy_config(path=str(stored)))
  support.character_tokenizer("0123456789", 65).save_pretrained(stored)
  with pytest.raises(ValueError, match=rf"{stored}: found token id 64, expected ids below .* 64"):
    models.load(policy_config(path=str(stored)))
  support.character_tokenizer("0123456789", 32).save_pretrained(stored)
  with pytest.raises(ValueError, match=rf"{stored}: found 31 as the last token id, expected .* 64"):
    models.load(policy_config(path=str(stored)))
  # random: it is meant
  assert models.load(policy_config(path=str(stored), preset="tiny")).config.vocab_size == 64
