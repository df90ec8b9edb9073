"""What the process says beside its results: warnings, a line each."""

import pathlib
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
  logging.get_absl_handler().setFormatter(Formatter(sys.stderr.isatty()))
