"""(prompt, score) pairs of a policy in V0's own format: what the observer `pairs` writes and
`--mode=value` reads.

A folder holds prompts.json or prompt_dict.json (the name in V0's public data), "{dataset}_{id}" ->
text, and one or more .jsonl files with a pair a line:

    {"id": 7, "dataset": "tasks", "model": "v05-seed1", "step": 12, "score": 0.5, "type": "context"}

`score` is the mean reward of some rollouts in [-1, 1], `step` the training steps that the policy
`model` had behind it. The types context, train_query and test_query are V0's; a run writes context
alone, which `split` divides. Source: the specification of V0 (arXiv 2602.03584), section 8.
"""

from collections.abc import Sequence
import json
import os
from typing import NamedTuple

from etils import epath
import numpy as np

from v05_jax.rows import HALF_PAIR
from v05_jax.run import files

FOLDER, FILE, PROMPTS = "pairs", "pairs.jsonl", "prompts.json"
NAMES = (PROMPTS, "prompt_dict.json")  # of the file of texts: ours, and that of V0's public data
TYPES = ("context", "train_query", "test_query")
FIELDS = {"id": int, "dataset": str, "model": str, "step": int, "score": (int, float)}


class Collector:
  """Writes the pairs of a run to WORKDIR/pairs as it goes; a context manager.

  `done` steps stand in the restored state: pairs of later ones are cut off, since the run will
  write them again. With 0 those of an earlier run are put aside.
  """

  def __init__(self, workdir, dataset: str, texts: Sequence[str], done: int = 0):
    self._folder, self._dataset = files.folder(workdir) / FOLDER, dataset
    self._model = files.folder(workdir).name
    self._folder.mkdir(parents=True, exist_ok=True)
    if not done:
      files.put_aside(self._folder / FILE)
    kept = [row for _, row in _lines(self._folder / FILE) if row["step"] < done] if done else []
    self._lines = files.Lines(self._folder / FILE, kept)
    prompts = {f"{dataset}_{i}": text for i, text in enumerate(texts)}
    files.replace(self._folder / PROMPTS, json.dumps(prompts, ensure_ascii=False, indent=0) + "\n")

  def write(self, step: int, row, score, rollouts):
    """The pairs of a step: row of the dataset [n], mean reward in [-1, 1] [n], number of its
    rollouts [n]."""
    for i, mean, k in zip(row, score, rollouts, strict=True):
      self._lines.append(
        {
          "id": int(i),
          "dataset": self._dataset,
          "model": self._model,
          "step": int(step),
          "score": round(float(mean), 6),
          "type": TYPES[0],
          "rollouts": int(k),
        }
      )

  def flush(self):
    """Makes sure that every pair so far survives; call it before each checkpoint."""
    self._lines.flush()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._lines.close()


class Context(NamedTuple):
  """The pairs of one policy at one time: what can stand in one context."""

  key: tuple[str, str, str, int]  # folder, dataset, model, step
  prompt: np.ndarray  # int32 [n]  index of the text
  score: np.ndarray  # float32 [n]  in [0, 1]
  type: np.ndarray  # int8 [n]  number of the type in `TYPES`


def split(context: Context, asked: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """(query rows, support rows) of a context, no prompt in both.

  Where rows are marked as queries, those of the type `asked` are the queries, and the rows of type
  context the support. Else the prompts are divided into random halves: the support then has the
  success rate of the whole context, which it would not have once a balanced choice of queries were
  taken out of it.
  """
  if context.type.any():
    rows, given = context.type == asked, context.type == 0
  else:
    prompts = rng.permutation(np.unique(context.prompt))
    rows = np.isin(context.prompt, prompts[: len(prompts) // 2])
    given = ~rows
  given &= ~np.isin(context.prompt, context.prompt[rows])
  return np.flatnonzero(rows), np.flatnonzero(given)


def read(folders: Sequence[str], window: int = 1) -> tuple[list[str], list[Context]]:
  """(texts, contexts) of folders in the format above; pairs of one (dataset, model) whose steps
  fall into the same `window` steps share a context.

  Raises ValueError that names the folder, file or line: what was found and what was expected.
  """
  place: dict[str, int] = {}  # text -> index
  rows: dict[tuple, list] = {}
  for folder in folders:
    path = files.folder(folder)
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    prompts = [path / name for name in NAMES if (path / name).exists()]
    if not found or not prompts:
      raise ValueError(
        f"{path}: found no pairs, expected a folder with {' or '.join(NAMES)} and .jsonl files, as "
        "the observer pairs makes WORKDIR/pairs"
      )
    texts = _prompts(prompts)
    for where, row in (line for file in found for line in _lines(file)):
      name = f"{row['dataset']}_{row['id']}"
      if name not in texts:
        raise ValueError(
          f"{where}: found the prompt {name}, expected one that "
          f"{' or '.join(map(os.fspath, prompts))} holds"
        )
      if not texts[name].strip() or HALF_PAIR.search(texts[name]):
        raise ValueError(
          f"{where}: found {texts[name]!r:.60} as the prompt {name}, expected one that is not empty"
        )
      key = (str(path), row["dataset"], row["model"], row["step"] // window * window)
      prompt = place.setdefault(texts[name], len(place))
      rows.setdefault(key, []).append((prompt, (row["score"] + 1) / 2, TYPES.index(row["type"])))
  contexts = [
    Context(
      key, *(np.array(x, kind) for x, kind in zip(zip(*found), (np.int32, np.float32, np.int8)))
    )
    for key, found in rows.items()
  ]
  return list(place), contexts


def _prompts(paths: Sequence[epath.Path]) -> dict[str, str]:
  """The texts of one file or of several, which must not contradict each other."""
  texts: dict[str, str] = {}
  for file in paths:
    try:
      found = json.loads(file.read_bytes().decode())
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{file}: found no JSON ({error}), expected one") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
      raise ValueError(f'{file}: found another thing, expected an object of "dataset_id": text')
    if other := [name for name in found if texts.get(name, found[name]) != found[name]]:
      raise ValueError(
        f"{file}: {other[0]}: found another text than in {paths[0].name} beside it, expected the "
        "same"
      )
    texts |= found
  return texts


def _lines(file: epath.Path):
  """Yields (where, row) of a .jsonl file of pairs; a last line that is torn (the writer was killed)
  is left out."""
  lines = file.read_bytes().split(b"\n") if file.exists() else []
  for number, line in enumerate(lines, 1):
    where = f"{file}, line {number}"
    if not line.strip():
      continue
    try:
      row = json.loads(line.decode())
    except (ValueError, RecursionError):
      if number == len(lines):
        return
      found = line.decode(errors="replace")[:80]
      raise ValueError(f"{where}: found {found!r}, expected a JSON object") from None
    yield where, _check(row, where)


def _check(row, where: str) -> dict:
  row = dict(row) if isinstance(row, dict) else {}
  row.setdefault("type", TYPES[0])
  for key, kind in FIELDS.items():
    if isinstance(row.get(key), bool) or not isinstance(row.get(key), kind):
      raise ValueError(f"{where}: {key}: found {row.get(key)!r}, expected {_KINDS[kind]}")
  if not -1 <= row["score"] <= 1:
    raise ValueError(f"{where}: score: found {row['score']}, expected a mean reward in [-1, 1]")
  if row["type"] not in TYPES:
    raise ValueError(f"{where}: type: found {row['type']!r}, expected one of {', '.join(TYPES)}")
  return row


_KINDS = {int: "a whole number", str: "a text", (int, float): "a number"}
