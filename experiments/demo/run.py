"""The demo: four methods learn the built-in tasks at the same number of rollouts.

    make demo                                        one seed
    python -m experiments.demo.run --seeds=0,1,2     what experiments/demo/README.md reports

Each run is one of the training loop with `configs/demo.py`. A run that is already complete in runs/demo is taken
as it is, one that was interrupted is continued. Ends with a table, comparison.png, and how much of V0.5's lead is
owed to having more prompts.
"""

from pathlib import Path

from absl import app
from absl import flags

from configs import demo
from v05_jax import report
from v05_jax.train import train

SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds of the runs")
OUT = flags.DEFINE_string("out", "runs/demo", "folder of the runs, the table and the plot")


def main(_):
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
  rows = report.report(workdirs, str(out), names=names)
  print(credit(dict(zip(demo.METHODS.values(), rows))))


def credit(rows) -> str:
  """Splits V0.5's lead over GRPO (G=16) into what plain groups of 4 reach too, and the rest."""
  gain = {method: 100 * row.gain for method, row in rows.items()}
  lead, prompts = gain["v05"] - gain["grpo16"], gain["grpo4"] - gain["grpo16"]
  return (
    f"\nV0.5 gains {gain['v05']:.1f} points of accuracy, GRPO (G=16) {gain['grpo16']:.1f}. Of that difference of "
    f"{lead:+.1f}, GRPO (G=4) has\n{prompts:+.1f}: that part comes from four times as many prompts for the same "
    f"rollouts, {lead - prompts:+.1f} from the value prior and shrinkage."
  )


if __name__ == "__main__":
  app.run(main)
