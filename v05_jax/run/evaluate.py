"""Success on held-out prompts: exact where a task allows it, elsewhere mean@n and pass@k by
sampling.

Evaluation has its own key stream and takes no part in training: the same parameters give the same
numbers at any step of any run with the same seed. A benchmark's samples do not depend on which
others are evaluated with it.
"""

from collections.abc import Callable
from typing import NamedTuple
import zlib

from absl import logging
import jax
import numpy as np

from v05_jax import data, rewards, rng, tasks
from v05_jax.budgets.base import fixed_number
from v05_jax.groups import map_reward
from v05_jax.models import tokenizer as tokenizers
from v05_jax.observers.base import pair
from v05_jax.run import metrics, success
from v05_jax.run.metrics import Pairs
from v05_jax.sampling.ledger import Order
from v05_jax.scale import distributed


class Result(NamedTuple):
  """The outcome of an evaluation of n prompts with K rollouts each."""

  rows: tuple[dict, ...]
  # float [n] success probability from a teacher-forced pass; NaN where it is not exact
  exact: np.ndarray
  # float [n, K] in [0, 1]; NaN where the verifier failed, or nothing was sampled
  success: np.ndarray
  tokens: np.ndarray  # int [n, K] of the response, EOS included; 0 where nothing was sampled
  ended: np.ndarray  # bool [n, K] EOS was sampled; False = truncated at the limit
  responses: np.ndarray  # str [n, K] as verifiers read them; "" where nothing was sampled

  @property
  def sampled(self) -> np.ndarray:
    """bool [n]: the prompt has rollouts."""
    return (self.tokens > 0).any(1)

  @property
  def mean(self) -> np.ndarray:
    """float [n]: mean@n, the share of the responses that succeed; NaN where nothing was sampled."""
    share = np.nan_to_num(self.success, nan=0.0).sum(1) / max(1, self.success.shape[1])
    return np.where(self.sampled, share, np.nan)

  @property
  def solved(self) -> np.ndarray:
    """bool [n, samples]: right in full. A failed verdict is no success."""
    return np.nan_to_num(self.success, nan=0.0) >= 1

  def passes(self, k: int) -> np.ndarray:
    """float [n]: pass@k, unbiased; NaN where nothing was sampled."""
    found = success.pass_at(self.solved.sum(1), self.success.shape[1], k)
    return np.where(self.sampled, found, np.nan)


class Evaluate(NamedTuple):
  """An evaluation; called as (params, sample_all=False)."""

  dataset: data.Dataset
  run: Callable[..., Result]

  def __call__(self, params, sample_all: bool = False) -> Result:
    return self.run(params, sample_all)


def shares(reward, low: float, high: float) -> np.ndarray:
  """Success in [0, 1] of the verifier's rewards (float32), NaN of none: exactly 1 at `high`, which
  the map to [-1, 1] may round to a little less."""
  return np.where(reward >= np.float32(high), 1.0, (map_reward(reward, low, high) + 1) / 2)


def make(policy, config, collect, learnt: data.Dataset | None = None) -> Evaluate:
  """Builds `evaluate(params, sample_all=False) -> Result` for `config.eval`.

  Prompts whose success is exact are sampled only with `sample_all`; the others always are, when
  `config.eval.samples > 0`. learnt: the prompts of training, of which those that are evaluated too
  are warned of. Sampling uses `collect` with its top-k and top-p, at the evaluation's
  temperature.
  """
  options = config.eval
  source = data.eval_config(config)
  dataset = data.load(
    source,
    policy.tokenizer,
    config.sampler.max_prompt,
    seed=config.seed,
    shuffle=False,
    key="eval.path",
  )
  rewards.check_answers(config.reward, dataset.rows, options.path)
  distributed.check_same("config.eval", lambda: [dataset.digest])
  if learnt is not None:
    warn_shared(learnt, dataset, options.path)
  exact = None
  if options.path == data.TASKS:
    sampler = config.sampler.copy_and_resolve_references()
    sampler.temperature = options.temperature
    exact = tasks.make_exact(policy.config, policy.tokenizer, sampler)
  order = Order(fixed_number(options.samples), temperature=options.temperature, interruptible=True)
  size = len(dataset)
  prompts = dataset.at(0, size)
  prompts = prompts.replace(position=positions(prompts.rows))

  def evaluate(params, sample_all=False) -> Result:
    probability = exact(params, prompts.rows) if exact else np.full(size, np.nan)
    wanted = np.full(size, bool(options.samples)) & (np.isnan(probability) | sample_all)
    texts = np.full((size, options.samples), "", object)
    if not wanted.any():
      length = np.zeros(texts.shape, int)
      return Result(prompts.rows, probability, length * np.nan, length, length > 0, texts)
    key = rng.at(config.seed, 0, rng.EVAL)
    rolls, stats = collect(params, prompts.replace(mask=wanted), key, order)
    if "sampler/not_finite" in stats:
      raise FloatingPointError(
        "the policy's log-probs are not finite, so that what it samples means nothing: its weights "
        "are damaged, or too large for config.policy.dtype"
      )
    share = shares(rolls.reward, config.rewards.low, config.rewards.high)
    for tokens, i, j in zip(rolls.tokens, rolls.prompt, rolls.index):
      if rolls.length[i, j]:
        ids = tokens[: rolls.length[i, j]]
        texts[i, j] = tokenizers.decode_response(policy.tokenizer, ids, policy.stop)
    return Result(prompts.rows, probability, share, rolls.length, rolls.ended, texts)

  return Evaluate(dataset, evaluate)


def warn_shared(prompts: data.Dataset, heldout: data.Dataset, path: str) -> None:
  """Says so where prompts of the evaluation, `config.eval.path`, are among those of training."""
  learnt = {str(row["prompt"]) for row in prompts.rows}
  shared = sum(str(row["prompt"]) in learnt for row in heldout.rows)
  if shared and distributed.first():
    logging.warning(
      "eval.path=%s: %d of %d prompts are in data.path too: success on them is not on held-out "
      "prompts",
      *(path, shared, len(heldout)),
    )


def label(row: dict) -> str:
  """The benchmark or the task family of a row, "" if it has neither."""
  return str(row.get("benchmark") or row.get("family") or "")


def positions(rows) -> np.ndarray:
  """int32 [n]: the position that names a prompt's random keys: its number within its benchmark,
  counted from a start that is the benchmark's own."""
  names = np.array([str(row.get("benchmark") or "") for row in rows])
  result = np.zeros(len(rows), np.int32)
  for name in np.unique(names):
    first = zlib.crc32(name.encode()) % 2**30  # 0 for ""
    result[names == name] = first + np.arange((names == name).sum())
  return result


def per_prompt(result: Result, every: bool = False) -> dict[str, np.ndarray]:
  """Metric -> its value [n] at each prompt, NaN where it has none. `every`: pass@k also for
  k < n."""
  count = np.maximum(1, (result.tokens > 0).sum(1))
  mean_of = lambda x: np.where(result.sampled, x.sum(1) / count, np.nan)
  n = result.success.shape[1]
  values = {
    "accuracy": np.where(np.isfinite(result.exact), result.exact, result.mean),
    "exact": result.exact,
    "mean": result.mean,
    "pass": result.passes(n) if n else result.mean,
    "length": mean_of(result.tokens),
    "truncated": mean_of(~result.ended & (result.tokens > 0)),
  }
  return values | {f"pass_at_{k}": result.passes(k) for k in success.passes(n) if every and k < n}


def subsets(rows) -> dict[str, np.ndarray]:
  """Suffix of a metric -> mask of its prompts, bool [n]: "" for all, "/NAME" for those of a
  benchmark or a task family."""
  names = np.array([label(row) for row in rows])
  suffixes = several(rows) or [f"/{name}" for name in sorted(set(names) - {""})]
  return {"": np.full(len(names), True), **{suffix: names == suffix[1:] for suffix in suffixes}}


def summarise(result: Result, every: bool = False) -> Pairs:
  """Metrics of all prompts, by benchmark or family, and the mean over several benchmarks; `every`
  as in `per_prompt`.

  `eval/accuracy` takes the exact probability where there is one.
  """
  values, found = per_prompt(result, every), {}
  for suffix, mask in subsets(result.rows).items():
    found |= {
      f"eval/{name}{suffix}": pair(x, mask)
      for name, x in values.items()
      if name != "exact" or not suffix
    }
  # Where some prompts are not sampled, mean@n and pass@k mean something by family, not over all.
  partly = (
    [f"eval/{name}" for name in values if name not in ("accuracy", "exact")]
    if not result.sampled.all()
    else []
  )
  failed = (np.isnan(result.success) & (result.tokens > 0)).sum()
  found["eval/failed"] = float(failed), float((result.tokens > 0).sum())
  if len(suffixes := several(result.rows)) > 1:
    for name in (x for x in values if x not in ("accuracy", "exact")):
      means = metrics.means({suffix: found[f"eval/{name}{suffix}"] for suffix in suffixes})
      found[f"eval/average/{name}"] = pair(list(means.values()))
  return {name: p for name, p in found.items() if p[1] and name not in partly}


def several(rows) -> list[str]:
  """The suffixes of the benchmarks among the rows, in their order."""
  return list(dict.fromkeys(f"/{label(row)}" for row in rows if row.get("benchmark")))


def intervals(result: Result, seed: int) -> dict[str, tuple[float, float]]:
  """Metric of `summarise(result, every=True)` -> the ends of its 95 % bootstrap interval over
  prompts.

  A benchmark's bootstrap draws depend on `seed` and its name alone. A metric that some of its
  prompts lack has no interval.
  """
  values, drawn = per_prompt(result, every=True), {}
  for suffix, mask in subsets(result.rows).items():
    whole = {name: x[mask] for name, x in values.items() if np.isfinite(x[mask]).all()}
    if suffix:
      whole.pop("exact", None)
    key = jax.random.fold_in(rng.at(seed, 0, rng.BOOTSTRAP), zlib.crc32(suffix.encode()))
    if whole:
      means = success.bootstrap(key, np.stack(list(whole.values()), 1))
      drawn |= {f"eval/{name}{suffix}": means[:, i] for i, name in enumerate(whole)}
  if len(suffixes := several(result.rows)) > 1:
    for name in (x for x in values if x not in ("accuracy", "exact")):
      drawn[f"eval/average/{name}"] = np.mean(
        [drawn[f"eval/{name}{suffix}"] for suffix in suffixes], 0
      )
  return {name: success.interval(x) for name, x in drawn.items()}
