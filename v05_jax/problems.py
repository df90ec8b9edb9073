"""Problems drawn from reasoning-gym (https://github.com/open-thought/reasoning-gym), an extra.

`data.path=reasoning_gym:chain_sum,leg_counting` draws `data.size` problems of `data.split`, the
tasks taking turns. Its verifier is the reward `reasoning_gym` (`rewards.reasoning_gym`).

A task's problems are one endless stream for each `data.seed`. A problem belongs to a split by the
hash of its own text, as those of the built-in tasks do, so train, validation and held-out share no
prompt, whatever their seeds and sizes; a problem that came before is left out.
"""

import ast
from collections.abc import Iterator
import difflib
import itertools
import json
import re
from typing import Any

from absl import logging

from v05_jax import tasks
from v05_jax.benchmarks import Row, gym_tasks, show

CHUNK = 1024  # problems that one of reasoning-gym's data sets holds
SPREAD = 2654435761  # makes the streams of neighbouring seeds start far from each other
# A task counts as used up after so many draws in vain, plus a share of those that were not.
VAIN, VAIN_SHARE = 400, 8
OWN = ("seed", "size")  # of a data set's options: they are data.seed and data.size here

Options = dict[str, dict[str, Any]]  # task -> option -> value


def read_options(text: str) -> Options:
  """`chain_sum.max_terms=3,chain_sum.max_digits=2` as {"chain_sum": {"max_terms": 3, ...}}.

  A value is a Python literal (with commas, if need be), or else a text. Raises ValueError for
  anything else, and for an option that is given twice.
  """
  result: Options = {}
  for part in re.split(r",(?=\s*\w+\.\w+\s*=)", text) if text.strip() else ():
    match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=\s*(.*?)\s*", part, re.DOTALL)
    if not match or not match[3]:
      raise ValueError(f"found {show(part.strip())}, expected TASK.OPTION=VALUE")
    task, option, value = match.groups()
    if option in result.setdefault(task, {}):
      raise ValueError(f"found {task}.{option} twice")
    try:
      result[task][option] = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      result[task][option] = value
  return result


def is_options(text: str) -> bool:
  """Whether `read_options` can read the text."""
  try:
    read_options(text)
  except ValueError:
    return False
  return True
