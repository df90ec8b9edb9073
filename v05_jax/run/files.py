"""The files of a workdir, local or in an object store (gs://...): whether it can be written, and
files written as a whole or line by line."""

import contextlib
import json
import os
import shutil

from absl import logging
from etils import epath


def is_remote(path) -> bool:
  """Whether a path is an object store's (gs://...), where a file cannot be appended to."""
  return "://" in os.fspath(path)


def place(name) -> epath.Path:
  """The path of a name: a local one, `~` being the user's folder, or one in an object store
  (gs://...). Raises ValueError for another kind of address, for the folder of a user who has none,
  and for an impossible name."""
  text = os.fspath(name)
  if "\0" in text:
    raise ValueError(f"{text!r}: found a zero byte in the name of a file or folder")
  try:
    path = epath.Path(name)
    path = path if is_remote(path) else path.expanduser()
  except KeyError as error:  # of stores that are not known
    raise ValueError(f"{text}: found {error.args[0]}, expected a local path or gs://") from None
  if os.fspath(path).startswith("~"):
    raise ValueError(f"{text}: found no home of that user, expected a local path or gs://")
  return path


def folder(workdir) -> epath.Path:
  """The workdir as an absolute path, which Orbax wants; a remote one is that already. Raises
  ValueError for an empty name, which would be the current folder, and as `place` does."""
  if not os.fspath(workdir).strip():
    raise ValueError(f"found the folder {os.fspath(workdir)!r}, expected its name")
  path = place(workdir)
  return path if is_remote(path) else path.resolve()


def check_local(workdir):
  """Raises ValueError for a remote workdir, where no model can be written."""
  if is_remote(folder(workdir)):
    raise ValueError(
      f"--workdir={workdir}: found a remote folder, expected a local one: the model is written "
      "there"
    )


def prepare(workdir) -> epath.Path:
  """Makes the workdir and proves that it can be written, else ValueError. Cheap: call it first."""
  path = folder(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".writable.{os.getpid()}"
    probe.write_text("")
    probe.unlink()
  except (OSError, ImportError) as error:  # no right to write, no such place; or no gcsfs for gs://
    reason = getattr(error, "strerror", None) or error
    raise ValueError(f"workdir {os.fspath(path)}: cannot be written: {reason}") from error
  return path


def replace(path, content: str | bytes):
  """Writes a file as a whole or not at all: beside, then in its place (a remote object is written
  so in any case). Raises OSError with path, reason and space left; the old file stays then."""
  data = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    with writes(path):
      epath.Path(path).write_bytes(data)
    return
  new = f"{os.fspath(path)}.{os.getpid()}.new"  # two processes may write the same file
  with writes(path):
    try:
      with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(new, path)
    except OSError:
      with contextlib.suppress(OSError):
        os.unlink(new)
      raise


def put_aside(file: epath.Path):
  """Keeps as FILE.old the lines of an earlier run that left no checkpoint to go on from."""
  if file.exists() and file.stat().length:
    old = file.with_name(f"{file.name}.old")
    file.replace(old)
    logging.warning(
      "%s: found the lines of a run without a checkpoint, which are now in %s; it begins anew",
      file,
      old.name,
    )


@contextlib.contextmanager
def writes(path):
  """While `path`, a file or folder, is written: an OSError says path, reason and space left."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    raise OSError(f"{os.fspath(path)}: cannot be written: {reason}{space(path)}") from error


def space(path) -> str:
  """ "; 1.5 MB are free" where a local path is, "" where that cannot be known."""
  path = os.fspath(path)
  while not is_remote(path) and not os.path.exists(path) and path != os.path.dirname(path):
    path = os.path.dirname(path)
  try:
    return f"; {shutil.disk_usage(path).free / 1e6:.1f} MB are free"
  except OSError:
    return ""


class Lines:
  """A file of JSON lines that grows, from the lines `kept` on. In an object store, where files
  cannot be appended to, the lines are kept and written as a whole by `flush`.

  Raises OSError with path, reason and space left where it cannot be written, and where another
  program has removed or replaced the file: further lines would be lost in silence.
  """

  def __init__(self, path: epath.Path, kept=()):
    self._path, self._text = path, "".join(json.dumps(line) + "\n" for line in kept)
    replace(path, self._text)
    self._file = None
    if not is_remote(path):
      with writes(path):
        self._file = open(path, "a", encoding="utf-8")

  def append(self, line: dict):
    if self._file is None:
      self._text += json.dumps(line) + "\n"
      return
    with writes(self._path):
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()  # enough for a killed process; `flush` is for a machine that ends

  def flush(self):
    """Makes sure that every line so far survives."""
    if self._file is None:
      replace(self._path, self._text)
      return
    with writes(self._path):
      self._file.flush()
      os.fsync(self._file.fileno())
    self._check_place()

  def rewrite(self, lines):
    """Puts `lines` in the place of all so far."""
    if self._file is not None:
      self._file.close()  # whose lines are in `lines`
      self._file = None
    self.__init__(self._path, lines)

  def close(self):
    """Flushes and closes; the file is closed whatever fails."""
    try:
      self.flush()
    finally:
      if self._file is not None:
        with contextlib.suppress(OSError):  # of lines that `flush` could not write either
          self._file.close()

  def _check_place(self):
    ours = os.fstat(self._file.fileno())
    try:
      there = os.stat(self._path)
    except FileNotFoundError:
      there = None
    if there is None or not os.path.samestat(ours, there):
      what = "removed" if there is None else "replaced"
      raise OSError(
        f"{os.fspath(self._path)}: was {what} by another program while this run wrote it"
      )
