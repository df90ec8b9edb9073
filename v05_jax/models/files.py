"""The files of a Hugging Face directory: safetensors, single or sharded, and JSON."""

import json
import os
from pathlib import Path
import shutil

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

STORED = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
# A weight of this size is damaged: its square is infinite in float32, and RMSNorm makes 0 or NaN.
TOO_LARGE = 2.0**64
BLOCK = 1 << 18  # values looked at at once: they stay in a processor's cache
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def free(folder) -> Path:
  """A folder that is to be written, as an absolute path. Raises ValueError for a remote one, and
  for one that holds something."""
  if "://" in os.fspath(folder):
    raise ValueError(f"{os.fspath(folder)}: found a remote folder, expected a local one")
  folder = Path(folder).absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    found = "folder with files" if folder.is_dir() else "file"
    raise ValueError(f"{folder}: found a {found}, expected a new folder")
  return folder


def locate(
  directory: Path, expected: dict[str, tuple], beside: str | None
) -> dict[Path, list[str]]:
  """File -> names of its tensors, after checking all headers against `expected` (name -> shape).

  beside: a tensor that may also be there. Raises ValueError that lists what is missing, unexpected,
  misshapen or of another type.
  """
  where, problems = {}, []
  for file in weight_files(directory):
    with open_tensors(file) as tensors:
      for name in tensors.keys():
        part = tensors.get_slice(name)
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if name == beside and name not in expected:
          continue
        if name.endswith(
          "rotary_emb.inv_freq"
        ):  # in old files of Llama; it follows from the config
          continue
        if name not in expected:
          problems.append(f"{file}: {name}: found {list(shape)}, expected no such tensor")
        elif name in where:
          problems.append(f"{file}: {name}: found again, expected in {where[name].name} only")
        elif shape != expected[name]:
          problems.append(f"{file}: {name}: found {list(shape)}, expected {list(expected[name])}")
        elif kind not in STORED:
          problems.append(f"{file}: {name}: found type {kind}, expected one of {', '.join(STORED)}")
        where.setdefault(name, file)
  problems += [
    f"{directory}: {name}: found in no file, expected {list(shape)}"
    for name, shape in expected.items()
    if name not in where
  ]
  if problems:
    more = f"\n... and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError("\n".join(problems[:8]) + more)
  files = {}
  for name in expected:
    files.setdefault(where[name], []).append(name)
  return files


def write_weights(directory: Path, shards: list[list[str]], tensor) -> None:
  """Replaces the weights of a directory by those of `shards`, the names of each file's tensors;
  tensor: name -> its array.

  New weights are written under temporary names. config.json is removed before the old weights are,
  so that an interrupted call leaves the old model, or no model: a directory without config.json.
  """
  count, index, temporary, total = len(shards), {}, {}, 0
  try:
    for i, names in enumerate(shards):
      file = WEIGHTS if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
      temporary[file] = directory / f".{file}.{os.getpid()}.tmp"
      arrays = {name: tensor(name) for name in names}
      save_tensors(arrays, temporary[file])
      index |= dict.fromkeys(names, file)
      total += sum(x.nbytes for x in arrays.values())
    (directory / "config.json").unlink(missing_ok=True)
    for old in (WEIGHTS, INDEX, "model-?????-of-?????.safetensors"):
      for path in directory.glob(old):
        path.unlink()
    for file, path in temporary.items():
      path.rename(directory / file)
  finally:
    for path in temporary.values():
      path.unlink(missing_ok=True)
  if count > 1:
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": index})


def save_tensors(arrays: dict[str, np.ndarray], file: Path):
  """Writes a safetensors file. Raises OSError with path, reason and space left where it cannot be
  written; what was written of it is removed."""
  try:
    save_file(arrays, file, metadata={"format": "pt"})
    Path(file).chmod(0o644)  # safetensors makes files that only their owner can read
  except (safetensors.SafetensorError, OSError) as error:
    Path(file).unlink(missing_ok=True)
    raise not_written(file, error) from error


def not_written(file, error: BaseException) -> OSError:
  """The error for a file or folder that cannot be written; `error` is the reason."""
  folder = next((path for path in Path(file).absolute().parents if path.exists()), Path("/"))
  free = shutil.disk_usage(folder).free / 1e6
  return OSError(f"{file}: cannot be written: {error}; {free:.1f} MB are free")


def weight_files(directory: Path) -> list[Path]:
  """The safetensors files of a directory, by its index where it has one."""
  if (directory / WEIGHTS).is_file():
    return [directory / WEIGHTS]
  if not (directory / INDEX).is_file():
    raise ValueError(f"{directory}: found no weights, expected {WEIGHTS} or {INDEX}")
  index = read_json(directory / INDEX).get("weight_map")
  if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
    raise ValueError(
      f"{directory / INDEX}: weight_map: found {type(index).__name__}, expected an "
      "object of tensor name -> file name"
    )
  files = [directory / name for name in sorted(set(index.values()))]
  for file in files:
    if file.parent != directory or not file.is_file():
      raise ValueError(
        f"{directory / INDEX}: found the shard {file.name!r}, expected it in {directory}"
      )
  return files


def open_tensors(file: Path):
  """A safetensors file, opened for numpy. Raises ValueError for one that is damaged."""
  try:
    return safetensors.safe_open(file, framework="numpy")
  except (safetensors.SafetensorError, OSError) as error:
    size = file.stat().st_size if file.exists() else 0
    raise ValueError(
      f"{file}: found a damaged file of {size} bytes ({error}), expected "
      "safetensors: copy or download it again"
    ) from error


def check_weights(file, name: str, x: np.ndarray):
  """Raises ValueError, naming file and tensor, where a value of a float16, bfloat16 or float32
  array is infinite or no number, or as large as `TOO_LARGE`. One pass."""
  if not _count(x, TOO_LARGE):
    return
  check_finite(file, name, x)
  raise ValueError(
    f"{file}: {name}: found {_count(x, TOO_LARGE)} of {x.size} values of {TOO_LARGE:g} or more, "
    "whose squares are infinite, expected none"
  )


def check_finite(file, name: str, x: np.ndarray):
  """The same where a value is infinite or no number."""
  if wrong := _count(x, np.inf):
    raise ValueError(
      f"{file}: {name}: found {wrong} of {x.size} values that are not finite, expected none"
    )


def _count(x: np.ndarray, power: float) -> int:
  """How many values are as large as a power of two, or no number; by exponents, as ml_dtypes'
  isfinite is slow."""
  kind = {2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
  with np.errstate(over="ignore"):  # of float16, whose largest value is 65504
    ones, least = (np.array(value, x.dtype).view(kind) for value in (np.inf, power))
  flat = np.ravel(x).view(kind)
  blocks = (flat[i : i + BLOCK] & ones for i in range(0, flat.size, BLOCK))
  return sum(int(np.count_nonzero(block >= least)) for block in blocks)


def read_json(file: Path) -> dict:
  """The object in a JSON file. Raises ValueError that says what is wrong with the file."""
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ValueError(
      f"{file}: found no such file, expected {file.parent} to be a Hugging Face model "
      "directory (or config.policy.preset to be set, for random weights)"
    ) from error
  except (OSError, ValueError, RecursionError) as error:  # the last: nested too deeply
    raise ValueError(f"{file}: cannot be read as JSON: {error}") from error
  if not isinstance(found, dict):
    raise ValueError(f"{file}: found {type(found).__name__}, expected a JSON object")
  return found


def copy(source: Path, file: Path):
  """Makes `file` what `source` is, as a whole: the same bytes, or no file where that is none."""
  temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
  try:
    if source.is_file():
      shutil.copyfile(source, temporary)
      temporary.replace(file)
    else:
      file.unlink(missing_ok=True)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise not_written(file, error) from error


def write_json(file: Path, value: dict):
  """Writes a JSON file as a whole."""
  temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise not_written(file, error) from error
