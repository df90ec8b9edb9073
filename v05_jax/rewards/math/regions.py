"""Sets of real numbers: intervals, unions, inequalities in one variable."""

import functools

import mpmath
import sympy

from v05_jax.rewards.math import values
from v05_jax.rewards.math.kinds import Answer, Equation, Named, Parts, Reals, Union, Value

TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def is_region(answer: Answer) -> bool:
  """Whether it can be nothing but a set of real numbers."""
  if isinstance(answer, Parts) and answer.joined:
    return all(is_region(part) for part in answer.parts)
  if isinstance(answer, Named):
    return is_region(answer.answer)
  inequality = isinstance(answer, Equation) and "=" not in answer.signs
  return inequality or isinstance(answer, (Union, Reals))


class Interval:
  """low to high, with (value, whether it belongs) of each end."""

  def __init__(self, low, low_in: bool, high, high_in: bool):
    self.low, self.low_in, self.high, self.high_in = low, low_in, high, high_in


def same_regions(gold: Answer, found: Answer) -> bool | None:
  """Whether two sets of real numbers are equal; None if one of them is none, or has ends with
  variables."""
  names = [_variable(x) for x in (gold, found)]
  if None not in names and names[0] != names[1]:
    return None
  try:
    a, b = _merged(_intervals(gold)), _merged(_intervals(found))
  except (TypeError, ValueError):
    return None
  same = lambda x, y: (
    x.low_in == y.low_in
    and x.high_in == y.high_in
    and values.same(x.low, y.low)
    and values.same(x.high, y.high)
  )
  return len(a) == len(b) and all(map(same, a, b))


def _variable(answer: Answer) -> str | None:
  if isinstance(answer, Equation):
    return next((side.text for side in answer.sides if side.expression.is_Symbol), None)
  if isinstance(answer, Parts) and answer.parts:
    return _variable(answer.parts[0])
  return answer.name if isinstance(answer, Named) else None


def _intervals(answer: Answer) -> list[Interval]:
  """The intervals of a set of real numbers. Raises ValueError if it is none."""
  if isinstance(answer, Named):
    return _intervals(answer.answer)
  if isinstance(answer, Reals):
    return [Interval(-sympy.oo, False, sympy.oo, False)]
  if isinstance(answer, Value):
    raise ValueError("a number")
  if isinstance(answer, Equation):
    return _inequality(answer)
  if isinstance(answer, Union):
    return _left_out(_all(answer.members), answer.without)
  if isinstance(answer, Parts) and answer.joined == "and" and all(map(is_region, answer.parts)):
    return functools.reduce(_intersection, map(_intervals, answer.parts))
  if isinstance(answer, Parts) and answer.joined == "or" and all(map(is_region, answer.parts)):
    return _all(answer.parts)
  if isinstance(answer, Parts) and answer.brackets == "{}":
    points = [_end(part) for part in answer.parts]
    return [Interval(point, True, point, True) for point in points]
  if (
    isinstance(answer, Parts)
    and len(answer.parts) == 2
    and answer.brackets in ("()", "[]", "(]", "[)")
  ):
    low, high = map(_end, answer.parts)
    return [Interval(low, answer.brackets[0] == "[", high, answer.brackets[1] == "]")]
  raise ValueError("no set of real numbers")


def _all(answers: tuple) -> list[Interval]:
  return [interval for answer in answers for interval in _intervals(answer)]


def _end(answer: Answer):
  if not isinstance(answer, Value) or values.number(answer.total) is None:
    raise ValueError("no real number")
  return answer.total


def _inequality(answer: Equation) -> list[Interval]:
  """x > 3, 0 <= x < 1, x != 2, |x - 1| < 2."""
  if (found := _distance(answer)) is not None:
    return found
  places = [i for i, side in enumerate(answer.sides) if side.expression.is_Symbol]
  if len(places) != 1 or len(answer.sides) > 3 or (len(answer.sides) == 3 and places != [1]):
    raise ValueError("not solved")
  found = [Interval(-sympy.oo, False, sympy.oo, False)]
  for i, sign in enumerate(answer.signs):
    other = answer.sides[i + 1] if i in places else answer.sides[i]
    sign = sign if i in places else TURNED[sign]
    end = _end(other)
    if sign == "!=":
      found = _intersection(
        found, [Interval(-sympy.oo, False, end, False), Interval(end, False, sympy.oo, False)]
      )
    elif sign in ("<", "<="):
      found = _intersection(found, [Interval(-sympy.oo, False, end, sign == "<=")])
    elif sign in (">", ">="):
      found = _intersection(found, [Interval(end, sign == ">=", sympy.oo, False)])
    else:
      raise ValueError("an equation")
  return found


def _distance(answer: Equation) -> list[Interval] | None:
  """|x| < 3, |x - 1| >= 2; None if it is no such inequality."""
  sides, sign = answer.sides, answer.signs[0]
  if len(sides) == 2 and isinstance(sides[1].expression, sympy.Abs):
    sides, sign = sides[::-1], TURNED[sign]
  inside = sides[0].expression
  if len(sides) != 2 or not isinstance(inside, sympy.Abs) or sign not in ("<", "<=", ">", ">="):
    return None
  letters = [x for x in sympy.Add.make_args(inside.args[0]) if x.is_Symbol]
  middle = -(inside.args[0].doit() - letters[0]) if letters else None
  if middle is None or values.number(middle) is None:
    return None
  radius, closed = _end(sides[1]), sign in ("<=", ">")
  low, high = middle - radius, middle + radius
  if sign in ("<", "<="):
    return [Interval(low, closed, high, closed)]
  return [Interval(-sympy.oo, False, low, not closed), Interval(high, not closed, sympy.oo, False)]


def _left_out(intervals: list[Interval], without: tuple) -> list[Interval]:
  for answer in without:
    for hole in _intervals(answer):
      rest = [
        Interval(-sympy.oo, False, hole.low, not hole.low_in),
        Interval(hole.high, not hole.high_in, sympy.oo, False),
      ]
      intervals = _intersection(intervals, rest)
  return intervals


def _intersection(some: list[Interval], others: list[Interval]) -> list[Interval]:
  found = []
  for a in some:
    for b in others:
      low, low_in = _later((a.low, a.low_in), (b.low, b.low_in), 1)
      high, high_in = _later((a.high, a.high_in), (b.high, b.high_in), -1)
      x, y = values.number(low), values.number(high)
      if x < y or (x == y and low_in and high_in):
        found.append(Interval(low, low_in, high, high_in))
  return found


def _later(a: tuple, b: tuple, direction: int) -> tuple:
  """The end that leaves less."""
  x, y = values.number(a[0]), values.number(b[0])
  if x == y:
    return a[0], a[1] and b[1]
  return a if (x > y) == (direction > 0) else b


def _merged(intervals: list[Interval]) -> list[Interval]:
  """In order, and those that touch each other as one."""
  order = sorted(intervals, key=lambda x: (values.number(x.low), not x.low_in))
  found = []
  for one in order:
    last = found[-1] if found else None
    if last is not None and _touch(last, one):
      x, y = values.number(last.high), values.number(one.high)
      if y > x:
        last.high, last.high_in = one.high, one.high_in
      elif y == x:
        last.high_in |= one.high_in
    else:
      found.append(Interval(one.low, one.low_in, one.high, one.high_in))
  return found


def _touch(a: Interval, b: Interval) -> bool:
  x, y = values.number(a.high), values.number(b.low)
  return y < x or (y == x and (a.high_in or b.low_in) and mpmath.isfinite(x))
