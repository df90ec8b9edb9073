"""What the processes of a run must have in common before they start: code, config and command."""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import hashlib
import importlib.util
import json
import pathlib
import platform
import re

import jax
import numpy as np

PACKAGE = pathlib.Path(__file__).parent.parent
KINDS = (".py", ".json", ".safetensors")  # files of the package that decide what a run computes
WEIGHTS = (".safetensors", ".gguf")
SETTINGS = ("config.json", "generation_config.json", "v0.json")
PIECES, PIECE = 64, 4096  # pieces of a weights file that are read, and bytes of each
PLUG = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")  # module:function
MOST = 6  # names in a message

# {what: {name: text}}: what a process has. A text of None is not known and not compared.
Told = Mapping[str, Mapping[str, str | None]]


def of(config, command: Mapping[str, object], package: pathlib.Path = PACKAGE) -> Told:
  """What this process has: the flags `command`, the config's keys, and digests of the package's
  files and of the user's own, which the config names as module:function."""
  keys = dict(_leaves(config))
  own = {text for value in keys.values() for text in _texts(value) if PLUG.fullmatch(text)}
  found = sorted(path for path in package.rglob("*") if path.suffix in KINDS)
  code = {f"{package.name}/{path.relative_to(package).as_posix()}": digest(path) for path in found}
  files = {name: file_of(name.partition(":")[0]) for name in sorted(own)}
  code |= {name: file and digest(file) for name, file in files.items()}
  code |= {"Python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
  written = lambda values: {name: json.dumps(value, default=str) for name, value in values.items()}
  return {"the command": written(command), "the config": written(keys), "the code": code}


def digest(path: pathlib.Path) -> str:
  """A digest of a file's bytes."""
  return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def of_folder(folder: pathlib.Path) -> str:
  """A digest of a model's folder: of each file of weights and settings in it its name, its size and
  `PIECES` pieces, spread evenly."""
  found = hashlib.blake2b(digest_size=8)
  for file in sorted(pathlib.Path(folder).iterdir()):
    if file.suffix in WEIGHTS or file.name in SETTINGS:
      size = file.stat().st_size
      found.update(f"{file.name} {size} ".encode())
      with file.open("rb") as stream:
        for piece in range(PIECES):
          stream.seek(piece * max(0, size - PIECE) // (PIECES - 1))
          found.update(stream.read(PIECE))
  return found.hexdigest()


def check(told: Sequence[Told]):
  """Raises ValueError, naming processes and what differs, where the processes, in their order, do
  not have the same."""
  for what in told[0]:
    different, names = [], []
    for index, other in enumerate(told):
      found = _differences(told[0][what], other.get(what, {}))
      different += [str(index)] * bool(found)
      names += [name for name in found if name not in names]
    if names:
      more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
      raise ValueError(
        f"{what}: process {', '.join(different)} of {len(told)} differs from process 0 in "
        f"{', '.join(names[:MOST])}{more}, expected the same in all"
      )


def _differences(first: Mapping, other: Mapping) -> list[str]:
  known = [
    name for name in {**first, **other} if None not in (first.get(name, ""), other.get(name, ""))
  ]
  return [name for name in known if first.get(name) != other.get(name)]


def file_of(module: str) -> pathlib.Path | None:
  """A module's file; None where there is none, which is an error where it is used."""
  with contextlib.suppress(Exception):  # a package that the module is in may fail to import
    file = pathlib.Path(importlib.util.find_spec(module).origin)
    return file if file.is_file() else None
  return None


def _leaves(config, prefix: str = "") -> Iterable[tuple[str, object]]:
  """(dotted key, value) of everything in a config."""
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _texts(value) -> Iterable[str]:
  if isinstance(value, (list, tuple)):
    for part in value:
      yield from _texts(part)
  elif isinstance(value, str):
    yield value
