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
TAIL = 2000  # characters of an unboxed response in which the answer is looked for

# The pool enforces the time limit, so math-verify's own, by SIGALRM, is off; it warns about that.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def verify(prompt: str, response: str, row: dict) -> float:
  """1.0 if the response's answer equals `row["answer"]`, else 0.0.

  Equal as numbers (to 6 decimals), expressions, sets or intervals, or as the same text in a box.
  """
  gold = str(row["answer"])
  gold = (boxed(gold) or gold).strip(" $\n")
  answer = boxed(response)
  if answer is None:
    prediction = _parse(response[-TAIL:])
  elif (answer := answer.strip(" $\n")) == gold:
    return float(gold != "")
  else:
    prediction = _parse(rf"\boxed{{{answer}}}")
  return float(equal(_parse(rf"\boxed{{{gold}}}"), prediction, timeout_seconds=None))


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


@functools.lru_cache(maxsize=1024)  # the rollouts of a prompt share the gold answer
def _parse(text: str) -> list:
  return parse(text, TARGETS, parsing_timeout=None)
