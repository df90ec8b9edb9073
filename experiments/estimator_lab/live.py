"""The scoreboard on real training: which baseline fits best, and does a better fit learn faster?

    python -m experiments.estimator_lab.live [--seeds=0,1,2]

Trains the demo's V0.5 and the same with other baselines, budgets and prompt selection, at equal
rollouts. Prints each estimator's place on V0.5's scoreboard and a table of all runs; writes
live.json beside this file. A run that is complete in --out is taken as it is.
"""

import json
from pathlib import Path

from absl import app, flags, logging
import numpy as np

from experiments.estimator_lab.tables import table
from v05_jax.configs import demo
from v05_jax.observers.scoreboard import ASSESSED
from v05_jax.run import metrics, report
from v05_jax.train import train

HERE = Path(__file__).parent
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the runs")
OUT = flags.DEFINE_string("out", "runs/estimator_lab", "folder of the runs")

# Name -> what differs from the demo's V0.5 with 4 rollouts a prompt, here with the kernel
# regression as its prior.
NEYMAN = {
  "budget.rule": "neyman",
  "budget.k_init": 2,
  "budgets.neyman.k_mean": 4.0,
  "budget.k_max": 16,
}
RUNS = {
  "v05": {},
  "v05_loo": {"baseline": "v05_loo"},
  "ewa": {"baseline": "ewa"},
  "beta_shrink": {"baseline": "beta_shrink"},
  "batch_shrink": {"baseline": "batch_shrink", "prior.kind": "none"},
  "james_stein": {"baseline": "james_stein", "prior.kind": "none"},
  "rloo": {"baseline": "rloo", "prior.kind": "none"},
  "ewa, Neyman from 2": {"baseline": "ewa", **NEYMAN},
  "ewa, pool of 4": {"baseline": "ewa", "selection.pool": 4},
  "ewa, pool of 4, unweighted": {
    "baseline": "ewa",
    "selection.pool": 4,
    "selection.weighted": False,
  },
}


def main(_):
  logging.set_verbosity(logging.WARNING)
  names, workdirs = [], []
  for name, changes in RUNS.items():
    for seed in SEEDS.value:
      config = demo.get_config()
      config.update_from_flattened_dict({"prior.kind": "neighbours", **changes, "seed": int(seed)})
      names.append(name)
      workdirs.append(f"{OUT.value}/{name.replace(', ', '-').replace(' ', '-')}/{seed}")
      print(f"{name}, seed {seed} -> {workdirs[-1]}", flush=True)
      train(config, workdirs[-1])
  own = [metrics.read(workdir)[-1] for name, workdir in zip(names, workdirs) if name == "v05"]
  board = standings(own)
  print(
    "\n"
    + table(["estimator", "MSE minus V0.5's"], [[n, f"{m:+.4f} ± {e:.4f}"] for n, m, e in board])
    + "\n"
  )
  rows = report.report(workdirs, OUT.value, names=names)
  results = {"seeds": [int(seed) for seed in SEEDS.value], "scoreboard": board}
  results["runs"] = {
    row.name: {"end": row.end, "area": row.area, "errors": row.errors[1::2]} for row in rows
  }
  (HERE / "live.json").write_text(json.dumps(results, indent=1) + "\n")


def standings(lines: list[dict]) -> list[tuple[str, float, float]]:
  """(estimator, difference, standard error) over the last lines of several seeds, best first."""
  found = [("v05 (own)", 0.0, 0.0)]
  for name in set(ASSESSED) - {"v05"}:
    difference = np.array([x[f"scoreboard/{name}/difference"] for x in lines])
    error = np.array([x[f"scoreboard/{name}/standard_error"] for x in lines])
    found.append((name, float(difference.mean()), float(np.sqrt(np.sum(error**2)) / len(lines))))
  return sorted(found, key=lambda row: row[1])


if __name__ == "__main__":
  app.run(main)
