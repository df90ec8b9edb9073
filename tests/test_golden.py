"""The golden lines of each config: a training run's metrics are what they were, bit for bit."""

import pathlib
import subprocess
import sys

import pytest

from tests import golden

ROOT = pathlib.Path(__file__).parents[1]
MEANT = """
The metrics of a training run are not what they were. Where that is meant: run
    python -m tests.golden --write
and say in the commit's message which fields change, and why. Else it is a mistake."""


# `make test` runs three of the six, which do what the others do: v05_plus has the baseline of ewa
# and the selection of spo, dapo is grpo that resamples.
SHORT = ("v05", "v05_plus", "dapo")


@pytest.mark.parametrize(
  "name", [pytest.param(x, marks=() if x in SHORT else pytest.mark.long) for x in golden.NAMES]
)
def test_a_run_is_what_it_was(name):
  """In a process with one device, as the lines were written."""
  command = [sys.executable, "-m", "tests.golden", name]
  process = subprocess.run(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  assert process.returncode == 0, process.stdout + MEANT


def test_the_lines_show_what_their_configs_are_about():
  values = lambda name, key: [x for line in golden.stored(name) if (x := line.get(key)) is not None]
  assert any(0 < x < 1 for x in values("v05", "prior/accepted"))
  assert any(x < 16 for x in values("v05", "k/mean")) and len(set(values("v05", "prompts"))) > 1
  assert any(values("dapo", "rollouts_discarded"))


def test_a_difference_is_found():
  found = golden.stored("grpo")
  changed = [dict(line) for line in found]
  changed[2]["reward"] += 1e-6
  del changed[3]["accuracy"]
  step = found[2]["step"]
  assert golden.differences(found, found, 0.0) == []
  assert len(golden.differences(changed, found, 0.0)) == 2
  assert golden.differences(changed, found, 0.0)[0].startswith(f"step {step}, reward: found")
  assert len(golden.differences(changed[:3], found, 2e-2)) == 1  # a line less; rounding is none
