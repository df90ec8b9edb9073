r"""Lists that go on: 1, 3, 5, \ldots, 99 as the terms that it stands for."""

from fractions import Fraction
import itertools
from typing import NamedTuple

import sympy

from v05_jax.rewards.math import values
from v05_jax.rewards.math.exact import Irrational, TooLarge, exact
from v05_jax.rewards.math.kinds import Dots, Value

LONGEST = 1000  # terms that are written out
BITS = 10_000  # of the terms


class Progression(NamedTuple):
  """First term, what is added or multiplied from each to the next, and the last term, if any."""

  first: Fraction
  step: Fraction
  multiplied: bool
  last: Value | None


def progression(parts: tuple) -> Progression | None:
  r"""The arithmetic or geometric one of a list with one \ldots; None if it is no such list."""
  dots = [i for i, part in enumerate(parts) if isinstance(part, Dots)]
  if len(dots) != 1 or dots[0] < 2 or len(parts) - dots[0] > 2:
    return None
  terms = [_rational(part) for part in parts[: dots[0]]]
  if None in terms:
    return None
  last = parts[-1] if len(parts) - dots[0] == 2 else None
  if last is not None and not isinstance(last, Value):
    return None
  differences = {b - a for a, b in itertools.pairwise(terms)}
  if len(differences) == 1 and 0 not in differences:
    return Progression(terms[0], differences.pop(), False, last)
  if len(terms) > 2 and 0 not in terms:
    ratios = {b / a for a, b in itertools.pairwise(terms)}
    if len(ratios) == 1 and abs(next(iter(ratios))) != 1:
      return Progression(terms[0], ratios.pop(), True, last)
  return None


def terms(found: Progression) -> list[Fraction] | None:
  """All terms of a finite one; None if it has no last number or does not reach it exactly."""
  last = found.last and _rational(found.last)
  if last is None:
    return None
  term, terms = found.first, []
  while len(terms) < LONGEST and term.numerator.bit_length() + term.denominator.bit_length() < BITS:
    terms.append(term)
    if term == last:
      return terms
    term = term * found.step if found.multiplied else term + found.step
  return None


def same(a: Progression, b: Progression) -> bool:
  """Whether both have the same terms."""
  if a[:3] != b[:3] or (a.last is None) != (b.last is None):
    return False
  return a.last is None or values.same(a.last.total, b.last.total)


def _rational(part: object) -> Fraction | None:
  if not isinstance(part, Value):
    return None
  try:
    return exact(part.total)
  except (Irrational, TooLarge, ArithmeticError):
    return None


def written_out(parts: tuple) -> tuple:
  """The list with all its terms, as it is if it has no dots or no end."""
  found = progression(parts)
  numbers = found and terms(found)
  if not numbers:
    return parts
  like = parts[0]
  value = lambda n: like._replace(
    text=str(n), expression=sympy.Rational(n.numerator, n.denominator), count=Fraction(1)
  )
  return tuple(map(value, numbers))
