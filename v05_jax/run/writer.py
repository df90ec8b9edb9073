"""Writes what a run measures: config.json, metrics.jsonl (see `metrics`), and what its sinks
show."""

from collections.abc import Callable
import contextlib
import math

from absl import logging

from v05_jax import config as configuration
from v05_jax import plug, sinks
from v05_jax.run import files, metrics
from v05_jax.scale import distributed


class Writer:
  """Writes a run's config.json and metrics.jsonl, and hands on to its sinks; a context manager.

  `done` is the number of steps of the restored state: lines after step `done` are cut off, since
  the run will write them again. 0 is a fresh run: lines that an earlier one has left without a
  checkpoint become metrics.jsonl.old. Raises ValueError where the lines up to `done` are not all
  there, once each and in order (`metrics.until`), and OSError where metrics.jsonl cannot be
  written. A sink that fails is dropped instead (`sinks.base`).
  """

  def __init__(self, workdir, config, done: int = 0):
    self._path = files.prepare(workdir)
    self._kept = metrics.until(workdir, done) if done else []
    files.replace(self._path / "config.json", configuration.to_json(config))
    if not done:
      files.put_aside(self._path / metrics.FILE)
    self._lines = files.Lines(self._path / metrics.FILE, self._kept)
    self._sinks = sinks.Sinks(plug.Setting(config, workdir=self._path, done=done))
    # the last written value of each metric, for the progress line
    self.latest: dict[str, float] = {}
    self._pending = None  # the line taken and not yet written
    self._draw = lambda: None

  def write(self, step: int, rollouts: int, pairs: metrics.Pairs):
    """Takes the line of a step and writes the previous one: pairs may hold device arrays, and
    reading them later does not hold up the device.

    Raises ValueError for a name that `metrics.METRICS` does not document.
    """
    _check(pairs)
    self._kept = []
    self._settle()
    self._pending = step, rollouts, pairs

  @property
  def restored(self) -> dict:
    """The line of the step that the run goes on from, until there is another; {} of a fresh run."""
    return self._kept[-1] if self._kept else {}

  def complete(self, pairs: metrics.Pairs):
    """Adds to the line of the step that the run goes on from, before any other, what was not
    measured then. Raises ValueError as `write` does."""
    _check(pairs)
    self._kept[-1] |= _values(pairs)
    self._lines.rewrite(self._kept)
    self._told(self.restored["step"], _values(pairs))

  def _settle(self):
    """Writes the line that was taken last."""
    if self._pending is None:
      return
    step, rollouts, pairs = self._pending
    self._pending = None
    values = _values(pairs)
    self._lines.append({"step": int(step), "rollouts": int(rollouts), **values})
    self._told(int(step), values)

  def _told(self, step: int, values: dict[str, float | None]):
    """Hands on what was written of a step."""
    finite = {name: value for name, value in values.items() if value is not None}
    self.latest |= finite
    self._sinks.call("write", step, finite)

  def samples(self, step: int, rows: list[dict]):
    """Hands rollouts of a step, dictionaries of one form, to the sinks."""
    self._settle()
    if rows:
      self._sinks.call("samples", int(step), rows)

  def at_end(self, draw: Callable[[], str | None]):
    """When the run has finished, and all its lines are written, hands the picture that `draw` makes
    to the sinks; it returns the path, None where there is none."""
    self._draw = draw

  def _picture(self):
    if path := self._draw():
      self._sinks.call("picture", path)

  def flush(self):
    """Makes sure that every line so far survives; call it before each checkpoint."""
    self._settle()
    self._lines.flush()
    self._sinks.call("flush")

  def close(self, how: str = sinks.FINISHED):
    """Ends lines and sinks; `how` the run ends."""
    with contextlib.ExitStack() as stack:  # all are closed, whatever fails
      stack.callback(self._sinks.close, how)
      if how == sinks.FINISHED:
        stack.callback(self._picture)
      stack.callback(self._lines.close)
      stack.callback(self._settle)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    stopped = kind is not None and issubclass(kind, (InterruptedError, KeyboardInterrupt))
    try:
      self.close(sinks.STOPPED if stopped else sinks.FAILED if kind else sinks.FINISHED)
    except OSError as error:
      if kind is None:
        raise
      logging.warning("%s", error)  # what ended the run is the error to show


def _check(pairs: metrics.Pairs):
  """Raises ValueError for a name that `metrics.METRICS` does not document."""
  if problem := metrics.undocumented(pairs):
    raise ValueError(problem)


def _values(pairs: metrics.Pairs) -> dict[str, float | None]:
  """What a line says of pairs, by name: their means, None for one that is not finite."""
  means = sorted(metrics.means(pairs).items())
  return {name: mean if math.isfinite(mean) else None for name, mean in means}


class Silent:
  """In place of the `Writer`, in all processes but the first: writes nothing."""

  latest: dict[str, float] = {}
  restored: dict = {}

  def write(self, step: int, rollouts: int, pairs: metrics.Pairs):
    """Does nothing, as all others."""

  def complete(self, pairs: metrics.Pairs):
    pass

  def samples(self, step: int, rows: list[dict]):
    pass

  def at_end(self, draw: Callable[[], str | None]):
    pass

  def flush(self):
    pass


def make(workdir, config, done: int = 0):
  """Context manager: the run's `Writer` in process 0, `Silent` in others."""
  return Writer(workdir, config, done) if distributed.first() else contextlib.nullcontext(Silent())
