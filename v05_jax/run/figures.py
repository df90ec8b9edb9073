"""Figures of runs as PNG, drawn with matplotlib, which is optional."""

import io

import numpy as np

from v05_jax.run.comparison import AXES, Curve, Row
from v05_jax.run.looks import COLOURS, LINE, look
from v05_jax.run.runs import Run, moving_mean

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
  "lines.linewidth": LINE,
  "legend.frameon": False,
}
MOST_BESIDE = 14  # methods whose legend stands beside the curves
MARKED = 16  # points up to which each gets a mark; a longer curve has about as many


def available() -> bool:
  """Whether matplotlib is here."""
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    return False
  return True


def png(draw, *arguments) -> bytes:
  """The figure that `draw(Figure, ...)` returns."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(STYLE):
    buffer = io.BytesIO()
    draw(Figure, *arguments).savefig(buffer, format="png", dpi=150)
  return buffer.getvalue()


def score(new_figure, rows: list[Row], curves: list[Curve | None], title: str, axis: str):
  """One curve a method, with a band of one standard error where it has several seeds."""
  beside = len(rows) <= MOST_BESIDE
  below = 0.0 if beside else 0.17 * -(-len(rows) // 3)  # inches
  figure = new_figure(figsize=(7.2, 4.4 + below), layout="constrained")
  axes = figure.subplots()
  # In the order of their ends, which is the legend's.
  for number in sorted(range(len(rows)), key=lambda i: -rows[i].end):
    if curves[number] is not None:
      _draw_curve(axes, number, curves[number], f"{rows[number].name}  {rows[number].end:.3f}")
  band = "; band: standard error over seeds" if any(row.seeds > 1 for row in rows) else ""
  axes.set_title(f"{title}{band}", pad=10)
  _thousands(axes, AXES[axis])
  if beside:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="run, end", alignment="left")
  else:
    figure.legend(
      loc="outside lower left",
      ncols=3,
      fontsize=8,
      handlelength=3.0,
      title="run, end",
      alignment="left",
    )
  return figure


def _draw_curve(axes, number: int, curve: Curve, label: str):
  of = look(number)
  every = -(-len(curve.x) // MARKED)
  line = {"linestyle": (0, of.dashes)} if of.dashes else {}
  marks = {"marker": of.mark, "markersize": 3, "markevery": (number * every // 4 % every, every)}
  axes.plot(curve.x, curve.mean, color=of.colour, label=label, **line, **marks)
  if curve.error.any():
    edges = curve.mean - curve.error, curve.mean + curve.error
    axes.fill_between(curve.x, *edges, color=of.colour, alpha=0.15, linewidth=0)


def multiples(new_figure, names: list[str], panels: list[tuple[str, dict[int, Curve]]], axis: str):
  """A panel a metric, with all methods in each; `panels`: (title, number of the method ->
  curve)."""
  figure, grid = _grid(new_figure, len(panels), 3)
  places = np.concatenate([curve.x for _, curves in panels for curve in curves.values()])
  margin = 0.03 * np.ptp(places) or 1.0
  for number, (title, curves) in enumerate(panels):
    for method, curve in curves.items():
      _draw_curve(grid[number], method, curve, names[method])
    grid[number].set_title(title)
    grid[number].set_xlim(places.min() - margin, places.max() + margin)
    _thousands(grid[number], AXES[axis] if number + 3 >= len(panels) else None)
  of = {line.get_label(): line for axes in grid[: len(panels)] for line in axes.lines}
  figure.legend(of.values(), of.keys(), loc="outside lower left", ncols=4, handlelength=3.0)
  return figure


def _grid(new_figure, number: int, columns: int):
  """(figure, its axes in a row) with room for `number` panels."""
  rows = -(-max(number, 1) // columns)
  figure = new_figure(figsize=(3.4 * columns, 2.3 * rows + 0.3), layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid[number:]:
    axes.set_axis_off()
  return figure, grid


def summary(new_figure, run: Run, panels, board):
  """Small multiples of one run: `panels` of `runs.panels`, `board` of `runs.standings`."""
  number = len(panels) + bool(board)
  columns = 3 if number <= 9 else 4
  figure, grid = _grid(new_figure, number, columns)
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
