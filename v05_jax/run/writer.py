"""Writes what a run measures: config.json, metrics.jsonl (see `metrics`) and TensorBoard events."""

import contextlib
import math

from absl import logging

from v05_jax import config as configuration
from v05_jax.run import board, files, metrics
from v05_jax.scale import distributed


class Writer:
  """Writes a run's config.json, metrics.jsonl and TensorBoard events; a context manager.

  `done` is the number of steps of the restored state: lines after step `done` are cut off, since
  the run will write them again; 0 is a fresh run, which puts the lines of one that has left no
  checkpoint aside, as metrics.jsonl.old. Raises ValueError where the
  lines up to `done` are not all there, once each and in order (`metrics.until`), and OSError where
  metrics.jsonl cannot be written. TensorBoard's events are given up instead (`board`).
  """

  def __init__(self, workdir, config, done: int = 0):
    self._path = files.prepare(workdir)
    kept = metrics.until(workdir, done) if done else []
    files.replace(self._path / "config.json", configuration.to_json(config))
    if not done:
      self._put_aside(self._path / metrics.FILE)
    self._lines = files.Lines(self._path / metrics.FILE, kept)
    self._board = board.Board(self._path / "tensorboard", done + 1 if done else 0)
    # the last written value of each metric, for the progress line
    self.latest: dict[str, float] = {}
    self._pending = None  # the line taken and not yet written

  def _put_aside(self, file):
    """Keeps the lines of an earlier run, of which there is no checkpoint to go on from."""
    if file.exists() and file.stat().length:
      old = file.with_name(f"{file.name}.old")
      file.replace(old)
      logging.warning(
        "%s: found the lines of a run without a checkpoint, which are now in %s; it begins anew",
        file,
        old.name,
      )

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
    self._board.add(int(step), finite)

  def flush(self):
    """Makes sure that every line so far survives; call it before each checkpoint."""
    self._settle()
    self._lines.flush()
    self._board.flush()

  def close(self):
    with contextlib.ExitStack() as stack:  # all are closed, whatever fails
      stack.callback(self._board.close)
      stack.callback(self._lines.close)
      stack.callback(self._settle)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except OSError as error:
      if kind is None:
        raise
      logging.warning("%s", error)  # what ended the run is the error to show


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
