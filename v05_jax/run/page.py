"""The comparison of runs as text: a Markdown table, and a page of HTML with everything in one file.

The page (`report.html` is its template) loads nothing, runs no script and follows the reader's
light or dark setting.
"""

from importlib import resources
import math

from v05_jax.run import figures
from v05_jax.run.runs import (
  LEVEL,
  TITLES,
  Difference,
  Row,
  Run,
  k_shares,
  metric_curve,
  overlays,
  paired,
  panels,
  settings,
  standings,
)

MOST_RUNS = 40  # whose own plots are in a page; of more, one run a method


def table(rows: list[Row], score: str) -> str:
  """The comparison as a Markdown table, best end first."""
  head, body = cells(rows)
  lines = [heading(rows, score), "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
  lines += [f"| {' | '.join(row)} |" for _, row in body]
  return "\n".join([*lines, *(["", note] if (note := pairing(rows)) else [])])


def heading(rows: list[Row], score: str) -> str:
  """What the table's numbers are."""
  return (
    f"{TITLES[score]}; up to {rows[0].curve.x[-1]:,.0f} "
    f"{'rollouts' if rows[0].axis == 'rollouts' else 'steps'}"
    + (" (mean ± standard error over seeds)" if _several(rows) else "")
    + "; area = mean height of the curve"
  )


def pairing(rows: list[Row]) -> str:
  """What the columns of differences are; "" where there are none."""
  if not _paired(rows):
    return ""
  return (
    f"end - and area - are the paired differences from {rows[0].name}: their mean over the seeds "
    "that both have, and "
    f"its {LEVEL * 100:.0f} % interval (t, n - 1)"
  )


def cells(rows: list[Row]) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """-> (head, (number of the method, its cells) with the best end first)."""
  several, compared = _several(rows), _paired(rows)
  head = ["run", *(["seeds"] if several else []), "start", "end", "gain", "area"]
  head += [f"{what} - {rows[0].name}" for what in ("end", "area") if compared]
  body = []
  for number in sorted(range(len(rows)), key=lambda i: -rows[i].end):
    row = rows[number]
    scores = [
      f"{score:.4f}" + (f" ± {error:.4f}" if row.seeds > 1 else "")
      for score, error in zip((row.start, row.end, row.gain, row.area), row.errors)
    ]
    beyond = [
      difference(paired(row, rows[0], what) if number else None)
      for what in ("end", "area")
      if compared
    ]
    size = [f"{row.rollouts:,.0f}", f"{row.prompts:,.0f}", f"{row.seconds:,.0f} s"]
    body.append(
      (number, [row.name, *([str(row.seeds)] if several else []), *scores, *beyond, *size])
    )
  return [*head, "rollouts", "prompts", "time"], body


def difference(found: Difference | None) -> str:
  """A cell: the mean, its interval, and the number of pairs where that is no more than one."""
  if found is None:
    return ""
  if math.isnan(found.half):
    return f"{found.mean:+.4f} (1 pair)"
  return f"{found.mean:+.4f} [{found.mean - found.half:+.4f}, {found.mean + found.half:+.4f}]"


def _several(rows: list[Row]) -> bool:
  return any(row.seeds > 1 for row in rows)


def _paired(rows: list[Row]) -> bool:
  """Whether any method has two seeds or more in common with the first one."""
  return any((found := paired(row, rows[0], "end")) and found.pairs > 1 for row in rows[1:])


def page(rows: list[Row], score: str) -> str:
  """The comparison as one HTML file. Without matplotlib it has the tables and says that the plots
  are missing."""
  import jinja2  # here, since training imports this module and has no use for it

  head, body = cells(rows)
  differing, shared = settings(rows)
  chosen = _chosen(rows)
  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
  )
  template = environment.from_string((resources.files("v05_jax.run") / "report.html").read_text())
  return template.render(
    rows=rows,
    score=TITLES[score],
    heading=heading(rows, score),
    pairing=pairing(rows),
    head=head,
    body=body,
    looks=[figures.look(i) for i in range(len(rows))],
    drawable=figures.available(),
    pictures=_pictures(rows, score) if figures.available() else {},
    ks=_ks(rows),
    boards=_boards(rows),
    differing=differing,
    shared=shared,
    chosen=chosen,
    left_out=sum(row.seeds for row in rows) - len(chosen),
  )


def _pictures(rows: list[Row], score: str) -> dict[str, str]:
  """Name -> <svg> of the page's plots."""
  title, axis, found = TITLES[score].split(":")[0], rows[0].axis, {}
  curves = {axis: [row.curve for row in rows]}
  if axis != "step":
    curves["step"] = [metric_curve(row, score, "step", smooth=False) for row in rows]
  for place, drawn in curves.items():
    found[place] = figures.svg(place, figures.score, rows, drawn, title, place, legend=False)
  if _paired(rows):
    columns = [
      (
        f"{what} minus that of {rows[0].name}",
        [None, *(paired(row, rows[0], what) for row in rows[1:])],
      )
      for what in ("end", "area")
    ]
    found["differences"] = figures.svg("differences", figures.differences, rows, columns)
  if others := overlays(rows, score):
    names = [row.name for row in rows]
    found["metrics"] = figures.svg("metrics", figures.multiples, names, others, axis, legend=False)
  return found


def _ks(rows: list[Row]) -> tuple[list[int], list[tuple[int, float, dict[int, float]]]]:
  """-> (every k, (number of the method, its mean k, k -> share of its prompts) where a method has a
  histogram)."""
  shares = {i: found for i, row in enumerate(rows) if (found := k_shares(row))}
  every = sorted({k for found in shares.values() for k in found})
  return every, [
    (i, sum(k * share for k, share in found.items()), found) for i, found in shares.items()
  ]


def _boards(
  rows: list[Row],
) -> tuple[list[str], list[tuple[int, str, dict[str, tuple[float, float]]]]]:
  """-> (estimators, (number of the method, its own estimator, estimator -> (difference, standard
  error)))."""
  own, names, found = " (own)", [], []
  for number, row in enumerate(rows):
    board = {name: (difference, error) for name, difference, error in standings(*row.runs)}
    mine = next((name.removesuffix(own) for name in board if name.endswith(own)), "")
    board = {name.removesuffix(own): values for name, values in board.items()}
    names += [name for name in board if name not in names]
    if board:
      found.append((number, mine, board))
  return sorted(names), found


def _chosen(rows: list[Row]) -> list[tuple[int, Run, str]]:
  """(number of the method, run, its plots as <svg>) of the runs whose own plots the page has."""
  few = sum(row.seeds for row in rows) <= MOST_RUNS
  runs = [(i, run) for i, row in enumerate(rows) for run in (row.runs if few else row.runs[:1])]
  if not figures.available():
    return [(i, run, "") for i, run in runs]
  plots = lambda n, run: figures.svg(
    f"run{n}", figures.summary, run, panels(run), standings(run), title=False
  )
  return [(i, run, plots(n, run)) for n, (i, run) in enumerate(runs)]
