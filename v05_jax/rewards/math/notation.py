r"""One spelling for what is written in many: Unicode signs, LaTeX commands, spaced digits, mixed
numbers, repeating decimals."""

import re
import unicodedata

_SIGNS = {
  "−–‒‐‑﹣－": "-",
  "×✕": r"\times ",
  "⋅·∙•": r"\cdot ",
  "÷": r"\div ",
  "∗": "*",
  "≤⩽≦": r"\leq ",
  "≥⩾≧": r"\geq ",
  "≠": r"\neq ",
  "≈≅": r"\approx ",
  "≡": r"\equiv ",
  "∈": r"\in ",
  "∉": r"\notin ",
  "∪": r"\cup ",
  "∩": r"\cap ",
  "∅": r"\emptyset ",
  "∖": r"\setminus ",
  "±": r"\pm ",
  "∓": r"\mp ",
  "∞": r"\infty ",
  "°º": r"^\circ ",
  "⟨〈": r"\langle ",
  "⟩〉": r"\rangle ",
  "…⋯": r"\ldots ",
  "ℝ": r"\mathbb{R}",
  "ℤ": r"\mathbb{Z}",
  "ℚ": r"\mathbb{Q}",
  "ℕ": r"\mathbb{N}",
  "ℂ": r"\mathbb{C}",
  "⌊": r"\lfloor ",
  "⌋": r"\rfloor ",
  "⌈": r"\lceil ",
  "⌉": r"\rceil ",
  "∕⁄": "/",
  "∶": ":",
  "′’": "'",
  "√": r"\sqrt ",
  "∛": r"\sqrt[3] ",
  "∜": r"\sqrt[4] ",
  "“”\u200b\u2060\ufeff\u200e\u200f": "",
  "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000\t\n\r": " ",
}
_GREEK = {
  char: "\\" + (name if char.islower() else name.capitalize()) + " "
  for char in "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΦΨΩπΠ"
  for name in [unicodedata.name(char).split()[-1].lower().replace("lamda", "lambda")]
}
_TABLE = str.maketrans({c: to for signs, to in _SIGNS.items() for c in signs} | _GREEK)


def _ascii(text: str) -> str:
  compatible = lambda found: unicodedata.normalize("NFKC", found).replace("−", "-")
  text = re.sub(
    "[¼-¾⅐-⅞↉]", lambda m: r"\frac{{{}}}{{{}}}".format(*compatible(m[0]).split("⁄")), text
  )
  text = re.sub("[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱ]+", lambda m: "^{" + compatible(m[0]) + "}", text)
  text = re.sub("[₀-₉]+", lambda m: "_{" + compatible(m[0]) + "}", text)
  text = re.sub("((?:\\d\u0305)+)", lambda m: rf"\overline{{{m[0][::2]}}}", text)
  return unicodedata.normalize("NFKC", text.translate(_TABLE))


_FONTS = (
  "mathrm|textrm|textbf|textit|mathbf|mathit|mathsf|mathtt|texttt|textsf|textup|mbox|hbox|textnormal"
  "|emph|bm|boldsymbol|pmb"
)
# (what is written, what is read), in this order.
_SPELLINGS = [
  (re.compile(pattern), to)
  for pattern, to in (
    (r"\\(?:left|right|middle)\s*\.", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*", ""),
    (r"\\(?:display|text|script)style(?![a-zA-Z])|\\(?:no)?limits(?![a-zA-Z])|\\!", ""),
    (r"\{\\(?:rm|bf|it|sf|tt)\s+([^{}]*)\}", r"\\text{\1}"),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\\(?:thin|med|thick)?space(?![a-zA-Z])", " "),
    (rf"\\(?:{_FONTS})\s*\{{", r"\\text{"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
    (r"\\text\s*\{\s*([:,;])\s*\}", r"\1"),
    (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\lbrack(?![a-zA-Z])", "["),
    (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\(?:le|leqslant|leqq)(?![a-zA-Z])|<=", r"\\leq "),
    (r"\\(?:ge|geqslant|geqq)(?![a-zA-Z])|>=", r"\\geq "),
    (r"\\ne(?![a-zA-Z])|\\not\s*=|!=", r"\\neq "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:simeq|cong)(?![a-zA-Z])|~=", r"\\approx "),
    (r"\\(?:infin|infty)(?![a-zA-Z])|(?<![a-zA-Z\\])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
    (r"\\(?:c?dots|dots[cbmio]|hdots)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
    (r"\\(?:mid|vert|lvert|rvert)(?![a-zA-Z])", "|"),
    (r"\\colon(?![a-zA-Z])", ":"),
    (r"\\backslash(?![a-zA-Z])", r"\\setminus "),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\\%", "%"),
    (
      r"\\text\s*\{\s*%\s*\}|(?:\\text\s*\{)?\s*(?<![a-zA-Z])(?:percent|pct)(?![a-zA-Z])\s*\}?",
      "%",
    ),
    (r"\\[bp]?mod(?![a-zA-Z])|\\text\s*\{\s*\(?mod\s*\}|(?<![a-zA-Z\\])mod(?![a-zA-Z])", r"\\mod "),
    (r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}", r" \1 "),
    (r"\*\*", "^"),
    (
      r"(?<![a-zA-Z\\])(pi|sqrt|(?:arc)?(?:sin|cos|tan)h?|sec|csc|cot|log|ln|exp)(?![a-zA-Z])",
      r"\\\1 ",
    ),
    (r"\\sqrt\s*(\[[^\[\]]*\])?\s*\(([^()]*)\)", r"\\sqrt\1{\2}"),
    (r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+)", r"\\sqrt\1{\2}"),
    # 4.5e33, which math-verify takes for a product with Euler's number.
    (r"(?<![\w.\\])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
  )
]
# \sqrt34 is the root of 3, times 4; with the sign √ or the word sqrt it is the root of 34.
_ROOT = re.compile(r"\\sqrt\s*(\d)")
_FRACTION = re.compile(
  r"\\(frac|binom)(?![a-zA-Z])\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})"
)
_SPACED = re.compile(r"(?<![\d.])(\d{1,3}(?: \d{3})+)(?![\d/])")
_BRACED = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:\s*\{\s*,\s*\}\s*\d{3})+(?!\d)")  # 1{,}234
_MIXED = re.compile(
  r"(?<![\w.,^}\\])(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}|\s+(\d+)\s*/\s*(\d+))(?![\w.])"
)
_REPEATING = re.compile(
  r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{?(\d+)\}?|\((\d+)\))"
  r"(?:(\d*)\\dot\s*\{?(\d)\}?)?(?!\d)"
)
_GOES_ON = re.compile(r"(?<![\d.])(\d*)\.(\d+?)\s*\\ldots(?!\s*[\d,])")
_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?!\d|,\d)")


def normal(text: str) -> str:
  r"""The text of an answer in one spelling: plain signs and commands, \frac{1}{2}, 10080, 8/3."""
  text = _ascii(_ROOT.sub(r"\\sqrt{\1}", text))
  text = re.sub(r"(?<!\\)\$", "", text)
  for pattern, to in _SPELLINGS:
    text = pattern.sub(to, text)
  text = _BRACED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
  text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)", ".", text)
  text = _FRACTION.sub(lambda m: rf"\{m[1]}{{{m[2] or m[3]}}}{{{m[4] or m[5]}}}", text)
  text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
  text = _without_group_commas(text)
  text = _REPEATING.sub(_repeating, text)
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
    before = text[: found.start()]
    inside = sum(map(before.count, "([")) > sum(map(before.count, ")]"))
    inside |= before.count(r"\{") > before.count(r"\}") or before.count("<") > before.count(">")
    inside |= before.count(r"\langle") > before.count(r"\rangle")
    groups = found[0].split(",")
    if groups[0] == "0" or (
      inside and ", " not in text and not any(group[0] == "0" for group in groups[1:])
    ):
      return found[0]
    return "".join(groups)

  return _GROUPS.sub(join, text)


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
