"""The loop of supervised training, of a policy (`run.sft`) and of a value model
(`value_model.train`)."""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax.numpy as jnp

from v05_jax.run import checkpoint, leaves, lock, writer
from v05_jax.run.progress import Progress


class Training(NamedTuple):
  """What is trained."""

  # The first one, whose arrays the training takes over; its field `skipped`, int32 []: updates
  # skipped in a row.
  state: Any
  step: Callable  # (state, number) -> (state, pairs); may overwrite the state
  evaluate: Callable  # state -> pairs
  steps: int
  shown: tuple[str, ...]  # metrics on the terminal
  check: Callable = lambda state: None  # of a checkpoint; raises ValueError where it is of another
  at_first: bool = False  # whether it is evaluated before the first step as well
  data: dict[str, str] | None = None  # digests of its rows, as of `Checkpoints.save`


def train(config, workdir: str, held: lock.Lock, training: Training) -> tuple[Any, dict]:
  """Trains, from the newest checkpoint in `workdir` on -> (the last state, the last values).

  Writes config.json, metrics.jsonl, what its sinks show, and checkpoints; a line of the metrics
  with `step` n is of step n, and evaluations are of the state after it. The host reads whether an
  update was skipped when the next one is under way. Raises ValueError where the workdir's
  checkpoint or metrics are no part of this training, FloatingPointError after more than
  `config.loss.max_skipped` non-finite updates in a row, and `checkpoint.Preempted` when a signal
  asked it to stop.
  """
  total = training.steps
  with (
    checkpoint.Checkpoints(workdir, config.checkpoint.keep, held) as saved,
    checkpoint.Preemption() as preemption,
  ):
    first, state = saved.latest() or 0, training.state
    if first:
      state = saved.restore(first, leaves.vacated(state), training.data)
      training.check(state)
    with writer.Writer(workdir, config, first) as log, Progress(total, first) as progress:
      if training.at_first and not first:
        log.write(0, 0, training.evaluate(state))
      for number in range(first, total):
        began, before = time.perf_counter(), jnp.copy(state.skipped)
        state, measured = training.step(state, number)
        done, last = number + 1, number + 1 == total
        if last or checkpoint.due(done, config.eval.period):
          measured |= training.evaluate(state)
        # reading `before` waits for the previous update alone; at the end all are waited for
        failed = int(state.skipped if last else before)
        log.write(done, 0, measured | {"time/step": (time.perf_counter() - began, 1)})
        if last:  # no next step waits: the last line shows the last values
          log.flush()
        progress.update(done, log.latest, training.shown)
        if failed > config.loss.max_skipped:
          raise _failing(failed, done if last else number)
        # While updates fail, the checkpoints before them are kept.
        regular = checkpoint.due(done, config.checkpoint.period) and not failed
        if last or preemption.requested or regular:
          log.flush()
          saved.save(done, state, training.data)
        if preemption.requested and not last:
          raise checkpoint.stopped(done)
      log.flush()
      return state, dict(log.latest)


def _failing(skipped: int, step: int) -> FloatingPointError:
  """The error after `skipped` failed updates in a row, the last of them that of `step`."""
  return FloatingPointError(
    f"{skipped} updates in a row had a non-finite loss or gradient and were skipped, the last one "
    f"at step {step}; the checkpoints before them are kept"
  )
