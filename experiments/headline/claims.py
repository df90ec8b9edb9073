"""The comparisons that the text makes, and what is left of them after a correction for their
number."""

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.methods import METHODS, REGIMES
from v05_jax.run.comparison import interval

LEVEL = 0.05
RECIPE = "recipe"  # stands for the recipe of rates.json
RIVALS = ("basis_k1", "dbb_k4", "ebpo_k4", "kae_k1", "opo_k4", "poise_k2", "sao_k1")
# (method, minus this one); a method that a regime lacks is left out there.
PAIRS = (
  # The paper's claim, and what it may be due to.
  ("v05_osla", "grpo16"),
  ("v05_osla", "v05"),
  ("v05", "grpo16"),
  ("v05", "dapo16"),
  ("v05", "grpo4"),
  ("v05", "rloo4"),
  ("v05", "shrink4"),
  # Fewer rollouts.
  ("v05_k2", "v05"),
  ("v05_k1", "v05_k2"),
  # Whether it is the prior: with 4 rollouts, and with one.
  ("v05", "v05_constant"),
  ("v05_oracle", "v05"),
  ("v05_flip50", "v05"),
  ("v05_k1", "v05_k1_constant"),
  ("v05_k1_oracle", "v05_k1"),
  ("v05_k1_flip50", "v05_k1"),
  ("probe_k1", "v05_k1_constant"),
  ("probe_k1", "v05_k1"),
  ("probe_k4", "v05"),
  # Baselines for any rho: the one that one can leave on.
  ("v05_score_k1", "v05_k1"),
  ("v05_score_k2", "v05_k2"),
  ("v05_score_k4", "v05"),
  ("v05_score_k1", "score_k1"),
  ("v05_score_k2", "score_k2"),
  ("v05_score_k4", "score_k4"),
  ("v05_score_k4", "score_loo_k4"),
  # The recipe.
  (RECIPE, "grpo16"),
  (RECIPE, "grpo16 tuned"),
  (RECIPE, "rloo4 tuned"),
  (RECIPE, "spo"),
  (RECIPE, "spo_twice"),
  *((RECIPE, rival) for rival in RIVALS),
  (RECIPE, "v05_osla"),
  (RECIPE, "v05_plus"),
  ("v05_score_k1_twice", "v05_score_constant"),
)


def resolved(name: str, runs: dict[str, list[dict]], recipe: str) -> str:
  """The method that a name of PAIRS stands for, where "X tuned" is the best variant of X."""
  if name == RECIPE:
    return recipe
  own = name.removesuffix(" tuned")
  if own == name:
    return name
  return next((x for x in runs if METHODS[x].variant_of == own), own)


def paired(runs, other, name: str) -> tuple[float, float]:
  """(mean, half of the 95 % interval) of runs' `name` minus that of others with the same seeds."""
  return interval(differences(runs, other, name))[:2]


def differences(runs, other, name: str) -> list[float]:
  """Runs' `name` minus that of others, seed by seed."""
  theirs = {run["seed"]: run[name] for run in other}
  return [run[name] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]


def p_value(x) -> float:
  """Of Student's paired test, two-sided, that the mean of the differences [n] is 0; NaN for n < 2
  and 1 where all are 0."""
  from scipy.stats import ttest_1samp

  x = np.asarray(x, float)
  if len(x) < 2:
    return float("nan")
  return float(ttest_1samp(x, 0.0).pvalue) if np.any(x) else 1.0


def holm(p: list[float]) -> list[float]:
  """p-values adjusted by Holm's step-down rule: of the i-th smallest of n, counted from 0, the
  largest (n - j) p_j of all j <= i, at most 1. NaN stay, and are not counted (Holm, 1979)."""
  order = [i for i in np.argsort(p) if np.isfinite(p[i])]
  found, largest = list(p), 0.0
  for place, i in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - place) * p[i]))
    found[i] = largest
  return found


def claims_table(by_regime: dict[str, dict[str, list[dict]]], recipe: str) -> str:
  """PAIRS in every regime, with paired intervals, and p of the difference in area after Holm's
  correction over all rows."""
  rows, p = [], []
  for regime, runs in by_regime.items():
    seen = set()
    for pair in PAIRS:
      name, other = (resolved(x, runs, recipe) for x in pair)
      if name in runs and other in runs and name != other and (name, other) not in seen:
        seen.add((name, other))
        own, theirs = runs[name], runs[other]
        cell = lambda key, own=own, theirs=theirs: "{:+.4f} ± {:.4f}".format(
          *paired(own, theirs, key)
        )
        titles = [REGIMES[regime].title, METHODS[name].title, METHODS[other].title]
        rows.append([*titles, cell("area"), cell("end"), cell("pass@64")])
        p.append(p_value(differences(own, theirs, "area")))
  for row, raw, adjusted in zip(rows, p, holm(p), strict=True):
    verdict = "yes" if adjusted < LEVEL else "no"
    row += [f"{raw:.4f}", f"{adjusted:.3f}", verdict]
  head = ["regime", "method", "minus", "area", "end", "pass@64", "p, area", "Holm", "differs"]
  return table(head, rows)
