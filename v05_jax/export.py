"""Writes a run's newest checkpoint as a Hugging Face directory, which `transformers` and `config.policy.path` open."""

from v05_jax import checkpoint
from v05_jax.models import hf
from v05_jax.step import Run, setup


def export(config, workdir: str, out: str) -> int:
  """-> the step that was written. Raises ValueError where `workdir` holds no checkpoint."""
  run = setup(config)
  step, params = newest(run, workdir)
  if step is None:
    raise ValueError(f"--workdir={workdir}: found no checkpoint, expected a run of --mode=train")
  hf.save(out, run.policy.config, params, run.policy.tokenizer)
  print(f"step {step} of {workdir} is in {out}")
  return step


def newest(run: Run, workdir: str):
  """(step, params) of the newest checkpoint in `workdir`; (None, the config's own policy) without one."""
  with checkpoint.Checkpoints(workdir, run.config.checkpoint.keep) as saved:
    step = saved.latest()
    state = run.init()
    return step, (state if step is None else saved.restore(step, state)).params
