"""When two ratios, or two times of the day, are equal: 2:30 PM is 14:30."""

import sympy

from v05_jax.rewards.math import units, values
from v05_jax.rewards.math.kinds import Ratio, Value

HALVES = {"morning1 ": 0, "afternoon1 ": 12}  # the hours before each half of the day


def same_ratios(gold: Ratio, found: Ratio) -> bool:
  """The same terms; or proportional ones, if neither may be a time."""
  if len(gold.parts) != len(found.parts) or not units.comparable(gold.unit, found.unit):
    return False
  if all(map(_same, gold.parts, found.parts)):
    return True
  if gold.clock or found.clock:
    return _same_times(gold, found) or _same_times(found, gold)
  crossed = lambda ratio, other: [
    sympy.Mul(part.expression, other.parts[0].expression, evaluate=False) for part in ratio.parts
  ]
  return all(map(values.same, crossed(gold, found), crossed(found, gold)))


def ratio_and_value(ratio: Ratio, value: Value) -> bool:
  """3 : 4 is 3/4, and 2:00 PM is 2 PM."""
  a, *b = ratio.parts
  if len(b) != 1:
    return False
  if ratio.clock:
    hour = Ratio((value._replace(unit=units.NONE), ZERO), value.unit, True)
    return value.unit.dimension in HALVES and same_ratios(ratio, hour)
  share = sympy.Mul(a.expression, sympy.Pow(b[0].expression, -1, evaluate=False), evaluate=False)
  return values.same(share, value.total)


ZERO = Value("0", sympy.Integer(0), 1, units.NONE)


def _same(a: Value, b: Value) -> bool:
  return values.same(a.total, b.total)


def _same_times(told: Ratio, other: Ratio) -> bool:
  """Whether a time that says its half of the day is one that says none, of 12 or of 24 hours."""
  if told.unit.dimension not in HALVES or other.unit != units.NONE:
    return False
  hours = [values.number(time.parts[0].total) for time in (told, other)]
  if None in hours or not _same(told.parts[1], other.parts[1]):
    return False
  hour = hours[0] % 12 + HALVES[told.unit.dimension]
  return hours[1] in (hour, hour % 12 or 12)
