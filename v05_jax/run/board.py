"""TensorBoard's events of a run: a view of metrics.jsonl, which a run goes on without."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time

from absl import logging
from etils import epath

from v05_jax.run import files

SECONDS = 30.0  # after which TensorBoard sees what was written


class Board:
  """Writes scalars to `folder`, local or remote, as TensorBoard reads them.

  What fails here (a full disk, no right to write, a bucket that is gone) is said once, as a
  warning, and nothing is written from then on: the metrics stand in metrics.jsonl all the same.
  Events are written by the caller's own thread. tensorboardX's SummaryWriter has a thread and a
  queue for it, and waits for ever where that thread has died of a failed write.

  first: of a run that goes on, the step from which on TensorBoard forgets what it has read.
  """

  def __init__(self, folder: epath.Path, first: int):
    self._folder, self._events, self._file = folder, None, None
    self._dropped, self._flushed = False, time.monotonic()
    self._attempt(self._open, first)

  def add(self, step: int, values: dict[str, float]):
    """Writes the values of a step."""
    self._attempt(self._write, step, values)

  def flush(self):
    """Makes sure that every event so far survives; to a remote folder the files are copied."""
    self._attempt(self._keep)

  def close(self):
    self.flush()
    self._release()

  def _attempt(self, function, *arguments):
    if self._dropped:
      return
    try:
      function(*arguments)
    # a bucket's failures have kinds of their own, and no view of the metrics is worth the run
    except Exception as error:
      self._dropped = True
      reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
      logging.warning(
        "%s: no more events for TensorBoard are written: %s%s; the run goes on, and its metrics "
        "are in metrics.jsonl",
        os.fspath(self._folder),
        reason,
        files.space(self._folder),
      )
      self._release()

  def _open(self, first: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    remote = files.is_remote(self._folder)
    self._events = pathlib.Path(tempfile.mkdtemp() if remote else self._folder)
    self._events.mkdir(parents=True, exist_ok=True)
    # the suffix: else a restart within a second would overwrite the file
    self._file = EventsWriter(os.fspath(self._events / "events"), f".{time.time_ns()}")
    start = SessionLog(status=SessionLog.START)
    self._file.write_event(Event(wall_time=time.time(), step=first, session_log=start))
    self._file.flush()

  def _write(self, step: int, values: dict[str, float]):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    for name, value in values.items():
      summary = scalar(name, value)
      self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
    if time.monotonic() - self._flushed > SECONDS:
      self._flushed = time.monotonic()
      self._file.flush()

  def _keep(self):
    self._file.flush()
    if files.is_remote(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      for file in self._events.iterdir():
        (self._folder / file.name).write_bytes(file.read_bytes())

  def _release(self):
    file, self._file = self._file, None
    if file is not None:
      with contextlib.suppress(OSError):  # what could not be written before
        file.close()
    if files.is_remote(self._folder) and self._events is not None:
      shutil.rmtree(self._events, ignore_errors=True)
