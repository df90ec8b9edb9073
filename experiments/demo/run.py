"""The demo: four methods learn the built-in tasks at the same number of rollouts.

    make demo                                        one seed
    python -m experiments.demo.run --seeds=0,1,2     what experiments/demo/README.md reports

Each run is one of the training loop with `configs/demo.py`. A run that is already complete in
runs/demo is taken as it is, one that was interrupted is continued. Ends with a table, pictures, a
page, and, of several seeds, how much of V0.5's lead is owed to having more prompts.
"""

from pathlib import Path

from absl import app, flags

from experiments.demo.credit import credit
from v05_jax import logs
from v05_jax.configs import demo
from v05_jax.run import report
from v05_jax.train import train

SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds of the runs")
OUT = flags.DEFINE_string("out", "runs/demo", "folder of the runs, the table and the plot")


def main(_):
  logs.start()
  out, names, workdirs = Path(OUT.value), [], []
  for name, method in demo.METHODS.items():
    for seed in SEEDS.value:
      config = demo.get_config(method)
      config.seed = int(seed)
      names.append(name)
      workdirs.append(str(out / f"{method}-seed{seed}"))
      rollouts = config.num_steps * config.rollouts_per_step
      print(f"{name}, seed {seed}: {rollouts:,} rollouts -> {workdirs[-1]}", flush=True)
      train(config, workdirs[-1])
  print()
  report.report(workdirs, str(out), names=names, remark=credit)


if __name__ == "__main__":
  app.run(main)
