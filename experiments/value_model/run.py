"""The value model of the built-in tasks, from nothing: policies, their pairs, the model, and what it is worth.

    python -m experiments.value_model.run [--out=runs/value_model] [--install]

Warm starts are fine-tuned with other seeds than the shipped one and trained by reinforcement learning, which collects
(prompt, success) pairs; a V0 learns from the pairs of five of them and of the shipped one; the last two test it, later
in training than any policy that it learned from. Every command is one that README.md describes; what is complete in
--out is taken as it is. Writes results.json and model.png beside this file; with --install the model goes to
v05_jax/tasks/value_model, which `prior.path=builtin` opens.
"""

import concurrent.futures
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

from absl import app, flags

from experiments.estimator_lab.tables import table
from experiments.value_model import judge
from experiments.value_model.checkpoints import moments
from v05_jax.value_prior import v0

HERE = Path(__file__).parent
OUT = flags.DEFINE_string("out", "runs/value_model", "folder of the runs")
INSTALL = flags.DEFINE_bool("install", False, "make the model the one that the package ships")

# Seeds of the warm starts that the model learns from (0 is the shipped one) and of those that test it, each with the
# steps of its fine-tuning.
LEARNT = {0: 0, 1: 4800, 2: 4800, 5: 2400, 6: 2400, 7: 2400}
TESTED = {3: 4800, 4: 4800}
SEEDS, STEPS = (1, 2, 3), 48  # of the runs whose pairs it learns from
LATER = (56, 64)  # steps of the checkpoints that test it
RUN = ["--config=configs/demo.py", "--config.prior.kind=neighbours", "--config.collect=True",
       "--config.rollouts_per_step=512", "--config.eval.period=0", "--config.checkpoint.period=8",
       "--config.checkpoint.keep=20"]  # fmt: skip


def main(_):
  out = Path(OUT.value)
  each({f"warm{w}": ["--mode=sft", "--config=configs/warm_start.py", f"--config.seed={w}", f"--config.data.seed={w}",
                     f"--config.sft.steps={steps}", f"--config.eval.period={steps}"]
        for w, steps in (LEARNT | TESTED).items() if w}, out, "hf/model.safetensors")  # fmt: skip
  runs = {f"learn{w}-{s}": run(out, w, 10 * w + s, STEPS) for w in LEARNT for s in SEEDS}
  runs |= {f"test{w}-{s}": run(out, w, 10 * w + s, max(LATER)) for w in TESTED for s in SEEDS}
  runs |= {f"same{s}": run(out, 0, 100 + s, max(LATER)) for s in SEEDS}
  each(runs, out, "summary.png")
  data = ",".join(str(out / name / "pairs") for name in runs if name.startswith("learn"))
  each({"value": ["--mode=value", "--config=configs/value.py", f"--config.value.data={data}"]}, out, "v0/v0.json")
  tested = {name: moments(out / name, LATER) for name in runs if not name.startswith("learn")}
  others = [moments(out / f"learn{w}-{SEEDS[0]}", (STEPS,))[0] for w in LEARNT]
  results = judge.measure(v0.load(str(out / "value" / "v0")), tested, others)
  results["cpus"] = os.cpu_count()
  (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
  judge.plot(results, HERE / "model.png")
  for name, rows in results["tables"].items():
    cells = [[method, *(f"{mean:.3f} ± {error:.3f}" for mean, error in found)] for method, found in rows.items()]
    print(f"\n{name}\n" + table(["", *judge.COLUMNS], cells))
  if INSTALL.value:
    shutil.rmtree(v0.BUILTIN, ignore_errors=True)
    shutil.copytree(out / "value" / "v0", v0.BUILTIN)
    size = sum(file.stat().st_size for file in v0.BUILTIN.iterdir())
    print(f"\n{v0.BUILTIN}: {size / 1e6:.2f} MB")


def run(out: Path, warm: int, seed: int, steps: int) -> list[str]:
  """Flags of a run from one warm start."""
  path = "builtin" if warm == 0 else out / f"warm{warm}" / "hf"
  return [*RUN, f"--config.policy.path={path}", f"--config.seed={seed}", f"--config.data.seed={seed}",
          f"--config.num_steps={steps}"]  # fmt: skip


def each(commands: dict[str, list[str]], out: Path, last: str):
  """Runs `python -m v05_jax.main --workdir=OUT/NAME FLAGS` for each name where OUT/NAME/`last` is missing, one a core.

  Raises RuntimeError with the end of its output where one fails.
  """
  def one(item):
    name, options = item
    if (out / name / last).exists():
      return
    began = time.time()
    command = [sys.executable, "-m", "v05_jax.main", f"--workdir={out / name}", *options]
    alone = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if len(commands) > 1 else {}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone, check=False)
    if done.returncode:
      raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    print(f"{name}: {time.time() - began:.0f} s", flush=True)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(one, commands.items()))


if __name__ == "__main__":
  app.run(main)
