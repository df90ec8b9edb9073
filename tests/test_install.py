"""What is installed: the package with its configs, and the command."""

from pathlib import Path
import subprocess
import sys
import zipfile

import pytest

import v05_jax

ROOT = Path(__file__).parent.parent


def test_importing_the_package_costs_nothing_and_gives_what_others_need():
  program = """
import sys
import v05_jax
assert v05_jax.__version__ and not {"jax", "numpy"} & set(sys.modules)
assert set(v05_jax.PUBLIC) <= set(dir(v05_jax))
assert v05_jax.load_config("v05").budget.rule == "sequential"
assert v05_jax.fuse(0.0, 4, 1.0).weight == 0.75 and v05_jax.budget.extra
try:
  v05_jax.nothing
except AttributeError as error:
  assert "nothing" in str(error)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", v05_jax.PUBLIC)
def test_every_public_name_is_there(name):
  assert getattr(v05_jax, name) is not None


def test_the_configs_are_those_of_the_root():
  from v05_jax import configs

  assert list(configs.__path__) == [str(ROOT / "configs")]


@pytest.mark.long
def test_a_wheel_holds_the_configs_beneath_the_package_and_the_command(tmp_path):
  command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
  subprocess.run([*command, "-w", tmp_path, "."], cwd=ROOT, check=True, timeout=500)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    names = set(file.namelist())
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "v05 = v05_jax.main:console" in file.read(entry).decode()
    written = file.read("v05_jax/configs/__init__.py").decode()
  assert written == (ROOT / "configs" / "__init__.py").read_text()  # not the checkout's
  assert {f"v05_jax/configs/{x.name}" for x in (ROOT / "configs").glob("*.py")} <= names
  tops = {name.split("/")[0] for name in names}
  assert tops == {"v05_jax", f"v05_jax-{v05_jax.__version__}.dist-info"}
