"""Texts as token ids: prompts, with what stands around them, and responses to learn from.

The contents of a prompt are text: a `<|im_end|>` that somebody has typed into a problem stays these
ten characters. Only templates and the tokenizer's own prefix (BOS) make control tokens. A prompt
without typed control tokens has exactly the tokens that transformers gives it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import inspect
import itertools
import json
import re
from typing import Any, NamedTuple

from v05_jax.models.tokenizer import special_tokens
from v05_jax.names import show

ROLES = ("user", "assistant")
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


class Wrapping(NamedTuple):
  """What stands around a prompt."""

  chat: bool = False  # the tokenizer's chat template, where it has one
  template: str = "{prompt}"  # put around a text, or the last message's content, for `{prompt}`
  variables: Mapping[str, Any] = {}  # that the chat template reads, such as enable_thinking


def prompt_encoder(tokenizer, wrapping: Wrapping = Wrapping()) -> Callable:
  """-> encode(prompt) -> token ids of a prompt: a text, or a list of messages {"role", "content"}.

  With a chat template a text becomes one user message, and the generation prompt follows the
  messages. Without one the tokenizer's prefix (BOS) stands before the text; what the tokenizer
  appends (EOS) is left out, since the response follows.

  Raises ValueError for variables that the chat template does not name. `encode` raises it for
  several messages without a chat template, for a prompt that tokenizer or chat template refuse or
  that has no token, for a content that the chat template drops or changes, and for typed control
  tokens that this tokenizer cannot read as text.
  """
  chat = bool(wrapping.chat and tokenizer.chat_template)
  _check_variables(tokenizer, wrapping.variables if wrapping.chat else {})
  start = _prefix(tokenizer) if not chat else []
  apply = functools.partial(_apply, tokenizer, wrapping._replace(chat=chat))

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
      raise ValueError(f"the tokenizer cannot encode the prompt {show(prompt)}: {error}") from error

  return explained


def encode_prompts(
  tokenizer, prompts: Sequence, wrapping: Wrapping = Wrapping()
) -> Iterator[list[int]]:
  """Token ids of each of many prompts: see `prompt_encoder`, whose errors come in their turn. Texts
  without a chat template are encoded in one call, which takes a tenth of the time."""
  encode, found = prompt_encoder(tokenizer, wrapping), []
  around = functools.partial(wrapping.template.replace, "{prompt}")
  chat = wrapping.chat and tokenizer.chat_template
  if not chat and all(isinstance(x, str) for x in prompts):
    start = _prefix(tokenizer)
    with contextlib.suppress(Exception):  # of the tokenizer's; `encode` says which text it is
      control, made = _around(tokenizer, around(PLACE.format(0)), 1)
      found = _ids(tokenizer, [around(text) for text in prompts])
  for prompt, ids in itertools.zip_longest(prompts, found):
    # `encode` handles typed control tokens, and prompts without any token.
    plain = ids and [i for i in ids if i in control] == made
    yield [*start, *ids] if plain else encode(prompt)


def end_of_turn(tokenizer) -> int:
  """The token that ends an assistant's message: the first control token that the chat template
  writes after it. EOS without a chat template, and where the template writes none, or one that
  begins the next message."""
  messages = [{"role": role, "content": PLACE.format(i)} for i, role in enumerate(ROLES)]
  end = []
  if tokenizer.chat_template:
    # of Jinja's own kinds, and what templates raise: a template without assistants
    with contextlib.suppress(Exception):
      rendered = _apply(tokenizer, Wrapping(chat=True), messages, asked=False, tokenize=False)
      _, head = _around(tokenizer, rendered.partition(PLACE.format(0))[0], 0)
      _, end = _around(tokenizer, rendered.partition(PLACE.format(1))[2], 0)
      begin = next((i for i in head if i != tokenizer.bos_token_id), None)
      end = end if end[:1] != [begin] else []
  return end[0] if end else tokenizer.eos_token_id


def _apply(tokenizer, wrapping: Wrapping, messages, asked: bool = True, **options):
  """The tokens of messages, or with tokenize=False their text, as `wrapping` says; asked: with the
  generation prompt."""
  template = wrapping.template
  if wrapping.chat:
    content = template.replace("{prompt}", messages[-1]["content"])
    messages = [*messages[:-1], {**messages[-1], "content": content}]
    source, options = _undated(tokenizer.get_chat_template()), {**wrapping.variables, **options}
  else:  # the template's parts as literals of a chat template, which may hold control tokens
    literals = [f"{{{{ {part!r} }}}}" for part in template.split("{prompt}")]
    source, asked = "{{ messages[0]['content'] }}".join(literals), False
  return tokenizer.apply_chat_template(
    messages, chat_template=source, add_generation_prompt=asked, return_dict=False, **options
  )


def _check_variables(tokenizer, variables: Mapping[str, Any]) -> None:
  """Raises ValueError for a variable that the chat template does not name, which would do nothing,
  and for one that is set here."""
  ours = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
  text = tokenizer.get_chat_template() if tokenizer.chat_template else ""
  for name in variables:
    if name in ours or not re.search(rf"\b{name}\b", text):
      raise ValueError(
        f"config.data.chat_template_kwargs: found {name!r}, expected a variable that the chat "
        f"template of {tokenizer.name_or_path} reads"
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
  control = special_tokens(tokenizer) | {i for i in added if not tokenizer.decode([i]).isspace()}
  return control, [i for i in written if i in control]


def _ids(tokenizer, text: str, **options) -> list[int]:
  return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


def _prefix(tokenizer) -> list[int]:
  """The special tokens that the tokenizer puts before every text (BOS), without those behind it."""
  if not tokenizer.num_special_tokens_to_add():
    return []
  return list(
    itertools.takewhile(special_tokens(tokenizer).__contains__, tokenizer("0")["input_ids"])
  )


def encode_text(tokenizer, text: str) -> list[int]:
  """Token ids of a text alone, without prefix or suffix; control tokens typed in it stay text.
  Raises ValueError if the tokenizer cannot encode the text so."""
  try:
    ids = _ids(tokenizer, text, split_special_tokens=True)
  except Exception as error:  # a character outside a character vocabulary is a bare Exception
    raise ValueError(f"the tokenizer cannot encode {show(text)}: {error}") from error
  if set(ids) & special_tokens(tokenizer):
    raise ValueError(
      f"found a control token typed in {show(text)} that the tokenizer cannot read as text"
    )
  return ids


def encode_raw(tokenizer, text: str) -> list[int]:
  """Token ids of a text as the tokenizer reads it by itself: typed control tokens are control
  tokens, and prefix and suffix (BOS, EOS) stand around it. Raises ValueError if it cannot."""
  try:
    ids = tokenizer(text)["input_ids"]
  except Exception as error:
    raise ValueError(f"the tokenizer cannot encode {show(text)}: {error}") from error
  if not ids:
    raise ValueError(f"found the text {show(text)}, which has no token, expected at least one")
  return ids
