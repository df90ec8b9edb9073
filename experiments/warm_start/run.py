"""Is the shipped warm start at the plateau of its supervised fine-tuning, and what can it do?

    python -m v05_jax.main --mode=sft --config=configs/warm_start.py --workdir=runs/warm_start
    python -m experiments.warm_start.run --made=runs/warm_start

The first command makes the policy, the second one gives the shipped policy as much fine-tuning
again (same steps, same schedule, other draws), measures both on held-out prompts, and writes
results.json and plateau.png. A continuation that is complete in --out is taken as it is.
"""

import itertools
import json
from pathlib import Path
import time

from absl import app, flags
import numpy as np

from v05_jax import models, rewards, tasks
from v05_jax.configs import warm_start
from v05_jax.run import evaluate as evaluation
from v05_jax.run import metrics
from v05_jax.run.sft import sft
from v05_jax.sampling import rollouts
from v05_jax.scale import sharding

HERE = Path(__file__).parent
MADE = flags.DEFINE_string(
  "made", "", "workdir of the run that made the warm start, for its part of the curve"
)
OUT = flags.DEFINE_string("out", "runs/warm_start_continued", "workdir of the further fine-tuning")

BINS = (0.0, 0.05, 0.3, 0.7, 0.95, 1.0)
SAMPLES = 16  # a prompt
GREEDY = 1e-3  # a temperature at which the most likely token is sampled


def main(_):
  config = warm_start.get_config()
  config.policy.update({"path": "builtin", "preset": ""})
  config.seed = 1
  done = [line["step"] for line in metrics.read(OUT.value)]
  if done[-1:] != [config.sft.steps]:
    began = time.process_time()
    sft(config, OUT.value)
    print(f"{config.sft.steps} further steps: {time.process_time() - began:.0f} s of CPU time")
  results = {"steps": config.sft.steps, "before": measure(config, "builtin")}
  results["after"] = measure(config, str(Path(OUT.value) / "hf"))
  results["curve"] = {"continued": curve(OUT.value)}
  if MADE.value:
    results["curve"]["made"] = curve(MADE.value)
  (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
  plot(results, HERE / "plateau.png")
  print(table(results))


def measure(config, path: str) -> dict:
  """Held-out success of a policy: exact, sampled and greedy, by family, and the spread over
  prompts."""
  config = config.copy_and_resolve_references()
  config.policy.path = path
  config.eval.update({"split": "heldout", "samples": SAMPLES})
  policy = models.load(config.policy)
  mesh = sharding.make_mesh(config.mesh)
  with rewards.load(config) as verifier:
    collect = rollouts.make(policy, config, mesh, verifier)
    sampled = evaluation.make(policy, config, collect)(policy.params, sample_all=True)
    config.eval.update({"samples": 1, "temperature": GREEDY})
    greedy = evaluation.make(policy, config, collect)(policy.params, sample_all=True)
  families = np.array([row["family"] for row in sampled.rows])
  exact = sampled.exact[np.isfinite(sampled.exact)]

  def by_family(x):
    means = {family: float(np.mean(x[families == family])) for family in tasks.FAMILIES}
    return {"all": float(np.nanmean(x)), **means}

  return {
    "exact": by_family(sampled.exact),
    "sampled": by_family(sampled.mean),
    "greedy": by_family(greedy.mean),
    "spread": (np.histogram(exact, BINS)[0] / len(exact)).tolist(),
    "prompts": len(families),
  }


def curve(workdir: str) -> list[tuple[int, float]]:
  """(step, exact success on validation prompts) of a workdir."""
  return [
    (x["step"], x["eval/exact"]) for x in metrics.read(workdir) if x.get("eval/exact") is not None
  ]


def table(results) -> str:
  """The measured tables, in Markdown."""
  lines = [
    "| held-out success | " + " | ".join(["all", *tasks.FAMILIES]) + " |",
    "| --- |" + " --- |" * 7,
  ]
  for when in ("before", "after"):
    for kind in ("exact", "sampled", "greedy"):
      values = results[when][kind].values()
      cells = " | ".join("-" if x != x else f"{x:.3f}" for x in values)
      lines.append(f"| {kind}, {when} | {cells} |")
  lines += [
    "",
    "| exact success of a prompt | " + " | ".join(map(str, itertools.pairwise(BINS))) + " |",
    "| --- |" + " --- |" * 5,
  ]
  for when in ("before", "after"):
    cells = " | ".join(f"{x:.1%}" for x in results[when]["spread"])
    lines.append(f"| share of prompts, {when} | {cells} |")
  return "\n".join(lines)


def plot(results, path: Path):
  """Exact success on validation prompts over the making and the continuation."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
  made, continued = (np.array(results["curve"].get(name, [])) for name in ("made", "continued"))
  if len(made):
    axes.plot(*made.T, color="#0072b2", label="making the warm start")
  axes.plot(
    continued[:, 0] + results["steps"],
    continued[:, 1],
    color="#d55e00",
    label="as many steps again",
  )
  axes.axhline(continued[0, 1], color="#777777", lw=0.8, ls="--", label="the shipped policy")
  axes.set(xlabel="SFT steps", ylabel="exact success, validation prompts", ylim=(0, None))
  axes.legend(frameon=False, loc="lower right")
  axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


if __name__ == "__main__":
  app.run(main)
