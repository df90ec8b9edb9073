"""Numbers written in English words: twelve, one hundred and five, two thirds, five apples."""

from fractions import Fraction
import re

_SMALL = {
  word: number
  for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen".split()
  )
}
_TENS = {
  word: 10 * number
  for number, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
  )
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LARGE |= {"quadrillion": 10**15, "quintillion": 10**18}
_PARTS = {
  name: number
  for number, names in enumerate(
    "half halves,third thirds,quarter quarters fourth fourths,fifth fifths,sixth sixths"
    ",seventh sevenths,eighth eighths,ninth ninths,tenth tenths".split(","),
    start=2,
  )
  for name in names.split()
}
# What stands behind digits: 4 million, 3 tenths.
COUNTS = {"hundred": 100, **_LARGE, "lakh": 10**5, "crore": 10**7}
COUNTS |= dict.fromkeys(("mil", "mn", "mln"), 10**6) | dict.fromkeys(("bn", "bln"), 10**9)
COUNTS |= {"trn": 10**12, "dozen": 12, "doz": 12, "score": 20, "tens": 10}
COUNTS |= {  # 3 tenths; a single quarter may be a coin, and a fifth the one after the fourth
  f"{part}s": Fraction(1, number)
  for number, part in enumerate(
    "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), start=3
  )
}
COUNTS |= {
  "halves": Fraction(1, 2),
  "twentieths": Fraction(1, 20),
  "hundredths": Fraction(1, 100),
  "thousandths": Fraction(1, 1000),
  "millionths": Fraction(1, 10**6),
}
_NUMBER = {*_SMALL, *_TENS, *_LARGE, "hundred", "and"}
# A word behind a number that is not what is counted.
_NO_NOUN = set("to by or and of at in per times plus minus more less fewer point squared".split())


def in_digits(text: str) -> str | None:
  r"""The text with digits if it is a number in words, with one word behind it at most; else None.

  twenty-one -> 21, minus two thirds -> -\frac{2}{3}, five apples -> 5 \text{apples}
  """
  words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).lower().replace("-", " ").split()
  sign, noun = "", ""
  if words and words[-1] == "%":
    words, noun = words[:-1], "%"
  if words and words[0] in ("minus", "negative"):
    sign, words = "-", words[1:]
  if not words or not all(word.isalpha() for word in words):
    return None
  value = _value(words)
  if (
    value is None
    and not noun
    and len(words) > 1
    and words[-1] not in _NO_NOUN | _NUMBER
    and "-" not in text
  ):
    value, noun = _value(words[:-1]), rf" \text{{{words[-1]}}}"
  if value is None:
    return None
  p, q = value.numerator, value.denominator
  return f"{sign}{p}{noun}" if q == 1 else rf"{sign}\frac{{{p}}}{{{q}}}{noun}"


def _value(words: list[str]) -> Fraction | None:
  """The number that all of the words are, or None."""
  if words[-1] not in _PARTS:
    whole = _whole(words)
    return None if whole is None else Fraction(whole)
  part = Fraction(1, _PARTS[words[-1]])
  before = words[:-1]
  if before[-2:] in (["and", "a"], ["and", "one"]):  # five and a half
    whole = _whole(before[:-2])
    return None if whole is None else whole + part
  many = 1 if before in ([], ["a"], ["one"]) else _whole(before)
  return None if many is None or not (before or part == Fraction(1, 2)) else many * part


def _whole(words: list[str]) -> int | None:
  """The whole number that the words are, or None."""
  total, group, largest = 0, None, 10**21
  for place, word in enumerate(words):
    last = group or 0
    if word in _SMALL:
      fits = group is None or last % 100 == 0 or (last % 100 >= 20 and last % 10 == 0)
      if not fits or (last and _SMALL[word] == 0) or (last % 100 and _SMALL[word] > 9):
        return None
      group = last + _SMALL[word]
    elif word in _TENS:
      if last % 100:
        return None
      group = last + _TENS[word]
    elif word == "hundred":
      if not 0 < last < 100:
        return None
      group = last * 100
    elif word in _LARGE:
      if not last or _LARGE[word] >= largest:
        return None
      largest = _LARGE[word]
      total, group = total + last * largest, None
    elif word != "and" or not 0 < place < len(words) - 1:
      return None
    elif words[place - 1] not in ("hundred", *_LARGE):
      return None
  return total + (group or 0) if words and (group is not None or total) else None


def counted(word: str) -> int | Fraction | None:
  """What a number is multiplied by that this word stands behind, as million; None for another."""
  word = word.lower().rstrip(".")
  return COUNTS.get(word) or COUNTS.get(word.removesuffix("s") if word != "scores" else "")
