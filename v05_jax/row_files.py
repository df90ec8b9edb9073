"""Files of rows, .jsonl and .parquet: whether they are there, and what each line says."""

from collections.abc import Iterable, Iterator
import json

from v05_jax import benchmarks
from v05_jax.names import alike, show
from v05_jax.rows import Row
from v05_jax.run import files


def read_file(path: str, key: str = "data.path") -> Iterator[tuple[str, Row]]:
  """Yields (where, row) for each row of a .jsonl or .parquet file; `where` names file and line or
  row, `key` is the config's key of the path.

  Raises ValueError for a file that is missing or unreadable, or a line that is not an object.
  """
  readers, file = {".jsonl": _read_jsonl, ".parquet": _read_parquet}, _file(path, key)
  try:
    with file.open("rb") as stream:
      yield from readers[file.suffix](path, stream)
  except OSError as error:
    raise ValueError(f"{path}: cannot be read ({error})") from None


def _file(path: str, key: str):
  """The file of a config's key. Raises ValueError where there is none."""
  try:
    file = files.place(path)
    there, folder = file.exists(), file.is_dir()
  except (ValueError, OSError, ImportError) as error:  # the last: no library for that store
    raise ValueError(f"config.{key}: {path} cannot be opened: {error}") from None
  if not there or folder:
    found = "is a folder" if folder else f"does not exist{alike(path)}"
    raise ValueError(f"config.{key}: {path} {found}")
  return file


def check(path: str, key: str = "data.path"):
  """Raises ValueError where one of the .jsonl and .parquet files of a path is not there: `load`
  would say so too, after the model has been loaded."""
  for name in benchmarks.names(path):
    if name.endswith(benchmarks.FILES):
      _file(name, key)


def _read_jsonl(path, stream):
  for number, line in enumerate(stream, 1):
    if not (line := line.rstrip()):
      continue
    where = f"{path}:{number}"
    try:
      row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, or nested too deeply
      place = isinstance(error, json.JSONDecodeError)
      reason = f"{error.msg} in column {error.colno}" if place else error
      raise ValueError(f"{where}: found {show(line)}, which is not JSON: {reason}") from None
    if not isinstance(row, dict):
      raise ValueError(f"{where}: found {show(row)}, expected a JSON object")
    yield where, row


def _object(pairs: list[tuple]) -> Row:
  """A JSON object. Raises ValueError for a key that it has twice: nothing says which is meant."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f"the key {next(x for x in names if names.count(x) > 1)!r} is there twice")
  return found


def _read_parquet(path, stream):
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise ValueError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow") from None
  try:
    batches = parquet.ParquetFile(stream).iter_batches()
  except pa.ArrowException as error:
    raise ValueError(f"{path}: found no readable parquet file: {error}") from None
  number = 0
  try:
    for batch in batches:
      for row in _parquet_rows(batch):
        number += 1
        yield f"{path}: row {number}", row
  except Exception as error:  # damaged pages, text that is not UTF-8, dates that Python has not
    raise ValueError(f"{path}: row {number + 1} cannot be read: {error}") from None


def _parquet_rows(batch) -> Iterable[Row]:
  """The rows of a batch; where one cannot be read, those before it come first."""
  try:
    return batch.to_pylist()
  except Exception:  # of many kinds: it comes again at the row that it is about
    return (batch.slice(i, 1).to_pylist()[0] for i in range(batch.num_rows))
