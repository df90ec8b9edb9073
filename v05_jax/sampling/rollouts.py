"""The sampler's host side: keeps the slots full, has rollouts verified, asks the budget, refills.

One mechanism serves fixed groups, adaptive groups and evaluation: a queue of (prompt, index)
requests in front of a fixed number of slots. Between two decode chunks the host

    1. applies the verdicts of the rollouts that ended one boundary ago (waiting for late ones),
    2. hands the rollouts that have just ended to the verifier,
    3. asks `budget.extra` about prompts all of whose rollouts have verdicts,
    4. opens further prompts (prefill) and starts requests in free slots.

A verdict is applied exactly one boundary after its rollout ended, so arrival time changes neither
slots nor samples.

Where a run has several processes, each holds the slots of its own devices and verifies the rollouts
of its own prompts (they take turns). What a chunk has sampled and what the verdicts are goes to all
of them, so that every process keeps the same books and makes the same calls: one queue serves the
slots of all.
"""

from collections.abc import Callable
import contextlib
from functools import partial
import itertools
import time
from typing import NamedTuple

import jax
import numpy as np

from v05_jax import budget, shrinkage
from v05_jax.models import tokenizer as tokenizers
from v05_jax.sampling import sampler
from v05_jax.sampling.ahead import Ahead, shapes
from v05_jax.sampling.schedule import Sampled, Schedule
from v05_jax.scale import distributed, sharding
from v05_jax.structs import Prompts, Rollouts


class Groups(NamedTuple):
  """How many rollouts a prompt gets: the run's `config.budget`, or a fixed number in evaluation."""

  rule: str
  k_init: int
  k_max: int
  cost: float = 0.0
  block: int = 1
  k_mean: float = 0.0  # of a batch, for the rules that divide a total

  @property
  def unconditional(self) -> int:
    """A prompt's first rollouts, whose number no outcome has chosen: what may be learnt from
    without bias."""
    return self.k_max if self.rule in ("fixed", "value") else self.k_init


def make(policy, config, mesh, verifier, ahead: Ahead | None = None) -> Callable:
  """Builds `collect` for a `models.Policy`, a run's config, a mesh and a verifier (`rewards.load`).

  `collect(params, prompts, step_key, groups, value=None, temperature=None, limit=None, ewa=None)`
  samples every prompt's rollouts and returns `(Rollouts, stats)`. `value [P]` is the prior, which
  an adaptive rule needs, and `ewa` what EWA-Beta has learnt, which the rule "neyman" needs; `limit
  [P, K]` caps the response tokens of each rollout below `config.sampler.max_response` (default: the
  data row's `max_tokens`, where it has one); stats are (sum, count) pairs. Between calls a CPU
  keeps the device buffers. The policy's own parameters are not used.

  The first call compiles, in threads of `ahead`, the programs of all of the cache's shapes and the
  changes from each to the next; what `ahead` holds besides is started then. A change that passes
  over a shape compiles when it comes.
  """
  options, lanes = config.sampler, sharding.lanes(mesh)
  tokenizer, stop = policy.tokenizer, policy.stop
  programs = sampler.make(policy.config, options, stop, mesh)
  given = sampler.arguments(policy.config, options, mesh)
  store, cache, shape, begun = None, None, None, False

  def collect(
    params, prompts, step_key, groups, value=None, temperature=None, limit=None, ewa=None
  ):
    nonlocal store, cache, shape, begun
    with contextlib.nullcontext(ahead) if begun or ahead else Ahead() as threads:
      if begun:
        weights, compiled = programs.weights(params), {}
      else:
        weights, compiled = _compile(programs, given, params, step_key, options, mesh, threads)
        begun = True
      ledger = _Ledger(prompts, groups, value, ewa, config, stop)
      limit = row_limits(prompts, options.max_response) if limit is None else np.asarray(limit)
      limit = np.broadcast_to(
        limit.clip(1, options.max_response), (len(prompts.mask), groups.k_max)
      )
      schedule = Schedule(prompts, limit, ledger.first(), options, lanes)
      temperature = np.float32(options.temperature if temperature is None else temperature)
      store = programs.store() if store is None else store
      waited = work(params, weights, compiled, prompts, step_key, temperature, ledger, schedule)
      # the update wants the memory; on a CPU fresh memory is slow
      if policy.config.backend != "cpu":
        store, cache, shape = None, None, None
      for wait in compiled.values():
        wait()
    return ledger.rollouts(options.max_response), _stats(schedule, ledger, options.slots, waited)

  def work(params, weights, compiled, prompts, step_key, temperature, ledger, schedule) -> float:
    """Runs the schedule to its end -> seconds that it waited for verdicts."""
    nonlocal store, cache, shape
    ended, waited, groups = [], 0.0, ledger.groups
    while ended or not schedule.finished:
      verdicts = _submit(ended, prompts, tokenizer, verifier, config, stop)
      while (
        batch := schedule.open(final=groups.rule in ("fixed", *budget.BATCH_RULES))
      ) is not None:
        store = programs.prefill(params, store, *batch)
      if (change := schedule.fit()) is not None:
        slots, new = change
        compiled.get(new, _nothing)()
        if schedule.active:
          layers, cache = list(cache), None
          cache = _resized(programs.resize(new), layers, slots)
        elif shape != new:
          cache = programs.cache(new)
        shape = new
      schedule.start()
      just_ended = []
      if schedule.active:
        cache, chunk = programs.decode(
          weights, cache, store, schedule.rows(), step_key, temperature
        )
        just_ended = schedule.read(distributed.fetch(chunk), stop)
      began = time.perf_counter()
      for rollout, reward in zip(ended, _rewards(ended, verdicts, options.slots)):
        ledger.record(rollout, reward)
      waited += time.perf_counter() - began
      for prompt, more in ledger.decide(schedule):
        schedule.request(prompt, more) if more else schedule.close(prompt)
      ended = just_ended
    return waited

  return collect


def _resized(resize, layers: list, slots):
  """The layers' caches, resized one after another, each in the place of the old one: `layers` is
  used up."""
  for i in range(len(layers)):
    layers[i] = resize(layers[i], slots)
  return tuple(layers)


def _nothing():
  """What there is to wait for where everything is compiled."""


def _compile(
  programs: sampler.Programs,
  given: sampler.Arguments,
  params,
  step_key,
  options,
  mesh,
  ahead: Ahead,
):
  """Compiles prefill, decode for each of the cache's shapes, and the changes from a shape to the
  next as a run meets them, all but the first of them in the background -> (weights, {shape: waits
  for its programs})."""
  key, store = shapes(step_key), given.store()
  prefill = ahead.now(programs.prefill.lower(shapes(params), store, *given.prompts()).compile)
  weights = programs.weights(params)
  weights_at, temperature = shapes(weights), jax.ShapeDtypeStruct((), np.float32)
  order = sorted(
    sampler.shapes(options, sharding.lanes(mesh)), key=lambda shape: (-shape.slots, shape.columns)
  )

  def decode(shape):
    return programs.decode.lower(
      weights_at, given.cache(shape), store, given.rows(shape), key, temperature
    )

  def both(old, new):
    whole(decode(new).compile())
    programs.resize(new).lower(given.cache(old)[0], given.slots(new)).compile()

  def whole(compiled):
    """Compiles what follows each call of decode where there are several processes."""
    if distributed.several():
      place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
      chunk = jax.tree.map(place, compiled.out_info[1], compiled.output_shardings[1])
      distributed.replicate(mesh).lower(chunk).compile()

  compiled = {
    order[0]: ahead.now(partial(lambda decode: whole(decode.compile()), decode(order[0])))
  }
  compiled |= {new: ahead.later(partial(both, old, new)) for old, new in itertools.pairwise(order)}
  ahead.go()
  prefill()
  return weights, compiled


def row_limits(prompts: Prompts, max_response: int) -> np.ndarray:
  """[P, 1] response tokens at most: the row's own `max_tokens` where its data has that field."""
  limit = np.full((len(prompts.mask), 1), max_response)
  for i, row in enumerate(prompts.rows):
    limit[i] = row.get("max_tokens") or max_response
  return limit


class _Ledger:
  """Results by `[P, K]` as the verdicts come in, and what the budget makes of them."""

  def __init__(self, prompts: Prompts, groups: Groups, value, ewa, config, stop):
    shape = (len(prompts.mask), groups.k_max)
    self.groups, self.stop, self.ewa, self.real = groups, stop, ewa, np.asarray(prompts.mask)
    self.total = round(groups.k_mean * self.real.sum())  # of a rule that divides one
    self.divided = False  # it has been
    self.value = np.full(shape[0], np.nan, np.float32) if value is None else np.asarray(value)
    self.low, self.high, self.truncated = (
      config.rewards.low,
      config.rewards.high,
      config.sampler.truncated,
    )
    self.done: list[Sampled] = []
    self.length = np.zeros(shape, np.int32)
    self.reward = np.full(shape, np.nan, np.float32)
    self.ended = np.zeros(shape, bool)
    self.mask = np.zeros(shape, bool)
    self.failed = 0
    self.changed: set[int] = set()

  def record(self, rollout: Sampled, reward: float):
    """One verdict: the verifier's reward, NaN where it failed."""
    at = rollout.prompt, rollout.index
    self.done.append(rollout)
    self.length[at] = rollout.length
    self.ended[at] = rollout.tokens[-1][-1] in self.stop
    self.reward[at] = reward
    self.failed += int(np.isnan(reward))
    self.mask[at] = np.isfinite(reward) and (self.ended[at] or self.truncated != "mask")
    self.changed.add(rollout.prompt)

  def first(self) -> np.ndarray:
    """int [P]: rollouts to begin with, `k_init` but for the rule that knows every number
    beforehand."""
    first = np.full(len(self.real), self.groups.k_init)
    return first + self._extra(self.real) if self.groups.rule == "value" else first

  def decide(self, schedule: Schedule) -> list[tuple[int, int]]:
    """(prompt, further rollouts) for each open prompt that has all its verdicts; 0 = it is done."""
    rule, judged = self.groups.rule, (self.length > 0).sum(1)
    ended = self.real & (judged == schedule.asked)
    if rule == "neyman":  # one decision for all, over prompts that are closed meanwhile
      if self.divided or not ended[self.real].all():
        return []
      self.divided, ready = True, np.flatnonzero(self.real).tolist()
    else:
      ready = [p for p in sorted(self.changed) if ended[p] and not schedule.closed[p]]
    self.changed.clear()
    if not ready:
      return []
    more = self._extra(np.isin(np.arange(len(judged)), ready))
    if rule == "two_stage":  # the second stage is the last
      more = np.where(judged > self.groups.k_init, 0, more)
    return [(p, int(more[p])) for p in ready if more[p] or rule != "neyman"]

  def _extra(self, ready: np.ndarray) -> np.ndarray:
    """`budget.extra` for the prompts that are `ready` [P]."""
    groups, judged = self.groups, (self.length > 0).sum(1)
    s, k = shrinkage.outcomes(shrinkage.map_reward(self.reward, self.low, self.high), self.mask)
    k = (
      np.full(len(judged), groups.k_init)
      if groups.rule == "value"
      else np.asarray(k).astype(np.int32)
    )
    # Rollouts without a verdict count towards k_max and the total, though not towards k.
    lost = np.maximum(judged - k, 0)
    more = budget.extra(
      groups.rule,
      self.ewa,
      self.value,
      s,
      k.astype(np.int32),
      ready,
      np.int32(self.total - lost.sum()),
      k_max=(groups.k_max - lost).astype(np.int32),
      cost=groups.cost,
      block=groups.block,
      real=self.real,
    )
    return np.asarray(more)

  def rollouts(self, max_response: int) -> Rollouts:
    """Flat rows in the order of (prompt, index), whatever the order in which they ended."""
    done = sorted(self.done, key=lambda r: (r.prompt, r.index))

    def rows(name, dtype):
      out = np.zeros((len(done), max_response), dtype)
      for row, rollout in zip(out, done):
        row[: rollout.length] = np.concatenate(getattr(rollout, name))
      return out

    return Rollouts(
      tokens=rows("tokens", np.int32),
      logprob=rows("logprob", np.float32),
      sampled_logprob=rows("sampled_logprob", np.float32),
      prompt=np.array([r.prompt for r in done], np.int32),
      index=np.array([r.index for r in done], np.int32),
      length=self.length,
      reward=self.reward,
      ended=self.ended,
      mask=self.mask,
    )


def _submit(
  ended, prompts: Prompts, tokenizer, verifier, config, stop
) -> list[Callable[[], float]]:
  """Hands rollouts to the verifier -> for each a function that waits for its reward."""

  def needs_verdict(rollout):
    return config.sampler.truncated == "score" or rollout.tokens[-1][-1] in stop

  judged = [r for r in ended if needs_verdict(r) and distributed.owner(r.prompt)]
  rows = [prompts.rows[r.prompt] for r in judged]
  texts = [tokenizers.decode_response(tokenizer, np.concatenate(r.tokens), stop) for r in judged]
  handles = verifier.submit([row["prompt"] for row in rows], texts, rows)
  fail = lambda: config.rewards.low
  mine = {id(r): lambda h=h: h.result().reward for r, h in zip(judged, handles, strict=True)}
  return [mine.get(id(r), fail) for r in ended]


def _rewards(ended, verdicts, slots: int) -> list[float]:
  """The rollouts' rewards: a process waits for the verdicts on its own prompts and is told the
  others."""
  if not distributed.several():
    return [verdict() for verdict in verdicts]
  rewards = np.zeros(slots, np.float32)  # always as many: one program
  for i, (rollout, verdict) in enumerate(zip(ended, verdicts)):
    if distributed.owner(rollout.prompt):
      rewards[i] = verdict()
  if not ended:
    return []
  told = distributed.exchange(rewards)
  return [float(told[rollout.prompt % len(told), i]) for i, rollout in enumerate(ended)]


def _stats(
  schedule: Schedule, ledger: _Ledger, slots: int, waited: float
) -> dict[str, tuple[float, float]]:
  count = len(ledger.done)
  return {
    "sampler/utilisation": (schedule.sampled, schedule.computed),
    "sampler/utilisation_filled": schedule.filled,
    "sampler/decode_steps": (schedule.steps, 1),
    "sampler/refills": (max(schedule.started - slots, 0), 1),
    "response/truncated": (count - int(ledger.ended.sum()), count),
    "response/length": (int(schedule.sampled), count),
    "rewards/failed": (ledger.failed, 1),
    "time/verify": (waited, 1),
  }
