r"""Congruences and numbers in a base: x \equiv 2 \mod 3, 101_2."""

import math
import re

import sympy

from v05_jax.rewards.math import values
from v05_jax.rewards.math.brackets import split
from v05_jax.rewards.math.exact import Irrational, TooLarge, exact
from v05_jax.rewards.math.kinds import Congruence, Digits, Residues, Value, Words

LIFT = 100_000  # common modulus up to which congruences of different moduli are compared
_PREFIXES = {"0x": 16, "0X": 16, "0b": 2, "0B": 2, "0o": 8}
_MODULUS = r"\(?\s*\\mod\s*[\s{(]*(?P<modulus>[^(){}=]+?)[\s})]*"
_REMAINDER = re.compile(
  r"^(?P<name>[^=]*[a-zA-Z][^=]*?)\\mod\s*\{?\s*(?P<modulus>\d+)\s*\}?\s*=(?P<residues>[^=]+)$"
)
_BETWEEN = re.compile(rf"(?P<left>[^=]+?)\\equiv(?P<right>[^=]+?){_MODULUS}")
_BASES = "zero one two three four five six seven eight nine ten eleven twelve".split()


def digits(text: str) -> Digits | None:
  r"""101_2, 101_{\text{two}}, 101 \text{ (base 2)}, 0x1F."""
  if match := re.fullmatch(r"(0[xXbBo])([0-9A-Fa-f]+)", text):
    return Digits(match[2].upper().lstrip("0") or "0", _PREFIXES[match[1]])
  text = re.sub(r"_\s*\{\s*\\text\s*\{\s*base\s*\}?\s*(\w+)\s*\}+", r"_{\1}", text)
  text = re.sub(r"^(?:\\overline\s*)?[\[{]\s*(\w+)\s*[\]}](?=\s*_)", r"\1", text)
  match = re.fullmatch(
    r"(?:\\text\s*\{)?\(?([0-9A-Fa-f]+)\)?\}?\s*"
    r"(?:_\s*(?:\{\s*(?:\\text\s*\{)?\s*[(\[]?(\w+)[)\]]?\s*\}?\s*\}|(\d)|\\text\s*\{\s*(\w+)\s*\})"
    r"|(?:\\text\s*\{)?\s*\(?(?:in )?base[ -]?\}?\s*(\w+)\s*\)?\}?)",
    text,
  )
  if not match:
    return None
  written, base = match[1].upper(), next(x for x in match.groups()[1:] if x)
  base = (
    _BASES.index(base.lower()) if base.lower() in _BASES else int(base) if base.isdigit() else 0
  )
  number = re.search(r"\d", written) or (len(written) > 1 and (match[1].isupper() or base == 16))
  return Digits(written.lstrip("0") or "0", base) if 2 <= base <= 36 and number else None


def residues(text: str) -> Residues | None:
  r"""x \equiv 1, 4 \mod 5, or 1, 4 \equiv x \mod 5, or x \mod 5 = 1; not x = 7 \mod 4, which is the
  number 3, nor 5 \equiv 7 \mod 3, which is false."""
  text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
  text = re.sub(r"\s*\bonly\s*$", "", text)
  text = _REMAINDER.sub(r"\g<name> = \g<residues> \\mod \g<modulus>", text)
  match = re.fullmatch(rf"(?:(?P<name>.*?)(?P<sign>\\equiv|=))?(?P<residues>.*?){_MODULUS}", text)
  if not match:
    return None
  name, numbers = match["name"] or "", match["residues"]
  if _has_letters(numbers) and not _has_letters(name):  # 2 \equiv n
    name, numbers = numbers, name
  name = _of_whom(name)
  modulus, found = values.integer(match["modulus"].strip()), _integers(numbers)
  if not modulus or None in found:
    return None
  modulus = abs(modulus)
  if match["sign"] == "=" and len(found) == 1 and found[0] >= modulus:
    return None
  classes = frozenset(n % modulus for n in found)
  if _has_letters(name):
    return Residues(name.replace(" ", ""), classes, modulus)
  number = values.integer(name.strip())
  return Residues("", classes, modulus) if number is None or number % modulus in classes else None


def _of_whom(name: str) -> str:
  """The letter alone of "all integers n", "all n with n"; any other text as it is."""
  words = name.split()
  letters = {word for word in words if len(word) == 1}
  said = {word for word in words if len(word) > 1}
  return letters.pop() if len(letters) == 1 and said and said <= _SAID else name


_SAID = set(
  "all every any the those integer integers whole natural positive number numbers value values of"
  " with for which where when such that satisfies satisfying is are if and only".split()
)


def _has_letters(text: str) -> bool:
  return re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+|\b(?:and|or)\b", "", text)) is not None


def _integers(text: str) -> list[int | None]:
  r"""1, 4 and \pm 1 as whole numbers; None for each part that is none."""
  parts, _ = split(text, (",", ";", "and", "or"))
  if r"\pm" in text and len(parts) == 1:
    n = values.integer(text.replace(r"\pm", "").strip())
    return [n, n and -n]
  return [values.integer(part.strip()) for part in parts]


def congruence(text: str) -> Congruence | None:
  r"""a \equiv b \mod n between letters."""
  match = _BETWEEN.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text))
  sides = match and [values.parse(match[x].strip()) for x in ("left", "right", "modulus")]
  return Congruence(*sides) if sides and None not in sides else None


def of_multiples(x: sympy.Basic) -> Residues | None:
  """3k + 1, for all whole k, as what is 1 modulo 3; None if it is no such expression."""
  if len(x.free_symbols) != 1:
    return None
  (k,) = x.free_symbols
  try:
    start, *others = (exact(x.xreplace({k: sympy.Integer(n)})) for n in (0, 1, 2, 3, -5, 17))
  except (Irrational, TooLarge, ArithmeticError):
    return None
  step = others[0] - start
  straight = others == [start + n * step for n in (1, 2, 3, -5, 17)]
  if not straight or step == 0 or step.denominator != 1 or start.denominator != 1:
    return None
  modulus = abs(int(step))
  return Residues("", frozenset([int(start) % modulus]), modulus)


def lifted(classes: Residues, modulus: int) -> frozenset:
  """The residues modulo a multiple of their modulus."""
  multiples = range(0, modulus, classes.modulus)
  return frozenset(n + i for n in classes.residues for i in multiples)


def in_common(parts: list[Residues]) -> Residues | None:
  """What is in all of the classes, of different moduli; None if their names differ, the common
  modulus is large or one is negated."""
  common = math.lcm(*(part.modulus for part in parts))
  if len({part.name for part in parts}) > 1 or common > LIFT or any(x.negated for x in parts):
    return None
  shared = frozenset.intersection(*(lifted(part, common) for part in parts))
  return parts[0]._replace(residues=shared, modulus=common)


def residues_in_words(residues: Residues, words: Words) -> bool:
  """n is odd, all even numbers."""
  match = _PARITY.fullmatch(words.text.lower())
  name, parity = (match[1], match[2]) if match else ("", "")
  if not match or residues.negated or (name and residues.name not in ("", name)):
    return False
  classes = Residues(residues.name, frozenset([int(parity == "odd")]), 2)
  return same_residues(residues, classes)


_PARITY = re.compile(
  r"(?:(?:all|the) )?(?:([a-z]) (?:is|must be) )?(odd|even)(?: (?:integers?|numbers?))?"
)


def united(parts: list[Residues]) -> Residues | None:
  """What is in one of the classes; None if their names differ or the common modulus is large."""
  common = math.lcm(*(part.modulus for part in parts))
  if len({part.name for part in parts}) > 1 or common > LIFT:
    return None
  union = frozenset().union(*(lifted(part, common) for part in parts))
  return parts[0]._replace(residues=union, modulus=common)


def same_residues(gold: Residues, found: Residues) -> bool:
  """The same classes, if of another modulus."""
  if gold.name and found.name and gold.name != found.name:
    return False
  if gold.negated != found.negated:
    return False
  common = math.lcm(gold.modulus, found.modulus)
  if common > LIFT:
    return gold[1:] == found[1:]
  return lifted(gold, common) == lifted(found, common)


def same_congruences(gold: Congruence, found: Congruence) -> bool:
  """Either way round: its sides change places."""
  sides = (gold.left, gold.right), (gold.right, gold.left)
  same = any(values.same(a, found.left) and values.same(b, found.right) for a, b in sides)
  return same and values.same(gold.modulus, found.modulus)


def residue_and_number(residues: Residues, number: Value) -> bool:
  """7 mod 4 is 3, and 4k + 3 the class of 3; that x is 3 modulo 4 does not say that x is 3."""
  if (classes := of_multiples(number.expression)) is not None:
    return same_residues(residues, classes)
  if residues.name or len(residues.residues) != 1:
    return False
  return values.same(sympy.Integer(*residues.residues), number.total)
