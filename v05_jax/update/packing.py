"""Packs rollouts of any length into rows of one fixed length, a minibatch at a time, on host.

Little of a row is padding, and nothing recompiles when lengths and numbers vary. Rollouts of one
prompt that stand in one row can share its tokens: they are computed once, and each response attends
to them and to itself (prefix sharing, arXiv 2506.05433).
"""

import bisect
import math
from typing import NamedTuple

import jax
import numpy as np

from v05_jax import structs
from v05_jax.scale import sharding
from v05_jax.update import losses


def batch_shape(loss_config, prompts: int, most: int, longest: int, mesh) -> tuple[int, int, int]:
  """(M, B, T) of a minibatch, whatever its rollouts are: T is `row_length`, B is `micro_rows` for
  each device along `data` and `fsdp`, and M is what rollouts of full length would need.

  prompts: of a step, at most, without those of `config.loss.replay`; most: rollouts of a prompt;
  longest: tokens of a prompt and a response, less one.

  Raises ValueError for a `row_length` that the longest possible rollout does not fit.
  """
  length = loss_config.row_length or longest
  if length < longest:
    raise ValueError(
      f"config.loss.row_length={length}: expected at least {longest} (longest prompt + longest"
      " response - 1), or 0 for just that"
    )
  micro = loss_config.micro_rows * sharding.lanes(mesh)
  parts = loss_config.minibatches
  rollouts = math.ceil(prompts / parts) * most + math.ceil(loss_config.replay / parts)
  rows = math.ceil(rollouts / (length // longest))  # so many fit in every row: see `place`
  return math.ceil(rows / micro), micro, length


def minibatches(
  prompts: structs.Prompts,
  rollouts: structs.Rollouts,
  advantage: np.ndarray,
  loss_config,
  mesh,
  importance: np.ndarray | None = None,
) -> list[tuple[structs.Batch, int]]:
  """One epoch: (Batch `[M, B, T]` of numpy arrays, micro-batches in use) for each minibatch.

  The prompts of `prompts.mask` are cut into `config.loss.minibatches` contiguous parts, and so are
  the last `config.loss.replay` prompts, which are of earlier steps; a part without any rollout that
  counts is left out. advantage float [P, K]; importance float [P] multiplies all of a prompt's loss
  (default: 1). The denominator of `aggregate = constant` is what `rollouts.tokens` has room for.
  M, B and T, and ValueError: see `batch_shape`.
  """
  members, most = np.asarray(prompts.mask, bool), rollouts.tokens.shape[1]
  longest, fresh = prompts.tokens.shape[1] + most - 1, members.size - loss_config.replay
  micros, micro, length = batch_shape(loss_config, fresh, rollouts.mask.shape[1], longest, mesh)
  split = lambda which: np.array_split(np.flatnonzero(which), loss_config.minibatches)
  old, out = np.arange(members.size) >= fresh, []
  for part in map(np.concatenate, zip(split(members & ~old), split(members & old))):
    chosen = np.isin(np.arange(members.size), part)
    mask = np.asarray(rollouts.mask) & chosen[:, None]
    weight = losses.rollout_weights(loss_config.aggregate, rollouts.length, mask, most)
    if importance is not None:
      weight = weight * importance[:, None]
    batch, used = pack(
      prompts.replace(mask=chosen),
      rollouts,
      advantage,
      weight,
      (micros * micro, length),
      loss_config.share_prompts,
    )
    if used:
      if loss_config.negative_tokens < 1:
        batch = batch.replace(advantage=spared(batch, loss_config.negative_tokens))
      batch = jax.tree.map(lambda x: x.reshape(micros, micro, length), batch)
      out.append((batch, math.ceil(used / micro)))
  return out


def spared(batch: structs.Batch, share: float) -> np.ndarray:
  """Advantages [rows, T] of a batch, 0 on those tokens of a response with a negative advantage that
  are not among the `share` of its tokens that the sampler thought least likely, rounded up.

  `config.loss.negative_tokens`, the filter of arXiv 2606.17250, which keeps .1: most tokens of a
  failed response are no mistakes. Those that are spared still count in the loss's denominators.
  """
  advantage = np.array(batch.advantage)
  row, place = np.nonzero((batch.weight > 0) & (advantage < 0))
  response = row * (batch.segment.max() + 1) + batch.segment[row, place]
  order = np.lexsort((batch.old_logprob[row, place], response))
  size = np.unique(response, return_counts=True)[1]
  rank = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
  left = order[rank >= np.repeat(np.ceil(share * size), size)]
  advantage[row[left], place[left]] = 0.0
  return advantage


def pack(
  prompts: structs.Prompts,
  rollouts: structs.Rollouts,
  advantage: np.ndarray,
  weight: np.ndarray,
  shape: tuple[int, int],
  share: bool = True,
) -> tuple[structs.Batch, int]:
  """-> (Batch of numpy arrays of `shape` [rows, places of a row], number of rows in use; these come
  first).

  advantage, weight float [P, K]: of every token of the rollout. Rollouts without `rollouts.mask`,
  and all of a prompt without `prompts.mask`, are left out. A prompt of p tokens takes p - 1 places
  and each of its responses of r tokens takes r: the prompt's last token predicts the first of each
  response, and a response's last token is no input. share: a prompt stands once in a row for all of
  its responses there, otherwise before each of them. The order depends on lengths, on which
  rollouts have a prompt in common and on the order of the flat rows alone.

  Raises ValueError where a rollout is longer than a row, where the rows do not suffice, and where
  the flat rows are not those of `rollouts.mask`, one each.
  """
  rows, row_length = shape
  flat = counted(prompts, rollouts)
  places, group = flat.before + flat.size, np.arange(len(flat.size))
  if (longest := np.max(places, initial=0)) > row_length:
    raise ValueError(
      f"a rollout takes {longest} places, found rows of {row_length}: config.loss.row_length must"
      " be at least longest prompt + longest response - 1 (0 = just that)"
    )
  at, used = place(flat.before, flat.size, flat.prompt if share else group, row_length)
  if used > rows:
    raise ValueError(
      f"{len(places)} rollouts of {places.sum()} places need {used} rows of {row_length}, "
      f"found {rows}"
    )
  of_rollouts = {"advantage": np.asarray(advantage), "weight": np.asarray(weight)}
  return _fill(prompts, rollouts, of_rollouts, flat, at, shape), used


def _fill(prompts, rollouts, of_rollouts, flat: "Flat", at: "Places", shape) -> structs.Batch:
  """The Batch of `shape` with the rollouts where `at` says; of_rollouts: field -> [P, K], what all
  response tokens of a rollout have."""
  prompt, before = flat.prompt, flat.before
  # One entry for every place that is filled: p, i are the rollout [n] and the token's index in the
  # prompts, each where it stands first; r, j are the same in the responses.
  p, i = _tokens(np.where(at.first, before, 0))
  r, j = _tokens(flat.size)
  in_prompts = at.row[p] * shape[1] + at.prompt_start[p] + i
  in_responses = at.row[r] * shape[1] + at.response_start[r] + j

  def scatter(of_prompts, of_responses, dtype):
    found = np.zeros(shape[0] * shape[1], dtype)
    found[in_prompts], found[in_responses] = of_prompts, of_responses
    return found.reshape(shape)

  row, dense = flat.row[r], (prompt[r], flat.index[r])
  of = lambda name: np.asarray(getattr(rollouts, name))
  last = np.asarray(prompts.tokens)[prompt, before][r]
  return structs.Batch(
    tokens=scatter(
      np.asarray(prompts.tokens)[prompt[p], i],
      np.where(j, of("tokens")[row, np.maximum(j - 1, 0)], last),
      np.int32,
    ),
    target=scatter(0, of("tokens")[row, j], np.int32),
    segment=scatter(at.prompt_number[p], at.response_number[r], np.int32),
    prompt=scatter(at.prompt_number[p], at.prompt_number[r], np.int32),
    position=scatter(i, before[r] + j, np.int32),
    old_logprob=scatter(0, of("logprob")[row, j], np.float32),
    **{name: scatter(0, x[dense], np.float32) for name, x in of_rollouts.items()},
  )


class Flat(NamedTuple):
  """The n rollouts that count; every array int [n]."""

  row: np.ndarray  # of the flat rows
  prompt: np.ndarray
  index: np.ndarray  # within its prompt
  before: np.ndarray  # places of its prompt, all but the last of whose tokens take one
  size: np.ndarray  # places of its response


class Places(NamedTuple):
  """Where n rollouts stand; every array int [n]. Within a row, prompts and responses are numbered
  together, from 1: a number is the token's segment."""

  row: np.ndarray
  prompt_start: np.ndarray  # place within the row where its prompt begins
  response_start: np.ndarray  # place within the row where its response begins
  prompt_number: np.ndarray
  response_number: np.ndarray
  first: np.ndarray  # bool: of the responses behind the same prompt, the first


def place(
  before: np.ndarray, size: np.ndarray, group: np.ndarray, capacity: int
) -> tuple[Places, int]:
  """Prompts of `before` [n] places and responses of `size` [n] in rows of `capacity` -> (Places,
  rows used).

  Rollouts of one group have their prompt in common. The groups are taken from the largest to the
  smallest, and so are their rollouts. Each goes behind its prompt where that stands and there is
  room; else into the fullest row that has room for all that is left of the group; else into the
  emptiest. A row is opened only when no open one has room for the rollout with its prompt, so with
  rollouts of at most `longest` places every row but the last holds at least `capacity // longest`
  of them.
  """
  n = len(size)
  at = Places(*np.zeros((5, n), np.int64), np.zeros(n, bool))
  rooms, pieces = [], []  # (room left, row), sorted; prompts and responses in each row

  def take(row, room, places):
    rooms.insert(bisect.bisect_left(rooms, (room - places, row)), (room - places, row))
    pieces[row] += 1
    return capacity - room, pieces[row]

  for members in _groups(before, size, group):
    here, left = {}, int(size[members].sum())  # row -> (room, where the prompt begins, its number)
    for i in members:
      need, head = int(size[i]), int(before[i])
      row = next((row for row, (room, *_) in here.items() if room >= need), None)
      if row is None:
        fullest = bisect.bisect_left(rooms, (head + left, -1))
        found = fullest if fullest < len(rooms) else len(rooms) - 1
        if found < 0 or rooms[found][0] < head + need:
          found = bisect.bisect_left(rooms, (capacity, len(pieces)))
          rooms.insert(found, (capacity, len(pieces)))
          pieces.append(0)
        room, row = rooms.pop(found)
        here[row] = room - head, *take(row, room, head)
        at.first[i] = True
      room, at.prompt_start[i], at.prompt_number[i] = here[row]
      rooms.pop(bisect.bisect_left(rooms, (room, row)))
      at.row[i] = row
      at.response_start[i], at.response_number[i] = take(row, room, need)
      here[row] = room - need, *here[row][1:]
      left -= need
  return at, len(pieces)


def _groups(before, size, group) -> list[list[int]]:
  """The rollouts of each group from the longest to the shortest, and groups, with their prompt, so
  too; equal ones keep their order."""
  order = np.lexsort((-size, group))
  starts = np.flatnonzero(np.diff(group[order], prepend=-1))
  parts = [part.tolist() for part in np.split(order, starts[1:])] if len(order) else []
  return sorted(parts, key=lambda part: -int(before[part[0]] + size[part].sum()))


def _tokens(size):
  """(owner, index within the owner) of each token, where owner o of [n] has `size[o]` of them."""
  owner = np.repeat(np.arange(len(size)), size)
  return owner, np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)


def counted(prompts, rollouts) -> Flat:
  """The rollouts of the dense mask whose prompts are not masked either."""
  prompt, index = np.asarray(rollouts.prompt), np.asarray(rollouts.index)
  length, members = np.asarray(rollouts.length), np.asarray(prompts.mask, bool)
  exists = (prompt >= 0) & (index >= 0)  # negative marks an unused flat row
  mask = np.asarray(rollouts.mask) & members[:, None] & (length > 0)
  source = np.flatnonzero(exists & mask[prompt, index])
  found = np.bincount(prompt[source] * mask.shape[1] + index[source], minlength=mask.size)
  if not (found == mask.ravel()).all():
    p, k = np.unravel_index(np.argmax(found != mask.ravel()), mask.shape)
    raise ValueError(
      f"rollout {k} of prompt {p} stands in {found.reshape(mask.shape)[p, k]} flat rows, expected"
      f" {int(mask[p, k])} by rollouts.mask"
    )
  prompt, index = prompt[source], index[source]
  before = np.asarray(prompts.length)[prompt] - 1
  return Flat(source, prompt, index, before, length[prompt, index])
