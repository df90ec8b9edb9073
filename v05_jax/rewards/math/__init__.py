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
_COUNTS = re.compile(r"\s*\d[\d.,/]* [a-z ]+(?:[,;&\n]|\band\b)\s*(?:and\b)?\s*\d", re.IGNORECASE)


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

  Of several counts, as 12 apples and 3 pears, that cannot be read the last is not the answer.
  """
  text = boxed(answer) or answer
  for candidate in (text, *(() if _COUNTS.match(text) else candidates(answer))):
    if (found := _read(candidate)) is not None:
      return {_spelled(candidate), _spelled(text)} - {""}, found
  return {_spelled(text)} - {""}, None


def _spelled(text: str) -> str:
  r"""The text in its normal spelling without blanks, that of 2\text{ apples} as of 2 apples."""
  return plain(re.sub(r"\\(?:text|mathrm)\s*\{([^{}\\$]*)\}", r" \1 ", text))


@functools.lru_cache(maxsize=1024)  # the rollouts of a prompt share the gold answer
def _read(text: str) -> Answer | None:
  return read(text) if len(text) <= LONGEST else None
