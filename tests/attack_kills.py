"""Kills a run at random moments and compares what it leaves with an unbroken run, bit for bit:

    python -m tests.attack_kills --kills=100 --seed=1

Of every start it is asked that it goes on at once where the one before was killed, and never from
a checkpoint that is not whole. Prints what was done; ends with an error at the first difference.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from tests import support
from v05_jax import config as configuration
from v05_jax.configs import default
from v05_jax.run import metrics

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 1200  # that a start may take on a busy machine


def settings(steps: int):
  """A run of many short steps with everything that writes files switched on."""
  c = default.get_config()
  c.observe = (*c.observe, "scoreboard", "pairs")
  c.num_steps, c.rollouts_per_step, c.data.size, c.mesh.data = steps, 32, 256, 1
  c.sampler.update({"slots": 16, "open_prompts": 8, "prefill": 8, "chunk": 4})
  c.eval.update({"period": 2, "size": 24, "samples": 2})
  c.prior.update({"context": 32, "min_support": 8})
  c.loss.micro_rows, c.checkpoint.period = 16, 2
  return c


def start(workdir, cache, **keys) -> subprocess.Popen:
  """A process of a run whose config.json lies beside its workdir."""
  flags = [f"--config.{key}={value}" for key, value in keys.items()]
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": support.one_device(),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  config = f"--config={workdir.parent / 'config.json'}"
  command = [sys.executable, "-m", "v05_jax.main", config, f"--workdir={workdir}", *flags]
  return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_lines(process, workdir, count: int):
  """Returns when metrics.jsonl has so many lines, or the process has ended."""
  while process.poll() is None and len(metrics.read(workdir)) < count:
    time.sleep(0.02)


def ended(process, code: int = 0) -> str:
  """What a process wrote to stderr; it must end by itself, with this exit code."""
  said = process.communicate(timeout=SECONDS)[1]
  assert process.returncode == code, said
  return said


def left(workdir) -> tuple[list[dict], str]:
  """(lines of the metrics but for times, pairs) of a run."""
  lines = [
    {key: value for key, value in line.items() if not key.startswith("time/")}
    for line in metrics.read(workdir)
  ]
  pairs = (workdir / "pairs" / "pairs.jsonl").read_text()
  return lines, pairs.replace(json.dumps(workdir.name), '"run"')


def attack(folder, kills: int, seed: int = 0) -> str:
  """Kills a run `kills` times by SIGKILL, in any phase of a start or a step, and once by SIGTERM;
  then lets it end -> what was done. Raises AssertionError where anything differs from an unbroken
  run."""
  folder, draw = pathlib.Path(folder), random.Random(seed)
  # Of a start come 3 lines on average: the run is still under way after the last kill.
  config = settings(steps=6 * kills + 20)
  (folder / "config.json").write_text(configuration.to_json(config))
  killed, whole, cache = folder / "killed", folder / "whole", folder / "cache"
  ended(start(whole, cache))
  early = 0
  for _ in range(kills):
    before, process = len(metrics.read(killed)), start(killed, cache)
    if draw.random() < 0.25:  # at any moment of a start
      time.sleep(draw.uniform(0.0, 8.0))
    else:
      wait_for_lines(process, killed, before + draw.randint(1, 4))
      time.sleep(draw.uniform(0.0, 0.3))
    assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    early += len(metrics.read(killed)) <= before
  process = start(killed, cache)
  wait_for_lines(process, killed, len(metrics.read(killed)) + 1)
  process.terminate()
  assert "saved at step" in ended(process, 1)
  ended(start(killed, cache))
  (lines, pairs), (expected, pairs_expected) = left(killed), left(whole)
  assert lines == expected
  assert pairs == pairs_expected
  return (
    f"{kills} SIGKILLs and 1 SIGTERM, {early} before a start had written a line: {len(lines)} "
    f"lines and {len(pairs.splitlines())} pairs are those of an unbroken run"
  )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as own:
    print(attack(own, arguments.kills, arguments.seed))
