"""Families beside Qwen3: parity with transformers, round trips, what is refused, published sizes.

The stored models and outputs are made by tests/data/families/make.py; the tests marked as live
build them again where torch is installed.
"""

import dataclasses
import filecmp
import json
from pathlib import Path
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
import tokenizers as backends
import transformers

from tests import support
from tests.data.families import make
from tests.data.qwen3.make import outputs, tokens
from tests.test_hf import assert_equal, assert_parity, edit, logits, policy_config
from tests.test_train import small
from v05_jax import models
from v05_jax.configs import grpo
from v05_jax.models import decoder, families, hf, lora, presets, rotary
from v05_jax.models import tokenizer as tokenizers
from v05_jax.models.model_config import Local
from v05_jax.run import metrics
from v05_jax.run.export import export
from v05_jax.train import train

DATA = Path(__file__).parent / "data" / "families"
KINDS = tuple(make.KINDS)


@pytest.fixture
def stored(tmp_path):
  """A function: kind -> a copy of its stored model, to be damaged."""
  return lambda kind: Path(shutil.copytree(DATA / kind, tmp_path / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers_stored(kind):
  assert_parity(DATA / kind, load_file(DATA / kind / "outputs.safetensors"))


@pytest.mark.long
@pytest.mark.parametrize(
  "kind, change",
  [
    ("qwen2", {"rope_theta": 1e4}),
    ("llama", {"rope_scaling": None}),
    ("llama", {"rope_scaling": rotary.Scaling("llama3", 4.0, 2.0, 4.0, 64)}),
    ("mistral", {"rope_scaling": None}),
    ("gemma3", {"rope_scaling": None}),
    ("gemma3", {"activation": "silu"}),
    ("gemma3", {"embedding_scale": 1.0}),
    ("gemma3", {"query_scalar": None}),
    ("gemma3", {"unit_offset": False}),
    ("gemma3", {"local": Local(3, 20.0, (True, False))}),
    ("gemma3", {"local": Local(5, 20.0, (True, False))}),
    ("gemma3", {"local": Local(4, 30.0, (True, False))}),
    ("gemma3", {"local": Local(4, 20.0, (False, True))}),
  ],
)
def test_parity_would_see_a_wrong_feature(kind, change):
  expected = load_file(DATA / kind / "outputs.safetensors")
  config, params = hf.load(DATA / kind)
  config = dataclasses.replace(config, **change)
  found = logits(config, params, expected["tokens"], np.ones_like(expected["tokens"]))
  assert np.abs(found[0] - expected["logits"][0]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers_live(kind, tmp_path):
  pytest.importorskip("torch")
  policy, drawn = make.model(kind, seed=1), tokens(seed=1)
  policy.save_pretrained(tmp_path)
  assert_parity(tmp_path, outputs(policy, drawn))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path):
  """What is read, written and read again is the same model, in the same tensors."""
  config, params = hf.load(DATA / kind)
  hf.save(tmp_path, config, params)
  found = hf.load(tmp_path)
  assert found[0] == config and config.family == kind
  assert_equal(found[1], params)
  before, after = (load_file(folder / "model.safetensors") for folder in (DATA / kind, tmp_path))
  assert before.keys() == after.keys()
  written, original = (
    json.loads((folder / "config.json").read_text()) for folder in (tmp_path, DATA / kind)
  )
  for key in ("architectures", "model_type", "rope_parameters", "tie_word_embeddings", "head_dim"):
    assert written[key] == original.get(key, written[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_here_opens_in_transformers(kind, tmp_path):
  torch = pytest.importorskip("torch")

  config, params = hf.load(DATA / kind)
  params = jax.tree.map(lambda x: (1.1 * x).astype(ml_dtypes.bfloat16).astype(np.float32), params)
  tokenizer = support.character_tokenizer("0123456789", 64)
  hf.save(tmp_path, config, params, tokenizer)
  policy, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info.values()), info
  assert (
    type(policy).__name__
    == json.loads((DATA / kind / "config.json").read_text())["architectures"][0]
  )
  drawn = tokens(seed=2)
  with torch.no_grad():
    expected = policy(input_ids=torch.tensor(drawn, dtype=torch.long)).logits.numpy()
  found = logits(config, params, drawn, np.ones_like(drawn))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def rope(**changes):
  """A rotary embedding of Llama 3 with changes, for transformers 4's config.json."""
  given = make.LLAMA3 | changes
  return {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": given}


REFUSED = [
  ("qwen2", {"use_sliding_window": True}, "use_sliding_window: found True, supported: False"),
  ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types: found .*sliding_attention"),
  ("qwen2", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', supported: 'silu'"),
  ("qwen2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: found 'yes', expected bool"),
  ("qwen2", rope(rope_type="yarn"), "rope_scaling: found rope type 'yarn', supported: 'default'"),
  ("llama", {"attention_bias": True}, "attention_bias: found True, supported: False"),
  ("llama", {"mlp_bias": True}, "mlp_bias: found True, supported: False"),
  ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: found .*supported: None"),
  ("llama", {"num_local_experts": 8}, "num_local_experts: found 8"),
  ("llama", rope(rope_type="yarn"), "rope type 'yarn', supported: 'default', 'linear', 'llama3'"),
  ("llama", rope(rope_type="dynamic"), "rope type 'dynamic'"),
  ("llama", rope(factor="8"), "rope_scaling.factor: found '8', expected a number"),
  ("llama", rope(factor=0), "rope_scaling.factor: found 0, expected a positive number"),
  ("llama", rope(low_freq_factor=None), "rope_scaling.low_freq_factor: found None, expected a num"),
  ("llama", rope(high_freq_factor=1.0), "high_freq_factor: found 1.0, expected more than"),
  ("llama", rope(partial_rotary_factor=0.5), "partial_rotary_factor: found 0.5, supported: 1.0"),
  ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention: found"),
  ("llama", {"rope_parameters": "llama3"}, "rope_parameters: found 'llama3', expected an object"),
  ("llama", {"num_attention_heads": None}, "num_attention_heads: found None, expected an integer"),
  ("llama", {"num_key_value_heads": "2"}, "num_key_value_heads: found '2', expected int"),
  ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: found 30.0, supported"),
  ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: found 50.0, supported"),
  ("gemma3", {"hidden_activation": "silu"}, "hidden_activation: found 'silu', supported: 'gelu_py"),
  ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: found True"),
  ("gemma3", {"attention_bias": True}, "attention_bias: found True"),
  ("gemma3", {"layer_types": ["sliding_attention"]}, "layer_types: found .*expected 2 of full_att"),
  ("gemma3", {"layer_types": ["full_attention", "chunked"]}, "layer_types: found .*chunked"),
  ("gemma3", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern: found 0"),
  ("gemma3", {"sliding_window": "4"}, "sliding_window: found '4', expected a positive int"),
  ("gemma3", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar: found -1, expected a positive"),
  ("gemma3", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters.rope_theta: found 1000000"),
  ("gemma3", {"rope_scaling": {"rope_type": "yarn"}}, "full_attention.*'yarn', supported"),
  (
    "gemma3",
    {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
    "sliding_attention: .*rope type 'linear', supported: 'default'",
  ),
  ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "supported: Gemma3ForCausalLM"),
  ("mistral", {"attention_bias": True}, "attention_bias: found True, supported: False"),
  ("mistral", {"sliding_window": 4096}, "sliding_window: found 4096, supported: None"),
]


@pytest.mark.parametrize("kind, changes, message", REFUSED)
def test_a_variant_that_is_not_implemented_names_file_and_key(kind, changes, message, stored):
  folder = stored(kind)
  edit(folder / "config.json", **changes)
  with pytest.raises(ValueError, match=message) as error:
    hf.load(folder)
  assert str(folder / "config.json") in str(error.value)


def test_a_mistral_without_the_key_has_transformers_window(stored):
  folder = stored("mistral")
  edit(folder / "config.json", sliding_window=None)  # removes it
  with pytest.raises(ValueError, match="sliding_window: found no such key, which means 4096"):
    hf.load(folder)


def test_an_unknown_architecture_lists_what_is_known(stored):
  folder = stored("llama")
  edit(folder / "config.json", architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe")
  with pytest.raises(ValueError, match=r"found \['Qwen2MoeForCausalLM'\] .*'qwen2_moe'") as error:
    hf.load(folder)
  for name in families.known():
    assert families.find(name).architectures[0] in str(error.value)


def test_old_config_files_have_transformers_defaults(stored):
  """As Llama 2's and SmolLM2's: no head_dim, rope_theta at the top level or not there."""
  folder = stored("llama")
  edit(
    folder / "config.json",
    head_dim=None,
    num_key_value_heads=None,
    rope_parameters=None,
    rms_norm_eps=None,
  )
  config = hf.read_config(folder)
  assert (config.head_dim, config.num_kv_heads) == (4, 4)
  assert (config.rope_theta, config.rms_norm_eps, config.rope_scaling) == (1e4, 1e-6, None)
  edit(folder / "config.json", rope_theta=1e5)
  assert hf.read_config(folder).rope_theta == 1e5
  edit(folder / "config.json", **rope(rope_theta=None))
  scaled = hf.read_config(folder)
  assert (
    scaled.rope_theta == 1e4 and scaled.rope_scaling == hf.read_config(DATA / "llama").rope_scaling
  )


def test_old_gemma_files_are_read_as_transformers_4_wrote_them(stored):
  """As google/gemma-3-1b-pt: the pattern as a number, both thetas at the top level."""
  folder = stored("gemma3")
  old = {"rope_theta": 5e3, "rope_local_base_freq": 20, "sliding_window_pattern": 2}
  new = dict.fromkeys(("rope_parameters", "layer_types", "_sliding_window_pattern"))
  edit(folder / "config.json", **old, **new, rope_scaling={"rope_type": "linear", "factor": 2.0})
  assert hf.read_config(folder) == hf.read_config(DATA / "gemma3")
  edit(folder / "config.json", rope_scaling=None, rope_theta=None, rope_local_base_freq=None)
  found = hf.read_config(folder)
  assert (found.rope_theta, found.rope_scaling, found.local.rope_theta) == (1e6, None, 1e4)


def test_a_file_of_another_family_is_refused(stored):
  with pytest.raises(ValueError, match=r"q_proj.bias: found \[16\], expected no such tensor"):
    hf.load(DATA / "qwen2", family="llama")
  folder = stored("mistral")
  edit(folder / "config.json", rope_parameters={"rope_theta": 1e4})
  with pytest.raises(ValueError, match=r"q_proj.bias: found in no file, expected \[16\]"):
    hf.load(folder, family="qwen2")


@pytest.mark.parametrize("family", [name for name in families.known() if name != "qwen3"])
def test_a_shape_that_its_family_cannot_write_is_refused(family, tmp_path):
  config = dataclasses.replace(presets.PRESETS["tiny"], family=family)
  with pytest.raises(ValueError, match=f"config.policy.family: '{family}' has "):
    families.check(config)
  with pytest.raises(ValueError, match=f"config.policy.family: '{family}' has "):
    models.load(policy_config(preset="tiny", family=family))
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), decoder.shapes(config))
  with pytest.raises(ValueError, match=f"config.policy.family: '{family}' has "):
    hf.save(tmp_path, config, params)
  assert not list(tmp_path.glob("*.safetensors"))


def small_model(kind, folder):
  """A directory with a random model of a kind's shape, a byte-level tokenizer with a chat template,
  and a generation_config.json with keys that are unknown here."""
  alphabet = ["<|endoftext|>", *sorted(backends.pre_tokenizers.ByteLevel.alphabet())]
  backend = backends.Tokenizer(
    backends.models.BPE({token: i for i, token in enumerate(alphabet)}, [])
  )
  backend.pre_tokenizer = backends.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = backends.decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token=alphabet[0], pad_token=alphabet[0]
  )
  tokenizer.chat_template = TEMPLATE
  config = dataclasses.replace(hf.read_config(DATA / kind), vocab_size=len(alphabet))
  params = jax.device_get(jax.jit(decoder.init, static_argnums=0)(config, jax.random.key(0)))
  hf.save(folder, config, params, tokenizer)
  edit(folder / "generation_config.json", **GENERATION)
  return config


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
GENERATION = {"temperature": 0.6, "top_k": 20, "bos_token_id": 1, "a_key_of_later": [1, 2]}


def assert_kept(folder):
  """Tokenizer, chat template and generation settings are those of `small_model`."""
  written = json.loads((folder / "generation_config.json").read_text())
  assert GENERATION.items() <= written.items() and written["eos_token_id"] == 0
  tokenizer = tokenizers.load(folder)
  assert tokenizer.chat_template == TEMPLATE
  assert tokenizer.decode(tokenizer("1+2=")["input_ids"]) == "1+2="


def test_what_is_written_keeps_all_that_is_not_a_weight(tmp_path):
  small_model("qwen2", tmp_path / "model")
  policy = models.load(policy_config(path=str(tmp_path / "model")))
  hf.save(tmp_path / "out", policy.config, policy.params, policy.tokenizer, stop=policy.stop)
  edit(tmp_path / "model" / "generation_config.json", eos_token_id=[0, 9], _from_model_config=True)
  hf.keep(tmp_path / "out", tmp_path / "model")
  assert_kept(tmp_path / "out")  # what ends a response is that of `save`
  assert "_from_model_config" not in (tmp_path / "out" / "generation_config.json").read_text()
  edit(tmp_path / "model" / "tokenizer_config.json", a_key_of_later=1)
  kept = {"bos_token_id": 5, "dual_chunk_attention_config": {"chunk_size": 4}}
  edit(tmp_path / "model" / "config.json", **kept, torch_dtype="bfloat16", rms_norm_eps=0.5)
  hf.keep(tmp_path / "out", tmp_path / "model")
  for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    assert filecmp.cmp(tmp_path / "model" / name, tmp_path / "out" / name, shallow=False)
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  assert kept.items() <= written.items() and written["dtype"] == "float32"
  assert "torch_dtype" not in written and written["rms_norm_eps"] != 0.5
  models.load(policy_config(path=str(tmp_path / "out")))
  (tmp_path / "model" / "generation_config.json").unlink()
  hf.keep(tmp_path / "out", tmp_path / "model")
  assert_kept(tmp_path / "out")


@pytest.mark.long
@pytest.mark.usefixtures("few_devices")
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_training_and_its_export(kind, rank, tmp_path):
  """On two devices, with or without adapters: what is sampled is what is trained, and the export
  has the trained model, tokenizer, chat template and generation settings."""
  shape = small_model(kind, tmp_path / "model")
  c = small(grpo.get_config(), num_steps=1, **{"eval.period": 0, "checkpoint.period": 1})
  c.rollouts_per_step, c.loss.minibatches = 16, 1
  c.sampler.update({"slot_sizes": 1, "column_sizes": 1})
  c.policy.update({"path": str(tmp_path / "model"), "lora_rank": rank, "lora_alpha": 8.0})
  c.loss.entropy_coef = 0.1  # a random model solves nothing
  c.loss.old_logprob = "sampler"
  state = train(c, str(tmp_path / "run"))
  measured = metrics.read(tmp_path / "run")[-1]
  assert measured["loss/logprob_gap"] < 1e-4 and measured["grad/norm"] > 0
  trained, frozen = lora.split(jax.device_get(state.params))
  before = hf.load(tmp_path / "model")[1]
  if rank:
    assert_equal(frozen, before)
  else:
    changed = jax.tree.map(lambda x, y: (x != y).any(), trained, before)
    assert all(jax.tree.leaves(changed)), changed

  export(c, str(tmp_path / "run"), str(tmp_path / "out"))
  config, params = hf.load(tmp_path / "out")
  assert config == shape
  adapted = models.load(c.policy).config
  assert_equal(params, hf.merged(adapted, jax.device_get(state.params))[1] if rank else trained)
  assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists() == bool(rank)
  assert_kept(tmp_path / "out")


# Counted by transformers' own models on PyTorch's meta device.
PUBLISHED = {
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "qwen2.5-3b": 3_085_938_688,
  "qwen2.5-7b": 7_615_616_512,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "llama-3.1-8b": 8_030_261_248,
  "smollm2-135m": 134_515_008,
  "smollm2-360m": 361_821_120,
  "smollm2-1.7b": 1_711_376_384,
  "mistral-7b-v0.3": 7_248_023_552,
  "gemma-3-270m": 268_098_176,
  "gemma-3-1b": 999_885_952,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_parameters(name):
  assert presets.num_params(presets.PRESETS[name]) == PUBLISHED[name]
  families.check(presets.PRESETS[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_models_is_transformers(name, tmp_path):
  """As transformers builds the model from the config.json that is written here."""
  torch = pytest.importorskip("torch")

  shape = presets.PRESETS[name]
  (tmp_path / "config.json").write_text(json.dumps(families.find(shape.family).write(shape)))
  with torch.device("meta"):
    policy = transformers.AutoModelForCausalLM.from_config(
      transformers.AutoConfig.from_pretrained(tmp_path)
    )
  policy.tie_weights()
  expected = {name: tuple(x.shape) for name, x in policy.named_parameters()}
  assert hf.stored_shapes(shape) == expected
  assert sum(np.prod(x) for x in expected.values()) == PUBLISHED[name]
