"""Figures of runs, drawn with matplotlib, which is optional: as PNG, or as SVG for a page."""

import io
import re

import numpy as np

from v05_jax.run.comparison import AXES, Curve, Difference, Row
from v05_jax.run.runs import Run, moving_mean

# Okabe and Ito's palette, which colour-blind readers can tell apart. From the ninth method on the
# colours come again, in other dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888", "#b8a500")
DASHES = ((), (4, 1.5), (1, 1.2), (5, 1.5, 1, 1.5))  # in line widths; () = solid
INK, GRID = "#333333", "#e5e5e5"
STYLE = {
  "font.size": 9,
  "axes.titlesize": 9,
  "axes.titlelocation": "left",
  "axes.titlecolor": INK,
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "text.color": INK,
  "xtick.color": INK,
  "ytick.color": INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.6,
  "axes.grid": True,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
  "axes.axisbelow": True,
  "xtick.major.size": 0,
  "ytick.major.size": 0,
  "lines.linewidth": 1.6,
  "legend.frameon": False,
  "svg.hashsalt": "v05",  # the same ids in every process
}
MOST_BESIDE = 14  # methods whose legend stands beside the curves
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def available() -> bool:
  """Whether matplotlib is here."""
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    return False
  return True


def png(draw, *arguments, **options) -> bytes:
  """The figure that `draw(Figure, ...)` returns."""
  return _render(draw, arguments, options, {"format": "png", "dpi": 150})


def svg(name: str, draw, *arguments, **options) -> str:
  """The same figure as an element of a page.

  Its ids begin with `name`, which no other figure of the page has. Its colours are the page's
  variables --ink, --grid, --c0, --c1, ..., and what belongs to method i has the class method-i.
  """
  text = _render(
    draw, arguments, options, {"format": "svg", "transparent": True, "metadata": NO_METADATA}
  ).decode()
  text = text[text.index("<svg") :]
  # Coordinates to a hundredth of a point.
  shorter = lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0])
  text = re.sub(r' (d|x|y)="[^"]*"', shorter, text)
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r'\bid="(method-\d+)"', r'class="\1"', text)
  text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
  for colour, variable in {
    INK: "ink",
    GRID: "grid",
    **{c: f"c{i}" for i, c in enumerate(COLOURS)},
  }.items():
    text = text.replace(colour, f"var(--{variable})")
  return text


def _render(draw, arguments, options, how) -> bytes:
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(STYLE):
    buffer = io.BytesIO()
    draw(Figure, *arguments, **options).savefig(buffer, **how)
  return buffer.getvalue()


def look(number: int) -> tuple[str, tuple]:
  """(colour, dashes) of a method."""
  return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def score(
  new_figure,
  rows: list[Row],
  curves: list[Curve | None],
  title: str,
  axis: str,
  legend: bool = True,
):
  """One curve a method, with a band of one standard error where it has several seeds."""
  beside = len(rows) <= MOST_BESIDE
  below = 0.0 if beside else 0.17 * -(-len(rows) // 3)  # inches
  figure = new_figure(figsize=(7.2, 4.4 + below) if legend else (5.4, 3.6), layout="constrained")
  axes = figure.subplots()
  # In the order of their ends, which is the legend's.
  for number in sorted(range(len(rows)), key=lambda i: -rows[i].end):
    if curves[number] is not None:
      _draw_curve(
        axes, number, curves[number], f"{rows[number].name}  {rows[number].end:.3f}", True
      )
  band = "; band: standard error over seeds" if any(row.seeds > 1 for row in rows) else ""
  axes.set_title(f"{title}{band}", pad=10)
  _thousands(axes, AXES[axis])
  if legend and beside:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="run, end", alignment="left")
  elif legend:
    figure.legend(
      loc="outside lower left",
      ncols=3,
      fontsize=8,
      handlelength=3.0,
      title="run, end",
      alignment="left",
    )
  return figure


def _draw_curve(axes, number: int, curve: Curve, label: str = "", marked: bool = False):
  colour, dashes = look(number)
  marks = {"marker": "o", "markersize": 3} if marked and len(curve.x) <= 64 else {}
  line = {"linestyle": (0, dashes)} if dashes else {}
  axes.plot(curve.x, curve.mean, color=colour, label=label, gid=f"method-{number}", **line, **marks)
  if curve.error.any():
    edges = curve.mean - curve.error, curve.mean + curve.error
    axes.fill_between(
      curve.x, *edges, color=colour, alpha=0.15, linewidth=0, gid=f"method-{number}"
    )


def multiples(
  new_figure,
  names: list[str],
  panels: list[tuple[str, dict[int, Curve]]],
  axis: str,
  legend: bool = True,
):
  """A panel a metric, with all methods in each; `panels`: (title, number of the method ->
  curve)."""
  figure, grid = _grid(new_figure, len(panels), 3)
  places = np.concatenate([curve.x for _, curves in panels for curve in curves.values()])
  margin = 0.03 * np.ptp(places) or 1.0
  for number, (title, curves) in enumerate(panels):
    for method, curve in curves.items():
      _draw_curve(grid[number], method, curve, names[method], len(curve.x) <= 20)
    grid[number].set_title(title)
    grid[number].set_xlim(places.min() - margin, places.max() + margin)
    _thousands(grid[number], AXES[axis] if number + 3 >= len(panels) else None)
  if legend:
    of = {line.get_label(): line for axes in grid[: len(panels)] for line in axes.lines}
    figure.legend(of.values(), of.keys(), loc="outside lower left", ncols=4)
  return figure


def _grid(new_figure, number: int, columns: int):
  """(figure, its axes in a row) with room for `number` panels."""
  rows = -(-max(number, 1) // columns)
  figure = new_figure(figsize=(3.4 * columns, 2.3 * rows + 0.3), layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid[number:]:
    axes.set_axis_off()
  return figure, grid


def differences(new_figure, rows: list[Row], found: list[tuple[str, list[Difference | None]]]):
  """Paired differences from the first method with their intervals, a column for each of `found`:
  (title, a difference for each of `rows`)."""
  figure = new_figure(figsize=(10.2, 0.28 * len(rows) + 0.7), layout="constrained")
  grid = figure.subplots(1, len(found), sharey=True, squeeze=False).ravel()
  for axes, (title, values) in zip(grid, found):
    axes.axvline(0.0, color=INK, linewidth=0.6)
    for place, value in enumerate(values):
      if value is None:
        continue
      half = None if np.isnan(value.half) else value.half
      axes.errorbar(
        value.mean,
        place,
        xerr=half,
        fmt="o",
        color=look(place)[0],
        markersize=4,
        linewidth=1.4,
        gid=f"method-{place}",
      )
    axes.set_title(title)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(1, len(rows)), [row.name for row in rows[1:]])
  grid[0].set_ylim(len(rows) - 0.4, 0.4)
  return figure


def summary(new_figure, run: Run, panels, board, title: bool = True):
  """Small multiples of one run: `panels` of `runs.panels`, `board` of `runs.standings`."""
  number = len(panels) + bool(board)
  columns = 3 if number <= 9 else 4
  figure, grid = _grid(new_figure, number, columns)
  if title:
    figure.suptitle(run.name, x=0.01, ha="left", fontsize=11, fontweight="bold")
  for axes, (title, curves) in zip(grid, panels):
    for (label, (x, y, evaluated)), colour in zip(curves.items(), COLOURS):
      if not evaluated and len(x) >= 20:  # noisy: the values pale, their moving mean strong
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, moving_mean(y, len(y) // 10), color=colour, label=label)
      else:
        axes.plot(x, y, color=colour, label=label, marker="o", markersize=3)
    axes.set_title(title, pad=16)
    lowest = axes in grid[max(0, len(panels) - columns) : len(panels)]
    _thousands(axes, AXES[run.axis] if lowest else None)
    if len(curves) > 1:
      axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(curves),
        fontsize=7,
        handlelength=1.0,
        borderpad=0.0,
        borderaxespad=0.3,
        columnspacing=1.0,
        handletextpad=0.4,
      )
  if board:
    _draw_board(grid[len(panels)], board)
  return figure


def _draw_board(axes, board):
  """Horizontal bars of one standard error to each side, the best estimator on top."""
  labels, difference, error = zip(*board)
  axes.axvline(0.0, color=INK, linewidth=0.6)
  axes.errorbar(
    difference, range(len(board)), xerr=error, fmt="o", color=COLOURS[0], markersize=3, linewidth=1
  )
  axes.set_yticks(range(len(board)), labels)
  axes.locator_params(axis="x", nbins=4)
  axes.invert_yaxis()
  axes.set_title("baseline MSE minus that of the run's own", pad=16)


def _thousands(axes, label: str | None):
  thousands = lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"
  axes.xaxis.set_major_formatter(thousands)
  if label is not None:
    axes.set_xlabel(label)
