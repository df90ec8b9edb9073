"""The sampler's host side: keeps the slots full, has rollouts verified, asks the budget, refills.

One mechanism serves fixed groups, adaptive groups and evaluation: a queue of (prompt, index)
requests in front of a fixed number of slots. Between two decode chunks the host

    1. applies the verdicts of the rollouts that ended one boundary ago (waiting for late ones),
    2. hands the rollouts that have just ended to the verifier,
    3. asks the budget about prompts all of whose rollouts have verdicts,
    4. opens further prompts (prefill) and starts requests in free slots.

A verdict is applied exactly one boundary after its rollout ended, so arrival time changes neither
slots nor samples. Where a reward looks at all responses of a prompt at once, it is handed over with
the last of those that were asked for, which the budget waits for in any case.

Where a run has several processes, each holds the slots of its own devices and verifies the rollouts
of its own prompts (they take turns). What a chunk has sampled and what the verdicts are goes to all
of them, so that every process keeps the same books and makes the same calls: one queue serves the
slots of all.
"""

from collections.abc import Callable
import contextlib
import time

import numpy as np

from v05_jax.sampling import sampler
from v05_jax.sampling.ahead import Ahead
from v05_jax.sampling.ledger import Ledger, Order
from v05_jax.sampling.schedule import Schedule
from v05_jax.sampling.verdicts import Judge
from v05_jax.sampling.warmup import Warmup
from v05_jax.scale import distributed, sharding
from v05_jax.structs import Prompts, Rollouts

Stats = dict[str, tuple[float, float]]  # metric -> (sum, count)


def make(
  policy, config, mesh, verifier, ahead: Ahead | None = None, stopping=lambda: False
) -> Callable:
  """Builds `collect` for a `models.Policy`, a run's config, a mesh and a verifier (`rewards.load`).

  `collect(params, prompts, step_key, order)` samples every prompt's rollouts as the `Order` says
  and returns `(Rollouts, stats)`; stats are (sum, count) pairs. Between calls a CPU keeps the
  device buffers. The policy's own parameters are not used. It raises `rewards.RewardError` where
  the verifier failed on every rollout, and `verdicts.Interrupted` where `stopping()` says that the
  run is to stop and verdicts do not come, or the order is interruptible.

  The first call compiles, in threads of `ahead`, the programs of all of the cache's shapes and the
  changes from each to the next; what `ahead` holds besides is started then. A change that passes
  over a shape compiles when it comes.
  """
  return Collect(policy, config, mesh, Judge(policy, config, verifier, stopping), ahead)


class Collect:
  """The device buffers of the sampler, and the loop that keeps its slots full."""

  def __init__(self, policy, config, mesh, judge: Judge, ahead: Ahead | None):
    self._config, self._stop, self._judge, self._ahead = config, policy.stop, judge, ahead
    self._lanes, self._keeps = sharding.lanes(mesh), policy.config.backend == "cpu"
    self._programs = sampler.make(policy.config, config.sampler, policy.stop, mesh)
    given = sampler.arguments(policy.config, config.sampler, mesh)
    self._warmup = Warmup(self._programs, given, config.sampler, mesh)
    self._begun = False
    self._forget()

  def _forget(self):
    self._store, self._cache, self._shape = None, None, None

  def __call__(self, params, prompts: Prompts, step_key, order: Order) -> tuple[Rollouts, Stats]:
    options = self._config.sampler
    with contextlib.nullcontext(self._ahead) if self._begun or self._ahead else Ahead() as threads:
      if self._begun:
        weights, compiled = self._programs.weights(params), {}
      else:
        weights, compiled = self._warmup(params, step_key, threads)
        self._begun = True
      ledger = Ledger(prompts, order, self._config, self._stop)
      limit = row_limits(prompts, options.max_response) if order.limit is None else order.limit
      limit = np.clip(limit, 1, options.max_response)
      limit = np.broadcast_to(limit, (len(prompts.mask), order.budget.limits.most))
      schedule = Schedule(prompts, limit, ledger.first(), options, self._lanes)
      temperature = options.temperature if order.temperature is None else order.temperature
      self._store = self._programs.store() if self._store is None else self._store

      def decode():
        if order.interruptible:
          self._judge.check()
        rows = schedule.rows()
        arguments = (weights, self._cache, self._store, rows, step_key, np.float32(temperature))
        self._cache, chunk = self._programs.decode(*arguments)
        return schedule.read(distributed.fetch(chunk), self._stop)

      waited = self._work(schedule, ledger, params, decode, compiled)
      if not self._keeps:  # the update wants the memory; on a CPU fresh memory is slow
        self._forget()
      for wait in compiled.values():
        wait()
    stats = _stats(schedule, ledger, options.slots, waited) | self._judge.finish()
    found = ledger.rollouts(options.max_response)
    if wrong := int((~np.isfinite(found.logprob)).any(1).sum()):
      stats["sampler/not_finite"] = wrong, 1
    return found, stats

  def _work(self, schedule: Schedule, ledger: Ledger, params, decode: Callable, compiled) -> float:
    """Runs the schedule to its end -> seconds that it waited for verdicts."""
    ended, waited, prompts = [], 0.0, schedule.prompts
    closes = ledger.budget.limits.closes
    while ended or not schedule.finished:
      began = time.perf_counter()
      verdicts = self._judge.submit(ended, prompts)
      waited += time.perf_counter() - began  # some rewards are computed in this thread
      while (batch := schedule.open(final=closes)) is not None:
        self._store = self._programs.prefill(params, self._store, *batch)
      self._resize(schedule, compiled)
      schedule.start()
      just_ended = decode() if schedule.active else []
      began = time.perf_counter()
      for rollout, reward in zip(ended, self._judge.rewards(ended, verdicts)):
        ledger.record(rollout, *reward)
      waited += time.perf_counter() - began
      for prompt, more in ledger.decide(schedule):
        schedule.request(prompt, more) if more else schedule.close(prompt)
      ended = self._judge.ready(just_ended, schedule.unfinished)
    return waited

  def _resize(self, schedule: Schedule, compiled):
    """Changes the cache's shape where the schedule wants another; `compiled`: {shape: waits for
    it}."""
    if (change := schedule.resize()) is None:
      return
    slots, new = change
    compiled.get(new, lambda: None)()
    if schedule.active:
      layers, self._cache = list(self._cache), None
      for i in range(len(layers)):  # each in the place of the old one
        layers[i] = self._programs.resize(new)(layers[i], slots)
      self._cache = tuple(layers)
    elif self._shape != new:
      self._cache = self._programs.cache(new)
    self._shape = new


def row_limits(prompts: Prompts, max_response: int) -> np.ndarray:
  """[P, 1] response tokens at most: the row's own `max_tokens` where it has fewer."""
  limit = np.full((len(prompts.mask), 1), max_response)
  for i, row in enumerate(prompts.rows):
    limit[i] = min(row.get("max_tokens") or max_response, max_response)
  return limit


def _stats(schedule: Schedule, ledger: Ledger, slots: int, waited: float) -> Stats:
  count = len(ledger.done)
  return {
    "sampler/utilisation": (schedule.sampled, schedule.computed),
    "sampler/utilisation_filled": schedule.filled,
    "sampler/decode_steps": (schedule.steps, 1),
    "sampler/refills": (max(schedule.started - slots, 0), 1),
    "response/truncated": (count - int(ledger.ended.sum()), count),
    "response/length": (int(schedule.sampled), count),
    "time/verify": (waited, 1),
  }
