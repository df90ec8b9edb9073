r"""Congruences and numbers in a base: x \equiv 2 \mod 3, 101_2."""

import math
import re

import sympy

from v05_jax.rewards.math import values
from v05_jax.rewards.math.brackets import split
from v05_jax.rewards.math.exact import Irrational, TooLarge, exact
from v05_jax.rewards.math.kinds import Digits, Residues

LIFT = 100_000  # common modulus up to which congruences of different moduli are compared
_PREFIXES = {"0x": 16, "0X": 16, "0b": 2, "0B": 2, "0o": 8}
_BASES = "zero one two three four five six seven eight nine ten eleven twelve".split()


def digits(text: str) -> Digits | None:
  r"""101_2, 101_{\text{two}}, 101 \text{ (base 2)}, 0x1F."""
  if match := re.fullmatch(r"(0[xXbBo])([0-9A-Fa-f]+)", text):
    return Digits(match[2].upper().lstrip("0") or "0", _PREFIXES[match[1]])
  text = re.sub(r"_\s*\{\s*\\text\s*\{\s*base\s*\}?\s*(\w+)\s*\}+", r"_{\1}", text)
  match = re.fullmatch(
    r"(?:\\text\s*\{)?\(?([0-9A-Fa-f]+)\)?\}?\s*"
    r"(?:_\s*(?:\{\s*(?:\\text\s*\{)?\s*\(?(\w+)\)?\s*\}?\s*\}|(\d)|\\text\s*\{\s*(\w+)\s*\})"
    r"|(?:\\text\s*\{)?\s*\(?(?:in )?base[ -]?\}?\s*(\w+)\s*\)?\}?)",
    text,
  )
  if not match:
    return None
  written, base = match[1].upper(), next(x for x in match.groups()[1:] if x)
  base = (
    _BASES.index(base.lower()) if base.lower() in _BASES else int(base) if base.isdigit() else 0
  )
  number = re.search(r"\d", written) or (len(written) > 1 and match[1].isupper())
  return Digits(written.lstrip("0") or "0", base) if 2 <= base <= 36 and number else None


def residues(text: str) -> Residues | None:
  r"""x \equiv 1, 4 \mod 5; not x = 7 \mod 4, which is the number 3."""
  text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
  match = re.fullmatch(
    r"(?:(?P<name>.*?)(?P<sign>\\equiv|=))?(?P<residues>.*?)"
    r"\(?\s*\\mod\s*[\s{(]*(?P<modulus>[^(){}]+?)[\s})]*",
    text,
  )
  if not match:
    return None
  name = (match["name"] or "").replace(" ", "")
  parts, _ = split(match["residues"], (",", ";", "and", "or"))
  modulus = values.integer(match["modulus"].strip())
  found = [values.integer(part.strip()) for part in parts]
  if r"\pm" in match["residues"] and len(parts) == 1:
    n = values.integer(match["residues"].replace(r"\pm", "").strip())
    found = [n, n and -n]
  if not modulus or None in found:
    return None
  modulus = abs(modulus)
  if match["sign"] == "=" and len(found) == 1 and found[0] >= modulus:
    return None
  if not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", name)):
    name = ""
  return Residues(name, frozenset(n % modulus for n in found), modulus)


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


def united(parts: list[Residues]) -> Residues | None:
  """What is in one of the classes; None if their names differ or the common modulus is large."""
  common = math.lcm(*(part.modulus for part in parts))
  if len({part.name for part in parts}) > 1 or common > LIFT:
    return None
  union = frozenset().union(*(lifted(part, common) for part in parts))
  return parts[0]._replace(residues=union, modulus=common)
