"""Which runs `--mode=report` compares: names, patterns and folders of runs become workdirs."""

import glob
import os
import re

from etils import epath

from v05_jax.run import files, metrics

DEEPEST = 3  # folders between a named one and a run


def find(names: list[str]) -> dict[str, bool]:
  """Workdir -> whether it was named itself, of names, patterns (runs/v05-*) and folders of runs.

  A folder that is no run stands for the runs below it; a folder with neither stands for itself.
  What a pattern or folder finds again counts once. Raises ValueError for a run that is named twice,
  as it would count as two seeds of its method, and for a pattern that fits no run.
  """
  found: dict[str, tuple[str, bool]] = {}  # real place -> (workdir, whether it was named)
  for name in names:
    fitting = _fitting(name)
    for workdir in [name] if fitting is None else fitting:
      place = real(workdir)
      earlier, named = found.get(place, (workdir, False))
      if named and fitting is None:
        raise ValueError(f"--workdir: found {earlier} and {workdir}, expected each run once")
      found[place] = (earlier, named or fitting is None)
  return dict(found.values())


def real(workdir: str) -> str:
  """The one name of a folder that may have several."""
  path = files.folder(workdir)
  return os.fspath(path) if files.is_remote(path) else os.path.realpath(path)


def _fitting(name: str) -> list[str] | None:
  """The runs for which a pattern or a folder stands; None where the name is that of a workdir."""
  path = files.folder(name)
  if not glob.has_magic(name) or path.exists():
    return None if _is_run(path) else _below(path, DEEPEST) or None
  places = sorted(_matching(files.place(name)), key=_natural)
  found = [run for place in places for run in _below(place, DEEPEST)]
  if not found:
    raise ValueError(
      f"--workdir={name}: fits no run; expected the pattern of folders that hold one"
    )
  return found


def _matching(pattern: epath.Path) -> list[epath.Path]:
  text = os.fspath(pattern)
  if not files.is_remote(pattern):
    return [epath.Path(found) for found in glob.glob(text, recursive=True)]
  if "**" in text:
    raise ValueError(f"--workdir={text}: found **, which an object store does not know")
  parts = text.split("/")
  first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
  return list(epath.Path("/".join(parts[:first])).glob("/".join(parts[first:])))


def _is_run(path: epath.Path) -> bool:
  return (path / metrics.FILE).exists()


def _below(path: epath.Path, deepest: int) -> list[str]:
  """`path` if it is a run's, else the runs in the folders below it, in the order of their names."""
  if _is_run(path):
    return [os.fspath(path)]
  if not deepest or path.name.startswith(".") or not path.is_dir():
    return []
  places = sorted(path.iterdir(), key=_natural)
  return [run for place in places for run in _below(place, deepest - 1)]


def _natural(path: epath.Path) -> list[tuple[int, str]]:
  """The key of an order in which s2 comes before s10."""
  words = re.split(r"(\d+)", os.fspath(path))
  return [(int(word), "") if word.isdecimal() else (0, word) for word in words]
