r"""The kinds of answers that `reading` tells apart."""

from fractions import Fraction
from typing import NamedTuple

import sympy

from v05_jax.rewards.math import units, values


class Value(NamedTuple):
  """An expression, times what words like "million" make of it, and its unit."""

  text: str
  expression: sympy.Basic
  count: Fraction
  unit: units.Unit
  compound: bool = False  # of several units: 5 h 30 min

  @property
  def total(self) -> sympy.Basic:
    return values.times(self.expression, self.count)


class Words(NamedTuple):
  text: str
  exact: bool  # case counts: BDAC, and not in True
  choice: bool = False  # (B)
  says: object = None  # the answer that stands behind the letter of a choice: (B) 12


class Parts(NamedTuple):
  """Several answers: a list of no order, or of an order where it goes on or its parts are named;
  `brackets` is what is around them: "", "{}", "()", "[)", "<>", ..."""

  parts: tuple
  brackets: str = ""
  ordered: bool = False
  joined: str = ""  # "or" or "and", if it is written


class Matrix(NamedTuple):
  rows: tuple


class Union(NamedTuple):
  members: tuple  # intervals and sets
  without: tuple = ()  # and what is left out of them


class Reals(NamedTuple):
  pass


class Named(NamedTuple):
  """x = 5, f(x) = x^2, x in {1, 2}."""

  name: str
  answer: object
  equation: object = None  # the Equation that it also is


class Equation(NamedTuple):
  """A chain a = b, or a < x < b: one sign fewer than sides."""

  sides: tuple
  signs: tuple


class Residues(NamedTuple):
  """x = 1 or 4 modulo 5; a name of "" for a number modulo 5."""

  name: str
  residues: frozenset
  modulus: int


class Congruence(NamedTuple):
  """left and right, expressions, are congruent modulo a third."""

  left: sympy.Basic
  right: sympy.Basic
  modulus: sympy.Basic


class Ratio(NamedTuple):
  """2 : 3, or the time 10:30."""

  parts: tuple
  unit: units.Unit
  clock: bool  # it may be a time


class Digits(NamedTuple):
  """101_2."""

  digits: str
  base: int


class Dots(NamedTuple):
  pass


Answer = (
  Value
  | Words
  | Parts
  | Matrix
  | Union
  | Reals
  | Named
  | Equation
  | Residues
  | Congruence
  | Ratio
  | Digits
  | Dots
)

EMPTY = Parts((), "{}")
