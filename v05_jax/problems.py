"""Problems drawn from reasoning-gym (https://github.com/open-thought/reasoning-gym), an extra.

`data.path=reasoning_gym:chain_sum,leg_counting` draws `data.size` problems of `data.split`, the
tasks taking turns; their difficulty is set by `data.options`. The reward `reasoning_gym` is the
tasks' own verifiers (`rewards.reasoning_gym`).

A task's problems are one endless stream for each `data.seed`. A problem belongs to a split by the
hash of its own text, as those of the built-in tasks do, so train, validation and held-out share no
prompt, whatever their seeds, sizes and options; a problem that came before is left out.
"""

import ast
from collections.abc import Iterator
import itertools
import json
import re
from typing import Any

from absl import logging

from v05_jax import benchmarks, tasks
from v05_jax.benchmarks import Row, show
from v05_jax.rewards import reasoning_gym

CHUNK = 1024  # problems of a data set, of which a stream has one after another
SPREAD = 2654435761  # sets the streams of neighbouring seeds far from each other
# A task counts as used up after so many draws in vain, and as many more for each problem found.
VAIN, VAIN_EACH = 400, 8

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


def check(config) -> None:
  """Raises ValueError, before anything expensive, where `config.data.path` or `config.eval.path`
  names tasks of reasoning-gym that are not there, or `config.data.options` what they refuse."""
  given = read_options(config.data.options)
  for path in (config.data.path, config.eval.path):
    for task in named(path):
      reasoning_gym.dataset(task, given.get(task, {}))


def named(path: str) -> list[str]:
  """The tasks of reasoning-gym in a `data.path` or `eval.path`."""
  return [task for name in benchmarks.names(path) for task in benchmarks.gym_tasks(name)]


def rows(names: list[str], config_data) -> Iterator[tuple[str, Row]]:
  """Yields (where, row) of `config_data.size` problems, the tasks taking turns.

  A row has "prompt", "answer" ("" where the task knows none), the task's name as "benchmark", its
  "options", and the "metadata" that its verifier wants, as JSON has them. It is a function of the
  arguments and of reasoning-gym's version. A task with too few problems in the split gives those it
  has, which the log says. Raises ValueError as `reasoning_gym.dataset` does.
  """
  given, n = read_options(config_data.options), len(names)
  shares = [config_data.size // n + (i < config_data.size % n) for i in range(n)]
  streams = [
    _share(draw(task, given.get(task, {}), config_data.split, config_data.seed), share, task)
    for task, share in zip(names, shares, strict=True)
  ]
  for turn in itertools.zip_longest(*streams):
    yield from (found for found in turn if found)


def _share(stream, share: int, task: str) -> Iterator[tuple[str, Row]]:
  count = 0
  for count, row in enumerate(itertools.islice(stream, share), 1):
    yield f"reasoning_gym:{task} row {count}", row
  if count < share:
    logging.warning(
      "reasoning_gym:%s has no more than %d problems in this split, of %d wanted",
      task,
      count,
      share,
    )


def draw(task: str, options: dict[str, Any], split: str, seed: int) -> Iterator[Row]:
  """The rows of one task in a split, each prompt once, until hardly any new one comes."""
  seen: set[str] = set()
  vain = 0
  for entry in _entries(task, options, seed):
    prompt = entry["question"]
    if prompt in seen or tasks.split_of(prompt) != split:
      vain += 1
      if vain > VAIN + VAIN_EACH * len(seen):
        return
      continue
    seen.add(prompt)
    vain = 0
    yield {
      "prompt": prompt,
      "answer": str(entry["answer"] if entry["answer"] is not None else ""),
      "benchmark": task,
      "options": options,
      "metadata": json.loads(json.dumps(entry["metadata"])),
    }


def _entries(task: str, options: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
  """reasoning-gym's entries of a task without end; item i of a data set is that of seed + i."""
  for chunk in itertools.count():
    first = (seed * SPREAD + chunk * CHUNK) % 2**32
    yield from reasoning_gym.dataset(task, options, first, CHUNK)
