"""What can cheap features say of a prompt's difficulty? Real policies on real competition
mathematics.

    python -m experiments.value_prior_real.run --data=FOLDER [--quick] [--head=runs/head/v0]

FOLDER holds context.jsonl and prompt_dict.json (or prompts.json) of V0's public sample
(github.com/Now-Join-Us/V0, folder data/, Apache-2.0): mean rewards of ten rollouts for 512 prompts
in each of six contexts, a policy at a training step. In five folds each context's prompts are
predicted from the others of it. Writes results.json and scores.png.
"""

import functools
import json
import os
from pathlib import Path
import time
import zlib

from absl import app, flags
import numpy as np

from v05_jax import value_model
from v05_jax.priors import context as contexts
from v05_jax.priors.neighbours import kernel_regression
from v05_jax.run.comparison import standard_error
from v05_jax.value_model import pairs, scores

HERE = Path(__file__).parent
DATA = flags.DEFINE_string("data", "data/v0_rollouts", "folder with context.jsonl and its prompts")
HEAD = flags.DEFINE_string("head", "", "V0 directory whose head is measured too, see README.md")
QUICK = flags.DEFINE_bool(
  "quick", False, "one division into folds instead of eight; nothing is written"
)

FOLDS, REPEATS = 5, 8
BUCKETS, GRAMS = 4096, (2, 3, 4)  # of hashed character n-grams
COMPONENTS, FEW = 32, 8  # of them, for the neighbours and for our head
RIDGE = 3.0  # on kernels whose diagonal is 1


def main(_):
  began = time.perf_counter()
  groups = load(Path(DATA.value))
  texts = list(dict.fromkeys(text for rows in groups.values() for text, _ in rows))
  place = {text: i for i, text in enumerate(texts)}
  grams = ngrams(texts)
  known = {"length": lengths(texts), "n-grams": grams, "components": components(grams)}
  methods = METHODS
  if HEAD.value:
    methods = METHODS | {"our head": head(value_model.load(HEAD.value))}
    known["few components"] = known["components"][:, :FEW]
  found = {name: [] for name in methods}  # a list over contexts of the means over repeats
  for key, rows in groups.items():
    index, t = (
      np.array([place[text] for text, _ in rows]),
      np.array([(score + 1) / 2 for _, score in rows]),
    )
    features = {name: x[index] for name, x in known.items()}
    each = {name: [] for name in methods}
    for repeat in range(1 if QUICK.value else REPEATS):
      fold = np.random.default_rng(repeat).permutation(len(t)) % FOLDS
      for name, method in methods.items():
        p = np.zeros(len(t))
        for i in range(FOLDS):
          p[fold == i] = method(features, t, fold != i, fold == i)
        each[name].append(measure(np.clip(p, 0, 1), t, fold))
    for name in methods:
      found[name].append(np.mean(each[name], 0))
    print(
      f"[{time.perf_counter() - began:3.0f} s] {' '.join(map(str, key))}: {len(t)} prompts",
      flush=True,
    )
  table = {name: summary(np.array(x)) for name, x in found.items()}
  noise = np.mean(
    [np.mean(1 - np.array([s for _, s in rows]) ** 2) / 9 for rows in groups.values()]
  )
  results = {
    "methods": table,
    "floor_rmse": float(np.sqrt(noise)),
    "contexts": [list(key) for key in groups],
    "folds": FOLDS,
    "repeats": REPEATS,
    "cpus": os.cpu_count(),
    "seconds": round(time.perf_counter() - began),
  }
  print("\n" + markdown(results))
  if not QUICK.value:
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, HERE / "scores.png")


def load(folder: Path) -> dict[tuple, list[tuple[str, float]]]:
  """(dataset, policy, step) -> its (prompt, mean reward in [-1, 1]) rows. Raises ValueError without
  the files."""
  texts = [folder / name for name in pairs.NAMES if (folder / name).exists()]
  if not texts or not (folder / "context.jsonl").exists():
    raise ValueError(
      f"--data: found no context.jsonl or none of {' and '.join(pairs.NAMES)} in {folder}, "
      "expected V0's public sample (see the docstring)"
    )
  prompts = json.loads(texts[0].read_text())
  groups: dict[tuple, list] = {}
  for line in (folder / "context.jsonl").read_text().splitlines():
    row = json.loads(line)
    text = prompts[f"{row['dataset']}_{row['id']}"]
    groups.setdefault((row["dataset"], row["model"], row["step"]), []).append((text, row["score"]))
  return groups


# --- Features, of all prompts at once: they see no score


def lengths(texts) -> np.ndarray:
  """[N, 5] standardised: logarithms of characters, words, digits, formula marks, and the share of
  ASCII."""
  count = lambda text, marks: sum(text.count(mark) for mark in marks)
  rows = [
    [len(x), len(x.split()), sum(c.isdigit() for c in x), count(x, "$\\^_{"), 0] for x in texts
  ]
  x = np.log1p(np.array(rows, float))
  x[:, 4] = [np.mean([c.isascii() for c in text]) for text in texts]
  return (x - x.mean(0)) / x.std(0)


def ngrams(texts) -> np.ndarray:
  """[N, 4096]: hashed character n-grams, tf-idf, rows of length 1."""
  x = np.zeros((len(texts), BUCKETS), np.float32)
  bucket = functools.cache(lambda gram: zlib.crc32(gram.encode()) % BUCKETS)
  for row, text in zip(x, texts):
    for n in GRAMS:
      for i in range(len(text) - n + 1):
        row[bucket(text[i : i + n])] += 1
  x = np.log1p(x) * np.log(len(texts) / (1 + np.count_nonzero(x, 0)))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def components(x) -> np.ndarray:
  """[N, 32]: the leading principal components."""
  u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  return (u[:, :COMPONENTS] * s[:COMPONENTS]).astype(np.float32)


# --- Methods: success probabilities of the rows `asked`, from the t of the rows `given`


def constant(features, t, given, asked):
  return np.full(asked.sum(), t[given].mean())


def neighbours(features, t, given, asked, bandwidth=0.5):
  x = features["components"]
  context = contexts.remember(
    contexts.empty(int(given.sum()), x.shape[1]),
    x[given],
    np.full(given.sum(), np.nan, np.float32),
    t[given].astype(np.float32),
    np.ones(given.sum(), bool),
  )
  return (1 + np.asarray(kernel_regression(context, x[asked], bandwidth, 1))) / 2


def ridge(name, scale=1.0):
  """Kernel ridge regression on a feature, shrunk to the mean of the given rows."""

  def method(features, t, given, asked):
    x = features[name]
    kernel = x @ x[given].T / scale
    mean = t[given].mean()
    weight = np.linalg.solve(kernel[given] + RIDGE * np.eye(given.sum()), t[given] - mean)
    return mean + kernel[asked] @ weight

  return method


def head(model):
  """A head trained on synthetic tasks alone, on few components: it learns from the given rows by
  reading them."""

  def method(features, t, given, asked):
    x = features["few components"]
    return model.predict_from_features(x[given], t[given], x[asked])

  return method


METHODS = {
  "constant": constant,
  "length": ridge("length", 5.0),
  "neighbours": neighbours,
  "n-grams, ridge": ridge("n-grams"),
}
MEASURES = ("AUC", "RMSE", "ECE")


def measure(p, t, fold) -> list[float]:
  """AUC of t >= .5 inside the folds (between them a mean without the fold would rank it upside
  down), RMSE, ECE."""
  return [scores.grouped_auc(p, t >= 0.5, fold.tolist()), scores.rmse(p, t), scores.ece(p, t)]


def summary(x) -> dict:
  """Mean over contexts [6, 3] and its standard error, by measure."""
  return {
    name: {"mean": float(mean), "error": float(error)}
    for name, mean, error in zip(MEASURES, x.mean(0), standard_error(x))
  }


def markdown(results) -> str:
  lines = ["| method | intra-context AUC | RMSE of V | ECE |", "| --- | --- | --- | --- |"]
  for name, row in results["methods"].items():
    lines.append(
      f"| {name} | "
      + " | ".join(f"{x['mean']:.3f} ± {x['error']:.3f}" for x in row.values())
      + " |"
    )
  return "\n".join(
    [
      *lines,
      "",
      f"RMSE of the true means against those of ten rollouts: {results['floor_rmse']:.3f}",
    ]
  )


def plot(results, path: Path):
  """A panel a measure, a bar a method."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, grid = pyplot.subplots(1, len(MEASURES), figsize=(9, 2.6), layout="constrained")
  names = list(results["methods"])
  for axes, name in zip(grid, MEASURES):
    values = [results["methods"][method][name] for method in names]
    axes.errorbar(
      [x["mean"] for x in values],
      names,
      xerr=[x["error"] for x in values],
      fmt="o",
      color="#0072b2",
    )
    axes.set_title(name, loc="left", fontsize=9)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    if axes is not grid[0]:
      axes.set_yticklabels([])
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


if __name__ == "__main__":
  app.run(main)
