"""Problems drawn from reasoning-gym (https://github.com/open-thought/reasoning-gym), an extra.

`data.path=reasoning_gym:chain_sum,leg_counting` draws `data.size` problems of `data.split`, the
tasks taking turns; their difficulty is set by `data.options`. The reward `reasoning_gym` is the
tasks' own verifiers (`rewards.reasoning_gym`).

A task's problems are one endless stream for each `data.seed`. A problem belongs to a split by the
hash of its own text, as those of the built-in tasks do, so train, validation and held-out share no
prompt, whatever their seeds, sizes and options; a problem that came before is left out.
"""

from collections.abc import Callable, Iterator
import contextlib
from functools import partial
import json
from multiprocessing.connection import Connection
import time
from typing import Any

from absl import logging

from v05_jax import benchmarks, tasks
from v05_jax.names import assignments
from v05_jax.rewards import process, reasoning_gym
from v05_jax.rows import Row

LONGEST_WAIT = 120.0  # seconds until a task's first problem, and between two
NOTICE = 20.0  # seconds of drawing after which the log says how long it takes
# A task counts as used up after so many draws in vain, and as many more for each problem found.
VAIN, VAIN_EACH = 400, 8

Options = dict[str, dict[str, Any]]  # task -> option -> value


def read_options(text: str) -> Options:
  """`chain_sum.max_terms=3,chain_sum.max_digits=2` as {"chain_sum": {"max_terms": 3, ...}}; raises
  ValueError as `assignments` does."""
  result: Options = {}
  for name, value in assignments(text, r"\w+\.\w+").items():
    task, option = name.split(".")
    result.setdefault(task, {})[option] = value
  return result


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
  has, which the log says. Raises ValueError as `reasoning_gym.dataset` does, or where a task fails.
  """
  given, n, begun = read_options(config_data.options), len(names), time.monotonic()
  shares = [config_data.size // n + (i < config_data.size % n) for i in range(n)]
  sources = [(task, given.get(task, {})) for task in names]
  count, noticed = [0] * n, False
  with _maker(sources, config_data.seed) as make:
    streams = [_draw(partial(make, i), config_data.split) for i in range(n)]
    for i in (i for place in range(shares[0]) for i in range(n) if place < shares[i]):
      if (entry := next(streams[i], None)) is None:
        continue
      count[i] += 1
      yield f"{benchmarks.GYM}{names[i]} row {count[i]}", _row(entry, *sources[i])
      seconds, share = time.monotonic() - begun, sum(count) / config_data.size
      if seconds > NOTICE and not noticed:
        noticed = True
        logging.warning("drawing %d problems takes about %.0f s", config_data.size, seconds / share)
  for name, found, share in zip(names, count, shares, strict=True):
    if found < share:
      logging.warning("reasoning_gym:%s: found %d problems, of %d wanted", name, found, share)


def _row(entry: dict[str, Any], task: str, options: dict[str, Any]) -> Row:
  answer = "" if entry["answer"] is None else str(entry["answer"])
  return {
    "prompt": entry["question"],
    "answer": answer,
    "benchmark": task,
    "options": options,
    "metadata": entry["metadata"],
  }


def _draw(make: Callable[[], dict[str, Any]], split: str) -> Iterator[dict[str, Any]]:
  """The entries of a split, each question once, until hardly any new one is made."""
  seen: set[str] = set()
  vain = 0
  while vain <= VAIN + VAIN_EACH * len(seen):
    entry = make()
    question = entry["question"]
    if question in seen or tasks.split_of(question) != split:
      vain += 1
    else:
      seen.add(question)
      vain = 0
      yield entry


@contextlib.contextmanager
def _maker(sources: list[tuple[str, dict[str, Any]]], seed: int):
  """A process that makes entries: `make(i)` is the next one of source i, a task and its options.

  Its hashes of texts are fixed, without which some tasks draw other problems in each process.
  `make` raises ValueError where the task fails, or takes longer than `LONGEST_WAIT`.
  """
  child, ours = process.start(
    "v05_jax.rewards.reasoning_gym", "serve", [sources, seed], {"PYTHONHASHSEED": "0"}
  )
  connection = Connection(ours.detach())

  def make(i: int) -> dict[str, Any]:
    name = benchmarks.GYM + sources[i][0]
    try:
      connection.send_bytes(str(i).encode())
      if not connection.poll(LONGEST_WAIT):
        raise ValueError(f"{name}: found no problem within {LONGEST_WAIT:g} s")
      entry = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
      raise ValueError(f"{name}: the process that makes its problems ended") from None
    if "error" in entry:
      raise ValueError(f"{name}: the task cannot make a problem: {entry['error']}")
    return entry

  try:
    yield make
  finally:
    connection.close()
    child.stdin.close()
    child.kill()
    child.wait()
