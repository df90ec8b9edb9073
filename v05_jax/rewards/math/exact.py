"""Exact arithmetic on unevaluated expressions: fractions, or residues modulo a prime."""

from fractions import Fraction
import math

import sympy

BITS = 100_000  # of a number up to which it is written out


class TooLarge(Exception):
  """A number is too long to be written out."""


class Irrational(Exception):
  """An expression is no fraction of integers, as far as `exact` sees."""


def exact(x: sympy.Basic, prime: int = 0) -> Fraction | int:
  """The rational number that an unevaluated expression is, or its residue modulo `prime`.

  Raises Irrational, TooLarge beyond BITS bits, ZeroDivisionError.
  """
  if x.is_Rational:
    return int(x.p) * pow(int(x.q), -1, prime) % prime if prime else Fraction(int(x.p), int(x.q))
  if x.is_Float:
    return _reduced(Fraction(str(x)), prime)
  if x.is_Add or x.is_Mul:
    total = 0 if x.is_Add else 1
    for argument in x.args:
      value = exact(argument, prime)
      total = _reduced(total + value if x.is_Add else total * value, prime)
    return total if prime else Fraction(total)
  if x.is_Pow:
    return _power(x, prime)
  if isinstance(x, sympy.UnevaluatedExpr):
    return exact(x.args[0], prime)
  if isinstance(x, sympy.factorial):
    n = _whole(exact(x.args[0]))
    if n < 0 or n > (10**6 if prime else 5000):
      raise Irrational if n < 0 else TooLarge
    return _factorial(n, prime) if prime else Fraction(math.factorial(n))
  if isinstance(x, sympy.Mod):
    return _reduced(_remainder(*x.args), prime)
  values = [exact(argument) for argument in x.args] if type(x) in _FUNCTIONS else None
  if values is None:
    raise Irrational
  return _reduced(Fraction(_FUNCTIONS[type(x)](*values)), prime)


def _remainder(a: sympy.Basic, modulus: sympy.Basic) -> Fraction:
  """a modulo the modulus, for powers as well that are too long to be written out."""
  m = exact(modulus)
  try:
    return exact(a) % m
  except TooLarge:
    try:
      return Fraction(exact(a, abs(_whole(m))) % _whole(m))
    except ValueError as error:  # a denominator that has no inverse
      raise TooLarge from error


def _binomial(n, k):
  if not 0 <= k <= n <= 10_000:
    raise Irrational
  return math.comb(_whole(n), _whole(k))


_FUNCTIONS = {
  sympy.Abs: abs,
  sympy.floor: math.floor,
  sympy.ceiling: math.ceil,
  sympy.Max: max,
  sympy.Min: min,
  sympy.binomial: _binomial,
}


def _reduced(value, prime: int):
  if prime:
    value = Fraction(value)
    return value.numerator * pow(value.denominator, -1, prime) % prime
  if isinstance(value, Fraction):
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
      raise TooLarge
  return value


def _whole(value: Fraction) -> int:
  if value.denominator != 1:
    raise Irrational
  return value.numerator


def _factorial(n: int, prime: int) -> int:
  product = 1
  for i in range(2, n + 1):
    product = product * i % prime
  return product


def _power(x, prime: int):
  exponent = exact(x.exp)
  if exponent.denominator != 1:
    if prime:
      raise Irrational
    base = exact(x.base)
    root, perfect = zip(
      *(
        sympy.integer_nthroot(abs(n), exponent.denominator)
        for n in (base.numerator, base.denominator)
      )
    )
    if not all(perfect) or (base < 0 and exponent.denominator % 2 == 0):
      raise Irrational
    base, exponent = Fraction(*root) * (-1 if base < 0 else 1), Fraction(exponent.numerator)
  else:
    base = exact(x.base, prime)
  exponent = int(exponent)
  if prime:
    return pow(base, exponent, prime)
  bits = max(base.numerator.bit_length(), base.denominator.bit_length())
  if base not in (0, 1, -1) and bits * abs(exponent) > BITS:
    raise TooLarge
  if base == 0 and exponent <= 0:
    raise ZeroDivisionError
  return base**exponent
