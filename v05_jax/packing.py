"""Packs rollouts of any length into rows of one fixed length, on host.

So padding costs little, and nothing recompiles when lengths and numbers vary.
"""

import bisect

import numpy as np

from v05_jax import structs


def pack(
  prompts: structs.Prompts,
  rollouts: structs.Rollouts,
  advantage: np.ndarray,
  weight: np.ndarray,
  row_length: int,
  rows: int,
  members: np.ndarray | None = None,
) -> tuple[structs.Batch, int]:
  """-> (Batch of numpy arrays `[rows, row_length]`, number of rows in use; these come first).

  advantage, weight float [P, K]: of every token of the rollout. members bool [P]: prompts to take
  (default: `prompts.mask`). Rollouts without `rollouts.mask` are left out. A rollout of p prompt
  and r response tokens takes p + r - 1 places: the last token is no input. The order depends on
  lengths and on the order of the flat rows alone.

  Raises ValueError where a rollout is longer than a row, where the rows do not suffice, and where
  the flat rows are not those of `rollouts.mask`, one each.
  """
  members = np.asarray(prompts.mask if members is None else members, bool)
  source = _chosen(rollouts, members)  # [n] flat rows
  prompt, index = np.asarray(rollouts.prompt)[source], np.asarray(rollouts.index)[source]
  before = np.asarray(prompts.length)[prompt]  # prompt tokens
  size = before + np.asarray(rollouts.length)[prompt, index] - 1
  if size.size and size.max() > row_length:
    raise ValueError(
      f"a rollout takes {size.max()} places, found rows of {row_length}: config.loss.row_length must"
      " be at least longest prompt + longest response - 1 (0 = just that)"
    )
  row, start, used = fit(size, row_length)
  if used > rows:
    raise ValueError(
      f"{len(size)} rollouts of {size.sum()} places need {used} rows of {row_length}, found {rows}"
    )

  # From here on one entry a place: `owner` is its rollout, `position` its place inside it.
  owner = np.repeat(np.arange(len(size)), size)
  position = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
  place = (row * row_length + start)[owner] + position
  response = position - before[owner] + 1  # index of the target among the response tokens
  answer = response >= 0  # the target is a response token

  def token(i):  # the i-th token of prompt and response
    last = prompts.tokens.shape[1] - 1
    asked = np.asarray(prompts.tokens)[prompt[owner], np.minimum(i, last)]
    said = np.asarray(rollouts.tokens)[source[owner], np.maximum(i - before[owner], 0)]
    return np.where(i < before[owner], asked, said)

  def scatter(values, dtype):
    flat = np.zeros(rows * row_length, dtype)
    flat[place] = values
    return flat.reshape(rows, row_length)

  of = lambda table: np.where(answer, np.asarray(table)[prompt, index][owner], 0)
  logprob = np.asarray(rollouts.logprob)[source[owner], np.maximum(response, 0)]
  batch = structs.Batch(
    tokens=scatter(token(position), np.int32),
    target=scatter(token(position + 1), np.int32),
    segment=scatter(_rank(row, start)[owner] + 1, np.int32),
    position=scatter(position, np.int32),
    weight=scatter(of(weight), np.float32),
    advantage=scatter(of(advantage), np.float32),
    old_logprob=scatter(np.where(answer, logprob, 0), np.float32),
  )
  return batch, used


def fit(size: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Best-fit decreasing: sizes [n] -> (row [n], start within the row [n], rows used).

  Equal sizes keep their order. A row is opened only when no open one has room, so with sizes of at
  most `longest` every row but the last holds at least `capacity // longest` of them.
  """
  row, start = np.zeros(len(size), np.int64), np.zeros(len(size), np.int64)
  rooms, used = [], 0  # (room left, row), sorted
  sizes = np.asarray(size).tolist()
  for i in np.argsort(-np.asarray(size), kind="stable").tolist():
    at = bisect.bisect_left(rooms, (sizes[i], -1))  # the fullest row that still has room
    if at < len(rooms):
      room, row[i] = rooms.pop(at)
    else:
      room, row[i], used = capacity, used, used + 1
    start[i] = capacity - room
    bisect.insort(rooms, (room - sizes[i], int(row[i])))
  return row, start, used


def _chosen(rollouts, members):
  """The flat rows [n] that count: their prompt is a member, and the dense mask has them."""
  prompt, index = np.asarray(rollouts.prompt), np.asarray(rollouts.index)
  exists = (prompt >= 0) & (index >= 0)  # negative marks an unused flat row
  mask = np.asarray(rollouts.mask) & members[:, None] & (np.asarray(rollouts.length) > 0)
  source = np.flatnonzero(exists & mask[prompt, index])
  found = np.bincount(prompt[source] * mask.shape[1] + index[source], minlength=mask.size)
  if not (found == mask.ravel()).all():
    p, k = np.unravel_index(np.argmax(found != mask.ravel()), mask.shape)
    raise ValueError(
      f"rollout {k} of prompt {p} stands in {found.reshape(mask.shape)[p, k]} flat rows, expected"
      f" {int(mask[p, k])} by rollouts.mask"
    )
  return source


def _rank(row, start):
  """Number of each rollout within its row, from 0, in the order of the row."""
  order = np.lexsort((start, row))
  first = np.searchsorted(row[order], row[order])
  rank = np.empty_like(order)
  rank[order] = np.arange(len(order)) - first
  return rank
