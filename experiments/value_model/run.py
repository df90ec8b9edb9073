"""The value model of the built-in tasks, from nothing: policies, their pairs, the model, its tests.

    python -m experiments.value_model.run [--out=runs/value_model] [--install]

Warm starts are fine-tuned with other seeds than the shipped one and trained by reinforcement
learning, which collects (prompt, success) pairs; a V0 learns from the pairs of five of them and of
the shipped one; the last two test it, later in training than any policy that it learned from. Every
command is one that README.md describes; what is complete in --out is taken as it is. Writes
results.json and model.png beside this file; with --install the model goes to
v05_jax/tasks/value_model, which `priors.v0.path=builtin` opens.
"""

import json
import os
from pathlib import Path
import shutil

from absl import app, flags

from experiments.estimator_lab.tables import table
from experiments.value_model import comparison, pool
from experiments.value_model.checkpoints import moments
from v05_jax.value_model import v0

HERE = Path(__file__).parent
OUT = flags.DEFINE_string("out", "runs/value_model", "folder of the runs")
INSTALL = flags.DEFINE_bool("install", False, "make the model the one that the package ships")


def main(_):
  out = Path(OUT.value)
  pool.make(out)
  made = pool.runs(out)
  data = ",".join(str(out / name / "pairs") for name in made if name.startswith("learn"))
  pool.each(
    {"value": ["--mode=value", "--config=configs/value.py", f"--config.value.data={data}"]},
    out,
    "v0/v0.json",
  )
  tested = {name: moments(out / name, pool.LATER) for name in made if not name.startswith("learn")}
  others = [moments(out / f"learn{w}-{pool.SEEDS[0]}", (pool.STEPS,))[0] for w in pool.LEARNT]
  results = comparison.measure(v0.load(str(out / "value" / "v0")), tested, others)
  results["cpus"] = os.cpu_count()
  (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
  comparison.plot(results, HERE / "model.png")
  for name, rows in results["tables"].items():
    cells = [
      [method, *(f"{mean:.3f} ± {error:.3f}" for mean, error in found)]
      for method, found in rows.items()
    ]
    print(f"\n{name}\n" + table(["", *comparison.COLUMNS], cells))
  if INSTALL.value:
    shutil.rmtree(v0.BUILTIN, ignore_errors=True)
    shutil.copytree(out / "value" / "v0", v0.BUILTIN)
    size = sum(file.stat().st_size for file in v0.BUILTIN.iterdir())
    print(f"\n{v0.BUILTIN}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
  app.run(main)
