"""What results.json keeps of a run."""

import math

import numpy as np

from experiments.headline.methods import MARKS

PASSES = (1, 4, 16, 64)  # k of the pass@k that a curve has, after rollouts and success


def area(curve) -> float:
  """Mean height of a curve of (rollouts, success, ...)."""
  x, y = np.array(curve, float)[:, :2].T
  return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def cut(curve, total: int) -> list[list[float]]:
  """A curve whose last point is at `total` rollouts: some methods end a step's last rollouts behind
  it."""
  x, *values = np.array(curve, float).T
  return [*map(list, curve[:-1]), [total, *(float(np.interp(total, x, y)) for y in values)]]


def end(curve) -> dict[str, float]:
  """{"end": success, "pass@k": of each of PASSES} at the last point of a curve."""
  _, success, *passes = curve[-1]
  return {"end": success, **{f"pass@{k}": x for k, x in zip(PASSES, passes, strict=True)}}


def summary(result: dict, total: int) -> dict:
  """A run's numbers, the interface of results.json.

  "curve": (rollouts, success, pass@64), cut where the run's rollouts should end, `total`; "area"
  of success; "end" and "pass@k" at its last point; means over the steps of the metrics behind the
  other names, "..._parts" in MARKS parts of the steps; "k": prompts by their number of rollouts;
  "seconds": of the steps, on a shared machine.
  """
  curve = cut(result["curve"], total)
  steps = {name: np.array(x, float) for name, x in result["steps"].items()}
  mean = lambda name: _number(_mean(steps[name]))
  parts = lambda name: [_number(_mean(x)) for x in np.array_split(steps[name], MARKS)]
  return {
    "curve": [[x, round(y, 5), round(passes[-1], 5)] for x, y, *passes in curve],
    "area": _number(area(curve)),
    **{name: _number(x) for name, x in end(curve).items()},
    "grad_norm": mean("grad/norm"),
    "grad_norm_parts": parts("grad/norm"),
    "entropy_parts": parts("loss/entropy"),
    "rho_parts": parts("noise/rho"),
    "baseline_mse": mean("shrinkage/true_mse"),
    "group_mse": mean("shrinkage/true_mse_mean"),
    "prior_mse": mean("prior/true_mse"),
    "accepted": mean("prior/accepted"),
    "zero_share": mean("advantage/zero_share"),
    "clipped": mean("loss/clip_fraction"),
    "prompts": int(np.nansum(steps["prompts"])),
    "steps": len(steps["prompts"]),
    "discarded": int(np.nansum(steps["rollouts_discarded"])),
    "k": {k: int(n) for k, n in result["k"].items()},
    "seconds": _number(result["seconds"]),
  }


def _mean(x: np.ndarray) -> float:
  """Of the values that are known; NaN where none is."""
  known = x[np.isfinite(x)]
  return float(known.mean()) if len(known) else math.nan


def _number(x: float) -> float | None:
  return float(f"{x:.5g}") if math.isfinite(x) else None
