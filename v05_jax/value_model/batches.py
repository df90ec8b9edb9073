"""Training tasks of V0 from collected pairs: a context's support rows, and queries in pairs; on
host.

A task has `pairs` pairs of queries, a success and a failure each, all of one context, and `support`
other rows of that context to predict them from. An epoch takes every context: its rows are split
into queries and given ones (`pairs.split`), the queries' successes and failures are shuffled, the
fewer of them repeated cyclically, and the pairs cut into tasks. Everything is a function of (seed,
number of the task). Source: the specification of V0 (arXiv 2602.03584), section 8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from v05_jax.value_model import ensemble
from v05_jax.value_model import pairs as formats
from v05_jax.value_model.pairs import Context

TRAIN = formats.TYPES.index("train_query")


class Batch(NamedTuple):
  """B tasks of n support rows and m queries, in the order positive, negative, positive, ...; host
  arrays."""

  prompt: np.ndarray  # int32 [B, n + m]  index of the text
  score: np.ndarray  # float32 [B, n + m]  mean success in [0, 1]
  support: np.ndarray  # bool [B, n]  a real row
  query: np.ndarray  # bool [B, m]
  share: np.ndarray  # float32 [B]  of positive rows, where no choice by outcome was made


class Task(NamedTuple):
  """One task before its support is drawn."""

  context: Context
  query: np.ndarray  # its rows, [2 pairs] at most
  given: np.ndarray  # rows to draw the support from
  share: float


def drawn(rng, given, positive, most: int) -> np.ndarray:
  """At most so many of the rows `given`, of both classes: with one alone the head is not asked."""
  found = rng.choice(len(given), min(most, len(given)), replace=False)
  for wanted in (True, False):
    if not np.any(positive[found] == wanted):
      found[0] = rng.choice(np.flatnonzero(positive == wanted))
  return given[found]


class Tasks:
  """The tasks of some contexts in an endless stateless order.

  Raises ValueError where no context has both successes and failures, among the queries and among
  the rows to predict them from.
  """

  def __init__(self, contexts: Sequence[Context], support: int, pairs: int, seed: int):
    self._contexts, self._support, self._pairs, self._seed = contexts, support, pairs, seed
    self._latest: tuple[int, list[Task]] = (-1, [])  # the epoch made last
    self._first: list[Task] = []  # instead of an epoch whose splits leave nothing
    self._first = self._epoch(0)
    self.per_epoch = len(self._first)
    if not self.per_epoch:
      raise ValueError(
        f"config.value.data: found {len(contexts)} contexts, none with successes and failures both "
        "among the rows to predict and the rest: raise config.value.window, or collect more"
      )

  def batch(self, first: int, size: int) -> Batch:
    """The tasks first .. first + size - 1."""
    tasks = [self._task(first + i) for i in range(size)]
    return Batch(*(np.stack(x) for x in zip(*tasks)))

  def _task(self, number: int):
    epoch, place = divmod(number, self.per_epoch)
    tasks = self._epoch(epoch)
    # an epoch may have fewer tasks than the first one
    context, query, given, share = tasks[place % len(tasks)]
    n, m = self._support, 2 * self._pairs
    rng = np.random.default_rng([self._seed, 1, number])
    support = drawn(rng, given, context.score[given] >= 0.5, n)
    rows = np.zeros(n + m, np.int64)
    rows[: len(support)], rows[n : n + len(query)] = support, query
    inside = lambda count, size: np.arange(size) < count
    return (
      context.prompt[rows],
      context.score[rows],
      inside(len(support), n),
      inside(len(query), m),
      np.float32(share),
    )

  def _epoch(self, epoch: int) -> list[Task]:
    if self._latest[0] != epoch:
      rng, tasks = np.random.default_rng([self._seed, 0, epoch]), []
      for context in self._contexts:
        tasks += self._cut(context, rng)
      self._latest = epoch, [tasks[i] for i in rng.permutation(len(tasks))] or self._first
    return self._latest[1]

  def _cut(self, context: Context, rng) -> list[Task]:
    """An epoch's tasks of one context; none where the given rows are no context for the head, or
    the queries all succeed or all fail."""
    rows, given = formats.split(context, TRAIN, rng)
    rows, positive = rng.permutation(rows), context.score >= 0.5
    sides = rows[positive[rows]], rows[~positive[rows]]
    if (
      not all(map(len, sides))
      or ensemble.smoothed(context.score[given], positive[given]) is not None
    ):
      return []
    count = np.arange(max(map(len, sides)))
    queries = np.stack([side[count % len(side)] for side in sides], 1).ravel()
    # of rows that are marked as queries the context itself says it: they may be chosen by outcome
    share = positive[given].mean() if context.type.any() else len(sides[0]) / len(rows)
    size = 2 * self._pairs
    return [
      Task(context, queries[i : i + size], given, share) for i in range(0, len(queries), size)
    ]
