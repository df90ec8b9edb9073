"""The value model that the built-in tasks ship with: it opens, is small, and knows what it is there
for."""

import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

from v05_jax import models, tasks, value_model
from v05_jax.configs import default, v05
from v05_jax.value_model import scores, v0

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def known():
  """(texts and success of 256 training prompts, held-out texts, their true success) of the shipped
  policy."""
  config = default.get_config()
  policy = models.load(config.policy)
  exact = tasks.make_exact(policy.config, policy.tokenizer, config.sampler)
  given, asked = (
    tasks.rows("train", 256, 7, tasks.EXACT),
    tasks.rows("heldout", 400, 0, tasks.EXACT),
  )
  params = jax.device_put(policy.params)
  success = np.random.default_rng(0).binomial(4, exact(params, given)) / 4
  return (
    [row["prompt"] for row in given],
    success,
    [row["prompt"] for row in asked],
    exact(params, asked),
  )


def test_load_needs_no_other_import_and_the_pairs_no_model():
  program = """
import sys
from v05_jax.value_model import pairs
assert "v05_jax.models" not in sys.modules
from v05_jax import value_model
assert not hasattr(value_model, "prior")
print(value_model.load.__module__, value_model.ValuePrior.__name__)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["v05_jax.value_model.v0", "ValuePrior"]


def test_it_is_small_and_of_the_sizes_of_its_config():
  files = sorted(path.name for path in v0.BUILTIN.iterdir())
  assert files == ["adapter.safetensors", "head.safetensors", "v0.json"]
  assert sum(path.stat().st_size for path in v0.BUILTIN.iterdir()) < 2e6
  assert v05.get_config().priors.v0.path == "builtin" and v05.get_config().prior.kind == "v0"


def test_it_knows_which_prompts_are_hard_and_for_whom(known):
  """On the warm start: better than the context's mean, and worse where the context's labels are
  shuffled."""
  texts, success, asked, truth = known
  model = value_model.load("builtin")
  p = model.predict(texts, success, asked)
  constant = scores.rmse(np.full(len(truth), success.mean()), truth)
  assert scores.rmse(p, truth) < 0.8 * constant
  assert scores.auc(p, truth >= 0.5) > 0.8
  assert abs(p.mean() - truth.mean()) < 0.08
  shuffled = model.predict(texts, np.random.default_rng(1).permutation(success), asked)
  assert scores.rmse(shuffled, truth) > scores.rmse(p, truth) + 0.01
  better = model.predict(texts, np.minimum(success + 0.5, 1), asked)
  assert better.mean() > p.mean() + 0.1


MEMORY = """
import json, resource, sys
import jax
import numpy as np
from v05_jax.value_model import directory, initial, v0

rows, layers = int(sys.argv[1]), int(sys.argv[2])
settings = directory.RELEASED | {"temperature": 0.9, "estimators": 2}
if layers:
  settings["head"] = settings["head"] | {"layers": layers}
else:
  settings |= json.loads((v0.BUILTIN / "v0.json").read_text()) | {"estimators": 2}
model = v0.ValuePrior(
  settings, None, None, None, None, initial.init_head(jax.random.key(0), settings["head"])
)
rng = np.random.default_rng(0)
x, asked = (rng.normal(size=(n, model.width)).astype(np.float32) for n in (rows, 256))
marks = [(rng.random(rows), rng.random(256))] * 2
assert np.isfinite(model.predict_from_features(x, np.arange(rows) % 2, asked, marks)).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize(
  "rows, layers, gigabytes", [(5000, 0, 1.5), (512, 4, 2.0)], ids=["built-in", "full size"]
)
def test_the_memory_of_the_head_is_bounded(rows, layers, gigabytes):
  """A process that asks the built-in head in a context of 5,000 rows, and one of full width in 512.

  Of the 24 layers of full size it has four: each of the others adds its keys and values, 338
  columns x 576 rows x 64 x 2 numbers, 0.1 GB, and nothing else, so that all stay below 4 GB. Of two
  estimators one's keys and values exist at a time."""
  done = subprocess.run(
    [sys.executable, "-c", MEMORY, str(rows), str(layers)],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < gigabytes
