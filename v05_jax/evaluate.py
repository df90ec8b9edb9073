"""Success on held-out prompts: exact where a task allows it, mean@n and pass@n by sampling elsewhere.

Evaluation has its own key stream and takes no part in training: the same parameters give the same numbers at
any step of any run with the same seed.
"""

from collections.abc import Callable
import json
from typing import NamedTuple

from etils import epath
import numpy as np

from v05_jax import data, metrics, rewards, rng, rollouts, tasks
from v05_jax.diagnostics import Pairs, pair
from v05_jax.export import parameters
from v05_jax.step import setup, success_share


class Result(NamedTuple):
  """Per prompt, `[n]`; NaN where not measured."""

  rows: tuple[dict, ...]
  exact: np.ndarray  # success probability from a teacher-forced pass
  mean: np.ndarray  # mean@n: share of n sampled responses that succeed
  best: np.ndarray  # pass@n: 1 where at least one of them does
  length: np.ndarray  # mean response tokens


def make(policy, config, mesh, collect) -> Callable[..., Result]:
  """Builds `evaluate(params, sample_all=False) -> Result` for `config.eval`.

  Prompts whose success is exact are sampled only with `sample_all`; the others always are, when
  `config.eval.samples > 0`. Sampling uses `collect` with its top-k and top-p, at the evaluation's
  temperature.
  """
  options = config.eval
  source = data.eval_config(config)
  dataset = data.load(source, policy.tokenizer, config.sampler.max_prompt, seed=config.seed, shuffle=False)
  exact = None
  if options.path == data.TASKS:
    sampler = config.sampler.copy_and_resolve_references()
    sampler.temperature = options.temperature
    exact = tasks.make_exact(policy.config, policy.tokenizer, sampler)
  groups = rollouts.Groups("fixed", options.samples, options.samples)
  size = len(dataset)
  prompts = dataset.at(0, size)

  def evaluate(params, sample_all=False) -> Result:
    nothing = np.full(size, np.nan)
    probability = exact(params, prompts.rows) if exact else nothing
    wanted = np.full(size, bool(options.samples)) & (np.isnan(probability) | sample_all)
    mean, best, length = nothing.copy(), nothing.copy(), nothing.copy()
    if wanted.any():
      key = rng.at(config.seed, 0, rng.EVAL)
      asked = prompts.replace(mask=wanted)
      rolls, _ = collect(params, asked, key, groups, temperature=options.temperature)
      success = np.nan_to_num(success_share(config, rolls), nan=0.0)  # a verdict that failed is no success
      mean[wanted], best[wanted] = success.mean(1)[wanted], success.max(1)[wanted] >= 1
      length[wanted] = rolls.length.mean(1)[wanted]
    return Result(prompts.rows, probability, mean, best, length)

  return evaluate


def summarise(result: Result) -> Pairs:
  """Metrics by family and overall: `eval/accuracy` takes the exact probability where there is one."""
  accuracy = np.where(np.isfinite(result.exact), result.exact, result.mean)
  families = np.array([row.get("family", "") for row in result.rows])
  values = {"accuracy": accuracy, "exact": result.exact, "mean": result.mean, "pass": result.best,
            "length": result.length}  # fmt: skip
  found = {f"eval/{name}": pair(x) for name, x in values.items()}
  for family in sorted(set(families) - {""}):
    for name in ("accuracy", "mean", "pass"):
      found[f"eval/{name}/{family}"] = pair(values[name], families == family)
  # Sampled on some prompts only, mean@n and pass@n have a meaning by family, but not over all.
  partly = [f"eval/{name}" for name in ("mean", "pass", "length") if found[f"eval/{name}"][1] < len(families)]
  return {name: p for name, p in found.items() if p[1] and name not in partly}


def evaluate_workdir(config, workdir: str, step: int | None = None) -> dict[str, float]:
  """`--mode=eval`: samples every prompt of `config.eval`, prints a table and writes WORKDIR/eval.json.

  Evaluates the checkpoint of `step` in `workdir`, by default the newest, or, where there is none, the policy of
  the config itself.
  Raises ValueError where `config.eval.samples` is 0.
  """
  if not config.eval.samples:
    raise ValueError("config.eval.samples: found 0, expected at least 1 for --mode=eval")
  run = setup(config)
  step, params = parameters(run, workdir, step)
  with rewards.load(config) as verifier:
    collect = rollouts.make(run.policy, config, run.mesh, verifier)
    result = make(run.policy, config, run.mesh, collect)(params, sample_all=True)
  values = metrics.means(summarise(result))
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  record = {"step": step, "samples": config.eval.samples, "prompts": len(result.rows), **values}
  (folder / "eval.json").write_text(json.dumps(record, indent=2) + "\n")
  print(table(values, config.eval.samples, step))
  return values


def table(values: dict[str, float], samples: int, step: int | None) -> str:
  """A Markdown table: a row a family and one for all, mean@n, pass@n and the exact success."""
  families = sorted(name.split("/")[2] for name in values if name.startswith("eval/mean/"))
  lines = [
    f"{'the policy of the config' if step is None else f'step {step}'}, n = {samples} samples a prompt",
    f"| | mean@{samples} | pass@{samples} | exact or mean |",
    "| --- | --- | --- | --- |",
  ]
  for family in [*families, ""]:
    names = [f"eval/{name}/{family}".rstrip("/") for name in ("mean", "pass", "accuracy")]
    cells = [f"{values.get(name, float('nan')):.4f}" for name in names]
    lines.append(f"| {family or 'all'} | {' | '.join(cells)} |")
  return "\n".join(lines)
