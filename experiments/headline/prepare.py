"""What the seeds of the study differ in: the warm start, and a value model that has never seen its
rollouts.

Both come from the runs of `experiments.value_model`. Every seed takes another of its warm starts,
and a V0 of its own, trained on the pairs of all policies but those of that warm start. The two warm
starts that test the shipped V0, which has learned from neither, are for tuning, with that V0. For
bimodal difficulty every warm start is fine-tuned further.
"""

import json
from pathlib import Path

import numpy as np

from experiments.value_model import pool
from v05_jax import tasks

TUNING = (3, 4)  # seeds of the warm starts
SEEDS = (1, 2, 5, 6, 7)
UPDATES = 600  # of a seed's V0

DEMONSTRATIONS, FINE_TUNING = 200_000, 2000  # rows and steps of 128 for bimodal difficulty


def everything(out: Path, runs: Path):
  """Makes what is missing of warm starts and value models; `runs` is the folder of the value
  model's runs."""
  pool.make(runs)
  options = {}
  for seed in SEEDS:
    others = [
      name
      for name in pool.runs(runs)
      if name.startswith("learn") and not name.startswith(f"learn{seed}-")
    ]
    data = ",".join(str(runs / name / "pairs") for name in others)
    options[f"value{seed}"] = [
      "--mode=value",
      "--config=configs/value.py",
      f"--config.value.data={data}",
      f"--config.seed={seed}",
      f"--config.value.steps={UPDATES}",
      "--config.value.tasks=4",
    ]
  pool.each(options, out, "v0/v0.json")
  demonstrations = out / "bimodal.jsonl"
  if not demonstrations.exists():
    write_demonstrations(demonstrations)
  pool.each(
    {
      f"bimodal{seed}": [
        "--mode=sft",
        "--config=configs/warm_start.py",
        f"--config.policy.path={policy('default', seed, out, runs)}",
        "--config.policy.preset=",
        f"--config.data.path={demonstrations}",
        f"--config.seed={seed}",
        f"--config.sft.steps={FINE_TUNING}",
        "--config.sft.learning_rate=3e-3",
        # neither is used; rows of a file know no task
        "--config.reward=math",
        "--config.eval.period=0",
      ]
      for seed in (*TUNING, *SEEDS)
    },
    out,
    "hf/model.safetensors",
  )


def policy(regime: str, seed: int, out: Path, runs: Path) -> str:
  """Directory of a seed's warm start."""
  return str(out / f"bimodal{seed}" / "hf" if regime == "bimodal" else runs / f"warm{seed}" / "hf")


def model(seed: int, out: Path) -> str:
  """Directory of a seed's V0."""
  return "builtin" if seed in TUNING else str(out / f"value{seed}" / "v0")


def write_demonstrations(path: Path):
  """Prompts of the training split with one demonstration each, of bimodal difficulty: level 0 is
  always done right, level 3 always by the family's wrong method, and the two between as in the
  shipped warm start."""
  rng = np.random.default_rng(0)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w", encoding="utf-8") as file:
    for row in tasks.rows("train", DEMONSTRATIONS, 0):
      family = tasks.FAMILIES[row["family"]]
      always = {0: family.right, 3: family.sloppy}.get(row["level"])
      text = always(row["prompt"]) if always else tasks.demonstration(row, rng)
      file.write(json.dumps({"prompt": row["prompt"], "answer": text}) + "\n")
