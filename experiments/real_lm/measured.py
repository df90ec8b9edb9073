"""The tables of what was measured at checkpoints: noise, priors, value models."""

import json
from pathlib import Path
from typing import Any

from experiments.estimator_lab.tables import table
from experiments.real_lm import plan

PARTS = {
  "noise": "the gradient's noise",
  "prior": "priors",
  "value": "the V0 of the other problems",
}
GROUP = 4  # rollouts that a prior is fused with
ALONE = "the 4 rollouts alone"  # beside the priors


def read(here: Path, arena: str, part: str) -> dict[str, Any] | None:
  """MEASURED/ARENA-PART.json; None where it is not there yet."""
  file = here / "measured" / f"{arena}-{part}.json"
  return json.loads(file.read_text()) if file.is_file() else None


def complete(here: Path, arena: str, part: str) -> bool:
  """Whether a measurement has been made to its end."""
  found = read(here, arena, part)
  return found is not None and found.get("complete", True)


def lacks_v0(here: Path, arena: str) -> bool:
  """Whether priors have been measured, and V0 not."""
  found = read(here, arena, "prior")
  return found is not None and "v0" not in found["run"]


def seconds(here: Path, arena: str) -> list[float]:
  """What the measurements have taken."""
  found = [read(here, arena, part) for part in PARTS]
  each = [x["seconds"] for x in found if x]
  return [sum(x.values()) if isinstance(x, dict) else x for x in each]


def sections(here: Path, arena: str) -> list[str]:
  """Headings and tables of what there is."""
  text = []
  if found := read(here, arena, "noise"):
    text += ["### What governs the gradient's noise (`--mode=noise`)", noise(found["methods"])]
  if found := read(here, arena, "prior"):
    text += [
      "### Priors over V0.5's run, against the outcomes of 4 rollouts",
      over_run(found["run"]),
    ]
    text += ["### Priors at checkpoints, against 64 rollouts a prompt", at(found["checkpoints"])]
  return text


def noise(methods: dict) -> str:
  """A row a checkpoint: rho, b* and the second moments of the gradient over the run's own."""
  rows, names = [], []
  for method, steps in methods.items():
    for step, found in steps.items():
      values = {key: x for key, x in found["statistics"].items() if key.endswith(", gradient")}
      values = {key.removesuffix(", gradient"): cell(x) for key, x in values.items()}
      names += [name for name in values if name not in names]
      rows.append((plan.METHODS[method].title, step, found, values))
  return table(
    ["run", "step", "prompts", "mean reward", *names],
    [
      [
        title,
        step,
        found["prompts"],
        f"{found['mean reward']:.2f}",
        *(x.get(n, "-") for n in names),
      ]
      for title, step, found, x in rows
    ],
  )


def cell(x: dict) -> str:
  """A value with its interval; "-" where there is none."""
  if x["value"] is None:
    return "-"
  ends = "" if x["low"] is None else f" [{x['low']:.2f}, {x['high']:.2f}]"
  return f"{x['value']:.2f}{ends}"


def over_run(found: dict) -> str:
  """A row a prior."""
  rows = [
    [name, x["prompts"], *(f"{x[key]:.3f}" for key in ("mse", "auc", "bias", "ece"))]
    for name, x in found.items()
  ]
  return table(["prior", "prompts", "MSE, noise of 4 included", "AUC", "bias", "ECE"], rows)


def at(checkpoints: dict) -> str:
  """A row a checkpoint and prior."""
  rows = []
  number = lambda x: "-" if x is None else f"{x:.3f}"
  for step, found in checkpoints.items():
    for name, x in found.items():
      between = f" [{x['low']:.3f}, {x['high']:.3f}]" if "low" in x else ""
      keys = ("auc", "bias", "ece", "noise over b*'s", "fused mse")
      error = number(x.get("mse")) + between
      rows.append([step, name, error, worth(x, found), *(number(x.get(k)) for k in keys)])
  head = ["step", "prior", "MSE of the true mean", "rollouts it is worth", "AUC of a rollout"]
  head += ["bias", "ECE", "gradient noise over b*'s, k = 1", "MSE of V0.5's baseline, k = 4"]
  return table(head, rows)


def worth(prior: dict, checkpoint: dict) -> str:
  """The number of rollouts whose mean has the mean squared error of V, "-" where it has none."""
  of_one = GROUP * checkpoint[ALONE]["fused mse"]
  return f"{of_one / prior['mse']:.2f}" if prior.get("mse", 0.0) > 0 else "-"
