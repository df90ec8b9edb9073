r"""Free-form mathematics: does the response's final answer equal the gold one?

Where the answer stands (`answers`), how it is written (`notation`, `units`), what it is (`reading`)
and when two of them are equal (`equality`, `values`) are decided here. math-verify's parser
(latex2sympy2_extended) reads the single expressions, and its grader judges the functions that the
arithmetic here does not know. Runs in a worker process: sympy can hang on what a policy writes.
"""

import functools
import re

from v05_jax.rewards.math.answers import boxed, candidates
from v05_jax.rewards.math.equality import equal
from v05_jax.rewards.math.notation import plain
from v05_jax.rewards.math.reading import Answer, read

__all__ = ["boxed", "verify"]

LONGEST = 2000  # characters of an answer; a longer one is none
SHORT = 100  # characters of a gold answer; a longer one is a whole solution
_SOLUTION = re.compile(r"[\n=]|####|answer", re.IGNORECASE)  # what solutions have, and no answer


def verify(prompt: str, response: str, row: dict) -> float:
  """1.0 if the response's answer equals `row["answer"]`, else 0.0.

  Equal as numbers (exactly; to 6 decimals where one is written as a decimal), expressions, tuples,
  sets, intervals, matrices, equations, congruences or words. An answer of several parts wants all
  of them, each as often as the gold one has it, in any order unless it is a tuple.
  """
  texts, gold = _gold(str(row["answer"]))
  for candidate in candidates(response):
    if len(candidate) > LONGEST:
      continue
    if _spelled(candidate) in texts:
      return 1.0
    if (found := _read(candidate)) is not None:
      return float(gold is not None and equal(gold, found))
  return 0.0


@functools.lru_cache(maxsize=1024)
def _gold(answer: str) -> tuple[set[str], Answer | None]:
  """Texts of the gold answer, plain, and what it is; of a whole solution, its final answer.

  An answer that cannot be read, as 12 apples and 3 pears, is not its last number.
  """
  text = boxed(answer) or answer
  whole = _SOLUTION.search(text) or text != answer or len(text) > SHORT
  for candidate in (text, *candidates(answer)):
    all_of_it = whole or _digits(candidate) == _digits(text)
    if all_of_it and (found := _read(candidate)) is not None:
      return {_spelled(candidate), _spelled(text)} - {""}, found
  return {_spelled(text)} - {""}, None


def _spelled(text: str) -> str:
  r"""The text in its normal spelling without blanks, that of \text{2 apples} as of 2 apples."""
  return plain(re.sub(r"^\s*\\text\s*\{([^{}\\$]*)\}\s*$", r"\1", text))


def _digits(text: str) -> str:
  return re.sub(r"\D", "", text)


@functools.lru_cache(maxsize=1024)  # the rollouts of a prompt share the gold answer
def _read(text: str) -> Answer | None:
  return read(text) if len(text) <= LONGEST else None
