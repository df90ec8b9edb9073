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
    self.slots: list[Sampled | None] = [None] * options.slots
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
    self.refills = self.steps = self.sampled = 0

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

    Returns the next prefill call's (tokens [B, T], length [B], entry [B]), padding with entries out of
    range, or None when there is nothing to open. Call until None.
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
    free = [
      self.slots[lane * self.lane_slots : (lane + 1) * self.lane_slots].count(None) - len(queue)
      for lane, queue in enumerate(self.requests)
    ]
    able = [
      lane
      for lane in range(len(free))
      if free[lane] > 0 and self.entries[lane] and taken[lane] < self.lane_prefill
    ]
    return max(able, key=lambda lane: free[lane]) if able else None

  def start(self) -> sampler.Start | None:
    """Puts requests into free slots -> what `sampler.fill` needs, or None when no slot changes."""
    size = len(self.slots)
    start = sampler.Start(*(np.zeros(size, np.int32) for _ in sampler.Start._fields))
    start.entry[:] = -1
    for slot in range(size):
      queue = self.requests[slot // self.lane_slots]
      if self.slots[slot] is not None or not queue:
        continue
      prompt, index = queue.popleft()
      self.slots[slot] = Sampled(prompt, index)
      self.refills += int(self.used[slot])
      self.used[slot] = True
      last = self.prompts.length[prompt] - 1
      start.entry[slot] = self.home[prompt][1]
      start.prompt[slot], start.index[slot] = self.prompts.position[prompt], index
      start.token[slot], start.position[slot] = self.prompts.tokens[prompt, last], last
      start.limit[slot] = self.limit[prompt, index]
      self.queued[prompt] -= 1
      self._release(prompt)
    return start if (start.entry >= 0).any() else None

  def read(self, chunk: sampler.Chunk, stop: tuple[int, ...]) -> list[Sampled]:
    """Takes what a decode call sampled (on host) -> the rollouts that ended in it; their slots are free."""
    ended = []
    steps = np.repeat(chunk.steps, self.lane_slots)
    self.steps += int(chunk.steps.max())
    for slot, rollout in enumerate(self.slots):
      if rollout is None:
        continue
      count = int(steps[slot])
      if not chunk.active[slot]:  # ended at its first stop token, or at its limit
        stops = np.flatnonzero(np.isin(chunk.tokens[slot, :count], stop))
        rest = int(self.limit[rollout.prompt, rollout.index]) - rollout.length
        count = min(rest, *(stops[:1] + 1)) if len(stops) else rest
        ended.append(rollout)
        self.slots[slot] = None
      rollout.tokens.append(chunk.tokens[slot, :count])
      rollout.logprob.append(chunk.logprob[slot, :count])
      rollout.sampled_logprob.append(chunk.sampled_logprob[slot, :count])
      rollout.length += count
      self.sampled += count
    return ended
