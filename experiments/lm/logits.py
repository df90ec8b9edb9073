"""Are the logits of a real model right? Ours and those of transformers, beside float64.

    make lm; make peers
    python -m experiments.lm.logits

Three passes over the same texts, one each: this package's in float32, transformers' in float32, and
transformers' in float64, which counts as the truth. Two correct float32 passes differ from it by
roundings, and by about as much. Prints a table. `--logits_model` is any Hugging Face directory.
"""

from pathlib import Path
import subprocess
import sys
import tempfile

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from scipy.special import log_softmax

from v05_jax import backend, models
from v05_jax.configs import default
from v05_jax.models import decoder

ROOT = Path(__file__).parents[2]
MODEL = flags.DEFINE_string(
  "logits_model", ".cache/lm/smollm2", "Hugging Face directory of the model"
)
PEERS = flags.DEFINE_string(
  "torch_python",
  str(ROOT / ".cache/peers/torch/bin/python"),
  "an interpreter with torch, transformers",
)
LIMIT = 600  # seconds for transformers' passes

TEXTS = (
  "What is the capital of France? The capital of France is Paris.",
  "Tom has 3 apples and buys 4 more. How many apples has he? 3 + 4 = 7. The answer is 7.",
  "Question: Find the Greatest Common Divisor (GCD) of these numbers: 84, 36.\nAnswer: 12",
  "def add(a, b):\n  return a + b\n\n\nprint(add(2, 40))  # 42\n",
  "Once upon a time, in a land far away, there was a village by the sea whose people spoke to "
  "the waves every morning and were never once answered.",
)


def main(argv):
  if argv[1:]:
    raise app.UsageError(f"found {' '.join(argv[1:])}, expected flags alone")
  try:
    print(compare(MODEL.value, PEERS.value))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


def compare(model: str, python: str) -> str:
  """The table of both passes' errors. Raises ValueError without a model or an interpreter."""
  if not Path(python).is_file():
    raise ValueError(
      f"--torch_python: found no {python}, expected an interpreter: `make peers` makes one"
    )
  backend.start(default.get_config())
  policy = ConfigDict(default.get_config().policy)
  policy.path = model
  found = models.load(policy)
  # The head's float32 product may otherwise run in a lower precision on a GPU or TPU.
  with jax.default_matmul_precision("highest"):
    ours = [logits(found, text) for text in TEXTS]
  ids = [np.asarray(found.tokenizer(text)["input_ids"], np.int32) for text in TEXTS]
  theirs, truth = of_transformers(model, python, ids)
  return table({"v05_jax": ours, "transformers": theirs}, truth)


def logits(policy: models.Policy, text: str) -> np.ndarray:
  """[T, V] of a text of T tokens, as the update computes hidden states."""
  ids = jnp.asarray(policy.tokenizer(text)["input_ids"], jnp.int32)[None]
  positions, ones = jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)
  hidden = decoder.forward(policy.config, policy.params, ids, positions, ones)
  return np.asarray(decoder.logits(policy.config, policy.params, hidden)[0])


def of_transformers(model: str, python: str, ids: list[np.ndarray]):
  """(float32, float64) logits of token ids, by a process that has torch."""
  with tempfile.TemporaryDirectory() as folder:
    given, out = Path(folder) / "ids.npz", Path(folder) / "logits.npz"
    np.savez(given, *ids)
    command = [python, "-m", "experiments.lm.torch_logits", model, str(given), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
      raise ValueError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    with np.load(out) as file:
      both = [file[f"arr_{i}"] for i in range(2 * len(ids))]
  return both[: len(ids)], both[len(ids) :]


def table(passes: dict[str, list[np.ndarray]], truth: list[np.ndarray]) -> str:
  """Errors of each pass against `truth`, over all positions and ids that a token has."""
  rows = [
    "| float32 logits, beside float64 | largest error | root mean square | log-prob, largest | "
    "same most likely token |",
    "| --- | --- | --- | --- | --- |",
  ]
  usable = min(len(x[0][0]) for x in passes.values())
  exact = np.concatenate(truth)[:, :usable].astype(np.float64)
  for name, found in passes.items():
    x = np.concatenate(found)[:, :usable].astype(np.float64)
    error, logprob = np.abs(x - exact), np.abs(log_softmax(x, -1) - log_softmax(exact, -1)).max()
    same = np.mean(x.argmax(-1) == exact.argmax(-1))
    mean = np.sqrt(np.mean(error**2))
    rows.append(f"| {name} | {error.max():.1e} | {mean:.1e} | {logprob:.1e} | {same:.3f} |")
  positions, largest = len(exact), np.abs(exact).max()
  rows.append(f"\n{positions} positions, {usable:,} ids; the largest logit is {largest:.1f}")
  return "\n".join(rows)


if __name__ == "__main__":
  app.run(main)
