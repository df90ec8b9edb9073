"""From advantages to the next state: the update of the policy, and what is learnt from the
rollouts."""

import time

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.run.metrics import Pairs, merge
from v05_jax.sampling.draw import Drawn
from v05_jax.scale import distributed
from v05_jax.setup import Run
from v05_jax.structs import Draw, TrainState, together
from v05_jax.update import packing, replay

FEW = 16  # rollouts
MEAN_K_DECAY = 0.8  # of the running mean of rollouts per prompt


def update(run: Run, state: TrainState, taken: Draw, advantage) -> tuple[TrainState, Pairs]:
  """Updates the policy by a draw's advantages [P, K]; `state.params` and `opt_state` are
  donated."""
  began, config = time.perf_counter(), run.config
  params, opt_state = state.params, state.opt_state
  advantage, kept, found = np.asarray(advantage), state.replay, {}
  check_finite(config, taken, advantage)
  if config.loss.replay:
    taken, advantage, kept, found = replay.extend(config, state, taken, advantage)
  check_signal(config, taken, advantage)
  minibatches = packing.minibatches(
    taken.prompts, taken.rolls, advantage, config.loss, run.mesh, taken.importance
  )
  if config.loss.old_logprob == "recompute" and minibatches:
    sampled = minibatches
    minibatches, found["loss/logprob_gap"] = run.update.recompute(params, sampled)
    if config.loss.correction != "none":
      minibatches, found["loss/correction_fraction"] = run.update.correct(minibatches, sampled)
  for batch, used in minibatches * config.loss.epochs:
    params, opt_state, one = run.update.step(params, opt_state, batch, used, run.reference)
    # The sampler's log-probs are of the parameters before the step's first update: only there is it
    # a gap.
    gap = found.get("loss/logprob_gap", one.get("loss/logprob_gap"))
    found = merge(found, one) | {"loss/logprob_gap": gap}
  skipped = in_a_row(state.skipped, found["grad/skipped"][0]) if minibatches else state.skipped
  found["time/update"] = (time.perf_counter() - began, 1)
  return state.replace(params=params, opt_state=opt_state, skipped=skipped, replay=kept), found


def check_finite(config, taken: Draw, advantage):
  """Warns once where an advantage is not finite: it skips the update."""
  wrong, mute = ~np.isfinite(advantage) & taken.groups.mask, ~np.isfinite(np.asarray(taken.value))
  if wrong.any():
    logging.log_first_n(
      logging.WARNING,
      "baseline=%s: %d of %d advantages are not finite, and the update is skipped; the prior does "
      "not speak, V is NaN, for %d of %d prompts (said once; the metric grad/skipped counts them)",
      1,
      *(config.baseline, wrong.sum(), taken.groups.mask.sum()),
      *(mute[taken.prompts.mask].sum(), taken.prompts.mask.sum()),
    )


def check_signal(config, taken: Draw, advantage):
  """Warns once where the rewards of a step of some rollouts say nothing."""
  of = np.asarray(taken.rolls.mask)
  small = 0 < of.sum() < FEW  # all alike in the ordinary course of things
  if not small and distributed.first() and not (np.nan_to_num(advantage, nan=1.0) * of).any():
    logging.log_first_n(
      logging.WARNING,
      "baseline=%s: no advantage of step %d differs from 0, of %d rollouts of %d prompts that are "
      "left: its rewards teach nothing. Are the problems too easy, or too hard, for this policy? "
      "(said once; advantage/zero_share goes on saying how much of a step teaches nothing)",
      1,
      *(config.baseline, int(taken.prompts.step) + 1, of.sum(), taken.prompts.mask.sum()),
    )


def learn(run: Run, state: TrainState, drawn: Drawn) -> tuple[TrainState, Pairs]:
  """Takes a step's rollouts into the prior's context, and into what budget and estimator know; they
  had no part in the step's own decisions -> (the state after the step, metrics)."""
  asked, groups, value = together(drawn.draws, 1 + run.config.budget.max_resample)
  prior, found = run.prior.learn(state.prior, asked, groups)
  budget = run.budget.learn(state.budget, groups, value)
  estimator = run.estimator.learn(state.estimator, groups, value)
  mean_k, prompts = state.mean_k, int(drawn.taken.prompts.mask.sum())
  if run.budget.limits.mean is None and prompts:
    share = (1 - MEAN_K_DECAY) * drawn.generated / prompts
    mean_k = np.float32(MEAN_K_DECAY * mean_k + share)
  return state.replace(
    prior=prior,
    budget=budget,
    estimator=estimator,
    mean_k=mean_k,
    step=state.step + np.int32(1),
    cursor=np.int32(drawn.cursor),
    rollouts=state.rollouts + np.int32(drawn.generated),
  ), found


@jax.jit
def in_a_row(before, skipped):
  """Steps in a row with a skipped update, an int32 that stays on the device; `skipped`: updates of
  this step."""
  return jnp.where(skipped > 0, before + 1, 0)
