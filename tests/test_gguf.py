"""GGUF files as Hugging Face directories: files that the package gguf writes here come back as the
model and the tokenizer that they were made of, and files that are wrong name what is."""

import dataclasses
import itertools
import os
import sys

import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from tests import support
from v05_jax.models import decoder, hf
from v05_jax.models import tokenizer as tokenizers
from v05_jax.models.decoder import ModelConfig
from v05_jax.models.gguf import __main__ as gguf_main
from v05_jax.models.gguf import convert, shape, vocabulary
from v05_jax.models.gguf.file import File

gguf = pytest.importorskip("gguf")

ROWS = 288  # of the embedding; the last of them have no token
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "Ġ Ġ", "a b"]
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {"llama": {"qk_norm": False}, "qwen2": {"qk_norm": False, "qkv_bias": True}, "qwen3": {}}
SIZES = {
  "vocab_size": ROWS,
  "hidden_size": 32,
  "num_layers": 2,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 16,
  "intermediate_size": 64,
  "rope_theta": 1e5,
  "rms_norm_eps": 1e-5,
  "max_positions": 512,
}


def make_model(kind: str, **changes):
  """(config, random parameters) of a tiny model; scales and biases are random too."""
  config = ModelConfig(family=kind, **SIZES | FAMILIES[kind] | changes)
  params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return config, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), params)


def permuted(rows, heads):
  """As in llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
  return (
    rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    .swapaxes(1, 2)
    .reshape(rows.shape)
  )


def stored_tensors(config, params) -> dict[str, np.ndarray]:
  """The tensors under llama.cpp's names."""
  arch = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}[config.family]
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config.num_layers)
  found = {}
  for tensor in hf.tensors(config):
    value = hf.stored_tensor(params, tensor, np.float32)
    if config.family == "llama" and "q_proj" in tensor.name:
      value = permuted(value, config.num_heads)
    if config.family == "llama" and "k_proj" in tensor.name:
      value = permuted(value, config.num_kv_heads)
    found[names.get_name(tensor.name, (".weight", ".bias"))] = value
  return found


def model_keys(config) -> dict:
  kind = config.family
  return {
    "general.architecture": kind,
    f"{kind}.block_count": config.num_layers,
    f"{kind}.context_length": config.max_positions,
    f"{kind}.embedding_length": config.hidden_size,
    f"{kind}.feed_forward_length": config.intermediate_size,
    f"{kind}.attention.head_count": config.num_heads,
    f"{kind}.attention.head_count_kv": config.num_kv_heads,
    f"{kind}.attention.key_length": config.head_dim,
    f"{kind}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    f"{kind}.rope.freq_base": config.rope_theta,
  }


def byte_level_keys(pre: str) -> dict:
  """A vocabulary of control tokens, bytes, merges, a token of the user's, and rows without one."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*CONTROLS, *letters, *(m.replace(" ", "") for m in MERGES), "<think>"]
  kinds = [3] * 3 + [1] * (len(letters) + len(MERGES)) + [4]
  pads = range(len(tokens), ROWS - 8)
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": pre,
    "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{i}]" for i in pads)],
    "tokenizer.ggml.token_type": [*kinds, *(5 for _ in pads)],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 0,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
  }


def write(path, keys: dict, tensors: dict, kind: str = "F32"):
  """A GGUF file; keys of None are left out, and matrices are quantised to `kind`."""
  writer = gguf.GGUFWriter(path, keys["general.architecture"])
  add = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
    list: writer.add_array,
  }
  for key, value in keys.items():
    if value is not None and key != "general.architecture":
      add[type(value)](key, value)
  for name, value in tensors.items():
    wanted = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
    writer.add_tensor(name, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_model(path, kind="llama", pre="smollm", dtype="F32", **changes):
  """A whole tiny file; changes: keys of it, with __ for a dot."""
  config, params = make_model(kind)
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  keys = model_keys(config) | byte_level_keys(pre) | changes
  return write(path, keys, stored_tensors(config, params), dtype)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp("gguf") / "llama.gguf")


def assert_equal(a, b, **how):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0} | how), a, b)


# --- The model


@pytest.mark.parametrize("kind, tied", [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_a_model_comes_back_as_it_was(tmp_path, kind, tied):
  config, params = make_model(kind, tie_embeddings=tied)
  keys = model_keys(config) | byte_level_keys("qwen2")
  write(tmp_path / "in.gguf", keys, stored_tensors(config, params))
  convert.convert(tmp_path / "in.gguf", tmp_path / "out" / "model")
  found, weights = hf.load(tmp_path / "out" / "model")
  assert found == config
  assert_equal(weights, params)
  assert sorted(os.listdir(tmp_path)) == ["in.gguf", "out"]  # nothing is left beside


@pytest.mark.parametrize(
  "dtype, near", [("F16", 2e-3), ("BF16", 0.01), ("Q8_0", 0.02), ("Q4_1", 0.3)]
)
def test_quantised_tensors_are_dequantised(tmp_path, dtype, near):
  config, params = make_model("llama")
  tensors = stored_tensors(config, params)
  file = File(write(tmp_path / "in.gguf", model_keys(config), tensors, dtype))
  for name, value in tensors.items():
    found = file.dequantized(name)
    assert found.dtype == np.float32 and found.shape == value.shape
    np.testing.assert_allclose(found, value, rtol=0, atol=near)
    assert np.array_equal(found, value) == (value.ndim == 1), name


def test_a_saved_model_has_the_same_logits_after_gguf(tmp_path):
  config, params = make_model("qwen3")
  hf.save(tmp_path / "saved", config, params)
  config, params = hf.load(tmp_path / "saved")
  keys = model_keys(config) | byte_level_keys("qwen2")
  write(tmp_path / "in.gguf", keys, stored_tensors(config, params))
  convert.convert(tmp_path / "in.gguf", tmp_path / "out")
  again, weights = hf.load(tmp_path / "out")
  tokens = np.arange(12)[None] * 7 % ROWS
  real, positions = np.ones_like(tokens), np.arange(12)[None]

  @jax.jit
  def logits(params):
    return decoder.logits(config, params, decoder.forward(config, params, tokens, positions, real))

  assert again == config
  np.testing.assert_array_equal(logits(weights), logits(params))


def llama3_factors(width, theta, factor, low, high, original):
  """As in llama.cpp's convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
  found = []
  for freq in 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width):
    wavelength = 2 * np.pi / freq
    if wavelength < original / high:
      found.append(1)
    elif wavelength > original / low:
      found.append(factor)
    else:
      smooth = (original / wavelength - low) / (high - low)
      found.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(found, np.float32)


@pytest.mark.parametrize(
  "width, numbers", [(128, (8, 1, 4, 8192)), (64, (32, 1, 4, 8192)), (64, (4, 1, 8, 2048))]
)
def test_llama_3_scaling_is_read_from_its_factors(tmp_path, width, numbers):
  config, params = make_model("llama", head_dim=width, rope_theta=5e5)
  tensors = stored_tensors(config, params)
  tensors["rope_freqs.weight"] = llama3_factors(width, 5e5, *numbers)
  write(tmp_path / "in.gguf", model_keys(config) | byte_level_keys("llama-bpe"), tensors)
  found = dataclasses.astuple(shape.read(File(tmp_path / "in.gguf")).rope_scaling)
  assert found[0] == "llama3" and found[1] == numbers[0]
  np.testing.assert_allclose(found[2:], numbers[1:], rtol=2e-3)
  tensors["rope_freqs.weight"] *= np.linspace(1, 1.2, width // 2, dtype=np.float32)
  write(tmp_path / "in.gguf", model_keys(config) | byte_level_keys("llama-bpe"), tensors)
  with pytest.raises(ValueError, match=r"rope_freqs\.weight: found factors .*llama3"):
    shape.read(File(tmp_path / "in.gguf"))


def test_linear_scaling_is_read(tmp_path):
  changes = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
  found = shape.read(File(write_model(tmp_path / "in.gguf", **changes))).rope_scaling
  assert (found.rope_type, found.factor) == ("linear", 4.0)


# --- The tokenizer


def opened(path, out):
  """(tokenizer as transformers opens it, tokens that end a response) of a converted file."""
  convert.convert(path, out)
  tokenizer = tokenizers.load(out)
  return tokenizer, tokenizers.stop_tokens(tokenizer, out)


@pytest.mark.parametrize(
  "pre, text, expected",
  [
    ("smollm", " the 123 ab", ["Ġthe", "Ġ", "1", "2", "3", "Ġ", "ab"]),
    ("smollm", "1 2½", ["1", "Ġ", "2", "Â", "½"]),
    ("gpt-2", " the 123", ["Ġthe", "Ġ", "12", "3"]),
    ("gpt-2", "   the", ["ĠĠ", "Ġthe"]),
    ("qwen2", "the 123", ["t", "he", "Ġ", "1", "2", "3"]),
    ("qwen2", "e\u0301", ["Ã", "©"]),  # é in Unicode's normal form C
    ("smollm", "e\u0301", ["e", "Ì", "ģ"]),
    ("llama-bpe", "the 1234", ["t", "he", "Ġ", "12", "3", "4"]),
    ("llama-bpe", "a\r\n b", ["a", "č", "Ċ", "Ġ", "b"]),
  ],
)
def test_text_is_cut_by_the_rules_of_its_kind(tmp_path, pre, text, expected):
  file = File(write_model(tmp_path / "in.gguf", pre=pre))
  tokenizer = vocabulary.build(file, ROWS, 512)[0]
  assert tokenizer.tokenize(text) == expected


def test_the_tokenizer_comes_back_in_transformers(tmp_path, llama):
  tokenizer, stop = opened(llama, tmp_path / "out")
  assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
  assert stop == (2, 0)  # EOS, then what ends a turn
  assert tokenizer.model_max_length == 512
  assert len(tokenizer) == 3 + 256 + len(MERGES) + 1  # rows without a token have none
  for text in (*vocabulary.PROBES, "1" * 9, " \n\t  ", "\x00\x7f", "<think> 12</think>", ""):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
  assert tokenizer.encode("<|im_start|>ab<think>") == [1, *tokenizer.encode("ab"), 265]
  assert tokenizers.decode_response(tokenizer, [265, 2]) == "<think>"
  ids = support.encode_prompt(tokenizer, "ab", chat_template=True)
  assert tokenizer.decode(ids) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
  assert ids[0] == 1 and ids.count(1) == 2


def test_a_tokenizer_that_transformers_takes_for_another_is_refused(tmp_path):
  # transformers 5 cuts digits alone for every qwen2, whatever tokenizer.json says
  path = write_model(tmp_path / "in.gguf", kind="qwen2", pre="gpt-2")
  with pytest.raises(ValueError, match=r"found another tokenizer .*as Qwen2Tokenizer"):
    convert.convert(path, tmp_path / "out")
  assert os.listdir(tmp_path) == ["in.gguf"]


@pytest.mark.parametrize(
  "pre, changes, expected",
  [
    ("llama-bpe", {"tokenizer__ggml__add_bos_token": None}, [1, "t", "he"]),
    ("smollm", {"tokenizer__ggml__add_bos_token": None}, ["t", "he"]),
    ("qwen2", {"tokenizer__ggml__add_eos_token": True}, ["t", "he", 2]),
    ("qwen2", {"tokenizer__ggml__add_bos_token": True}, [1, "t", "he"]),
  ],
)
def test_what_is_added_around_a_text(tmp_path, pre, changes, expected):
  file = File(write_model(tmp_path / "in.gguf", pre=pre, **changes))
  tokenizer = vocabulary.build(file, ROWS, 512)[0]
  ids = [tokenizer.convert_tokens_to_ids(x) if isinstance(x, str) else x for x in expected]
  assert tokenizer.encode("the") == ids


def test_bytes_without_a_token_are_counted(tmp_path):
  keys = byte_level_keys("smollm")
  tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
  for letter in ("\u0102", "õ"):  # the bytes 2 and 0xF5, the latter of which is in no text
    tokens[tokens.index(letter)] = f"[{letter}]"
  changes = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": kinds}
  said = convert.convert(write_model(tmp_path / "in.gguf", **changes), tmp_path / "out")
  assert "266 tokens (1 bytes have none: characters with them are lost)" in said


def test_named_templates_are_kept(tmp_path):
  changes = {"tokenizer__chat_templates": ["tool_use"]}
  changes["tokenizer__chat_template__tool_use"] = "tools: {{ messages[0]['content'] }}"
  tokenizer, _ = opened(write_model(tmp_path / "in.gguf", **changes), tmp_path / "out")
  assert tokenizer.chat_template == {
    "default": TEMPLATE,
    "tool_use": changes["tokenizer__chat_template__tool_use"],
  }


def sentence_piece_keys(pieces: list[str]) -> dict:
  """SentencePiece's BPE; the first pieces have the highest scores."""
  letters = sorted({c for piece in pieces for c in piece} | set("▁abc"))
  letters = [c for c in letters if c not in pieces]
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, *letters]
  kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters))
  return {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
  }


def sentence_piece(text: str, keys: dict) -> list[str]:
  """SentencePiece's BPE as it is defined: the neighbours whose union has the highest score are
  joined first, the leftmost of equals."""
  score = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]))
  parts = list("▁" + text.replace(" ", "▁"))
  while True:
    pairs = [
      (-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score
    ]
    if not pairs:
      break
    i = min(pairs)[1]
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
  whole = lambda part: [part] if part in score else [f"<0x{b:02X}>" for b in part.encode()]
  return [token for part in parts for token in whole(part)]


def test_sentence_piece_joins_what_has_the_highest_score(tmp_path):
  pieces = ["▁a", "ab", "bc", "▁ab", "abc", "▁▁", "ca", "cab", "aa"]
  config, params = make_model("llama", vocab_size=ROWS)
  keys = model_keys(config) | sentence_piece_keys(pieces)
  write(tmp_path / "in.gguf", keys, stored_tensors(config, params))
  tokenizer, _ = opened(tmp_path / "in.gguf", tmp_path / "out")
  rng = np.random.default_rng(1)
  texts = ["".join(rng.choice(list("aabc é½"), 12)) for _ in range(60)]
  for text in ("abc", "", "  ab", "Zebra 你好 🙂\n", *texts):
    ids = tokenizer.encode(text)
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]) == text
    if text:
      assert tokenizer.convert_ids_to_tokens(ids[1:]) == sentence_piece(text, keys)


# --- What is refused


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"llama__block_count": None}, r"llama\.block_count: found no such key, expected an integer"),
    ({"llama__block_count": 3}, r"blk\.2\..*: found no such tensor, expected"),
    ({"llama__block_count": 1}, r"blk\.1\..*: found a tensor that"),
    ({"llama__block_count": 10**9}, r"llama\.block_count: found 1000000000, expected at most"),
    ({"llama__attention__head_count": 0}, "head_count: found 0, expected a positive integer"),
    ({"llama__attention__head_count": [4, 4]}, r"head_count: found \[4, 4\], expected an integer"),
    ({"llama__embedding_length": 64}, r"attn_norm\.weight: found \[32\], expected \[64\]"),
    ({"llama__rope__dimension_count": 8}, "rope.dimension_count: found 8, supported: 16"),
    ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type: found 'yarn', supported: none"),
    ({"llama__expert_count": 8}, "llama.expert_count: found 8, expected no such key"),
    ({"llama__attention__sliding_window": 64}, "sliding_window: found 64, expected no such key"),
    ({"llama__logit_scale": 0.5}, "llama.logit_scale: found 0.5, expected no such key"),
    ({"split__count": 2}, "split.count: found one of 2 files of a split model"),
    ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model: found 'bert', expected one that"),
    ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model: found no such key"),
    ({"tokenizer__ggml__pre": "falcon"}, "tokenizer.ggml.pre: found 'falcon'.*smollm"),
    ({"tokenizer__ggml__pre": None}, "tokenizer.ggml.pre: found no such key"),
    ({"tokenizer__ggml__tokens": ["a"]}, r"token_type: found 280, expected 1"),
    ({"tokenizer__ggml__tokens": ["a", "b", "a"]}, "found 'a' as 0 and 2, expected it once"),
    (
      {"tokenizer__ggml__tokens": [str(i) for i in range(300)]},
      "found 300, expected at most .* 288",
    ),
    ({"tokenizer__ggml__merges": ["h e", "zz y"]}, "found 'zz y' as number 1, expected two tokens"),
    ({"tokenizer__ggml__merges": ["Ġt he", "Ġ t", "h e", "t h"]}, "found 't h' as number 3"),
    ({"tokenizer__ggml__merges": None}, "tokenizer.ggml.merges: found no such key"),
    ({"tokenizer__ggml__eos_token_id": None}, "eos_token_id: found no such key"),
    ({"tokenizer__ggml__eos_token_id": 10**6}, "eos_token_id: found 1000000, expected one of"),
    ({"tokenizer__ggml__token_type": None}, "token_type: found no such key"),
    ({"tokenizer__chat_template": "{% for %}"}, "tokenizer.chat_template: cannot be used"),
    (
      {"tokenizer__chat_template": "hello"},
      "tokenizer.chat_template: found 'hello' for the message",
    ),
  ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, changes, message):
  path = write_model(tmp_path / "in.gguf", **changes)
  with pytest.raises(ValueError, match=message) as error:
    convert.convert(path, tmp_path / "out")
  assert str(path) in str(error.value)
  assert os.listdir(tmp_path) == ["in.gguf"]


def test_merges_of_another_order_are_refused(tmp_path):
  merges = ["b c", "a b", "ab c"]  # "abc" is a|bc by the first
  keys = byte_level_keys("gpt-2")
  tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
  tokens[-4:], kinds[-4:] = ["bc", "abc", "zz", "zzz"], [1] * 4
  changes = {"tokenizer__ggml__merges": merges, "tokenizer__ggml__tokens": tokens}
  path = write_model(tmp_path / "in.gguf", **changes, tokenizer__ggml__token_type=kinds)
  with pytest.raises(
    ValueError, match="found 'ab c', expected merges that make one token of 'abc'"
  ):
    convert.convert(path, tmp_path / "out")


def test_an_unknown_architecture_is_refused(tmp_path):
  config, params = make_model("llama")
  keys = model_keys(config) | {"general.architecture": "gemma3"}
  write(tmp_path / "in.gguf", keys, stored_tensors(config, params))
  message = "general.architecture: found 'gemma3', supported: llama, qwen2, qwen3"
  with pytest.raises(ValueError, match=message):
    convert.convert(tmp_path / "in.gguf", tmp_path / "out")


@pytest.mark.parametrize("name, value", [("I32", 26), ("Q8_K", 15)])
def test_a_type_that_cannot_be_dequantised_is_named(tmp_path, name, value):
  config, params = make_model("llama")
  tensors = stored_tensors(config, params)
  keys = model_keys(config) | byte_level_keys("smollm")
  path = write(
    tmp_path / "in.gguf", keys, {"blk.0.attn_norm.weight": tensors["blk.0.attn_norm.weight"]}
  )
  for number, message in ((value, f"found type {name}"), (31, "found type 31, which")):
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_norm.weight") + 22 + 4 + 8  # dimensions, one of them
    data[at : at + 4] = number.to_bytes(4, "little")
    (tmp_path / "typed.gguf").write_bytes(data + bytes(4096))
    with pytest.raises(
      ValueError, match=rf"typed\.gguf: (blk\.0\.attn_norm\.weight: {message}|.*not a multiple)"
    ):
      File(tmp_path / "typed.gguf")


def test_weights_that_are_not_finite_are_named(tmp_path):
  config, params = make_model("llama")
  params["norm"]["scale"][3] = np.nan
  keys = model_keys(config) | byte_level_keys("smollm")
  write(tmp_path / "in.gguf", keys, stored_tensors(config, params))
  with pytest.raises(ValueError, match=r"output_norm\.weight: found 1 numbers that are not finite"):
    convert.convert(tmp_path / "in.gguf", tmp_path / "out")
  assert os.listdir(tmp_path) == ["in.gguf"]


def test_a_truncated_or_damaged_file_is_refused(tmp_path, llama):
  data = llama.read_bytes()
  path = tmp_path / "cut.gguf"
  for size in [*np.linspace(0, len(data) - 1, 40, dtype=int), 4, 8, 23, len(data) - 40]:
    path.write_bytes(data[:size])
    with pytest.raises(
      ValueError, match=rf"cut\.gguf: found .* {size} bytes .*expected a GGUF file"
    ):
      File(path)
  for other in (b"version https://git-lfs.github.com/spec/v1", b"PK\x03\x04" * 9, bytes(64)):
    path.write_bytes(other)
    with pytest.raises(ValueError, match=r"cut\.gguf: found a file of b'.*expected a GGUF file"):
      File(path)


def test_lengths_that_are_damaged_end(tmp_path, llama):
  data = llama.read_bytes()
  path = tmp_path / "bad.gguf"
  key = b"tokenizer.ggml.token_type"
  # tensors, keys, and the length of a list: as large as they can be
  for at in (8, 16, data.index(key) + len(key) + 8):
    path.write_bytes(data[:at] + b"\xff" * 7 + b"\x0f" + data[at + 8 :])
    with pytest.raises(ValueError, match=r"bad\.gguf: found a truncated or damaged file"):
      File(path)


def test_what_is_there_is_kept(tmp_path, llama):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("x")
  for out in (tmp_path / "out", tmp_path / "out" / "mine"):
    with pytest.raises(
      ValueError, match=r"found a (folder with files|file), expected a new folder"
    ):
      convert.convert(llama, out)
  assert os.listdir(tmp_path / "out") == ["mine"]
  (tmp_path / "empty").mkdir()
  convert.convert(llama, tmp_path / "empty")
  assert hf.read_config(tmp_path / "empty").family == "llama"
  with pytest.raises(ValueError, match="gs://bucket/out: found a remote folder"):
    convert.convert(llama, "gs://bucket/out")


def test_without_the_package_the_extra_is_named(tmp_path, llama, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[gguf\]'"):
    convert.convert(llama, tmp_path / "out")


def test_the_command(tmp_path, llama, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["gguf", str(llama), str(tmp_path / "out"), "--dtype=bfloat16"])
  gguf_main.main()
  assert "out: llama, 2 layers of 32, from 20 F32; 266 tokens; " in capsys.readouterr().out
  assert (tmp_path / "out" / "model.safetensors").stat().st_size < 0.6 * llama.stat().st_size
  exact, found = make_model("llama")[1], hf.load(tmp_path / "out")[1]
  assert_equal(found, exact, rtol=2**-8)
  with pytest.raises(SystemExit, match=r"^error: .*out: found a folder with files"):
    gguf_main.main()
