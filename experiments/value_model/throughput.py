"""What the value model of the built-in tasks costs.

    python -m experiments.value_model.throughput [--runs=9]

Medians over --runs, warm, on all cores: features and values of 1,024 new prompts from 256 support
rows; the same with the features known; the prior's share of a step of configs/v05.py; and programs
compiled while rows vary in a bucket.
"""

import os
import tempfile
import time

from absl import app, flags, logging
import numpy as np

from v05_jax import tasks, value_model
from v05_jax.configs import v05
from v05_jax.run import metrics
from v05_jax.run.progress import CompilationCounter
from v05_jax.train import train

RUNS = flags.DEFINE_integer("runs", 9, "repetitions")


def main(_):
  logging.set_verbosity(logging.WARNING)
  model = value_model.load("builtin")
  texts = [row["prompt"] for row in tasks.rows("train", 1280, 0)]
  success = np.arange(256) % 5 / 4
  given, asked = model.features(texts[:256]), model.features(texts[256:])
  marks = lambda n, m: model.marks(texts[:n], texts[256 : 256 + m])
  values = lambda n, m: model.predict_from_features(given[:n], success[:n], asked[:m], marks(n, m))
  both = lambda: (model.features(texts[256:]), values(256, 1024))
  print(f"{os.cpu_count()} CPU cores, median of {RUNS.value}")
  print(f"features and values of 1,024 prompts, 256 support rows: {median(both):.3f} s")
  print(f"values of 1,024 prompts, features known: {median(lambda: values(256, 1024)):.3f} s")
  of_a_step = median(lambda: values(256, 64))
  print(f"values of 64 prompts, features known: {of_a_step:.4f} s")
  values(200, 100)
  with CompilationCounter() as compilations:
    for n, m in ((129, 128), (150, 65), (256, 99), (199, 70)):
      values(n, m)
    print(
      "programs compiled while 129 to 256 support rows and 65 to 128 queries vary: "
      f"{compilations()}"
    )
  config = v05.get_config()
  config.num_steps, config.eval.period = 24, 0
  with tempfile.TemporaryDirectory() as workdir:
    train(config, workdir)
    lines = metrics.read(workdir)[8:]
  step, prompts = (np.median([line[name] for line in lines]) for name in ("time/step", "prompts"))
  print(
    f"a step of configs/v05.py ({prompts:.0f} prompts): {step:.3f} s; of it the prior "
    f"{100 * of_a_step / step:.1f} %"
  )


def median(function) -> float:
  """Seconds of a call, after a first one that compiles."""
  function()
  times = []
  for _ in range(RUNS.value):
    began = time.perf_counter()
    function()
    times.append(time.perf_counter() - began)
  return float(np.median(times))


if __name__ == "__main__":
  app.run(main)
