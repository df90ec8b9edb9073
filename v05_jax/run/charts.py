"""The data of a page's charts, which `report.js` draws: plain lists and numbers of few digits."""

import math

import numpy as np

from v05_jax.run.comparison import (
  AXES,
  MOST_POINTS,
  TITLES,
  Curve,
  Difference,
  Row,
  metric_curve,
  overlays,
  paired,
)
from v05_jax.run.looks import LINE, MARKS, look
from v05_jax.run.runs import Run, moving_mean, panels, standings

NOISY = 20  # points of single steps from which on a run's curve is drawn as a moving mean


def style(number: int) -> dict:
  """How a page draws method `number`: stylesheet colour, dashes in pixels, outline of its mark."""
  of = look(number)
  return {
    "colour": f"var(--c{of.number})",
    "dash": " ".join(f"{LINE * dash:g}" for dash in of.dashes),
    "mark": MARKS[of.mark],
  }


def scores(rows: list[Row], score: str) -> list[dict]:
  """The score over rollouts, and over steps."""
  title, axis = TITLES[score].split(":")[0], rows[0].axis
  found = [_curves(title, axis, rows, {i: row.curve for i, row in enumerate(rows)})]
  if axis != "step":
    curves = {i: metric_curve(row, score, "step", smooth=False) for i, row in enumerate(rows)}
    found.append(_curves(title, "step", rows, curves))
  return found


def others(rows: list[Row], score: str) -> list[dict]:
  """The metrics beside the score, all methods in each."""
  return [_curves(title, rows[0].axis, rows, curves) for title, curves in overlays(rows, score)]


def differences(rows: list[Row]) -> list[dict]:
  """Paired differences from the first method, of the end and of the area."""
  found = []
  for what in ("end", "area"):
    values = {i: value for i, row in enumerate(rows) if i and (value := paired(row, rows[0], what))}
    title = f"{what} minus that of {rows[0].name}"
    intervals = [_interval(rows[i].name, i, i, value) for i, value in values.items()]
    found.append({"kind": "intervals", "title": title, "rows": intervals})
  return found


def of_run(run: Run) -> list[dict]:
  """The charts of one run: its metrics, and its scoreboard."""
  found = []
  for title, curves in panels(run):
    lines = [
      _run_line(number, label, *curve) for number, (label, curve) in enumerate(curves.items())
    ]
    found.append({"kind": "curves", "title": title, "x": AXES[run.axis], "lines": lines})
  if board := standings(run):
    title = "baseline MSE minus that of the run's own, ± standard error"
    rows = [_interval(name, None, 0, Difference(mean, half, 0)) for name, mean, half in board]
    found.append({"kind": "intervals", "title": title, "rows": rows})
  return found


def _curves(title: str, axis: str, rows: list[Row], curves: dict[int, Curve | None]) -> dict:
  lines = [_line(rows[i].name, i, curve) for i, curve in curves.items() if curve is not None]
  return {"kind": "curves", "title": title, "x": AXES[axis], "lines": lines}


def _line(name: str, method: int, curve: Curve) -> dict:
  chosen = _chosen(len(curve.x))
  x, y, error = (values[chosen] for values in curve)
  found = {"name": name, "method": method, **style(method), "x": _places(x), "y": _values(y)}
  return found | ({"error": _values(error)} if np.any(curve.error) else {})


def _run_line(number: int, label: str, x, y, evaluated: bool) -> dict:
  """The moving mean of a noisy metric, with its values in a pale line behind it."""
  chosen = _chosen(len(x))
  found = {"name": label, "method": None, **style(number), "x": _places(x[chosen])}
  if evaluated or len(x) < NOISY:
    return found | {"y": _values(y[chosen])}
  smooth = moving_mean(y, len(y) // 10)
  return found | {"y": _values(smooth[chosen]), "single": _values(y[chosen])}


def _interval(name: str, method: int | None, number: int, value: Difference) -> dict:
  half = None if math.isnan(value.half) else _value(value.half)
  found = {"name": name, "method": method, **style(number), "mean": _value(value.mean)}
  return found | {"half": half, "pairs": value.pairs}


def _chosen(number: int) -> np.ndarray:
  """Places of at most MOST_POINTS of so many points, the first and the last among them."""
  return np.unique(np.linspace(0, number - 1, min(number, MOST_POINTS)).round().astype(int))


def _places(x) -> list[float]:
  return [float(f"{value:.10g}") for value in x]


def _values(y) -> list[float | None]:
  return [_value(value) for value in y]


def _value(value: float) -> float | None:
  """To six digits; None for what is not finite, which JSON cannot hold."""
  return float(f"{value:.6g}") if math.isfinite(value) else None
