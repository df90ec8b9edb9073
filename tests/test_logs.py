"""Warnings as a user sees them."""

import logging as python_logging
from pathlib import Path

from absl import logging

from v05_jax import logs
from v05_jax.run import view

OURS, THEIRS = Path(view.__file__), Path(logging.__file__)


def said(file: Path, terminal: bool) -> str:
  level = python_logging.WARNING
  record = python_logging.LogRecord("absl", level, str(file), 7, "%s is gone", ("x",), None)
  return logs.Formatter(terminal).format(record)


def test_our_warnings_are_a_plain_line_and_those_of_libraries_name_their_place():
  assert said(OURS, False) == "warning: x is gone"
  theirs = said(THEIRS, False)
  assert theirs.endswith(f"{THEIRS.name}:7] x is gone") and theirs.startswith("W")


def test_on_a_terminal_a_warning_takes_the_place_of_the_progress_line():
  assert said(OURS, True) == "\r\x1b[Kwarning: x is gone"


def test_the_handler_of_the_process_writes_so(monkeypatch):
  handler, before = logging.get_absl_handler(), logging.get_verbosity()
  python_handler = handler.python_handler
  monkeypatch.setattr(python_handler, "formatter", python_handler.formatter)
  try:
    logs.start()
    assert isinstance(python_handler.formatter, logs.Formatter)
    assert logging.get_verbosity() == logging.WARNING
  finally:
    logging.set_verbosity(before)
