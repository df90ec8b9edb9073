"""The architecture, held by reading the source: who imports whom, what is pure, what is short."""

import ast
from pathlib import Path
import re
import subprocess
import sys

from ml_collections import ConfigDict
import pytest

from configs import default
from v05_jax import config as configuration

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "v05_jax"

# A module imports from its own row and the rows above it, and the whole graph has no cycle. A
# package (models, tasks, ...) counts as one module. A new module must be added here.
LAYERS = (
  "structs rng config ewa benchmarks distributed peers",
  "shrinkage budget losses data rewards tasks models metrics diagnostics dynamic_sampling "
  "scoreboard selection"
  " success optimizer",
  "sharding packing sampler schedule value_prior checkpoint estimator backend ahead hlo topology "
  "runs figures page",
  "policy_gradient rollouts step evaluate export",
  "train sft report show compile command_line",
  "main",
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}

# Beyond the order of the rows: what a module may import from the package at most.
ONLY = {
  "structs": "",
  "rng": "",
  "config": "benchmarks",
  "benchmarks": "",
  "success": "",
  "ewa": "",
  "shrinkage": "ewa rng structs",
  "budget": "ewa rng shrinkage structs",
  "losses": "rng structs",
  "models": "rng structs",
  "rewards": "structs tasks",
}
FLAX = ("models/", "value_prior/", "structs.py")
# No file, clock or terminal; a module that does not exist yet is skipped.
PURE = (
  "structs rng ewa shrinkage budget losses policy_gradient sampler packing diagnostics "
  "dynamic_sampling scoreboard"
  " selection estimator success"
  " models/decoder value_prior/prior value_prior/context value_prior/history value_prior/drift "
  "value_prior/adapter"
  " value_prior/tabpfn value_prior/losses value_prior/synthetic value_prior/ensemble"
).split()
IMPURE_MODULES = (
  "absl datetime etils io logging multiprocessing os pathlib random shutil socket subprocess sys"
  " tempfile threading time"
).split()
IMPURE_CALLS = (
  "open print input exec eval jax.debug.print jax.debug.callback np.load np.save"
).split()
MAX_FILE, MAX_FUNCTION = 400, 60  # lines; a function's docstring does not count

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(), str(path)) for path in FILES}


def name_of(path: Path) -> str:
  return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
  """Full names of all imports of a file, inside functions too; `from a import b` gives a.b."""
  found = set()
  for node in ast.walk(TREES[path]):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name_of(path)}, line {node.lineno}: a relative import"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def graph() -> dict[str, set[str]]:
  """Module -> the other modules of the package that it imports."""
  edges = {module_of(path): set() for path in FILES if path != PACKAGE / "__init__.py"}
  for path in FILES:
    if module_of(path) in edges:
      used = {name.split(".")[1] for name in imports(path) if name.startswith("v05_jax.")}
      edges[module_of(path)] |= used - {module_of(path)}
  return edges


GRAPH = graph()


def test_every_module_has_its_row():
  assert len(GRAPH) > 5
  assert set(GRAPH) <= set(LEVEL), "add the new module to LAYERS"


def test_imports_run_one_way():
  wrong = [(a, b) for a, used in GRAPH.items() for b in used if LEVEL[a] < LEVEL[b]]
  assert not wrong, "imports from a later row of LAYERS"


def test_no_import_cycle():
  rest = {module: set(used) for module, used in GRAPH.items()}
  while free := [module for module, used in rest.items() if not used & set(rest)]:
    for module in free:
      del rest[module]
  assert not rest


def test_algorithms_know_no_model_and_models_no_mesh():
  wrong = {a: GRAPH[a] - set(ONLY[a].split()) for a in ONLY if a in GRAPH}
  assert not {a: used for a, used in wrong.items() if used}
  for path in FILES:
    if module_of(path) == "models":
      assert not any(name.startswith("jax.sharding") for name in imports(path)), name_of(path)


def test_nothing_imports_experiments_tests_or_a_shipped_config():
  for path in FILES:
    for name in imports(path):
      assert name.split(".")[0] not in ("experiments", "tests", "notebooks"), name_of(path)
      assert not name.startswith("configs.") or name == "configs.default", name_of(path)


def test_flax_stays_in_its_places():
  users = {name_of(p) for p in FILES if any(name.split(".")[0] == "flax" for name in imports(p))}
  assert "structs.py" in users
  assert not [user for user in users if not user.startswith(FLAX)]


@pytest.mark.parametrize("module", PURE)
def test_the_pure_core_does_no_io(module):
  path = PACKAGE / f"{module}.py"
  if not path.exists():
    pytest.skip("not there")
  assert not {name for name in imports(path) if name.split(".")[0] in IMPURE_MODULES}
  calls = {ast.unparse(node.func) for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)}
  assert not calls & set(IMPURE_CALLS)
  assert not [call for call in calls if re.match(r"(np|numpy)\.random\.", call)]


def test_no_global_state():
  for path in FILES:
    assert not [n.lineno for n in ast.walk(TREES[path]) if isinstance(n, ast.Global)], name_of(path)


def test_files_and_functions_are_short():
  long = []
  for path in FILES:
    lines = len(path.read_text().splitlines())
    if lines > MAX_FILE:
      long.append(f"{name_of(path)}: {lines} lines")
    for node in ast.walk(TREES[path]):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
          lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > MAX_FUNCTION:
          long.append(f"{name_of(path)}: {node.name}, {lines} lines")
  assert not long


def test_every_folder_of_the_package_is_a_package():
  folders = {path.parent for path in FILES}
  assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


# --- The config


def test_config_keys_are_read_as_attributes():
  wrong = []
  for path in FILES:
    for node in ast.walk(TREES[path]):
      if not isinstance(node, ast.Call):
        continue
      if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        owner = ast.unparse(node.func.value)
      elif module_of(path) == "models":
        continue  # a model's config is a dataclass
      elif isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
        owner = ast.unparse(node.args[0])
      else:
        continue
      if re.search(r"(^|[._])(config|cfg|c|options)(\.\w+)?$", owner):
        wrong.append(f"{name_of(path)}, line {node.lineno}: {ast.unparse(node)}")
  assert not wrong


def test_every_config_key_is_read():
  text = "\n".join(path.read_text() for path in FILES if path.name != "config.py")
  keys = configuration.flatten(default.get_config())
  last = {key: key.split(".")[-1] for key in keys}
  assert not [key for key in keys if not re.search(rf'\.{last[key]}\b|"{last[key]}"', text)]


def test_every_section_read_has_the_key():
  keys = configuration.flatten(default.get_config())
  sections = {key.split(".")[0] for key in keys if "." in key}
  wrong = []
  for path in FILES:
    for node in ast.walk(TREES[path]):
      match = isinstance(node, ast.Attribute) and re.fullmatch(
        r"(?:\w+\.)*config\.(\w+)\.(\w+)", ast.unparse(node)
      )
      if match and match[1] in sections and f"{match[1]}.{match[2]}" not in keys:
        if not hasattr(ConfigDict, match[2]):
          wrong.append(f"{name_of(path)}, line {node.lineno}: {match[0]}")
  assert not wrong


# --- The set-up


def test_shrinkage_and_budget_need_jax_and_numpy_alone():
  program = """
import sys

class Block:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {"flax", "transformers", "orbax", "optax", "ml_collections", "absl"}:
      raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
from v05_jax import budget, shrinkage
assert shrinkage.fuse(0.0, 4, 1.0).weight == 0.75
assert budget.should_continue(1.0, 4, 1 / 256, 16)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500
  )
  assert done.returncode == 0, done.stderr


def test_every_dependency_is_pinned_once():
  normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
  pins = {}
  for line in (ROOT / "constraints.txt").read_text().splitlines():
    if line and not line.startswith("#"):
      match = re.fullmatch(r'([\w.-]+)==([\w.]+)(; python_version [<>=]+ "3\.12")?', line)
      assert match, line
      pins.setdefault(match[1], []).append(match[3])
  assert all(len(set(markers)) == len(markers) for markers in pins.values())
  assert all(len(markers) == 2 for markers in pins.values() if markers != [None])
  wanted = re.findall(r'"([\w-]+)(?:\[\w+\])?>=[\d.]+"', (ROOT / "setup.py").read_text())
  assert len(wanted) > 12
  unpinned = {normal(name) for name in wanted} - set(pins)
  # The tests open no notebook in a browser; they read no benchmark from the hub and no bucket.
  assert unpinned <= {"jupyterlab", "datasets", "gcsfs"}
