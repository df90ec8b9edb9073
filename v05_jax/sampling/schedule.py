"""Which rollout runs in which slot: the bookkeeping of continuous batching, on host, without a
device.

Slots and store entries are split into lanes, one a device along the mesh's `data` and `fsdp` axes.
A prompt is opened on the lane with the most room, holds a store entry (its prefilled prefix) there,
and all its rollouts run there. The entry is free again once the prompt is closed (gets no further
rollouts) and all of them have ended.
"""

from collections import Counter, deque
import dataclasses

import numpy as np

from v05_jax.sampling import sampler
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
    """`limit [P, K]`: response tokens at most; `first [P]`: rollouts to begin with; `options`: a
    `config.sampler`; `lanes`: of `sharding.lanes`."""
    self.prompts, self.limit = prompts, limit
    self.lanes, self.share, self.chunk = lanes, options.share, options.chunk
    self.lane_slots = options.slots // lanes
    self.lane_entries = options.open_prompts // lanes
    self.lane_prefill = options.prefill // lanes
    self.shapes = sampler.shapes(options, lanes)
    self.shape = sampler.Shape(0, 0)  # of the cache, see `resize`
    self.slots: list[list[Sampled | None]] = [[] for _ in range(lanes)]  # of the present shape
    self.now = sampler.Rows(*(np.zeros((lanes, 0), np.int32) for _ in sampler.Rows._fields))
    self.length = np.zeros((lanes, self.lane_entries), np.int32)  # columns of each entry
    self.entries = [deque(range(self.lane_entries)) for _ in range(lanes)]  # free ones of each lane
    self.requests = [deque() for _ in range(lanes)]  # (prompt, index) to start
    self.home: dict[int, tuple[int, int]] = {}  # open prompt -> (lane, entry)
    # open prompt -> `Rows.place` of further rollouts at once
    self.places: dict[int, list[int]] = {}
    self.unopened = deque()  # (prompt, indices of its rollouts)
    self.asked = np.zeros(len(prompts.mask), np.int32)  # rollouts requested
    self.unfinished = np.zeros(len(prompts.mask), np.int32)  # of them not yet ended
    self.closed = np.zeros(len(prompts.mask), bool)
    for prompt in np.flatnonzero(prompts.mask).tolist():
      self.request(prompt, int(first[prompt]))
    self.started = self.steps = self.sampled = self.computed = 0
    self.filled = (0, 0)  # tokens sampled, and slots times steps, while requests were waiting

  @property
  def active(self) -> bool:
    return any(held is not None for lane in self.slots for held in lane)

  @property
  def finished(self) -> bool:
    return not (self.active or self.unopened or any(self.requests))

  def request(self, prompt: int, count: int):
    """Asks for `count` more rollouts of a prompt. Those of an open prompt come before the prompts
    that wait to begin; a prompt whose entry is gone, or was never there, waits with them."""
    first = int(self.asked[prompt])
    if prompt in self.home:
      lane, _ = self.home[prompt]
      self.requests[lane].extendleft((prompt, i) for i in reversed(range(first, first + count)))
    else:
      self.unopened.append((prompt, range(first, first + count)))
    self.asked[prompt] += count
    self.unfinished[prompt] += count

  def close(self, prompt: int):
    """No further rollouts for this prompt: its entry is free once they have ended."""
    self.closed[prompt] = True
    self._release(prompt)

  def _release(self, prompt: int):
    if self.closed[prompt] and not self.unfinished[prompt] and prompt in self.home:
      lane, entry = self.home.pop(prompt)
      self.entries[lane].append(entry)

  def open(self, final: bool):
    """Opens waiting prompts where slots have nothing to do; `final` closes them too.

    Rows that are left over in the call take the prompts that come next: they are computed anyway.
    Returns the next prefill call's (tokens [B, T], length [B], entry [B]), padding with entries out
    of range, or None when there is nothing to open. Call until None.
    """
    size = self.lane_prefill * self.lanes
    tokens = np.zeros((size, self.prompts.tokens.shape[1]), np.int32)
    length = np.ones(size, np.int32)
    entry = np.full(size, self.lane_entries, np.int32)
    taken, free = [0] * self.lanes, [self.lane_slots - asked for asked in self._asked()]
    while self.unopened and (lane := self._roomiest(taken, free)) is not None:
      prompt, indices = self.unopened.popleft()
      row = lane * self.lane_prefill + taken[lane]
      taken[lane] += 1
      free[lane] -= min(len(indices), self.share)
      entry[row] = self.entries[lane].popleft()
      self.home[prompt] = lane, int(entry[row])
      self.places[prompt] = list(range(entry[row] * self.share, (entry[row] + 1) * self.share))
      tokens[row], length[row] = self.prompts.tokens[prompt], self.prompts.length[prompt]
      self.length[lane, entry[row]] = length[row] - 1  # the last token is the rollouts' first input
      self.requests[lane].extend((prompt, i) for i in indices)
      self.closed[prompt] = final
    return (tokens, length, entry) if any(taken) else None

  def _roomiest(self, taken, free) -> int | None:
    """The lane with the most idle slots beyond its requests, among those with an entry and a
    prefill row."""
    able = [
      lane for lane in range(self.lanes) if self.entries[lane] and taken[lane] < self.lane_prefill
    ]
    able = able if any(taken) else [lane for lane in able if free[lane] > 0]
    return max(able, key=lambda lane: free[lane]) if able else None

  def _asked(self) -> list[int]:
    """Slots of each lane that are busy, or whose rollouts wait and could start now, `share`
    allowing."""
    asked = []
    for lane, queue in zip(self.slots, self.requests):
      waiting = Counter(prompt for prompt, _ in queue)
      startable = sum(min(count, len(self.places[prompt])) for prompt, count in waiting.items())
      asked.append(sum(held is not None for held in lane) + startable)
    return asked

  def resize(self) -> tuple[np.ndarray, sampler.Shape] | None:
    """-> (which of its lane's slots each new slot is [lanes * S], shape) where the cache must
    change, or should.

    The cheapest shape that holds the rollouts in flight and those that wait to start, unless it
    saves little over the present one.
    """
    wanted = min(max(self._asked()), self.lane_slots)
    if not wanted:
      return None
    columns = self.chunk + (int(self.now.count[self.now.limit > 0].max()) if self.active else 0)
    best = next(s for s in self.shapes if wanted <= s.slots and columns <= s.columns)
    fits = wanted <= self.shape.slots and columns <= self.shape.columns
    if fits and best.slots * best.columns > 0.6 * self.shape.slots * self.shape.columns:
      return None
    idle = np.array([[held is None for held in lane] for lane in self.slots], bool).reshape(
      self.lanes, -1
    )
    order = np.argsort(idle, axis=1, kind="stable")[:, : best.slots]
    self.now = sampler.Rows(
      *(_resized(np.take_along_axis(x, order, 1), best.slots) for x in self.now)
    )
    self.slots = [[lane[i] for i in chosen] for lane, chosen in zip(self.slots, order.tolist())]
    self.slots = [lane + [None] * (best.slots - len(lane)) for lane in self.slots]
    self.shape = best
    return _resized(order, best.slots).reshape(-1).astype(np.int32), best

  def start(self):
    """Puts requests into free slots, of a prompt up to `share` at once."""
    for lane, slots in enumerate(self.slots):
      queue = self.requests[lane]
      for slot, held in enumerate(slots):
        if held is not None:
          continue
        number = next((i for i, (prompt, _) in enumerate(queue) if self.places[prompt]), None)
        if number is None:
          break
        prompt, index = queue[number]
        del queue[number]
        slots[slot] = Sampled(prompt, index)
        last = int(self.prompts.length[prompt]) - 1
        row = sampler.Rows(
          place=self.places[prompt].pop(),
          prompt=self.prompts.position[prompt],
          index=index,
          token=self.prompts.tokens[prompt, last],
          position=last,
          count=0,
          limit=self.limit[prompt, index],
        )
        for table, value in zip(self.now, row):
          table[lane, slot] = value
        self.started += 1

  def rows(self) -> tuple[np.ndarray, sampler.Rows]:
    """What the next decode call is told: the columns of every entry, and of every slot its
    rollout."""
    return self.length.reshape(-1).copy(), sampler.Rows(*(x.reshape(-1).copy() for x in self.now))

  def read(self, chunk: sampler.Chunk, stop: tuple[int, ...]) -> list[Sampled]:
    """Takes what the decode call sampled (on host) -> the rollouts that ended in it; their slots
    are free."""
    ended, before, waiting = [], self.sampled, any(self.requests) or bool(self.unopened)
    self.steps += int(chunk.steps.max())
    self.computed += int(chunk.steps.sum()) * self.shape.slots
    split = lambda x: np.asarray(x).reshape(self.lanes, self.shape.slots, *x.shape[1:])
    pieces = split(chunk.tokens), split(chunk.logprob), split(chunk.sampled_logprob)
    active = split(chunk.active)
    for lane, slots in enumerate(self.slots):
      for slot, rollout in enumerate(slots):
        if rollout is None:
          continue
        at, count = (lane, slot), int(chunk.steps[lane])
        if not active[at]:  # ended at its first stop token, or at its limit
          stops = np.flatnonzero(np.isin(pieces[0][at][:count], stop))
          rest = int(self.now.limit[at]) - rollout.length
          count = min(rest, *(stops[:1] + 1)) if len(stops) else rest
          ended.append(rollout)
          self._end(at, rollout)
        for kept, piece in zip((rollout.tokens, rollout.logprob, rollout.sampled_logprob), pieces):
          kept.append(piece[at][:count])
        rollout.length += count
        self.sampled += count
        self.now.token[at] = rollout.tokens[-1][-1]
        self.now.position[at] += count
        self.now.count[at] += count
    if waiting:
      offered = int(chunk.steps.max()) * self.lane_slots * self.lanes
      self.filled = self.filled[0] + self.sampled - before, self.filled[1] + offered
    return ended

  def _end(self, at: tuple[int, int], rollout: Sampled):
    lane, slot = at
    self.slots[lane][slot] = None
    self.now.limit[at] = 0
    self.places[rollout.prompt].append(int(self.now.place[at]))
    self.unfinished[rollout.prompt] -= 1
    self._release(rollout.prompt)


def _resized(x: np.ndarray, size: int) -> np.ndarray:
  """x [lanes, S] with `size` columns, zeros where there was none."""
  return np.pad(x[:, :size], ((0, 0), (0, max(size - x.shape[1], 0))))
