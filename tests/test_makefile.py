"""`make` in a fresh clone."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

ROOT = Path(__file__).parent.parent
# In place of an environment's Python: pytest makes --basetemp itself, but not the folder around it.
PYTHON = f"""#!/bin/sh
case "$*" in
  "-m pytest"*) test -d .cache || exit 1; echo tested ;;
  "-m pip"*) ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["test", "test-pod"])
def test_the_tests_have_a_place_for_their_files(tmp_path, target):
  for name in ("Makefile", "setup.py", "constraints.txt"):
    shutil.copy(ROOT / name, tmp_path)
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(PYTHON)
  python.chmod(0o755)
  (tmp_path / ".venv" / ".installed").write_text(f"{tmp_path}\n")
  # `make test` runs this test itself, and an inner make of make speaks of folders that it enters.
  environment = {
    x: v for x, v in os.environ.items() if x not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
  }
  command = ["make", target]
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.splitlines()[-1] == "tested"
