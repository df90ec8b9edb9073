"""The golden lines: four steps of six configs at small sizes, every metric but the times.

    python -m tests.golden          # compares, prints the fields that differ
    python -m tests.golden v05 ewa  # two of the configs alone
    python -m tests.golden --write  # after a change that is meant: writes them anew

They are kept bit for bit on one machine. A commit that changes a line says why in its message.
Another processor, or another release of jax, rounds in another way: there a line may differ by a
small tolerance.
"""

import argparse
import hashlib
import json
import math
import os
from pathlib import Path
import platform
import sys
import tempfile

FOLDER = Path(__file__).parent / "data" / "golden"
NAMES = ("v05", "grpo", "dapo", "ewa", "v05_plus", "spo")
SMALL = {
  "num_steps": 4,
  "rollouts_per_step": 128,
  "eval.period": 2,
  "eval.size": 64,
  "eval.samples": 0,
  "checkpoint.period": 0,
  "sampler.slots": 64,
  "sampler.open_prompts": 32,
  "sampler.prefill": 32,
  "loss.micro_rows": 16,
}
# So that four steps show what the config is about: a prior that speaks and accepts, groups without
# signal that are replaced.
MORE = {"v05": {"prior.min_support": 8}, "dapo": {"budget.k_init": 4, "budget.k_max": 4}}


def config(name: str):
  """The config of that name at small sizes."""
  from v05_jax import config as configuration

  c = configuration.load(str(Path(__file__).parent.parent / "configs" / f"{name}.py"))
  c.update_from_flattened_dict(SMALL | MORE.get(name, {}))
  return c


def lines(name: str, folder) -> list[dict]:
  """The metrics of a run of that config, without the times."""
  from v05_jax.run import metrics
  from v05_jax.train import train

  train(config(name), folder)
  return [
    {key: value for key, value in line.items() if not key.startswith("time/")}
    for line in metrics.read(folder)
  ]


def machine() -> dict[str, str]:
  """What the bits of a float depend on: the processor, jax, and what a small program makes of some
  numbers."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  x = np.random.default_rng(0).normal(size=(192, 257)).astype(np.float32)
  probe = jax.jit(lambda x: jax.nn.softmax(jnp.tanh(x @ x.T) @ x).sum(0) + jax.nn.logsumexp(x, 0))
  text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
  about = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)  # of one core
  kind = [about.get(name, "").strip("\t: ") for name in ("model name", "cpu family", "model")]
  bits = hashlib.sha256(np.asarray(probe(x)).tobytes()).hexdigest()[:16]
  return {"jax": jax.__version__, "processor": ", ".join(kind) or platform.machine(), "bits": bits}


def stored(name: str) -> list[dict]:
  """The golden lines of a config."""
  return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def differences(found: list[dict], expected: list[dict], tolerance: float) -> list[str]:
  """Every field that differs by more than the relative and absolute `tolerance`; 0 = at all."""
  problems = (
    [] if len(found) == len(expected) else [f"{len(found)} lines, expected {len(expected)}"]
  )
  for a, b in zip(found, expected):
    for key in sorted(a.keys() | b.keys()):
      x, y = a.get(key, "nothing"), b.get(key, "nothing")
      numbers = all(isinstance(v, (int, float)) for v in (x, y))
      same = (
        math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance)
        if numbers and tolerance
        else x == y
      )
      if not same:
        problems.append(f"step {b.get('step')}, {key}: found {x}, expected {y}")
  return problems


def main(names=NAMES, write: bool = False) -> dict[str, list[str]]:
  """-> name of a config -> its differences, with those of another machine only where they are not
  rounding.

  Raises ValueError where only some would be written anew, on another machine than the others.
  """
  place = FOLDER / "machine.json"
  same = place.exists() and json.loads(place.read_text()) == machine()
  if write and not same:
    if set(names) != set(NAMES):
      raise ValueError("another machine wrote the other golden lines: write all of them")
    FOLDER.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(machine(), indent=2) + "\n")
    same = True
  problems = {}
  for name in names:
    with tempfile.TemporaryDirectory() as folder:
      found = lines(name, folder)
    if write:
      (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    problems[name] = differences(found, stored(name), 0.0 if same else 2e-2)
  return problems


if __name__ == "__main__":
  # Before jax is imported: one device, and programs that take a quarter less time to compile.
  os.environ.pop("XLA_FLAGS", None)
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

  from v05_jax import backend

  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
  parser.add_argument("--write", action="store_true", help="after a change that is meant")
  arguments = parser.parse_args()
  if unknown := set(arguments.names) - set(NAMES):
    parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(NAMES)}")
  backend.start(config("grpo"))
  found = main(arguments.names or NAMES, arguments.write)
  for name, problems in found.items():
    print(f"{name}: {len(problems)} fields differ" + "".join(f"\n  {x}" for x in problems[:8]))
  sys.exit(any(found.values()))
