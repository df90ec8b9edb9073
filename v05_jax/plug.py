"""How a name in the config finds what it stands for: a function of the package, or a user's own.

Estimators, budgets, priors, wrappers of priors, observers, sinks of metrics and model families are
plugs. Each is a function in a file of its kind's folder, marked by `declare` with the options that
it has and their defaults; these stand in the config as FOLDER.NAME.OPTION. A name with a colon,
`module:function`, is a function in the user's own file, with or without `declare`.
`docs/extending.md` has one of each.
"""

from collections.abc import Callable, Iterator
import functools
import importlib
import pkgutil
import sys
import types
from typing import Any, NamedTuple

import jax
import numpy as np

from v05_jax.names import describe, own


class PlugError(ValueError):
  """A mistake in a user's function, which the message names."""


class Option(NamedTuple):
  """A key of the config that a plug declares."""

  default: Any
  meaning: str  # and its unit
  holds: Callable[[Any], bool] = lambda x: True
  expected: str = "anything"


class Declared(NamedTuple):
  """What `declare` knows of a plug."""

  kind: str
  options: dict[str, Option]
  check: Callable  # config -> [(key, expected)] for what does not go together with other keys


class Kind(NamedTuple):
  """A sort of plug."""

  folder: str  # of the package with its files, and section of the config with its options
  key: str  # of the config that names one, or several


OPTIONS = (bool, int, float, str, tuple)  # what an option of the config may be
KINDS = {
  "estimator": Kind("estimators", "baseline"),
  "budget": Kind("budgets", "budget.rule"),
  "prior": Kind("priors", "prior.kind"),
  "wrapper": Kind("priors", "prior.wrappers"),
  "observer": Kind("observers", "observe"),
  "sink": Kind("sinks", "metrics.sinks"),
}


def declare(kind: str, check: Callable = lambda config: (), **options: Option):
  """Marks a function as a plug of a kind of `KINDS`, with its `options` by name.

  `check(config)` yields (key, expected) for each value that cannot go together with this plug.
  Raises ValueError for another kind, and for options that no config could hold.
  """
  if kind not in KINDS:
    raise ValueError(f"declare: found the kind {kind!r}, expected one of {', '.join(KINDS)}")
  for name, option in options.items():
    if not isinstance(option, Option) or not isinstance(option.default, OPTIONS):
      raise ValueError(
        f"declare: {name}: found {option!r}, expected an Option whose default is a bool, a number, "
        "a text or a tuple"
      )

  def mark(function):
    function.plug = Declared(kind, options, check)
    return function

  return mark


@functools.cache
def known(kind: str) -> dict[str, Callable]:
  """Name -> function, of the plugs of a kind that the package has, sorted by name."""
  folder = importlib.import_module(f"v05_jax.{KINDS[kind].folder}")
  found = {}
  for part in pkgutil.iter_modules(folder.__path__):
    module = importlib.import_module(f"{folder.__name__}.{part.name}")
    for name, value in vars(module).items():
      mark = getattr(value, "plug", None)
      if isinstance(mark, Declared) and mark.kind == kind:
        found[name] = value
  return dict(sorted(found.items()))


def find(kind: str, name: str) -> Callable:
  """The function behind a name. Raises ValueError with the known names, or with what is wrong with
  `module:function`."""
  functions = known(kind)
  if name in list(functions):
    return functions[name]
  found, folder = own(KINDS[kind].key, name, functions), KINDS[kind].folder
  if any(label(name) in known(x) for x in KINDS if KINDS[x].folder == folder):
    raise ValueError(
      f"{KINDS[kind].key}: found {name!r}, expected a function of another name: {label(name)} is "
      "one of the package, whose options it would have"
    )
  return found


def label(name: str) -> str:
  """What a plug is called in the config, in checkpoints and in messages: its name, or of
  `module:function` the function."""
  return name.rpartition(":")[2].rpartition(".")[2]


def speaks(config) -> bool:
  """Whether a prior or a wrapper says a V in runs of this config; one of the user's own may."""
  says = lambda wrapper: wrapper == "history" or ":" in wrapper
  return config.prior.kind != "none" or any(map(says, config.prior.wrappers))


def declared(kind: str, name: str) -> Declared:
  """What a plug has declared; of a user's function without `declare`, nothing."""
  return getattr(find(kind, name), "plug", None) or Declared(kind, {}, lambda config: ())


def names_of(config, kind: str) -> tuple[str, ...]:
  """The names that a config has for a kind: one, or several."""
  section, _, last = KINDS[kind].key.rpartition(".")
  value = (config[section] if section else config)[last]
  return (value,) if isinstance(value, str) else tuple(value)


def chosen(config) -> Iterator[tuple[str, str]]:
  """(kind, name) of every plug that a config names."""
  return ((kind, name) for kind in KINDS for name in names_of(config, kind))


def options(names=()) -> dict[str, Option]:
  """ "folder.name.option" -> Option, of all plugs of the package, and of the (kind, name) in
  `names`."""
  found = [(kind, name) for kind in KINDS for name in known(kind)]
  found += [(kind, name) for kind, name in names if isinstance(name, str) and ":" in name]
  return {
    f"{KINDS[kind].folder}.{label(name)}.{option}": value
    for kind, name in found
    for option, value in declared(kind, name).options.items()
  }


def defaults(kind: str, name: str, **changes) -> types.SimpleNamespace:
  """A plug's own options without a config: their defaults, but for `changes`."""
  found = {option: value.default for option, value in declared(kind, name).options.items()}
  return types.SimpleNamespace(**(found | changes))


def fill(config, found: dict[str, Option]):
  """Sets options that the config lacks to their defaults."""
  for key, option in found.items():
    *sections, last = key.split(".")
    node = config
    for name in sections:
      if name not in node:
        node[name] = type(config)()
      node = node[name]
    if last not in node:
      node[last] = option.default


def problems(config) -> list[str]:
  """What is wrong with the names of plugs in a config."""
  found = []
  for kind, name in chosen(config):
    try:
      find(kind, name)
    except ValueError as error:
      found.append(str(error))
  return found


def unused(config, keys) -> list[str]:
  """What is wrong with those of the config's `keys` that are options of plugs that it does not
  name."""
  folders, used = {kind.folder for kind in KINDS.values()}, owners(config)
  found = []
  for key in keys:
    folder, _, rest = key.partition(".")
    if folder in folders and not any(key.startswith(prefix) for prefix in used):
      name = rest.partition(".")[0]
      kinds = [kind for kind in KINDS if KINDS[kind].folder == folder]
      shown = lambda kind: ", ".join(map(str, names_of(config, kind))) or "empty"
      named = " and ".join(f"{KINDS[kind].key} is {shown(kind)}" for kind in kinds)
      found.append(f"{key}: an option of {folder}/{name}, which is not in use: {named}")
  return found


def owners(config) -> dict[str, tuple[str, str]]:
  """ "folder.name." -> (kind, name) of the plugs that a config names."""
  names = ((kind, name) for kind, name in chosen(config) if isinstance(name, str))
  return {f"{KINDS[kind].folder}.{label(name)}.": (kind, name) for kind, name in names}


def table() -> str:
  """All options of the package's plugs as a Markdown table."""
  rows = [f"| `{key}` | {x.default!r} | {x.meaning} |" for key, x in options().items()]
  return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows])


def beside(kind: str, name: str, what: str) -> Callable | None:
  """A function that stands beside a plug in its file, None without."""
  return getattr(sys.modules[find(kind, name).__module__], what, None)


class Setting(NamedTuple):
  """What a run has when its plugs are made."""

  config: Any
  rows: int = 0  # of the dataset
  # the first `models.Policy`, its parameters on host; None in a check of the config
  policy: Any = None
  mesh: Any = None
  prompts: Any = None  # data.Dataset
  exact: Callable | None = None  # (params, rows) -> success probability, NaN where it is not exact
  workdir: Any = None  # None: nothing is to be written
  done: int = 0  # steps of the restored state
  shared: dict | None = None  # what observers of the run make once for all of them, by name


def make(kind: str, name: str, setting: Setting, result: type):
  """Calls a plug's function with its own options and the setting.

  Raises ValueError, with the plug's name, where it raises or returns no `result`.
  """
  function, section = find(kind, name), setting.config
  for part in (KINDS[kind].folder, label(name)):
    section = section[part] if part in section else None
    if section is None:
      break
  found = call(f"{KINDS[kind].key}={name}", function, section, setting)
  if not isinstance(found, result):
    raise ValueError(
      f"{KINDS[kind].key}={name}: returned a {type(found).__name__}, expected a {result.__name__}"
    )
  return found


def call(what: str, function: Callable, *arguments):
  """The function's result; an exception of a user's function becomes a `PlugError`."""
  if ":" not in what:
    return function(*arguments)
  try:
    return function(*arguments)
  except Exception as error:
    raise PlugError(f"{what}: {describe(error)}") from error


def begun(what: str, state):
  """A plug's first state, its numbers as arrays. Raises PlugError for anything else in it."""

  def array(x):
    found = x if isinstance(x, jax.Array) else np.asarray(x)
    key = jax.dtypes.issubdtype(found.dtype, jax.dtypes.prng_key)
    if key or found.dtype.kind in "OSU":  # objects and texts
      raise PlugError(
        f"{what}: init: found a {type(x).__name__} in the state, expected arrays of numbers, in "
        f"dicts, tuples and lists{': jax.random.key_data of a key' if key else ''}"
      )
    return found

  return jax.tree.map(array, state)


def first_state(what: str, init: Callable):
  """`begun` of the state that a plug's `init` makes."""
  return begun(what, call(what, init))


def kept(what: str, before, after):
  """A plug's next state, its numbers as arrays. Raises PlugError where it has not the names, the
  shapes and the dtypes of the one before: no checkpoint of it could be restored."""
  after = begun(what, after)
  found, expected = form(after), form(before)
  if found != expected:
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    said = lambda those: ", ".join(f"{name} {those.get(name, 'nothing')}".strip() for name in names)
    raise PlugError(f"{what}: found the state {said(found)}, expected {said(expected)} as before")
  return after


def form(state) -> dict[str, str]:
  """Name -> dtype[shape] of the arrays of a state."""
  shape = lambda x: f"{x.dtype}[{','.join(map(str, x.shape))}]"
  named = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path, simple=True, separator="."): shape(x) for path, x in named}


def measured(what: str, metrics) -> dict:
  """The metrics that a plug's function has returned. Raises PlugError where they are none."""
  if not isinstance(metrics, dict):
    found = type(metrics).__name__
    raise PlugError(f"{what}: returned a {found} as its metrics, expected {{name: (sum, count)}}")
  for name, found in metrics.items():
    if not isinstance(found, tuple | list) or len(found) != 2:
      raise PlugError(f"{what}: {name}: found {found!r}, expected (sum, count)")
  return metrics


def pair(what: str, found, expected: str) -> tuple:
  """What a function of a plug has returned, where that is a pair. Raises PlugError for anything
  else."""
  if not isinstance(found, tuple) or len(found) != 2:
    raise PlugError(f"{what}: returned a {type(found).__name__}, expected {expected}")
  return found


if __name__ == "__main__":
  from v05_jax import plug  # the module that the plugs know, which this one is not

  print(plug.table())
