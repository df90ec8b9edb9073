"""Warnings as a user sees them."""

import io
import logging as python_logging
import os
from pathlib import Path
import pty
import socket
import subprocess
import sys

from absl import logging
import pytest

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


# Says something, opens a file, says the number of its descriptor, and ends as a command does.
COMMAND = r"""
import sys
from v05_jax import logs
logs.open_streams()
print("\xfc \udcff", file=sys.stderr)
print("\xfc \udcff", open("said.txt", "w").fileno() > 2)
logs.close_streams()
"""


def spoken(folder, redirections="", command=COMMAND, words=(), stdout=subprocess.PIPE, **variables):
  """Runs Python code as a command with `words`, with a shell's redirections."""
  script = f'exec "$0" -c "$@" {redirections}'
  found = {"PYTHONPATH": str(logs.PACKAGE.parent), "PYTHONUNBUFFERED": ""}
  return subprocess.run(
    ["sh", "-c", script, sys.executable, command, *words],
    cwd=folder,
    env=os.environ | found | variables,
    stdout=stdout,
    stderr=subprocess.PIPE,
    timeout=300,
  )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_stream_cannot_show_is_written_as_its_escape(tmp_path, encoding):
  done = spoken(tmp_path, PYTHONIOENCODING=encoding)
  letter = "\\xfc" if encoding == "ascii" else "\xfc"
  said = f"{letter} \\udcff".encode(encoding)
  assert done.returncode == 0 and done.stderr == said + b"\n"
  assert done.stdout == said + b" True\n"


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_lead_nowhere(tmp_path, closed):
  """And no file takes their place, into which a library could write."""
  done = spoken(tmp_path, closed)
  assert done.returncode == 0 and "Traceback" not in done.stderr.decode()
  assert done.stdout.endswith(b"True\n") or ">&-" in closed.split()


LONG = pytest.mark.long
LONG_TEXT = "from v05_jax import main; main.{} = lambda *_: {}('x' * 100_000); main.console()"


@pytest.mark.parametrize(
  "command, words",
  [
    (COMMAND, ()),
    (LONG_TEXT.format("manual", ""), ()),
    pytest.param(
      LONG_TEXT.format("run", "print"), ("report", "--workdir=x"), marks=pytest.mark.long
    ),
  ],
)
def test_output_that_nobody_reads_is_no_error(tmp_path, command, words):
  """As of `v05 sample | head -n 1`; more than Python's buffer holds fails while it is printed."""
  read, write = os.pipe()
  os.close(read)
  done = spoken(tmp_path, command=command, words=words, stdout=write)
  os.close(write)
  assert done.returncode == 0 and "Error" not in done.stderr.decode()


def test_output_that_cannot_be_written_is_an_error(tmp_path):
  done = spoken(tmp_path, ">/dev/full")
  said = done.stderr.decode()
  assert done.returncode == 1 and "Traceback" not in said and "ignored" not in said
  assert said.endswith("error: standard output cannot be written: No space left on device\n")


def test_a_terminal_without_codes_gets_lines(monkeypatch):
  parent, child = pty.openpty()
  with open(child, "w") as terminal, open(os.devnull, "w") as nothing:
    monkeypatch.setattr(sys, "__stderr__", terminal)
    for name, wanted in (("xterm", True), ("dumb", False)):
      monkeypatch.setenv("TERM", name)
      assert logs.is_terminal(terminal) == wanted and not logs.is_terminal(nothing)
  os.close(parent)


def test_a_stream_that_is_no_file_is_not_unread(monkeypatch):
  monkeypatch.setattr(sys, "stdout", io.StringIO())  # as in a notebook
  assert not logs.unread()


@pytest.mark.parametrize("make", [os.pipe, lambda: [x.detach() for x in socket.socketpair()]])
def test_it_is_unread_once_its_reader_has_gone(monkeypatch, make):
  reader, writer = make()
  with open(writer, "w") as stream:
    monkeypatch.setattr(sys, "stdout", stream)
    assert not logs.unread()
    os.close(reader)
    assert logs.unread()
