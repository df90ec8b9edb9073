"""What a row of data may hold: its prompt, its answer, and the other fields that mean something.

| field | what it may be |
| --- | --- |
| prompt | a text, or messages {"role", "content"} that end with one user message; none is empty |
| answer | a text that is not empty, a finite number, or a list of these, all of which are wanted |
| max_tokens | a whole number from 1 to 2**31 - 1, or null: response tokens at most |
| family, benchmark | a text, or null: whose accuracy the row counts towards |
| level | a text, a finite number, or null |

Texts are valid Unicode. All other fields may be anything: rewards get the whole row.
"""

import decimal
import math
import re
from typing import Any

from v05_jax.names import show

Row = dict[str, Any]
Message = dict[str, Any]  # "role" and "content", and whatever else a chat template reads

MOST_TOKENS = 2**31 - 1
HALF_PAIR = re.compile("[\ud800-\udfff]")
MESSAGES = 'messages {"role": text, "content": text} that end with one user message'


def field(row: Row, name: str):
  """The value of a field, whose name may have dots for nested objects; None where there is none."""
  value = row
  for part in name.split("."):
    value = value.get(part) if isinstance(value, dict) else None
  return value


def conversation(prompt: list, where: str) -> list[Message]:
  """A list of messages as chat templates take them: without the keys that are null. Raises
  ValueError that names `where` and the message."""
  for number, message in enumerate(prompt, 1):
    for key in ("role", "content"):
      value = message.get(key) if isinstance(message, dict) else None
      if not _is_text(value):
        found = show(value if isinstance(message, dict) else message)
        raise ValueError(
          f"{where}: message {number}: found {found} as {key}, expected a text that is not empty, "
          f"in {MESSAGES}"
        )
  if not prompt or prompt[-1]["role"] != "user":
    raise ValueError(f"{where}: found {show(prompt)} as prompt, expected a text or {MESSAGES}")
  return [{key: x for key, x in message.items() if x is not None} for message in prompt]


def prompt_text(prompt, where: str) -> str:
  """A prompt as one text: of messages the contents of all but the system's, with an empty line
  between. Raises ValueError that names `where` for anything but a prompt."""
  if isinstance(prompt, list):
    turns = conversation(prompt, where)
    return "\n\n".join(turn["content"] for turn in turns if turn["role"] != "system")
  if not _is_text(prompt):
    raise ValueError(
      f"{where}: found {show(prompt)} as prompt, expected a text that is not empty, or {MESSAGES}"
    )
  return prompt


def answer_text(answer, where: str) -> str:
  """A text, a number, or a list of them, all of which are wanted, as a text. Raises ValueError for
  anything else."""
  parts = answer if isinstance(answer, list) else [answer]
  texts = [str(x) if _is_number(x) else x for x in parts]
  if not texts or not all(map(_is_text, texts)):
    raise ValueError(
      f"{where}: found {show(answer)} as answer, expected a text that is not empty, a finite "
      "number, or a list of these"
    )
  return ", ".join(x.strip().strip("$") for x in texts) if isinstance(answer, list) else texts[0]


def checked(row: Row, where: str) -> Row:
  """The row, with its `max_tokens` as an int. Raises ValueError that names `where` and the field
  for a value that the table above has not."""
  rules = {
    "max_tokens": (_is_count, f"a whole number from 1 to {MOST_TOKENS}, or null"),
    "family": (lambda x: isinstance(x, str) and _is_unicode(x), "a text, or null"),
    "benchmark": (lambda x: isinstance(x, str) and _is_unicode(x), "a text, or null"),
    "level": (lambda x: _is_text(x) or _is_number(x), "a text, a finite number, or null"),
  }
  for key, (holds, expected) in rules.items():
    if row.get(key) is not None and not holds(row[key]):
      raise ValueError(f"{where}: found {show(row[key])} as {key}, expected {expected}")
  most = row.get("max_tokens")
  return row if most is None else {**row, "max_tokens": int(most)}


def _is_text(value) -> bool:
  return isinstance(value, str) and bool(value.strip()) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
  """Whether the text has no half of a surrogate pair, which JSON can hold and no tokenizer read."""
  return HALF_PAIR.search(text) is None


def _is_number(value) -> bool:
  number = isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)
  return number and (isinstance(value, int) or math.isfinite(value))


def _is_count(value) -> bool:
  # A column of a .parquet file with rows that lack it may hold 64.0 for 64.
  return _is_number(value) and 1 <= value <= MOST_TOKENS and value == int(value)
