"""Units and counting words behind a number: 13 cm, 5 dollars, 4 million, 30 degrees."""

from fractions import Fraction
import re
from typing import NamedTuple

from v05_jax.rewards.math.numerals import counted


class Unit(NamedTuple):
  """What a unit measures, how many of the dimension's base units it is, and the direction that is
  said with it: (what it is a direction of, which one), as in 3 miles north or 5% increase."""

  dimension: str
  size: Fraction
  direction: tuple[str, str] | None = None


NONE = Unit("", Fraction(1))
UNKNOWN = Unit("?", Fraction(1))  # apples
PERCENT = Unit("%", Fraction(1, 100))

_TABLE = {
  "length": {
    "nm nanometer nanometre": "1/1000000000",
    "um micrometer micrometre micron": "1/1000000",
    "mm millimeter millimetre": "1/1000",
    "cm centimeter centimetre": "1/100",
    "dm decimeter decimetre": "1/10",
    "meter metre": "1",
    "km kilometer kilometre": "1000",
    "inch inche in": "254/10000",
    "ft foot feet": "3048/10000",
    "yd yard": "9144/10000",
    "mi mile": "1609344/1000",
  },
  "time": {
    "ns nanosecond": "1/1000000000",
    "us microsecond": "1/1000000",
    "ms millisecond": "1/1000",
    "sec second": "1",
    "min minute": "60",
    "hr hour": "3600",
    "day": "86400",
    "week": "604800",
    "month": "2629800",
    "yr year": "31557600",
    "decade": "315576000",
    "century centurie": "3155760000",
  },
  "mass": {
    "ug microgram": "1/1000000",
    "mg milligram": "1/1000",
    "gram": "1",
    "kg kilogram": "1000",
    "ton tonne": "1000000",
  },
  "weight": {"oz ounce": "1", "lb pound": "16"},
  "volume": {
    "ml mL milliliter millilitre": "1/1000",
    "liter litre": "1",
    "gal gallon": "37854/10000",
    "qt quart": "37854/40000",
    "pt pint": "37854/80000",
    "cup": "37854/160000",
  },
  "money": {"dollar USD buck": "1", "cent": "1/100"},
  "area": {"acre": "1", "hectare ha": "24711/10000"},
  "euro": {"euro EUR": "1"},
  "pounds": {"GBP": "1"},
  "yen": {"yen": "1"},
  "rupee": {"rupee INR": "1"},
  "ohm": {"ohm": "1", "kohm": "1000"},
  "angle": {"degree deg": "1"},
  "angleC": {"celsiu celsius": "1"},
  "angleF": {"fahrenheit": "1"},
  "radian": {"radian rad": "1"},
  "newton": {"newton": "1", "kN": "1000"},
  "joule": {"joule": "1", "kJ": "1000", "kWh": "3600000"},
  "calorie": {"cal calorie": "1", "kcal": "1000"},
  "watt": {"watt": "1", "kW": "1000", "MW": "1000000"},
  "volt": {"volt": "1"},
  "ampere": {"ampere amp": "1"},
  "hertz": {"Hz hertz": "1", "kHz": "1000", "MHz": "1000000"},
  "pascal": {"Pa pascal": "1", "kPa": "1000"},
  "kelvin": {"kelvin": "1"},
  "mole": {"mol mole": "1"},
  "count": {"unit": "1"},
  "morning": {"am a.m midnight": "1"},
  "afternoon": {"pm p.m noon": "1"},
}
# Each line holds directions that exclude each other; words with "=" between say the same.
_DIRECTIONS = {
  word: (line, words)
  for line in (
    "north south east west northeast northwest southeast southwest",
    "up=upward=upwards down=downward=downwards left=leftward=leftwards right=rightward=rightwards"
    " forward=forwards backward=backwards",
    "clockwise counterclockwise=anticlockwise=counter-clockwise",
    "increase=growth=gain=profit=rise decrease=reduction=loss=drop=decline",
    "ad=ce bc=bce",
  )
  for words in line.split()
  for word in words.split("=")
}
_LETTERS = {
  "m": "meter",
  "s": "sec",
  "g": "gram",
  "h": "hr",
  "l": "liter",
  "L": "liter",
  "W": "watt",
}
_LETTERS |= {"C": "celsius", "F": "fahrenheit"}
_LETTERS |= {"N": "newton", "J": "joule", "V": "volt", "A": "ampere", "K": "kelvin"}
_SHORT = {"mph": "mi/hr", "kph": "km/hr", "kmh": "km/hr", "kmph": "km/hr", "fps": "ft/sec"}
_SHORT |= {"mpg": "mi/gal"}
_SIGNS = {r"\$": "dollar", "€": "euro", "£": "GBP", "¥": "yen", "₹": "rupee"}
UNITS = {
  name: Unit(dimension, Fraction(size))
  for dimension, sizes in _TABLE.items()
  for names, size in sizes.items()
  for name in names.split()
}
# Words behind a number that make another answer of it, as no unit does.
_QUALIFIERS = set(
  "or and not no at least most more less fewer than over under above below up plus minus times"
  " squared cubed factorial half quarter third if when unless except base mod modulo"
  " remainder false incorrect wrong maybe none gross".split()
)
_TEMPERATURE = re.compile(r"\\circ\s*(?:\\text\s*\{)?\s*([CF])\s*\}?\s*$")
_TEXT = r"\\text\s*\{(?P<text>[^{}]*)\}"
_EXPONENT = r"(?P<exponent>\s*\^\s*\{?\s*-?\d\s*\}?)?"
_TRAILING = re.compile(rf"(?P<rest>.*?[\w.)}}%!\]])\s*(?:{_TEXT}){_EXPONENT}\s*", re.DOTALL)
_BARE = re.compile(
  r"(?P<rest>[-+]?\s*(?:[\d.:]+|\\frac\{\d+\}\{\d+\}|[\d.]+\s*/\s*\d+"
  r"|[\d.]+\s*\\times 10\^\{-?\d+\}|[\d.]*\s*\\sqrt\{\d+\}|[\d.]*\s*\\pi))"
  r"(?P<gap>\s*)(?P<text>[a-zA-Z][a-zA-Z ./²³-]*?)"
  rf"{_EXPONENT}\s*"
)


# m s^{-1} and \\frac{km}{h} in one \\text.
_COMPOSED = [
  (re.compile(pattern), to)
  for pattern, to in (
    (r"(\\text\s*\{[^{}]*)\^\{(-?\d)\}", r"\1^\2"),
    (
      r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*(\^\{?\d\}?)?\s*\}$",
      r"\\text{\1/\2}\3",
    ),
    (
      r"\\text\s*\{\s*([a-zA-Z]+)\s*\}(?:\s|\\cdot)*\\text\s*\{\s*([a-zA-Z]+)\s*\}(?=\s*\^\s*\{\s*-)",
      r"\\text{\1 \2}",
    ),
    (r"(\\text\s*\{[^{}\d]*)\}\s*\\cdot\s*\\text\s*\{", r"\1 "),
    (r"(\\text\s*\{[^{}]*[a-zA-Z])\s*\\cdot\s*(?=[a-zA-Z])", r"\1 "),
  )
]


def split(text: str) -> tuple[str, Fraction, Unit]:
  r"""(the number's text, what its counting words multiply it by, its unit) of `13 \text{ cm}`.

  `NONE` without a unit, `UNKNOWN` where it is not in the table. What is no unit stays in the text.
  """
  count, unit = Fraction(1), NONE
  for pattern, to in _COMPOSED:
    text = pattern.sub(to, text)
  for sign, name in _SIGNS.items():
    if sign in text:
      text, unit = text.replace(sign, " ").strip(), _unit(name, "", False)
      text = re.sub(r"^-\s+", "-", text)
  text = re.sub(r"(?<=\d)\s*\^?\{?\s*(?:\\text\s*\{)?(?:st|nd|rd|th)\s*\}?\s*\}?$", "", text)
  angle = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", text)
  while True:
    if not angle and (
      match := re.fullmatch(r"(.*[\w.)}\]])\s*\^\\circ(?:\s*(?:\\text\{)?\s*[CF]\s*\}?)?", text)
    ):
      scale = _TEMPERATURE.search(text)
      name = {"C": "celsius", "F": "fahrenheit"}[scale[1]] if scale else "degree"
      text, unit = match[1], _together(unit, _unit(name, "", False))
    elif match := re.fullmatch(r"(.*[\w.)}\]])\s*%", text):
      text, unit = match[1], _together(unit, PERCENT)
    elif match := _TRAILING.fullmatch(text) or _BARE.fullmatch(text):
      power = re.search(r"\^?\s*(-?\d)$", match["text"].strip())
      words = (match["text"].strip()[: power.start()] if power else match["text"]).split()
      exponent = match["exponent"] or (power[1] if power else "")
      found = _named(words, exponent, "gap" in match.groupdict())
      if found is None:
        break
      text, factor, named = match["rest"], *found
      count *= factor
      unit = _together(unit, named)
    else:
      break
  return text.strip(), count, unit


def _together(last: Unit, before: Unit) -> Unit:
  """The unit where two are written, as in 25% increase: the last one that is known."""
  unit = last
  if before != NONE and last.dimension in ("", "?"):
    unit = before
  return unit._replace(direction=last.direction or before.direction)


def _named(words: list[str], exponent: str, bare: bool) -> tuple[Fraction, Unit] | None:
  """What the words multiply by, and their unit; None if they are something else than a unit.

  Without \\text{...} around them (`bare`) the words must be known: 5x is no five of unit x.
  """
  count = Fraction(1)
  words = [word.removeprefix("-") for word in words]
  while words and (factor := counted(words[0])):
    count *= factor
    words = words[1:]
  words = words[1:] if words and words[0] in ("of", "a") else words
  if [word.lower() for word in words[:2]] in (["times"], ["times", "as"]):  # 4 times as many
    return count, UNKNOWN
  if not words:
    return count, NONE
  lower = [word.lower().strip(".,()") for word in words]
  if _QUALIFIERS & set(lower) or len(words) > 6 or any(re.search(r"\d", word) for word in words):
    return None
  if any(map(counted, lower)):  # 4 in a million
    return None
  if lower in (["th"], ["st"], ["nd"], ["rd"]):
    return count, NONE
  unit = _unit(" ".join(words).strip(" .,"), exponent, bare)
  if unit is None and (bare or re.fullmatch("[a-zA-Z]", " ".join(words))):
    return None  # a letter is a variable, or a million
  if unit is None and not all(re.fullmatch(r"[a-zA-Z/.'-]+|\([a-zA-Z]+\)", word) for word in words):
    return None
  direction = next((_DIRECTIONS[word] for word in lower if word in _DIRECTIONS), None)
  return count, (unit or UNKNOWN)._replace(direction=direction)


def _unit(name: str, exponent: str, bare: bool) -> Unit | None:
  name = _SHORT.get(name.lower(), name)
  power = int(re.sub(r"[^\d-]", "", exponent) or 1)
  if power < 0 and name.count(" ") == 1:  # m s^-1
    name, power = name.replace(" ", "/"), -power
  name = re.sub(r"^degrees? (?=celsius$|fahrenheit$|[CF]$)", "", name, flags=re.IGNORECASE)
  for word, of in (("square", 2), ("sq", 2), ("cubic", 3), ("cu", 3)):
    if match := re.fullmatch(rf"{word}\.?\s+(.+)", name, re.IGNORECASE):
      name, power = match[1], of
    elif match := re.fullmatch(rf"(.+)\s+{word}d?\.?", name, re.IGNORECASE):
      name, power = match[1], of
  size, dimension = Fraction(1), ""
  parts = re.split(r"\s*/\s*|\s+per\s+", name)
  for place, part in enumerate(parts):
    letters = not bare or len(parts) > 1  # 5 m may be five times m; 5 m/s is not
    found = _known(part.strip(), letters)
    if found is None:
      return None
    each = power if place == len(parts) - 1 else 1
    each = each if place == 0 else -each
    size *= found.size**each
    dimension += f"{found.dimension}{each} "
  if dimension.startswith("count"):
    return Unit("count", Fraction(1))  # units, square units
  return Unit(dimension, size)


def _known(name: str, letters: bool) -> Unit | None:
  name = _LETTERS.get(name, name) if letters else name
  for spelled in (
    name,
    name.lower(),
    name.rstrip("."),
    name.lower().rstrip("."),
    name.lower()[:-1],
  ):
    if spelled in UNITS and (letters or len(name) > 1):
      return UNITS[spelled]
  return None


def comparable(a: Unit, b: Unit) -> bool:
  """False if both are known and measure different things, or if north and south are said."""
  directions = a.direction, b.direction
  if None not in directions and directions[0] != directions[1]:
    if directions[0][0] == directions[1][0]:
      return False
  known = [unit.dimension for unit in (a, b) if unit.dimension not in ("", "?", "%", "count")]
  if "angle1 " in known and all(name.startswith("angle") for name in known):
    return True  # degrees of an angle or of a temperature
  return len(known) < 2 or known[0] == known[1]


_PART = re.compile(
  r"\s*(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})\s*(?:([a-zA-Z]+)\.?|(\^\\circ|'{1,2}))"
  r"\s*(?:(?:,\s*)?and\b|,)?"
)
_ANGLE = {r"^\circ": "1", "'": "1/60", "''": "1/3600"}


def compound(text: str) -> tuple[str, Unit] | None:
  r"""A sum and its unit, of 5 h 30 min, 2 \text{ ft } 6 \text{ in} or 30^\circ 15'; else None."""
  text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip()
  parts, end = [], 0
  while match := _PART.match(text, end):
    angle = Unit("angle1 ", Fraction(_ANGLE[match[3]])) if match[3] else None
    unit = angle or _unit(match[2], "", False)
    if unit is None or (parts and parts[-1][1].dimension != unit.dimension):
      return None
    if parts and parts[-1][1].size <= unit.size:
      return None
    parts.append((match[1], unit))
    end = match.end()
  if len(parts) < 2 or end < len(text):
    return None
  first = parts[0][1]
  terms = []
  for number, unit in parts:
    share = unit.size / first.size
    terms.append(rf"{number}\cdot\frac{{{share.numerator}}}{{{share.denominator}}}")
  return "+".join(terms), first
