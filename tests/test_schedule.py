"""The bookkeeping of continuous batching without a device: numpy plays it and remembers what lies
where."""

import collections
from functools import partial
import itertools

import numpy as np
import pytest

from tests import support
from v05_jax.sampling import sampler
from v05_jax.sampling.schedule import Schedule


class Device:
  """Store and cache hold names in the place of keys and values: of a prompt, and of (prompt, index,
  tokens)."""

  def __init__(self, schedule, length):
    """`length` [P, K]: tokens of each rollout, the last of them EOS."""
    self.schedule, self.length = schedule, length
    self.store = np.full((schedule.lanes, schedule.lane_entries), -1)
    self.cache = np.zeros((schedule.lanes, 0, 3), int)
    self.calls, self.opened = [], []

  def prefill(self, tokens, length, entry):
    rows = np.flatnonzero(entry < self.schedule.lane_entries)
    self.opened.append(len(rows))
    assert len(entry) == self.schedule.lane_prefill * self.schedule.lanes
    for row in rows:
      found = np.flatnonzero((self.schedule.prompts.tokens == tokens[row]).all(1))
      assert len(found) == 1 and self.schedule.prompts.length[found] == length[row]
      self.store[row // self.schedule.lane_prefill, entry[row]] = found[0]

  def resize(self, slots, shape):
    slots = slots.reshape(self.schedule.lanes, shape.slots)
    if self.cache.shape[1]:
      self.cache = np.take_along_axis(self.cache, slots[..., None], 1)
    else:
      self.cache = np.full((*slots.shape, 3), -1)

  def decode(self):
    """Checks that every rollout in flight finds its prompt and its past -> what a chunk of steps
    samples."""
    schedule, (columns, rows) = self.schedule, self.schedule.rows()
    shape, lanes, chunk = schedule.shape, schedule.lanes, schedule.chunk
    rows = sampler.Rows(*(x.reshape(lanes, shape.slots) for x in rows))
    columns, prompt = columns.reshape(lanes, -1), rows.prompt - 100
    busy = rows.limit > 0
    left = np.where(
      busy, np.minimum(self.length[prompt * busy, rows.index], rows.limit) - rows.count, 0
    )
    for lane, slot in zip(*np.nonzero(busy)):
      name = int(prompt[lane, slot]), int(rows.index[lane, slot])
      entry = rows.place[lane, slot] // schedule.share
      assert self.store[lane, entry] == name[0]
      assert columns[lane, entry] == schedule.prompts.length[name[0]] - 1
      assert rows.count[lane, slot] == 0 or (*name, rows.count[lane, slot]) == tuple(
        self.cache[lane, slot]
      )
      assert (
        rows.position[lane, slot] == schedule.prompts.length[name[0]] - 1 + rows.count[lane, slot]
      )
      self.cache[lane, slot] = *name, rows.count[lane, slot] + chunk
    assert (left[busy] > 0).all() and (rows.count[busy] + chunk <= shape.columns).all()
    self.calls.append((shape, busy.sum(1)))
    steps = np.minimum(left.max(1), chunk)
    at = np.broadcast_to(np.arange(chunk), (*left.shape, chunk))
    ends = (rows.count + left == self.length[prompt * busy, rows.index])[..., None]
    tokens = np.where((at == left[..., None] - 1) & ends, support.EOS, 2).reshape(-1, chunk)
    return sampler.Chunk(tokens, tokens * 0.5, tokens * 0.25, (left > chunk).reshape(-1), steps)


def drive(schedule, device, final, judge=lambda prompt: 0, check=lambda: None):
  """`rollouts.collect` without a model: a prompt is judged one call after its last rollout
  ended."""
  done, ended, open_of = {}, [], collections.Counter()
  while ended or not schedule.finished:
    while (batch := schedule.open(final)) is not None:
      device.prefill(*batch)
    if (change := schedule.resize()) is not None:
      device.resize(*change)
    schedule.start()
    just = []
    if schedule.active:
      check()
      just = schedule.read(device.decode(), (support.EOS,))
    for rollout in ended:
      done[rollout.prompt, rollout.index] = rollout
      open_of[rollout.prompt] += 1
    for prompt in sorted({rollout.prompt for rollout in ended}):
      if open_of[prompt] == schedule.asked[prompt] and not schedule.closed[prompt]:
        more = judge(prompt)
        schedule.request(prompt, more) if more else schedule.close(prompt)
    ended = just
  return done


def in_flight(schedule, lane):
  return [rollout for rollout in schedule.slots[lane] if rollout is not None]


def checks(schedule):
  """What holds before every call: no place twice, `share` at most, and no request waits beside an
  idle slot."""
  for lane in range(schedule.lanes):
    held = in_flight(schedule, lane)
    places = schedule.now.place[lane][schedule.now.limit[lane] > 0].tolist()
    assert len(places) == len(held) == len(set(places))
    of_prompt = collections.Counter(rollout.prompt for rollout in held)
    assert max(of_prompt.values(), default=0) <= schedule.share
    idle = schedule.lane_slots - len(held)
    waiting = [
      prompt for prompt, _ in schedule.requests[lane] if of_prompt[prompt] < schedule.share
    ]
    assert not (idle and waiting)


def opens_what_it_can(schedule):
  """No prompt waits to begin where a slot is idle and an entry free."""
  for lane in range(schedule.lanes):
    idle = schedule.lane_slots - len(in_flight(schedule, lane))
    assert not (idle and schedule.unopened and schedule.entries[lane])


OPTIONS = {
  "plain": {},
  "one at a time": {"share": 1, "open_prompts": 16, "prefill": 4},
  "sizes": {"share": 2, "slot_sizes": 3, "column_sizes": 3, "chunk": 3},
  "few entries": {"open_prompts": 4, "prefill": 2, "slot_sizes": 2, "chunk": 1},
}


def made(count, k, lanes, seed=0, **options):
  rng = np.random.default_rng(seed)
  prompts = support.prompts(count, seed, capacity=count + 3)
  assert len(np.unique(prompts.tokens[:count], axis=0)) == count
  shape = count + 3, 16
  limit, length = rng.integers(1, 13, shape), rng.integers(1, 13, shape)
  schedule = Schedule(
    prompts, limit, np.full(count + 3, k), support.config(**options).sampler, lanes
  )
  return schedule, Device(schedule, length), np.minimum(limit, length)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_rollout_runs_once_with_its_prompt_and_its_past(name, lanes):
  """Fixed groups and groups that ask for more; places, entries, cache and idle slots are checked at
  each call."""
  for seed in range(6):
    rng = np.random.default_rng(seed)
    adaptive = seed % 2
    schedule, device, length = made(11, 3 if adaptive else 5, lanes, seed, **OPTIONS[name])
    more = lambda p: min(int(rng.integers(0, 4)), 16 - schedule.asked[p])  # noqa: B023
    done = drive(
      schedule, device, not adaptive, more if adaptive else lambda p: 0, partial(checks, schedule)
    )
    assert (
      set(done) == {(p, k) for p in range(11) for k in range(schedule.asked[p])}
      and not schedule.asked[11:].any()
    )
    for at, rollout in done.items():
      tokens = np.concatenate(rollout.tokens)
      assert rollout.length == len(tokens) == length[at] and (tokens[:-1] == 2).all()
      assert (tokens[-1] == support.EOS) == (device.length[at] <= schedule.limit[at])
      np.testing.assert_array_equal(np.concatenate(rollout.logprob), tokens * 0.5)
    assert not schedule.home and all(
      len(free) == schedule.lane_entries for free in schedule.entries
    )
    assert schedule.sampled == sum(length[at] for at in done) and schedule.started == len(done)
    assert schedule.steps >= schedule.sampled / 16
    if adaptive:
      assert len(set(schedule.asked[:11])) > 2


def test_the_cache_grows_and_shrinks_with_what_is_in_flight():
  schedule, device, _ = made(11, 5, 1, **OPTIONS["sizes"] | {"slots": 4})
  drive(schedule, device, True)
  seen = [shape for shape, _ in device.calls]
  columns, slots = [shape.columns for shape in seen], [shape.slots for shape in seen]
  assert len(set(seen)) > 3 and max(columns) == 15 and min(columns) == 7
  assert (np.diff(columns) > 0).any() and (np.diff(columns) < 0).any()
  assert (
    slots[0] == 4
    and slots[-1] == 1
    and all(busy.max() <= shape.slots for shape, busy in device.calls)
  )
  # it is not moved for nothing
  assert len([a for a, b in itertools.pairwise(seen) if a != b]) < len(seen) / 2


def test_a_prefill_call_is_filled_with_the_prompts_that_come_next():
  """Four rollouts of one prompt fill the slots, the call takes four prompts: it opens four, and no
  second call."""
  options = {"slots": 4, "open_prompts": 6, "prefill": 4, "share": 4}
  schedule, device, _ = made(5, 4, 1, **options)
  tokens, length, entry = schedule.open(True)
  np.testing.assert_array_equal(tokens, schedule.prompts.tokens[:4])
  np.testing.assert_array_equal(length, schedule.prompts.length[:4])
  assert sorted(entry) == [0, 1, 2, 3] and [prompt for prompt, _ in schedule.unopened] == [4]
  assert schedule.open(True) is None
  schedule, device, _ = made(9, 4, 1, **options)
  drive(schedule, device, True, check=lambda: opens_what_it_can(schedule))
  assert device.opened[0] == 4 and sum(device.opened) == 9 and len(device.opened) < 9


def test_an_entry_is_kept_until_all_rollouts_of_its_prompt_ended():
  """Also of a closed prompt, and also where a rollout of it has not even begun."""
  schedule, device, _ = made(3, 2, 1, slots=2, open_prompts=1, prefill=1, share=1, chunk=12)
  device.prefill(*schedule.open(True))
  for _ in range(2):
    assert schedule.home == {0: (0, 0)} and schedule.open(True) is None
    if (change := schedule.resize()) is not None:
      device.resize(*change)
    schedule.start()
    # `share` keeps the second slot idle
    assert [rollout.prompt for rollout in in_flight(schedule, 0)] == [0]
    schedule.read(device.decode(), (support.EOS,))
  assert not schedule.home and schedule.open(True) is not None and list(schedule.home) == [1]


@pytest.mark.parametrize("k, share, prefill", [(8, 2, 1), (16, 4, 2)])
def test_rollouts_that_may_not_start_keep_no_prompt_waiting(k, share, prefill):
  """A prompt with more rollouts than `share` leaves slots to the prompts behind it."""
  schedule, device, _ = made(12, k, 1, share=share, prefill=prefill, open_prompts=8)
  drive(schedule, device, True, check=lambda: opens_what_it_can(schedule))
