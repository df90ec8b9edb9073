"""reasoning-gym's entries and its own verifiers: what a response to one of its problems is worth.

The answer is what stands between the last <answer> and </answer> of the response. Without these
tags it is the last line that is not empty, or the whole response where the task's own answer has
several lines or none is known. What it is worth is `score_answer` of the task, 0 to 1; most tasks
give part of it to an answer that is nearly right or has too much around it.

Runs in processes of its own: some of the verifiers are slow, and some calculate what a policy
wrote. Nothing here may import jax, as in `rewards.worker`.
"""

import ast
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import itertools
import json
from multiprocessing.connection import Connection
import random
import re
import sys
from typing import Any

from v05_jax.names import nearest, suggestion

TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# Tasks whose verifier reads a list in the response by Python's eval; literals are all it needs.
EVALUATE = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
# Tasks whose verifier compares the grids of its metadata as tuples, which JSON makes lists of.
TUPLES = ("arc_agi", "rearc")
CHUNK = 1024  # entries of one data set; a stream is one data set after another
SPREAD = 2654435761  # sets the streams of neighbouring seeds far from each other
OWN = ("seed", "size")  # of a data set's options: they are config.data.seed and config.data.size


def verify(prompt: str, response: str, row: dict) -> float:
  """The score, 0 to 1, of the response's answer to `row`, a row of `problems.rows`.

  A response that the task's verifier cannot read, so that it raises, is worth 0.
  """
  data = _verifier(row["benchmark"], json.dumps(row["options"]))
  metadata = row["metadata"]
  metadata = _tuples(metadata) if row["benchmark"] in TUPLES else metadata
  entry = {"question": row["prompt"], "answer": row["answer"], "metadata": metadata}
  try:
    return float(data.score_answer(answer_of(response, row["answer"]), entry))
  except Exception:
    return 0.0


def _tuples(node):
  if isinstance(node, dict):
    return {name: _tuples(value) for name, value in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, list) else node


def answer_of(response: str, own: str) -> str:
  """The answer of a response, as the head of this module says; `own` is the task's, "" = none."""
  if tagged := TAGS.findall(response):
    return tagged[-1].strip()
  response = response.strip()
  return response if not own or "\n" in own.strip() else response.rpartition("\n")[2].strip()


@functools.lru_cache(maxsize=128)  # making one may read a file
def _verifier(task: str, options: str):
  data = dataset(task, json.loads(options))
  if task in EVALUATE:
    vars(sys.modules[type(data).__module__])["eval"] = ast.literal_eval
  return data


def dataset(task: str, options: dict[str, Any], seed: int = 0, size: int = 1):
  """reasoning-gym's data set of a task: `size` entries with question, answer and metadata.

  Raises ValueError: the package is not installed, the task unknown (with the nearest names), an
  option unknown (with those there are) or refused by the task.
  """
  try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
  except ImportError as error:
    raise ValueError(
      f"reasoning_gym:{task} needs the package reasoning-gym: pip install reasoning-gym, or this "
      f"package with its extra reasoning-gym ({error})"
    ) from None
  if task not in DATASETS:
    near = nearest(task, DATASETS, 0.5, 3) or sorted(DATASETS)
    raise ValueError(
      f"reasoning_gym:{task}: found no such task in reasoning-gym, expected one of its "
      f"{len(DATASETS)}, {'the nearest are' if len(near) < 4 else 'which are'} {', '.join(near)}"
    )
  known = [field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in OWN]
  for name in options:
    if name not in known:
      hint = suggestion(nearest(name, known))
      raise ValueError(
        f"config.data.options: found {task}.{name}, expected one of {', '.join(known)}{hint}"
      )
  try:
    return reasoning_gym.create_dataset(task, **options, seed=seed, size=size)
  except Exception as error:  # whatever the task's own check raises
    given = ", ".join(f"{task}.{name}={value!r}" for name, value in options.items())
    raise ValueError(
      f"config.data.options: found {given or 'none for ' + task}, which the task refuses: {error}"
    ) from None


def serve(descriptor: int, sources: list[tuple[str, dict[str, Any]]], seed: int):
  """Makes entries until the other side of the socket `descriptor` closes it.

  Each message is the number of a source, a task and its options; the reply is its next entry as
  JSON, with question, answer and metadata, or {"error": ...}. What comes is a function of the
  arguments where the process was started with a fixed PYTHONHASHSEED: some tasks go through sets of
  texts, and one draws from Python's own stream, which is seeded for each entry.
  """
  connection = Connection(descriptor)
  streams = [entries(task, options, seed) for task, options in sources]
  with contextlib.suppress(EOFError, OSError):
    while True:
      connection.send_bytes(_reply(streams[int(connection.recv_bytes())]))


def _reply(stream: Iterator[dict[str, Any]]) -> bytes:
  try:
    return json.dumps(next(stream), default=str).encode()
  except Exception as error:  # of the generator, of many kinds
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return json.dumps({"error": text[:500]}).encode()


def entries(task: str, options: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
  """reasoning-gym's entries of a task, without end; entry i of a data set is that of seed + i."""
  for chunk in itertools.count():
    first = (seed * SPREAD + chunk * CHUNK) % 2**31
    data = dataset(task, options, first, CHUNK)
    for i in range(CHUNK):
      random.seed(first + i)
      yield data[i]
