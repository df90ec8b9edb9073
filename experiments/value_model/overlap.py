"""How many of the headline's training prompts the shipped V0 has learnt from.

    python -m experiments.value_model.overlap     # two minutes

The policies of the two are others; the prompts are drawn from one space.
"""

from absl import app
import numpy as np

from experiments.estimator_lab.tables import table
from experiments.headline.prepare import SEEDS
from experiments.value_model import pool
from v05_jax import data, tasks
from v05_jax.configs import default

ASKED = 16384 // 4  # prompts of a run of the headline with four rollouts of each
LEARNT = 512 // 4 * pool.STEPS  # of a run whose pairs V0 learnt from


def main(argv):
  if argv[1:]:
    raise app.UsageError(f"found {' '.join(argv[1:])}, expected no arguments")
  print(overlaps(SEEDS))


def overlaps(seeds) -> str:
  """A row a seed: the share of a run's prompts that are among V0's, in all and by family."""
  known = {
    prompt
    for warm in pool.LEARNT
    for seed in pool.SEEDS
    for prompt, _ in prompts(10 * warm + seed, LEARNT)
  }
  rows, families = [], default.get_config().data.families
  for seed in seeds:
    found = prompts(seed, ASKED)
    hit, of = np.array([prompt in known for prompt, _ in found]), np.array([f for _, f in found])
    rows.append([seed, *(f"{hit[of == family].mean():.2f}" for family in families)])
    rows[-1].insert(1, f"{hit.mean():.2f}")
  return table(["seed", "all", *families], rows)


def prompts(seed: int, count: int) -> list[tuple[str, str]]:
  """(prompt, family) of the first `count` prompts of a run with this seed of run and data."""
  config = default.get_config().data
  rows = tasks.rows("train", config.size, seed, config.families)
  return [(rows[i]["prompt"], rows[i]["family"]) for i in data.order(len(rows), seed, 0)[:count]]


if __name__ == "__main__":
  app.run(main)
