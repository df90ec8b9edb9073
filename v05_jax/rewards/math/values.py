"""Numbers and expressions: how one is read, and when two are equal.

Rational numbers are compared exactly; where they are too long for that, by their size and by their
residues modulo a large prime. Irrational ones agree in 120 digits of 200, and then in 1,200 of
2,000; expressions with variables do so at several points.
"""

from fractions import Fraction
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

from v05_jax.rewards.math.exact import Irrational, TooLarge, exact
from v05_jax.rewards.math.precise import BOUND, DIGITS, agree, agree_certainly, value_of
from v05_jax.rewards.math.precise import point as point_at

DECIMALS = Fraction(5, 10**7)  # difference up to which a decimal is equal to a value
SMALL, RELATIVE = Fraction(1, 1000), Fraction(5, 10**4)  # below SMALL they agree in 3 digits, too
PRIME = 10**100 + 267
POINTS = 8
LONGEST = 600  # characters of an expression
DEEPEST = 12  # brackets in brackets: the parser's time doubles with each

_NO_CONSTANTS = ("I", r"\gamma", r"\Gamma")
_SPELLING = NormalizationConfig(
  basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
_LETTERS = ConversionConfig(lowercase_symbols=False)
# Words and numbers side by side: "we get 3", "then 17", "12 34".
_PROSE = re.compile(
  r"[a-zA-Z]{2,}\s+[a-zA-Z0-9]|\d\s+[a-zA-Z]{2}|(?<![_\d])\d+\s+\d|[a-zA-Z]{6}|'[a-zA-Z]"
)


def parse(text: str) -> sympy.Basic | None:
  """The expression, unevaluated, of a text in the spelling of `notation.normal`; None if it is
  none."""
  if re.fullmatch(r"[-+]?\d+", text):
    return sympy.Integer(text)
  if match := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}|(-?)(\d+)\s*/\s*(\d+)", text):
    sign, p, q = (x for x in match.groups() if x is not None)
    return sympy.Rational(int(sign + p), int(q)) if int(q) else None
  words = re.sub(r"\\(?:begin|end)\{[a-z]+\}|\\[a-zA-Z]+", r"\\", text)
  if (
    len(text) > LONGEST
    or _nested(text) > DEEPEST
    or _PROSE.search(words)
    or re.search(r"\\ldots|\d_|\\text|\\mod.*\\equiv|[\"'#?]", text)
  ):
    return None
  text = re.sub(r"\\(angle|triangle)\s*([A-Z]+)", r"\\mathcal{\1\2}", text)
  # I and gamma are letters, no constants.
  text = re.sub(
    r"\\[a-zA-Z]+|I", lambda m: rf"\mathcal{{{m[0][-5:]}}}" if m[0] in _NO_CONSTANTS else m[0], text
  )
  if "matrix" not in text:  # the parser takes the transpose of a letter for the letter
    text = re.sub(r"\^\s*(?:T|\{\s*T\s*\}|\\top|\{\s*\\top\s*\})", r"^{\\mathcal{T}}", text)
  # 3(\frac12) is a product and no mixed number; degrees are angles.
  text = re.sub(r"(?<![_\d])(\d+)\s*(?=\()", r"\1\\cdot ", text)
  text = re.sub(r"(\(\d+\))\s*(?=\(\d)", r"\1\\cdot ", text)
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


def _nested(text: str) -> int:
  depth = deepest = 0
  for bracket in re.findall(r"[(\[{)\]}]", text):
    depth += 1 if bracket in "([{" else -1
    deepest = max(deepest, depth)
  return deepest


def same(a: sympy.Basic, b: sympy.Basic) -> bool:
  """Whether two expressions have the same value, for every value of their variables."""
  if a == b:
    return True
  if a.has(*_ENDLESS, sympy.Derivative) or b.has(*_ENDLESS, sympy.Derivative):
    return False
  if matrices := [isinstance(x, (sympy.MatrixBase, sympy.MatrixExpr)) for x in (a, b)]:
    if any(matrices):
      return all(matrices) and _same_matrices(a.doit(), b.doit())
  decimal = a.has(sympy.Float) or b.has(sympy.Float)
  if not (_symbols(a, b) or _functions(a) or _functions(b)):
    try:
      return _same_numbers(a, b, decimal)
    except TooLarge:
      return _same_form(a, b)
    except (NotImplementedError, AttributeError):
      return bool(grader(a, b, timeout_seconds=None))
    except (ArithmeticError, ValueError, TypeError):
      return False
  return _same_everywhere(a, b, decimal)


def _same_form(a: sympy.Basic, b: sympy.Basic) -> bool:
  """Whether two numbers that are too large for any arithmetic are the same part by part."""
  same_kind = a.func == b.func and len(a.args) == len(b.args) > 0
  return same_kind and all(map(same, a.args, b.args))


def times(x: sympy.Basic, factor: Fraction) -> sympy.Basic:
  if factor == 1:
    return x
  return sympy.Mul(x, sympy.Rational(factor.numerator, factor.denominator), evaluate=False)


def number(x: sympy.Basic) -> mpmath.mpf | None:
  """The real value of an expression without variables, else None."""
  if _functions(x):  # f(2) is no number, though it has a value where two of it are compared
    return None
  if x in (sympy.oo, -sympy.oo):
    return mpmath.inf if x == sympy.oo else -mpmath.inf
  try:
    value = value_of(x, {})
  except (TooLarge, ArithmeticError, ValueError, TypeError, KeyError, NotImplementedError):
    return None
  except AttributeError:  # a matrix
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
  x, y = value_of(a, {}), value_of(b, {})
  return (
    _near(x, y) if decimal else agree(x, y) and (_slow(a) or _slow(b) or agree_certainly(a, b, {}))
  )


def _near(x, y) -> bool:
  return agree(x, y) or _close(x, y)


def _close(x, y) -> bool:
  """Equal as a decimal is to what it rounds."""
  with mpmath.workdps(DIGITS):
    apart = abs(x - y)
    largest = max(abs(x), abs(y))
    small = min(abs(x), abs(y)) < _as(SMALL, x)
    return bool(apart <= _as(DECIMALS, x) and not (small and apart > _as(RELATIVE, x) * largest))


def _as(x: Fraction, like):
  return x if isinstance(like, Fraction) else mpmath.mpf(x.numerator) / x.denominator


_ENDLESS = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def _symbols(*expressions: sympy.Basic) -> list:
  """The variables, in the order of their names; i is the imaginary unit."""
  found = set().union(*(x.free_symbols for x in expressions))
  return sorted((s for s in found if s.name != "i"), key=lambda s: s.name)


def _functions(x: sympy.Basic) -> set:
  return x.atoms(sympy.core.function.AppliedUndef)


def _same_everywhere(a, b, decimal: bool) -> bool:
  """Whether two expressions agree at all of POINTS points where both are defined, two at least.

  Where real values are found they decide, else complex ones.
  """
  symbols = _symbols(a, b)
  agreed = {True: 0, False: 0}
  certain = decimal or _slow(a) or _slow(b)  # or agreed once with many digits
  for point in range(POINTS):
    where = point_at(symbols, point)
    try:
      x, y = value_of(a, where), value_of(b, where)
      same_here = _near(x, y) if decimal else agree(x, y)
      if same_here and not certain:
        same_here = certain = agree_certainly(a, b, where)
    except (TooLarge, ArithmeticError, ValueError, TypeError, KeyError):
      continue
    except (NotImplementedError, AttributeError):
      return bool(grader(a, b, timeout_seconds=None))
    real = [isinstance(value, mpmath.mpf) for value in (x, y)]
    if not same_here:
      if all(real) or real[0] != real[1]:
        return False
      agreed[False] -= POINTS
    else:
      agreed[all(real)] += 1
  return agreed[True] >= 2 or (agreed[True] == 0 and agreed[False] >= 2)


def _slow(x: sympy.Basic) -> bool:
  """Whether many digits take seconds: those of a factorial of no whole number, and of a sum,
  product or integral."""
  found = x.atoms(sympy.factorial, sympy.binomial, sympy.gamma)
  whole = lambda f: all(argument.is_Integer for argument in f.args)
  return x.has(*BOUND) or not all(map(whole, found))


def proportional(a: sympy.Expr, b: sympy.Expr) -> mpmath.mpf | None:
  """c of a = c b at all points, else None."""
  symbols = _symbols(a, b)
  ratio = None
  for point in range(POINTS):
    try:
      x, y = value_of(a, point_at(symbols, point)), value_of(b, point_at(symbols, point))
    except (TooLarge, ArithmeticError, ValueError, TypeError, KeyError):
      continue
    except (NotImplementedError, AttributeError):
      return None
    if not all(isinstance(value, mpmath.mpf) for value in (x, y)) or y == 0 or x == 0:
      continue
    with mpmath.workdps(DIGITS):
      quotient = x / y
    if ratio is not None and not agree(quotient, ratio):
      return None
    ratio = quotient
  return ratio
