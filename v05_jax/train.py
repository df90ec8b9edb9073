"""The one training loop: prompts -> prior -> rollouts -> test and fusion -> advantage -> update ->
context."""

import time
from typing import Any, NamedTuple

from absl import logging
import jax

from v05_jax import config as configuration
from v05_jax import plug, rewards, row_files, sinks
from v05_jax.observers.base import Step
from v05_jax.run import checkpoint, leaves, lock, report, samples, workdirs, writer
from v05_jax.run import evaluate as evaluation
from v05_jax.run.metrics import Pairs
from v05_jax.run.progress import CompilationCounter, Progress
from v05_jax.sampling import rollouts
from v05_jax.sampling.ahead import Ahead
from v05_jax.sampling.draw import draw
from v05_jax.sampling.verdicts import Interrupted
from v05_jax.scale import distributed
from v05_jax.scale.settle import settle
from v05_jax.setup import Run, code_digests, own_code, setup
from v05_jax.step import learn, update
from v05_jax.structs import TrainState

MADE = ("params", "opt_state", "skipped", "replay")  # fields of the state that an update changes


def train(config, workdir: str) -> TrainState:
  """Runs `config` in `workdir`, or resumes it there, and returns the final state.

  Writes config.json, metrics.jsonl, checkpoints, summary.png, and what observers and sinks write. A
  line of the metrics with `step` n describes the state after n steps. Raises ValueError, before
  anything expensive, for bad input and where another run is in `workdir`, FloatingPointError
  after more than `config.loss.max_skipped` non-finite updates in a row, `rewards.RewardError` when
  the reward fails on all of a step or an evaluation, `plug.PlugError` where a user's plug does, and
  `checkpoint.Preempted` when a signal asked it to stop; the state is saved at these three.
  """
  config = prepared(config, workdir)
  with (
    lock.Lock(workdir) as held,
    CompilationCounter() as compilations,
    rewards.load(config) as verifier,
    checkpoint.Checkpoints(workdir, config.checkpoint.keep, held) as saved,
    Progress(config.num_steps, saved.latest() or 0, most=config.num_rollouts) as progress,
    checkpoint.Preemption() as preemption,
    Ahead() as ahead,
  ):
    first = saved.latest() or 0
    progress.stage(f"loading {config.policy.path} and {config.data.path}")
    run = setup(config, workdir, first)
    state = leaves.outline(run.init()) if first else run.init()
    run = run._replace(policy=run.policy._replace(params=None))  # priors may keep them
    stopping = lambda: preemption.requested
    collect = rollouts.make(run.policy, config, run.mesh, verifier, ahead, stopping)
    evaluate = None
    if config.eval.period:
      evaluate = evaluation.make(run.policy, config, collect, run.prompts)
    state = saved.restore(first, state, rows_of(run, evaluate)) if first else state
    if not ended(config, state):  # compiles the update while the first rollouts are sampled
      if distributed.first():
        workdirs.keep_code(workdir, own_code(config), anew=not first)
      progress.stage("compiling prefill, decode and update")
      lower = lambda: run.update.lower(run.shapes.batch(config.loss, run.mesh))
      compiled = ahead.later(lambda: lower().compile())
    with run.observers, writer.make(workdir, config, first) as log:
      kept = run, workdir, saved, log, progress, preemption, evaluate, compilations, first
      after = Housekeeping(*kept)
      after.begin(state)
      while not ended(config, state):
        # failed: updates skipped in a row so far; reading it waits for the last of them
        began, failed = time.perf_counter(), int(state.skipped)
        try:
          drawn = draw(run, collect, state)  # prompts -> prior -> rollouts
          taken = drawn.taken
          advantage, test = run.advantages(state.estimator, taken.groups, taken.value)  # fusion
          look = Step(int(state.step), state.params, drawn.draws, taken, advantage, test)
          observers, seen = run.observers.see(state.observers, look, drawn.metrics)
          learnt, found = learn(run, state, drawn)  # context, prior, budget and estimator
        except (rewards.RewardError, Interrupted, plug.PlugError) as error:
          raise after.given_up(state, error) from None
        compiled()
        updated, measured = update(run, state, taken, advantage)
        made = {name: getattr(updated, name) for name in MADE}
        state = learnt.replace(observers=observers, **made)
        after.show(state, taken, advantage)
        after.keep(state, drawn.metrics | seen | measured | found, began, failed)
  return state


def prepared(config, workdir: str):
  """Makes the workdir -> the config with nothing left open. Raises ValueError for all that can be
  wrong before anything is loaded."""
  configuration.validate(config)
  row_files.check(config.data.path)
  if config.eval.period:
    row_files.check(config.eval.path, "eval.path")
  config = settle(config, workdir)
  checkpoint.prepare(workdir, config)
  checkpoint.check_config(workdir, config)
  if distributed.first():  # the only process with sinks
    sinks.check(config)
  return config


class Housekeeping(NamedTuple):
  """What a step leaves behind: a line of metrics, evaluations, checkpoints."""

  run: Run
  workdir: str
  saved: checkpoint.Checkpoints
  log: Any  # of writer.make
  progress: Progress
  preemption: checkpoint.Preemption
  evaluate: evaluation.Evaluate | None  # None where eval.period is 0
  compilations: CompilationCounter
  first: int  # step that this process went on from

  def begin(self, state: TrainState):
    """The line before the first step; of a run that goes on, the evaluation that is due and not in
    its last line."""
    config = self.run.config
    begins = not self.first and config.eval.period
    if begins or (self.first and self.lacks_evaluation(state)):
      try:
        measured = evaluation.summarise(self.evaluate(state.params))
      except (rewards.RewardError, Interrupted) as error:
        raise self.given_up(state, error) from None
      self.log.write(0, 0, measured) if begins else self.log.complete(measured)
    elif not config.num_steps:
      logging.warning("num_steps and eval.period are 0: there is nothing to do")
    if config.num_steps or config.eval.period:
      self.log.at_end(lambda: report.summary(self.workdir))

  def evaluates(self, state: TrainState) -> bool:
    """Whether an evaluation, where there are any, follows on the step that led to `state`."""
    config = self.run.config
    return ended(config, state) or checkpoint.due(int(state.step), config.eval.period)

  def lacks_evaluation(self, state: TrainState) -> bool:
    """Whether one was due after the step that the run goes on from, and is not in its line."""
    there = any(name.startswith("eval/") for name in self.log.restored)
    due = bool(self.run.config.eval.period) and self.evaluates(state)
    return due and distributed.anywhere(distributed.first() and not there)

  def show(self, state: TrainState, taken, advantage):
    """Hands rollouts of the step that led to `state` to the sinks, now and then."""
    if self.evaluates(state):
      self.log.samples(int(state.step), samples.rows(self.run, taken, advantage))

  def keep(self, state: TrainState, measured: Pairs, began: float, failed: int):
    """Measures, logs and saves after a step that began at `began`; `failed`: updates in a row that
    were skipped before it."""
    config, done, unmeasured = self.run.config, int(state.step), None
    last = ended(config, state)
    if config.eval.period and self.evaluates(state):
      try:
        measured = measured | evaluation.summarise(self.evaluate(state.params))
      except (rewards.RewardError, Interrupted, FloatingPointError) as error:
        unmeasured = error
    measured["time/compilations"] = (self.compilations(), 1)
    seconds = time.perf_counter() - began
    measured["time/step"] = (seconds, 1)
    self.log.write(done, int(state.rollouts), measured)
    if last:  # no next step waits: the last line shows the last values
      self.log.flush()
    if done == self.first + 1:
      compiled = self.compilations.told()
      self.progress.say(f"the first step took {seconds:.1f} s; compiled: {compiled}")
    self.progress.update(done, self.log.latest | {"rollouts": int(state.rollouts)}, last=last)
    if failed > config.loss.max_skipped:
      raise FloatingPointError(diverged(config, self.workdir, failed, self.saved.latest()))
    if isinstance(unmeasured, FloatingPointError):  # of a state that is not worth saving
      raise unmeasured
    if unmeasured:
      raise self.given_up(state, unmeasured)
    stopping = agreed(self.preemption.requested, state, done)
    # While updates fail, the checkpoints before them are kept.
    if last or stopping or (not failed and checkpoint.due(done, config.checkpoint.period)):
      self.save(state)
    if stopping and not last:
      raise checkpoint.stopped(done)

  def save(self, state: TrainState):
    """Writes a checkpoint, and before it what was measured so far."""
    self.log.flush()
    self.run.observers.flush()
    self.saved.save(int(state.step), state, rows_of(self.run, self.evaluate))

  def given_up(self, state: TrainState, error: Exception) -> Exception:
    """Saves the state -> the exception that ends a run whose verdicts fail or do not come."""
    done = int(state.step)
    stopped = isinstance(error, Interrupted)
    # Of several processes one alone may have found the mistake of a plug: none can save.
    together = not (isinstance(error, plug.PlugError) and distributed.several())
    # While updates fail, the checkpoints before them are kept.
    if done and together and (stopped or not int(state.skipped)) and self.saved.latest() != done:
      self.save(state)
    kept = self.saved.latest() if together else None
    where = "nothing" if kept is None else f"the state after step {kept}"
    kind = checkpoint.Preempted if stopped else type(error)
    return kind(f"{error}; saved in {self.workdir}: {where}" if together else str(error))


def ended(config, state: TrainState) -> bool:
  """Whether the run has made all its steps, or generated all its rollouts."""
  return workdirs.spent(config, int(state.rollouts)) or int(state.step) >= config.num_steps


def rows_of(run: Run, evaluate: evaluation.Evaluate | None) -> dict[str, str]:
  """Config key -> digest of the rows or weights that it names, which must not change during a run;
  and digests of the files of the user's own rewards and plugs."""
  found = {"data.path": run.prompts.digest} | run.weights | code_digests(run.config)
  return found | ({"eval.path": evaluate.dataset.digest} if evaluate else {})


def agreed(requested: bool, state: TrainState, done: int) -> bool:
  """Whether any process was asked to stop. Raises ValueError where the processes of a run no longer
  have the same state."""
  # what each process has decided for itself; observers decide nothing
  decided = state.replace(params=None, opt_state=None, skipped=None, observers=None)
  distributed.check_same(f"the state after step {done}", lambda: jax.tree.leaves(decided))
  return distributed.anywhere(requested)


def diverged(config, workdir: str, failed: int, good: int | None) -> str:
  """The message of a run that stops because its updates keep failing."""
  kept = (
    "there is no checkpoint yet" if good is None else f"the last good checkpoint is of step {good}"
  )
  return (
    f"{failed} steps in a row had an update with a non-finite loss or gradient, which were skipped "
    f"(config.loss.max_skipped={config.loss.max_skipped}); {kept} in {workdir}. To go on from it "
    "with other settings: --mode=export it, and start in a new workdir with --config.policy.path"
  )
