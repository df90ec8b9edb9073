r"""Free-form mathematics: does the response's final answer equal the gold one? (math-verify)

The prediction is the last complete \boxed{...} of the response, or else the last mathematical
expression in it. Runs in a worker process: sympy can hang on what a policy writes.
"""

import functools
import logging
import re

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from math_verify import verify as equal

TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
# 4.5e33 as Minerva Math and models write it, which math-verify takes for a product with Euler's
# number.
SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![\w.])")
SMALL = 1e-3
TAIL = 2000  # characters of an unboxed response in which the answer is looked for

# The pool enforces the time limit, so math-verify's own, by SIGALRM, is off; it warns about that.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def verify(prompt: str, response: str, row: dict) -> float:
  """1.0 if the response's answer equals `row["answer"]`, else 0.0.

  Equal as numbers (to 6 decimals, math-verify's own setting; below 1/1000 to 3 digits as well),
  expressions, sets or intervals, or as the same text in a box. An answer of several parts wants all
  of them, in any order unless it is a tuple.
  """
  gold = str(row["answer"])
  gold = _powers_of_ten((boxed(gold) or gold).strip(" $\n"))
  answer = boxed(response)
  if answer is None:
    prediction = _parse(response[-TAIL:])
  elif (answer := _powers_of_ten(answer.strip(" $\n"))) == gold:
    return float(gold != "")
  else:
    prediction = _parse(rf"\boxed{{{answer}}}")
  expected = _parse(rf"\boxed{{{gold}}}")
  return float(
    equal(expected, prediction, timeout_seconds=None)
    and not _small_and_different(expected, prediction)
  )


def boxed(text: str) -> str | None:
  r"""What the last complete \boxed{...} or \fbox{...} holds; \{ and \} are no braces."""
  opened, last = [], None  # where the contents of each open brace start, and whether it is a box's
  for token in re.finditer(r"(\\(?:boxed|fbox)\s*\{)|\\.|[{}]", text, re.DOTALL):
    if token[1] or token[0] == "{":
      opened.append((token.end(), bool(token[1])))
    elif token[0] == "}" and opened:
      start, box = opened.pop()
      if box and (last is None or start > last[0]):  # of nested ones the inner
        last = start, token.start()
  return None if last is None else text[last[0] : last[1]]


def _small_and_different(expected: list, found: list) -> bool:
  """Whether both are numbers so small that 6 decimals do not tell them apart, and do differ: 3e-24
  and 5e-24."""
  number = lambda parsed: next(
    (x for x in parsed if getattr(x, "is_number", False) and x.is_real), None
  )
  a, b = number(expected), number(found)
  if a is None or b is None:
    return False
  a, b = float(a), float(b)
  return abs(a) < SMALL and abs(a - b) > 5e-4 * max(abs(a), abs(b))


def _powers_of_ten(text: str) -> str:
  return SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)


@functools.lru_cache(maxsize=1024)  # the rollouts of a prompt share the gold answer
def _parse(text: str) -> list:
  return parse(text, TARGETS, parsing_timeout=None)
