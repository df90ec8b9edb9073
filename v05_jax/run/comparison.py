"""Runs compared. A method is one config; runs that differ by nothing but the seed are seeds of a
method."""

import collections
import os
import re
from typing import NamedTuple

import numpy as np

from v05_jax import config as configuration
from v05_jax.configs import default
from v05_jax.run.runs import PANELS, Run, moving_mean

# Runs are compared by the first of these scores that all of them have.
SCORES = ("eval/accuracy", "eval/exact", "accuracy", "reward")
TITLES = {
  "eval/exact": "exact success on held-out prompts",
  "eval/accuracy": "success on held-out prompts: exact where the task allows it, else sampled",
  "accuracy": "success of the rollouts",
  "reward": "mean reward",
}
AXES = {"rollouts": "rollouts generated", "step": "steps"}
LEVEL = 0.95  # of the intervals of paired differences
MOST_POINTS = 256  # of a drawn curve


class Curve(NamedTuple):
  """A metric of a method along an axis: mean and standard error over its seeds, arrays of one
  shape."""

  x: np.ndarray
  mean: np.ndarray
  error: np.ndarray


class Row(NamedTuple):
  """One method in the table: the mean over its seeds."""

  name: str
  seeds: int  # different ones; of several runs of one seed the mean is taken first
  axis: str  # of the curve: one of AXES
  curve: Curve  # of the score
  start: float  # score
  end: float
  gain: float
  area: float
  errors: tuple[float, float, float, float]  # standard errors of these four
  rollouts: float
  prompts: float
  seconds: float
  by_seed: dict[int, tuple[float, float]]  # seed -> (end, area)
  runs: tuple[Run, ...]


class Difference(NamedTuple):
  """A method minus another one, on the seeds that both have."""

  mean: float
  half: float  # half of the width of the 95 % interval; NaN with fewer than two pairs
  pairs: int


def common_score(runs: list[Run]) -> str | None:
  """The first of SCORES that all runs have."""
  return next((s for s in SCORES if all(len(run.curve(s)[0]) for run in runs)), None)


def compare(runs: list[Run], score: str) -> list[Row]:
  """A row for each method, in the order of the runs, on the part of the axis that all of them have
  reached.

  Raises ValueError where there is no such part.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.key, []).append(run)
  axis = "rollouts" if all(run.axis == "rollouts" for run in runs) else "step"
  curves = [run.curve(score, axis)[0] for run in runs]
  first, last = max(x[0] for x in curves), min(x[-1] for x in curves)
  if last < first:
    raise ValueError(f"the runs do not overlap: one ends at {last:.0f}, one starts at {first:.0f}")
  rows = [_row(group, score, axis, first, last) for group in groups.values()]
  names = [row.name for row in rows]
  parents = [f"{group[0].parent}/" for group in groups.values()]
  return [
    row._replace(name=parent * (names.count(row.name) > 1) + row.name)
    for row, parent in zip(rows, parents)
  ]


def _row(group: list[Run], score: str, axis: str, first: float, last: float) -> Row:
  points, values = _together([run.curve(score, axis) for run in group], first, last)
  # Runs that repeat a seed count once: they say nothing more about other seeds.
  of_seed = collections.defaultdict(list)
  for number, run in enumerate(group):
    of_seed[f"run {number}" if run.seed is None else run.seed].append(values[number])
  values = np.stack([np.mean(repeats, 0) for repeats in of_seed.values()])
  area = np.trapezoid(values, points, axis=1) / (last - first) if last > first else values[:, 0]
  ends = values[:, 0], values[:, -1]
  scores = np.stack([*ends, ends[1] - ends[0], area], axis=1)  # [seeds, 4]
  start, end, gain, area = scores.mean(0).tolist()
  return Row(
    name=_name(group),
    seeds=len(values),
    axis=axis,
    curve=Curve(points, values.mean(0), standard_error(values)),
    start=start,
    end=end,
    gain=gain,
    area=area,
    errors=tuple(standard_error(scores).tolist()),
    rollouts=float(np.mean([run.lines[-1]["rollouts"] for run in group])),
    prompts=float(np.mean([run.total("prompts") for run in group])),
    seconds=float(np.mean([run.seconds for run in group])),
    by_seed={
      seed: (float(one[1]), float(one[3]))
      for seed, one in zip(of_seed, scores)
      if isinstance(seed, int)
    },
    runs=tuple(group),
  )


def _together(curves, first: float, last: float, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Curves (x, y) brought to common points: all of theirs from first to last, or, where `most` is
  given and there are more, `most` equally spaced ones -> (points, values [curves, points])."""
  points = np.unique(np.concatenate([x for x, _ in curves] + [[first, last]]))
  points = points[(points >= first) & (points <= last)]
  if 0 < most < len(points):
    points = np.linspace(first, last, most)
  return points, np.stack([np.interp(points, *curve) for curve in curves])


def standard_error(x: np.ndarray) -> np.ndarray:
  """The standard error of the mean over the first axis; 0 for a single value."""
  return x.std(0, ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.zeros(x.shape[1:])


def _name(group: list[Run]) -> str:
  """The workdir's name; of several seeds what they share: grpo for grpo-s0, grpo-s1 or grpo/0."""
  if len({run.name for run in group}) == 1:
    return group[0].name
  shared = os.path.commonprefix([run.name for run in group])  # noqa: RUF071 of characters
  return re.sub(r"[-_. ]*(s|seed)?[-_.]*$", "", shared) or group[0].parent


def paired(row: Row, first: Row, what: str) -> Difference | None:
  """Mean of `row` minus `first` over the seeds that both have, in their "end" or "area"; None
  without any.

    d_s = row_s - first_s;  mean d ± t(.975, n - 1) sd(d) / sqrt(n)

  Runs of one seed share the order of the data and the keys of the rollouts; what that does to both
  alike cancels in the difference.
  """
  place = ("end", "area").index(what)
  shared = sorted(row.by_seed.keys() & first.by_seed.keys())
  if not shared:
    return None
  return interval([row.by_seed[seed][place] - first.by_seed[seed][place] for seed in shared])


def interval(differences) -> Difference:
  """Mean of paired differences [n] with half of its interval (t, n - 1); NaN for n = 1."""
  from scipy.special import stdtrit  # not at the top: training imports this module without need

  x = np.asarray(differences, float)
  t = stdtrit(len(x) - 1, (1 + LEVEL) / 2) if len(x) > 1 else np.nan
  return Difference(float(x.mean()), float(t * standard_error(x)), len(x))


def metric_curve(row: Row, name: str, axis: str, smooth: bool = True) -> Curve | None:
  """A metric of a method over the part of the axis that its runs share, None without any.

  `smooth`: of a metric of single steps, which is noisy, the moving mean over a tenth of the run.
  """
  curves = [curve for run in row.runs if len((curve := run.curve(name, axis))[0])]
  if not curves:
    return None
  if smooth and not name.startswith("eval/"):
    curves = [(x, moving_mean(y, len(y) // 10) if len(y) >= 20 else y) for x, y in curves]
  first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
  if last < first:
    return None
  points, values = _together(curves, first, last, MOST_POINTS)
  return Curve(points, values.mean(0), standard_error(values))


def overlays(rows: list[Row], score: str) -> list[tuple[str, dict[int, Curve]]]:
  """(title, number of the method -> curve) of each metric in PANELS but the score: a panel of
  several metrics becomes one for each. A metric that repeats an earlier one in all methods is left
  out."""
  panels, seen = [], [{i: metric_curve(row, score, row.axis) for i, row in enumerate(rows)}]
  for title, names in PANELS:
    for label, name in names.items():
      curves = {
        i: c for i, row in enumerate(rows) if (c := metric_curve(row, name, row.axis)) is not None
      }
      if name == score or not curves or any(_same(curves, other) for other in seen):
        continue
      seen.append(curves)
      panels.append((title if len(names) == 1 else f"{title.split(',')[0]}: {label}", curves))
  return panels


def _same(curves, others) -> bool:
  return curves.keys() == others.keys() and all(
    np.array_equal(curves[i].mean, others[i].mean) for i in curves
  )


def k_shares(row: Row) -> dict[int, float]:
  """k -> share of a method's prompts that got k rollouts, over all of its runs; {} where no run
  says so."""
  counts: collections.Counter[int] = collections.Counter()
  for run in row.runs:
    for line in run.lines:
      counts.update(
        {
          int(name.split("/")[-1]): value
          for name, value in line.items()
          if name.startswith("k/hist/")
        }
      )
  total = sum(counts.values())
  return {k: counts[k] / total for k in sorted(counts)} if total else {}


def settings(rows: list[Row]) -> tuple[dict[str, list[str]], dict[str, str]]:
  """-> (config key -> its value in each method, where these differ; key -> value, where all methods
  have the same, other than that of configs/default.py).

  The seed is left out. Several values within one method stand side by side.
  """
  usual = configuration.flatten(default.get_config())
  known = [all(run.keys for run in row.runs) for row in rows]
  differing, shared = {}, {}
  for key in dict.fromkeys(key for row in rows for run in row.runs for key in run.keys):
    if key == "seed":
      continue
    values = [_values(row, key) if there else "?" for row, there in zip(rows, known)]
    if len(set(values)) > 1:
      differing[key] = values
    elif key not in usual or values[0] != text_of(usual[key]):
      shared[key] = values[0]
  return differing, shared


def _values(row: Row, key: str) -> str:
  return " / ".join(
    dict.fromkeys(text_of(run.keys[key]) if key in run.keys else "-" for run in row.runs)
  )


def text_of(value) -> str:
  """A config's value as a person writes it."""
  if isinstance(value, float):
    return f"{value:.10g}"
  if isinstance(value, (tuple, list)):
    return ", ".join(map(text_of, value))
  return value if isinstance(value, str) and value else repr(value)
