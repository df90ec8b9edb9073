"""The text of optimised HLO, XLA's language, as instructions and types."""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


class Instruction(NamedTuple):
  """One line: `%name = type opcode(operands), rest`."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  argument: str  # the text between the brackets
  rest: str
  root: bool


def dims(text: str) -> tuple[int, ...]:
  """The shape of an array's type."""
  return tuple(int(n) for n in _ARRAY.search(text)[2].split(",") if n)


def size(text: str) -> float:
  """Bytes of a type, tuples added up, without what lies in on-chip memory (a TPU's space 1 and
  above)."""
  return sum(bytes_of(x) for x in arrays(text) if not re.search(r"S\([1-9]\d*\)", x))


def bytes_of(text: str) -> float:
  """Bytes of a type, tuples added up, wherever it lies."""
  return float(
    sum(
      math.prod(int(n) for n in shape.split(",") if n)
      * int(field(kind, r"(\d+)") or 8)  # bits, 8 of a pred
      / 8
      for kind, shape, _ in _ARRAY.findall(text)
      if kind != "token"
    )
  )


def parameters(table) -> list[Instruction]:
  """The parameters of a computation, in order."""
  return sorted(
    (line for line in table.values() if line.opcode == "parameter"),
    key=lambda line: int(line.argument),
  )


def arrays(text: str) -> list[str]:
  """The types of the arrays in a type, which may be a tuple."""
  return [found[0] for found in _ARRAY.finditer(text)]


def field(text: str, pattern: str) -> str:
  """What the group of a regular expression finds first; "" where it finds nothing."""
  found = re.search(pattern, text)
  return found[1] if found else ""


def computations(text: str) -> Iterator[tuple[str, bool, list[Instruction]]]:
  """(name, whether it is the entry, its instructions) of each computation."""
  head, lines = None, []
  for line in text.splitlines():
    if head is None:
      if (found := _HEAD.match(line)) and not line.startswith("HloModule"):
        head, lines = found, []
    elif line.rstrip() == "}":
      yield head[2], bool(head[1]), lines
      head = None
    elif found := _LINE.match(line):
      lines.append(_instruction(found, line[found.end() :]))


def _instruction(found, text: str) -> Instruction:
  text = re.sub(r"/\*index=\d+\*/", "", text)
  end = _closed(text, 0) if text.startswith("(") else text.index(" ")
  kind, text = text[:end], text[end:].lstrip()
  opening = text.index("(")
  end = _closed(text, opening)
  argument = text[opening + 1 : end - 1]
  operands = tuple(re.findall(r"%([\w.\-]+)", argument))
  return Instruction(found[2], kind, text[:opening], operands, argument, text[end:], bool(found[1]))


def _closed(text: str, start: int) -> int:
  """The place behind the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if not depth:
      return i + 1
  raise ValueError(f"HLO: found no end of the bracket in {text[start : start + 80]!r}")
