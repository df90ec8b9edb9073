"""Every example of docs/extending.md is a file outside of the package, and a training step runs with it."""

import ast
import importlib
from pathlib import Path
import re
import shlex
import sys

import pytest

from configs import default
from tests import support
from v05_jax import command_line, plug
from v05_jax.run import checkpoint, metrics
from v05_jax.train import train

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
EXAMPLES = {
  match[1]: match[2].splitlines()
  for match in re.finditer(r"```python\n# (\w+)\.py: .*?\n(.*?)```", PAGE.read_text(), re.DOTALL)
}
