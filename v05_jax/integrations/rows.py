"""Rows in any order, as other trainers have them, to prompts with their rollouts and back.

What an estimator and a budget say of rows is what they say of the same groups in this package: both
call `shrinkage.advantage` and `budget.extra`.
"""

from collections.abc import Sequence

import numpy as np

from v05_jax import budget, plug, shrinkage
from v05_jax.estimators import base as estimators
from v05_jax.groups import map_reward, outcomes

# Estimators that look at more than rewards and V: at earlier visits of a prompt, or at lengths and
# log-probs of responses.
WANTING = ("spo", "dbb", "kae", "score", "score_loo", "v05_score", "opo", "poise")


class Groups:
  """The rows of a step by prompt: `index` is any value that those of a prompt share. Prompts stand
  in the order in which they come, rollouts in that of their rows."""

  def __init__(self, index: Sequence):
    names, first, inverse = np.unique(np.asarray(index), return_index=True, return_inverse=True)
    rank = np.empty(len(names), int)
    rank[np.argsort(first)] = np.arange(len(names))
    self.first = np.sort(first)  # [P] the first row of each prompt
    self.prompt = rank[inverse.reshape(-1)]  # [N] of each row
    self.size = np.bincount(self.prompt, minlength=len(names))  # [P]
    order = np.argsort(self.prompt, kind="stable")
    self.place = np.empty(len(order), int)  # [N] number of the row within its prompt
    self.place[order] = np.arange(len(order)) - np.repeat(
      np.cumsum(self.size) - self.size, self.size
    )

  def dense(self, rows, fill) -> np.ndarray:
    """[N] -> [P, K], `fill` where a prompt has fewer than K rows."""
    rows = np.asarray(rows)
    found = np.full((len(self.size), self.size.max()), fill, rows.dtype)
    found[self.prompt, self.place] = rows
    return found

  def flat(self, dense) -> np.ndarray:
    """[P, K] -> [N]."""
    return np.asarray(dense)[self.prompt, self.place]


class Advantages:
  """An estimator of the package for another trainer's rows, with what it has learnt (`state`, a
  tree of arrays: save it with the checkpoint).

  Args:
    kind: a name that `config.baseline` may have, but for those of `WANTING`.
    low, high: the rewards of failure and success; mapped to [-1, 1] and clipped.
    first: the fewest rollouts that a prompt has before `more` is asked. It learns from these rows
      of a prompt alone, which are to come before its others: whose number outcomes chose, they are
      biased. None = no outcome chooses, and it learns from all.

  Raises ValueError for an unknown kind and for a range that is none.
  """

  def __init__(
    self, kind: str = "ewa", low: float = 0.0, high: float = 1.0, first: int | None = None
  ):
    plug.find("estimator", kind)
    if ":" in kind or kind in WANTING:
      known = [name for name in plug.known("estimator") if name not in WANTING]
      why = ": it wants more than a step's rewards and V" if kind in WANTING else ""
      raise ValueError(f"estimator: found {kind!r}{why}, expected one of {', '.join(known)}")
    map_reward(np.zeros(1), low, high)
    if first is not None and first < 1:
      raise ValueError(f"first: found {first}, expected at least 1, or None")
    self.kind, self._range, self._first = kind, (low, high), first
    self.state = estimators.initial(kind)

  def __call__(self, reward, index, prior=None) -> np.ndarray:
    """Advantages, float32 [N], in units of rewards mapped to [-1, 1]; then learns from the rows.

    Args:
      reward: [N] in the verifier's units; NaN where it failed: the row's advantage is 0.
      index: [N] what the rows of a prompt share.
      prior: [N] success probability that was predicted for the row's prompt, NaN = none; the first
        row of a prompt counts. None: no prior.
    """
    groups = Groups(index)
    mapped = map_reward(np.asarray(reward, np.float32), *self._range)
    dense = groups.dense(mapped, np.float32(np.nan))
    value = self._value(groups, prior)
    mask = np.isfinite(dense)
    found, _ = shrinkage.advantage(self.kind, dense, mask, value, state=self.state)
    seen = mask & (np.arange(mask.shape[1]) < (self._first or mask.shape[1]))
    self.state = estimators.learnt(self.kind, self.state, dense, seen, value)
    return groups.flat(found)

  def more(self, rule: str, reward, index, prior=None, **options) -> np.ndarray:
    """Further rollouts for each prompt, int32 [P], in the order in which prompts come, by a budget
    rule (`budget.extra`: total, k_max and the rule's own options); ask before the rows are learnt
    from. "neyman" goes by what "ewa" has learnt, with another `kind` by what it knows at first."""
    groups = Groups(index)
    dense = groups.dense(
      map_reward(np.asarray(reward, np.float32), *self._range), np.float32(np.nan)
    )
    mask = np.isfinite(dense)
    k, s, _ = outcomes(np.where(mask, dense, np.float32(0)), mask)
    state = self.state if rule == "neyman" and self.kind == "ewa" else None
    if rule == "neyman" and state is None:
      state = shrinkage.ewa_init()
    value = self._value(groups, prior)
    return budget.extra(rule, state, value, s, k, np.ones(len(k), bool), **options)

  def _value(self, groups: Groups, prior) -> np.ndarray:
    """[P] V, in units of mapped rewards."""
    if prior is None:
      return np.full(len(groups.size), np.nan, np.float32)
    return 2 * np.asarray(prior, np.float32)[groups.first] - 1


def first_rollouts(prior, total: int, k_min: int = 1, k_max: int = 16) -> np.ndarray:
  """int32 [P]: `total` rollouts divided before any is sampled, by where success is least certain
  (the budget `value`); prior [P] is the predicted success probability, NaN = none."""
  value = 2 * np.asarray(prior, np.float32) - 1
  least = np.full(len(value), k_min)
  more = budget.extra(
    "value", None, value, least / 2, least, np.ones(len(value), bool), total=total, k_max=k_max
  )
  return (least + more).astype(np.int32)
