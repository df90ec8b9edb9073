"""What is compared: two arenas, and methods that get the same number of rollouts."""

from pathlib import Path
from typing import NamedTuple

from v05_jax.configs import smollm2

RATES = (1e-5, 3e-5, 1e-4)  # learning rates that the tuning tries
RATE = 3e-5  # until the tuning has said something else
TUNING_SEED = 100
SAMPLES = 8  # of a held-out problem
DEMONSTRATIONS_SEED = 1000  # added to a run's seed: the warm start's problems are others


class Task(NamedTuple):
  """One training run."""

  arena: str
  method: str
  seed: int
  rate: float

  @property
  def name(self) -> str:
    return f"{self.method}-{self.seed}-{self.rate:g}"


def group(k: int, baseline: str = "grpo") -> dict:
  """Groups of k without a prior."""
  rule = {"prior.kind": "none", "baseline": baseline, "loss.aggregate": "rollout"}
  return rule | {"budget.k_init": k, "budget.k_max": k}


ONCE = {"budget.k_init": 1, "budget.k_max": 1, "loss.epochs": 2}  # one rollout a prompt, used twice
CONSTANT = {"prior.kind": "constant"}

# Config changes from V0.5 with four rollouts a prompt and the prior `neighbours`.
METHODS = {
  "v05": {},
  "grpo16": group(16),
  "grpo4": group(4),
  "rloo4": group(4, "rloo"),
  "dapo16": group(16)
  | {
    "loss.aggregate": "token",
    "loss.clip_high": 0.28,
    "budget.max_resample": 9,
    "rewards.overlong_buffer": 2,
  },
  "v05_constant": CONSTANT,
  "v05_osla": {
    "budget.rule": "sequential",
    "budget.k_max": 16,
    "budgets.sequential.cost": 1 / 256,
    "budgets.sequential.block": 1,
  },
  "v05_score": {"baseline": "v05_score"},
  "once": ONCE,
  "once_constant": ONCE | CONSTANT,
  "once_score": ONCE | CONSTANT | {"baseline": "score"},
  "once_v05_score": ONCE | {"baseline": "v05_score"},
  "recipe": ONCE
  | {"baseline": "ewa", "prior.wrappers": (), "selection.pool": 4, "loss.clip_high": 0.28},
  "spo": CONSTANT
  | {
    "baseline": "spo",
    "budget.k_init": 1,
    "budget.k_max": 1,
    "selection.pool": 4,
    "selection.weighted": False,
    "loss.aggregate": "rollout",
    "data.size": 640,
  },
}
TITLES = {
  "v05": "V0.5, 4",
  "grpo16": "GRPO, 16",
  "grpo4": "GRPO, 4",
  "rloo4": "RLOO, 4",
  "dapo16": "DAPO, 16",
  "v05_constant": "V0.5, 4, a constant as the prior",
  "v05_osla": "V0.5, 4 to 16 (the paper's budget)",
  "v05_score": "score-weighted V0.5, 4",
  "once": "V0.5, 1, used twice",
  "once_constant": "V0.5, 1, used twice, a constant",
  "once_score": "score, 1, used twice",
  "once_v05_score": "score-weighted V0.5, 1, used twice",
  "recipe": "V0.5+ (configs/v05_plus.py)",
  "spo": "SPO, 1",
}
ARENAS = ("tasks", "words")
HELDOUT = {"tasks": 480, "words": 300}  # problems


def warm_start(arena: str, seed: int, data: Path, model: str):
  """The config of a seed's warm start."""
  c = base(arena, data)
  c.policy.path, c.seed, c.data.seed = model, seed, DEMONSTRATIONS_SEED + seed
  c.eval.update({"size": 48, "period": 0})
  if arena == "words":
    c.data.path = str(data / "sft.jsonl")
  return c


def training(task: Task, data: Path, start: str):
  """The config of a run from the warm start `start`."""
  c = base(task.arena, data)
  c.update_from_flattened_dict(METHODS[task.method])
  c.policy.path, c.seed, c.data.seed = start, task.seed, task.seed
  c.optimizer.learning_rate = task.rate
  c.observe = (*c.observe, "noise")
  c.checkpoint.update({"period": 5, "keep": 1})
  return c


def heldout(config, arena: str, data: Path):
  """The same config, to be judged on problems that no training has seen."""
  c = config.copy_and_resolve_references()
  c.eval.update({"split": "heldout", "size": HELDOUT[arena], "samples": SAMPLES})
  if arena == "words":
    c.eval.path = str(data / "test.jsonl")
  return c


def base(arena: str, data: Path):
  """The arena's problems, limits and sizes, with V0.5 (configs/smollm2.py)."""
  c = smollm2.get_config()
  if arena == "words":
    c.reward, c.data.options = "expression", ""
    c.data.path, c.eval.path = str(data / "train.jsonl"), str(data / "validation.jsonl")
    c.data.template = "Problem: {prompt}\nExpression: "
    c.sampler.update({"max_prompt": 112, "max_response": 32})
    c.loss.row_length = 384
  return c
