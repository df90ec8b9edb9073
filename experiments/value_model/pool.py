"""The policies whose pairs value models learn from and are tested on: warm starts, and runs that
collect from them."""

import concurrent.futures
import os
from pathlib import Path
import subprocess
import sys
import time

# Seeds of the warm starts that the model learns from (0 is the shipped one) and of those that test
# it, each with the steps of its fine-tuning.
LEARNT = {0: 0, 1: 4800, 2: 4800, 5: 2400, 6: 2400, 7: 2400}
TESTED = {3: 4800, 4: 4800}
SEEDS, STEPS = (1, 2, 3), 48  # of the runs whose pairs it learns from
LATER = (56, 64)  # steps of the checkpoints that test it
RUN = [
  "--config=configs/demo.py",
  "--config.prior.kind=neighbours",
  "--config.observe=('diagnostics','exact','pairs')",
  "--config.rollouts_per_step=512",
  "--config.eval.period=0",
  "--config.checkpoint.period=8",
  "--config.checkpoint.keep=20",
]


def make(out: Path):
  """Makes what is missing of the warm starts and of the runs from them, which collect pairs."""
  each(
    {
      f"warm{w}": [
        "--mode=sft",
        "--config=configs/warm_start.py",
        f"--config.seed={w}",
        f"--config.data.seed={w}",
        f"--config.sft.steps={steps}",
        f"--config.eval.period={steps}",
      ]
      for w, steps in (LEARNT | TESTED).items()
      if w
    },
    out,
    "hf/model.safetensors",
  )
  each(runs(out), out, "summary.png")


def runs(out: Path) -> dict[str, list[str]]:
  """Name -> flags of every run of the pool."""
  found = {f"learn{w}-{s}": run(out, w, 10 * w + s, STEPS) for w in LEARNT for s in SEEDS}
  found |= {f"test{w}-{s}": run(out, w, 10 * w + s, max(LATER)) for w in TESTED for s in SEEDS}
  return found | {f"same{s}": run(out, 0, 100 + s, max(LATER)) for s in SEEDS}


def run(out: Path, warm: int, seed: int, steps: int) -> list[str]:
  """Flags of a run from one warm start."""
  path = "builtin" if warm == 0 else out / f"warm{warm}" / "hf"
  return [
    *RUN,
    f"--config.policy.path={path}",
    f"--config.seed={seed}",
    f"--config.data.seed={seed}",
    f"--config.num_steps={steps}",
  ]


def each(commands: dict[str, list[str]], out: Path, last: str):
  """Runs `python -m v05_jax.main --workdir=OUT/NAME FLAGS` for each name where
  OUT/NAME/`last` is missing, one a core.

  Raises RuntimeError with the end of its output where one fails.
  """

  def one(item):
    name, options = item
    if (out / name / last).exists():
      return
    began = time.time()
    command = [sys.executable, "-m", "v05_jax.main", f"--workdir={out / name}", *options]
    alone = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if len(commands) > 1 else {}
    done = subprocess.run(
      command, capture_output=True, text=True, env=os.environ | alone, check=False
    )
    if done.returncode:
      raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    print(f"{name}: {time.time() - began:.0f} s", flush=True)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(one, commands.items()))
