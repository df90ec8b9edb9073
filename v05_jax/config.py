"""A run's config: read from a file, checked, saved and read back.

configs/default.py declares every key once; this module knows what each key may be (`RULES`).
Nothing here touches a device, so a typing error costs seconds. `command_line` overrides keys by
flags.
"""

import contextlib
import json
import os
import re
import sys
import traceback
import types
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from v05_jax import configs, plug
from v05_jax.configs import default
from v05_jax.names import alike, meant, nearest, suggestion
from v05_jax.rules import RULES, Rule, relations, show

# Keys of sizes that fit a machine: they change results by rounding alone.
FITS = (
  "policy.remat",
  "sampler.slots",
  "sampler.open_prompts",
  "sampler.prefill",
  "loss.micro_rows",
  "loss.vocab_chunk",
)
# Keys that may change when a run continues, beside these; every other one is part of what it is.
RESUMABLE = (
  "num_steps",
  "num_rollouts",
  "observe",
  "data.folder",
  "eval.period",
  "checkpoint.period",
  "checkpoint.keep",
  "metrics.sinks",
  "metrics.project",
  "metrics.name",
  "rewards.workers",
  "rewards.timeout",
  "cpu_devices",
  "mesh.data",
  "mesh.fsdp",
  "mesh.tensor",
)
# Keys that 0, or an empty text, leaves to the machine: see scale/fit.py.
OPEN = (
  "policy.dtype",
  "policy.remat",
  "sampler.slots",
  "sampler.open_prompts",
  "sampler.prefill",
  "loss.micro_rows",
)


# --- Dictionaries and JSON


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Every leaf by its dotted key: `{"baseline": "v05", "budget.block": 1, ...}`."""
  flat = {}

  def visit(node, prefix):
    for name, value in node.items():
      if isinstance(value, dict):
        visit(value, f"{prefix}{name}.")
      else:
        flat[prefix + name] = _tuples(value) if prefix + name == "reward" else value

  visit(to_dict(config), "")
  return flat


def to_dict(config: ConfigDict) -> dict[str, Any]:
  """The config as plain nested dictionaries, references resolved."""
  return config.copy_and_resolve_references().to_dict()


def to_json(config: ConfigDict) -> str:
  """The text of a run's config.json; `from_json` reads it back as an equal config."""
  return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str | bytes, name: str = "config.json") -> ConfigDict:
  """The config saved by `to_json`, lists as tuples again. Raises ValueError that names the file."""
  try:
    tree = json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(f"{name}, line {e.lineno}: found no JSON ({e.msg}), expected one") from None
  except (ValueError, RecursionError) as e:  # not UTF-8, or nested too deeply
    raise ValueError(f"{name}: found no JSON ({e}), expected one") from None
  if not isinstance(tree, dict):
    raise ValueError(f"{name}: found {show(tree)}, expected an object of config keys")
  try:
    return ConfigDict(_tuples(tree))
  except (ValueError, TypeError, AttributeError, KeyError) as e:  # keys that no config can have
    raise ValueError(f"{name}: found no config: {one_line(e)}") from None


def completed(saved: ConfigDict) -> ConfigDict:
  """What an earlier version saved, with the keys that have come since at their defaults. What lacks
  a key that every run has is no run's, and stays as it is."""
  tree = to_dict(saved)
  if not {"seed", "baseline", "policy", "data", "sampler"} <= set(tree):
    return saved
  for key, value in flatten(default.get_config()).items():
    *sections, name = key.split(".")
    node = tree
    for section in sections:
      node = node.setdefault(section, {}) if isinstance(node, dict) else None
    if isinstance(node, dict):
      node.setdefault(name, value)
  return ConfigDict(tree)


def _tuples(node):
  """A value of JSON with tuples for its lists."""
  if isinstance(node, dict):
    return {name: _tuples(value) for name, value in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, (list, tuple)) else node


# --- Checks


def validate(config: ConfigDict) -> None:
  """Raises one ValueError that lists every problem: the key, what was found, what was expected."""
  problems = structure(config)
  if not problems:  # the rules below need every key, at its type
    flat, rules = flatten(config), every_rule(config)
    wrong = [key for key, value in flat.items() if not rules[key].holds(value)]
    problems = [f"{key}: found {show(flat[key])}, expected {rules[key].expected}" for key in wrong]
    unknown = plug.problems(config)
    problems += unknown or relations(config, flat, wrong)
  if problems:
    head = f"the config has {len(problems)} problem" + ("s" if len(problems) > 1 else "")
    raise ValueError("\n  ".join([head, *problems]))


def every_rule(config) -> dict[str, Rule]:
  """Key -> its rule, the options of plugs and those of the user's own among them."""
  options = plug.options(tuple(plug.chosen(config)))
  return RULES | {key: Rule(x.holds, x.expected) for key, x in options.items()}


def add_options(config: ConfigDict) -> ConfigDict:
  """The config with the options of the user's own plugs that it names, where it lacks them."""
  with contextlib.suppress(KeyError, AttributeError, TypeError):  # what is missing is said later
    plug.fill(config, plug.options(tuple(plug.chosen(config))))
  return config


def structure(config) -> list[str]:
  """Missing keys, unknown keys and wrong types, against configs/default.py."""
  given = flatten(config)
  known = flatten(default.get_config())
  try:
    known |= {key: x.default for key, x in plug.options(tuple(plug.chosen(config))).items()}
  except (KeyError, AttributeError, TypeError, ValueError):
    # a key that names plugs is missing, or no text, or names none: that is a problem of its own
    pass
  sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
  problems = []
  for key, value in given.items():
    if key in sections:
      problems.append(f"{key}: found {show(value)}, expected a section of keys")
    elif key not in known:
      problems.append(f"{key}: found an unknown key{meant(key, known)}")
    elif key != "reward" and not _same_type(value, known[key]):  # a text or a list: see its rule
      problems.append(f"{key}: found {show(value)}, expected {_type(known[key])}")
  whole = {key for key in sections if key in given}
  for key in known:
    if key not in given and not any(key.startswith(section + ".") for section in whole):
      problems.append(f"{key}: missing, expected {_type(known[key])} as in configs/default.py")
  return problems


def _same_type(value, like) -> bool:
  if isinstance(like, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(like, bool)
  if isinstance(like, float):
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # NaN is not
  return isinstance(value, type(like))


def _as_tuple(value) -> tuple:
  return value if isinstance(value, tuple) else ()


def _type(like) -> str:
  names = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
  return names.get(type(like), f"a {type(like).__name__}")


def check_resume(saved: ConfigDict, config: ConfigDict, where: str) -> None:
  """Raises ValueError where `config` differs from the one that the run in `where` was started with.

  `RESUMABLE` keys and `FITS` may differ: the periods of a run, its devices and what fits them, its
  observers, with the options of those that come or go, its length under a constant learning rate.
  """
  old, new = flatten(completed(saved)), flatten(config)
  names = lambda flat: [x for x in _as_tuple(flat.get("observe")) if isinstance(x, str)]
  watched = [set(map(plug.label, names(flat))) for flat in (old, new)]
  stay = tuple(f"observers.{name}." for name in set.intersection(*watched))
  comes = lambda key: key.startswith(("observers.", "sinks.")) and not key.startswith(stay)
  said = lambda flat, key: show(flat[key]) if key in flat else "nothing"
  problems = [
    f"{key}: found {said(new, key)}, expected {said(old, key)}"
    for key in dict.fromkeys((*old, *new))
    if key not in (*RESUMABLE, *FITS) and not comes(key) and old.get(key) != new.get(key)
  ]
  longer, schedule = new.get("num_steps") != old.get("num_steps"), new.get("optimizer.schedule")
  if longer and schedule != "constant":
    why = f"the optimizer.schedule {schedule} of the run ends there"
    problems.append(
      f"num_steps: found {new.get('num_steps')}, expected {old.get('num_steps')}: {why}"
    )
  if problems:
    head = f"{where} holds a run of another config; take another workdir, or keep"
    raise ValueError("\n  ".join([head, *problems]))


def left_open(config: ConfigDict) -> list[str]:
  """Those of `OPEN` that have no value yet."""
  flat = flatten(config)
  return [key for key in OPEN if flat[key] in (0, "")]


# --- Files


def shipped() -> dict[str, str]:
  """Name -> file of every config that the package has."""
  (folder,) = configs.__path__
  return {x.stem: str(x) for x in sorted(epath.Path(folder).glob("[a-z]*.py"))}


def load(name: str) -> ConfigDict:
  """The config of that name of the package ("v05"), or of a file: `get_config()` of a Python file,
  or a saved config.json.

  Raises ValueError of one line: file, line, what is wrong; of a name the known ones, the nearest.
  """
  path = shipped().get(name, name)
  if not path.strip():
    raise ValueError(f"--config={name}: found no name, expected {', '.join(shipped())}, or a file")
  try:
    file = epath.Path(path).expanduser()
    there, is_folder = file.exists(), file.is_dir()
  except (KeyError, OSError, ImportError) as e:  # of an address: no store, or none to be had
    found = f"found {e.args[0]}" if isinstance(e, KeyError) else str(e)
    raise ValueError(f"{path}: {found}, expected a config file, .py or .json") from None
  if not there:
    raise ValueError(_no_config(file, path))
  if file.suffix not in (".py", ".json") or is_folder:
    found = f": found a folder{_by_name(file)}," if is_folder else ":"
    raise ValueError(f"{path}{found} expected a config file, .py or .json")
  try:
    text = file.read_text()
  except (OSError, UnicodeDecodeError) as e:
    raise ValueError(f"{path}: the config file is not readable ({e})") from None
  return completed(from_json(text, path)) if file.suffix == ".json" else _execute(text, path)


def _no_config(file, path: str) -> str:
  """The error for a config that does not exist, with the nearest name and the known ones."""
  known = shipped()
  if file.name == path and not file.suffix:  # a name, not a file
    here = {x.stem: str(x) for x in sorted(file.parent.glob("*.py")) if x.is_file()}
    near = meant(path.lower(), known) or suggestion(here[x] for x in nearest(path, here))
    return f"{path}: found no config of that name{near or ','} known: {', '.join(known)}; or a file"
  near = alike(path, "*.py")
  return f"{path}: found no such config file{_by_name(file) or near}"


def _by_name(file) -> str:
  """A hint at the package's config of the same name as a file; "" where there is none."""
  return f"; the package has one: --config={file.stem}" if file.stem in shipped() else ""


def _execute(text: str, path: str) -> ConfigDict:
  module = types.ModuleType("config_file")
  module.__file__ = path
  folder = os.path.dirname(os.path.abspath(path))
  if path not in shipped().values() and folder not in sys.path:
    sys.path.append(folder)  # what a user's file imports often lies beside it
  try:
    exec(compile(text, path, "exec"), module.__dict__)
    config = module.get_config() if hasattr(module, "get_config") else None
  except SyntaxError as e:
    line = f", line {e.lineno}" if e.lineno else ""
    raise ValueError(f"{e.filename or path}{line}: {e.msg}") from None
  except (Exception, SystemExit) as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path][-1:]
    where = "".join(f", line {number}" for number in lines)
    missing = isinstance(e, (AttributeError, KeyError))
    hint = "".join(_own_option(text.splitlines()[number - 1]) for number in lines if missing)
    raise ValueError(f"{path}{where}: {one_line(e)}{hint}") from e
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path}: found no function get_config()")
  if not isinstance(config, ConfigDict):
    raise ValueError(f"{path}: get_config() returned {show(config)}, expected a ConfigDict")
  return config


def _own_option(line: str) -> str:
  """What to say of a line that sets one option of a plug that the defaults do not have."""
  folders = "|".join({kind.folder for kind in plug.KINDS.values()})
  found = re.search(rf"\.({folders})\.(\w+)\.(\w+)", line)
  if not found or found[2] in default.get_config()[found[1]]:
    return ""
  return (
    f": {found[2]} is no plug of the package, and options of your own are set together, as "
    f'c.{found[1]}.{found[2]} = {{"{found[3]}": ...}}'
  )


def one_line(error: BaseException) -> str:
  """An exception in one line: its type where the text alone does not say enough, and its text, cut
  in the middle where it is long."""
  kind = "" if isinstance(error, (ValueError, flags.Error)) else f"{type(error).__name__}: "
  said = error  # the text of a KeyError, alone or inside of another error, is quoted
  while isinstance(said, (KeyError, AttributeError)) and len(said.args) == 1:
    (said,) = said.args
  text = " ".join(str(said).split())
  return kind + (text if len(text) <= 600 else f"{text[:250]} ... {text[-350:]}")
