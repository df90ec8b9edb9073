"""What the seeds of the study differ in: their warm start, beside data, order and sampling.

Every seed has a warm start of its own, fine-tuned from random weights with its own seed, and from
it one for bimodal difficulty and one for the tasks with a scratchpad. All share the shipped V0,
which has learned from other warm starts (seeds 0, 1, 2, 5, 6, 7) and from none of these.

A warm start rounds in another way on another machine, and 2,400 steps make another policy of that:
there a seed is a new draw. results.json has their checksums, so that it shows.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from experiments.value_model import pool
from v05_jax import tasks

TUNING = (9, 10)  # seeds of the warm starts
SEEDS = (11, 12, 13, 14, 15, 16, 17, 18)
MODEL = "builtin"  # the V0 of all
STEPS = 2400  # of a warm start
FURTHER = {"bimodal": 800, "scratchpad": 800}  # of those that go on from it
DEMONSTRATIONS = 200_000  # rows for bimodal difficulty
KINDS = ("warm", *FURTHER)
WEIGHTS = "hf/model.safetensors"


def everything(out: Path):
  """Makes what is missing of the warm starts."""
  seeds = (*TUNING, *SEEDS)
  pool.each({f"warm{seed}": warm(seed) for seed in seeds}, out, WEIGHTS)
  demonstrations = out / "bimodal.jsonl"
  if not demonstrations.exists():
    write_demonstrations(demonstrations)
  pool.each({f"bimodal{seed}": bimodal(seed, out, demonstrations) for seed in seeds}, out, WEIGHTS)
  pool.each({f"scratchpad{seed}": scratchpad(seed, out) for seed in seeds}, out, WEIGHTS)


def warm(seed: int) -> list[str]:
  """Flags of a seed's warm start from random weights."""
  return [
    "--mode=sft",
    "--config=configs/warm_start.py",
    f"--config.seed={seed}",
    f"--config.data.seed={seed}",
    f"--config.sft.steps={STEPS}",
    f"--config.eval.period={STEPS}",
  ]


def bimodal(seed: int, out: Path, demonstrations: Path) -> list[str]:
  """Flags of its fine-tuning for bimodal difficulty."""
  return [
    "--mode=sft",
    "--config=configs/warm_start.py",
    f"--config.policy.path={policy('warm', seed, out)}",
    "--config.policy.preset=",
    f"--config.data.path={demonstrations}",
    f"--config.seed={seed}",
    f"--config.sft.steps={FURTHER['bimodal']}",
    "--config.sft.learning_rate=3e-3",
    # neither is used; rows of a file know no task
    "--config.reward=math",
    "--config.eval.period=0",
  ]


def scratchpad(seed: int, out: Path) -> list[str]:
  """Flags of its fine-tuning for the tasks with a scratchpad."""
  return [
    "--mode=sft",
    "--config=configs/warm_start_scratchpad.py",
    f"--config.policy.path={policy('warm', seed, out)}",
    f"--config.seed={seed}",
    f"--config.data.seed={seed}",
    f"--config.sft.steps={FURTHER['scratchpad']}",
    f"--config.eval.period={FURTHER['scratchpad']}",
  ]


def policy(kind: str, seed: int, out: Path) -> str:
  """Directory of a seed's warm start; kind: of KINDS."""
  return str(out / f"{kind}{seed}" / "hf")


def checksums(out: Path) -> dict[str, str]:
  """Warm start -> the first 16 digits of its weights' SHA-256, of those that are there."""
  names = [f"{kind}{seed}" for kind in KINDS for seed in (*TUNING, *SEEDS)]
  digest = lambda name: hashlib.sha256((out / name / WEIGHTS).read_bytes()).hexdigest()[:16]
  return {name: digest(name) for name in names if (out / name / WEIGHTS).exists()}


def compared(found: dict[str, str], known: dict[str, str]) -> str:
  """What is said of warm starts beside those that results.json was made with."""
  other = [name for name in found if known.get(name, found[name]) != found[name]]
  if not other:
    return f"{len(found)} warm starts" + (", all as in results.json" if known else "")
  return (
    f"{len(other)} of {len(found)} warm starts differ from those of results.json: their seeds are "
    f"new draws, and figures will differ within their intervals ({', '.join(other[:6])})"
  )


def write_demonstrations(path: Path):
  """Prompts of the training split with one demonstration each, of bimodal difficulty: level 0 is
  always done right, level 3 always by the family's wrong method, and the two between as in the
  shipped warm start."""
  rng = np.random.default_rng(0)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  with open(part, "w", encoding="utf-8") as file:
    for row in tasks.rows("train", DEMONSTRATIONS, 0):
      family = tasks.FAMILIES[row["family"]]
      always = {0: family.right, 3: family.sloppy}.get(row["level"])
      text = always(row["prompt"]) if always else tasks.demonstration(row, rng)
      file.write(json.dumps({"prompt": row["prompt"], "answer": text}) + "\n")
  part.rename(path)
