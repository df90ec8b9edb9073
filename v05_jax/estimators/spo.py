"""SPO (arXiv 2509.13232): a discounted Beta count of each prompt's own past as its baseline."""

import functools

import jax.numpy as jnp

from v05_jax import history as histories
from v05_jax import plug
from v05_jax.estimators.base import from_counts, standardised
from v05_jax.shrinkage import clean


def tracked(value, s, k, history):
  """A per-prompt Beta tracker (SPO, arXiv 2509.13232), elementwise: the posterior mean, mapped to
  [-1, 1].

  `history`: (successes, rollouts), discounted, of the prompt's earlier visits
  (`history.py`). The Beta prior behind it is worth one rollout, of value V or, without
  one, 0, for good; SPO samples eight to start with, which fade as the others do.
  """
  successes, rollouts = history
  _, prior = clean(jnp.asarray(value))
  return (prior + 2.0 * (successes + s) - (rollouts + k)) / (1.0 + rollouts + k)


def _check(config):
  if "history" in config.prior.wrappers:
    yield "prior.wrappers", "no history, since the baseline spo counts the history itself"


@plug.declare("estimator", check=_check, half_life=plug.Option(*histories.HALF_LIFE))
def spo(options, setting):
  """The tracker of the k - 1 other rollouts and all earlier visits."""
  half_life = options.half_life

  def past(state, groups, value):
    return histories.read(state, groups.row, groups.step, half_life)

  def learn(state, groups, value):
    seen = groups.unconditional
    return histories.remember(state, seen, value, half_life)

  estimator = from_counts(
    lambda state, past, value, s, k: tracked(value, s, k, past),
    prompt=past,
    learn=learn,
    scale=standardised,
    of_batch=True,
    counts_history=True,
    init=functools.partial(histories.empty, setting.rows),
    expect=lambda state, row, step, value: tracked(
      value, 0.0, 0.0, histories.read(state, row, step, half_life)
    ),
  )

  def explain(state, groups, value):
    successes, rollouts = past(state, groups, value)
    found = {"past successes": successes, "past rollouts": rollouts}
    return estimator.explain(state, groups, value) | found

  return estimator._replace(explain=explain)
