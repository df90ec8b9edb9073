"""The comparison of runs as text: a Markdown table, and a page of HTML with everything in one file.

The page (`report.html` is its template, `report.js` draws its charts) loads nothing and follows the
reader's light or dark setting.
"""

from importlib import resources
import math

from v05_jax.run import charts, conclusion
from v05_jax.run.comparison import LEVEL, TITLES, Difference, Row, k_shares, paired, settings
from v05_jax.run.facts import facts
from v05_jax.run.runs import Run, standings

MOST_RUNS = 40  # runs that all have their own charts in a page; of more, one for each method


def table(rows: list[Row], score: str) -> str:
  """The comparison as a Markdown table, best end first."""
  head, body = cells(rows)
  lines = [heading(rows, score), "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
  lines += [f"| {' | '.join(row)} |" for _, row in body]
  return "\n".join([*lines, "", *(f"{note}  " for note in notes(rows))]).rstrip()


def heading(rows: list[Row], score: str) -> str:
  """The line above the table: what its numbers are."""
  return (
    f"{TITLES[score]}; up to {rows[0].curve.x[-1]:,.0f} "
    f"{'rollouts' if rows[0].axis == 'rollouts' else 'steps'}"
    + (" (mean ± standard error over seeds)" if _several(rows) else "")
    + "; area = mean height of the curve"
  )


def notes(rows: list[Row]) -> list[str]:
  """Notes below the table: what the columns of differences and times are."""
  found = ["time: of the steps, as long as they took without compilation"]
  if _paired(rows):
    found.append(
      f"end - and area - are the paired differences from {rows[0].name}: their mean over the seeds "
      f"that both have, and its {LEVEL * 100:.0f} % interval (t, n - 1)"
    )
  return found


def cells(rows: list[Row]) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """-> (head, [(number of the method, its cells)] with the best end first)."""
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


def page(rows: list[Row], score: str, identity: str = "", remark: str = "") -> str:
  """The comparison as one HTML file; `identity` stands for the runs that it compares, and its
  conclusion ends with `remark`."""
  import jinja2  # not at the top: training imports this module without need

  head, body = cells(rows)
  differing, shared = settings(rows)
  chosen = _chosen(rows)
  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
  )
  environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
  sources = resources.files("v05_jax.run")
  return environment.from_string((sources / "report.html").read_text("utf-8")).render(
    script=(sources / "report.js").read_text("utf-8"),
    identity=identity,
    rows=rows,
    styles=[charts.style(i) for i in range(len(rows))],
    headline=conclusion.headline(rows, score),
    verdicts=conclusion.verdicts(rows, score),
    basis=conclusion.basis(rows),
    remark=remark,
    facts=facts(rows),
    shortest=_shortest(rows),
    heading=heading(rows, score),
    notes=notes(rows),
    head=head,
    body=body,
    scores=charts.scores(rows, score),
    differences=charts.differences(rows) if _paired(rows) else [],
    others=charts.others(rows, score),
    ks=_ks(rows),
    boards=_boards(rows),
    differing=differing,
    shared=shared,
    chosen=[(i, run, charts.of_run(run)) for i, run in chosen],
    left_out=sum(len(row.runs) for row in rows) - len(chosen),
  )


def _shortest(rows: list[Row]) -> str:
  """The folder of the shortest run, at whose end the comparison ends, where another is longer by
  more than a twentieth; else ""."""
  runs = [run for row in rows for run in row.runs]
  ends = {run.folder: run.lines[-1][rows[0].axis] for run in runs}
  least = min(ends, key=ends.__getitem__)
  return least if max(ends.values()) > 1.05 * ends[least] else ""


def _ks(rows: list[Row]) -> tuple[list[int], list[tuple[int, float, dict[int, float]]]]:
  """-> (every k, [(number of the method, its mean k, k -> share of its prompts)] of those methods
  that have a histogram)."""
  shares = {i: found for i, row in enumerate(rows) if (found := k_shares(row))}
  every = sorted({k for found in shares.values() for k in found})
  return every, [
    (i, sum(k * share for k, share in found.items()), found) for i, found in shares.items()
  ]


def _boards(
  rows: list[Row],
) -> tuple[list[str], list[tuple[int, str, dict[str, tuple[float, float]]]]]:
  """-> (estimators, [(number of the method, its own estimator, estimator -> (difference, standard
  error))])."""
  own, names, found = " (own)", [], []
  for number, row in enumerate(rows):
    board = {name: (difference, error) for name, difference, error in standings(*row.runs)}
    mine = next((name.removesuffix(own) for name in board if name.endswith(own)), "")
    board = {name.removesuffix(own): values for name, values in board.items()}
    names += [name for name in board if name not in names]
    if board:
      found.append((number, mine, board))
  return sorted(names), found


def _chosen(rows: list[Row]) -> list[tuple[int, Run]]:
  """(number of the method, run) of the runs whose own charts the page has."""
  few = sum(len(row.runs) for row in rows) <= MOST_RUNS
  return [(i, run) for i, row in enumerate(rows) for run in (row.runs if few else row.runs[:1])]
