"""V0 compared with simpler priors, and with the true success, which no prior can know."""

from collections.abc import Callable
import functools

import jax
import numpy as np

from experiments.value_model.checkpoints import Moment
from v05_jax import models, tasks
from v05_jax.configs import default
from v05_jax.priors import context
from v05_jax.priors import neighbours as kernel
from v05_jax.run.comparison import standard_error
from v05_jax.value_model import ValuePrior, scores

COLUMNS = ("intra-context AUC", "RMSE of V", "RMSE against 10 rollouts", "ECE")


def measure(model: ValuePrior, tested: dict[str, list[Moment]], others: list[Moment]) -> dict:
  """The tables over the moments: method -> mean and standard error over runs of each of `COLUMNS`.

  All are of the five families whose true success is known. AUC and ECE are against the mean of ten
  rollouts (positive from a half on), RMSE of V = 2 p - 1 against the true mean reward and against
  that of the rollouts. A run's moments are averaged first.
  """
  # What V0 knows of prompts in general: its mean over the contexts of other policies.
  rng = np.random.default_rng(0)
  average = np.mean([m.exact for m in others], 0)
  foreign = [model.predict(m.texts, m.scores, others[0].prompts) for m in others]
  methods = {
    "V0": lambda m: model.predict(m.texts, m.scores, m.prompts),
    "V0, context's labels shuffled": lambda m: model.predict(
      m.texts, rng.permutation(m.scores), m.prompts
    ),
    "V0, no context of its own": lambda m: np.mean(foreign, 0),
    "mean of the context": lambda m: np.full(len(m.prompts), m.scores.mean()),
    "the same by family": family_mean,
    "kernel regression": neighbours,
    "mean truth of 6 others": lambda m: average,
    "the truth": lambda m: m.exact,
  }
  kinds = {"another warm start": "test", "the shipped warm start, another seed": "same"}
  tables, reliability = {}, {}
  for kind, prefix in kinds.items():
    runs = [found for name, found in tested.items() if name.startswith(prefix)]
    tables[kind] = {name: measured(method, runs) for name, method in methods.items()}
    known = np.isfinite(average)
    p, t = (
      np.concatenate([x(m)[known] for found in runs for m in found])
      for x in (methods["V0"], lambda m: m.mean)
    )
    reliability[kind] = np.nan_to_num(scores.reliability(p, t)).tolist() + [[scores.ece(p, t)]]
  truth = np.stack([m.exact for m in others])
  spread = 2 * np.sqrt(np.nanmean(truth.var(0, ddof=1)))
  facts = {name: [float(2 * np.nanstd(m.exact)) for m in found] for name, found in tested.items()}
  return {
    "tables": tables,
    "reliability": reliability,
    "spread_between_runs": float(spread),
    "sd_of_truth": facts,
  }


def measured(method: Callable, runs: list[list[Moment]]) -> list[tuple[float, float]]:
  """(mean, standard error) of each column over the runs."""

  def row(m: Moment):
    known = np.isfinite(m.exact)
    p, seen = np.asarray(method(m))[known], m.mean[known]
    return (
      scores.auc(p, seen >= 0.5),
      scores.rmse(p, m.exact[known]),
      scores.rmse(p, seen),
      scores.ece(p, seen),
    )

  rows = np.array([np.mean([row(m) for m in found], 0) for found in runs])
  return list(zip(rows.mean(0).tolist(), standard_error(rows).tolist()))


def family_mean(m: Moment):
  """The mean of the context's prompts of the same family: its letter tells."""
  letters = np.array([text[0] for text in m.texts])
  return np.array([m.scores[letters == text[0]].mean() for text in m.prompts])


@functools.cache
def embedder():
  """`features(texts) -> [n, 2 D]` of the shipped policy, as `prior.kind=neighbours` sees them."""
  policy = models.load(default.get_config().policy)
  embed = jax.jit(functools.partial(kernel.embed_prompts, policy.config))

  def features(texts):
    encoded = [policy.tokenizer(text)["input_ids"] for text in texts]
    length = np.array([len(ids) for ids in encoded], np.int32)
    tokens = np.zeros((len(texts), tasks.MAX_PROMPT), np.int32)
    for row, ids in enumerate(encoded):
      tokens[row, : len(ids)] = ids
    return embed(policy.params, tokens, length)

  return features


def neighbours(m: Moment):
  """The package's prior without any training, with its default bandwidth."""
  given, asked = map(embedder(), (m.texts, m.prompts))
  none, every = np.full(len(given), np.nan), np.ones(len(given), bool)
  found = context.remember(context.empty(*given.shape), given, none, m.scores, every)
  bandwidth = default.get_config().priors.neighbours.bandwidth
  return (1 + np.asarray(kernel.kernel_regression(found, asked, bandwidth, 1))) / 2


def plot(results: dict, path):
  """Reliability on both kinds of runs, and the RMSE of each method beside the spread between
  runs."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.8), layout="constrained")
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
  left.plot([0, 1], [0, 1], color="gray", linewidth=1)
  for kind, (*rows, error) in results["reliability"].items():
    share, predicted, seen = np.array(rows).T
    left.plot(
      predicted[share > 0],
      seen[share > 0],
      "o-",
      label=f"{kind}:\nECE {error[0]:.3f}, all together",
    )
  left.set(
    xlabel="predicted probability of success",
    ylabel="mean success of ten rollouts",
    xlim=(0, 1),
    ylim=(0, 1),
  )
  left.legend(fontsize=7, loc="upper left", frameon=False)
  methods = [name for name in next(iter(results["tables"].values())) if name != "the truth"]
  for number, (kind, rows) in enumerate(results["tables"].items()):
    mean, error = np.array([rows[name][1] for name in methods]).T
    right.barh(np.arange(len(methods)) + 0.2 - 0.4 * number, mean, 0.38, xerr=error, label=kind)
  right.axvline(results["spread_between_runs"], color="gray", linestyle="--", linewidth=1)
  right.set_yticks(np.arange(len(methods)), methods)
  right.set_xlabel("RMSE of V; dashed: spread between policies", fontsize=9)
  right.invert_yaxis()
  right.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False)
  figure.savefig(path, dpi=120)
