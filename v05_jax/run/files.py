"""The files of a workdir, local or in an object store (gs://...): whether it can be written, and
files written as a whole or line by line."""

import json
import os

from etils import epath


def is_remote(path) -> bool:
  """Whether a path is an object store's (gs://...), where a file cannot be appended to."""
  return "://" in os.fspath(path)


def folder(workdir) -> epath.Path:
  """The workdir as an absolute path, which Orbax wants; a remote one is that already."""
  path = epath.Path(workdir)
  return path if is_remote(path) else path.expanduser().resolve()


def prepare(workdir) -> epath.Path:
  """Makes the workdir and proves that it can be written, else ValueError. Cheap: call it first."""
  path = folder(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".writable"
    probe.write_text("")
    probe.unlink()
  except (OSError, ImportError) as error:  # no right to write, no such place; or no gcsfs for gs://
    reason = getattr(error, "strerror", None) or error
    raise ValueError(f"workdir {os.fspath(path)}: cannot be written: {reason}") from error
  return path


def replace(path: epath.Path, text: str):
  """Writes a file as a whole or not at all (a remote object is written so in any case)."""
  if is_remote(path):
    path.write_text(text)
    return
  new = f"{os.fspath(path)}.new"
  with open(new, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


class Lines:
  """A file of JSON lines that grows, from the lines `kept` on. In an object store, where files
  cannot be appended to, the lines are kept and written as a whole by `flush`."""

  def __init__(self, path: epath.Path, kept=()):
    self._path, self._text = path, "".join(json.dumps(line) + "\n" for line in kept)
    replace(path, self._text)
    self._file = None if is_remote(path) else open(path, "a", encoding="utf-8")

  def append(self, line: dict):
    if self._file is None:
      self._text += json.dumps(line) + "\n"
    else:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()  # enough for a killed process; `flush` is for a machine that ends

  def flush(self):
    if self._file is None:
      self._path.write_text(self._text)
    else:
      os.fsync(self._file.fileno())

  def close(self):
    self.flush()
    if self._file is not None:
      self._file.close()
