"""Model folders that are wrong: every one is refused as it is loaded, with file and key or
tensor."""

import json
from pathlib import Path
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from v05_jax import data, models
from v05_jax.configs import default
from v05_jax.models import files

MODEL = Path("tests/data/math/model")
NAN, INFINITY = float("nan"), float("inf")
CONFIG, ENDS = "config.json", "generation_config.json"
TOKENIZER, WEIGHTS = "tokenizer.json", files.WEIGHTS
EMBEDDING = "model.embed_tokens.weight"

# (file, key, what is said of it, values)
KEYS = [
  (
    CONFIG,
    "architectures",
    "architectures: found",
    [5, "Qwen3ForCausalLM", {}, [5], [["x"]], True],
  ),
  (CONFIG, "architectures", "architectures: found .*supported", [None, [], ["NoSuchModel"]]),
  (CONFIG, "vocab_size", "found", [None, 0, -1, "384", 1.5, True, NAN, 10**20, [384]]),
  (CONFIG, "vocab_size", "found token id 383, expected ids below", [383, 1]),
  (CONFIG, "hidden_size", "found", [None, 0, "x", INFINITY, {}, 10**12]),
  (CONFIG, "num_hidden_layers", "found", [None, 0, -2, 2.0, 10**9, 10**30, False]),
  (CONFIG, "num_attention_heads", "found", [None, 0, 3, "4", [4]]),
  (CONFIG, "num_key_value_heads", "found", [None, 0, 3, -2]),
  (CONFIG, "intermediate_size", "found", [None, 0, 10**20, "64"]),
  (CONFIG, "head_dim", "found", [0, 7, "8", True, 8.0]),
  (CONFIG, "rms_norm_eps", "found", [0.0, -1e-6, NAN, INFINITY, "1e-6", True]),
  (CONFIG, "rope_parameters", "rope_", [5, "default", {"rope_type": "yarn", "rope_theta": 1e4}]),
  (CONFIG, "rope_parameters", "rope_", [{"rope_theta": x} for x in ("x", None, NAN, -1.0, True)]),
  (
    CONFIG,
    "layer_types",
    "layer_types: found",
    [5, "full", [[1]], ["sliding_attention"], {"a": 1}],
  ),
  (CONFIG, "tie_word_embeddings", "tie_word_embeddings: found", ["true", 1, []]),
  (CONFIG, "max_position_embeddings", "found", ["512", 0, -1, 1.5]),
  (CONFIG, "hidden_act", "hidden_act: found", ["gelu", 3, {}]),
  (CONFIG, "quantization_config", "quantization_config: found", [{"bits": 4}, "int8"]),
  (CONFIG, "eos_token_id", "eos_token_id: found", ["2", 10**9, -1, True, 2.0, {}, [2, "x"], 384]),
  (ENDS, "eos_token_id", "eos_token_id: found", ["2", 10**9, -1, False, 0.5, {"a": 2}, [None]]),
]
TEXTS = [
  (file, text, words)
  for file in (CONFIG, ENDS)
  for text, words in [
    (b"", "cannot be read as JSON"),
    (b"{", "cannot be read as JSON"),
    (b'{"a": 1,}', "cannot be read as JSON"),
    (b"\xff\xfe{}", "cannot be read as JSON"),
    (b'{"architectures": "\xe9"}', "cannot be read as JSON"),
    (b"[" * 100_000, "cannot be read as JSON"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "cannot be read as JSON"),
    (b"[1]", "found list, expected a JSON object"),
    (b"null", "found NoneType, expected a JSON object"),
  ]
]
TEXTS += [
  (file, text, "the tokenizer cannot be read")
  for file in (TOKENIZER, "tokenizer_config.json")
  for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]")
]
TEXTS += [(TOKENIZER, b"{}", "the tokenizer cannot be read")]
TEXTS += [
  (WEIGHTS, text, "found a damaged file")
  for text in (b"", b"1234567", b"\0" * 100, b"\xff" * 100, b"<html>not found</html>" * 9)
]


def said(key: str) -> str:
  """What an error calls a key of config.json."""
  return {
    "num_hidden_layers": "num_(hidden_)?layers",
    "num_attention_heads": "num_(attention_)?heads",
    "num_key_value_heads": "num_(key_value|kv)_heads|num_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_position",
  }.get(key, key)


@pytest.fixture
def model(tmp_path):
  return Path(shutil.copytree(MODEL, tmp_path / "model"))


def load(path):
  keys = default.get_config().policy
  keys.path = str(path)
  return models.load(keys)


def some(cases, every):
  """All cases, of which `make test` runs one of `every`, and `make test-long` the others too."""
  marks = lambda i: [pytest.mark.long] if i % every else []
  return [pytest.param(*case, marks=marks(i)) for i, case in enumerate(cases)]


CASES = [(file, key, value, words) for file, key, words, values in KEYS for value in values]


@pytest.mark.parametrize("file, key, value, words", some(CASES, 3), ids=lambda x: str(x)[:24])
def test_a_bad_key_is_named(model, file, key, value, words):
  path = model / file
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=words) as error:
    load(model)
  assert str(model) in str(error.value) and len(str(error.value)) < 3000
  if words == "found":
    assert str(path) in str(error.value) and re.search(said(key), str(error.value)), error.value


@pytest.mark.parametrize("file, text, words", some(TEXTS, 4), ids=lambda x: str(x)[:24])
def test_a_file_that_is_none_is_named(model, file, text, words):
  (model / file).write_bytes(text)
  with pytest.raises(ValueError, match=words) as error:
    load(model)
  assert str(model if "tokenizer" in file else model / file) in str(error.value)


@pytest.mark.parametrize(
  "name, words",
  [
    (CONFIG, r"config\.json: found no such file"),
    (WEIGHTS, "found no weights"),
    (TOKENIZER, "tokenizer"),
  ],
)
def test_a_missing_file_is_named(model, name, words):
  (model / name).unlink()
  with pytest.raises(ValueError, match=words) as error:
    load(model)
  assert str(model) in str(error.value)


TENSORS = [
  (lambda t: t.pop(EMBEDDING), f"{EMBEDDING}: found in no file"),
  (lambda t: t.clear(), "found in no file"),
  (lambda t: t.update({EMBEDDING: t[EMBEDDING][:-1]}), rf"{EMBEDDING}: found \[383, 32\]"),
  (lambda t: t.update({EMBEDDING: t[EMBEDDING].T.copy()}), rf"{EMBEDDING}: found \[32, 384\]"),
  (lambda t: t.update({EMBEDDING: t[EMBEDDING].ravel()}), rf"{EMBEDDING}: found \[12288\]"),
  (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.float64)}), "found type F64"),
  (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.int32)}), "found type I32"),
  (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(ml_dtypes.float8_e4m3fn)}), "found type F8"),
  (lambda t: t.update({"more": np.zeros(3, np.float32)}), r"more: found \[3\], expected no such"),
]


@pytest.mark.parametrize(
  "change, words", some(TENSORS, 3), ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_bad_tensor_is_named(model, change, words):
  tensors = load_file(model / WEIGHTS)
  change(tensors)
  save_file(tensors, model / WEIGHTS)
  with pytest.raises(ValueError, match=words) as error:
    load(model)
  assert str(model) in str(error.value)


@pytest.mark.parametrize("text", ["{% for %}", "{{ messages[0].content", "{{ nothing() }}", ""])
def test_a_bad_chat_template_is_named_with_the_first_row(model, tmp_path, text):
  (model / "chat_template.jinja").write_text(text or "nothing of the messages")
  config = default.get_config().data
  config.path = str(tmp_path / "rows.jsonl")
  (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1", "answer": "2"}')
  with pytest.raises(ValueError, match=r"rows\.jsonl:1: .*the chat template") as error:
    data.load(config, load(model).tokenizer, 64)
  assert "drops" in str(error.value) or str(model) in str(error.value)


def test_a_good_folder_is_taken(model):
  assert load(model).stop == (2,)
  assert load(model).config.unused_ids == ()


def test_there_are_many_cases():
  assert len(CASES) + len(TEXTS) + len(TENSORS) + 7 >= 120
