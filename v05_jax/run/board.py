"""TensorBoard's events of a run: a view of metrics.jsonl, which a run goes on without."""

import contextlib
import os
import pathlib
import shutil
import struct
import tempfile
import time

from etils import epath

from v05_jax.run import files
from v05_jax.run.view import View

SECONDS = 30.0  # after which TensorBoard sees what was written


class Board:
  """Writes scalars to `folder`, local or remote, as TensorBoard reads them.

  At the first failure (a full disk, no right to write, a bucket that is gone) it warns, and writes
  nothing from then on (`View`). Events are written by the caller's own thread. tensorboardX's
  SummaryWriter has a thread and a queue for it, and waits for ever where that thread has died of a
  failed write.

  first: of a run that goes on, the step from which on TensorBoard forgets what it has read.
  """

  def __init__(self, folder: epath.Path, first: int):
    self._folder, self._events, self._file = folder, None, None
    self._flushed, self._last = time.monotonic(), 0
    what, space = "events for TensorBoard are written", lambda: files.space(folder)
    self._view = View(os.fspath(folder), what, space, self._release)
    self._view(self._open, first)

  def add(self, step: int, values: dict[str, float]):
    """Writes the values of a step."""
    self._view(self._write, step, values)

  def text(self, step: int, name: str, text: str):
    """Writes a Markdown text of a step."""
    self._view(self._write_text, step, name, text)

  def picture(self, path: str):
    """Writes a .png as an image of the last step."""
    self._view(self._write_picture, path)

  def flush(self):
    """Makes sure that every event so far survives; to a remote folder the files are copied."""
    self._view(self._keep)

  def close(self):
    self.flush()
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

  def _event(self, step: int, summary):
    from tensorboardX.proto.event_pb2 import Event

    self._last = max(self._last, step)
    self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))

  def _write_text(self, step: int, name: str, text: str):
    from tensorboardX.summary import text as summary

    self._event(step, summary(name, text))

  def _write_picture(self, path: str):
    from tensorboardX.proto.summary_pb2 import Summary

    data = epath.Path(path).read_bytes()
    width, height = struct.unpack("!II", data[16:24])  # of a PNG's first chunk
    image = Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
    name = pathlib.PurePath(path).stem
    self._event(self._last, Summary(value=[Summary.Value(tag=name, image=image)]))

  def _write(self, step: int, values: dict[str, float]):
    from tensorboardX.summary import scalar

    for name, value in values.items():
      self._event(step, scalar(name, value))
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
