"""What governs the noise of the policy gradient, from the sampler's log-probs: no further pass.

The second moment of a gradient (r - b) g is E[w (r - b)^2], w = |g|^2; `groups.score` stands for w.
The scoreboard assesses a baseline by its error, which is the gradient's noise only where w and
reward are independent; here it is assessed by w (r - b)^2 itself. What `--mode=noise` measures
exactly, by one backward pass a rollout, this follows through a run.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import plug
from v05_jax.observers import scoreboard
from v05_jax.observers.base import Observer, Step, pair
from v05_jax.run.metrics import Pairs
from v05_jax.structs import together
from v05_jax.update import losses

OUTCOMES = "failure", "success"  # names of the mean score of either, which rho is made of
ASSESSED = (*scoreboard.ASSESSED, "score", "score_loo", "v05_score")


class Moments(NamedTuple):
  """Sums over prompts, x the second moment by each estimator and y that by the run's own."""

  count: jax.Array  # []
  moment: jax.Array  # [E]  x
  square: jax.Array  # [E]  x^2
  product: jax.Array  # [E]  x y


class Kept(NamedTuple):
  """What the observer keeps."""

  learnt: dict[str, Any]  # what each estimator has learnt, by its label
  moments: Moments


@plug.declare("observer", estimators=scoreboard.option(ASSESSED))
def noise(options, setting):
  """Of the rollouts whose number no outcome has chosen; the sample size is that of the update."""
  assessed = scoreboard.assessment(options.estimators, setting, lambda groups: groups.score)
  labels, own, config = assessed.labels, assessed.own, setting.config
  selected = config.selection.pool > 1 and config.selection.weighted
  draws = 1 + config.budget.max_resample

  def see(state: Kept, step: Step):
    seen = together(step.drawn, draws)
    learnt, each = assessed.assess(state.learnt, seen)
    state = Kept(learnt, update(state.moments, each, own))
    found: Pairs = {"noise/second_moment": pair(each[own])} | of_scores(seen.groups.unconditional)
    if selected:  # then a step draws once
      found["noise/selection"] = of_selection(np.asarray(each[own]), step.taken.importance)
    size = sample_size(shares(step.taken, step.advantage, config.loss))
    found |= {"noise/rho": rho(found), "noise/effective_sample_size": (size, 1)}
    found = {name: x for name, x in found.items() if name not in OUTCOMES}
    return state, found | standings(state.moments, labels, own)

  return Observer(see, lambda: Kept(assessed.init(), empty(len(labels))))


def of_scores(groups) -> Pairs:
  """The w-weighted mean reward, and the mean score of failures and of successes."""
  r, w = groups.reward[groups.mask].astype(np.float64), groups.score[groups.mask]
  of = lambda weight: (float(np.sum(weight * w)), float(np.sum(weight)))
  means = dict(zip(OUTCOMES, (of((1 - r) / 2), of((1 + r) / 2))))
  return means | {"noise/w_reward": (float(np.sum(w * r)), float(np.sum(w)))}


def of_selection(moment, importance) -> tuple[float, float]:
  """The second moment of the weighted gradient over that of prompts drawn alike, as a pair.

  moment [P]: w A^2 of each prompt taken, NaN where unknown; importance [P]: 1 / its chance, scaled.
  Weighted by their importance the prompts taken stand for all of the pool: sum of importance *
  moment. In the second moment of the gradient the same weights come in squared.
  """
  moment = np.where(np.isfinite(moment), moment, 0.0).astype(np.float64)
  return float(np.sum(importance**2 * moment)), float(np.sum(importance * moment))


def rho(found: Pairs) -> tuple[float, float]:
  """The ratio of both mean scores as a pair; (0, 0) where one of them is not known or 0."""
  (failed, failures), (succeeded, successes) = (found[name] for name in OUTCOMES)
  if not (failures and successes and succeeded):
    return 0.0, 0.0
  return failed / failures * successes / succeeded, 1.0


def empty(count: int) -> Moments:
  """Nothing seen yet of so many estimators."""
  return Moments(np.zeros((), np.float32), *np.zeros((3, count), np.float32))


@jax.jit
def update(sums: Moments, moments, own: int) -> Moments:
  """Adds the prompts of a step; moments [E, P], NaN where a prompt says nothing of an estimator."""
  known = jnp.all(jnp.isfinite(moments), axis=0)
  x = jnp.where(known, moments, 0.0)
  new = jnp.sum(known), *(jnp.sum(y, axis=1) for y in (x, x**2, x * x[own]))
  return Moments(*(a + b for a, b in zip(sums, new)))


def ratios(sums: Moments, own: int) -> tuple[np.ndarray, np.ndarray]:
  """Each one's second moment over the own one [E], and the standard error [E] by the delta method;
  NaN before there are two prompts, or where the own one is 0."""
  count, x, square, product = (np.asarray(field, np.float64) for field in sums)
  if count < 2 or not x[own] > 0:
    return np.full((2, len(x)), np.nan)
  ratio = x / x[own]
  spread = np.maximum(square - 2 * ratio * product + ratio**2 * square[own], 0.0)
  return ratio, np.sqrt(spread * count / (count - 1)) / x[own]


def standings(sums: Moments, labels: list[str], own: int) -> Pairs:
  """`ratios` as metrics, the own one left out."""
  found = {}
  for i, (ratio, error) in enumerate(zip(*ratios(sums, own))):
    if i != own:
      found[f"noise/{labels[i]}/ratio"] = (ratio, 1)
      found[f"noise/{labels[i]}/standard_error"] = (error, 1)
  return found


def shares(draw, advantage, loss) -> np.ndarray:
  """The length of each rollout's part in the update's gradient, [P, K]: its weight in the loss
  times |A| sqrt(w)."""
  most = draw.rolls.tokens.shape[1]
  weight = losses.rollout_weights(loss.aggregate, draw.rolls.length, draw.groups.mask, most)
  return weight * draw.importance[:, None] * np.abs(advantage) * np.sqrt(draw.groups.score)


def sample_size(shares) -> float:
  """Kish's effective sample size, (sum c)^2 / sum c^2; 0 where all are 0."""
  square = float(np.sum(np.square(shares, dtype=np.float64)))
  return float(np.sum(shares, dtype=np.float64)) ** 2 / square if square else 0.0
