"""The four plots, from results.json."""

from pathlib import Path

import matplotlib
import numpy as np

from experiments.estimator_lab.tables import KINDS, NAMES

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {
  "mean": "#777777",
  "value": "#e69f00",
  "v05": "#0072b2",
  "ewa": "#d55e00",
  "beta_shrink": "#009e73",
  "batch_shrink": "#cc79a7",
  "james_stein": "#56b4e9",
}
KIND_COLOURS = {
  **COLOURS,
  "oracle": "#000000",
  "v05_loo": "#0072b2",
  "rloo": "#777777",
  "dr_grpo": "#777777",
  "grpo": "#aa3377",
}
MU_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00")


def all_of_them(results, folder: Path):
  for name, draw in {
    "mse": mse,
    "rollouts": rollouts,
    "gradient_noise": gradient_noise,
    "test": test,
  }.items():
    figure = draw(results)
    for axes in figure.axes:
      axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / f"{name}.png", dpi=110)
    pyplot.close(figure)


def panels(rows: int, columns: int, size, **options):
  return pyplot.subplots(
    rows, columns, figsize=size, layout="constrained", squeeze=False, **options
  )


def legend_below(figure, axes, columns: int):
  handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
  figure.legend(
    handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False
  )


def mse(results):
  """MSE over the prior's RMSE; a row for each share of hallucinations, a column for each k."""
  ks = sorted({row["k"] for row in results["estimators"]})
  figure, grid = panels(2, len(ks), (14, 6.2), sharey=True, sharex="row")
  for line, h in zip(grid, (0.0, 0.1)):
    curves = [row for row in results["curves"] if row["h"] == h]
    for axes, k in zip(line, ks):
      points = [row for row in results["estimators"] if (row["h"], row["k"]) == (h, k)]
      for name, label in NAMES.items():
        if name in ("mean", "value", "v05"):
          x, y = [row["rmse"] for row in curves], [row[name][k] for row in curves]
          axes.plot(x, y, color=COLOURS[name], label=label, lw=1.6)
        else:
          x, y = [row["rmse"] for row in points], [row["mse"][name]["mean"] for row in points]
          axes.plot(x, y, color=COLOURS[name], label=label, lw=1.2, ls="--", marker="o", ms=3)
      axes.set(yscale="log", ylim=(0.004, 0.5), title=f"k = {k}" if h == 0 else None)
    line[0].set_ylabel(f"MSE of the baseline, {h:.0%} hallucinated")
  for axes in grid[-1]:
    axes.set_xlabel("RMSE of the prior")
  legend_below(figure, grid[0, 0], len(NAMES))
  return figure


def rollouts(results):
  """Rollouts of the two paper rules over the bias, for several true means."""
  found = results["rollouts"]
  figure, grid = panels(1, 2, (9, 3.6), sharey=True)
  titles = {"sequential": "one rollout at a time", "two_stage": "two stages"}
  for axes, (name, title) in zip(grid[0], titles.items()):
    for colour, (mu, y) in zip(MU_COLOURS, found[name].items()):
      axes.plot(found["bias"], np.array(y, float), color=colour, label=f"µ = {float(mu):g}")
    axes.set(
      xlabel="bias of the prior, µ − V", title=title, ylim=(3.5, 16.5), yticks=(4, 8, 12, 16)
    )
  grid[0, 0].set_ylabel("expected rollouts")
  grid[0, 0].legend(frameon=False, loc="lower right")
  return figure


def gradient_noise(results):
  """E[A^2], and the variance of a one-parameter policy's gradient, at equal rollouts, over k."""
  rows = list(dict.fromkeys((row["sd"], row["h"]) for row in results["gradient"]))
  titles = {
    "a2_scaled": "E[A²] over squared gradient",
    "noise": "gradient variance, prompts given",
    "noise_drawn": "gradient variance, prompts drawn",
  }
  figure, grid = panels(len(rows), 3, (13, 7.2), sharex=True)
  for line, (sd, h) in zip(grid, rows):
    for axes, (field, title) in zip(line, titles.items()):
      for kind, label in KINDS.items():
        chosen = [
          row for row in results["gradient"] if (row["sd"], row["h"], row["kind"]) == (sd, h, kind)
        ]
        if kind == "dr_grpo":
          continue  # scaled by its gradient it is RLOO
        style = ":" if kind == "v05_loo" else "--" if kind == "oracle" else "-"
        axes.plot(
          [row["k"] for row in chosen],
          [row[field] for row in chosen],
          style,
          color=KIND_COLOURS[kind],
          label="RLOO, Dr.GRPO" if kind == "rloo" else label,
          marker="o",
          ms=3,
        )
      axes.set(title=f"{title}\nsd {sd}, h {h}", xscale="log", yscale="log", xticks=(2, 4, 8, 16))
      axes.set_xticklabels(("2", "4", "8", "16"))
      axes.minorticks_off()
      axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.2g"))
      axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
      axes.yaxis.set_major_locator(
        matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
      )
  for axes in grid[-1]:
    axes.set_xlabel("rollouts a prompt, k")
  legend_below(figure, grid[0, 0], 5)
  return figure


def test(results):
  """Size over the true mean, and power over the bias."""
  found = results["test"]
  ks = list(found["power"])
  figure, grid = panels(1, 1 + len(ks), (14, 3.6), sharey=True)
  size = grid[0, 0]
  for colour, k in zip(MU_COLOURS, ks):
    size.plot(found["levels"], found["size"][k], color=colour, marker="o", ms=3, label=f"k = {k}")
  size.set(
    title="size: the prior is right", xlabel="µ = V", ylabel="probability of rejecting the prior"
  )
  size.legend(frameon=False, loc="upper center")
  for axes, k in zip(grid[0, 1:], ks):
    for colour, (mu, y) in zip(MU_COLOURS, found["power"][k].items()):
      axes.plot(found["bias"], np.array(y, float), color=colour, label=f"µ = {float(mu):g}")
    axes.set(title=f"power, k = {k}", xlabel="bias of the prior, µ − V")
  grid[0, 1].legend(frameon=False, loc="lower right")
  return figure
