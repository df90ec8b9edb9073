"""The command line:

    v05 train --config=v05 --workdir=runs/v05 [--config.KEY=VALUE ...]

    v05 train    runs the config, or resumes it in its workdir
    v05 sft      trains the policy on demonstrations instead; writes WORKDIR/hf
    v05 value    trains a V0, the value prior, on the pairs of earlier runs; writes WORKDIR/v0
    v05 eval     mean@n and pass@k of a checkpoint in WORKDIR, or, where there is none, of
                 config.policy; writes eval.md, eval.json and eval.jsonl
    v05 sample   prints the next --prompts=8 prompts of the run in WORKDIR with V, rollouts,
                 rewards, the test, the baseline and what the budget decided, as the next training
                 step would have them; writes sample.jsonl
    v05 noise    measures what governs the noise of the policy gradient on the next --prompts=64
                 prompts of the run in WORKDIR, by a backward pass a rollout, and how much of it
                 each estimator would leave; writes noise.json
    v05 export   writes a checkpoint in WORKDIR as a Hugging Face directory --out
    v05 report   compares the runs in --workdir=A,B,C, in a folder of runs, or of a pattern: a
                 conclusion, a table and charts, all in one file comparison.html, and comparison.md
                 and .png, in --out
    v05 compile  compiles a config's programs for a TPU slice that need not be here,
                 --topology=v5e:4x8, or for this machine; prints whether they fit and what bounds
                 them. Needs no weights, data or workdir

--config names a config of the package (v05, grpo, own, ...) or a file; every key of
configs/default.py is a flag. Without --workdir, train, sft and value write to runs/CONFIG.
eval, sample, noise and export take the newest checkpoint, or that of --step=N.
`python -m v05_jax.main` is the same command, and --mode=train the same as the word.

train and eval run in several processes, on one machine or many, over the devices of all:

    --coordinator=HOST:PORT --num_processes=N --process_id=I   the same command for each, but for
                                                               its I = 0 .. N - 1
    --distributed   where the cluster says all three: a TPU pod, Slurm, Open MPI, Kubernetes
"""

import contextlib
import os
import pathlib
import signal
import sys
import textwrap
from typing import Any, NamedTuple

from absl import app, flags

from v05_jax import __version__, logs

MODES = ("train", "sft", "value", "eval", "sample", "noise", "export", "report", "compile")
SEVERAL = ("train", "eval")  # modes of several processes
WRITING = ("train", "sft", "value")  # modes whose workdir is a run's
SAMPLING = ("train", "sample", "noise")  # modes that sample responses to the problems of data.path
EVALUATING = ("train", "sft", "eval")  # modes that read eval.path
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
FLAGS = flags.FLAGS
flags.DEFINE_enum("mode", "train", MODES, "what to do")
flags.DEFINE_string(
  "workdir",
  None,
  "folder of the run, local or gs://; for --mode=report several, folders of runs and patterns,"
  " with commas",
)
flags.DEFINE_integer(
  "step", None, "checkpoint that --mode=eval, sample, noise and export take; the newest by default"
)
flags.DEFINE_integer(
  "prompts", None, "prompts that --mode=sample shows (8) and --mode=noise measures (64)"
)
flags.DEFINE_string(
  "topology", "", 'TPU slice that --mode=compile compiles for, as v5e:4x8; "" = this machine'
)
flags.DEFINE_string("out", None, "folder that --mode=export and --mode=report write to")
flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where a run has several processes"
)
flags.DEFINE_integer("num_processes", None, "processes of the run")
flags.DEFINE_integer("process_id", None, "number of this process, from 0 on")
flags.DEFINE_bool(
  "distributed",
  False,
  "several processes, which the cluster knows: a TPU pod, Slurm, Open MPI, ...",
)


class Command(NamedTuple):
  """What the flags say."""

  mode: str
  config: Any
  workdir: str | None = None
  out: str | None = None
  step: int | None = None
  topology: str = ""
  prompts: int | None = None


def console():
  """The command `v05`, and `python -m v05_jax.main`.

  Ctrl-C ends the process at once: raised as an exception inside a library it could end in a
  traceback, or be swallowed. A training run does so at the second Ctrl-C (`checkpoint.Preemption`);
  its files are then as after a kill, from which every run continues.
  """
  logs.open_streams()
  signal.signal(signal.SIGINT, lambda *_: leave("stopped before anything was done"))
  try:
    app.run(main, flags_parser=parse)
  except BrokenPipeError:  # of what is printed before `main`
    if not logs.unread():
      raise
  finally:
    logs.close_streams()


def parse(argv: list[str]) -> list[str]:
  """Flags parser for `app.run`: `command_line.parse`, help, version and a run's default folder."""
  words = set(argv[1:])
  if len(argv) == 1 or argv[1] == "help" or words & {"--help", "-h", "-help"}:
    print(manual())
    sys.exit(0)
  if argv[1] == "version" or words & {"--version", "-version"}:
    print(f"v05_jax {__version__}")
    sys.exit(0)
  from v05_jax import command_line  # seconds: what it imports knows every key

  rest = command_line.parse(argv)
  folder = usual_folder(FLAGS.mode, command_line.value_of(argv, "config"))
  if FLAGS.workdir is None and folder:
    FLAGS.workdir = folder
    print(f"--workdir={folder}", file=sys.stderr)
  return rest


def usual_folder(mode: str, config: str | None) -> str | None:
  """The default workdir for a config (a name or a file); None in a mode that writes no run."""
  return f"runs/{pathlib.Path(config).stem}" if config and mode in WRITING else None


def manual() -> str:
  """What --help prints."""
  from v05_jax import configs

  folder = pathlib.Path(*configs.__path__)
  names = "Configs: " + ", ".join(sorted(file.stem for file in folder.glob("[a-z]*.py")))
  keys = f"Keys, with their meaning: {folder / 'default.py'}"
  return f"{__doc__}\n{textwrap.fill(names, 100)}\n{keys}"


def leave(said: str):
  """Ends the process at once, from within a handler of a signal."""
  os.write(2, f"\n{said}\n".encode())  # print is not safe there
  os._exit(INTERRUPTED)


def main(_):
  from v05_jax.run import workdirs
  from v05_jax.scale import peers

  logs.start()
  kept = lambda: workdirs.kept(FLAGS.workdir) if FLAGS.mode in WRITING else "nothing was written"
  signal.signal(signal.SIGINT, lambda *_: leave(f"stopped at once; {kept()}"))
  try:
    place = peers.find(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.distributed)
    run(Command(**{name: getattr(FLAGS, name) for name in Command._fields}), place)
  except InterruptedError as e:  # a signal asked for it
    print(e, file=sys.stderr)
    sys.exit(1)
  except (ValueError, OSError, FloatingPointError) as e:
    # The message is for the user: it names the key, file or line, what was found and what was
    # expected.
    if not (isinstance(e, BrokenPipeError) and logs.unread()):
      sys.exit(f"error: {e}")


def run(command: Command, place: Any = None):
  """Does what the mode says, as one process or in its `place` (`peers.Place`) among several. Raises
  ValueError for wrong flags."""
  mode = command.mode
  check_folders(command)
  from v05_jax import backend
  from v05_jax.run import workdirs
  from v05_jax.scale import peers, sources

  if place and mode not in SEVERAL:
    raise ValueError(f"--mode={mode} runs in one process; of several: {' and '.join(SEVERAL)}")
  check_problems(mode, command.config)
  command = command._replace(config=workdirs.continued(command.config, command.workdir))
  if place is None and mode in WRITING and workdirs.finished(command.config, mode, command.workdir):
    print(workdirs.ending(command.config, mode, command.workdir))
    return
  if mode != "report":
    backend.start(command.config, alone=place is None)
    backend.without_torch()
  same = ("mode", "step")  # flags that the processes of a run must share, beside the config
  flagged = {name: getattr(command, name) for name in same}
  told = sources.of(command.config, flagged) if place else None
  with peers.Peers(place, told) if place else contextlib.nullcontext():
    start(command)


def check_folders(command: Command):
  """Raises ValueError where a folder that the mode needs is not named, or cannot be used later."""
  mode, workdir, out = command.mode, command.workdir, command.out
  if workdir is None and mode != "compile":
    raise ValueError(f"--mode={mode} needs --workdir=FOLDER")
  if mode == "export" and out is None:
    raise ValueError("--mode=export needs --out=FOLDER")
  for flag, found in (("workdir", workdir), ("out", out)):
    folders = found.split(",") if flag == "workdir" and mode == "report" else [found]
    if any(folder is not None and not folder.strip() for folder in folders):
      raise ValueError(f"--{flag}={found}: found an empty name, expected that of a folder")
    if any(folder is not None and folder.startswith("--") for folder in folders):
      raise ValueError(f"--{flag}: found the flag {found} as its value, expected a folder")
  if mode in WRITING and "," in workdir:
    raise ValueError(
      f"--workdir={workdir}: found a comma, expected a folder without one: commas stand between "
      "the folders of --mode=report"
    )


def check_problems(mode: str, config):
  """Raises ValueError where a mode would ask the built-in puzzles of a model that is the user's, or
  of a reward that does not know them.

  No part of the config's own rules: `configs/own.py` names no problems before the user does, and is
  a valid config for the other modes.
  """
  from v05_jax.rewards import mixture

  if mode in SAMPLING and config.data.path == "tasks" and "math" in mixture.targets(config.reward):
    raise ValueError(
      "config.data.path: found 'tasks', the built-in puzzles, which the reward math does not "
      "know, expected your problems, --config.data.path=problems.jsonl, or a benchmark's name"
    )
  if mode == "eval" and config.eval.path == "tasks" and config.data.path != "tasks":
    raise ValueError(
      "config.eval.path: found 'tasks', the built-in puzzles, expected a held-out file or "
      "benchmark, as data.path is one: --config.eval.path=heldout.jsonl"
    )


def start(command: Command):
  """Imports what the mode needs and starts it; a run that has ended says where things are."""
  mode, config, workdir = command.mode, command.config, command.workdir
  if mode not in ("compile", "report"):
    from v05_jax import row_files
    from v05_jax.scale.settle import settle

    if mode != "value":  # which reads pairs alone
      row_files.check(config.data.path)
    if mode in EVALUATING and (mode != "train" or config.eval.period):
      row_files.check(config.eval.path, "eval.path")
    config = settle(config, workdir)  # may fetch a model
  prompts = {} if command.prompts is None else {"prompts": command.prompts}
  if mode == "train":
    from v05_jax.train import train

    train(config, workdir)
  elif mode == "sft":
    from v05_jax.run.sft import sft

    sft(config, workdir)
  elif mode == "value":
    from v05_jax.value_model.train import train_value

    train_value(config, workdir)
  elif mode == "eval":
    from v05_jax.run.eval_mode import evaluate_workdir

    evaluate_workdir(config, workdir, command.step)
  elif mode == "sample":
    from v05_jax.run.show import show

    show(config, workdir, command.step, **prompts)
  elif mode == "noise":
    from v05_jax.run.noise import noise

    noise(config, workdir, command.step, **prompts)
  elif mode == "export":
    from v05_jax.run.export import export

    export(config, workdir, command.out, command.step)
  elif mode == "compile":
    from v05_jax.scale import compile

    compile.report(config, command.topology)
  else:
    from v05_jax.run.report import report

    report(workdir.split(","), command.out)
  if mode in WRITING:
    from v05_jax.run import workdirs
    from v05_jax.scale import distributed

    if distributed.first():
      print(workdirs.ending(config, mode, workdir), flush=True)


if __name__ == "__main__":
  console()
