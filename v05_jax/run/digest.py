"""A checksum of every file of a checkpoint, written with it and compared before it is read.

A disk, a cable or a copy that changes a bit changes a number that some file holds, and nothing
else would notice. CRC-32 finds every change of up to 32 neighbouring bits, and any other but for
one in four thousand million; it is no protection against intent. How fast it is here:

    python -m v05_jax.run.digest [FOLDER]
"""

from collections.abc import Callable
import concurrent.futures
import os
import sys
import tempfile
import time
import zlib

from etils import epath

FILE = "checksums.txt"  # in the folder whose files it lists: a line a file, and one of these lines
BLOCK = 1 << 22  # bytes read at once
THREADS = 4  # files at once; zlib computes without holding the interpreter


def write(folder: epath.Path):
  """Writes the checksums of all files in a folder beside them, replacing earlier ones."""
  names = [name for name in _names(folder) if name != FILE]
  found = _checksums(folder, names)
  for error in (x for x in found if isinstance(x, OSError)):
    raise error
  lines = [f"{crc:08x} {name}\n" for name, crc in zip(names, found)]
  text = "".join(lines)
  (folder / FILE).write_text(f"{text}{zlib.crc32(text.encode()):08x} .\n")


def damaged(folder: epath.Path, mine: Callable[[int], bool] = lambda number: True) -> str | None:
  """What is wrong with the first file that differs from its checksum or is gone; "" if none does.
  None where there are no checksums: the checkpoint is of a version that wrote none.

  mine: of several processes, the numbers of the files that this one looks at.
  """
  try:
    text = (folder / FILE).read_bytes()
  except FileNotFoundError:
    return None
  except OSError as error:  # a disk that fails, a folder in its place
    return f"{FILE} cannot be read: {error.strerror or error}"
  *lines, last = text.splitlines(keepends=True) or [b""]
  if last != b"%08x .\n" % zlib.crc32(b"".join(lines)):
    return f"{FILE} has changed since it was written"
  wanted = dict(reversed(line.decode().rstrip("\n").split(" ", 1)) for line in lines)
  names = [name for number, name in enumerate(wanted) if mine(number)]
  for name, found in zip(names, _checksums(folder, names)):
    if isinstance(found, OSError):
      return f"the file {name} cannot be read: {found.strerror or found}"
    if found != int(wanted[name], 16):
      what = "is gone" if found is None else "has changed since it was written"
      seen = "nothing" if found is None else f"CRC-32 {found:08x}"
      return f"the file {name} {what}: found {seen}, expected CRC-32 {wanted[name]}"
  return ""


def _names(folder: epath.Path, prefix: str = "") -> list[str]:
  """The files in a folder and those below it, sorted."""
  found = []
  for path in folder.iterdir():
    inside = _names(path, f"{prefix}{path.name}/") if path.is_dir() else [prefix + path.name]
    found += inside
  return sorted(found)


def _checksums(folder: epath.Path, names: list[str]) -> list[int | OSError | None]:
  """The CRC-32 of each file, None of one that is gone, and why where one cannot be read."""
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(lambda name: _checksum(folder / name), names))


def _checksum(path: epath.Path) -> int | OSError | None:
  crc = 0
  try:
    with path.open("rb") as file:
      while block := file.read(BLOCK):
        crc = zlib.crc32(block, crc)
  except FileNotFoundError:
    return None
  except OSError as error:
    return error
  return crc


def measure(folder: str | None = None, megabytes: int = 512) -> tuple[float, float]:
  """(bytes, seconds) of checking a folder, by default one of 8 files that were just written."""
  with tempfile.TemporaryDirectory() as own:
    if folder is None:
      for i in range(8):
        (epath.Path(own) / str(i)).write_bytes(os.urandom(megabytes * 10**6 // 8))
    path = epath.Path(folder or own)
    names = _names(path)
    began = time.perf_counter()
    _checksums(path, names)
    seconds = time.perf_counter() - began
    return sum((path / name).stat().length for name in names), seconds


if __name__ == "__main__":
  size, seconds = measure(*sys.argv[1:2])
  print(f"{size / 1e6:.0f} MB in {seconds:.3f} s: {size / seconds / 1e9:.2f} GB/s")
