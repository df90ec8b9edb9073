"""Arithmetic with many digits on unevaluated expressions, at chosen values of their variables."""

from fractions import Fraction
import hashlib

import mpmath
import sympy

from v05_jax.rewards.math.exact import TooLarge

DIGITS = 200  # of the arithmetic
CERTAIN = 2000  # of the arithmetic that decides where values agree with DIGITS
SHARE = 0.6  # of the digits, in which values that are equal agree
NOTHING = mpmath.mpf(10) ** -50  # what is so much smaller with twice the digits is rounding


def value_of(x: sympy.Basic, where: dict, digits: int = DIGITS):
  """The value with `digits` digits, exactly 0 where nothing is left but the rounding of its terms.

  Raises ZeroDivisionError where it is not finite, and what mpmath raises."""
  with mpmath.workdps(digits // 2):
    rough = _evaluate(x, where)
  with mpmath.workdps(digits):
    value = _evaluate(x, where)
    if abs(value) < NOTHING * abs(rough):
      value = mpmath.mpf(0)
    if isinstance(value, mpmath.mpc) and abs(value.imag) <= _tolerance(digits) * abs(value):
      value = value.real
  if not mpmath.isfinite(value):
    raise ZeroDivisionError
  return value


def agree(x, y, digits: int = DIGITS) -> bool:
  """Whether two values that were calculated with `digits` digits are equal."""
  with mpmath.workdps(digits):
    return bool(x == y or abs(x - y) <= _tolerance(digits) * max(abs(x), abs(y)))


def agree_certainly(a: sympy.Basic, b: sympy.Basic, where: dict) -> bool:
  """Whether two expressions that agree with DIGITS digits do so with CERTAIN ones: 1 + e^{-500} and
  1 do not."""
  return agree(value_of(a, where, CERTAIN), value_of(b, where, CERTAIN), CERTAIN)


def _tolerance(digits: int) -> mpmath.mpf:
  return mpmath.mpf(10) ** -int(SHARE * digits)


def _evaluate(x: sympy.Basic, where: dict):
  if x.is_Rational:
    return mpmath.mpf(int(x.p)) / int(x.q)
  if x.is_Float:
    value = Fraction(str(x))
    return mpmath.mpf(value.numerator) / value.denominator
  if x in _CONSTANTS:
    return +_CONSTANTS[x]
  if x.is_Symbol:
    return mpmath.mpc(0, 1) if x.name == "i" else where[x]
  arguments = [_evaluate(a, where) for a in x.args] if not isinstance(x, BOUND) else []
  if x.is_Add:
    return mpmath.fsum(arguments)
  if x.is_Mul:
    return mpmath.fprod(arguments)
  if x.is_Pow:
    return _to_the(*arguments, x.exp)
  if isinstance(x, sympy.UnevaluatedExpr):
    return arguments[0]
  if isinstance(x, sympy.core.function.AppliedUndef):
    return _drawn(f"{x.func.__name__} {[mpmath.nstr(a, 30) for a in arguments]}", 0)
  if isinstance(x, BOUND):
    done = x.doit()
    if isinstance(done, BOUND) or done.has(*BOUND):
      raise NotImplementedError
    return _evaluate(done, where)
  function = _NAMES.get(x.func.__name__) or getattr(mpmath, x.func.__name__)
  return function(*arguments)


BOUND = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
_CONSTANTS = {
  sympy.pi: mpmath.pi,
  sympy.E: mpmath.e,
  sympy.EulerGamma: mpmath.euler,
  sympy.GoldenRatio: mpmath.phi,
  sympy.I: mpmath.mpc(0, 1),
}
_NAMES = {
  "Abs": abs,
  "Mod": lambda a, b: a - b * mpmath.floor(a / b),
  "ceiling": mpmath.ceil,
  "log": lambda x, base=None: mpmath.log(x) if base is None else mpmath.log(x) / mpmath.log(base),
  "Max": max,
  "Min": min,
  "conjugate": mpmath.conj,
  "cbrt": mpmath.cbrt,
}


def _to_the(base, exponent, written: sympy.Expr):
  """base^exponent; the odd root of a negative number is real. Raises TooLarge."""
  if base != 0 and abs(exponent) * abs(mpmath.log(abs(base))) > mpmath.mpf(2) ** 1000:
    raise TooLarge
  odd = written.is_Rational and written.q % 2 == 1 and written.q > 1
  if odd and isinstance(base, mpmath.mpf) and base < 0:
    return (-1) ** (written.p % 2) * mpmath.power(-base, exponent)
  return mpmath.power(base, exponent)


def _drawn(name: str, point: int) -> mpmath.mpf:
  """A number between 0.3 and 2.3, the same for the same name and point."""
  digest = hashlib.sha256(f"{name} {point}".encode()).digest()
  return mpmath.mpf(int.from_bytes(digest[:8], "big")) / 2**63 + mpmath.mpf(3) / 10


def point(symbols: list, point: int) -> dict:
  """A value for each variable; from the fifth point on, some are negative."""
  values = {s: _drawn(s.name, point) for s in symbols}
  if point >= 4:
    values = {s: x if (i + point) % 3 else -x for i, (s, x) in enumerate(values.items())}
  return values
