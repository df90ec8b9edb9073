"""Prompts and answers: from the built-in tasks, a file, a public benchmark, or reasoning-gym.

The order is a function of (seed, epoch) and the place in it is one number, the cursor, so that a
run resumes anywhere without the state of a data loader.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import hashlib
import itertools

from absl import logging
import numpy as np

from v05_jax import benchmarks, problems, row_files, tasks
from v05_jax.benchmarks import TASKS
from v05_jax.configs import default
from v05_jax.models import encoding
from v05_jax.names import assignments
from v05_jax.rows import Row, answer_text, checked, conversation, field, prompt_text
from v05_jax.run import files
from v05_jax.scale import distributed
from v05_jax.structs import Prompts

PROMPT_KEYS = ("prompt", "question", "problem", "messages")
# OlympiadBench's is the second, and DAPO-Math-17k's the last.
ANSWER_KEYS = ("answer", "final_answer", "solution", "reward_model.ground_truth")

TOGETHER = 4096  # rows that are read and encoded at a time


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

  @functools.cached_property
  def digest(self) -> str:
    """64 bits, as text, of the rows in their order and of their tokens: the same for the same data
    alone."""
    found = hashlib.blake2b(digest_size=8)
    for array in (self.tokens, self.start):
      found.update(np.ascontiguousarray(array))
    for row in self.rows:
      found.update(repr(sorted(row.items())).encode(errors="surrogatepass"))
    return found.hexdigest()

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


def load(
  config_data,
  tokenizer,
  max_prompt: int,
  seed: int = 0,
  shuffle: bool = True,
  key: str = "data.path",
) -> Dataset:
  """The dataset that `config.data` names, read and tokenized once.

  `path` is "tasks", where split, size, families, seed and scratchpad say which rows are drawn; or a
  .jsonl or .parquet file, or a name of `benchmarks.BENCHMARKS`, or "reasoning_gym:" with names of
  its tasks (`problems`), or several of these with commas between, one after another. The template
  and, if wanted, the tokenizer's chat template are put around each prompt, never around the
  built-in tasks' prompts. `seed` is the run's and orders the data. `shuffle=False` is for
  evaluation: the order of the sources, and of each source its first `config.data.size` rows only.
  Where there are several, or a benchmark or a task of reasoning-gym, a row's "benchmark" says which
  it is of. `key` is the config's key that the path is of, for error messages.

  Raises ValueError that names the key, file, line or row: an unknown name, a missing, unreadable or
  empty file, a line that is not a JSON object, a row without prompt or answer or with a field that
  rows.py does not allow, a prompt that the tokenizer or its chat template refuses, or one of more
  than `max_prompt` tokens.
  """
  if not benchmarks.is_path(config_data.path):
    raise ValueError(f"config.{key}: found {config_data.path!r}, expected {benchmarks.EXPECTED}")
  paths = benchmarks.names(config_data.path)
  rows, wheres, encoded = [], [], []
  for path in paths:
    before = len(rows)
    wrapping = _wrapping(config_data, path)
    # a task of reasoning-gym has its own name
    labelled = len(paths) > 1 and not benchmarks.gym_tasks(path)
    name = benchmarks.label(path) if labelled else ""
    every = _rows(config_data, path, key)
    found = itertools.islice(every, None if shuffle else config_data.size)
    while some := list(itertools.islice(found, TOGETHER)):
      ids = encoding.encode_prompts(tokenizer, [prompt for *_, prompt in some], wrapping)
      for where, row, _ in some:
        rows.append({**row, "benchmark": name} if name else row)
        wheres.append(where)
        try:
          encoded.append(next(ids))
        except ValueError as error:
          raise ValueError(f"{where}: {error}") from None
    if len(rows) == before:
      raise ValueError(f"{path}: found no row, expected at least one prompt")
    # where nobody has chosen the number
    usual = not shuffle and config_data.size == default.get_config().eval.size
    if usual and path.endswith(benchmarks.FILES) and _goes_on(every) and distributed.first():
      logging.warning("eval.size: of %s the first %d rows alone are taken", path, config_data.size)
  _check_length(encoded, wheres, max_prompt)
  length = [len(ids) for ids in encoded]
  tokens = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
  return Dataset(rows, tokens, np.concatenate([[0], np.cumsum(length)]), max_prompt, seed, shuffle)


def _goes_on(rows: Iterator) -> bool:
  """Whether there is a further row; one that cannot be read counts."""
  with contextlib.suppress(ValueError):
    return next(rows, None) is not None
  return True


def _wrapping(config_data, path: str) -> encoding.Wrapping:
  """What stands around the prompts of one source."""
  if path == TASKS:
    return encoding.Wrapping()
  own = benchmarks.TEMPLATE if path in benchmarks.BENCHMARKS else "{prompt}"
  return encoding.Wrapping(
    config_data.chat_template,
    config_data.template or own,
    assignments(config_data.chat_template_kwargs),
  )


def _rows(config_data, path: str, key: str) -> Iterator[tuple[str, Row, str | list]]:
  """Yields (where, row, prompt) of one source: `where` names it for error messages, `prompt` is the
  row's text, or its messages where they are several."""
  if path == TASKS:
    c = config_data
    drawn = tasks.rows(c.split, c.size, c.seed, c.families, c.scratchpad)
    for i, row in enumerate(drawn, 1):
      yield f"{config_data.split} row {i} of the built-in tasks", row, row["prompt"]
  elif gym := benchmarks.gym_tasks(path):
    for where, row in problems.rows(gym, config_data):
      yield where, row, row["prompt"]
  elif path in benchmarks.BENCHMARKS:
    folder = files.place(config_data.folder)
    copies = [folder / f"{path}{ending}" for ending in benchmarks.FILES]
    copy = next((str(file) for file in copies if file.exists()), None)
    hub = lambda: benchmarks.hub_rows(path, config_data.folder)
    for where, row in benchmarks.read(path, row_files.read_file(copy, key) if copy else hub()):
      yield where, checked(row, where), row["prompt"]
  else:
    keys = config_data.prompt_key, config_data.answer_key
    for where, given in row_files.read_file(path, key):
      row = read_row(given, *keys, where)
      several = _is_conversation(_field(given, keys[0], PROMPT_KEYS, "prompt", where))
      yield where, row, row["messages"] if several else row["prompt"]


def label(path: str) -> str:
  """What the data of `config.data.path` are called: the names of their sources, without folders and
  endings."""
  return "+".join(map(benchmarks.label, benchmarks.names(path)))


def eval_config(config):
  """`config.data` as evaluation reads it: with path, split and size of `config.eval`."""
  found = config.data.copy_and_resolve_references()
  found.update({"path": config.eval.path, "split": config.eval.split, "size": config.eval.size})
  return found


def read_row(row: Row, prompt_key: str = "", answer_key: str = "", where: str = "row") -> Row:
  """The row with its prompt as text under "prompt" and its answer as text under "answer"; the rest
  is kept.

  Without keys the first of `PROMPT_KEYS` and of `ANSWER_KEYS` that the row has is taken. A key with
  dots goes into nested objects. A prompt of several messages is kept under "messages", and its text
  is that of `rows.prompt_text`. DAPO-Math-17k's answer is `reward_model.ground_truth`. Raises
  ValueError that names `where` for a field that rows.py does not allow.
  """
  prompt = _field(row, prompt_key, PROMPT_KEYS, "prompt", where)
  answer = _field(row, answer_key, ANSWER_KEYS, "answer", where)
  texts = {"prompt": prompt_text(prompt, where), "answer": answer_text(answer, where)}
  messages = {"messages": conversation(prompt, where)} if _is_conversation(prompt) else {}
  return checked({**row, **texts, **messages}, where)


def _is_conversation(prompt) -> bool:
  return isinstance(prompt, list) and len(prompt) > 1


def _field(row, key, detect, what, where):
  for name in (key,) if key else detect:
    if (value := field(row, name)) is not None:
      return value
  other = f"one of {', '.join(detect)}, or the name of another one as --config.data.{what}_key"
  wanted = f"config.data.{what}_key = {key!r}" if key else other
  raise ValueError(
    f"{where}: found no {what} among the fields {', '.join(map(str, row))}, expected {wanted}"
  )


def _check_length(encoded, wheres, max_prompt):
  long = [i for i, ids in enumerate(encoded) if len(ids) > max_prompt]
  if long:
    longest = max(len(encoded[i]) for i in long)
    raise ValueError(
      f"{wheres[long[0]]}: the prompt has {len(encoded[long[0]])} tokens, expected at most "
      f"config.sampler.max_prompt = {max_prompt}; {len(long)} of {len(encoded)} rows are longer "
      f"than that: raise config.sampler.max_prompt to {longest} or leave them out"
    )
