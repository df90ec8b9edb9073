r"""The many spellings of one thing: Unicode signs, LaTeX commands, arguments without braces."""

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
  "″": "''",
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


_FONTS = (
  "mathrm|textrm|textbf|textit|mathbf|mathit|mathsf|mathtt|texttt|textsf|textup|mbox|hbox|textnormal"
  "|emph|bm|boldsymbol|pmb"
)
UNIT_VECTORS = {"i": "u", "j": "v", "k": "w"}  # letters that the parser takes for no constant
# (what is written, what is read), in this order.
_SPELLINGS = [
  (re.compile(pattern), to)
  for pattern, to in (
    (r"\\(?:left|right|middle)\s*\.", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*", ""),
    (r"\\(?:display|text|script)style(?![a-zA-Z])|\\(?:no)?limits(?![a-zA-Z])|\\!", ""),
    (r"\{\\(?:rm|bf|it|sf|tt)\s+([^{}]*)\}", r"\\text{\1}"),
    (r"\\(?:rm|bf|it|sf|tt|boldmath)(?![a-zA-Z])", ""),
    (
      r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge)(?![a-zA-Z])",
      "",
    ),
    # What is coloured or underlined stays the same.
    (r"\\color\s*(?:\{[^{}]*\}|(?=\s))|\\(?:textcolor|colorbox)\s*\{[^{}]*\}", ""),
    (r"\\(?:underline|uline|ensuremath|mathord|mathbin|mathstrut)(?![a-zA-Z])", ""),
    # The unit vectors, the imaginary unit, Euler's number.
    (
      r"\\(?:mathbf|boldsymbol|bm|textbf|hat|widehat|vec|overrightarrow)\s*(?:([ijk])(?![a-zA-Z])"
      r"|\{\s*(?:\\(?:mathbf|boldsymbol|bm)\s*)?\{?\s*\\?([ijk])(?:math)?\s*\}?\s*\})",
      lambda m: rf"\mathcal{{{UNIT_VECTORS[m[1] or m[2]]}}}",
    ),
    (r"\\(?:mathrm|mathit)\s*\{\s*([ied])\s*\}|\\(?:text|textrm)\s*\{\s*(i)\s*\}", r"\1\2 "),
    (r"\{\s*\\[,;:!>]\s*\}|\\text\s*\{\s+\}", " "),
    (r"\s*(?:(?<!\\)\\[,;:> ]|~|\\(?:thin|med|thick)space(?![a-zA-Z]))\s*", " "),
    (r"\\q?quad(?![a-zA-Z])|\\space(?![a-zA-Z])", "  "),
    (rf"\\(?:{_FONTS})\s*\{{", r"\\text{"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
    (r"\\text\s*\{\s*([:,;])\s*\}", r"\1"),
    (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset"),
    (r"\\lg(?![a-zA-Z])", r"\\log_{10} "),
    (r"\\text\s*\{\s*(gcd|lcm|max|min)\s*\}\s*(?=\()", r"\\operatorname{\1}"),
    (r"\\text\s*\{\s*is congruent to\s*\}|is congruent to", r"\\equiv "),
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
    (r":\s*=|\\coloneqq?(?![a-zA-Z])", "="),
    (r"\\[lr]?Vert(?![a-zA-Z])", r"\\|"),
    (r"\\(?:nicefrac|sfrac|tfrac)(?![a-zA-Z])", r"\\frac"),
    (
      r"\{([^{}]+?)\\over(?![a-zA-Z])([^{}]+)\}|^([^{}=,]+?)\\over(?![a-zA-Z])([^{}=,]+)$",
      r"\\frac{\1\3}{\2\4}",
    ),
    # Signs of money and units that are no letters.
    (r"¢", r"\\text{ cents}"),
    (r"\\pounds(?![a-zA-Z])", "£"),
    (r"\\(?:text)?euro(?![a-zA-Z])", "€"),
    (r"(?<![a-zA-Z])(?:US|USD)\s*(?=\\\$)", ""),
    (r"^\s*(?:\\text\s*\{\s*)?Rs\.?\s*\}?\s*(?=\d)", "₹"),
    (
      r"\\text\s*\{([^{}]*)\}\s*\\Omega(?![a-zA-Z])|(?<=\d)\s*()\\Omega(?![a-zA-Z])",
      r"\\text{\1\2ohm}",
    ),
    (r"\\mu\s*\\(?:text|mathrm)\s*\{\s*([mgsLl])\s*\}", r"\\text{u\1}"),
    (r"\\ast(?![a-zA-Z])", "*"),
    (r"\\ell(?![a-zA-Z])", "l"),
    (r"\\var(epsilon|phi|theta|rho|sigma|kappa|pi)(?![a-zA-Z])", r"\\\1"),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r" \\times "),
    # The number of choices of k out of n.
    (
      r"(?:\{\s*\}\s*|(?<![\w)}\]\s]))[\^_]\s*\{?\s*(\w+)\s*\}?\s*C\s*_\s*\{?\s*(\w+)\s*\}?",
      r"\\binom{\1}{\2}",
    ),
    (
      r"(?:\{\s*\}\s*|(?<![\w)}\]\s]))[\^_]\s*\{?\s*(\w+)\s*\}?\s*P\s*_\s*\{?\s*(\w+)\s*\}?",
      r"\\frac{\1!}{(\1-\2)!}",
    ),
    (r"(\d)\s*\\text\s*\{\s*out of\s*\}\s*(?=\d)|(\d)\s+out of\s+(?=\d)", r"\1\2/"),
    (r"(\d)\s*\\text\s*\{\s*to\s*\}\s*(?=\d)", r"\1:"),
    (r"^\s*(?:\\text\s*\{\s*)?(?:negative|minus)\s*\}?\s*(?=\d|\\frac)", "-"),
    (r"(\\mathbb\s*\{?R\}?)\s*-\s*(?=\\\{)", r"\1 \\setminus "),
    (r"\\backslash(?![a-zA-Z])", r"\\setminus "),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\\text\s*\{\s*\^\s*\\circ\s*([CF]?)\s*\}", r"^\\circ \1"),
    (r"\\%", "%"),
    (
      r"\\text\s*\{\s*(?:%|percent|pct|per cent)\s*\}|(?<![a-zA-Z])(?:percent|pct)(?![a-zA-Z])",
      "%",
    ),
    (
      r"\\operatorname\*?\s*\{\s*(gcd|max|min|mod|lcm|arg|deg|(?:arc)?(?:sin|cos|tan)h?|ln|log|exp)\s*\}",
      r"\\\1 ",
    ),
    (r"\\(max|min|gcd)\s*\\\{([^{}]*)\\\}", r"\\\1(\2)"),
    (
      r"(?:\\operatorname\s*\{\s*cis\s*\}|\\text\s*\{\s*cis\s*\}|\\?\bcis\b)"
      r"\s*(?:\(([^()]*)\)|([^\s()+]+))",
      r"e^{i(\1\2)}",
    ),
    (
      r"\\[bp]?mod(?![a-zA-Z])|\\text\s*\{\s*\(?mod(?:ulo)?\s*\}|(?<![a-zA-Z\\])mod(?:ulo)?(?![a-zA-Z])",
      r"\\mod ",
    ),
    (r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}", r" \1 "),
    (r"\*\*", "^"),
    (
      r"(?<![a-zA-Z\\])(pi|sqrt|(?:arc)?(?:sin|cos|tan)h?|sec|csc|cot|log|ln|exp)(?![a-zA-Z])",
      r"\\\1 ",
    ),
    (r"\\sqrt\s*(\[[^\[\]]*\])?\s*\(([^()]*)\)", r"\\sqrt\1{\2}"),
    (r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\d+(?:\.\d+)?)", r"\\sqrt\1{\2}"),
    # 4.5e33, which math-verify takes for a product with Euler's number.
    (r"(?<![\w.\\])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
  )
]
# \sqrt34 is the root of 3, times 4; with the sign √ or the word sqrt it is the root of 34.
_ROOT = re.compile(r"\\sqrt\s*(\d)")
_ARITY = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, "^": 1}
_TAKES = re.compile(
  r"(?P<name>\\(?:frac|binom|sqrt)(?![a-zA-Z])|\^(?=\s*\\(?:frac|sqrt|binom)))"
  r"\s*(?P<option>\[[^\[\]]*\])?"
)
_ARGUMENT = re.compile(r"\s*(\\[a-zA-Z]+|[^\s\\(){}\[\]^_&]|\{)")
_BRACE = re.compile(r"\\.|[{}]")


def spelled(text: str) -> str:
  r"""The text with plain signs and one command for each thing: \frac{1}{2} for \dfrac12 or ½."""
  text = _ascii(_ROOT.sub(r"\\sqrt{\1}", text))
  text = re.sub(r"(?<!\\)\$", "", text)
  for pattern, to in _SPELLINGS:
    text = pattern.sub(to, text)
  return _braced(text)


def _ascii(text: str) -> str:
  compatible = lambda found: unicodedata.normalize("NFKC", found).replace("−", "-")
  text = re.sub(
    "[¼-¾⅐-⅞↉]", lambda m: r"\frac{{{}}}{{{}}}".format(*compatible(m[0]).split("⁄")), text
  )
  text = re.sub("[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱ]+", lambda m: "^{" + compatible(m[0]) + "}", text)
  text = re.sub("[₀-₉]+", lambda m: "_{" + compatible(m[0]) + "}", text)
  text = re.sub("((?:\\d\u0305)+)", lambda m: rf"\overline{{{m[0][::2]}}}", text)
  return unicodedata.normalize("NFKC", text.translate(_TABLE))


def _braced(text: str) -> str:
  r"""Braces around the arguments of \frac, \binom and \sqrt, and around an exponent of these."""
  for found in reversed(list(_TAKES.finditer(text))):  # the inner ones first
    if taken := _arguments(text, found.end(), _ARITY[found["name"]]):
      contents, end = taken
      braced = found["name"] + (found["option"] or "") + "".join(f"{{{x}}}" for x in contents)
      text = text[: found.start()] + braced + text[end:]
  return text


def _arguments(text: str, at: int, many: int) -> tuple[list[str], int] | None:
  """The next arguments of a command and where they end; None where one is missing."""
  contents = []
  for _ in range(many):
    token = _ARGUMENT.match(text, at)
    if not token:
      return None
    start, at = token.span(1)
    if token[1] == "{":
      start, end = at, _closing_brace(text, at)
      at = end + 1
    else:
      inner = _arguments(text, at, _ARITY.get(token[1], 0))
      end = at = inner[1] if inner else -1
    if end < 0:
      return None
    contents.append(text[start:end].strip())
  return contents, at


def _closing_brace(text: str, at: int) -> int:
  """Where the brace closes that is open at `at`, or -1."""
  depth = 1
  for brace in _BRACE.finditer(text, at):
    depth += {"{": 1, "}": -1}.get(brace[0], 0)
    if depth == 0:
      return brace.start()
  return -1
