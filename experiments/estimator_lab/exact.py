"""Mean squared errors, rollouts and the test by exact enumeration: every outcome, weighted by its
probability.

Everything is computed by the package's own functions, in float64 (the caller enables it). Nothing
is random.
"""

import numpy as np

from experiments.estimator_lab.population import (
  K_MAX,
  LEVELS,
  Cells,
  S,
  binomial,
  cells,
  mean,
  rmse,
)
from v05_jax import budget, shrinkage
from v05_jax.estimators.beta_shrink import Fit

COST = 1 / 256
KS = (1, 2, 4, 8, 16)


def of_means(c: Cells) -> Fit:
  """What an infinite batch would teach BetaShrink: n0 = E[1 - mu^2] / E[(V - mu)^2], and no
  offset."""
  noise = mean(c, 1 - c.mu**2)
  center = mean(c, c.mu)
  return Fit(noise / max(rmse(c) ** 2, 1e-12), 0.0, center, noise, mean(c, (c.mu - center) ** 2))


def baseline(name: str, value, s, k, prompt=(), state=()):
  """`shrinkage.baseline`; "mean" is the group mean, which RLOO has of a rollout's others."""
  return shrinkage.baseline("rloo" if name == "mean" else name, value, s, k, prompt, state)


def squared_error(c: Cells, k, estimator: str):
  """(baseline - mu)^2 at every s, [C, 17]; where s > k it means nothing."""
  b = baseline(estimator, c.value[:, None], np.minimum(S, k)[None], float(k), of_means(c))
  return np.square(np.asarray(b) - c.mu[:, None])


def mse_at(c: Cells, k, estimator="v05") -> float:
  """MSE of an estimator after k rollouts of every prompt."""
  return mean(c, np.sum(binomial(k, c.mu) * squared_error(c, k, estimator), -1))


def decisions(rule: str, value, k):
  """Further rollouts by a rule of the paper at every s, int [C, 17]; sequential: one at a time."""
  delta2 = shrinkage.fuse(2.0 * np.minimum(S, k) / k - 1.0, k, value[:, None]).delta2
  if rule == "sequential":
    return np.asarray(budget.should_continue(delta2, k, COST, K_MAX)).astype(int)
  return np.asarray(budget.final_k(delta2, k, COST, K_MAX)) - k


def osla(c: Cells, k_init=4) -> dict:
  """The sequential rule: for each prompt E[k] and the squared error [C], and where it stops (masses
  of k)."""
  # probability of reaching (k, s) undecided
  p, alive = (1 + c.mu[:, None]) / 2, binomial(k_init, c.mu)
  rollouts, loss, stops = np.zeros(len(c.mu)), np.zeros(len(c.mu)), {}
  for k in range(k_init, K_MAX + 1):
    more = decisions("sequential", c.value, k) > 0
    stopped = np.where(more, 0.0, alive)
    rollouts += k * stopped.sum(-1)
    loss += np.sum(stopped * squared_error(c, k, "v05"), -1)
    stops[k] = mean(c, stopped.sum(-1))
    alive = np.where(more, alive, 0.0)
    alive = alive * (1 - p) + np.roll(alive * p, 1, -1)
  return {"k": rollouts, "loss": loss, "stops": stops, "left": float(alive.sum())}


def two_stage(c: Cells, k_init=4) -> dict:
  """The two-stage rule: for each prompt E[k] and the squared error, [C]."""
  start, final = binomial(k_init, c.mu), k_init + decisions("two_stage", c.value, k_init)
  loss = np.zeros(len(c.mu))
  for k in range(k_init, K_MAX + 1):
    error, further = squared_error(c, k, "v05"), binomial(k - k_init, c.mu)
    for s in range(k_init + 1):
      here = np.where(final[:, s] == k, start[:, s], 0.0)
      loss += here * np.sum(further[:, : K_MAX + 1 - s] * error[:, s:], -1)
  return {"k": np.sum(start * final, -1), "loss": loss}


def row(c: Cells) -> dict:
  """One row of the acceptance table, with the names of tests/data/estimator.json."""
  sequential, two = osla(c), two_stage(c)
  assert sequential["left"] == 0
  return {
    "rmse": rmse(c),
    **{f"mean{k}": mse_at(c, k, "mean") for k in (4, 16)},
    **{f"v05_{k}": mse_at(c, k) for k in KS},
    "oslaK": mean(c, sequential["k"]),
    "oslaM": mean(c, sequential["loss"]),
    "tsK": mean(c, two["k"]),
    "tsM": mean(c, two["loss"]),
    "n0": float(of_means(c).count),
    **{f"bb{k}": mse_at(c, k, "beta_shrink") for k in (4, 16)},
  }


def uniform(c: Cells, rollouts: float) -> float:
  """V0.5's MSE at a fixed number of rollouts, the same for all prompts but for one more in a random
  share of them."""
  low = int(np.floor(rollouts))
  share = rollouts - low
  return (1 - share) * mse_at(c, low) + (share * mse_at(c, low + 1) if share else 0.0)


def spending(c: Cells) -> dict:
  """Where the sequential rule spends, and what it buys against a uniform k at its mean number of
  rollouts."""
  out = osla(c)
  k = mean(c, out["k"])
  loss = mean(c, out["loss"])
  two = two_stage(c)
  result = {"k": k, "mse": loss, "uniform_mse": uniform(c, k), "stops": out["stops"]}
  result["ratio"] = loss / result["uniform_mse"]
  result["two_stage_ratio"] = mean(c, two["loss"]) / uniform(c, mean(c, two["k"]))
  four = np.sum(binomial(4, c.mu) * squared_error(c, 4, "v05"), -1)
  # accepted at once: the prior is the baseline
  missed = (1 - rejected(4, c.mu, c.value)) * (c.value - c.mu) ** 2
  fields = {
    "k": out["k"],
    "mse": out["loss"],
    "missed": missed,
    "mse_k4": four,
    "mean_k4": (1 - c.mu**2) / 4,
  }
  for name, chosen in {"sound": ~c.wrong, "hallucinated": c.wrong}.items():
    if np.sum(c.mass[chosen]) > 0:
      result[name] = {
        field: float(np.average(x[chosen], weights=c.mass[chosen])) for field, x in fields.items()
      }
  return result


def calibration(c: Cells, k: int) -> dict:
  """The plug-in MSE delta2 / (k delta2 + 1) against the true one, over all outcomes and where the
  prior is accepted."""
  weight = c.mass[:, None] * binomial(k, c.mu)
  delta2 = shrinkage.fuse(2 * np.minimum(S, k) / k - 1, k, c.value[:, None]).delta2
  estimate, true = np.asarray(budget.mse(delta2, k)), squared_error(c, k, "v05")
  accepted = np.asarray(delta2) == 0
  average = lambda x, where=True: float(
    np.sum((weight * x), where=where) / np.sum(weight, where=where)
  )
  return {
    "estimate": average(estimate),
    "true": average(true),
    "true_over_estimate": average(true) / average(estimate),
    "accepted": float(np.sum(weight, where=accepted)),
    "true_where_accepted": average(true, accepted),
    "estimate_where_rejected": average(estimate, ~accepted),
    "true_where_rejected": average(true, ~accepted),
  }


def straying(sds, hs) -> dict:
  """Largest sqrt(k) |baseline - vbar| over all populations and outcomes, for each k."""
  found = {}
  for k in range(1, K_MAX + 1):
    vbar = 2 * np.arange(k + 1) / k - 1
    far = [
      shrinkage.fuse(vbar, k, cells(sd, h).value[:, None]).baseline - vbar for sd in sds for h in hs
    ]
    found[k] = float(max(np.max(np.abs(x)) for x in far) * np.sqrt(k))
  return found


def rejected(k: int, mu, value):
  """Probability that the test rejects the prior after k rollouts; mu, value [N] -> [N]."""
  statistic = shrinkage.fuse(2 * np.minimum(S, k) / k - 1, k, np.asarray(value)[:, None]).statistic
  return np.sum(binomial(k, mu) * (np.asarray(statistic) > 1), -1)


def test_curves(number, ks=(4, 8, 16), mus=(0.0, 0.4, 0.8, 1.0), points=81) -> dict:
  """Size and power: rejection over the bias |V - mu|, V on the other side of 0 from mu; size over
  mu; both averages."""
  share = np.array(number) / np.sum(number)
  bias = np.linspace(0, 2, points)
  result = {
    "bias": bias.tolist(),
    "mu": list(mus),
    "levels": LEVELS.tolist(),
    "power": {},
    "size": {},
  }
  result |= {"mean_size": {}, "mean_power": {}}
  sign = np.where(LEVELS >= 0, 1, -1)
  for k in ks:
    curves = {}
    for mu in mus:
      value = np.round(mu - bias, 12)  # so that a statistic of exactly 1 is one
      inside = value >= -1
      power = rejected(k, np.full(points, mu), np.clip(value, -1, 1))
      curves[str(mu)] = [float(x) if ok else None for x, ok in zip(power, inside)]
    result["power"][k] = curves
    size = rejected(k, LEVELS, LEVELS)
    result["size"][k] = size.tolist()
    result["mean_size"][k] = float(np.sum(share * size))
    wrong = {b: np.round(np.clip(LEVELS - b * sign, -1, 1), 12) for b in (0.3, 0.6, 0.9, 1.2)}
    result["mean_power"][k] = {
      b: float(np.sum(share * rejected(k, LEVELS, value))) for b, value in wrong.items()
    }
  return result


def rollouts_over_bias(mus=(0.0, 0.4, 0.8, 1.0), points=81) -> dict:
  """Expected rollouts of the two paper rules over the bias |V - mu|, V on the other side of 0 from
  mu."""
  bias = np.linspace(0, 2, points)
  result = {"bias": bias.tolist(), "sequential": {}, "two_stage": {}}
  for mu in mus:
    value = np.round(mu - bias, 12)
    inside = value >= -1
    c = Cells(
      np.full(points, mu),
      np.clip(value, -1, 1),
      np.full(points, 1 / points),
      np.zeros(points, bool),
    )
    for name, rule in {"sequential": osla, "two_stage": two_stage}.items():
      result[name][str(mu)] = [float(k) if ok else None for k, ok in zip(rule(c)["k"], inside)]
  return result


def break_even(h: float, number, k=4, against=4, sds=np.arange(0.0, 1.0001, 0.02)) -> dict:
  """Prior RMSE up to which V0.5 at k is better than the mean of `against` rollouts (linear between
  points)."""
  populations = [cells(sd, h, number) for sd in sds]
  x = np.array([rmse(c) for c in populations])
  gap = np.array([mse_at(c, k) - mse_at(c, against, "mean") for c in populations])
  worse = np.flatnonzero(gap > 0)
  if not len(worse) or worse[0] == 0:
    return {"rmse": None, "always": not len(worse), "never": bool(len(worse))}
  i = worse[0]
  return {
    "rmse": float(np.interp(0, gap[i - 1 : i + 1], x[i - 1 : i + 1])),
    "always": False,
    "never": False,
  }
