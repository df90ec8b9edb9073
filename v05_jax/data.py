"""Prompts and answers: from the built-in tasks, a file, a public benchmark, or reasoning-gym.

The order is a function of (seed, epoch) and the place in it is one number, the cursor, so that a
run resumes anywhere without the state of a data loader.
"""

from collections.abc import Iterator
import dataclasses
import functools
import itertools
import json

from etils import epath
import numpy as np

from v05_jax import benchmarks, problems, tasks
from v05_jax.benchmarks import TASKS, Row, show
from v05_jax.models import tokenizer as tokenizers
from v05_jax.structs import Prompts

PROMPT_KEYS = ("prompt", "question", "problem")
# OlympiadBench's is the second, and DAPO-Math-17k's the last.
ANSWER_KEYS = ("answer", "final_answer", "solution", "reward_model.ground_truth")


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Tokenized rows in a stateless order. Tokens are stored without padding: row i is
  `tokens[start[i]:start[i + 1]]`."""

  rows: list[Row]  # each with "prompt" and "answer", and whatever else its source held
  tokens: np.ndarray  # int32 [sum of lengths]
  start: np.ndarray  # int64 [len + 1]
  max_prompt: int  # tokens
  seed: int
  shuffle: bool

  def __len__(self) -> int:
    return len(self.rows)

  def index(self, cursor: int, n: int) -> np.ndarray:
    """The rows [n] at positions cursor .. cursor + n - 1 of the endless stream of epochs."""
    epoch, place = np.divmod(np.arange(cursor, cursor + n), len(self))
    if not self.shuffle:
      return place
    result = np.empty(n, np.int64)
    for e in np.unique(epoch):
      result[epoch == e] = order(len(self), self.seed, int(e))[place[epoch == e]]
    return result

  def at(self, cursor: int, n: int, pad_to: int | None = None) -> Prompts:
    """The next `n` prompts from position `cursor` on, padded with masked rows to `pad_to` (default
    n).

    Prompt i has position `cursor + i`, which names its rollouts' keys. A batch may cross the end of
    an epoch. Raises ValueError if `n` exceeds `pad_to`.
    """
    pad_to = n if pad_to is None else pad_to
    if n > pad_to:
      raise ValueError(f"data: {n} prompts were asked for in a batch of {pad_to}")
    index = self.index(cursor, n)
    tokens = np.zeros((pad_to, self.max_prompt), np.int32)
    length = np.ones(pad_to, np.int32)
    length[:n] = self.start[index + 1] - self.start[index]
    for i, (first, size) in enumerate(zip(self.start[index], length[:n], strict=True)):
      tokens[i, :size] = self.tokens[first : first + size]
    position = np.arange(cursor, cursor + pad_to, dtype=np.int32)
    rows = tuple(self.rows[i] for i in index)
    row = np.pad(index, (0, pad_to - n)).astype(np.int32)
    return Prompts(tokens, length, position, np.arange(pad_to) < n, row, rows)


def take(prompts: Prompts, index: np.ndarray, pad_to: int) -> Prompts:
  """The prompts at `index` [n], padded with masked rows to `pad_to`."""
  padded = np.pad(index, (0, pad_to - len(index)))
  mask = np.arange(pad_to) < len(index)
  return Prompts(
    tokens=prompts.tokens[padded],
    length=np.where(mask, prompts.length[padded], 1),
    position=prompts.position[padded],
    mask=mask,
    row=prompts.row[padded],
    rows=tuple(prompts.rows[i] for i in index),
    step=prompts.step,
  )


@functools.lru_cache(maxsize=4)
def order(size: int, seed: int, epoch: int) -> np.ndarray:
  """The permutation [size] of one epoch: the ranks of the raw Philox stream keyed by (seed, epoch).

  Raw output and a stable sort, since numpy promises the stream of a bit generator across versions,
  but not that of `Generator.permutation`.
  """
  stream = np.random.Philox(key=[seed % 2**64, epoch]).random_raw(size)
  return np.argsort(stream, kind="stable")


def load(config_data, tokenizer, max_prompt: int, seed: int = 0, shuffle: bool = True) -> Dataset:
  """The dataset that `config.data` names, read and tokenized once.

  `path` is "tasks", where split, size, families and seed say which rows are drawn; or a .jsonl or
  .parquet file, or a name of `benchmarks.BENCHMARKS`, or "reasoning_gym:" with names of its tasks
  (`problems`), or several of these with commas between, one after another. The template and, if
  wanted, the tokenizer's chat template are put around each prompt, never around the built-in tasks'
  prompts. `seed` is the run's and orders the data. `shuffle=False` is for evaluation: the order of
  the sources, and of each source its first `config.data.size` rows only. Where there are several,
  or a benchmark or a task of reasoning-gym, a row's "benchmark" says which it is of.

  Raises ValueError that names the key, file, line or row: an unknown name, a missing, unreadable or
  empty file, a line that is not a JSON object, a row without prompt or answer, a prompt of more
  than `max_prompt` tokens.
  """
  if not benchmarks.is_path(config_data.path):
    raise ValueError(
      f"config.data.path: found {config_data.path!r}, expected {benchmarks.EXPECTED}"
    )
  paths = benchmarks.names(config_data.path)
  rows, wheres, encoded = [], [], []
  for path in paths:
    before = len(rows)
    template, chat = _wrapping(config_data, path)
    # a task of reasoning-gym has its own name
    labelled = len(paths) > 1 and not benchmarks.gym_tasks(path)
    name = benchmarks.label(path) if labelled else ""
    for where, row in itertools.islice(
      _rows(config_data, path), None if shuffle else config_data.size
    ):
      rows.append({**row, "benchmark": name} if name else row)
      wheres.append(where)
      encoded.append(_encode(tokenizer, row["prompt"], template, chat, where))
    if len(rows) == before:
      raise ValueError(f"{path}: found no row, expected at least one prompt")
  _check_length(encoded, wheres, max_prompt)
  length = [len(ids) for ids in encoded]
  tokens = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
  return Dataset(rows, tokens, np.concatenate([[0], np.cumsum(length)]), max_prompt, seed, shuffle)


def _wrapping(config_data, path: str) -> tuple[str, bool]:
  """(template, whether the chat template is used) of one source."""
  if path == TASKS:
    return "{prompt}", False
  own = benchmarks.TEMPLATE if path in benchmarks.BENCHMARKS else "{prompt}"
  return config_data.template or own, config_data.chat_template


def _rows(config_data, path: str) -> Iterator[tuple[str, Row]]:
  """Yields (where, row) of one source; `where` names it for error messages."""
  if path == TASKS:
    drawn = tasks.rows(config_data.split, config_data.size, config_data.seed, config_data.families)
    yield from (
      (f"{config_data.split} row {i} of the built-in tasks", row) for i, row in enumerate(drawn, 1)
    )
  elif gym := benchmarks.gym_tasks(path):
    yield from problems.rows(gym, config_data)
  elif path in benchmarks.BENCHMARKS:
    copies = [epath.Path(config_data.folder) / f"{path}{ending}" for ending in benchmarks.FILES]
    copy = next((str(file) for file in copies if file.exists()), None)
    yield from benchmarks.read(
      path, read_file(copy) if copy else benchmarks.hub_rows(path, config_data.folder)
    )
  else:
    for where, row in read_file(path):
      yield where, read_row(row, config_data.prompt_key, config_data.answer_key, where)


def label(path: str) -> str:
  """What the data of `config.data.path` are called: the names of their sources, without folders and
  endings."""
  return "+".join(map(benchmarks.label, benchmarks.names(path)))


def eval_config(config):
  """`config.data` as evaluation reads it: with path, split and size of `config.eval`."""
  found = config.data.copy_and_resolve_references()
  found.update({"path": config.eval.path, "split": config.eval.split, "size": config.eval.size})
  return found


def read_file(path: str) -> Iterator[tuple[str, Row]]:
  """Yields (where, row) for each row of a .jsonl or .parquet file; `where` names file and line or
  row.

  Raises ValueError for a file that is missing or unreadable, or a line that is not an object.
  """
  file = epath.Path(path)
  readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
  if not file.exists() or file.is_dir():
    raise ValueError(
      f"config.data.path: {path} {'is a folder' if file.is_dir() else 'does not exist'}"
    )
  try:
    with file.open("rb") as stream:
      yield from readers[file.suffix](path, stream)
  except OSError as error:
    raise ValueError(f"{path}: cannot be read ({error})") from None


def _read_jsonl(path, stream):
  for number, line in enumerate(stream, 1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    try:
      row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # malformed JSON, or not UTF-8
      raise ValueError(f"{where}: found {show(line)}, which is not JSON: {error}") from None
    if not isinstance(row, dict):
      raise ValueError(f"{where}: found {show(row)}, expected a JSON object")
    yield where, row


def _read_parquet(path, stream):
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise ValueError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow") from None
  number = 0
  try:
    for batch in parquet.ParquetFile(stream).iter_batches():
      for row in batch.to_pylist():
        number += 1
        yield f"{path}: row {number}", row
  except pa.ArrowException as error:
    raise ValueError(f"{path}: found no readable parquet file: {error}") from None


def read_row(row: Row, prompt_key: str = "", answer_key: str = "", where: str = "row") -> Row:
  """The row with its prompt as text under "prompt" and its answer as text under "answer"; the rest
  is kept.

  Without keys the first of `PROMPT_KEYS` and of `ANSWER_KEYS` that the row has is taken. A key with
  dots goes into nested objects. A prompt may be a list of one user message, and DAPO-Math-17k's
  answer is `reward_model.ground_truth`; numbers are answers too, and lists, all of whose members
  are wanted. Raises ValueError naming `where`.
  """
  prompt = _field(row, prompt_key, PROMPT_KEYS, "prompt", where)
  answer = _field(row, answer_key, ANSWER_KEYS, "answer", where)
  return {
    **row,
    "prompt": benchmarks.prompt_text(prompt, where),
    "answer": benchmarks.answer_text(answer, where),
  }


def _field(row, key, detect, what, where):
  for name in (key,) if key else detect:
    if (value := benchmarks.field(row, name)) is not None:
      return value
  wanted = f"config.data.{what}_key = {key!r}" if key else f"one of {', '.join(detect)}"
  raise ValueError(
    f"{where}: found no {what} among the fields {', '.join(map(str, row))}, expected {wanted}"
  )


def _encode(tokenizer, prompt, template, chat_template, where):
  try:
    # Not str.format: prompts of mathematics are full of braces, and so may a template be.
    return tokenizers.encode_prompt(tokenizer, template.replace("{prompt}", prompt), chat_template)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None


def _check_length(encoded, wheres, max_prompt):
  long = [i for i, ids in enumerate(encoded) if len(ids) > max_prompt]
  if long:
    longest = max(len(encoded[i]) for i in long)
    raise ValueError(
      f"{wheres[long[0]]}: the prompt has {len(encoded[long[0]])} tokens, expected at most "
      f"config.sampler.max_prompt = {max_prompt}; {len(long)} of {len(encoded)} rows are longer "
      f"than that: raise config.sampler.max_prompt to {longest} or leave them out"
    )
