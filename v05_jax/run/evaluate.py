"""Success on held-out prompts: exact where a task allows it, elsewhere mean@n and pass@k by
sampling.

Evaluation has its own key stream and takes no part in training: the same parameters give the same
numbers at any step of any run with the same seed. A benchmark's samples do not depend on which
others are evaluated with it.
"""

from collections.abc import Callable
import json
from typing import NamedTuple
import zlib

import jax
import numpy as np

from v05_jax import benchmarks, data, rewards, rng, tasks
from v05_jax import config as configuration
from v05_jax.budgets.base import fixed_number
from v05_jax.groups import map_reward
from v05_jax.models import tokenizer as tokenizers
from v05_jax.observers.base import pair
from v05_jax.run import checkpoint, files, metrics, success
from v05_jax.run.export import parameters
from v05_jax.run.metrics import Pairs
from v05_jax.sampling import rollouts
from v05_jax.sampling.ledger import Order
from v05_jax.scale import distributed
from v05_jax.setup import setup


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


def make(policy, config, collect) -> Evaluate:
  """Builds `evaluate(params, sample_all=False) -> Result` for `config.eval`.

  Prompts whose success is exact are sampled only with `sample_all`; the others always are, when
  `config.eval.samples > 0`. Sampling uses `collect` with its top-k and top-p, at the evaluation's
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


def evaluate_workdir(config, workdir: str, step: int | None = None) -> dict[str, float]:
  """`--mode=eval`: samples every prompt of `config.eval`, prints a table and writes it to WORKDIR.

  eval.md has the table; eval.json its values, their intervals and the settings; eval.jsonl a line a
  prompt, from which `read` and `intervals` compute them again. Evaluates the checkpoint of `step`
  in `workdir`, by default the newest, or, where there is none, the policy of the config itself.
  Raises ValueError where `config.eval.samples` is 0, and `rewards.RewardError` where the reward
  fails on every response: then nothing is written.
  """
  configuration.validate(config)
  if not config.eval.samples:
    raise ValueError("config.eval.samples: found 0, expected at least 1 for --mode=eval")
  data.check(config.eval.path, "eval.path")
  folder = checkpoint.prepare(workdir, config)
  with rewards.load(config) as verifier:
    run = setup(config)
    step, params = parameters(run, workdir, step)
    collect = rollouts.make(run.policy, config, run.mesh, verifier)
    result = make(run.policy, config, collect)(params, sample_all=True)
  values, ends = metrics.means(summarise(result, every=True)), intervals(result, config.seed)
  options = config.sampler
  record = {
    "step": step,
    "samples": config.eval.samples,
    "prompts": len(result.rows),
    "path": config.eval.path,
    "temperature": config.eval.temperature,
    "top_k": options.top_k,
    "top_p": options.top_p,
    "max_response": options.max_response,
    "seed": config.seed,
    **values,
    "intervals": ends,
  }
  if not distributed.first():
    return values
  text = heading(record) + "\n\n" + table(result, values, ends)
  files.replace(folder / "eval.jsonl", "".join(json.dumps(line) + "\n" for line in lines(result)))
  files.replace(folder / "eval.json", json.dumps(record, indent=2) + "\n")
  files.replace(folder / "eval.md", text + "\n")
  print(f"{text}\n\n{folder / 'eval.md'}")
  return values


def heading(record: dict) -> str:
  """The line above the table: what was sampled, and how."""
  who = "the policy of the config" if record["step"] is None else f"step {record['step']}"
  cut = "".join(
    f", {key} {record[key]:g}" for key, off in (("top_k", 0), ("top_p", 1)) if record[key] != off
  )
  return (
    f"{who}; n = {record['samples']} samples a prompt at temperature "
    f"{record['temperature']:g}{cut}, at most {record['max_response']} tokens each; "
    "in brackets 95 % bootstrap intervals over prompts"
  )


def table(result: Result, values: dict[str, float], ends: dict[str, tuple[float, float]]) -> str:
  """A Markdown table: a row a benchmark or family and one for all (of several benchmarks: their
  mean), mean@n, pass@k, length, truncation and, where there is one, the exact success."""
  n, masks = result.success.shape[1], subsets(result.rows)
  columns = [(f"mean@{n}", "mean")] + [
    (f"pass@{k}", "pass" if k == n else f"pass_at_{k}") for k in success.passes(n)
  ]
  columns += [("tokens", "length"), ("truncated", "truncated")]
  if np.isfinite(result.exact).any():
    columns += [("exact or mean", "accuracy")]
  heads = " | ".join(head for head, _ in columns)
  text = [f"| | prompts | {heads} |", f"| --- | --- |{' --- |' * len(columns)}"]
  of = several(result.rows)
  named = [suffix for suffix in masks if suffix]
  for suffix in named if len(of) == 1 else [*named, ""]:
    average = not suffix and of
    name, count = suffix[1:] or ("mean" if average else "all"), masks[suffix].sum()
    whole = benchmarks.BENCHMARKS[name].rows if name in benchmarks.BENCHMARKS else count
    keys = [
      f"eval/average/{metric}" if average else f"eval/{metric}{suffix}" for _, metric in columns
    ]
    cells = " | ".join(_cell(key, values, ends) for key in keys)
    text.append(f"| {name} | {count if count >= whole else f'{count} of {whole}'} | {cells} |")
  return "\n".join(text)


def _cell(name, values, ends) -> str:
  if name not in values:
    return ""
  digits = 0 if name.startswith(("eval/length", "eval/average/length")) else 3
  between = f" [{ends[name][0]:.{digits}f}, {ends[name][1]:.{digits}f}]" if name in ends else ""
  return f"{values[name]:.{digits}f}{between}"


def lines(result: Result) -> list[dict]:
  """A JSON object a prompt; a number that is not there is null."""
  bare = lambda x: None if np.isnan(x) else float(x)
  return [
    {
      **{key: row[key] for key in ("benchmark", "family", "prompt", "answer") if key in row},
      "exact": bare(exact),
      "success": [bare(x) for x in share],
      "tokens": tokens.tolist(),
      "ended": ended.tolist(),
      "responses": responses.tolist(),
    }
    for row, exact, share, tokens, ended, responses in zip(*result, strict=True)
  ]


def read(workdir: str) -> Result:
  """The Result that `--mode=eval` wrote to WORKDIR/eval.jsonl; its rows have label, prompt and
  answer alone."""
  file = files.folder(workdir) / "eval.jsonl"
  try:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    floats = lambda key: np.array([line[key] for line in found], float)
    arrays = (np.array([line[key] for line in found]) for key in ("tokens", "ended", "responses"))
    return Result(tuple(found), floats("exact"), floats("success"), *arrays)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{file}: cannot be read as what --mode=eval writes: {error!r:.200}") from None
