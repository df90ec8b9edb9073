"""When two answers are equal. The gold one says what is asked: x = 5 answers 5, and 5 answers x = 5."""

from collections.abc import Callable
import functools
import math
import re

import mpmath
import sympy

from v05_jax.rewards.math import units, values
from v05_jax.rewards.math.reading import (
  Answer,
  Digits,
  Dots,
  Equation,
  Matrix,
  Named,
  Parts,
  Ratio,
  Reals,
  Residues,
  Union,
  Value,
  Words,
)

LIFT = 100_000  # common modulus up to which congruences of different moduli are compared
ROUND = ("()", "<>")


def equal(gold: Answer, found: Answer) -> bool:
  """Whether two answers that were read are the same."""
  gold, found = _unnamed(gold, found)
  if isinstance(found, Digits) and not isinstance(gold, Digits) and found.base != 10:
    return False
  if _region(gold) or _region(found):
    if (verdict := _same_regions(gold, found)) is not None:
      return verdict
  gold, found = _alone(gold, found), _alone(found, gold)
  for kind, other, judge in _JUDGES:
    if isinstance(gold, kind) and isinstance(found, other):
      return judge(gold, found)
    if isinstance(gold, other) and isinstance(found, kind) and kind is not other:
      return judge(found, gold)
  return type(gold) is type(found) and gold == found


def _unnamed(gold: Answer, found: Answer) -> tuple[Answer, Answer]:
  """Both without a name where one has none."""
  if isinstance(found, Named) and not isinstance(gold, (Named, Equation, Parts)):
    return gold, found.answer
  if isinstance(gold, Named) and not isinstance(found, (Named, Equation, Parts)):
    return gold.answer, found
  if isinstance(found, Named) and isinstance(gold, Parts) and not _holds_names(gold):
    return gold, found.answer
  if isinstance(gold, Named) and isinstance(found, Parts) and not _holds_names(found):
    return gold.answer, found
  if isinstance(gold, Named) and isinstance(found, Parts):
    return _spread(gold), found
  if isinstance(found, Named) and isinstance(gold, Parts):
    return gold, _spread(found)
  # 3 + 4 = 7 answers 7.
  if isinstance(found, Equation) and isinstance(gold, Value) and set(found.signs) == {"="}:
    return gold, found.sides[-1]
  return gold, found


def _alone(answer: Answer, other: Answer) -> Answer:
  """The only member of a set, where the other answer is no set."""
  single = isinstance(answer, Parts) and answer.brackets == "{}" and len(answer.parts) == 1
  return answer.parts[0] if single and not isinstance(other, Parts) else answer


def _holds_names(answer: Parts) -> bool:
  return any(isinstance(part, (Named, Equation)) for part in answer.parts)


def _spread(answer: Named) -> Answer:
  """(a, b) = (1, 2) as a = 1, b = 2."""
  names = answer.name.strip("()").split(",")
  if isinstance(answer.answer, Parts) and len(names) == len(answer.answer.parts) > 1:
    return Parts(tuple(Named(n, part) for n, part in zip(names, answer.answer.parts)), "", True)
  if isinstance(answer.answer, Parts) and not answer.answer.ordered:
    return Parts(tuple(Named(answer.name, part) for part in answer.answer.parts))
  return answer


# --- Numbers and words


def _same_values(gold: Value, found: Value) -> bool:
  if not units.comparable(gold.unit, found.unit):
    return False
  a, b = _counted(gold), _counted(found)
  percent = [v.unit == units.PERCENT for v in (gold, found)]
  if percent[0] != percent[1]:  # 50% is 0.5, and 50 where percents are asked
    bare, share = (a, b) if percent[1] else (b, a)
    size = values.number(share)
    if size is not None and abs(size) >= 1 and values.same(bare, share):
      return True
    return values.same(bare, sympy.Mul(share, sympy.Rational(1, 100), evaluate=False))
  degrees = [v.unit.dimension.startswith("angle") for v in (gold, found)]
  if degrees[0] != degrees[1] and (b if degrees[0] else a).has(sympy.pi):  # 60 degrees are pi/3
    right = sympy.Mul(a if degrees[0] else b, sympy.pi, sympy.Rational(1, 180), evaluate=False)
    return values.same(right, b if degrees[0] else a)
  known = [v.unit.dimension not in ("", "?", "%", "count") for v in (gold, found)]
  if all(known) and gold.unit.size != found.unit.size:
    a, b = _times(a, gold.unit.size), _times(b, found.unit.size)
  return values.same(a, b)


def _counted(value: Value) -> sympy.Basic:
  return _times(value.expression, value.count)


def _times(expression, factor):
  if factor == 1:
    return expression
  return sympy.Mul(
    expression, sympy.Rational(factor.numerator, factor.denominator), evaluate=False
  )


def _same_ratios(gold: Ratio, found: Ratio) -> bool:
  """The same terms; or proportional ones, if neither may be a time."""
  if len(gold.parts) != len(found.parts) or not units.comparable(gold.unit, found.unit):
    return False
  if all(map(equal, gold.parts, found.parts)):
    return True
  if gold.clock or found.clock:
    return False
  crossed = lambda ratio, other: [
    sympy.Mul(part.expression, other.parts[0].expression, evaluate=False) for part in ratio.parts
  ]
  return all(map(values.same, crossed(gold, found), crossed(found, gold)))


def _ratio_and_value(ratio: Ratio, value: Value) -> bool:
  a, *b = (part.expression for part in ratio.parts)
  if len(b) != 1 or ratio.clock:
    return False
  return values.same(sympy.Mul(a, sympy.Pow(b[0], -1, evaluate=False), evaluate=False), _counted(value))


def _same_words(gold: Words, found: Words) -> bool:
  a, b = (re.sub(r"[^a-zA-Z0-9]", "", words.text) for words in (gold, found))
  exact = (gold.exact or found.exact) and not (gold.choice or found.choice)
  return bool(a) and (a == b if exact else a.casefold() == b.casefold())


def _value_in_words(words: Words, value: Value) -> bool:
  """A letter of a choice, or letters that stand for themselves."""
  if not re.fullmatch(r"[a-zA-Z]+", value.text):
    return False
  if words.choice and len(value.text) == 1:
    return words.text.casefold() == value.text.casefold()
  return words.text.replace(" ", "") == value.text


def _same_residues(gold: Residues, found: Residues) -> bool:
  if gold.name and found.name and gold.name != found.name:
    return False
  common = math.lcm(gold.modulus, found.modulus)
  if common > LIFT:
    return gold[1:] == found[1:]
  lifted = lambda x: {
    residue + i for residue in x.residues for i in range(0, common, x.modulus)
  }
  return lifted(gold) == lifted(found)


def _residue_and_number(residues: Residues, number: Value) -> bool:
  """7 mod 4 is 3; that x is 3 modulo 4 does not say that x is 3."""
  remainder = sympy.Integer(min(residues.residues))
  alone = not residues.name and len(residues.residues) == 1
  return alone and values.same(remainder, _counted(number))


def _digits_and_number(digits: Digits, number: Value) -> bool:
  """The same digits: a base that the question states may be left off, though not be added."""
  return (number.text.lstrip("0") or "0").upper() == digits.digits


# --- Several parts


def _same_parts(gold: Parts, found: Parts) -> bool:
  if gold.brackets != found.brackets:
    kinds = {gold.brackets, found.brackets}
    listed = "" in kinds
    other = next(iter(kinds - {""}), "")
    many = min(len(gold.parts), len(found.parts)) > 2
    if listed and other == "{}":
      return _one_to_one(gold.parts, found.parts)
    vector = lambda b: b in ROUND or (b == "[]" and many)
    if not (all(map(vector, kinds - {""})) and "{}" not in kinds):
      return False
    return _in_order(gold.parts, found.parts)
  if gold.brackets == "{}" and not (gold.ordered or found.ordered):
    return _covered(gold.parts, found.parts) and _covered(found.parts, gold.parts)
  if gold.brackets:
    return _in_order(gold.parts, found.parts)
  names = [_holds_names(x) for x in (gold, found)]
  dots = any(isinstance(x, Dots) for x in (*gold.parts, *found.parts))
  if dots or (names[0] != names[1] and (gold.ordered or found.ordered)):
    return _in_order(gold.parts, found.parts)
  return _one_to_one(gold.parts, found.parts)


def _in_order(gold, found) -> bool:
  return len(gold) == len(found) and all(map(equal, gold, found))


def _covered(some, others) -> bool:
  return all(any(equal(a, b) for b in others) for a in some)


def _one_to_one(gold, found) -> bool:
  """Each part of the one has a part of the other for its own."""
  if len(gold) != len(found):
    return False
  rest = list(found)
  for part in gold:
    match = next((i for i, other in enumerate(rest) if equal(part, other)), None)
    if match is None:
      return False
    del rest[match]
  return True


def _same_unions(gold: Union, found: Union) -> bool:
  return _one_to_one(gold.members, found.members) and _one_to_one(gold.without, found.without)


def _same_matrices(gold: Matrix, found: Matrix) -> bool:
  shapes = [[len(row) for row in matrix.rows] for matrix in (gold, found)]
  return shapes[0] == shapes[1] and all(map(_in_order, gold.rows, found.rows))


def _matrix_and_tuple(matrix: Matrix, parts: Parts) -> bool:
  """A column is a vector."""
  column = all(len(row) == 1 for row in matrix.rows)
  return column and parts.brackets in ROUND and _in_order(sum(matrix.rows, ()), parts.parts)


def _matrix_and_value(matrix: Matrix, value: Value) -> bool:
  if not all(isinstance(cell, Value) for row in matrix.rows for cell in row):
    return False
  if not isinstance(value.expression, (sympy.MatrixBase, sympy.MatrixExpr)):
    return False
  rows = [[_counted(cell) for cell in row] for row in matrix.rows]
  return values.same(sympy.Matrix(rows), value.expression)


# --- Equations and sets of real numbers


def _same_named(gold: Named, found: Named) -> bool:
  letters = [re.fullmatch(r"\\?[a-zA-Z]\w*", named.name) for named in (gold, found)]
  if gold.name == found.name or not all(letters):
    return equal(gold.answer, found.answer)
  return bool(gold.equation and found.equation) and _same_equations(gold.equation, found.equation)


def _named_equation(named: Named, equation: Equation) -> bool:
  return named.equation is not None and _same_equations(named.equation, equation)


_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _same_equations(gold: Equation, found: Equation) -> bool:
  """One is the other times a constant (turned around where that is negative), or side by side."""
  if len(gold.signs) != len(found.signs):
    return False
  if len(gold.signs) == 1:
    a, b = (
      sympy.Add(_counted(x.sides[0]), sympy.Mul(-1, _counted(x.sides[1]), evaluate=False), evaluate=False)
      for x in (gold, found)
    )
    if not (a.free_symbols and b.free_symbols):
      return gold.signs == found.signs and all(map(equal, gold.sides, found.sides))
    ratio = values.proportional(a, b)
    if ratio is None:
      return False
    sign = gold.signs[0]
    return found.signs[0] == (sign if ratio > 0 else _TURNED[sign])
  sides, signs = found.sides, found.signs
  if signs != gold.signs:
    sides, signs = sides[::-1], tuple(_TURNED[sign] for sign in signs[::-1])
  return signs == gold.signs and all(map(equal, gold.sides, sides))


def _region(answer: Answer) -> bool:
  """Whether it can be nothing but a set of real numbers."""
  if isinstance(answer, Parts) and answer.joined:
    return all(_region(part) for part in answer.parts)
  if isinstance(answer, Named):
    return _region(answer.answer)
  inequality = isinstance(answer, Equation) and "=" not in answer.signs
  return inequality or isinstance(answer, (Union, Reals))


class Interval:
  """low to high, with (value, whether it belongs) of each end."""

  def __init__(self, low, low_in: bool, high, high_in: bool):
    self.low, self.low_in, self.high, self.high_in = low, low_in, high, high_in


def _same_regions(gold: Answer, found: Answer) -> bool | None:
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
    return _left_out(sum(map(_intervals, answer.members), []), answer.without)
  if isinstance(answer, Parts) and answer.joined == "and" and all(map(_region, answer.parts)):
    return functools.reduce(_intersection, map(_intervals, answer.parts))
  if isinstance(answer, Parts) and answer.joined == "or" and all(map(_region, answer.parts)):
    return sum(map(_intervals, answer.parts), [])
  if isinstance(answer, Parts) and answer.brackets == "{}":
    points = [_end(part) for part in answer.parts]
    return [Interval(point, True, point, True) for point in points]
  if isinstance(answer, Parts) and len(answer.parts) == 2 and answer.brackets in ("()", "[]", "(]", "[)"):
    low, high = map(_end, answer.parts)
    return [Interval(low, answer.brackets[0] == "[", high, answer.brackets[1] == "]")]
  raise ValueError("no set of real numbers")


def _end(answer: Answer):
  if not isinstance(answer, Value) or values.number(_counted(answer)) is None:
    raise ValueError("no real number")
  return _counted(answer)


def _inequality(answer: Equation) -> list[Interval]:
  """x > 3, 0 <= x < 1, x != 2."""
  places = [i for i, side in enumerate(answer.sides) if side.expression.is_Symbol]
  if len(places) != 1 or len(answer.sides) > 3 or (len(answer.sides) == 3 and places != [1]):
    raise ValueError("not solved")
  found = [Interval(-sympy.oo, False, sympy.oo, False)]
  for i, sign in enumerate(answer.signs):
    other = answer.sides[i + 1] if i in places else answer.sides[i]
    sign = sign if i in places else _TURNED[sign]
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


_JUDGES: tuple[tuple[type, type, Callable], ...] = (
  (Value, Value, _same_values),
  (Words, Words, _same_words),
  (Words, Value, _value_in_words),
  (Residues, Residues, _same_residues),
  (Residues, Value, _residue_and_number),
  (Digits, Value, _digits_and_number),
  (Parts, Parts, _same_parts),
  (Ratio, Ratio, _same_ratios),
  (Ratio, Value, _ratio_and_value),
  (Union, Union, _same_unions),
  (Matrix, Matrix, _same_matrices),
  (Matrix, Parts, _matrix_and_tuple),
  (Matrix, Value, _matrix_and_value),
  (Named, Named, _same_named),
  (Named, Equation, _named_equation),
  (Equation, Equation, _same_equations),
)
