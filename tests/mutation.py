"""The package with one mistake in it: what tests execute to show that they can fail.

A mistake is (name, right, wrong): inside of the function, class or module-level assignment `name`,
the expression `right` becomes `wrong`. Expressions are compared as syntax trees: neither formatting
nor comments matter, nor the file that holds the function.
"""

import ast
import contextlib
import importlib
from importlib import machinery
import pathlib
import sys

import v05_jax

PACKAGE = v05_jax.__name__
ROOT = pathlib.Path(v05_jax.__file__).parents[1]


class _Replace(ast.NodeTransformer):
  """Replaces each expression equal to `right`, and counts them in `found`."""

  def __init__(self, right: str, wrong: str):
    self.right = ast.dump(ast.parse(right, mode="eval").body)
    self.wrong = wrong
    self.found = 0

  def visit(self, node):
    if isinstance(node, ast.expr) and ast.dump(node) == self.right:
      self.found += 1
      return ast.copy_location(ast.parse(self.wrong, mode="eval").body, node)
    return self.generic_visit(node)


def _names(statement) -> list[str]:
  """What a statement of a module defines."""
  if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
    return [statement.name]
  targets = statement.targets if isinstance(statement, ast.Assign) else []
  return [target.id for target in targets if isinstance(target, ast.Name)]


def mutate(source: str, name: str, right: str, wrong: str) -> tuple[ast.Module, int]:
  """-> (the syntax tree of `source` with the mistake, how often `right` was found in `name`)."""
  tree, replace = ast.parse(source), _Replace(right, wrong)
  for statement in tree.body:
    if name in _names(statement):
      replace.visit(statement)
  return ast.fix_missing_locations(tree), replace.found


def places(right: str) -> list[str]:
  """Where in the package an expression stands: "file: name", for the message of `mutated`."""
  found = []
  for file in sorted((ROOT / PACKAGE).rglob("*.py")):
    for statement in ast.parse(file.read_text()).body:
      replace = _Replace(right, right)
      replace.visit(statement)
      if replace.found:
        where = ", ".join(_names(statement)) or f"line {statement.lineno}"
        found.append(f"{file.relative_to(ROOT)}: {where}, {replace.found} times")
  return found


class _Finder:
  """Imports the modules of the package from mutated sources; counts in `found`."""

  def __init__(self, mistake):
    self.mistake, self.found = mistake, 0

  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] != PACKAGE:
      return None
    spec = machinery.PathFinder.find_spec(name, path or [str(ROOT)])
    if spec is not None and isinstance(spec.loader, machinery.SourceFileLoader):
      spec.loader = _Loader(name, spec.loader.path, self)
    return spec


class _Loader(machinery.SourceFileLoader):
  """Compiles the source anew: a file of bytecode would be the module without the mistake."""

  def __init__(self, name, path, finder):
    super().__init__(name, path)
    self.finder = finder

  def get_code(self, name):
    tree, found = mutate(self.get_source(name), *self.finder.mistake)
    self.finder.found += found
    return compile(tree, f"mutated {self.path}", "exec")


@contextlib.contextmanager
def mutated(modules, name: str, right: str, wrong: str):
  """Yields fresh copies of `modules` (names without the package's), and of all that they import.

  The mistake is in them; inside of the context they are what an import finds, and so are fresh
  copies of `configs`, which know the package's plugs. Raises LookupError unless exactly one
  expression was replaced in what was imported.
  """
  ours = lambda: {x: m for x, m in sys.modules.items() if x.split(".")[0] in (PACKAGE, "configs")}
  before, finder = ours(), _Finder((name, right, wrong))
  for module in before:
    del sys.modules[module]
  sys.meta_path.insert(0, finder)
  try:
    fresh = [importlib.import_module(f"{PACKAGE}.{module}") for module in modules]
    if finder.found != 1:
      raise LookupError(
        f"found {finder.found} times {right!r} in {name!r} of what {', '.join(modules)} import, "
        f"expected once; it stands in: {'; '.join(places(right)) or 'no file'}"
      )
    yield fresh
  finally:
    sys.meta_path.remove(finder)
    for module in ours():
      del sys.modules[module]
    sys.modules.update(before)
