"""Numbers and expressions: how one is read, and when two are equal.

Rational numbers are compared exactly; where they are too long for that, by their size and by their
residues modulo a large prime. Irrational ones agree in 50 digits of 100, and expressions with
variables do so at several points.
"""

from fractions import Fraction
import hashlib
import math
import re

from latex2sympy2_extended.latex2sympy2 import (
  ConversionConfig,
  NormalizationConfig,
  latex2sympy,
  normalize_latex,
)
from math_verify import verify as grader
from math_verify.grader import should_treat_as_complex
import mpmath
import sympy

DIGITS = 100  # of the arithmetic
AGREE = mpmath.mpf(10) ** -50  # relative difference up to which irrational values are equal
DECIMALS = Fraction(5, 10**7)  # difference up to which a decimal is equal to a value
SMALL, RELATIVE = Fraction(1, 1000), Fraction(5, 10**4)  # below SMALL they agree in 3 digits, too
BITS = 100_000  # of a number up to which it is written out
PRIME = 10**100 + 267
POINTS = 8
LONGEST = 600  # characters of an expression

_NO_CONSTANTS = ("I", r"\gamma", r"\Gamma")
_SPELLING = NormalizationConfig(
  basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
_LETTERS = ConversionConfig(lowercase_symbols=False)
# Words and numbers side by side: "we get 3", "then 17", "12 34".
_PROSE = re.compile(r"[a-zA-Z]{2,}\s+[a-zA-Z0-9]|\d\s+[a-zA-Z]{2}|(?<![_\d])\d+\s+\d|[a-zA-Z]{6}|'[a-zA-Z]")


class TooLarge(Exception):
  """A number is too long to be written out."""


class Irrational(Exception):
  """An expression is no fraction of integers, as far as `exact` sees."""


def parse(text: str) -> sympy.Basic | None:
  """The expression, unevaluated, of a text in the spelling of `notation.normal`; None if it is
  none."""
  if re.fullmatch(r"[-+]?\d+", text):
    return sympy.Integer(text)
  if match := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}|(-?)(\d+)\s*/\s*(\d+)", text):
    sign, p, q = (x for x in match.groups() if x is not None)
    return sympy.Rational(int(sign + p), int(q)) if int(q) else None
  words = re.sub(r"\\(?:begin|end)\{[a-z]+\}|\\[a-zA-Z]+", r"\\", text)
  if len(text) > LONGEST or _PROSE.search(words) or re.search(r"\\ldots|\d_|\\text|\\mod.*\\equiv|[\"#?]", text):
    return None
  text = text.replace(r"\mod", r"\bmod")
  # I and gamma are letters, no constants.
  text = re.sub(
    r"\\[a-zA-Z]+|I",
    lambda m: rf"\mathcal{{{m[0][-5:]}}}" if m[0] in _NO_CONSTANTS else m[0],
    text,
  )
  # 3(\frac12) is a product and no mixed number; degrees are angles.
  text = re.sub(r"(?<=\d)\s*(?=\()", r"\\cdot ", text)
  text = re.sub(r"(\d+(?:\.\d+)?)\s*\^\\circ", r"(\\frac{\1\\pi}{180})", text)
  try:
    found = latex2sympy(
      normalize_latex(text, _SPELLING),
      is_real=not should_treat_as_complex(text),
      normalization_config=None,
      conversion_config=_LETTERS,
    )
  except RecursionError:
    return None
  except Exception:  # the parser raises its base class for what it cannot read
    return None
  return found if isinstance(found, (sympy.Expr, sympy.MatrixBase)) else None


def same(a: sympy.Basic, b: sympy.Basic) -> bool:
  """Whether two expressions have the same value, for every value of their variables."""
  if a == b:
    return True
  if a.has(*_ENDLESS) or b.has(*_ENDLESS):
    return False
  if matrices := [isinstance(x, (sympy.MatrixBase, sympy.MatrixExpr)) for x in (a, b)]:
    if any(matrices):
      return all(matrices) and _same_matrices(a.doit(), b.doit())
  decimal = a.has(sympy.Float) or b.has(sympy.Float)
  if not (_symbols(a, b) or _functions(a) or _functions(b)):
    try:
      return _same_numbers(a, b, decimal)
    except (TooLarge, NotImplementedError, AttributeError):
      return bool(grader(a, b, timeout_seconds=None))
    except (ArithmeticError, ValueError, TypeError):
      return False
  return _same_everywhere(a, b, decimal)


def number(x: sympy.Basic) -> mpmath.mpf | None:
  """The real value of an expression without variables, else None."""
  if x in (sympy.oo, -sympy.oo):
    return mpmath.inf if x == sympy.oo else -mpmath.inf
  try:
    value = _value(x, {})
  except (TooLarge, ArithmeticError, ValueError, TypeError, KeyError, NotImplementedError):
    return None
  return value if isinstance(value, mpmath.mpf) else None


def integer(text: str) -> int | None:
  found = parse(text)
  try:
    value = None if found is None else exact(found)
  except (Irrational, TooLarge, ArithmeticError):
    return None
  return int(value) if value is not None and value.denominator == 1 else None


def _same_matrices(a, b) -> bool:
  return (
    isinstance(a, sympy.MatrixBase)
    and isinstance(b, sympy.MatrixBase)
    and a.shape == b.shape
    and all(same(x, y) for x, y in zip(a, b))
  )


def _same_numbers(a, b, decimal: bool) -> bool:
  try:
    x, y = exact(a), exact(b)
    return x == y or (decimal and _close(x, y))
  except Irrational:
    pass
  except TooLarge:
    try:
      if exact(a, PRIME) != exact(b, PRIME):
        return False
    except Irrational:
      pass
  x, y = _value(a, {}), _value(b, {})
  return _agree(x, y) or (decimal and _close(x, y))


def _close(x, y) -> bool:
  """Equal as a decimal is to what it rounds."""
  with mpmath.workdps(DIGITS):
    apart = abs(x - y)
    largest = max(abs(x), abs(y))
    small = min(abs(x), abs(y)) < _as(SMALL, x)
    return bool(
      apart <= _as(DECIMALS, x) and not (small and apart > _as(RELATIVE, x) * largest)
    )


def _as(x: Fraction, like):
  return x if isinstance(like, Fraction) else mpmath.mpf(x.numerator) / x.denominator


def _agree(x, y) -> bool:
  with mpmath.workdps(DIGITS):
    return bool(x == y or abs(x - y) <= AGREE * max(abs(x), abs(y)))


# --- Exact arithmetic


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
  values = [exact(argument) for argument in x.args] if type(x) in _FUNCTIONS else None
  if values is None:
    raise Irrational
  return _reduced(Fraction(_FUNCTIONS[type(x)](*values)), prime)


def _binomial(n, k):
  if not 0 <= k <= n <= 10_000:
    raise Irrational
  return math.comb(_whole(n), _whole(k))


_FUNCTIONS = {
  sympy.Mod: lambda a, b: a % b,
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
      *(sympy.integer_nthroot(abs(n), exponent.denominator) for n in (base.numerator, base.denominator))
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


# --- Arithmetic to many digits


def _value(x: sympy.Basic, where: dict):
  """The value with DIGITS digits, exactly 0 where nothing is left but the rounding of its terms."""
  with mpmath.workdps(DIGITS):
    value = _evaluate(x, where)
  with mpmath.workdps(2 * DIGITS):
    finer = _evaluate(x, where)
    if abs(finer) < AGREE * abs(value):
      finer = mpmath.mpf(0)
    if isinstance(finer, mpmath.mpc) and abs(finer.imag) <= AGREE * abs(finer):
      finer = finer.real
  if not mpmath.isfinite(finer):
    raise ZeroDivisionError
  return finer


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
  arguments = [_evaluate(a, where) for a in x.args] if not isinstance(x, _BOUND) else []
  if x.is_Add:
    return mpmath.fsum(arguments)
  if x.is_Mul:
    return mpmath.fprod(arguments)
  if x.is_Pow:
    return _to_the(*arguments, x.exp)
  if isinstance(x, sympy.UnevaluatedExpr):
    return arguments[0]
  if isinstance(x, sympy.core.function.AppliedUndef):
    return _drawn(f"{x.func.__name__} {[mpmath.nstr(a, 20) for a in arguments]}", 0)
  if isinstance(x, _BOUND):
    done = x.doit()
    if isinstance(done, _BOUND) or done.has(*_BOUND):
      raise NotImplementedError
    return _evaluate(done, where)
  function = _NAMES.get(x.func.__name__) or getattr(mpmath, x.func.__name__)
  return function(*arguments)


_BOUND = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
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


_ENDLESS = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def _symbols(*expressions: sympy.Basic) -> list:
  """The variables, in the order of their names; i is the imaginary unit."""
  found = set().union(*(x.free_symbols for x in expressions))
  return sorted((s for s in found if s.name != "i"), key=lambda s: s.name)


def _functions(x: sympy.Basic) -> set:
  return x.atoms(sympy.core.function.AppliedUndef)


def _drawn(name: str, point: int) -> mpmath.mpf:
  """A number between 0.3 and 2.3, the same for the same name and point."""
  digest = hashlib.sha256(f"{name} {point}".encode()).digest()
  return mpmath.mpf(int.from_bytes(digest[:8], "big")) / 2**63 + mpmath.mpf(3) / 10


def _point(symbols: list, point: int) -> dict:
  """A value for each variable; from the fifth point on, some are negative."""
  values = {s: _drawn(s.name, point) for s in symbols}
  if point >= 4:
    values = {s: x if (i + point) % 3 else -x for i, (s, x) in enumerate(values.items())}
  return values


def _same_everywhere(a, b, decimal: bool) -> bool:
  """Whether two expressions agree wherever both are defined of POINTS points, at two at least; where
  real values are found they decide, else complex ones."""
  symbols = _symbols(a, b)
  agreed = {True: 0, False: 0}
  for point in range(POINTS):
    where = _point(symbols, point)
    try:
      x, y = _value(a, where), _value(b, where)
    except (TooLarge, ArithmeticError, ValueError, TypeError, KeyError):
      continue
    except (NotImplementedError, AttributeError):
      return bool(grader(a, b, timeout_seconds=None))
    real = [isinstance(value, mpmath.mpf) for value in (x, y)]
    if not (_agree(x, y) or (decimal and _close(x, y))):
      if all(real) or real[0] != real[1]:
        return False
      agreed[False] -= POINTS
    else:
      agreed[all(real)] += 1
  return agreed[True] >= 2 or (agreed[True] == 0 and agreed[False] >= 2)


def proportional(a: sympy.Expr, b: sympy.Expr) -> mpmath.mpf | None:
  """c of a = c b at all points, else None."""
  symbols = _symbols(a, b)
  ratio = None
  for point in range(POINTS):
    try:
      x, y = _value(a, _point(symbols, point)), _value(b, _point(symbols, point))
    except (TooLarge, ArithmeticError, ValueError, TypeError, KeyError):
      continue
    except (NotImplementedError, AttributeError):
      return None
    if not all(isinstance(value, mpmath.mpf) for value in (x, y)) or y == 0 or x == 0:
      continue
    with mpmath.workdps(DIGITS):
      quotient = x / y
    if ratio is not None and not _agree(quotient, ratio):
      return None
    ratio = quotient
  return ratio
