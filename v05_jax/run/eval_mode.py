"""`--mode=eval`: the evaluation of a workdir, and the files that it leaves."""

import json

import numpy as np

from v05_jax import benchmarks, rewards, row_files
from v05_jax import config as configuration
from v05_jax.run import checkpoint, files, metrics, success
from v05_jax.run.evaluate import Result, intervals, make, several, subsets, summarise
from v05_jax.run.export import parameters
from v05_jax.sampling import rollouts
from v05_jax.scale import distributed
from v05_jax.setup import setup


def evaluate_workdir(config, workdir: str, step: int | None = None) -> dict[str, float]:
  """Samples every prompt of `config.eval`, prints a table and writes it to WORKDIR.

  eval.md has the table; eval.json its values, their intervals and the settings; eval.jsonl a line a
  prompt, from which `read` and `intervals` compute them again. Evaluates the checkpoint of `step`
  in `workdir`, by default the newest, or, where there is none, the policy of the config itself.
  Raises ValueError where `config.eval.samples` is 0, and `rewards.RewardError` where the reward
  fails on every response: then nothing is written.
  """
  configuration.validate(config)
  if not config.eval.samples:
    raise ValueError("config.eval.samples: found 0, expected at least 1 for --mode=eval")
  row_files.check(config.eval.path, "eval.path")
  folder = checkpoint.prepare(workdir, config)
  with rewards.load(config) as verifier:
    run = setup(config)
    step, params = parameters(run, workdir, step)
    collect = rollouts.make(run.policy, config, run.mesh, verifier)
    evaluate = make(run.policy, config, collect, run.prompts)
    result = evaluate(params, sample_all=True)
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
    f"{record['path']}, {who}; n = {record['samples']} samples a prompt at temperature "
    f"{record['temperature']:g}{cut}, at most {record['max_response']} tokens each; "
    "in brackets 95 % bootstrap intervals over prompts"
  )


def table(result: Result, values: dict[str, float], ends: dict[str, tuple[float, float]]) -> str:
  """A Markdown table: a row a benchmark or family, one for the mean over several benchmarks, and,
  where not all rows are of a benchmark, one for all; mean@n, pass@k, length, truncation and,
  where there is one, the exact success."""
  n, masks = result.success.shape[1], subsets(result.rows)
  columns = [(f"mean@{n}", "mean")] + [
    (f"pass@{k}", "pass" if k == n else f"pass_at_{k}") for k in success.passes(n)
  ]
  columns += [("tokens", "length"), ("truncated", "truncated")]
  if np.isfinite(result.exact).any():
    columns += [("exact or mean", "accuracy")]
  heads = " | ".join(head for head, _ in columns)
  text = [f"| | prompts | {heads} |", f"| --- | --- |{' --- |' * len(columns)}"]
  of, named = several(result.rows), [suffix for suffix in masks if suffix]
  labelled = sum(int(masks[suffix].sum()) for suffix in of)
  total = len(result.rows)
  shown = [(suffix[1:], suffix, int(masks[suffix].sum())) for suffix in named]
  shown += [("mean", "/average", labelled)] if len(of) > 1 else []
  # of rows that have no benchmark, or have families: what all of them come to
  shown += [("all", "", total)] if labelled < total else []
  for name, suffix, count in shown:
    whole = benchmarks.BENCHMARKS[name].rows if name in benchmarks.BENCHMARKS else count
    average = suffix == "/average"
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
