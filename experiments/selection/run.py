"""Does it pay to select prompts by what the gradient sees? 1,024 prompts that come back.

    python -m experiments.selection.run [--seeds=0,1,2,3] [--only=report]

Each arm is the recipe of configs/v05_plus.py, one rollout a prompt and each used twice, on 1,024
prompts with the wrapper `history` around the prior `neighbours`; they differ in which prompts of a
pool four times as large they take. Writes results.json after each run, which is not done again, and
prints the table of README.md.
"""

import json
from pathlib import Path
import time

from absl import app, flags
import numpy as np

from v05_jax import rewards
from v05_jax.configs import v05_plus
from v05_jax.observers.base import Step
from v05_jax.observers.noise import of_selection
from v05_jax.run import evaluate as evaluation
from v05_jax.run import metrics
from v05_jax.run.comparison import standard_error
from v05_jax.sampling import rollouts
from v05_jax.sampling.draw import draw
from v05_jax.setup import setup
from v05_jax.step import learn, update
from v05_jax.update import score_norms

HERE = Path(__file__).parent
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3"], "of the runs")
ONLY = flags.DEFINE_string("only", "", "report: the table alone, from results.json")
ARMS = {
  "none": {"selection.pool": 1},
  "spread": {"selection.score": "spread"},
  "second_moment": {"selection.score": "second_moment"},
}
TITLES = {"none": "no selection", "spread": "sqrt(1 - V^2)", "second_moment": "tracker of A^2 w"}
EVERY, EXACT = 8, (8, 24, 40, 56)  # steps between evaluations, and steps with exact lengths


def main(_):
  results = read()
  if ONLY.value != "report":
    for seed in map(int, SEEDS.value):
      for arm in ARMS:
        if f"{arm} {seed}" not in results:
          results[f"{arm} {seed}"] = play(config(arm, seed))
          (HERE / "results.json").write_text(json.dumps(results) + "\n")
  print(table(results))


def read() -> dict:
  """What has been run so far."""
  file = HERE / "results.json"
  return json.loads(file.read_text()) if file.exists() else {}


def config(arm: str, seed: int):
  """The config of a run."""
  c = v05_plus.get_config()
  c.seed = seed
  c.data.size = 1024
  c.prior.kind, c.prior.wrappers = "neighbours", ("history", "second_moment")
  c.observe = ("exact", "noise")
  c.observers.noise.estimators = ("ewa",)
  c.eval.samples = 0
  c.update_from_flattened_dict(ARMS[arm])
  return c


def play(c) -> dict:
  """A run -> its curve of held-out success, and at each step `noise/selection`; `exact`: the same
  ratio with the true squared lengths of the gradients, at the steps `EXACT`; `persistence`: E m m'
  / (E m)^2 of w A^2 at a prompt's visit m and its next m', 1 where prompts do not differ."""
  began = time.perf_counter()
  found = {"curve": [], "ratio": [], "exact": [], "visits": []}
  before = np.full(c.data.size, np.nan)  # w A^2 of each prompt's latest rollout
  with rewards.load(c) as verifier:
    run = setup(c)
    state = run.init()
    collect = rollouts.make(run.policy, c, run.mesh, verifier)
    evaluate = evaluation.make(run.policy, c, collect)
    norms = score_norms.make(run.policy.config, c.loss, c.sampler.temperature, run.mesh)
    success = lambda: metrics.means(evaluation.summarise(evaluate(state.params)))["eval/accuracy"]
    found["curve"].append(success())
    for step in range(c.num_steps):
      drawn = draw(run, collect, state)
      taken = drawn.taken
      advantage, test = run.advantages(state.estimator, taken.groups, taken.value)
      row, own = taken.prompts.row, np.sum(np.square(advantage) * taken.groups.score, axis=1)
      found["visits"] += np.stack([before[row], own], 1)[np.isfinite(before[row])].tolist()
      before[row] = own
      if step in EXACT:
        length = np.nan_to_num(norms(state.params, taken.prompts, taken.rolls))
        moment = np.sum(length * np.square(advantage), axis=1)
        found["exact"].append(of_selection(moment, taken.importance))
      look = Step(step, state.params, drawn.draws, taken, advantage, test)
      observers, seen = run.observers.see(state.observers, look)
      found["ratio"].append(seen.get("noise/selection", (1.0, 1.0)))
      state, _ = update(run, state, taken, advantage)
      state, _ = learn(run, state, drawn)
      state = state.replace(observers=observers)
      if (step + 1) % EVERY == 0:
        found["curve"].append(success())
  visits = np.array(found.pop("visits"))
  found["persistence"] = float(np.mean(np.prod(visits, axis=1)) / np.prod(np.mean(visits, axis=0)))
  return found | {"seconds": round(time.perf_counter() - began, 1)}


def table(results: dict) -> str:
  """Means over seeds; differences from no selection, paired by seed, with their standard error."""
  seeds = sorted({int(key.split()[1]) for key in results})
  lines = [
    f"{len(seeds)} seeds",
    "",
    "| prompts by | second moment, by score | by \\|g\\|^2 | area | end | area, difference |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  # evaluations lie equally far apart
  mean = lambda curve: float(np.trapezoid(curve) / (len(curve) - 1))
  area = lambda arm, seed: mean(results[f"{arm} {seed}"]["curve"])
  for arm, title in TITLES.items():
    own = [seed for seed in seeds if f"{arm} {seed}" in results]
    runs = [results[f"{arm} {seed}"] for seed in own]
    gain = [area(arm, seed) - area("none", seed) for seed in own]
    cells = [
      plus(ratios([run["ratio"][1:] for run in runs])),  # nothing is selected at the first step
      plus(ratios([run["exact"] for run in runs])),
      plus([area(arm, s) for s in own]),
    ]
    cells += [plus([run["curve"][-1] for run in runs]), plus(gain)]
    lines.append(f"| {title} | " + " | ".join(cells) + " |")
  visits = [x["persistence"] for key, x in results.items() if "none" in key and "persistence" in x]
  if visits:
    lines += ["", f"E m m' / (E m)^2 of w A^2 at a visit and the next: {plus(visits)}"]
  return "\n".join(lines)


def ratios(runs: list[list]) -> list[float]:
  """Of each run's pairs, the sum of the first numbers over that of the second."""
  return [float(np.divide(*np.sum(pairs, axis=0))) for pairs in runs]


def plus(x) -> str:
  """Mean ± standard error."""
  error = standard_error(np.asarray(x)) if len(x) > 1 else np.nan
  return f"{np.mean(x):.3f} ± {error:.3f}"


if __name__ == "__main__":
  app.run(main)
