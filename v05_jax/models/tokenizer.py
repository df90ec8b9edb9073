"""Tokenizers, always through `transformers.AutoTokenizer`.

The contents of a prompt are text: a `<|im_end|>` that somebody has typed into a problem stays these
ten characters. Only templates and the tokenizer's own prefix (BOS) make control tokens. A prompt
without typed control tokens has exactly the tokens that transformers gives it.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import itertools
import json
import os
from pathlib import Path
import re

from v05_jax.models import files

END = "the id of a token of the tokenizer, or a list of such ids"
# Stands for a message's content where only what is around it matters.
PLACE = "contentofmessage{}here"
# What a chat template is told that today is: the date that Llama 3.2's takes where it knows none.
DATE = {
  "%d": "26",
  "%m": "07",
  "%b": "Jul",
  "%B": "July",
  "%Y": "2024",
  "%y": "24",
  "%a": "Fri",
  "%A": "Friday",
  "%H": "00",
  "%M": "00",
  "%S": "00",
}
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def _transformers():
  """The module, imported where it is needed since it takes seconds. Its advice to install torch
  does not apply here."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def load(directory):
  """The tokenizer of a Hugging Face directory; nothing is downloaded.

  Where the tokenizer names no EOS token, it is the first one of generation_config.json or
  config.json. Raises ValueError if the directory holds no readable tokenizer, or nothing in it
  names an EOS token (rollouts could not end).
  """
  path = Path(directory)
  if not any((path / name).is_file() for name in FILES):
    raise ValueError(
      f"{path}: found no tokenizer, expected a directory with one of {', '.join(FILES)}"
    )
  _declared_ends(path)  # transformers reads these files too, and names neither file nor key
  try:
    tokenizer = _transformers().AutoTokenizer.from_pretrained(
      str(path), local_files_only=True, trust_remote_code=False
    )
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


def check(tokenizer, vocab_size: int, where="tokenizer", padded: bool = True):
  """Raises ValueError, naming `where`, if a token of the tokenizer has no row in an embedding of
  `vocab_size` rows.

  Embeddings often have some rows more than there are tokens, which are never sampled (see
  `unused_ids`). Unless `padded` says that any number is meant, it is an error if half of the rows
  or more have no token: tokenizer and model are then hardly of one make.
  """
  special = _special(tokenizer)  # those beyond are for other inputs (Gemma 3's images), never text
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


def prompt_encoder(tokenizer, chat_template: bool, template: str = "{prompt}") -> Callable:
  """-> encode(prompt) -> token ids of a prompt: a text, or a list of messages {"role", "content"}.

  template: put around a text, or around the last message's content, in the place of `{prompt}`.
  With `chat_template`, and where the tokenizer has one, a text becomes one user message, and the
  generation prompt follows the messages. Otherwise the tokenizer's prefix (BOS) stands before the
  text; what the tokenizer appends (EOS) is left out, since the response follows.

  `encode` raises ValueError for several messages without a chat template, for a prompt that
  tokenizer or chat template refuse or that has no token, for a content that the chat template drops
  or changes, and for typed control tokens that this tokenizer cannot read as text.
  """
  chat = bool(chat_template and tokenizer.chat_template)
  start = _prefix(tokenizer) if not chat else []
  apply = functools.partial(_apply, tokenizer, chat, template)

  @functools.cache
  def around(places: str) -> tuple[set[int], list[int]]:
    messages = json.loads(places)
    try:
      rendered = apply(messages, tokenize=False)
    except Exception as error:  # of Jinja's own kinds, and what templates raise
      roles = ", ".join(str(message["role"]) for message in messages)
      raise ValueError(
        f"the chat template of {tokenizer.name_or_path} refuses messages of the roles {roles}: "
        f"{error}"
      ) from error
    return _around(tokenizer, rendered, len(messages))

  def encode(messages) -> list[int]:
    if not chat and len(messages) > 1:
      reason = "config.data.chat_template is False" if tokenizer.chat_template else "it has none"
      raise ValueError(
        f"found {len(messages)} messages, expected one: only the tokenizer's chat template can put "
        f"several together, and {reason}"
      )
    places = [{**message, "content": PLACE.format(i)} for i, message in enumerate(messages)]
    control, made = around(json.dumps(places))
    ids = apply(messages)
    typed = lambda: [i for i in ids if i in control] != made
    if typed():
      ids = apply(messages, sanitize_control_tokens=True)
      if typed():
        raise ValueError("found a control token typed in it that cannot be read as text")
    if not ids:
      raise ValueError("found no token, expected at least one")
    if chat:
      _check_contents(messages, apply(messages, tokenize=False))
    return [*start, *map(int, ids)]

  def explained(prompt) -> list[int]:
    try:
      return encode([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    except Exception as error:  # tokenizers and templates raise many kinds
      raise ValueError(
        f"the tokenizer cannot encode the prompt {_shown(prompt)}: {error}"
      ) from error

  return explained


def encode_prompts(
  tokenizer, prompts: Sequence, chat_template: bool, template: str = "{prompt}"
) -> Iterator[list[int]]:
  """Token ids of each of many prompts: see `prompt_encoder`, whose errors come in their turn. Texts
  without a chat template are encoded in one call, which takes a tenth of the time."""
  encode, found = prompt_encoder(tokenizer, chat_template, template), []
  if not (chat_template and tokenizer.chat_template) and all(isinstance(x, str) for x in prompts):
    start = _prefix(tokenizer)
    with contextlib.suppress(Exception):  # of the tokenizer's; `encode` says which text it is
      control, made = _around(tokenizer, template.replace("{prompt}", PLACE.format(0)), 1)
      found = _ids(tokenizer, [template.replace("{prompt}", text) for text in prompts])
  for prompt, ids in itertools.zip_longest(prompts, found):
    # `encode` handles typed control tokens, and prompts without any token.
    plain = ids and [i for i in ids if i in control] == made
    yield [*start, *ids] if plain else encode(prompt)


def _apply(tokenizer, chat: bool, template: str, messages, **options):
  """The tokens of messages, or with tokenize=False their text, with the template around the last
  one and, if `chat`, the chat template around all."""
  source = None
  if chat:
    content = template.replace("{prompt}", messages[-1]["content"])
    messages = [*messages[:-1], {**messages[-1], "content": content}]
    source = _undated(tokenizer.get_chat_template())
  else:  # the template's parts as literals of a chat template, which may hold control tokens
    literals = [f"{{{{ {part!r} }}}}" for part in template.split("{prompt}")]
    source = "{{ messages[0]['content'] }}".join(literals)
  return tokenizer.apply_chat_template(
    messages, chat_template=source, add_generation_prompt=chat, return_dict=False, **options
  )


def _undated(template: str) -> str:
  """A chat template without today's date (Llama 3.2 writes it): prompts are to be the same on every
  day, or a run could not go on the day after."""
  if "strftime_now" not in template:
    return template
  dated = "".join(f".replace({sign!r}, {text!r})" for sign, text in DATE.items())
  return f"{{% macro strftime_now(format) %}}{{{{ format{dated} }}}}{{% endmacro %}}{template}"


def _check_contents(messages, rendered: str):
  """Raises ValueError where a chat template has not put what a user or system message says into its
  text, spaces around it apart. Of an assistant's some leave out the reasoning, as is meant."""
  for number, message in enumerate(messages, 1):
    if message["role"] != "assistant" and message["content"].strip() not in rendered:
      raise ValueError(_changed(number, len(messages)))


def _changed(number: int, count: int) -> str:
  return (
    f"the chat template drops or changes the content of message {number} of {count}, expected it "
    "as it is"
  )


def _around(tokenizer, rendered: str, count: int) -> tuple[set[int], list[int]]:
  """What a template makes of `count` messages that hold `PLACE`: (ids of control tokens, those
  among `rendered`, in order). Control tokens are the special tokens, and the other added tokens
  that the template writes. Raises ValueError where the template drops a message's content."""
  parts, places = (re.split(PLACE.format(r"(\d+)"), rendered)[i::2] for i in (0, 1))
  if lost := sorted(set(range(count)) - set(map(int, places))):
    raise ValueError(_changed(lost[0] + 1, count))
  written = [i for part in parts if part for i in _ids(tokenizer, part)]
  added = set(tokenizer.added_tokens_decoder) & set(written)
  control = _special(tokenizer) | {i for i in added if not tokenizer.decode([i]).isspace()}
  return control, [i for i in written if i in control]


def _ids(tokenizer, text: str, **options) -> list[int]:
  return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


def _special(tokenizer) -> set[int]:
  added = tokenizer.added_tokens_decoder
  return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def _prefix(tokenizer) -> list[int]:
  """The special tokens that the tokenizer puts before every text (BOS), without those behind it."""
  if not tokenizer.num_special_tokens_to_add():
    return []
  return list(itertools.takewhile(_special(tokenizer).__contains__, tokenizer("0")["input_ids"]))


def encode_text(tokenizer, text: str) -> list[int]:
  """Token ids of a text alone, without prefix or suffix; control tokens typed in it stay text.
  Raises ValueError if the tokenizer cannot encode the text so."""
  try:
    ids = _ids(tokenizer, text, split_special_tokens=True)
  except Exception as error:  # a character outside a character vocabulary is a bare Exception
    raise ValueError(f"the tokenizer cannot encode {_shown(text)}: {error}") from error
  if set(ids) & _special(tokenizer):
    raise ValueError(
      f"found a control token typed in {_shown(text)} that the tokenizer cannot read as text"
    )
  return ids


def encode_raw(tokenizer, text: str) -> list[int]:
  """Token ids of a text as the tokenizer reads it by itself: typed control tokens are control
  tokens, and prefix and suffix (BOS, EOS) stand around it. Raises ValueError if it cannot."""
  try:
    ids = tokenizer(text)["input_ids"]
  except Exception as error:
    raise ValueError(f"the tokenizer cannot encode {_shown(text)}: {error}") from error
  if not ids:
    raise ValueError(f"found the text {_shown(text)}, which has no token, expected at least one")
  return ids


def _shown(value) -> str:
  return repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."


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
