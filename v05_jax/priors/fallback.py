"""Replaces a prior by the context's mean for as long as that is the better predictor."""

from typing import NamedTuple

from absl import logging
import numpy as np

from v05_jax import plug
from v05_jax.priors import context as contexts
from v05_jax.priors.base import Layer
from v05_jax.structs import Context


class Fallback(NamedTuple):
  """What the wrapper keeps."""

  record: Context  # the last pairs of V and outcome
  drift: "Drift"


@plug.declare(
  "wrapper",
  patience=plug.Option(
    8,
    "steps in a row that V must be worse than the context's mean before that takes its place, and "
    "better before it returns; 0 = never",
    lambda x: x >= 0,
    "at least 0",
  ),
)
def fallback(options, setting):
  """V, or the mean of the last `prior.context` outcomes."""
  size, least = setting.config.prior.context, setting.config.prior.min_support

  def ask(state, prompts, value, asked):
    count = len(value)
    mean = np.full(count, np.asarray(contexts.mean_value(state.record, least)))
    # A smoothed success rate instead of V says nothing about the prior.
    assessed = not any(np.any(part.get("smoothed", False)) for part in asked.values())
    own = contexts.remembered(state.record, np.zeros((count, 0)), value)
    own |= {"mean": mean, "assessed": np.full(count, assessed)}
    own |= {"fallen": np.full(count, bool(state.drift.fallen))}
    return (mean if state.drift.fallen else value), own

  def learn(state, asked, groups):
    seen = groups.unconditional
    both = (np.asarray(seen.k) > 0) & np.isfinite(asked["value"]) & np.isfinite(asked["mean"])
    errors = [np.square(asked[name] - seen.vbar)[both].astype(float) for name in ("value", "mean")]
    (own, mean), count = (float(x.sum()) for x in errors), float(both.sum())
    drift = state.drift
    if count and asked["assessed"][both].all():
      drift = update(drift, own < mean if drift.fallen else own > mean, options.patience)
    if drift.fallen != state.drift.fallen:
      _report(int(groups.step) + 1, bool(drift.fallen), options.patience, own / count, mean / count)
    metrics = {"prior/mse": (own, count), "prior/constant_mse": (mean, count)}
    metrics["prior/fallback"] = (float(state.drift.fallen), 1)
    return Fallback(contexts.learn(state.record, asked, groups)[0], drift), metrics

  def variance(asked, inner):
    return np.where(asked["fallen"], np.nan, inner)

  first = lambda: Fallback(contexts.empty(size), init())
  return Layer(ask, first, learn, corrects=True, variance=variance)


def _report(step: int, fallen: bool, patience: int, own: float, mean: float):
  left, used = (
    ("the prior", "the context's mean") if fallen else ("the context's mean", "the prior")
  )
  logging.warning(
    "step %d: %s was worse than %s for %d steps in a row (mean squared error of the prior %.4f, of "
    "the context's mean %.4f); from now on %s is used",
    step,
    left,
    used,
    patience,
    own,
    mean,
    used,
  )


class Drift(NamedTuple):
  """Which prior is in use, V or the context's mean, and for how long the other has been the better
  one; on host."""

  streak: np.ndarray  # int32 []  consecutive steps in which the prior not in use was the better one
  fallen: np.ndarray  # bool []   the context's mean is in use


def init() -> Drift:
  """V is in use and has not been the worse one."""
  return Drift(np.zeros((), np.int32), np.zeros((), bool))


def update(drift: Drift, worse: bool, patience: int) -> Drift:
  """The state after a step: once the prior in use was worse in `patience` steps in a row, the other
  takes its place.

  Args:
    drift: before.
    worse: the prior in use had the larger squared error on the step's prompts: V where not
      `drift.fallen`, else the context's mean.
    patience: steps, the same in both directions; 0 = never.
  """
  streak = (int(drift.streak) + 1) * bool(worse)
  turn = 0 < patience <= streak
  return Drift(np.array(0 if turn else streak, np.int32), np.array(bool(drift.fallen) != turn))
