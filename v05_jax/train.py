"""The one training loop: prompts -> prior -> rollouts -> test and fusion -> advantage -> update -> context."""

from v05_jax import checkpoint
from v05_jax import evaluate as evaluation
from v05_jax import metrics
from v05_jax import report
from v05_jax import rewards
from v05_jax import rollouts
from v05_jax.step import learn, sample, setup
from v05_jax.structs import TrainState


def train(config, workdir: str) -> TrainState:
  """Runs `config` in `workdir`, or resumes it there, and returns the final state.

  Writes config.json, metrics.jsonl, TensorBoard events, checkpoints and summary.png. A line of the metrics
  with `step` n describes the state after n steps. Raises ValueError for bad input before anything expensive
  and FloatingPointError after more than `config.loss.max_skipped` non-finite updates in a row.
  """
  run = setup(config)
  checkpoint.check_config(workdir, config)
  with (
    rewards.load(config) as verifier,
    checkpoint.Checkpoints(workdir, config.checkpoint.keep) as saved,
    checkpoint.Preemption() as preemption,
  ):
    collect = rollouts.make(run.policy.config, run.policy.tokenizer, config, run.mesh, verifier)
    evaluate = evaluation.make(run.policy, config, run.mesh, collect)
    state = run.init()
    if (latest := saved.latest()) is not None:
      state = saved.restore(latest, state)
    first = int(state.step)
    with metrics.Writer(workdir, config, first) as log, metrics.Progress(config.num_steps, first) as progress:
      if first == 0 and config.eval.period:
        log.write(0, 0, evaluation.summarise(evaluate(state.params)))
      for step in range(first, config.num_steps):
        draw = sample(run, collect, state, step)
        failed = int(state.skipped)  # of the previous update, which ran until now
        state, measured = learn(run, state, draw)
        done, last = step + 1, step + 1 == config.num_steps
        if config.eval.period and (last or done % config.eval.period == 0):
          measured |= evaluation.summarise(evaluate(state.params))
        log.write(done, int(state.rollouts), measured)
        progress.update(done, log.latest)
        stop = preemption.requested or failed > config.loss.max_skipped
        if stop or last or done % config.checkpoint.period == 0:
          log.flush()
          saved.save(done, state)
        if failed > config.loss.max_skipped:
          raise FloatingPointError(
            f"{failed} updates in a row had a non-finite loss or gradient and were skipped "
            f"(config.loss.max_skipped={config.loss.max_skipped}); the parameters before them are in "
            f"{workdir} at step {done}"
          )
        if preemption.requested and not last:
          raise checkpoint.Preempted(f"stopped by a signal; saved at step {done}: the same command continues")
  report.summary(workdir)
  return state
