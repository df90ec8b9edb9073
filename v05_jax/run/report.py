"""What runs have learned: a table, plots and a page that compare them, and a summary of one run.

Reads `metrics.jsonl` and `config.json` of workdirs, nothing else. Plots need matplotlib, which is
optional.
"""

import os
import sys

from etils import epath

from v05_jax.run import figures, files, page
from v05_jax.run.comparison import (
  SCORES,
  TITLES,
  Row,
  common_score,
  compare,
  metric_curve,
  overlays,
)
from v05_jax.run.runs import load, panels, standings


def report(workdirs: list[str], out: str | None = None, names=None) -> list[Row]:
  """Compares runs: prints a Markdown table and writes it, plots and a page -> a row a method, in
  order.

  Every score is taken on the rollouts that all runs have reached: `start`, `end` and `area`, the
  mean height of the curve (its integral divided by its length), so longer runs gain nothing from
  their length. Runs whose configs differ by nothing but the seed are averaged, and the seeds that a
  method shares with the first one give paired differences from it.

  Files: comparison.md; comparison.html, everything in one file; comparison.png (over rollouts),
  comparison_steps.png and comparison_metrics.png. `out`: their folder; by default the one that
  holds the first workdir. `names`: of the runs, instead of their folders'. Raises ValueError for a
  workdir without metrics.
  """
  _check_once(workdirs)
  runs = [load(workdir) for workdir in workdirs]
  if names is not None:
    runs = [run._replace(name=name) for run, name in zip(runs, names, strict=True)]
  score = common_score(runs)
  if score is None:
    raise ValueError(
      f"no metric is in all of {', '.join(workdirs)}; expected one of {', '.join(SCORES)}"
    )
  rows = compare(runs, score)
  text = page.table(rows, score)
  print(text)
  folder = files.folder(out) if out else files.folder(workdirs[0]).parent
  with files.writes(folder):
    folder.mkdir(parents=True, exist_ok=True)
  files.replace(folder / "comparison.md", text + "\n")
  files.replace(folder / "comparison.html", page.page(rows, score))
  print(f"\n{os.fspath(folder / 'comparison.html')}")
  if _drawable("the comparison"):
    _pictures(folder, rows, score)
  return rows


def _check_once(workdirs: list[str]):
  """Raises ValueError for a run that is there twice: it would count as two seeds of a method."""
  seen: dict[str, str] = {}
  for workdir in workdirs:
    place = os.path.realpath(files.folder(workdir))
    if place in seen:
      raise ValueError(f"--workdir: found {seen[place]} and {workdir}, expected each run once")
    seen[place] = workdir


def _pictures(folder: epath.Path, rows: list[Row], score: str):
  title, axis = TITLES[score].split(":")[0], rows[0].axis
  curves = {
    "step": [metric_curve(row, score, "step", smooth=False) for row in rows],
    axis: [r.curve for r in rows],
  }
  for place, name in {"step": "comparison_steps.png", axis: "comparison.png"}.items():
    drawn = figures.png(figures.score, rows, curves[place], title, place)
    files.replace(folder / name, drawn)
  found = overlays(rows, score)
  if found:
    drawn = figures.png(figures.multiples, [row.name for row in rows], found, axis)
    files.replace(folder / "comparison_metrics.png", drawn)


def summary(workdir: str) -> str | None:
  """Draws WORKDIR/summary.png, small multiples of a run's metrics over its rollouts -> its path.

  Without matplotlib it says so and returns None. Raises ValueError for a workdir without metrics.
  """
  run, path = load(workdir), files.folder(workdir) / "summary.png"
  if not _drawable(path.name):
    return None
  files.replace(path, figures.png(figures.summary, run, panels(run), standings(run)))
  return os.fspath(path)


def _drawable(what: str) -> bool:
  if not figures.available():
    print(f"{what}: not drawn without matplotlib (pip install matplotlib)", file=sys.stderr)
  return figures.available()
