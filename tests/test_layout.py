"""The architecture, held by reading the source: who imports whom, what is pure, what is short."""

import ast
import inspect
from pathlib import Path
import re
import subprocess
import sys

from ml_collections import ConfigDict
import pytest

from v05_jax import config as configuration
from v05_jax import plug
from v05_jax.configs import default

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "v05_jax"

# A module imports from its own row and the rows above it, and the whole graph has no cycle. A
# folder of `UNITS` counts as one module; of any other folder each file does. A new module must be
# added here. Two things find modules by a text, as this does not see: `plug`, which stands above
# the folders of the plugs, and what `shrinkage` and `budget` lend to other trainers.
UNITS = "models tasks rewards estimators budgets priors observers sinks".split()
LAYERS = (
  "backend benchmarks configs groups logs moments names rng rows run sampling scale shrinkage"
  " update run.digest run.files run.looks run.success run.view sampling.categorical"
  " sampling.selection"
  " scale.distributed scale.fit scale.hlo scale.peers scale.programs scale.roll_call scale.sharding"
  " scale.sources"
  " scale.topology update.blocks update.losses update.optimizer update.surrogates"
  " value_model.adapter value_model.ensemble value_model.losses value_model.scores"
  " value_model.synthetic value_model.torch_file",
  "budget history models row_files structs run.board run.leaves run.lock run.metrics run.progress"
  " sampling.ahead scale.cost value_model.cells value_model.directory value_model.pairs",
  "tasks run.find sampling.resample sampling.sampler update.objective"
  " update.packing update.replay value_model.batches value_model.convert value_model.measure"
  " value_model.tabpfn",
  "data problems rewards sampling.schedule sampling.verdicts sampling.warmup"
  " update.policy_gradient update.score_norms value_model.v0",
  "plug value_model value_model.initial value_model.objective",
  "estimators sinks",
  "budgets",
  "rules shapes sampling.ledger integrations.rows",
  "config priors sampling.rollouts scale.plan integrations.trl integrations.verl",
  "command_line observers run.checkpoint run.runs run.workdirs run.writer scale.settle",
  "scale.compile setup run.comparison run.sft run.supervised sampling.draw value_model.train",
  "step run.charts run.conclusion run.export run.facts run.figures run.samples",
  "run.evaluate run.page run.show",
  "run.eval_mode run.noise",
  "run.report",
  "train",
  "main",
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}

# Beyond the order of the rows: what a module may import from the package at most.
ONLY = {
  "rng": "",
  "names": "",
  "groups": "",
  "moments": "",
  "structs": "groups",
  "benchmarks": "rows",
  "rows": "names",
  "shrinkage": "",
  "budget": "shrinkage",
  "history": "groups shrinkage",
  "estimators": "groups history moments plug shrinkage",
  "budgets": "budget estimators groups plug shrinkage",
  "update.losses": "",
  "update.surrogates": "update.losses",
  "models": "names rng",
  "rewards": "names tasks",
  "plug": "names",
  "rules": "benchmarks budgets models names plug problems rewards tasks update.losses"
  " update.surrogates",
  "config": "configs names plug rules run.files",
  "shapes": "budgets update.packing",
  "run.success": "",
  "sampling.selection": "",
  "sampling.resample": "groups structs",
  "sampling.ledger": "budgets groups sampling.schedule structs",
}
FLAX = ("models/", "run/sft.py", "value_model/train.py", "structs.py")
# No file, clock or terminal.
PURE = (
  "rng groups moments structs shrinkage budget history shapes rules estimators/* budgets/*"
  " scale/fit update/* sampling/sampler sampling/selection sampling/resample sampling/schedule"
  " sampling/ledger priors/base priors/constant priors/context priors/history priors/logistic"
  " priors/neighbours priors/none priors/probe priors/second_moment priors/recalibrate"
  " observers/base observers/diagnostics observers/exact observers/noise observers/scoreboard"
  " models/decoder run/success value_model/adapter value_model/ensemble"
  " value_model/losses value_model/scores value_model/cells value_model/synthetic"
  " value_model/tabpfn"
).split()
IMPURE_MODULES = (
  "absl datetime etils io logging multiprocessing os pathlib random shutil socket subprocess sys"
  " tempfile threading time"
).split()
IMPURE_CALLS = (
  "open print input exec eval jax.debug.print jax.debug.callback np.load np.save"
).split()
MAX_FILE, MAX_FUNCTION = 350, 60  # lines; a function's docstring does not count
MAX_PARAMETERS = 6  # of a function, self left out
MANY = 4  # functions with more than MAX_PARAMETERS

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(), str(path)) for path in FILES}


def name_of(path: Path) -> str:
  return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
  """`update.losses`, or `models` for a file of a unit."""
  return unit(path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))


def unit(name: str) -> str:
  name = name.removesuffix(".__init__")
  return name.split(".")[0] if name.split(".")[0] in UNITS else name


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
  names = {module_of(path) for path in FILES} - {"__init__"}
  edges = {name: set() for name in names}
  for path in FILES:
    for name in imports(path):
      name = unit(name.removeprefix("v05_jax.")) if name.startswith("v05_jax.") else ""
      while name and name not in names:  # something of a module
        name = name.rpartition(".")[0]
      if name and module_of(path) in edges:
        edges[module_of(path)].add(name)
  return {name: used - {name} for name, used in edges.items()}


GRAPH = graph()


def test_every_module_has_its_row():
  rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES}
  empty = {name for name in rooms if not TREES[PACKAGE / name / "__init__.py"].body[1:]} - {"."}
  assert {"update", "run", "sampling", "scale"} <= empty  # nothing but a docstring
  assert set(GRAPH) - empty == set(LEVEL) - empty, "add the new module to LAYERS"


def test_imports_run_one_way():
  row = lambda name: LEVEL.get(name, 0)  # a room without anything but its docstring
  wrong = [(a, b) for a, used in GRAPH.items() for b in used if row(a) < row(b)]
  assert not wrong, "imports from a later row of LAYERS"


def test_no_import_cycle():
  rest = {module: set(used) for module, used in GRAPH.items()}
  while free := [module for module, used in rest.items() if not used & set(rest)]:
    for module in free:
      del rest[module]
  assert not rest


def test_algorithms_know_no_model_and_models_no_mesh():
  wrong = {a: GRAPH[a] - set(ONLY[a].split()) for a in ONLY}
  assert not {a: used for a, used in wrong.items() if used}
  for path in FILES:
    if module_of(path) == "models":
      assert not any(name.startswith("jax.sharding") for name in imports(path)), name_of(path)


def test_nothing_imports_experiments_tests_or_a_shipped_config():
  for path in FILES:
    for name in imports(path):
      assert name.split(".")[0] not in ("experiments", "tests", "notebooks"), name_of(path)
      own = name.startswith(("configs", "v05_jax.configs"))
      assert not own or name in ("v05_jax.configs", "v05_jax.configs.default"), name_of(path)


def test_flax_stays_in_its_places():
  users = {name_of(p) for p in FILES if any(name.split(".")[0] == "flax" for name in imports(p))}
  assert "structs.py" in users
  assert not [user for user in users if not user.startswith(FLAX)]


@pytest.mark.parametrize("module", PURE)
def test_the_pure_core_does_no_io(module):
  paths = sorted(PACKAGE.glob(f"{module}.py"))
  assert paths
  for path in paths:
    assert not {x for x in imports(path) if x.split(".")[0] in IMPURE_MODULES}, name_of(path)
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)}
    assert not calls & set(IMPURE_CALLS), name_of(path)
    random = [x for x in calls if re.match(r"(np|numpy)\.random\.", x)]
    assert set(random) <= {"np.random.RandomState"}, name_of(path)  # that of a constant seed


def test_no_global_state():
  for path in FILES:
    assert not [n.lineno for n in ast.walk(TREES[path]) if isinstance(n, ast.Global)], name_of(path)


def functions():
  """(file's name, function) of all functions of the package."""
  for path in FILES:
    for node in ast.walk(TREES[path]):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield name_of(path), node


def test_files_and_functions_are_short():
  lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
  long = {name: n for name, n in lines.items() if n > MAX_FILE}
  for file, node in functions():
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
      lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    name = f"{file}: {node.name}"
    if lines > MAX_FUNCTION:
      long[name] = lines
  assert not long


def test_few_functions_have_many_parameters():
  found = []
  for file, node in functions():
    given = node.args
    names = [x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [x.arg for x in (given.vararg, given.kwarg) if x]
    if len([name for name in names if name not in ("self", "cls")]) > MAX_PARAMETERS:
      found.append(f"{file}: {node.name}")
  assert len(found) <= MANY, found


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
  declare = ("config.py", "rules.py")
  text = "\n".join(path.read_text() for path in FILES if name_of(path) not in declare)
  keys = configuration.flatten(default.get_config())
  last = {key: key.split(".")[-1] for key in keys}
  assert not [key for key in keys if not re.search(rf'\.{last[key]}\b|"{last[key]}"', text)]


def test_every_section_read_has_the_key():
  keys = set(configuration.flatten(default.get_config()))
  parent = lambda name: name.rpartition(".")[0]
  sections = {parent(key) for key in keys} | {parent(parent(key)) for key in keys}
  wrong = []
  for path in FILES:
    for node in ast.walk(TREES[path]):
      match = isinstance(node, ast.Attribute) and re.fullmatch(
        r"(?:\w+\.)*config\.(\w+(?:\.\w+)+)", ast.unparse(node)
      )
      if not match or match[1].split(".")[0] not in sections:
        continue
      name = match[1]
      of_section = parent(name) in sections and hasattr(ConfigDict, name.rpartition(".")[2])
      if not (name in keys | sections or parent(name) in keys or of_section):
        wrong.append(f"{name_of(path)}, line {node.lineno}: {match[0]}")
  assert not wrong


@pytest.mark.parametrize("kind", plug.KINDS)
def test_a_plug_reads_the_options_that_it_declares_and_no_others(kind):
  for name, function in plug.known(kind).items():
    read = set(re.findall(r"\boptions\.(\w+)", inspect.getsource(function)))
    assert read == set(function.plug.options), name


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

import numpy as np
kept, value = np.ones((2, 4), bool), np.zeros(2)
reward = np.array([[1.0, 1, 1, -1], [-1, -1, -1, -1]])
s, k = np.array([3, 0]), np.array([4, 4])
state = shrinkage.ewa_update(shrinkage.ewa_init(), value, s, k)
for kind, learnt in {"v05": (), "rloo": (), "ewa": state}.items():
  advantage, found = shrinkage.advantage(kind, reward, kept, value, state=learnt)
  assert advantage.shape == (2, 4) and found["baseline"].shape == (2,), kind
assert shrinkage.ewa_baseline(state, value, s, k)[0].shape == (2,)
ended = np.ones(2, bool)
assert budget.extra("sequential", None, [1, 1], [4, 0], [4, 4], ended, block=3).tolist() == [0, 3]
assert budget.extra("neyman", state, value, [2, 0], [4, 4], ended, total=14).sum() == 6
assert "v05_jax.configs.default" not in sys.modules
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
  # The tests open no notebook in a browser; they read no benchmark from the hub and no bucket,
  # and try these sinks where they are installed.
  assert unpinned <= {"jupyterlab", "datasets", "gcsfs", "wandb", "trackio", "mlflow"}
