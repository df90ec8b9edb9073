r"""Arithmetic: is the expression that the response writes down worth the answer?

A small model often finds the right equation and miscalculates: here it writes `7 * 8` and this
module calculates. The expression is read by a parser of its own, never by Python, and calculated
exactly in fractions.

Where it is looked for: in the response's last line that is not empty, and there in the last
\boxed{...}, between <answer> and </answer>, or after the last colon, where there is one. Of the
sides of an equation the one before the last counts, so that `7 * 8 = 56` and `x = 7 * 8 = 57` are
both `7 * 8`, except where that side has no digit: `total cost = 7 * 8` is `7 * 8`. A plain number
is an expression.

What it may hold: numbers (`1,000`, `.5`, `2e3`), parentheses, `+ - * / // ^ **`, a product
without its sign, `2(3 + 4)`, the signs of print and of LaTeX (`×`, `÷`, `−`, `²`, `\times`,
`\cdot`, `\div`, `\frac{1}{2}`), `x` between numbers, and signs of money, which mean nothing. `%` is
per cent, and the remainder where a number or a parenthesis follows. Powers bind as in Python: -2^2
is -4.
"""

from fractions import Fraction
import re

LONGEST = 256  # characters of an expression
DEEPEST = 32  # parentheses and powers inside of each other
LARGEST_EXPONENT = 100
MOST_BITS = 1024  # of a numerator or denominator
RELATIVE = Fraction(1, 10**9)  # error allowed where the answer is a decimal number

SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
SIGNS = str.maketrans(
  {
    **dict.fromkeys("×⋅·∙∗✕✖", "*"),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("−–—﹣－‐‑", "-"),
    **dict.fromkeys("{[", "("),
    **dict.fromkeys("}]", ")"),
    **dict(zip(SUPERSCRIPTS + "０１２３４５６７８９", 2 * "0123456789", strict=True)),
    **dict.fromkeys("$`€£", None),
    **dict.fromkeys("＝≈", "="),
    "＋": "+",
    "％": "%",
    "（": "(",
    "）": ")",
    "：": ":",
  }
)
PLAIN = (
  (re.compile(f"([{SUPERSCRIPTS}]+)"), r"^(\1)"),
  (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
  (re.compile(r"\\(times|cdot)(?![A-Za-z])"), "*"),
  (re.compile(r"\\div(?![A-Za-z])"), "/"),
  (re.compile(r"\\(left|right)(?![A-Za-z])|\\[,;! ]"), ""),
  (re.compile(r"\\([$%])"), r"\1"),
)
BOX = re.compile(r"\\boxed\s*\{")
TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|$)")
# 7 x 8 and 7x8, but not 0x38
TIMES = re.compile(r"(?<=[\d)])(?:\s+|(?<!(?<![\d.,])0))[xX]\s*(?=[\d(.])")
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
TOKEN = re.compile(rf"\s*(?:((?:{NUMBER})(?:[eE][+-]?\d+)?)|(\*\*|//|[-+*/^%()]))")


def verify(prompt: str, response: str, row: dict) -> float:
  """1.0 if the expression of the response is worth `row["answer"]`, else 0.0; never raises.

  0 as well for a response without an expression, for one that is longer, deeper or larger than the
  limits above, that divides by zero, and for an answer that is no number.
  """
  try:
    return float(agrees(calculate(expression(response)), row["answer"]))
  except (ValueError, KeyError, TypeError, AttributeError):
    return 0.0


def agrees(value: Fraction, answer: str) -> bool:
  """Whether a value is what `answer`, a number or an expression as text, says.

  A whole number or a fraction wants the exact value. A number with decimals wants it but for a
  relative error of `RELATIVE`; with two or more of them (zeros at the end left out) it also takes
  what is rounded to it, as 10 / 3 is to 3.33. Raises ValueError for an answer that is no number.
  """
  text = _plain(str(answer)).strip().removesuffix(".")
  expected = calculate(text)
  decimals = re.fullmatch(r"[^.]*\.(\d+)", text)
  if value == expected or not decimals:
    return value == expected
  digits = len(decimals[1].rstrip("0"))
  allowed = Fraction(1, 2 * 10**digits) if digits >= 2 else 0
  return abs(value - expected) <= max(allowed, RELATIVE * abs(expected))


def is_number(answer) -> bool:
  """Whether `agrees` can compare with an answer."""
  try:
    agrees(Fraction(0), answer)
  except ValueError:
    return False
  return True


def _last_box(line: str) -> str:
  """What is in the last \\boxed{...} of a line; "" where there is none, or it has no end."""
  start, depth = max((box.end() for box in BOX.finditer(line)), default=None), 1
  for place, char in enumerate(line[start:] if start else ""):
    depth += {"{": 1, "}": -1}.get(char, 0)
    if not depth:
      return line[start : start + place]
  return ""


def expression(response: str) -> str:
  """The expression of a response, as the head of this module says; it may be empty, or none."""
  line = response.rstrip().rpartition("\n")[2].rpartition("\r")[2]
  if len(line) > 4 * LONGEST:
    raise ValueError(f"the last line has {len(line)} characters, expected at most {4 * LONGEST}")
  line = _last_box(line) or line
  if tags := TAGGED.findall(line):
    line = tags[-1]
  sides = [side.strip() for side in _plain(line).rpartition(":")[2].split("=")]
  sides = [side.removesuffix(".") for side in sides if side]
  if len(sides) < 2:
    return "".join(sides)
  return sides[-2] if re.search(r"\d", sides[-2]) else sides[-1]


def _plain(text: str) -> str:
  """The text with the signs of print and of LaTeX as those of a keyboard."""
  for pattern, plain in PLAIN:
    text = pattern.sub(plain, text)
  return TIMES.sub("*", text.translate(SIGNS))


def calculate(text: str) -> Fraction:
  """The exact value of an expression of `+ - * / // % ^ **`, parentheses and numbers.

  Takes well below a millisecond, whatever the text. Raises ValueError for what is no such
  expression, for a division by zero, and beyond the limits above.
  """
  if len(text) > LONGEST:
    raise ValueError(f"the expression has {len(text)} characters, expected at most {LONGEST}")
  reader = _Reader(_tokens(text))
  try:
    value = _sum(reader, 0)
  except ZeroDivisionError:
    raise ValueError("the expression divides by zero") from None
  if reader.next():
    raise ValueError(f"found {reader.next()!r}, expected an operator or the end")
  return value


class _Reader:
  """Tokens, and how many of them are read."""

  def __init__(self, tokens: list[str]):
    self.tokens, self.place = tokens, 0

  def next(self, offset: int = 0) -> str:
    """The token that comes next, or `offset` after it; "" at the end."""
    place = self.place + offset
    return self.tokens[place] if place < len(self.tokens) else ""

  def take(self, *wanted: str) -> str:
    """The next token if it is one of these, which is then read, else ""."""
    found = self.next()
    if found and found in wanted:
      self.place += 1
      return found
    return ""


def _tokens(text: str) -> list[str]:
  tokens, place = [], 0
  text = text.rstrip()
  while place < len(text):
    found = TOKEN.match(text, place)
    if not found:
      raise ValueError(f"found {text[place : place + 20]!r}, expected arithmetic")
    tokens.append("^" if found[2] == "**" else found[1] or found[2])
    place = found.end()
  return tokens


def _sum(reader: _Reader, depth: int) -> Fraction:
  value = _product(reader, depth)
  while sign := reader.take("+", "-"):
    other = _product(reader, depth)
    value = _bounded(value + other if sign == "+" else value - other)
  return value


def _product(reader: _Reader, depth: int) -> Fraction:
  value = _signed(reader, depth)
  while True:
    if sign := reader.take("*", "/", "//", "%"):
      other = _signed(reader, depth)
    elif reader.next() == "(":  # 2(3 + 4)
      sign, other = "*", _signed(reader, depth)
    else:
      return value
    value = _bounded(_apply(sign, value, other))


def _apply(sign: str, a: Fraction, b: Fraction) -> Fraction:
  if sign == "*":
    return a * b
  if sign == "/":
    return a / b
  return Fraction(a // b) if sign == "//" else a % b


def _signed(reader: _Reader, depth: int) -> Fraction:
  negative = False
  while sign := reader.take("+", "-"):
    negative ^= sign == "-"
  value = _power(reader, depth)
  return -value if negative else value


def _power(reader: _Reader, depth: int) -> Fraction:
  base = _atom(reader, depth)
  # 20% of the next thing is no arithmetic: before a number or parenthesis it is a remainder.
  while reader.next() == "%" and not re.match(r"[\d.(]", reader.next(1)):
    reader.take("%")
    base = base / 100
  if not reader.take("^"):
    return base
  exponent = _signed(reader, _deeper(depth))
  if exponent.denominator != 1 or abs(exponent) > LARGEST_EXPONENT:
    raise ValueError(f"found the exponent {exponent}, expected a whole number that is not large")
  bits = max(base.numerator.bit_length(), base.denominator.bit_length())
  if bits * abs(exponent) > MOST_BITS:
    raise ValueError("a power is too large")
  return base ** int(exponent)


def _atom(reader: _Reader, depth: int) -> Fraction:
  if reader.take("("):
    value = _sum(reader, _deeper(depth))
    if not reader.take(")"):
      raise ValueError(f"found {reader.next() or 'the end'}, expected )")
    return value
  token = reader.next()
  if not token[:1].isdigit() and not token.startswith("."):
    raise ValueError(f"found {token or 'the end'}, expected a number")
  reader.place += 1
  mantissa, _, exponent = token.replace(",", "").lower().partition("e")
  if abs(int(exponent or 0)) > LARGEST_EXPONENT:
    raise ValueError(f"found {token}, expected an exponent that is not large")
  return _bounded(Fraction(mantissa) * Fraction(10) ** int(exponent or 0))


def _deeper(depth: int) -> int:
  if depth >= DEEPEST:
    raise ValueError(f"found more than {DEEPEST} parentheses or powers inside of each other")
  return depth + 1


def _bounded(value: Fraction) -> Fraction:
  if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
    raise ValueError("a number is too large")
  return value
