"""Tokenizers, through transformers: opened and checked, which tokens end a response, and responses
as text. Texts as tokens are in encoding.py."""

from collections.abc import Sequence
import functools
import itertools
import os
from pathlib import Path

from v05_jax.models import files

END = "the id of a token of the tokenizer, or a list of such ids"
# Of a Hugging Face directory; one of the first four is there if a tokenizer is.
FILES = (
  *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
  *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)


def _transformers():
  """The module, imported where it is needed since it takes seconds. Its advice to install torch
  does not apply here."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def load(directory):
  """The tokenizer of a Hugging Face directory; nothing is downloaded.

  A tokenizer.json is taken as it is. The class that tokenizer_config.json names would build some
  tokenizers anew from vocabulary and merges alone, which then split texts in another way than the
  file says (GPT2Tokenizer SmolLM2's, LlamaTokenizer Llama 2's). Where the tokenizer names no EOS
  token, it is the first one of generation_config.json or config.json. Raises ValueError if the
  directory holds no readable tokenizer, or nothing in it names an EOS token (rollouts could not
  end).
  """
  path = Path(directory)
  if not any((path / name).is_file() for name in FILES[:4]):
    raise ValueError(
      f"{path}: found no tokenizer, expected a directory with one of {', '.join(FILES[:4])}"
    )
  _declared_ends(path)  # transformers reads these files too, and names neither file nor key
  whole, names = (path / "tokenizer.json").is_file(), _transformers()
  kind = names.PreTrainedTokenizerFast if whole else names.AutoTokenizer
  try:
    tokenizer = kind.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
  except Exception as error:  # transformers raises many kinds, tokenizers a bare Exception
    raise ValueError(f"{path}: the tokenizer cannot be read: {error}") from error
  if tokenizer.eos_token_id is None:
    if not (ends := _ends(tokenizer, path)):
      raise ValueError(
        f"{path}: found a tokenizer without EOS token, expected eos_token to be set "
        "in tokenizer_config.json, or eos_token_id in generation_config.json or config.json: no "
        "rollout could end"
      )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
  return tokenizer


def of_transformers(directory):
  """The tokenizer that transformers itself takes for a directory, by the class that it or the
  model's type names: see `load`."""
  return _transformers().AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


def check(tokenizer, vocab_size: int, where="tokenizer", padded: bool = True):
  """Raises ValueError, naming `where`, if a token of the tokenizer has no row in an embedding of
  `vocab_size` rows.

  Embeddings often have some rows more than there are tokens, which are never sampled (see
  `unused_ids`). Unless `padded` says that any number is meant, it is an error if half of the rows
  or more have no token: tokenizer and model are then hardly of one make.
  """
  special = special_tokens(tokenizer)  # beyond are those for other inputs (Gemma 3's images)
  ids = tokenizer.get_vocab().values()
  largest = max(i for i in ids if i < vocab_size or i not in special)
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


def special_tokens(tokenizer) -> set[int]:
  """The ids of the tokens that are not text."""
  added = tokenizer.added_tokens_decoder
  return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def unused_ids(tokenizer, vocab_size: int) -> tuple[tuple[int, int], ...]:
  """The ids below `vocab_size` that no token has, as ranges [first, end): for
  `ModelConfig.unused_ids`."""
  known = sorted({i for i in tokenizer.get_vocab().values() if 0 <= i < vocab_size})
  pairs = zip([-1, *known], [*known, vocab_size])
  return tuple((before + 1, after) for before, after in pairs if after - before > 1)


def stop_tokens(tokenizer, directory) -> tuple[int, ...]:
  """Tokens that end a response: the tokenizer's EOS, then the `eos_token_id` of the directory's
  generation_config.json, or, where it says none, of its config.json.

  Raises ValueError that names file and key for anything but token ids of the tokenizer.
  """
  return tuple(dict.fromkeys([tokenizer.eos_token_id, *_ends(tokenizer, directory)]))


def _declared_ends(directory) -> list[tuple[Path, list[int]]]:
  """(file, `eos_token_id`) of generation_config.json and config.json, where they say one. Raises
  ValueError that names file and key for anything but an id or a list of ids."""
  ends = []
  for file in (Path(directory) / name for name in ("generation_config.json", "config.json")):
    found = files.read_json(file).get("eos_token_id") if file.is_file() else None
    given = [] if found is None else found if isinstance(found, list) else [found]
    if not all(type(x) is int for x in given):
      raise ValueError(f"{file}: eos_token_id: found {found!r}, expected {END}")
    ends += [(file, given)] if given else []
  return ends


def _ends(tokenizer, directory) -> list[int]:
  """The ids of the first of `_declared_ends`; [] without any. Raises ValueError for an id in either
  file that is no token's."""
  ends, known = _declared_ends(directory), set(tokenizer.get_vocab().values())
  for file, given in ends:
    if not known.issuperset(given):
      raise ValueError(f"{file}: eos_token_id: found {given}, expected {END}")
  return ends[0][1] if ends else []


def decode_response(tokenizer, ids: Sequence[int], stop: Sequence[int] = ()) -> str:
  """Text of a response without its end (EOS, or a token of `stop`) and what follows it.

  Any other special token stays visible, and so does an id without a token, as <id 40>: a verifier
  that accepts one string then accepts one token sequence, and a response with a stray control token
  is not taken for one without.
  """
  ids = [int(i) for i in ids]
  end = next(
    (i for i, token in enumerate(ids) if token in (tokenizer.eos_token_id, *stop)), len(ids)
  )
  decode = functools.partial(
    tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )
  ids = ids[:end]
  names = getattr(tokenizer, "convert_ids_to_tokens", list)(ids)  # None for an id without a token
  if None not in names:
    return decode(ids)
  text = ""
  for known, part in itertools.groupby(zip(ids, names), lambda pair: pair[1] is not None):
    some = [i for i, _ in part]
    text += decode(some) if known else "".join(f"<id {i}>" for i in some)
  return text


def wrap(backend, **settings):
  """A `tokenizers.Tokenizer` as a tokenizer of transformers that decodes text as it is."""
  return _transformers().PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings
  )
