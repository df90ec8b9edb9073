"""Writes what a run measures: config.json, metrics.jsonl (see `metrics`) and TensorBoard events."""

import contextlib
import math
import os
import pathlib
import shutil
import tempfile
import time

from v05_jax import config as configuration
from v05_jax.run import files, metrics
from v05_jax.scale import distributed


class Writer:
  """Writes a run's config.json, metrics.jsonl and TensorBoard events; a context manager.

  `done` is the number of steps of the restored state: lines after step `done` are cut off, since
  the run will write them again; 0 is a fresh run, which keeps none.
  """

  def __init__(self, workdir, config, done: int = 0):
    from tensorboardX import SummaryWriter

    self._path = files.prepare(workdir)
    self._remote = files.is_remote(self._path)
    kept = [line for line in metrics.read(workdir) if line["step"] <= done] if done else []
    files.replace(self._path / "config.json", configuration.to_json(config))
    self._lines = files.Lines(self._path / "metrics.jsonl", kept)
    self._events = tempfile.mkdtemp() if self._remote else os.fspath(self._path / "tensorboard")
    suffix = f".{time.time_ns()}"  # else a restart within a second would overwrite the file
    first = done + 1 if done else 0
    self._board = SummaryWriter(self._events, purge_step=first, filename_suffix=suffix)
    # the last written value of each metric, for the progress line
    self.latest: dict[str, float] = {}
    self._pending = None  # the line taken and not yet written

  def write(self, step: int, rollouts: int, pairs: metrics.Pairs):
    """Takes the line of a step and writes the one before it: pairs may hold device arrays, which
    are read when the next step is under way.

    Raises ValueError for a name that `metrics.METRICS` does not document.
    """
    if unknown := sorted(name for name in pairs if metrics.meaning(name) is None):
      raise ValueError(f"metrics without an entry in metrics.METRICS: {', '.join(unknown)}")
    self._settle()
    self._pending = step, rollouts, pairs

  def _settle(self):
    """Writes the line that was taken last."""
    if self._pending is None:
      return
    step, rollouts, pairs = self._pending
    self._pending = None
    means = sorted(metrics.means(pairs).items())
    values = {name: mean if math.isfinite(mean) else None for name, mean in means}
    self._lines.append({"step": int(step), "rollouts": int(rollouts), **values})
    finite = {name: value for name, value in values.items() if value is not None}
    self.latest |= finite
    for name, value in finite.items():
      self._board.add_scalar(name, value, int(step))

  def flush(self):
    """Makes sure that every line so far survives; call it before each checkpoint."""
    self._settle()
    self._board.flush()
    self._lines.flush()
    if self._remote:
      board = self._path / "tensorboard"
      board.mkdir(parents=True, exist_ok=True)
      for file in pathlib.Path(self._events).iterdir():
        (board / file.name).write_bytes(file.read_bytes())

  def close(self):
    self.flush()
    self._board.close()
    self._lines.close()
    if self._remote:
      shutil.rmtree(self._events)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class Silent:
  """In place of the `Writer`, in all processes but the first: writes nothing."""

  latest: dict[str, float] = {}

  def write(self, step: int, rollouts: int, pairs: metrics.Pairs):
    """Does nothing, as `flush`."""

  def flush(self):
    pass


def make(workdir, config, done: int = 0):
  """Context manager: the run's `Writer` in process 0, `Silent` in others."""
  return Writer(workdir, config, done) if distributed.first() else contextlib.nullcontext(Silent())
