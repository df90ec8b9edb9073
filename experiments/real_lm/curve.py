"""curve.png: success of the real model over rollouts, beside that of the toy."""

import json
from pathlib import Path

import numpy as np

from experiments.headline import methods as headline
from experiments.headline.report import RECIPE_COLOUR, SHOWN, by_method, mean_curve
from experiments.real_lm import plan
from v05_jax.run import figures
from v05_jax.run.comparison import standard_error

TOY = Path(headline.__file__).parent
POINTS = 41  # along the rollouts, between the evaluations on lines


def draw(by_arena: dict[str, dict], path: Path):
  """A panel for each arena that has something to show, and one of the toy where its results are
  there: mean over seeds; bands: one standard error."""
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  panels = {f"SmolLM2-135M, {arena}": real(runs) for arena, runs in by_arena.items()}
  panels = {title: lines for title, lines in (panels | toy()).items() if lines}
  with rc_context(figures.STYLE):
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
      for label, colour, x, mean, error in lines:
        axes.plot(x, mean, label=f"{label}  {mean[-1]:.3f}", color=colour)
        axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
      axes.set_title(title)
      axes.set_xlabel("rollouts generated")
      axes.legend(fontsize=7, title="method, end")
    np.atleast_1d(figure.axes)[0].set_ylabel("success on validation problems")
    figure.savefig(path, dpi=120)


def colours() -> dict[str, str]:
  return SHOWN | {"grpo4": "#8c564b", plan.resolved(plan.RECIPE): RECIPE_COLOUR}


def real(runs: dict) -> list[tuple]:
  """(title, colour, rollouts, mean, standard error) of each method with a colour that has as many
  seeds as any of those, on validation problems."""
  shown = {method: colour for method, colour in colours().items() if method in runs}
  lines, most = [], max((len(runs[method]) for method in shown), default=0)
  for method, colour in shown.items():
    if len(runs[method]) == most:  # others' seeds start elsewhere
      curves = [np.array(x["curve"], float) for x in runs[method].values()]
      x = np.linspace(0, min(y[-1, 0] for y in curves), POINTS)
      values = np.stack([np.interp(x, y[:, 0], y[:, 1]) for y in curves])
      mean, error = values.mean(0), standard_error(values)
      lines.append((plan.METHODS[method].title, colour, x, mean, error))
  return lines


def toy() -> dict[str, list[tuple]]:
  """The same of the headline's first toy, from its results, or those of its first study."""
  for folder in (TOY, TOY / "first"):
    file = folder / "results.json"
    if file.is_file():
      found = json.loads(file.read_text())["runs"]
      known = [x for x in found if x["method"] in headline.METHODS]
      runs = by_method(known, "default")
      lines = [
        (headline.METHODS[name].title, colour, *mean_curve(runs[name]))
        for name, colour in colours().items()
        if name in runs
      ]
      return {"the built-in tasks": lines}
  return {}
