r"""What an answer is: a number, words, several parts, an interval, an equation, ..."""

from fractions import Fraction
import functools
import re

from v05_jax.rewards.math import dates, integers, notation, numerals, units, values, vectors
from v05_jax.rewards.math.brackets import CLOSING, OPENING, depths, split, unwrapped
from v05_jax.rewards.math.kinds import (
  EMPTY,
  Answer,
  Digits,
  Dots,
  Equation,
  Matrix,
  Named,
  Parts,
  Ratio,
  Reals,
  Residues,
  Union,
  Value,
  Words,
)

DEEPEST = 8  # brackets in brackets
NOTHING = re.compile(
  r"(there (is|are) )?no( real| integer| such)* (solutions?|roots?|values?)|(the )?empty set",
  re.IGNORECASE,
)
KNOWN = set(
  "yes no true false odd even none all both always never sometimes undefined impossible neither"
  " infinite infinity converges diverges convergent divergent increasing decreasing prime composite"
  " rational irrational left right red blue".split()
)
_SYMBOL = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_(?:\w|\{[^{}]*\}))?'*"
_LABEL = re.compile(
  rf"{_SYMBOL}|\\(?:vec|hat|bar|overline|overrightarrow|widehat)\s*\{{[^{{}}]*\}}|{_SYMBOL}\s*\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})*\s*\)|\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)"
  r"|\\text\s*\{[^{}]*\}|[A-Za-z]{2,}(?:\s[A-Za-z]+)*|\|?[A-Z]{2}\|?|m?\s*\\(?:angle|triangle)\s*[A-Z]+"
  # f(2), P(X = 3), E[X], \text{Var}(X), \|v\|, the area [ABC]
  r"|[fghpqFGHPQ]\s*\(\s*-?\d+\s*\)|\\\|[^|]*\\\||\[[A-Z]{3,6}\]|(?:\\?Pr|[PE]|\\mathbb\s*\{?[PE]\}?"
  r"|\\(?:text|operatorname)\s*\{[^{}]*\})\s*(?:\([^()]*\)|\[[^\[\]]*\])"
)
_ENVIRONMENT = re.compile(
  r"\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL
)
_TRANSPOSED = re.compile(
  r"(.*(?:[)\]]|\\rangle|\\end\{\w+\}))\s*\^\s*(?:T|\{\s*T\s*\}|\\top|\{\s*\\top\s*\})"
)
_SIGNS = {"=": "=", "<": "<", ">": ">", r"\leq": "<=", r"\geq": ">=", r"\neq": "!="}
_SIGNS |= {r"\in": "in", r"\approx": "~"}


def read(text: str) -> Answer | None:
  """The answer that a text states; None if it states none that can be compared."""
  try:
    return _read(unwrapped(notation.normal(text)), 0)
  except RecursionError:
    return None


def _read(text: str, depth: int) -> Answer | None:
  text = unwrapped(text)
  if not text or depth > DEEPEST:
    return None
  if text.count(r"\mod") == 1:
    if found := integers.residues(text) or integers.congruence(text):
      return found
  for reader in (
    _dots,
    _quantity,
    _several,
    _nothing,
    _base,
    _relation,
    _ratio,
    _bracketed,
    _matrix,
    _union,
    _words,
    _combination,
  ):
    if (found := reader(text, depth + 1)) is not None:
      return found
  return _value(text)


# --- One reader for each kind: the answer, or None if the text is of another kind


def _dots(text: str, depth: int) -> Dots | None:
  return Dots() if text == r"\ldots" else None


def _quantity(text: str, depth: int) -> Value | Words | Ratio | None:
  """twelve, five apples, 5 h 30 min, January 5, noon."""
  if (found := dates.date(text)) is not None:
    return Words(found, True)
  if time := dates.time(text):
    return _ratio(time, depth)
  if (found := numerals.in_digits(text)) is not None:
    return _value(found)
  if (found := units.compound(text)) is not None:
    total, unit = found
    return Value(text, values.parse(total), Fraction(1), unit, True)
  return None


def _base(text: str, depth: int) -> Digits | None:
  return integers.digits(text)


def _combination(text: str, depth: int) -> Value | None:
  found = vectors.combination(text)
  return _value(found) if found else None


def _several(text: str, depth: int) -> Parts | None:
  if match := re.fullmatch(r"\\text\s*\{([^{}]*(?:,|\band\b|\bor\b)[^{}]*)\}", text):
    text = match[1]
  if re.search(r"\\(?:pm|mp)", text) and (found := _plus_minus(text, depth)):
    return found
  parts, signs = split(text, (",", ";", "and", "or"))
  parts = [part.strip() for part in parts]
  if len(parts) == 1:
    return None
  parts = [part for part in parts if part]
  if len(parts) == 1:
    return None if parts[0] == text else _read(parts[0], depth)
  found = [_read(part, depth) for part in parts]
  if None in found:
    return None
  joined = next((sign for sign in ("or", "and") if sign in signs), "")
  return _list(_shared_name(found), joined)


def _list(found: list, joined: str = "") -> Parts | Residues:
  """The list; of residues of one modulus, their union."""
  if all(isinstance(part, Residues) for part in found):
    one = len({part.modulus for part in found}) == 1
    # of several moduli a system of congruences
    together = integers.united if one or joined == "or" else integers.in_common
    if classes := together(found):
      return classes
  flat = []
  for part in found:  # 1 \pm 2, 7
    if isinstance(part, Parts) and not part.brackets and part.parts:
      flat.extend(part.parts)
    else:
      flat.append(part)
  names = [part.name if isinstance(part, Named) else None for part in flat]
  named = None not in names and len(set(names)) == len(names)
  return Parts(tuple(flat), "", named or any(isinstance(x, Dots) for x in flat), joined)


def _shared_name(found: list) -> list:
  """x = 1, 2 as x = 1, x = 2."""
  if isinstance(found[0], Named) and not any(isinstance(x, (Named, Equation)) for x in found[1:]):
    name = found[0].name
    return [found[0], *(x if isinstance(x, Dots) else Named(name, x) for x in found[1:])]
  return found


def _plus_minus(text: str, depth: int) -> Parts | None:
  outside = [token for _, token, _ in depths(text) if token in (r"\pm", r"\mp")]
  if not outside or len(split(text, (",", ";", "and", "or"))[0]) > 1:
    return None
  replaced = lambda plus, minus: re.sub(
    r"\\([pm][mp])(?![a-zA-Z])", lambda m: plus if m[1] == "pm" else minus, text
  )
  above, below = (_read(replaced(*signs), depth) for signs in (("+", "-"), ("-", "+")))
  return None if above is None or below is None else Parts((above, below))


def _nothing(text: str, depth: int) -> Parts | None:
  bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
  empty = bare == r"\emptyset" or re.fullmatch(r"\\\{\s*\\\}", bare) or NOTHING.fullmatch(bare)
  return EMPTY if empty else None


def _relation(text: str, depth: int) -> Answer | None:
  if re.match(r"<[^<>]*>$", text):  # \lt 1, 2 \gt as an angle bracket
    return None
  sides, signs = split(text, _SIGNS)
  sides = [side.strip() for side in sides]
  if not signs or not all(sides):
    return None
  signs = [_SIGNS[sign] for sign in signs]
  if signs == ["="] and re.fullmatch("[a-zA-Z]", sides[1]) and not _LABEL.fullmatch(sides[0]):
    sides = sides[::-1]  # 5 = x
  while "~" in signs:  # what is approximated is the answer, unless it is but a name
    place = signs.index("~")
    if place == 0 and _LABEL.fullmatch(sides[0]):
      signs[0] = "="
    else:
      del sides[place + 1], signs[place]
  if not signs:
    return _read(sides[0], depth)
  if signs == ["in"]:
    inside = _read(sides[1], depth)
    return (
      Named(_name(sides[0]), inside) if inside is not None and _LABEL.fullmatch(sides[0]) else None
    )
  if "in" in signs:
    return None
  if set(signs) == {"="} and _LABEL.fullmatch(sides[0]):
    answer = _read(sides[-1], depth)
    equation = _equation(sides[-2:] if len(sides) > 2 else sides, signs[-1:], depth)
    return None if answer is None else Named(_name(sides[0]), answer, equation)
  return _equation(sides, signs, depth)


def _ratio(text: str, depth: int) -> Ratio | None:
  number, _, unit = units.split(text)
  parts, signs = split(number, (":",))
  if not signs or re.match(r"(?:\\text\s*\{\s*)?[A-J]:\s(?!\s*[A-Za-z]\s*$)", text):
    return None  # C: 15 is a choice with what it says
  found = [_value(part) for part in parts]
  clock = re.fullmatch(r"\d{1,2}:\d\d", number.replace(" ", "")) is not None
  return None if None in found else Ratio(tuple(found), unit, clock)


def _equation(sides: list[str], signs: list[str], depth: int) -> Equation | None:
  found = [_value(side) for side in sides]
  return None if None in found else Equation(tuple(found), tuple(signs))


def _name(text: str) -> str:
  return re.sub(r"[\s{}]", "", text)


def _bracketed(text: str, depth: int) -> Answer | None:
  r"""(1, 2), [0, 1), ]0, 1[, \{1, 2\}, \langle 1, 2 \rangle."""
  if match := re.fullmatch(r"([\](])([^()\[\]]*,[^()\[\]]*)([\[)])", text):
    text = match[1].replace("]", "(") + match[2] + match[3].replace("[", ")")
  if match := _TRANSPOSED.fullmatch(text):  # (1, 2)^T is a vector
    row = _bracketed(match[1], depth)
    return row._replace(brackets="<>") if isinstance(row, Parts) and row.ordered else None
  text = re.sub(r"^[ABD-OQ-Z]\s*(?=\([^()]*,[^()]*\)$)", "", text)  # the point A(1, 2)
  if text.startswith("<") and text.endswith(">"):
    text = rf"\langle {text[1:-1]} \rangle"
  tokens = list(depths(text))
  opened, closed = OPENING.get(tokens[0][1], ""), CLOSING.get(tokens[-1][1], "")
  if not (opened and closed) or any(depth == 0 for _, _, depth in tokens[1:-1]):
    return None
  inside = text[len(tokens[0][1]) : tokens[-1][0]].strip()
  brackets = opened + closed
  if brackets == "{}" and (found := _set_builder(inside, depth)) is not None:
    return found
  parts, _ = split(inside, (",", ";"))
  if len(parts) == 1 and brackets in ("()", "[]"):
    if match := re.fullmatch(r"(?:\\text\s*\{)?\s*([a-zA-Z])\s*\}?", inside):
      return Words(match[1], True, True)
    return _read(inside, depth) if brackets == "()" else None
  found = [_read(part, depth) for part in parts]
  if None in found:
    return None
  if brackets == "{}":
    flat = _list(found)
    parts = flat.parts if isinstance(flat, Parts) else (flat,)
    return Parts(parts, "{}", any(isinstance(x, Dots) for x in parts))
  return Parts(tuple(found), brackets, True)


def _set_builder(inside: str, depth: int) -> Answer | None:
  parts, _ = split(inside, ("|", ":"))
  return _read(parts[1], depth) if len(parts) == 2 else None


def _matrix(text: str, depth: int) -> Answer | None:
  text = re.sub(r"^[\[(|](?=\\begin)|(?<=\})[\])|]$", "", text)
  transposed = _TRANSPOSED.fullmatch(text)
  match = _ENVIRONMENT.fullmatch(transposed[1] if transposed else text)
  if not match or match[1] in ("vmatrix", "Vmatrix") or r"\begin" in match[2]:
    return None
  lines = [
    line for line in re.split(r"\\\\|\\cr\b", match[2].replace(r"\hline", "")) if line.strip()
  ]
  rows = tuple(tuple(_read(cell, depth) for cell in line.split("&")) for line in lines)
  if any(None in row for row in rows) or len({len(row) for row in rows}) > 1:
    return None
  if match[1] == "array" and len(rows) == len(rows[0]) == 1:
    return rows[0][0]
  return Matrix(tuple(zip(*rows)) if transposed else rows)


_HALF_LINE = re.compile(r"\\mathbb\s*\{?R\}?\s*[\^_]\s*\{?\s*([-+*]|[<>] ?0|\\[gl]eq 0)\s*\}?")
_HALF_LINES = {"+": r"(0,\infty)", ">0": r"(0,\infty)", "> 0": r"(0,\infty)"}
_HALF_LINES |= {"-": r"(-\infty,0)", "<0": r"(-\infty,0)", "< 0": r"(-\infty,0)"}
_HALF_LINES |= {r"\geq 0": r"[0,\infty)", r"\leq 0": r"(-\infty,0]"}
_HALF_LINES |= {"*": r"(-\infty,0)\cup(0,\infty)"}


def _union(text: str, depth: int) -> Answer | None:
  if re.fullmatch(r"\\mathbb\s*\{?R\}?|\\text\{all real numbers\}|all real numbers", text):
    return Reals()
  if match := _HALF_LINE.fullmatch(text):
    return Union((_read(_HALF_LINES[match[1]], depth),))
  if match := re.fullmatch(r"(?:\\text\{)?all real numbers except\s*(?:for\s*)?\}?\s*(.+?)", text):
    text = rf"\mathbb{{R}} \setminus \{{ {match[1]} \}}"
  parts, signs = split(text, (r"\cap",))
  if signs:
    found = [_read(part, depth) for part in parts]
    return None if None in found else Parts(tuple(Union((x,)) for x in found), "", False, "and")
  parts, signs = split(text, (r"\cup", r"\setminus"))
  if not signs:
    return None
  found = [_read(part, depth) for part in parts]
  if None in found:
    return None
  return Union(
    tuple(x for x, sign in zip(found, [r"\cup", *signs]) if sign == r"\cup"),
    tuple(x for x, sign in zip(found, [r"\cup", *signs]) if sign != r"\cup"),
  )


def _words(text: str, depth: int) -> Words | None:
  quoted = r"\text" in text
  bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
  bare = re.sub(r"\s+", " ", bare.replace(r"\ ", " ")).strip(" .\"'`")
  bare = "does not exist" if bare == "DNE" else bare
  if match := re.fullmatch(
    r"(?:option |choice )?\(?([A-Ja-j])[).:](?: (.*))?|(?:[Oo]ption|[Cc]hoice) ([A-J])", bare
  ):
    says = _read(match[2], depth) if match[2] else None
    return Words(match[1] or match[3], True, True, says)
  if not re.fullmatch(r"[a-zA-Z][a-zA-Z' .,\-/()!]*", bare):
    return None
  runs = re.findall(r"[a-zA-Z]+", bare)
  if len(bare) == 1 and quoted:
    return Words(bare, True, True)
  if max(map(len, runs)) < 2 or (
    not quoted and re.search(r"[-/()!]", bare) and max(map(len, runs)) < 3
  ):
    return None if not quoted else Words(bare, True)
  if bare.lower() in KNOWN or quoted or " " in bare or max(map(len, runs)) > 3:
    capitals = bare.isupper() and bare.lower() not in KNOWN
    return Words(bare, capitals and not quoted)
  return Words(bare, True) if bare.isupper() else None


@functools.lru_cache(maxsize=4096)
def _value(text: str) -> Value | None:
  text = text.strip()
  number, count, unit = units.split(text)
  expression = values.parse(number)
  if expression is None and number != text:
    number, count, unit = text, Fraction(1), units.NONE
    expression = values.parse(text)
  return None if expression is None else Value(number.replace(" ", ""), expression, count, unit)
