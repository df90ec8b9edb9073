"""From the start of `python -m v05_jax.main` to the first finished step, with an empty and
with a filled cache.

Each start is a process of its own with the measured config in a file. A step is finished when its
line stands in metrics.jsonl: its rollouts, its update and its metrics are there then, and the
checkpoint is not.
"""

import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.throughput import process, setting, work
from v05_jax import config as configuration
from v05_jax.run import metrics

ROOT = Path(__file__).parent.parent.parent
MOST_SECONDS = 600.0  # of one run
COUNTED = 4  # steps of the run whose compilations are counted


def measure(args) -> dict:
  """Fields: first_s with an empty cache, med_s with a filled one, compilations of a run of COUNTED
  steps."""
  with tempfile.TemporaryDirectory() as folder:
    c = setting.config(folder, args, overrides=(*work.ONE_SHAPE, *args.set))
    runs = [time_to_step(folder, c, f"run{i}", args.devices) for i in range(args.reps + 1)]
    cold, *warm = runs
    c.num_steps = COUNTED
    time_to_step(folder, c, "counted", args.devices, to_end=True)
    lines = metrics.read(Path(folder) / "counted")
  counts = [int(line["time/compilations"]) for line in lines]
  n = args.groups * args.group
  return {
    "first_s": round(cold, 3),
    "med_s": round(statistics.median(warm), 3),
    "min_s": round(min(warm), 3),
    "reps": len(warm),
    "start_s": round(cold, 2),
    "unit": "steps/s",
    "per_s": round(1 / statistics.median(warm), 4),
    "devices": args.devices or process.cores(),
    "compilations": counts[-1],
    "compilations_late": counts[-1] - counts[1],
    "useful_tokens": round(lines[-1]["response/length"] * n),
    "utilisation": round(lines[-1]["sampler/utilisation"], 4),
    "decode_steps": int(lines[-1]["sampler/decode_steps"]),
    "details": {"compilations_by_step": counts, "preset": work.PRESETS[args.size]},
  }


def time_to_step(folder, config, name: str, devices: int, to_end: bool = False) -> float:
  """Runs `config`, as far as its first step unless `to_end`, and returns the seconds to the first
  line of its metrics. Raises RuntimeError if it fails.

  A line is written when the next step has been dispatched, so only a run of one step times its
  first one.
  """
  file, workdir = Path(folder) / f"{name}.json", Path(folder) / name
  file.write_text(configuration.to_json(config))
  env = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache"),
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_NUM_CPU_DEVICES": str(devices or process.cores()),
  }
  command = [sys.executable, "-m", "v05_jax.main", f"--config={file}", f"--workdir={workdir}"]
  with open(Path(folder) / f"{name}.log", "w+") as log:
    began = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
      seconds = wait_for_line(workdir / "metrics.jsonl", child, began)
      failed = seconds is None or (to_end and child.wait(MOST_SECONDS) != 0)
    finally:
      child.kill()
      child.wait()
    if failed:
      log.seek(0)
      raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {log.read()[-2000:]}")
  return seconds


def wait_for_line(path: Path, child, began: float) -> float | None:
  """Seconds from `began` to the first whole line of `path`; None if the child ends without one."""
  while time.perf_counter() - began < MOST_SECONDS:
    ended = child.poll() is not None
    if (
      path.exists()
      and (text := path.read_text()).endswith("\n")
      and json.loads(text.splitlines()[0])["step"]
    ):
      return time.perf_counter() - began
    if ended:
      return None
    time.sleep(0.005)
  return None
