"""Six families of verifiable character tasks: prompt, answer, verifier, and a sloppy demonstrator.

| family | prompt | answer | the wrong method | what levels 0, 1, 2, 3 differ in |
| --- | --- | --- | --- | --- |
| add | `A740580=` | `2310` | forgets carries | larger operand 0-9, 10-99, 100-399, 400-999 |
| sub | `B350940=` | `400` | forgets borrows | first operand, in the same ranges |
| mod | `M477=` | `5` | gives the quotient | modulus 2-3, 4-5, 6-7, 8-9 |
| sort | `S50219=` | `01259` | sorts descending | 3, 4, 5, 6 digits |
| lin | `L3517=` | `4` | ignores b | a in 1-2, 3-4, 5-6, 7-9 |
| chain | `C7+5*3=` | `26` | reads * as + | 1, 2, 3 operations, and 3 with two * or more |

add and sub write every number least significant digit first and zero padded: 047 + 085 = 0132 and
053 - 049 = 004 above, so that each digit of the answer stands at a fixed distance from its
operands'. mod is 47 mod 7. lin solves a x + b = cc: 3 x + 5 = 17. chain works from left to right
modulo 10; the response holds the running values and only the last one counts.

The levels' ranges are disjoint, so family and level are functions of the prompt, and so is the
probability of a sloppy demonstration. A policy trained on such demonstrations knows both ways of
doing a task and picks the right one at a rate that varies from prompt to prompt and can be read
from the prompt: a skill for reinforcement learning to elicit, and a spread for a value prior to
predict.

A prompt belongs to a split by its own hash, crc32(prompt) % 8: 0 held out, 1 validation, the rest
train.

Rows may ask for a scratchpad (`rows(..., scratchpad=N)`): a response is then the answer, ":" and
whatever the policy likes, in demonstrations N random characters. The verdict is given by what
stands before the first ":", so no later token has any part in it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
import zlib

import numpy as np

# Every character of the built-in tokenizer: with <pad> and <eos> a vocabulary of 32.
CHARACTERS = "0123456789+-*/%=<>().,:?ABCLMS"

SPLITS = ("train", "validation", "heldout")
LEVELS = 4
MAX_PROMPT = 9  # characters of the longest prompt
MAX_RESPONSE = 7  # tokens of the longest canonical response, EOS included
SCRATCHPAD = ":"  # between the answer and a scratchpad

# Probability of a sloppy demonstration: level's base + SPREAD * (q % 3 - 1), q a digit of the
# prompt.
SLOPPY_BASE = (0.35, 0.5, 0.65, 0.8)
SLOPPY_SPREAD = 0.25
SLOPPY_RANGE = (0.05, 0.95)
# of the sloppy demonstrations use the family's wrong method, the others slip in one digit
METHOD_SHARE = 0.5


class Family(NamedTuple):
  """One task family. `right` and `sloppy` map a prompt to the demonstrator's response."""

  draw: Callable[[np.random.Generator, int], str]  # (generator, level) -> prompt
  right: Callable[[str], str]
  sloppy: Callable[[str], str]
  digit: int  # index in the prompt of the digit q that spreads the sloppiness


def _operands(rng: np.random.Generator, level: int) -> tuple[int, int]:
  """(a, b) with a >= b, uniform over the pairs of the level: a in [low, high), 0 <= b <= a."""
  low, high = ((0, 10), (10, 100), (100, 400), (400, 1000))[level]
  while True:
    a, b = int(rng.integers(low, high)), int(rng.integers(0, high))
    if b <= a:
      return a, b


def _write(number: int, digits: int) -> str:
  """Zero padded, least significant digit first."""
  return f"{number:0{digits}d}"[::-1]


def _read(text: str) -> int:
  return int(text[::-1])


def _draw_add(rng, level):
  a, b = _operands(rng, level)
  if rng.integers(2):
    a, b = b, a
  return f"A{_write(a, 3)}{_write(b, 3)}="


def _draw_sub(rng, level):
  a, b = _operands(rng, level)
  return f"B{_write(a, 3)}{_write(b, 3)}="


def _draw_mod(rng, level):
  return f"M{rng.integers(100):02d}{rng.integers(2 * level + 2, 2 * level + 4)}="


def _draw_sort(rng, level):
  return "S" + "".join(map(str, rng.integers(10, size=3 + level))) + "="


def _draw_lin(rng, level):
  a = int(rng.integers(*((1, 3), (3, 5), (5, 7), (7, 10))[level]))
  b, x = int(rng.integers(10)), int(rng.integers(10))
  return f"L{a}{b}{a * x + b:02d}="


def _draw_chain(rng, level):
  count = min(level + 1, 3)
  while True:
    times = rng.integers(2, size=count)
    if level < 2 or (times.sum() >= 2) == (level == 3):
      break
  values = rng.integers(10, size=count + 1)
  steps = "".join("+*"[t] + str(v) for t, v in zip(times, values[1:], strict=True))
  return f"C{values[0]}{steps}="


def _right_add(prompt):
  return _write(_read(prompt[1:4]) + _read(prompt[4:7]), 4)


def _sloppy_add(prompt):
  return (
    "".join(str((int(a) + int(b)) % 10) for a, b in zip(prompt[1:4], prompt[4:7], strict=True))
    + "0"
  )


def _right_sub(prompt):
  return _write(_read(prompt[1:4]) - _read(prompt[4:7]), 3)


def _sloppy_sub(prompt):
  return "".join(str((int(a) - int(b)) % 10) for a, b in zip(prompt[1:4], prompt[4:7], strict=True))


def _right_mod(prompt):
  return str(int(prompt[1:3]) % int(prompt[3]))


def _sloppy_mod(prompt):
  return str(int(prompt[1:3]) // int(prompt[3]))


def _right_sort(prompt):
  return "".join(sorted(prompt[1:-1]))


def _sloppy_sort(prompt):
  return _right_sort(prompt)[::-1]


def _right_lin(prompt):
  return str((int(prompt[3:5]) - int(prompt[2])) // int(prompt[1]))


def _sloppy_lin(prompt):
  return str(int(prompt[3:5]) // int(prompt[1]))


def _right_chain(prompt):
  value, trace = int(prompt[1]), ""
  for operator, digit in zip(prompt[2:-1:2], prompt[3:-1:2], strict=True):
    value = (value * int(digit) if operator == "*" else value + int(digit)) % 10
    trace += str(value)
  return trace


def _sloppy_chain(prompt):
  return _right_chain(prompt.replace("*", "+"))


FAMILIES = {
  "add": Family(_draw_add, _right_add, _sloppy_add, 4),
  "sub": Family(_draw_sub, _right_sub, _sloppy_sub, 4),
  "mod": Family(_draw_mod, _right_mod, _sloppy_mod, 2),
  "sort": Family(_draw_sort, _right_sort, _sloppy_sort, 1),
  "lin": Family(_draw_lin, _right_lin, _sloppy_lin, 2),
  "chain": Family(_draw_chain, _right_chain, _sloppy_chain, 1),
}

# Families whose verifier accepts exactly one string: success is one sequence's probability.
EXACT = ("add", "sub", "mod", "sort", "lin")


def split_of(prompt: str) -> str:
  """The split that a prompt belongs to: crc32(prompt) % 8 is 0 = heldout, 1 = validation, else
  train."""
  return {0: "heldout", 1: "validation"}.get(zlib.crc32(prompt.encode()) % 8, "train")


def _make_row(prompt: str, family: str, level: int) -> dict[str, Any]:
  answer = FAMILIES[family].right(prompt)
  if family not in EXACT:
    answer = answer[-1]
  return {"prompt": prompt, "answer": answer, "family": family, "level": level}


def rows(
  split: str, size: int, seed: int, families: Sequence[str] = tuple(FAMILIES), scratchpad: int = 0
) -> list[dict[str, Any]]:
  """`size` rows {"prompt", "answer", "family", "level"} of one split, a function of the arguments
  alone.

  Families take turns row by row and levels take turns within a family, so both are uniform in every
  prefix. The draws of one (family, level) are distinct until its prompts are used up (the one-digit
  subtractions are 55 in all, a level of mod or lin has some 200); then it starts again, so large
  sizes hold each prompt of a small level several times. With a `scratchpad` of N > 0 characters
  the rows have "scratchpad": N beside.

  Raises ValueError for an unknown split or family.
  """
  if split not in SPLITS:
    raise ValueError(
      f"split of the built-in tasks: expected one of {', '.join(SPLITS)}, found {split!r}"
    )
  unknown = [name for name in families if name not in FAMILIES]
  if unknown or not families:
    raise ValueError(
      f"families of the built-in tasks: expected names among {', '.join(FAMILIES)}, found "
      f"{tuple(families)!r}"
    )
  rng = np.random.default_rng([seed, SPLITS.index(split)])
  more = {"scratchpad": scratchpad} if scratchpad else {}
  seen = {}
  result = []
  for i in range(size):
    family, level = families[i % len(families)], i // len(families) % LEVELS
    used = seen.setdefault((family, level), set())
    result.append(_make_row(_draw_new(rng, split, family, level, used), family, level) | more)
  return result


def _draw_new(rng, split: str, family: str, level: int, used: set[str]) -> str:
  """A prompt of the split that is not in `used`, to which it is added; `used` is emptied when it is
  full.

  It counts as full after 50 repeated draws, and ten more for each prompt that it holds: a prompt is
  then still missing with a probability of about exp(-10).
  """
  draw, misses = FAMILIES[family].draw, 0
  while True:
    prompt = draw(rng, level)
    if prompt in used:
      misses += 1
      if misses > 10 * len(used) + 50:
        used.clear()
    elif split_of(prompt) == split:
      used.add(prompt)
      return prompt


def canonical(row: dict[str, Any]) -> str:
  """The response of a flawless demonstrator: the answer, or for chain the whole trace that ends in
  it. Of a row with a scratchpad it is the part that decides, ":" included."""
  return FAMILIES[row["family"]].right(row["prompt"]) + _separator(row)


def _separator(row) -> str:
  return SCRATCHPAD if row.get("scratchpad") else ""


def sloppy_probability(row: dict[str, Any]) -> float:
  """clip(base[level] + spread * (q % 3 - 1), .05, .95), where q is a digit of the prompt."""
  digit = int(row["prompt"][FAMILIES[row["family"]].digit])
  probability = SLOPPY_BASE[row["level"]] + SLOPPY_SPREAD * (digit % 3 - 1)
  return min(max(probability, SLOPPY_RANGE[0]), SLOPPY_RANGE[1])


def demonstration(row: dict[str, Any], rng: np.random.Generator) -> str:
  """A response as the noisy demonstrator writes it, without EOS.

  With probability `sloppy_probability(row)` it is careless: half of the time it uses the
  family's wrong method, otherwise one digit slips. Slips spread over many strings while the right
  one is one, so that the most likely response is right more often than a sampled one. A scratchpad
  holds random characters, each equally likely, none of them ":".
  """
  family = FAMILIES[row["family"]]
  draw, sloppy = rng.random(), sloppy_probability(row)
  if draw < sloppy * METHOD_SHARE:
    response = family.sloppy(row["prompt"])
  else:
    response = family.right(row["prompt"])
    response = response if draw >= sloppy else _slip(response, rng)
  return response + _separator(row) + _scribble(row.get("scratchpad", 0), rng)


def _scribble(length: int, rng: np.random.Generator) -> str:
  characters = CHARACTERS.replace(SCRATCHPAD, "")
  return "".join(characters[i] for i in rng.integers(len(characters), size=length))


def _slip(response: str, rng: np.random.Generator) -> str:
  """One digit of the response replaced by another one."""
  index = int(rng.integers(len(response)))
  digit = (int(response[index]) + int(rng.integers(1, 10))) % 10
  return f"{response[:index]}{digit}{response[index + 1 :]}"


def verify(prompt: str, response: str, row: dict[str, Any]) -> float:
  """1.0 for a correct response, else 0.0; never raises.

  Exact families: the response must equal `row["answer"]` character for character (no spaces, no
  leading zeros beyond the format). chain: the response must be a non-empty string of the digits
  0-9, of which only the last is compared; the digits before it, right, wrong, missing or too many,
  do not count. Where the row has a scratchpad, the response is what stands before the first ":",
  and a response without one scores 0. `response` is the text without EOS; a row without a known
  family scores 0.
  """
  del prompt
  if not isinstance(response, str) or not isinstance(row, dict):
    return 0.0
  if row.get("scratchpad"):
    response, separator, _ = response.partition(SCRATCHPAD)
    if not separator:
      return 0.0
  family, answer = row.get("family"), row.get("answer")
  if family in EXACT:
    return float(response == answer)
  if family == "chain":
    return float(response.isascii() and response.isdigit() and response[-1] == answer)
  return 0.0
