"""Which rollout runs in which slot: the bookkeeping of continuous batching, on host, without a device.

Slots and store entries are split into lanes, one a shard of the mesh's data axis. A prompt is opened on the
lane with the most room, holds a store entry (its prefilled prefix) there, and all its rollouts run there.
The entry is free again once the prompt is closed (gets no further rollouts) and all of them have started.
"""

from collections import deque
import dataclasses

import numpy as np

from v05_jax import sampler
from v05_jax.structs import Prompts


@dataclasses.dataclass
class Sampled:
  """One rollout in flight or done, on host; the three lists hold a piece for each decode chunk."""

  prompt: int  # row in the batch
  index: int
  tokens: list = dataclasses.field(default_factory=list)
  logprob: list = dataclasses.field(default_factory=list)
  sampled_logprob: list = dataclasses.field(default_factory=list)
  length: int = 0


class Schedule:
  """Slots, store entries and requests of one `collect` call."""

  def __init__(self, prompts: Prompts, limit: np.ndarray, first: np.ndarray, options, lanes: int):
    """`limit [P, K]`: response tokens at most; `first [P]`: rollouts to begin with; `options`: a `config.sampler`;
    `lanes`: size of the data axis."""
    self.prompts, self.limit = prompts, limit
    self.lane_slots = options.slots // lanes
    self.lane_entries = options.open_prompts // lanes
    self.lane_prefill = options.prefill // lanes
    self.shapes = sampler.shapes(options, lanes)
    self.slots: list[Sampled | None] = [None] * options.slots
    self.now = sampler.Rows(*(np.zeros(options.slots, np.int32) for _ in sampler.Rows._fields))  # `slot` is not used
    self.working = np.zeros(0, np.int32)  # slot of every row of the decode call in progress; -1 = padding
    self.used = np.zeros(options.slots, bool)  # has held a rollout of this call
    self.entries = [deque(range(self.lane_entries)) for _ in range(lanes)]  # free ones of each lane
    self.requests = [deque() for _ in range(lanes)]  # (prompt, index) to start
    self.home: dict[int, tuple[int, int]] = {}  # open prompt -> (lane, entry)
    self.unopened = deque()  # (prompt, indices of its rollouts)
    self.asked = np.zeros(len(prompts.mask), np.int32)  # rollouts requested
    self.queued = np.zeros(len(prompts.mask), np.int32)  # of them not yet started
    self.closed = np.zeros(len(prompts.mask), bool)
    for prompt in np.flatnonzero(prompts.mask).tolist():
      self.request(prompt, int(first[prompt]))
    self.refills = self.steps = self.sampled = self.computed = 0

  @property
  def active(self) -> bool:
    return any(slot is not None for slot in self.slots)

  @property
  def finished(self) -> bool:
    return not (self.active or self.unopened or any(self.requests))

  def request(self, prompt: int, count: int):
    """Asks for `count` more rollouts of a prompt. Those of an open prompt come before the prompts that wait to begin;
    a prompt whose entry is gone, or was never there, waits with them."""
    first = int(self.asked[prompt])
    if prompt in self.home:
      lane, _ = self.home[prompt]
      self.requests[lane].extendleft((prompt, i) for i in reversed(range(first, first + count)))
    else:
      self.unopened.append((prompt, range(first, first + count)))
    self.asked[prompt] += count
    self.queued[prompt] += count

  def close(self, prompt: int):
    """No further rollouts for this prompt: its entry is free once the queued ones have started."""
    self.closed[prompt] = True
    self._release(prompt)

  def _release(self, prompt: int):
    if self.closed[prompt] and not self.queued[prompt] and prompt in self.home:
      lane, entry = self.home.pop(prompt)
      self.entries[lane].append(entry)

  def open(self, final: bool):
    """Opens waiting prompts where slots have nothing to do; `final` closes them too.

    What room is left in the call is given to the prompts that come next: it is computed anyway. Returns the next
    prefill call's (tokens [B, T], length [B], entry [B]), padding with entries out of range, or None when there is
    nothing to open. Call until None.
    """
    size = self.lane_prefill * len(self.entries)
    tokens = np.zeros((size, self.prompts.tokens.shape[1]), np.int32)
    length = np.ones(size, np.int32)
    entry = np.full(size, self.lane_entries, np.int32)
    taken = [0] * len(self.entries)
    while self.unopened and (lane := self._roomiest(taken)) is not None:
      prompt, indices = self.unopened.popleft()
      row = lane * self.lane_prefill + taken[lane]
      taken[lane] += 1
      self.home[prompt] = lane, self.entries[lane].popleft()
      tokens[row], length[row] = self.prompts.tokens[prompt], self.prompts.length[prompt]
      entry[row] = self.home[prompt][1]
      self.requests[lane].extend((prompt, i) for i in indices)
      self.closed[prompt] = final
    return (tokens, length, entry) if any(taken) else None

  def _roomiest(self, taken) -> int | None:
    """The lane with the most idle slots beyond its requests, among those with an entry and a prefill row."""
    held = lambda lane: self.slots[lane * self.lane_slots : (lane + 1) * self.lane_slots]
    free = [held(lane).count(None) - len(queue) for lane, queue in enumerate(self.requests)]
    able = [lane for lane in range(len(free)) if self.entries[lane] and taken[lane] < self.lane_prefill]
    able = able if any(taken) else [lane for lane in able if free[lane] > 0]
    return max(able, key=lambda lane: free[lane]) if able else None

  def lane(self, lane: int) -> list:
    """The slots of a lane."""
    return self.slots[lane * self.lane_slots : (lane + 1) * self.lane_slots]

  def start(self):
    """Puts requests into free slots."""
    for slot, held in enumerate(self.slots):
      queue = self.requests[slot // self.lane_slots]
      if held is not None or not queue:
        continue
      prompt, index = queue.popleft()
      last = int(self.prompts.length[prompt]) - 1
      self.slots[slot] = Sampled(prompt, index)
      self.now.entry[slot] = self.home[prompt][1]
      self.now.prompt[slot], self.now.index[slot] = self.prompts.position[prompt], index
      self.now.token[slot], self.now.position[slot] = self.prompts.tokens[prompt, last], last
      self.now.count[slot], self.now.limit[slot] = 0, self.limit[prompt, index]
      self.refills += int(self.used[slot])
      self.used[slot] = True
      self.queued[prompt] -= 1
      self._release(prompt)

  def rows(self) -> tuple[sampler.Shape, sampler.Rows]:
    """The next decode call: the cheapest shape that holds every rollout in flight, and its rows."""
    busy = np.array([held is not None for held in self.slots])
    lanes = busy.reshape(len(self.entries), self.lane_slots)
    most, behind = lanes.sum(1).max(), self.now.position[busy].max()
    shape = next(s for s in self.shapes if most <= s.rows and behind <= s.columns)
    if shape.rows == self.lane_slots:
      chosen = np.arange(len(busy)).reshape(lanes.shape)
    else:  # the busy ones of each lane first
      chosen = np.argsort(~lanes, axis=1, kind="stable")[:, : shape.rows]
      chosen += np.arange(len(lanes))[:, None] * self.lane_slots
    chosen = chosen.reshape(-1)
    real = busy[chosen]
    self.working = np.where(real, chosen, -1)
    rows = sampler.Rows(*(np.where(real, x[chosen], 0) for x in self.now))
    self.now.entry[:] = -1
    return shape, rows._replace(slot=chosen % self.lane_slots, entry=np.where(real, rows.entry, -1))

  def read(self, chunk: sampler.Chunk, stop: tuple[int, ...]) -> list[Sampled]:
    """Takes what the decode call sampled (on host) -> the rollouts that ended in it; their slots are free."""
    ended = []
    steps = np.repeat(chunk.steps, len(self.working) // len(self.entries))
    self.steps += int(chunk.steps.max())
    self.computed += int(steps.sum())
    for row in np.flatnonzero(self.working >= 0).tolist():
      slot, count = self.working[row], int(steps[row])
      rollout = self.slots[slot]
      if not chunk.active[row]:  # ended at its first stop token, or at its limit
        stops = np.flatnonzero(np.isin(chunk.tokens[row, :count], stop))
        rest = int(self.now.limit[slot]) - rollout.length
        count = min(rest, *(stops[:1] + 1)) if len(stops) else rest
        ended.append(rollout)
        self.slots[slot] = None
      rollout.tokens.append(chunk.tokens[row, :count])
      rollout.logprob.append(chunk.logprob[row, :count])
      rollout.sampled_logprob.append(chunk.sampled_logprob[row, :count])
      rollout.length += count
      self.sampled += count
      self.now.token[slot] = chunk.tokens[row, count - 1]
      self.now.position[slot] += count
      self.now.count[slot] += count
    return ended
