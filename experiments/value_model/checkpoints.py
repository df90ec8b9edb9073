"""The data that V0 is tested on: contexts and held-out prompts of a run's checkpoints, with exact
and sampled success."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from v05_jax import config, data, rewards
from v05_jax.run import checkpoint, evaluate
from v05_jax.sampling import rollouts
from v05_jax.setup import setup
from v05_jax.value_model import pairs

SUPPORT = 256  # pairs in a context, the newest ones, as in training
SAMPLES = 10  # rollouts a held-out prompt, as in V0's own data


class Moment(NamedTuple):
  """One policy at one time."""

  run: str
  step: int
  texts: list[str]  # [256] of the context
  scores: np.ndarray  # [256] mean success of the context's prompts, in [0, 1]
  prompts: list[str]  # [n] held out
  exact: np.ndarray  # [n] true probability of success; NaN for chain
  mean: np.ndarray  # [n] mean success of 10 rollouts


def moments(workdir: Path, steps, prompts: int = 512) -> list[Moment]:
  """The moments of a run that collected its pairs; kept in WORKDIR/moments-PROMPTS-SAMPLES.npz."""
  run_config = config.load(str(workdir / "config.json"))
  run_config.eval.update({"size": prompts, "samples": SAMPLES, "period": 0})
  texts, contexts = pairs.read([str(workdir / "pairs")])
  kept = workdir / f"moments-{prompts}-{SAMPLES}.npz"
  known = dict(np.load(kept)) if kept.exists() else {}
  missing = [step for step in steps if f"exact{step}" not in known]
  if missing:
    run = setup(run_config)
    with (
      rewards.load(run_config) as verifier,
      checkpoint.Checkpoints(workdir, run_config.checkpoint.keep) as saved,
    ):
      collect = rollouts.make(run.policy, run_config, run.mesh, verifier)
      measure = evaluate.make(run.policy, run_config, collect)
      for step in missing:
        found = measure(saved.restore(step, run.init()).params, sample_all=True)
        known |= {f"exact{step}": found.exact, f"mean{step}": found.mean}
    np.savez(kept, **known)
  source = data.eval_config(run_config)
  rows = data.tasks.rows(source.split, source.size, source.seed, source.families)
  result = []
  for step in steps:
    before = [c for c in contexts if c.key[-1] < step]
    prompt, score = (
      np.concatenate([getattr(c, x) for c in before])[-SUPPORT:] for x in ("prompt", "score")
    )
    result.append(
      Moment(
        workdir.name,
        step,
        [texts[i] for i in prompt],
        score,
        [row["prompt"] for row in rows],
        known[f"exact{step}"],
        known[f"mean{step}"],
      )
    )
  return result
