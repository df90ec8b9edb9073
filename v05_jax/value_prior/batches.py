"""Training tasks of V0 from collected pairs: a context's support rows, and queries in pairs; on host.

A task is one success and one failure after the other, `pairs` times, all of one context, to be judged from `support`
other rows of that context. An epoch takes every context: successes and failures are shuffled, the fewer of them
repeated cyclically, and the pairs cut into tasks. Everything is a function of (seed, number of the task). Source: the
specification of V0 (arXiv 2602.03584), section 8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from v05_jax.value_prior.pairs import Context


class Batch(NamedTuple):
  """B tasks of n support rows and m queries, in the order positive, negative, positive, ...; host arrays."""

  prompt: np.ndarray  # int32 [B, n + m]  index of the text
  score: np.ndarray  # float32 [B, n + m]  mean success in [0, 1]
  support: np.ndarray  # bool [B, n]  a real row
  query: np.ndarray  # bool [B, m]
  share: np.ndarray  # float32 [B]  of the context's rows, the positive ones


class Tasks:
  """The tasks of some contexts in an endless stateless order.

  Raises ValueError where no context has both a success and a failure to judge, and rows to judge them from.
  """

  def __init__(self, contexts: Sequence[Context], support: int, pairs: int, seed: int):
    self._support, self._pairs, self._seed = support, pairs, seed
    self._latest: tuple[int, list] = (-1, [])  # the epoch made last
    self._contexts = [c for c in contexts if len(c.score) > 4 and 0 < positives(c) < len(judged(c))]
    if not self._contexts:
      raise ValueError(f"found {len(contexts)} contexts, expected at least one with a success, a failure and 5 pairs: "
                       "raise config.value.window, or collect more")  # fmt: skip
    self.per_epoch = sum(-(-self._count(c) // pairs) for c in self._contexts)

  @staticmethod
  def _count(context: Context) -> int:
    """Pairs of an epoch."""
    return max(positives(context), len(judged(context)) - positives(context))

  def batch(self, first: int, size: int) -> Batch:
    """The tasks first .. first + size - 1."""
    tasks = [self._task(first + i) for i in range(size)]
    return Batch(*(np.stack(x) for x in zip(*tasks)))

  def _task(self, number: int):
    epoch, place = divmod(number, self.per_epoch)
    which, query = self._epoch(epoch)[place]
    context, n, m = self._contexts[which], self._support, 2 * self._pairs
    others = np.flatnonzero(~context.query & ~np.isin(context.prompt, context.prompt[query]))
    rng = np.random.default_rng([self._seed, 1, number])
    support = rng.choice(others, min(n, len(others)), replace=False)
    rows = np.zeros(n + m, np.int64)
    rows[: len(support)], rows[n : n + len(query)] = support, query
    inside = lambda count, size: np.arange(size) < count
    return (
      context.prompt[rows], context.score[rows], inside(len(support), n), inside(len(query), m),
      np.float32(positives(context) / len(judged(context))),
    )  # fmt: skip

  def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
    """(context, rows of its queries) of each task."""
    if self._latest[0] == epoch:
      return self._latest[1]
    rng, tasks = np.random.default_rng([self._seed, 0, epoch]), []
    for which, context in enumerate(self._contexts):
      rows = rng.permutation(judged(context))
      positive = context.score[rows] >= 0.5
      sides, count = (rows[positive], rows[~positive]), self._count(context)
      rows = np.stack([side[np.arange(count) % len(side)] for side in sides], 1).ravel()
      tasks += [(which, rows[i : i + 2 * self._pairs]) for i in range(0, len(rows), 2 * self._pairs)]
    self._latest = epoch, [tasks[i] for i in rng.permutation(len(tasks))]
    return self._latest[1]


def positives(context: Context) -> int:
  """Successes among the rows that serve as queries."""
  return int(np.sum(context.score[judged(context)] >= 0.5))


def judged(context: Context) -> np.ndarray:
  """The rows of a context that serve as queries: those marked so, where there are any, else all."""
  return np.flatnonzero(context.query) if context.query.any() else np.arange(len(context.query))
