"""A model family is one file: here one outside of the package, whose names are all its own."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.test_train import small
from v05_jax import models
from v05_jax.configs import grpo
from v05_jax.models import decoder, families, files, hf, presets
from v05_jax.models import tokenizer as tokenizers
from v05_jax.run import metrics
from v05_jax.run.export import export
from v05_jax.train import train

pytestmark = pytest.mark.usefixtures("few_devices")

FILE = """
from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families import base

KEYS = {"words": "vocab_size", "dim": "hidden_size", "depth": "num_layers", "heads": "num_heads",
        "shared_heads": "num_kv_heads", "head": "head_dim", "inner": "intermediate_size"}
DEFAULTS = {"eps": ("rms_norm_eps", 1e-5), "tied": ("tie_embeddings", True)}
NAMES = {
  "tok.table": "embedding",
  "out.table": "head",
  "out.norm": "norm/scale",
  "blocks.{i}.a.norm": "layers/attention_norm/scale",
  "blocks.{i}.a.q": "layers/q/kernel",
  "blocks.{i}.a.k": "layers/k/kernel",
  "blocks.{i}.a.v": "layers/v/kernel",
  "blocks.{i}.a.q_scale": "layers/q_norm/scale",
  "blocks.{i}.a.k_scale": "layers/k_norm/scale",
  "blocks.{i}.a.o": "layers/o/kernel",
  "blocks.{i}.b.norm": "layers/mlp_norm/scale",
  "blocks.{i}.b.gate": "layers/gate/kernel",
  "blocks.{i}.b.up": "layers/up/kernel",
  "blocks.{i}.b.down": "layers/down/kernel",
}
PRESETS = {"toy-1k": ModelConfig(32, 8, 1, 2, 1, 4, 8)}


def read(found, where):
  return base.shape(found, where, KEYS, DEFAULTS)


def write(config):
  ours = {key: field for key, (field, _) in DEFAULTS.items()} | KEYS
  return {"architectures": ["ToyLM"], "model_type": "toy", "rope_theta": config.rope_theta} | {
    key: getattr(config, field) for key, field in ours.items()
  }


def family():
  return base.Family(("ToyLM",), read, write, NAMES, PRESETS)


def nameless():
  return family()._replace(names={k: v for k, v in NAMES.items() if v != "layers/up/kernel"})


def other():
  return "no family"


def broken():
  raise KeyError("dim")
"""
OWN = "toy_family:family"
SHAPE = decoder.ModelConfig(64, 16, 2, 4, 2, 8, 32, rope_theta=5e3, max_positions=40960)


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """The folder with the user's file, which is on sys.path as the current directory is."""
  (tmp_path / "toy_family.py").write_text(FILE)
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  sys.modules.pop("toy_family", None)


def drawn(shape, seed=0):
  return jax.device_get(jax.jit(decoder.init, static_argnums=0)(shape, jax.random.key(seed)))


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("tied", [True, False])
def test_a_family_of_the_users_own_saves_and_loads(toy, tied):
  shape = dataclasses.replace(SHAPE, tie_embeddings=tied, family=OWN)
  params = drawn(shape)
  hf.save(toy / "model", shape, params)
  stored = load_file(toy / "model" / files.WEIGHTS)
  assert {"tok.table", "blocks.1.a.q", "blocks.0.b.norm", "out.norm"} <= stored.keys()
  assert ("out.table" in stored) != tied and len(stored) == 2 + 2 * 11 + (not tied)
  np.testing.assert_array_equal(stored["blocks.1.a.k"], params["layers"]["k"]["kernel"][1].T)
  np.testing.assert_array_equal(stored["tok.table"], params["embedding"])
  written = json.loads((toy / "model" / "config.json").read_text())
  assert (written["model_type"], written["depth"], written["dtype"]) == ("toy", 2, "float32")
  found = hf.load(toy / "model", family=OWN)
  assert found[0] == shape
  assert_equal(found[1], params)


def test_config_json_chooses_the_family(toy, monkeypatch):
  shape = dataclasses.replace(SHAPE, family=OWN)
  hf.save(toy / "model", shape, drawn(shape))
  with pytest.raises(ValueError) as error:
    hf.load(toy / "model")
  for part in (
    "config.json: architectures: found ['ToyLM']",
    "supported: Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3",
    "config.policy.family",
    "module:function",
  ):
    assert part in str(error.value)
  # the same file in the package's folder needs no name
  monkeypatch.setattr(families, "__path__", [*families.__path__, str(toy)])
  try:
    assert families.known() == ["gemma3", "llama", "mistral", "qwen2", "qwen3", "toy_family"]
    config, params = hf.load(toy / "model")
    assert config == dataclasses.replace(SHAPE, family="toy_family")
    assert_equal(params, drawn(shape))
    assert models.shape(str(toy / "model"), "") == config
  finally:
    sys.modules.pop("v05_jax.models.families.toy_family", None)


def test_a_training_step_with_a_family_of_the_users_own(toy):
  """From the warm start under other names, to an export under these names."""
  shape, params = hf.load(models.BUILTIN)
  tokenizer = tokenizers.load(models.BUILTIN)
  hf.save(toy / "model", dataclasses.replace(shape, family=OWN), params, tokenizer)
  c = small(grpo.get_config(), num_steps=1, **{"eval.period": 0, "checkpoint.period": 1})
  c.policy.update({"path": str(toy / "model"), "family": OWN})
  state = train(c, str(toy / "run"))
  assert int(state.step) == 1 and metrics.read(toy / "run")[-1]["grad/norm"] > 0
  export(c, str(toy / "run"), str(toy / "out"))
  learned = hf.load(toy / "out", family=OWN)[1]
  assert_equal(learned, jax.device_get(state.params))
  change = np.abs(learned["layers"]["q"]["kernel"] - params["layers"]["q"]["kernel"])
  assert 0 < change.max() < 0.1  # of the warm start, and not of random weights


def test_presets_of_a_family(toy):
  c = small(grpo.get_config())
  c.policy.update({"preset": "toy-1k", "family": OWN})
  assert models.load(c.policy).config.family == OWN
  assert models.shape("", "toy-1k", OWN) == dataclasses.replace(
    presets.known(OWN)["toy-1k"], family=OWN
  )
  assert models.shape("", "tiny", OWN).family == OWN
  with pytest.raises(ValueError, match="preset: found 'toy-1k'"):
    models.shape("", "toy-1k")


@pytest.mark.parametrize(
  "name, parts",
  [
    (
      "qwen4",
      [
        "'qwen4'",
        "expected one of gemma3, llama, mistral, qwen2, qwen3",
        "did you mean qwen3",
        "module:function",
      ],
    ),
    ("nowhere_at_all:family", ["expected module:function", "ModuleNotFoundError"]),
    ("toy_family:absent", ["expected module:function", "AttributeError", "absent"]),
    ("toy_family:broken", ["could not be called", "KeyError"]),
    ("toy_family:other", ["returned str, expected a Family"]),
  ],
)
def test_a_family_that_cannot_be_found(toy, name, parts):
  c = small(grpo.get_config())
  c.policy.family = name
  with pytest.raises(ValueError) as error:
    models.load(c.policy)
  for part in ("config.policy.family", *parts):
    assert part in str(error.value)


def test_what_does_not_fit_the_family_is_named(toy):
  shape = dataclasses.replace(SHAPE, family=OWN)
  hf.save(toy / "model", shape, drawn(shape))
  with pytest.raises(
    ValueError, match=r"'toy_family:nameless' has no name for .* 'layers/up/kernel'"
  ):
    hf.load(toy / "model", family="toy_family:nameless")
  with pytest.raises(
    ValueError, match=r"config\.json: vocab_size: found None, expected an integer"
  ):
    hf.load(toy / "model", family="qwen3")
  file = toy / "model" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"depth": 3}))
  with pytest.raises(ValueError, match=r"blocks\.2\.a\.norm: found in no file, expected \[16\]"):
    hf.load(toy / "model", family=OWN)
