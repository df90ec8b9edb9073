"""When two answers are equal: x = 5 answers 5, and 5 answers x = 5."""

from collections.abc import Callable
import itertools
import re

import sympy

from v05_jax.rewards.math import integers, progressions, ratios, units, values, vectors
from v05_jax.rewards.math.kinds import (
  Answer,
  Congruence,
  Digits,
  Dots,
  Equation,
  Matrix,
  Named,
  Parts,
  Ratio,
  Residues,
  Union,
  Value,
  Words,
)
from v05_jax.rewards.math.regions import TURNED, is_region, same_regions

APART = 0.01  # relative difference up to which a chain of equations may round
ROUND = ("()", "<>")


def equal(gold: Answer, found: Answer) -> bool:
  """Whether two answers that were read are the same."""
  if _contradicts(gold) or _contradicts(found):
    return False
  gold, found = _unnamed(gold, found)
  if isinstance(found, Digits) and not isinstance(gold, Digits) and found.base != 10:
    return False
  if is_region(gold) or is_region(found):
    if (verdict := same_regions(gold, found)) is not None:
      return verdict
  gold, found = _alone(gold, found), _alone(found, gold)
  for kind, other, judge in _JUDGES:
    if isinstance(gold, kind) and isinstance(found, other):
      return judge(gold, found)
    if isinstance(gold, other) and isinstance(found, kind) and kind is not other:
      return judge(found, gold)
  return type(gold) is type(found) and gold == found


def _contradicts(answer: Answer) -> bool:
  """Whether it is a chain of equations as 2 + 2 = 5."""
  chain = answer.equation if isinstance(answer, Named) else answer
  if not isinstance(chain, Equation) or set(chain.signs) != {"="}:
    return False
  numbers = [(values.number(side.total), side.unit) for side in chain.sides]
  return any(
    None not in (x, y)
    and (a == b or (units.NONE in (a, b) and "%" not in (a.dimension, b.dimension)))
    and abs(x - y) > APART * max(abs(x), abs(y))
    for (x, a), (y, b) in itertools.pairwise(numbers)
  )


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
  if (gold.compound or found.compound) and units.NONE in (gold.unit, found.unit):
    return False
  a, b = gold.total, found.total
  percent = [v.unit.dimension == "%" for v in (gold, found)]
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
    a, b = values.times(a, gold.unit.size), values.times(b, found.unit.size)
  return values.same(a, b)


_ARTICLE = re.compile(r"^(?:[Aa]n?|[Tt]he)\s+(?=[a-z]{2})")


def _same_words(gold: Words, found: Words) -> bool:
  a, b = (re.sub(r"[^a-zA-Z0-9]", "", _ARTICLE.sub("", words.text)) for words in (gold, found))
  exact = (gold.exact or found.exact) and not (gold.choice or found.choice)
  if not exact:
    a, b = a.casefold(), b.casefold()
  return bool(a) and a == b


def _value_in_words(words: Words, value: Value) -> bool:
  """A letter of a choice, what it says, or letters that stand for themselves."""
  if words.says is not None and equal(words.says, value):
    return True
  if not re.fullmatch(r"[a-zA-Z]+", value.text):
    return False
  if words.choice and len(value.text) == 1:
    return words.text.casefold() == value.text.casefold()
  return words.text.replace(" ", "") == value.text


def _digits_and_number(digits: Digits, number: Value) -> bool:
  """The same digits: a base that the question states may be left off, though not be added."""
  return (number.text.lstrip("0") or "0").upper() == digits.digits


# --- Several parts


def _same_parts(gold: Parts, found: Parts) -> bool:
  dotted = [any(isinstance(x, Dots) for x in parts.parts) for parts in (gold, found)]
  if any(dotted):
    pair = [progressions.progression(parts.parts) for parts in (gold, found)]
    ordered = gold.brackets != "{}" or not all(x and progressions.terms(x) for x in pair)
    if None not in pair and gold.brackets == found.brackets and ordered:
      return progressions.same(*pair)
    if None not in pair or not all(dotted):
      gold, found = (x._replace(parts=progressions.written_out(x.parts)) for x in (gold, found))
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
  dots = any(isinstance(x, Dots) for x in (*gold.parts, *found.parts))
  if gold.brackets == "{}" and not dots:
    return _covered(gold.parts, found.parts) and _covered(found.parts, gold.parts)
  if gold.brackets:
    return _in_order(gold.parts, found.parts)
  names = [_holds_names(x) for x in (gold, found)]
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
  """A column or a row is a vector; [[1, 2], [3, 4]] is a matrix."""
  if parts.brackets in ROUND and (len(matrix.rows) == 1 or len(matrix.rows[0]) == 1):
    return _in_order(sum(matrix.rows, ()), parts.parts)
  rows = [row.parts for row in parts.parts if isinstance(row, Parts) and row.brackets == "[]"]
  whole = parts.brackets == "[]" and len(rows) == len(parts.parts)
  return whole and _same_matrices(matrix, Matrix(tuple(rows)))


def _vector_and_value(vector: Parts | Matrix, value: Value) -> bool:
  """(1, 2) is i + 2j."""
  if isinstance(vector, Matrix):
    parts = sum(vector.rows, ()) if len(vector.rows[0]) == 1 else ()
  else:
    parts = vector.parts if vector.brackets in ROUND else ()
  if not vectors.is_vector(value.expression) or not all(isinstance(x, Value) for x in parts):
    return False
  expression = vectors.as_expression([x.total for x in parts])
  return expression is not None and values.same(expression, value.total)


def _matrix_and_value(matrix: Matrix, value: Value) -> bool:
  if vectors.is_vector(value.expression):
    return _vector_and_value(matrix, value)
  if not all(isinstance(cell, Value) for row in matrix.rows for cell in row):
    return False
  if not isinstance(value.expression, (sympy.MatrixBase, sympy.MatrixExpr)):
    return False
  rows = [[cell.total for cell in row] for row in matrix.rows]
  return values.same(sympy.Matrix(rows), value.expression)


# --- Equations and sets of real numbers


def _same_named(gold: Named, found: Named) -> bool:
  if gold.name != found.name and gold.name[0] == found.name[0] == "(":  # (y, x) = (2, 1)
    spread = _spread(gold), _spread(found)
    return all(isinstance(x, Parts) for x in spread) and equal(*spread)
  applied = _applied(gold.name), _applied(found.name)
  if all(applied) and applied[0] != applied[1]:  # f(0) and f(1), E[X] and Var(X)
    return False
  letters = [re.fullmatch(r"\\?[a-zA-Z]\w*", named.name) for named in (gold, found)]
  if gold.name == found.name or not all(letters):
    return equal(gold.answer, found.answer)
  return bool(gold.equation and found.equation) and _same_equations(gold.equation, found.equation)


def _applied(name: str) -> str:
  r"""A name with an argument that is no variable, as f(2) and \text{Var}(X), however it is set; ""
  for another."""
  plain = re.sub(r"\\(?:text|operatorname|mathbb)|[\s{}\\]", "", name)
  return plain if re.fullmatch(r"[^(\[]+[(\[](?![a-z](?:,[a-z])*[)\]]).*[)\]]", plain) else ""


def _named_equation(named: Named, equation: Equation) -> bool:
  return named.equation is not None and _same_equations(named.equation, equation)


def _same_equations(gold: Equation, found: Equation) -> bool:
  """One is the other times a constant (turned around where that is negative), or side by side."""
  if len(gold.signs) != len(found.signs):
    return False
  if len(gold.signs) == 1:
    a, b = (
      sympy.Add(x.sides[0].total, sympy.Mul(-1, x.sides[1].total, evaluate=False), evaluate=False)
      for x in (gold, found)
    )
    if not (a.free_symbols and b.free_symbols):
      return gold.signs == found.signs and all(map(equal, gold.sides, found.sides))
    ratio = values.proportional(a, b)
    if ratio is None:
      return False
    sign = gold.signs[0]
    return found.signs[0] == (sign if ratio > 0 else TURNED[sign])
  sides, signs = found.sides, found.signs
  if signs != gold.signs:
    sides, signs = sides[::-1], tuple(TURNED[sign] for sign in signs[::-1])
  return signs == gold.signs and all(map(equal, gold.sides, sides))


_JUDGES: tuple[tuple[type, type, Callable], ...] = (
  (Value, Value, _same_values),
  (Words, Words, _same_words),
  (Words, Value, _value_in_words),
  (Residues, Residues, integers.same_residues),
  (Residues, Value, integers.residue_and_number),
  (Residues, Words, integers.residues_in_words),
  (Congruence, Congruence, integers.same_congruences),
  (Digits, Value, _digits_and_number),
  (Parts, Parts, _same_parts),
  (Ratio, Ratio, ratios.same_ratios),
  (Ratio, Value, ratios.ratio_and_value),
  (Union, Union, _same_unions),
  (Matrix, Matrix, _same_matrices),
  (Matrix, Parts, _matrix_and_tuple),
  (Parts, Value, _vector_and_value),
  (Matrix, Value, _matrix_and_value),
  (Named, Named, _same_named),
  (Named, Equation, _named_equation),
  (Equation, Equation, _same_equations),
)
