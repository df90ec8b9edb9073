"""The command line: `python -m v05_jax.main --config=configs/v05.py --workdir=runs/v05 [--config.KEY=VALUE ...]`.

    --mode=train   runs the config, or resumes it in its workdir (the default)
    --mode=sft     trains the policy on demonstrations instead; writes WORKDIR/hf
    --mode=value   trains a V0, the value prior, on the pairs of earlier runs; writes WORKDIR/v0
    --mode=eval    mean@n and pass@k of a checkpoint in WORKDIR, or, where there is none, of config.policy; writes
                   eval.md, eval.json and eval.jsonl
    --mode=export  writes a checkpoint in WORKDIR as a Hugging Face directory --out
    --mode=report  compares the runs in --workdir=A,B,C: a table and a plot, comparison.md and .png in --out
    --mode=compile compiles a config's programs for a TPU slice that need not be here, --topology=v5e:4x8, or for this
                   machine; prints whether they fit and what bounds them. Needs no weights, data or workdir

eval and export take the newest checkpoint, or that of --step=N.
"""

import sys

from absl import app, flags, logging

from v05_jax import backend, command_line

MODES = ("train", "sft", "value", "eval", "export", "report", "compile")
FLAGS = flags.FLAGS
flags.DEFINE_enum("mode", "train", MODES, "what to do")
flags.DEFINE_string("workdir", None, "folder of the run, local or gs://; for --mode=report several, with commas")
flags.DEFINE_integer("step", None, "checkpoint that --mode=eval and --mode=export take; the newest by default")
flags.DEFINE_string("topology", "", "TPU slice that --mode=compile compiles for, as v5e:4x8; \"\" = this machine")
flags.DEFINE_string("out", None, "folder that --mode=export and --mode=report write to")


def main(_):
  logging.set_verbosity(logging.WARNING)  # Orbax reports every checkpoint otherwise
  try:
    run(FLAGS.mode, FLAGS.config, FLAGS.workdir, FLAGS.out, FLAGS.step, FLAGS.topology)
  except (ValueError, OSError, FloatingPointError, InterruptedError) as e:
    # The message is for the user: it names the key, file or line, what was found and what was expected.
    sys.exit(f"error: {e}")


def run(mode: str, config, workdir: str | None, out: str | None, step: int | None, topology: str = ""):
  """Imports what the mode needs and does it. Raises ValueError where a flag is missing."""
  if workdir is None and mode != "compile":
    raise ValueError(f"--mode={mode} needs --workdir=FOLDER")
  if mode == "export" and out is None:
    raise ValueError("--mode=export needs --out=FOLDER")
  if mode != "report":
    backend.start(config)
    backend.without_torch()
  if mode == "train":
    from v05_jax.train import train
    train(config, workdir)
  elif mode == "sft":
    from v05_jax.sft import sft
    sft(config, workdir)
  elif mode == "value":
    from v05_jax.value_prior.train import train_value
    train_value(config, workdir)
  elif mode == "eval":
    from v05_jax.evaluate import evaluate_workdir
    evaluate_workdir(config, workdir, step)
  elif mode == "export":
    from v05_jax.export import export
    export(config, workdir, out, step)
  elif mode == "compile":
    from v05_jax import compile
    compile.report(config, topology)
  else:
    from v05_jax.report import report
    report(workdir.split(","), out)


if __name__ == "__main__":
  app.run(main, flags_parser=command_line.parse)
