"""Writes a run's checkpoint as a Hugging Face directory, which `transformers` and
`config.policy.path` open."""

from v05_jax import models
from v05_jax.models import hf
from v05_jax.run import checkpoint, leaves
from v05_jax.setup import Run, code_digests, setup
from v05_jax.structs import TrainState


def export(config, workdir: str, out: str, step: int | None = None) -> int:
  """-> the step that was written: `step`, or the newest. Raises ValueError where there is no such
  checkpoint.

  With `config.policy.lora_rank` the adapters are merged into the matrices beside them, and
  OUT/adapter has them alone in PEFT's format.
  """
  run = setup(config)
  found, params = parameters(run, workdir, step)
  if found is None:
    raise ValueError(f"--workdir={workdir}: found no checkpoint, expected a run of --mode=train")
  hf.save(out, run.policy.config, params, run.policy.tokenizer, stop=run.policy.stop)
  hf.keep(out, models.folder(config.policy.path))
  if run.policy.config.adapters:
    hf.save_adapters(f"{out}/adapter", run.policy.config, params, config.policy.path)
  print(f"step {found} of {workdir} is in {out}")
  return found


def parameters(run: Run, workdir: str, step: int | None = None):
  """(step, params) of a checkpoint in `workdir`, the newest by default; (None, the config's policy)
  without one.

  Raises ValueError where `step` is given and there is no checkpoint of it.
  """
  step, state = restored(run, workdir, step)
  return step, state.params


def restored(run: Run, workdir: str, step: int | None = None) -> tuple[int | None, TrainState]:
  """(step, state) of a checkpoint, found as by `parameters`; without one, (None, the state before
  the first step). Raises ValueError also where the run's first policy is not the config's."""
  with checkpoint.Checkpoints(workdir, run.config.checkpoint.keep) as saved:
    steps = saved.steps()
    if step is not None and step not in steps:
      raise ValueError(
        f"--step={step}: found checkpoints of steps {steps} in {workdir}, expected one of them"
      )
    step = max(steps, default=None) if step is None else step
    if step is None:
      return None, run.init()
    checkpoint.check_adapters(workdir, run.config)
    known = {key: run.weights[key] for key in ("policy.path",) if key in run.weights}
    known |= code_digests(run.config)
    return step, saved.restore(step, leaves.outline(run.init()), known)
