"""Does a prior know its own error? Priors side by side, each prediction before its outcome is seen.

    python -m experiments.probe.run [--data=FOLDER] [--quick] [--only=report]

Runs of the built-in tasks (V0.5, 4 rollouts a prompt, and 1 with each used twice): every prior is
asked about the same prompts and learns from the same rollouts, while one policy is trained. Then
V0's public sample of real outcomes, where FOLDER has it (see experiments/value_prior_real), in a
stream. Writes results.json and probe.png, and prints the tables of README.md.
"""

import json
from pathlib import Path

from absl import app, flags
import numpy as np
from scipy import stats

from experiments.value_prior_real import run as real
from v05_jax import plug, rewards
from v05_jax.configs import demo
from v05_jax.estimators import base as estimators
from v05_jax.observers.exact import truth
from v05_jax.priors import base as priors
from v05_jax.priors import context as contexts
from v05_jax.priors import logistic, neighbours, probe
from v05_jax.run.comparison import standard_error
from v05_jax.sampling import rollouts
from v05_jax.sampling.draw import draw
from v05_jax.setup import setup
from v05_jax.step import learn, update
from v05_jax.value_model import scores

HERE = Path(__file__).parent
ONLY = flags.DEFINE_string("only", "", "report: the tables alone, from results.json")
KINDS = ("constant", "neighbours", "v0", "probe")
RUNS = [(seed, k) for k in (4, 1) for seed in (0, 1, 2)]
LEVELS = (0.5, 0.8, 0.95)
FIRST = 2  # steps before a prior is assessed: all speak by then


def main(_):
  file = HERE / "results.json"
  results = json.loads(file.read_text()) if file.exists() else {}
  if ONLY.value != "report":
    for seed, k in RUNS[:1] if real.QUICK.value else RUNS:
      results[f"tasks k={k} seed={seed}"] = of_tasks(seed, k)
      print(f"tasks, k = {k}, seed {seed}: done", flush=True)
    folder = Path(real.DATA.value)
    if (folder / "context.jsonl").exists():
      results["rollouts"] = of_rollouts(folder, 1 if real.QUICK.value else 8)
    else:
      print(f"{folder} holds no context.jsonl: V0's public sample is left out")
    if not real.QUICK.value:
      file.write_text(json.dumps(results, indent=1) + "\n")
  print(report(results))
  if not real.QUICK.value:
    plot(results, HERE / "probe.png")


# --- Runs of the built-in tasks


def config(seed: int, k: int):
  """V0.5 as in the demo; one rollout a prompt is used twice, as in configs/v05_plus.py."""
  c = demo.get_config("v05")
  c.prior.kind, c.prior.wrappers, c.observe = "neighbours", (), ()
  c.seed = c.data.seed = seed
  c.budget.k_init = c.budget.k_max = k
  c.eval.period = 0
  if k == 1:
    c.loss.epochs, c.loss.clip_high = 2, 0.28
  return c


def alone(kind: str, setting: plug.Setting) -> priors.Prior:
  """A prior of the package without wrappers."""
  c = setting.config.copy_and_resolve_references()
  c.prior.kind, c.prior.wrappers = kind, ()
  return priors.make(setting._replace(config=c))


def of_tasks(seed: int, k: int) -> dict:
  """Prior -> its measures over a run."""
  c = config(seed, k)
  with rewards.load(c) as verifier:
    run = setup(c)
    state = run.init()
    collect = rollouts.make(run.policy, c, run.mesh, verifier)
    setting = plug.Setting(c, len(run.prompts), run.policy, run.mesh, run.prompts)
    asked = {kind: Asked(kind, setting) for kind in KINDS}
    for step in range(c.num_steps):
      drawn = draw(run, collect, state)
      mu = 2 * truth(run.exact, state.params, drawn.taken.prompts) - 1
      for each in asked.values():
        each.see(step, drawn.taken, mu)
      advantage, _ = run.advantages(state.estimator, drawn.taken.groups, drawn.taken.value)
      state, _ = update(run, state, drawn.taken, advantage)
      state, _ = learn(run, state, drawn)
  return {kind: each.measures() for kind, each in asked.items()}


class Asked:
  """A prior beside a run: what it said, and what came out."""

  def __init__(self, kind: str, setting: plug.Setting):
    self.prior = alone(kind, setting)
    self.state, self.rows = self.prior.init(), []
    self.estimators = {name: estimators.named(name, setting) for name in ("precision", "v05_loo")}
    self.learnt = {name: x.init() for name, x in self.estimators.items()}

  def see(self, step: int, draw, mu):
    """Asks about the prompts of a draw, keeps the answers beside what came out, then teaches."""
    value, told = self.prior.ask(self.state, draw.prompts)
    variance = priors.variance(self.prior, told, len(value))
    groups = draw.groups._replace(first=None, prior_variance=variance)
    row = {"value": value, "variance": variance, "mu": mu, "s": groups.s, "k": groups.k}
    for name, estimator in self.estimators.items():
      baseline = np.asarray(estimator.baseline(self.learnt[name], groups, value))
      row[name] = np.mean((baseline - mu[:, None]) ** 2, axis=1)
      self.learnt[name] = estimator.learn(self.learnt[name], groups, value)
    if step >= FIRST:
      self.rows.append({name: np.asarray(x, float) for name, x in row.items()})
    self.state, _ = self.prior.learn(self.state, told, draw.groups)

  def measures(self) -> dict:
    """Of the prompts whose success is exact: errors against it, and coverage; AUC of single
    rollouts inside a step."""
    all_rows = {name: np.concatenate([row[name] for row in self.rows]) for name in self.rows[0]}
    known = np.isfinite(all_rows["mu"]) & np.isfinite(all_rows["value"])
    x = {name: column[known] for name, column in all_rows.items()}
    error = (x["value"] - x["mu"]) ** 2
    found = {"mse": error.mean(), "auc": np.mean([_auc(row) for row in self.rows])}
    found |= {name: x[name].mean() for name in self.estimators}
    if np.isfinite(x["variance"]).all():
      found["said"] = x["variance"].mean()
      place = beta(x["value"], x["variance"]).cdf((1 + x["mu"]) / 2)
      found |= {f"{level}": np.mean(inside(place, level)) for level in LEVELS}
    return {name: float(y) for name, y in found.items()}


def _auc(row) -> float:
  success = np.repeat([True, False], len(row["s"]))
  count = np.concatenate([row["s"], row["k"] - row["s"]]).round().astype(int)
  value = np.concatenate([row["value"]] * 2)
  return scores.auc(np.repeat(value, count), np.repeat(success, count))


def beta(value, variance):
  """The Beta distribution of the success probability of that mean reward and variance, which the
  baseline `precision` goes by."""
  n0 = np.clip((1 - value**2) / np.maximum(variance, 1e-9) - 1, 1e-3, 1e6)
  p = np.clip((1 + value) / 2, 1e-6, 1 - 1e-6)
  return stats.beta(p * n0, (1 - p) * n0)


def inside(place, level: float):
  """Whether the outcome lies in the central interval of that level; place: its quantile."""
  return np.abs(place - 0.5) <= level / 2


# --- V0's public sample


SIZE, COUNT = 32, 10  # prompts of a step, rollouts behind each mean reward


def of_rollouts(folder: Path, repeats: int) -> dict:
  """Prior -> measures [contexts, measures]: means over orders of the stream."""
  groups = real.load(folder)
  texts = list(dict.fromkeys(text for rows in groups.values() for text, _ in rows))
  place = {text: i for i, text in enumerate(texts)}
  known = {"length": real.lengths(texts), "n-grams": real.components(real.ngrams(texts))}
  known["both"] = np.concatenate([x / x.std() for x in known.values()], axis=1)
  found = {}
  for rows in groups.values():
    index = np.array([place[text] for text, _ in rows])
    t = np.array([(score + 1) / 2 for _, score in rows])
    each = {}
    for repeat in range(repeats):
      order = np.random.default_rng(repeat).permutation(len(t))
      for name, measured in streamed({n: x[index[order]] for n, x in known.items()}, t[order]):
        each.setdefault(name, []).append(measured)
    for name, measured in each.items():
      found.setdefault(name, []).append(np.mean(measured, axis=0).tolist())
  return found


def streamed(features, t):
  """(name, [RMSE, AUC, coverages]) of each prior on one stream of prompts."""
  yield "constant", errors(*alike(features["length"], t, lambda state, x: mean(state, x)), t)
  kernel = lambda state, x: neighbours.kernel_regression(state, x, 0.5, 1)
  yield "neighbours, n-grams", errors(*alike(features["n-grams"], t, kernel), t)
  for name in ("length", "n-grams", "both"):
    yield f"probe, {name}", errors(*probed(features[name], t), t)


def mean(state, x):
  return np.full(len(x), float(contexts.mean_value(state, 1)))


def alike(x, t, value) -> tuple[np.ndarray, None]:
  """V of prompts one step after another, of a prior in context of all pairs before."""
  x, found = np.asarray(x, np.float32), []
  state = contexts.empty(len(t), x.shape[1])
  for first in range(0, len(t), SIZE):
    part = slice(first, first + SIZE)
    found.append(np.asarray(value(state, x[part])))
    nothing = np.full(len(t[part]), np.nan, np.float32)
    state = contexts.remember(state, x[part], nothing, t[part], np.isfinite(t[part]))
  return np.concatenate(found), None


def probed(x, t) -> tuple[np.ndarray, np.ndarray]:
  """V and variance by the probe."""
  center, basis = probe.components(x, 64)
  x = np.clip((x - center) @ basis, -probe.MAX_SCORE, probe.MAX_SCORE).astype(np.float32)
  state, found = logistic.empty(probe.MEMBERS, x.shape[1]), []
  for first in range(0, len(t), SIZE):
    part = slice(first, first + SIZE)
    found.append(np.stack(logistic.predict(probe.MEMBERS, state, x[part])))
    s = np.float32(COUNT * t[part])
    state = logistic.learn(probe.MEMBERS, state, x[part], s, np.full_like(s, COUNT))
  return tuple(np.concatenate(found, axis=1))


def errors(value, variance, t) -> list[float]:
  """RMSE against the mean of ten, AUC of t >= .5, coverage of the outcome's intervals (NaN without
  a variance), of the prompts after the first two steps."""
  value, t = value[FIRST * SIZE :], t[FIRST * SIZE :]
  found = [scores.rmse((1 + value) / 2, t), scores.auc(value, t >= 0.5)]
  if variance is None:
    return found + [np.nan] * len(LEVELS)
  p = beta(value, variance[FIRST * SIZE :]).args
  s, outcome = np.round(COUNT * t), stats.betabinom(COUNT, *p)
  # A count has no quantile of its own: any between those of its neighbours, here a random one.
  place = outcome.cdf(s) - np.random.default_rng(0).random(len(s)) * outcome.pmf(s)
  return found + [float(np.mean(inside(place, level))) for level in LEVELS]


# --- Tables


def report(results: dict) -> str:
  parts = []
  for k in (4, 1):
    runs = [x for name, x in results.items() if name.startswith(f"tasks k={k} ")]
    if runs:
      parts += [f"Built-in tasks, {k} rollouts a prompt, {len(runs)} runs", "", tasks(runs), ""]
  if "rollouts" in results:
    parts += ["V0's public sample, six contexts", "", sample(results["rollouts"])]
  return "\n".join(parts)


COLUMNS = {
  "mse": "MSE of V",
  "auc": "AUC",
  "v05_loo": "MSE of `v05_loo`",
  "precision": "MSE of `precision`",
  "said": "variance said",
  **{f"{level}": f"in {100 * level:.0f} %" for level in LEVELS},
}


def tasks(runs) -> str:
  lines = ["| prior | " + " | ".join(COLUMNS.values()) + " |", "| --- " * (1 + len(COLUMNS)) + "|"]
  for kind in KINDS:
    columns = ([run[kind].get(name, np.nan) for run in runs] for name in COLUMNS)
    lines.append(f"| {kind} | " + " | ".join(map(plus, columns)) + " |")
  return "\n".join(lines)


def sample(found) -> str:
  head = ["RMSE of V", "AUC", *(f"in {100 * level:.0f} %" for level in LEVELS)]
  lines = ["| prior | " + " | ".join(head) + " |", "| --- " * (1 + len(head)) + "|"]
  for name, rows in found.items():
    columns = np.array(rows, float).T
    lines.append(f"| {name} | " + " | ".join(map(plus, columns)) + " |")
  return "\n".join(lines)


def plot(results: dict, path: Path):
  """Errors of V and of two baselines by prior, and what lies inside of the probe's intervals."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
  runs = {k: [x for n, x in results.items() if n.startswith(f"tasks k={k} ")] for k in (4, 1)}
  for place, name in enumerate(("mse", "v05_loo", "precision")):
    heights = [np.mean([run[kind][name] for run in runs[4]]) for kind in KINDS]
    left.bar(np.arange(len(KINDS)) + 0.27 * (place - 1), heights, 0.25, label=COLUMNS[name])
  left.set_xticks(range(len(KINDS)), KINDS)
  left.set_title("built-in tasks, 4 rollouts: MSE", loc="left", fontsize=9)
  right.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
  measured = {f"built-in tasks, k = {k}": [x["probe"] for x in runs[k]] for k in runs}
  for label, found in measured.items():
    cover = [np.mean([x[f"{level}"] for x in found]) for level in LEVELS]
    right.plot(LEVELS, cover, marker="o", label=label)
  if "rollouts" in results:
    cover = np.mean(results["rollouts"]["probe, both"], axis=0)[2:]
    right.plot(LEVELS, cover, marker="o", label="real outcomes")
  right.set_title("share inside of intervals, by their level", loc="left", fontsize=9)
  for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def plus(x) -> str:
  """Mean ± standard error."""
  if not np.isfinite(x).all():
    return ""
  error = standard_error(np.asarray(x)) if len(x) > 1 else np.nan
  return f"{np.mean(x):.3f} ± {error:.3f}"


if __name__ == "__main__":
  app.run(main)
