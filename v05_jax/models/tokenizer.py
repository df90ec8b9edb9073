"""Tokenizers, always through `transformers.AutoTokenizer`; the built-in tasks' character tokenizer
too."""

from collections.abc import Iterable, Sequence
import json
import os
from pathlib import Path

PAD, EOS = "<pad>", "<eos>"
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def _transformers():
  """The module, imported where it is needed since it takes seconds. Its advice to install torch
  does not apply here."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def load(directory):
  """The tokenizer of a Hugging Face directory; nothing is downloaded.

  Raises ValueError if the directory holds no readable tokenizer, or one without an EOS token
  (rollouts could not end).
  """
  path = Path(directory)
  if not any((path / name).is_file() for name in FILES):
    raise ValueError(
      f"{path}: found no tokenizer, expected a directory with one of {', '.join(FILES)}"
    )
  try:
    tokenizer = _transformers().AutoTokenizer.from_pretrained(str(path), local_files_only=True)
  except Exception as error:  # transformers raises many kinds, tokenizers a bare Exception
    raise ValueError(f"{path}: the tokenizer cannot be read: {error}") from error
  if tokenizer.eos_token_id is None:
    raise ValueError(
      f"{path}: found a tokenizer without EOS token, expected eos_token to be set "
      "in tokenizer_config.json: no rollout could end"
    )
  return tokenizer


def check(tokenizer, vocab_size: int, where="tokenizer", padded: bool = True):
  """Raises ValueError, naming `where`, if a token of the tokenizer has no row in an embedding of
  `vocab_size` rows.

  Embeddings often have some rows more than there are tokens. Unless `padded` says that any number
  is meant, it is an error if half of the rows or more have no token: a policy that samples them
  writes what no tokenizer can read.
  """
  largest = max(tokenizer.get_vocab().values())
  if largest >= vocab_size:
    raise ValueError(
      f"{where}: found token id {largest}, expected ids below the model's vocab_size "
      f"{vocab_size}: tokenizer and model do not belong together"
    )
  if not padded and 2 * (largest + 1) <= vocab_size:
    raise ValueError(
      f"{where}: found {largest} as the last token id, expected a tokenizer of the model's "
      f"vocab_size {vocab_size}: tokenizer and model do not belong together"
    )


def encode_prompt(tokenizer, text: str, chat_template: bool) -> list[int]:
  """Token ids of a prompt. With `chat_template`, and where the tokenizer has a template, the text
  becomes one user message followed by the generation prompt.

  Raises ValueError if the tokenizer cannot encode the text, or encodes it to no token at all.
  """
  try:
    if chat_template and tokenizer.chat_template:
      message = [{"role": "user", "content": text}]
      ids = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, tokenize=True, return_dict=True
      )["input_ids"]
    else:
      ids = tokenizer(text)["input_ids"]
  except Exception as error:  # a character outside a character vocabulary is a bare Exception
    raise ValueError(f"the tokenizer cannot encode the prompt {text!r}: {error}") from error
  if not ids:
    raise ValueError(f"found the prompt {text!r}, which has no token, expected at least one")
  return [int(i) for i in ids]


def stop_tokens(tokenizer, directory) -> tuple[int, ...]:
  """Tokens that end a response: the tokenizer's EOS, then those of the directory's
  generation_config.json."""
  file = Path(directory) / "generation_config.json"
  more = []
  if file.is_file():
    try:
      more = json.loads(file.read_text()).get("eos_token_id") or []
    except (ValueError, AttributeError) as error:
      raise ValueError(f"{file}: cannot be read as a JSON object: {error}") from None
  more = [more] if isinstance(more, int) else more
  return tuple(dict.fromkeys([tokenizer.eos_token_id, *more]))


def decode_response(tokenizer, ids: Sequence[int], stop: Sequence[int] = ()) -> str:
  """Text of a response without its end (EOS, or a token of `stop`) and what follows it.

  Any other special token stays visible: a verifier that accepts one string then accepts one token
  sequence, and a response with a stray control token is not taken for one without.
  """
  ids = [int(i) for i in ids]
  end = next(
    (i for i, token in enumerate(ids) if token in (tokenizer.eos_token_id, *stop)), len(ids)
  )
  ids = ids[:end]
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def build_character_tokenizer(characters: Iterable[str], vocab_size: int = 0):
  """A tokenizer with one token per character: `<pad>` is 0, `<eos>` 1, then `characters` in order.

  `vocab_size` > 0 pads the vocabulary to that many tokens with `<unused0>`, ..., which no text
  encodes to and which stay visible in decoded text. Raises ValueError for repeated or too many
  characters. Encoding text with any other character is an error, never a silent loss.
  """
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

  characters = list(characters)
  tokens = [PAD, EOS, *characters]
  if any(len(c) != 1 for c in characters) or len(set(characters)) != len(characters):
    raise ValueError(
      f"characters: found {''.join(characters)!r}, expected single characters, each of them once"
    )
  if vocab_size and len(tokens) > vocab_size:
    raise ValueError(
      f"characters: found {len(characters)}, expected at most {vocab_size - 2} for a "
      f"vocabulary of {vocab_size}"
    )
  tokens += [f"<unused{i}>" for i in range(vocab_size - len(tokens))]
  backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
  backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
  backend.decoder = decoders.Fuse()  # characters are joined as they are, without spaces
  return wrap(backend, pad_token=PAD, eos_token=EOS)


def wrap(backend, **settings):
  """A `tokenizers.Tokenizer` as a tokenizer of transformers that decodes text as it is."""
  return _transformers().PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings
  )
