"""Tokenizers of a directory: the character tokenizer, chat templates, and what cannot serve."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
import transformers

from tests import support
from v05_jax.models import tokenizer as tokenizers

CHARACTERS = "0123456789ABMSLC+*-=abx/ "
TEMPLATE = (
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(**special):
  """A byte-level BPE tokenizer of 256 bytes, no merges, and the template's markers."""
  vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
  backend = Tokenizer(models.BPE(vocab, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  markers = ["<|user|>", "<|assistant|>"]
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, additional_special_tokens=markers, **special
  )


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
  """The character tokenizer as it comes back from a policy's directory."""
  directory = tmp_path_factory.mktemp("characters")
  support.character_tokenizer(CHARACTERS, 32).save_pretrained(directory)
  (directory / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
  return tokenizers.load(directory)


def test_characters_come_back_as_they_are(characters):
  assert (characters.pad_token_id, characters.eos_token_id, len(characters)) == (0, 1, 32)
  for text in ("A047085=", "x + x", " 1  2 ", "=-*/", "C7+5*3=", "a"):
    ids = support.encode_prompt(characters, text, chat_template=True)
    assert ids == [2 + CHARACTERS.index(c) for c in text]
    assert tokenizers.decode_response(characters, [*ids, 1]) == text


def test_a_response_ends_at_eos_and_shows_every_other_token(characters):
  five = 2 + CHARACTERS.index("5")
  assert tokenizers.decode_response(characters, [five, 1, five, 1]) == "5"
  assert tokenizers.decode_response(characters, [1]) == ""
  assert tokenizers.decode_response(characters, [five, 0, five]) == "5<pad>5"
  assert (
    tokenizers.decode_response(characters, [five, 31]) == f"5<unused{31 - 2 - len(CHARACTERS)}>"
  )


def test_a_template_that_writes_the_date_writes_the_same_on_every_day():
  """Or a run could not go on the day after."""
  tokenizer = byte_level(eos_token="<|end|>")
  written = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %Y-%m-%d') }}{% endif %}"
  for template in (written + TEMPLATE, TEMPLATE + written):
    tokenizer.chat_template = template
    ids = support.encode_prompt(tokenizer, "2+2", chat_template=True)
    assert "26 Jul 2024, 2024-07-26" in tokenizer.decode(ids)
    assert "2+2" in tokenizer.decode(ids)


def test_special_tokens_beyond_the_embedding_are_of_other_inputs():
  """Gemma 3's text models have a tokenizer with the token of images, and no row for it."""
  tokenizer = byte_level(eos_token="<|end|>")
  rows = len(tokenizer)
  tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
  assert max(tokenizer.get_vocab().values()) == rows
  tokenizers.check(tokenizer, rows)
  tokenizer.add_tokens(["word"])
  with pytest.raises(ValueError, match=f"found token id {rows + 1}, expected ids below"):
    tokenizers.check(tokenizer, rows)


def test_a_character_outside_the_vocabulary_is_an_error(characters):
  with pytest.raises(ValueError, match="cannot encode the prompt 'A1é='"):
    support.encode_prompt(characters, "A1é=", chat_template=False)
  with pytest.raises(ValueError, match="at least one"):
    support.encode_prompt(characters, "", chat_template=False)


def test_a_character_vocabulary_must_fit():
  assert len(support.character_tokenizer("abc")) == 5
  with pytest.raises(ValueError, match="at most 3 for a vocabulary of 5"):
    support.character_tokenizer("abcd", 5)
  with pytest.raises(ValueError, match="each of them once"):
    support.character_tokenizer("aba")


def test_chat_template_where_there_is_one_and_it_is_asked_for(tmp_path):
  saved = byte_level(eos_token="<|end|>")
  saved.chat_template = TEMPLATE
  saved.save_pretrained(tmp_path)
  tokenizer = tokenizers.load(tmp_path)
  plain = support.encode_prompt(tokenizer, "2+2 é?", chat_template=False)
  chat = support.encode_prompt(tokenizer, "2+2 é?", chat_template=True)
  ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<|user|>", "<|end|>", "<|assistant|>")]
  assert chat == [ids[0], *plain, *ids[1:]] and all(type(i) is int for i in chat)
  assert tokenizers.decode_response(tokenizer, [*plain, ids[1]]) == "2+2 é?"
  tokenizer.chat_template = None
  assert support.encode_prompt(tokenizer, "2+2 é?", chat_template=True) == plain


@pytest.mark.parametrize(
  "named", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer", None]
)
def test_a_text_is_split_as_the_file_says_whatever_class_is_named(tmp_path, named):
  """SmolLM2's tokenizer_config.json names GPT2Tokenizer, which would build it without its digits'
  rule."""
  saved = byte_level(eos_token="<|end|>")
  backend = saved.backend_tokenizer
  backend.model = models.BPE({**saved.get_vocab(), "12": 300, "ĊĊ": 301}, [("1", "2"), ("Ċ", "Ċ")])
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
  )
  saved.save_pretrained(tmp_path)
  file = tmp_path / "tokenizer_config.json"
  settings = json.loads(file.read_text()) | {"tokenizer_class": named}
  file.write_text(json.dumps({key: x for key, x in settings.items() if x}))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
  found = tokenizers.load(tmp_path)
  for text in ("12", "x = 12\n\n12.", "  3"):
    assert (
      found(text)["input_ids"]
      == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    )
    assert found.decode(found(text)["input_ids"]) == text
  assert 300 not in found("12")["input_ids"] and 301 in found("\n\n")["input_ids"]
  assert found.eos_token == "<|end|>"


def test_directories_that_cannot_serve(tmp_path):
  with pytest.raises(ValueError, match="found no tokenizer, expected a directory with one of"):
    tokenizers.load(tmp_path)
  with pytest.raises(ValueError, match="found no tokenizer"):
    tokenizers.load(tmp_path / "absent")
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="the tokenizer cannot be read"):
    tokenizers.load(tmp_path)
  byte_level().save_pretrained(tmp_path)
  with pytest.raises(ValueError, match="without EOS token"):
    tokenizers.load(tmp_path)


def test_a_tokenizer_larger_than_the_embedding(characters):
  tokenizers.check(characters, 32)
  tokenizers.check(characters, 40)
  with pytest.raises(
    ValueError, match="found token id 31, expected ids below the model's vocab_size 31"
  ):
    tokenizers.check(characters, 31)
