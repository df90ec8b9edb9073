"""What the process says, and where: warnings, a line each; standard output and error, whatever
they are."""

import os
import pathlib
import select
import sys

from absl import logging

PACKAGE = pathlib.Path(__file__).parent
CLEAR = "\r\x1b[K"  # of a terminal: the progress line, which is written again after the warning


class Formatter(logging.PythonFormatter):
  """`warning: TEXT` for what this package says; absl's own form, with time and place, for what
  libraries do."""

  def __init__(self, terminal: bool):
    super().__init__()
    self._clear = CLEAR if terminal else ""

  def format(self, record) -> str:
    own = PACKAGE in pathlib.Path(record.pathname).parents
    text = f"{record.levelname.lower()}: {record.getMessage()}" if own else super().format(record)
    return self._clear + text


def start():
  """Shows warnings and errors on stderr, and nothing below: Orbax reports every checkpoint."""
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_handler().setFormatter(Formatter(is_terminal(sys.stderr)))


def is_terminal(stream) -> bool:
  """Whether a line can be written again there. TERM=dumb, as within an editor, says that it cannot
  of the process's own terminal."""
  own = stream in (sys.__stdout__, sys.__stderr__)
  return stream.isatty() and not (own and os.environ.get("TERM") == "dumb")


def open_streams():
  """Makes sure that nothing said can fail a command: standard streams that are closed lead nowhere,
  and a character that stdout's encoding has not is written as its escape. Call it first."""
  while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest one that is free
    os.set_inheritable(descriptor, True)
  os.close(descriptor)
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:  # as Python has it for one that was closed
      setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
    elif hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")


def close_streams():
  """Writes what is left of stdout, or ends with an error. Nothing is wrong where it is `unread`."""
  try:
    sys.stdout.flush()
  except OSError as error:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # or Python would try once more, and complain
    os.close(nowhere)
    if not isinstance(error, BrokenPipeError):
      sys.exit(f"error: standard output cannot be written: {error.strerror}")


def unread() -> bool:
  """Whether whoever read stdout has gone, as after `| head`."""
  found = select.poll()
  try:
    found.register(sys.stdout.fileno(), select.POLLOUT)
  except (OSError, ValueError):  # a stream that is no file, as in a notebook
    return False
  return any(event & (select.POLLERR | select.POLLHUP) for _, event in found.poll(0))
