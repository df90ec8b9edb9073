r"""One spelling for what is written in many: Unicode signs, LaTeX commands, spaced digits, mixed
numbers, repeating decimals."""

import math
import re

from v05_jax.rewards.math.spelling import spelled

_SPACED = re.compile(r"(?<![\d.])(\d{1,3}(?: \d{3})+)(?![\d/])")
# 0.123 456 and 1'234'567.
_SPACED_DECIMALS = re.compile(r"(?<![\d.])\d+\.\d{3}(?: \d{3})*(?: \d{1,3})(?![\d/.])")
_APOSTROPHES = re.compile(r"(?<![\d.'])\d{1,3}(?:'\d{3})+(?![\d'])")
_DOUBLE_FACTORIAL = re.compile(r"(?<![\d.}\)])(\d{1,3})\s*!!(?!!)")
# 1.234,56, 1 234,56, 1'234,56 and 1.234.567
_POINTS = re.compile(
  r"(?<![\w.,'])[1-9]\d{0,2}(?:(?P<sep>[. '])\d{3}(?:(?P=sep)\d{3})*"
  r"(?:\{\s*,\s*\}|,)(?P<decimals>\d+)|(?:\.\d{3}){2,})(?!\d|[.,'/]\d| \d)"
)
_BRACED = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:\s*\{\s*,\s*\}\s*\d{3})+(?!\d)")  # 1{,}234
_MIXED = re.compile(
  r"(?<![\w.,^}\\])(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}(?![\d._])|\s+(\d+)\s*/\s*(\d+)(?![\w.]))"
)
_REPEATING = re.compile(
  r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{?(\d+)\}?|\((\d+)\))"
  r"(?:(\d*)\\dot\s*\{?(\d)\}?)?(?!\d)"
)
_GOES_ON = re.compile(r"(?<![\d.])(\d*)\.(\d+?)\s*\\ldots(?!\s*[\d,])")
_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?!\d|,\d)")
_FOR_ALL = re.compile(
  r"(?<=\S)\s*[,;(]?\s*(?:\\forall|(?:\\text\s*\{\s*[,(]?\s*|(?<![a-zA-Z{]))"
  r"(?:for (?:all|any|every|each|some)|where)\b).*$"
)
_WHOLE_PARAMETER = re.compile(
  r"(?P<answer>.*\S)\s*(?:[,;(]|\\text\s*\{[^{}]*\})\s*(?P<letter>[a-z])\s*\\in\s*(?:\\mathbb\s*)?\{?Z\}?\s*\)?"
)
_LINES = re.compile(
  r"(?P<brace>\\\{)?\s*\\begin\{(?P<name>cases|aligned|align\*?|gathered|split|array)\}"
  r"(?:\{[lcr| ]*\})?(?P<lines>.*)\\end\{(?P=name)\}",
  re.DOTALL,
)


def normal(text: str) -> str:
  r"""The text of an answer in one spelling: plain signs and commands, \frac{1}{2}, 10080, 8/3."""
  text = _listed(spelled(text))
  text = _with_points(text)
  text = _BRACED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
  text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)", ".", text)
  text = _SPACED_DECIMALS.sub(lambda m: m[0].replace(" ", ""), text)
  text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
  text = _APOSTROPHES.sub(lambda m: m[0].replace("'", ""), text)
  text = _without_group_commas(text)
  text = _DOUBLE_FACTORIAL.sub(lambda m: str(math.prod(range(int(m[1]), 0, -2))), text)
  text = _REPEATING.sub(_repeating, text)
  text = _without_condition(text)
  text = _GOES_ON.sub(_going_on, text)
  text = _MIXED.sub(_mixed, text)
  text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
  return re.sub(r"\s+", " ", text).strip()


def plain(text: str) -> str:
  """The normal spelling without blanks, for the comparison of texts as texts."""
  return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", normal(text)).rstrip(".")


def fraction(p: int, q: int) -> str:
  return rf"\frac{{{p}}}{{{q}}}"


def _without_group_commas(text: str) -> str:
  """1,234 as 1234. Inside of brackets (100,200) are two numbers, unless a group starts with 0 or
  other commas there are followed by a blank."""

  def join(found: re.Match) -> str:
    inside, groups = _in_brackets(text[: found.start()]), found[0].split(",")
    if groups[0] == "0" or (
      inside and ", " not in text and not any(group[0] == "0" for group in groups[1:])
    ):
      return found[0]
    return "".join(groups)

  return _GROUPS.sub(join, text)


def _in_brackets(before: str) -> bool:
  """Whether brackets are open behind this text."""
  inside = sum(map(before.count, "([")) > sum(map(before.count, ")]"))
  inside |= before.count(r"\{") > before.count(r"\}") or before.count("<") > before.count(">")
  return inside or before.count(r"\langle") > before.count(r"\rangle")


def _with_points(text: str) -> str:
  """1.234,56 as 1234.56: both signs stand there, and but one of them is the decimal sign. Inside of
  brackets it is two numbers."""

  def join(found: re.Match) -> str:
    if _in_brackets(text[: found.start()]):
      return found[0]
    whole = found[0].partition(",")[0] if found["decimals"] else found[0]
    return re.sub(r"\D", "", whole) + (f".{found['decimals']}" if found["decimals"] else "")

  return _POINTS.sub(join, text)


def _without_condition(text: str) -> str:
  r"""f(n) = n for all n as f(n) = n; x = k\pi, k \in \mathbb{Z} as x = n\pi."""
  text = _FOR_ALL.sub("", text)
  if match := _WHOLE_PARAMETER.fullmatch(text):
    answer, letter = match["answer"], match["letter"]
    if re.search(rf"=.*{_alone(letter)}", answer) and not re.search(_alone("n"), answer[1:]):
      return re.sub(_alone(letter), "n", answer)
    if letter == "n" and re.search(r"=", answer):
      return answer
  return text


def _listed(text: str) -> str:
  r"""The lines of \begin{aligned}, or of \begin{cases} without conditions, as a list."""
  match = _LINES.fullmatch(text.strip())
  if not match or (match["name"] == "array" and not match["brace"]):
    return text
  lines = match["lines"]
  if match["name"] in ("cases", "array") and "&" in lines:
    return text
  lines = [line.replace("&", "").strip(" ,;") for line in lines.split(r"\\")]
  return ", ".join(filter(None, lines))


def _alone(letter: str) -> str:
  return rf"(?<![a-zA-Z\\]){letter}(?![a-zA-Z])"


def _mixed(found: re.Match) -> str:
  whole, p, q = (int(x) for x in found.groups() if x is not None)
  return fraction(whole * q + p, q) if p < q else found[0]


def _repeating(found: re.Match) -> str:
  whole, fixed, block, parenthesis, middle, last = (x or "" for x in found.groups())
  block = (block or parenthesis) + middle + last
  return _of_digits(whole, fixed, block)


def _of_digits(whole: str, fixed: str, block: str) -> str:
  """0.1666... of ("0", "1", "6") as a fraction."""
  digits = int(whole + fixed + block) - int(whole + fixed or "0")
  return fraction(digits, 10 ** len(fixed) * (10 ** len(block) - 1))


def _going_on(found: re.Match) -> str:
  """0.333... and 0.1414... as fractions, where the digits show a period; else unchanged."""
  whole, digits = found[1], found[2]
  for length in range(1, len(digits) // 2 + 1):
    block = digits[-length:]
    times = 1
    while digits.endswith(block * (times + 1)):
      times += 1
    if times >= (3 if length == 1 else 2):
      return _of_digits(whole, digits[: len(digits) - length * times], block)
  return found[0]
