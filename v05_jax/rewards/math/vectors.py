r"""Sums and multiples of vectors: 2\langle 1, 2\rangle + t(3, 4), 3\mathbf{i} - \mathbf{j}.

All are read as expressions in the unit vectors (`unit_vector`).
"""

import re

import sympy

from v05_jax.rewards.math import values
from v05_jax.rewards.math.brackets import CLOSING, OPENING, depths, split

NAMES = "uvw"
LINE, BLANK = r"\\", "\\ "  # what ends a line, what may stand around all lines
_COLUMN = re.compile(r"\\begin\{[a-z]*matrix\}(?P<cells>[^&]*?)\\end\{[a-z]*matrix\}")
# What may stand before a vector: nothing, a sign, a number, a parameter.
_FACTOR = re.compile(
  r"(?:^|[-+]|\d|\\frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\}|\\cdot|\\times"
  r"|(?<![a-zA-Z\\])[skrt]|\\(?:lambda|mu|pi))\s*$"
)


def unit_vector(name: str) -> str:
  return rf"\mathcal{{{name}}}"


def combination(text: str) -> str | None:
  r"""The text with unit vectors in place of tuples and columns; None if it has none."""
  columns = lambda m: rf"\langle {','.join(m['cells'].strip(BLANK).split(LINE))} \rangle"
  text = _COLUMN.sub(columns, text)
  written, start, many = "", 0, 0
  tokens = list(depths(text))
  for place, (at, token, depth) in enumerate(tokens):
    if depth or token not in ("(", r"\langle") or at < start:
      continue
    rest = enumerate(tokens[place:], place)
    end = next((i for i, (_, x, deep) in rest if x in CLOSING and not deep), None)
    if end is None or CLOSING[tokens[end][1]] != {"(": ")", "<": ">"}[OPENING[token]]:
      return None
    cells, _ = split(text[at + len(token) : tokens[end][0]], (",",))
    if not 2 <= len(cells) <= 3:
      continue
    before = written + text[start:at]
    if not _FACTOR.search(before):
      return None
    vector = "+".join(f"({cell}){unit_vector(name)}" for cell, name in zip(cells, NAMES))
    written = f"{before}({vector})"
    start = tokens[end][0] + len(tokens[end][1])
    many += 1
  return written + text[start:] if many else None


def as_expression(components: list[sympy.Basic]) -> sympy.Expr | None:
  """A tuple of two or three as a sum of unit vectors."""
  if not 2 <= len(components) <= 3:
    return None
  vectors = [values.parse(unit_vector(name)) for name in NAMES]
  terms = [sympy.Mul(x, vector, evaluate=False) for x, vector in zip(components, vectors)]
  return sympy.Add(*terms, evaluate=False)


def is_vector(x: sympy.Basic) -> bool:
  """Whether an expression has unit vectors."""
  units = {values.parse(unit_vector(name)) for name in NAMES}
  return bool(units & x.free_symbols)
