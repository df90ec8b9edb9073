"""What runs have learned: a table, plots and a page that compare them, and a summary of one run.

Reads `metrics.jsonl` and `config.json` of workdirs, nothing else. Plots need matplotlib, which is
optional.
"""

from collections.abc import Callable
import hashlib
import os
import re
import sys

from etils import epath

from v05_jax.run import conclusion, figures, files, page
from v05_jax.run.comparison import (
  SCORES,
  TITLES,
  Row,
  common_score,
  compare,
  metric_curve,
  overlays,
)
from v05_jax.run.find import find, real
from v05_jax.run.runs import Run, load, panels, standings

Remark = Callable[[list[Row]], str]
ENDINGS = (".html", ".md", ".png", "_steps.png", "_metrics.png")
MOST_LETTERS = 60  # of the runs' names in the name of a report
MOST_HEAD = 2000  # bytes at the beginning of a page in which its identity stands


def report(
  workdirs: list[str], out: str | None = None, names=None, remark: Remark | None = None
) -> list[Row]:
  """Compares runs: prints a Markdown table with its conclusion and writes it, plots and a page -> a
  row a method, in order.

  `workdirs`: of runs, folders of runs, or patterns (`find.find`); of the last two, what cannot be
  compared is left out, with a line on stderr. Every score is taken on the rollouts that all runs
  have reached: `start`, `end` and `area`, the mean height of the curve (its integral divided by its
  length), so longer runs gain nothing from their length. Runs whose configs differ by nothing but
  the seed are averaged, and the seeds that a method shares with the first one give paired
  differences from it.

  Files, named by `stem`: comparison.md; comparison.html, everything in one file; comparison.png
  (over rollouts), comparison_steps.png and comparison_metrics.png. `out`: their folder; by default
  the one that holds the first run. `names`: of the runs, instead of their folders'. `remark`: a
  sentence on the rows, with which the conclusion ends. Raises ValueError for a workdir without
  metrics.
  """
  found = find(workdirs)
  runs = _load(found)
  if names is not None:
    runs = [run._replace(name=name) for run, name in zip(runs, names, strict=True)]
  score = common_score(runs)
  if score is None:
    raise ValueError(
      f"no metric is in all of {', '.join(found)}; expected one of {', '.join(SCORES)}"
    )
  rows = compare(runs, score)
  said = remark(rows) if remark else ""
  text = f"{page.table(rows, score)}\n\n{conclusion.text(rows, score, said)}"
  print(text)
  place = stem(workdirs, out)
  with files.writes(place.parent):
    place.parent.mkdir(parents=True, exist_ok=True)
  files.replace(_with(place, ".html"), page.page(rows, score, _identity(list(found)), said))
  files.replace(_with(place, ".md"), text + "\n")
  print(f"\n{os.fspath(place)}.html")
  if _drawable("the pictures of the comparison"):
    _pictures(place, rows, score)
  return rows


def _load(found: dict[str, bool]) -> list[Run]:
  """The runs of `find.find`. Those that a pattern or a folder gave are left out where they cannot
  be read, have only begun, or are a warm start among others. Raises ValueError where a named one
  cannot be read, or none is left."""
  loaded: dict[str, Run] = {}
  without: dict[str, str] = {}
  for workdir, named in found.items():
    try:
      loaded[workdir] = load(workdir)
    except (ValueError, OSError) as error:
      text = f"workdir {workdir}: cannot be read: {error}"
      without[workdir] = str(error) if isinstance(error, ValueError) else text
      if named:
        raise ValueError(without[workdir]) from error
  drawn_over = {run.axis for run in loaded.values()}
  for workdir, run in list(loaded.items()):
    reason = ""
    if len(run.lines) < 2:
      reason = f"workdir {workdir}: found a run that has only begun"
    elif len(drawn_over) > 1 and run.axis == "step":
      reason = f"workdir {workdir}: found a run without rollouts, a warm start, among others"
    if reason and not found[workdir]:
      without[workdir] = reason
      del loaded[workdir]
  if not loaded:
    raise ValueError("\n  ".join(without.values()))
  for reason in without.values():
    print(f"left out: {reason}", file=sys.stderr)
  return list(loaded.values())


def stem(workdirs: list[str], out: str | None = None) -> epath.Path:
  """The path of the files of `report`, but for their endings.

  `comparison` in the folder, or, where a report of other runs has that name, `comparison-` with the
  names of these runs, so that no report overwrites another.
  """
  found = list(find(workdirs))
  folder = files.folder(out) if out else files.folder(found[0]).parent
  identity = _identity(found)
  names = "-".join(dict.fromkeys(epath.Path(workdir).name for workdir in found))
  named = re.sub(r"[^\w.+-]+", "-", names)[:MOST_LETTERS].strip("-.")
  places = [folder / "comparison", folder / f"comparison-{named}"]
  return next((x for x in places if _free(x, identity)), folder / f"comparison-{named}-{identity}")


def _with(place: epath.Path, ending: str) -> epath.Path:
  return place.parent / f"{place.name}{ending}"


def _identity(workdirs: list[str]) -> str:
  """Eight letters that identify a set of runs."""
  places = "\n".join(sorted(map(real, workdirs)))
  return hashlib.sha256(places.encode()).hexdigest()[:8]


def _free(place: epath.Path, identity: str) -> bool:
  """Whether no report is there, or one of the same runs."""
  page_there = _with(place, ".html")
  if page_there.exists():
    return (
      f'<meta name="runs" content="{identity}">'.encode() in page_there.read_bytes()[:MOST_HEAD]
    )
  return not any(_with(place, ending).exists() for ending in ENDINGS)


def _pictures(place: epath.Path, rows: list[Row], score: str):
  title, axis = TITLES[score].split(":")[0], rows[0].axis
  curves = {
    "step": [metric_curve(row, score, "step", smooth=False) for row in rows],
    axis: [r.curve for r in rows],
  }
  for over, ending in {"step": "_steps.png", axis: ".png"}.items():
    drawn = figures.png(figures.score, rows, curves[over], title, over)
    files.replace(_with(place, ending), drawn)
  found = overlays(rows, score)
  if found:
    drawn = figures.png(figures.multiples, [row.name for row in rows], found, axis)
    files.replace(_with(place, "_metrics.png"), drawn)


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
