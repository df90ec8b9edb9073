"""Checkpoints of a run's state (Orbax), what a resumed run may change, stopping on a signal.

A checkpoint is written under a temporary name and renamed when it is complete (in an object store,
a last file marks it as complete). So, whenever the process is killed, an unfinished checkpoint is
never taken for a good one. Older ones are deleted only after that. The checksums of its files are
part of it (`digest`), and compared before it is restored.
"""

import contextlib
import os
import signal
import threading

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from v05_jax import config as configuration
from v05_jax import structs
from v05_jax.run import digest, files, leaves, lock, workdirs
from v05_jax.scale import distributed

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
ITEM = "default"  # the folder of a checkpoint that holds the state
# What a checkpoint knows beside its arrays: its own number, and digests of what it names.
STEP, DATA = "step", "data"
# Digests of the user's own files of the reward and, with the module behind it, of each plug: these
# may change while a run is stopped.
CODE = "plugs."

PREFIXES = tuple(f"{name}." for name in structs.PLUGS)  # of what plugs have learnt
OLD = ("context.", "drift.", "estimator.board.")  # the same in an earlier format of checkpoints


class Preempted(InterruptedError):
  """A signal asked the run to stop; its state is saved."""


def stopped(step: int) -> Preempted:
  """The exception that ends a loop on a signal, when its state is saved after `step` steps."""
  return Preempted(f"stopped by a signal; saved at step {step}, the same command continues")


def due(step: int, period: int) -> bool:
  """Whether something done every `period` steps falls on this one; 0 = never."""
  return period > 0 and step % period == 0


class Handler(ocp.StandardCheckpointHandler):
  """Orbax's, which also writes the checksums of its files, before the checkpoint is complete."""

  def finalize(self, directory):
    super().finalize(directory)
    digest.write(directory)


@ocp.args.register_with_handler(Handler, for_save=True)
class Save(ocp.args.StandardSave):
  """What `Handler` is to save."""


@ocp.args.register_with_handler(Handler, for_restore=True)
class Restore(ocp.args.StandardRestore):
  """What `Handler` is to restore."""


class Checkpoints:
  """The checkpoints in `workdir`/checkpoints, the newest `keep` of them; a context manager.

  Reading creates and removes nothing, so another process may evaluate or export a run that goes on.

  Among several processes every method is collective: all call it, and each writes and reads what
  its devices hold. A checkpoint is restored by any number of processes on any mesh.

  held: the lock of the run that writes here; where another has taken the workdir, nothing is saved.
  """

  def __init__(self, workdir, keep: int, held: lock.Lock | None = None):
    self._path = files.folder(workdir) / "checkpoints"
    self._held = held
    self._options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    self._opened: ocp.CheckpointManager | None = None
    self._wrote = False

  def steps(self) -> list[int]:
    """The steps of the complete checkpoints, ascending; of several processes none after process 0's
    newest, as another may look later, when a run that goes on has saved once more. Raises
    ValueError where one of them does not see that one."""
    if self._path.exists() and not self._path.is_dir():
      raise ValueError(f"{os.fspath(self._path)}: found a file, expected a folder of checkpoints")
    there = distributed.of_first(self._path.exists())  # one process looks: opening waits for all
    found = sorted(self._manager().all_steps()) if there else []
    newest = distributed.of_first(max(found, default=-1))
    if distributed.anywhere(newest >= 0 and newest not in found):
      raise ValueError(
        f"checkpoint {os.fspath(self._path / str(newest))}: found it in process 0 and not in every "
        "other, expected a folder that all processes see alike: start all of them again"
      )
    return [step for step in found if step <= newest]

  def latest(self) -> int | None:
    """The newest complete checkpoint's step; None if there is none."""
    return max(self.steps(), default=None)

  def restore(self, step: int, example, data: dict[str, str] | None = None):
    """The state saved at `step`, on the shardings of `example`, a state of arrays or its
    `leaves.outline`.

    data: as of `save`, of the run that goes on. Raises ValueError if the checkpoint cannot be read,
    where a file has changed since it was written (it is named), if its tensors differ from the
    example's in name, shape or dtype (it is of another architecture or optimiser), and if it has
    learned from other data.
    """
    where = f"checkpoint {os.fspath(self._path / str(step))}"
    self._check_files(step, where)
    try:
      with _quiet():
        metadata = self._manager().item_metadata(step)
        stored = leaves.named(metadata.tree)
    except Exception as error:
      _raise_if_lost(error)
      raise self._unreadable(step, where, configuration.one_line(error)) from error
    known = metadata.custom_metadata or {}
    if (found := known.get(STEP, step)) != step:
      raise self._unreadable(step, where, f"found the state after step {found} in it")
    _check_data(known, data or {}, where)
    if any(name.startswith(OLD) for name in stored):
      raise ValueError(
        f"{where} was written by a version of v05_jax that kept its state in another form: start "
        "in a new workdir, or export it with that version and go on from --config.policy.path"
      )
    wanted = leaves.named(example)
    own = {name: x for name, x in wanted.items() if name in stored or not name.startswith(PREFIXES)}
    found = {name: x for name, x in stored.items() if name in own or not name.startswith(PREFIXES)}
    if problems := leaves.differences(leaves.tensors(found), leaves.tensors(own)):
      more = [f"and {len(problems) - 6} more"] if len(problems) > 6 else []
      head = f"{where} does not fit this config's model, optimizer and number of prompts:"
      raise ValueError("\n  ".join([head, *problems[:6], *more]))
    remade = leaves.remade(stored, wanted, ("prior", "budget", "estimator"))
    if remade and data is not None:
      head = f"{where} has states of plugs with other names; start in a new workdir:"
      raise ValueError("\n  ".join([head, *remade]))
    if new := sorted({".".join(name.split(".")[:2]) for name in wanted if name not in own}):
      logging.warning("%s has nothing of %s, which start empty", where, ", ".join(new))
    # Orbax reads whole trees: what the state does not want is read too, and dropped.
    empty = lambda x: np.zeros(x.shape, x.dtype)
    abstract = {n: leaves.abstract(own[n]) if n in own else empty(x) for n, x in stored.items()}
    try:
      with _quiet():
        restored = self._manager().restore(step, args=Restore(abstract))
    except Exception as error:
      _raise_if_lost(error)
      raise self._unreadable(step, where, configuration.one_line(error)) from error
    values, form = jax.tree.flatten(example)
    return form.unflatten(
      [
        leaves.as_example(x, restored[name]) if name in own else x
        for name, x in zip(leaves.names(example), values)
      ]
    )

  def save(self, step: int, state, data: dict[str, str] | None = None):
    """Writes `state` and returns when it is safe. Raises ValueError if it cannot be written (a full
    disk); the checkpoints before it stay as they are then.

    data: config key -> digest of the rows, weights, or reward's file, that it names, which
      `restore` compares.
    """
    if self._held is not None:
      self._held.check()
    try:
      with _quiet():
        if not self._wrote:
          self._remove_unfinished()
          distributed.barrier("unfinished checkpoints are gone")
          self._wrote = True
        arrays = {name: leaves.saveable(x) for name, x in leaves.named(state).items()}
        args = Save(arrays, custom_metadata={STEP: step, DATA: data or {}})
        self._manager().save(step, args=args, force=True)
    except Exception as error:
      _raise_if_lost(error)
      with contextlib.suppress(OSError):
        self._remove_unfinished()
      raise ValueError(self._not_written(step, state, error)) from error

  def close(self):
    if self._opened is not None:
      self._opened.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def _manager(self) -> ocp.CheckpointManager:
    """Opened at the first use, because opening creates the folder."""
    if self._opened is None:
      handler = Handler()
      self._opened = ocp.CheckpointManager(self._path, item_handlers=handler, options=self._options)
    return self._opened

  def _remove_unfinished(self):
    """Removes what a killed or failed run has left: it may be what fills the disk."""
    if distributed.first() and self._path.exists():
      for path in self._path.iterdir():
        if UNFINISHED in path.name:
          path.rmtree()

  def _not_written(self, step, state, error) -> str:
    full = "No space left" in str(error) or "quota" in str(error)
    reason = "the disk is full" if full else configuration.one_line(error)
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    space = f"it needs about {needed / 1e6:.1f} MB{files.space(self._path).replace(';', ',')}"
    last = max(self._manager().all_steps(), default=None)
    kept = "there is none before it" if last is None else f"the last good one is of step {last}"
    where = f"checkpoint {os.fspath(self._path / str(step))}"
    return f"{where} could not be written: {reason}; {space}; {kept}"

  def _check_files(self, step: int, where: str):
    """Raises ValueError where a file is not as it was written; the processes look at some each."""
    folder = self._path / str(step) / ITEM
    found = digest.damaged(folder, distributed.owner)
    if found is None and folder.exists():
      logging.warning("%s has no checksums: its files are read unchecked", where)
    if found:
      raise self._unreadable(step, where, found)

  def _unreadable(self, step: int, where: str, reason: str) -> ValueError:
    older = [s for s in self._manager().all_steps() if s < step]
    hint = f"; without that folder the run goes on from step {max(older)}" if older else ""
    return ValueError(f"{where} cannot be read{hint}: {reason}")


def _named(key: str) -> str:
  return "rows" if key in ("data.path", "eval.path", "value.data") else "weights"


def _check_data(saved: dict, data: dict[str, str], where: str):
  """Raises ValueError where a resumed run would have other data, or would start from other weights,
  than before; warns where a file of its reward or plugs has changed."""
  known = saved.get(DATA, {})
  problems = [
    f"config.{key}: found {_named(key)} with the digest {found}, expected {known[key]}"
    for key, found in data.items()
    if not key.startswith(CODE) and known.get(key, found) != found
  ]
  if problems:
    head = (
      f"{where} has learned from other data or weights; put them back, tokenizer and template too, "
      "or train in another workdir:"
    )
    raise ValueError("\n  ".join([head, *problems]))
  for key in sorted(key for key in data if key.startswith(CODE)):
    if known.get(key, data[key]) != data[key]:
      file = f"{key.removeprefix(CODE)}.py"
      logging.warning("%s: %s has changed since: what follows may not compare", where, file)


def prepare(workdir, config):
  """Makes the workdir (`files.prepare`), in a run of several processes by process 0 -> its path.

  Raises ValueError where it cannot be written, where a process does not see what process 0 writes
  there, and where the processes were not all started with one config.
  """
  if not distributed.several():
    return files.prepare(workdir)
  path = files.folder(workdir)
  if distributed.first():
    files.prepare(workdir)
  distributed.check_shared("workdir", path)
  distributed.check_same("the config", lambda: [configuration.to_json(config)])
  return path


def check_config(workdir, config):
  """Raises ValueError, naming each key that differs, if `workdir` holds a run of another config.

  The number of steps, the periods, the devices and what fits them may differ
  (`config.check_resume`); where nothing has been trained yet all may.
  """
  path = files.folder(workdir) / "config.json"
  if path.exists() and workdirs.trained(workdir):
    saved = configuration.from_json(path.read_bytes(), os.fspath(path))
    configuration.check_resume(saved, config, os.fspath(path.parent))


def check_adapters(workdir, config):
  """Raises ValueError where the run in `workdir` has scaled its adapters in another way than
  `config` does, which no shape of a checkpoint shows."""
  path, key = files.folder(workdir) / "config.json", "policy.lora_alpha"
  if not config.policy.lora_rank or not path.exists():
    return
  saved = configuration.flatten(configuration.from_json(path.read_bytes(), os.fspath(path)))
  found, wanted = config.policy.lora_alpha, saved.get(key)
  if saved.get("policy.lora_rank") and wanted not in (None, found):
    raise ValueError(f"{key}: found {found:g}, expected {wanted:g}, as the run in {workdir} has it")


class Preemption:
  """While active, SIGTERM and the first Ctrl-C set `requested`: the loop stops after its step.

  A second Ctrl-C interrupts at once. Outside of the main thread, where Python allows no handlers,
  it does nothing.
  """

  def __init__(self):
    self.requested = False
    self._before = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._request)
    return self

  def __exit__(self, *error):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _request(self, number, _):
    self.requested = True
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, self._before[signal.SIGINT])
    name = signal.Signals(number).name
    again = "; once more stops at once" if number == signal.SIGINT else ""
    # print is not safe in a handler
    os.write(2, f"\n{name}: saving after this step{again}\n".encode())


def _raise_if_lost(error: Exception):
  """Raises an error of JAX's runtime again in a run of several processes: another process is lost,
  which `peers` names, and nothing is wrong with the checkpoint."""
  if distributed.several() and distributed.of_the_runtime(error):
    raise error


@contextlib.contextmanager
def _quiet():
  """Keeps Orbax's tracebacks out of the log: a failure becomes one message of ours."""
  level = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(level)
