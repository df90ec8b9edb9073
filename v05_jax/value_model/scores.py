"""How good a value prior is: ranking, calibration and error of its probabilities, on host; pure.

`p` [n] are predicted probabilities of success, `t` [n] mean success in [0, 1] (fractional, from
several rollouts); a prompt counts as positive from t = .5 on. A measure that needs both classes is
NaN where there is one. Source: the specification of V0 (arXiv 2602.03584), section 9.
"""

import numpy as np


def auc(p, positive) -> float:
  """Probability that a positive prompt is ranked above a negative one, ties counting one half."""
  p, positive = np.asarray(p, np.float64), np.asarray(positive, bool)
  pairs = int(positive.sum()) * int((~positive).sum())
  if not pairs:
    return float("nan")
  _, place, count = np.unique(p, return_inverse=True, return_counts=True)
  rank = (np.cumsum(count) - (count - 1) / 2)[place]  # of tied values their mean, from 1
  least = positive.sum() * (positive.sum() + 1) / 2
  return float((rank[positive].sum() - least) / pairs)


def grouped_auc(p, positive, group) -> float:
  """Intra-context AUC: of each group by itself, weighted by its size; groups of one class are left
  out.

  `group`: n hashable keys. A context is (dataset, policy, step): the released code groups by the
  step alone, which merges policies.
  """
  p, positive, total, weight = np.asarray(p), np.asarray(positive, bool), 0.0, 0
  keys = list(group)
  for key in dict.fromkeys(keys):
    inside = np.array([k == key for k in keys])
    value = auc(p[inside], positive[inside])
    if np.isfinite(value):
      total, weight = total + value * inside.sum(), weight + int(inside.sum())
  return total / weight if weight else float("nan")


def pair_accuracy(p, positive, pair) -> tuple[float, float, int]:
  """(strict, ranking, number) over pair ids with just one positive and one negative row; None = in
  no pair.

  Strict: the positive row is above .5 and the negative is not. Ranking: it is above the negative;
  ties are wrong.
  """
  rows: dict = {}
  for i, key in enumerate(pair):
    if key is not None:
      rows.setdefault(key, []).append(i)
  strict, ranked, number = 0, 0, 0
  for members in rows.values():
    won, lost = ([i for i in members if bool(positive[i]) is wanted] for wanted in (True, False))
    if len(won) == len(lost) == 1:
      a, b = p[won[0]], p[lost[0]]
      number, strict, ranked = number + 1, strict + int(a > 0.5 >= b), ranked + int(a > b)
  return (strict / number, ranked / number, number) if number else (float("nan"), float("nan"), 0)


def reliability(p, t, bins: int = 10) -> np.ndarray:
  """[bins, 3]: share of the prompts, mean p and mean t of those with p in each tenth of [0, 1]; NaN
  where none is."""
  p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
  place = np.minimum((p * bins).astype(int), bins - 1)
  rows = [place == i for i in range(bins)]
  mean = lambda x, inside: x[inside].mean() if inside.any() else np.nan
  return np.array([[inside.mean(), mean(p, inside), mean(t, inside)] for inside in rows])


def ece(p, t, bins: int = 10) -> float:
  """Expected calibration error: mean |mean p - mean t| over the bins of `reliability`, weighted by
  their share."""
  share, predicted, seen = reliability(p, t, bins).T
  return float(np.nansum(share * np.abs(predicted - seen)))


def rmse(p, t) -> float:
  """Root mean squared error of V = 2 p - 1 against the mean reward 2 t - 1, in value units; the
  noise of t included."""
  return float(2.0 * np.sqrt(np.mean((np.asarray(p, np.float64) - np.asarray(t, np.float64)) ** 2)))
