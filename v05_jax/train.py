"""The one training loop: prompts -> prior -> rollouts -> test and fusion -> advantage -> update ->
context."""

import contextlib
import time

import jax

from v05_jax import config as configuration
from v05_jax import data, rewards
from v05_jax.run import checkpoint, report, writer
from v05_jax.run import evaluate as evaluation
from v05_jax.run.progress import CompilationCounter, Progress
from v05_jax.sampling import rollouts
from v05_jax.sampling.ahead import Ahead
from v05_jax.scale import distributed
from v05_jax.step import learn, sample, setup
from v05_jax.structs import TrainState
from v05_jax.value_model import pairs


def train(config, workdir: str) -> TrainState:
  """Runs `config` in `workdir`, or resumes it there, and returns the final state.

  Writes config.json, metrics.jsonl, TensorBoard events, checkpoints and summary.png, and with
  `config.collect` the step's (prompt, score) pairs. A line of the metrics with `step` n describes
  the state after n steps. Raises ValueError for bad input before anything expensive,
  FloatingPointError after more than `config.loss.max_skipped` non-finite updates in a row, and
  `checkpoint.Preempted` when a signal asked it to stop; the state is saved then.
  """
  configuration.validate(config)
  checkpoint.prepare(workdir, config)
  checkpoint.check_config(workdir, config)
  with (
    CompilationCounter() as compilations,
    rewards.load(config) as verifier,
    checkpoint.Checkpoints(workdir, config.checkpoint.keep) as saved,
    checkpoint.Preemption() as preemption,
    Ahead() as ahead,
  ):
    run = setup(config)
    collect = rollouts.make(run.policy, config, run.mesh, verifier, ahead)
    evaluate = evaluation.make(run.policy, config, run.mesh, collect)
    state, first = run.init(), saved.latest() or 0
    if first:
      state = saved.restore(first, state)
    if first < config.num_steps:
      # While the first rollouts are sampled.
      updating = ahead.later(lambda: run.update.lower(run.batch_shape()).compile())
    with (
      writer.make(workdir, config, first) as log,
      Progress(config.num_steps, first) as progress,
      collector(config, workdir, run, first) as collected,
    ):
      if not first and config.eval.period:
        log.write(0, 0, evaluation.summarise(evaluate(state.params)))
      for step in range(first, config.num_steps):
        # of the updates before, which have ended
        began, failed = time.perf_counter(), int(state.skipped)
        draw = sample(run, collect, state, step)
        if collected:
          collected.write(step, *draw.pairs)
        updating()
        state, measured = learn(run, state, draw)
        done, last = step + 1, step + 1 == config.num_steps
        if config.eval.period and (last or due(done, config.eval.period)):
          measured |= evaluation.summarise(evaluate(state.params))
        measured["time/compilations"] = (compilations(), 1)
        measured["time/step"] = (time.perf_counter() - began, 1)
        log.write(done, int(state.rollouts), measured)
        progress.update(done, log.latest)
        if failed > config.loss.max_skipped:
          raise FloatingPointError(diverged(config, workdir, failed, saved.latest()))
        stopping = agreed(preemption.requested, state, done)
        # While updates fail, the checkpoints before them are kept.
        if last or stopping or (not failed and due(done, config.checkpoint.period)):
          log.flush()
          if collected:
            collected.flush()
          saved.save(done, state)
        if stopping and not last:
          raise checkpoint.Preempted(
            f"stopped by a signal; saved at step {done}, the same command continues"
          )
  if distributed.first():
    report.summary(workdir)
  return state


def agreed(requested: bool, state: TrainState, done: int) -> bool:
  """Whether any process was asked to stop. Raises ValueError where several no longer decide by the
  same numbers."""
  # what each has worked out for itself
  decided = state.replace(params=None, opt_state=None, skipped=None)
  distributed.check_same(f"the state after step {done}", lambda: jax.tree.leaves(decided))
  return distributed.anywhere(requested)


def collector(config, workdir: str, run, first: int):
  """What writes the step's (prompt, score) pairs where `config.collect` says so; a context
  manager."""
  if not config.collect or not distributed.first():
    return contextlib.nullcontext()
  return pairs.Collector(
    workdir, data.label(config.data.path), [row["prompt"] for row in run.prompts.rows], first
  )


def diverged(config, workdir: str, failed: int, good: int | None) -> str:
  """What a run says that stops because its updates keep failing."""
  kept = (
    "there is no checkpoint yet" if good is None else f"the last good checkpoint is of step {good}"
  )
  return (
    f"{failed} steps in a row had an update with a non-finite loss or gradient, which were skipped "
    f"(config.loss.max_skipped={config.loss.max_skipped}); {kept} in {workdir}. To go on from it "
    "with other "
    "settings: --mode=export it, and start in a new workdir with --config.policy.path"
  )


def due(step: int, period: int) -> bool:
  """Whether something done every `period` steps falls on this one; 0 = never."""
  return period > 0 and step % period == 0
