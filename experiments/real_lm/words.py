"""Word problems whose answer is an arithmetic expression: rows for training, validation and test.

ASDiv, MAWPS and SVAMP come from files of these names in a folder, or from the Hugging Face hub
(`v05_jax.benchmarks`). SVAMP's last 300 problems are the test. Its problems are variations of
ASDiv's, so whatever is nearly a test problem is taken out of everything that is trained on, the
warm start's demonstrations too; the same is done with the validation problems.
"""

import json
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from v05_jax import benchmarks
from v05_jax.rewards import expression
from v05_jax.run import files

TESTED = 300  # SVAMP's last problems
VALIDATED = 160  # drawn from ASDiv
NEAR = 0.6  # share of common word triples from which two problems are near duplicates
LONGEST = 400  # characters of a problem: about 100 tokens
LONGEST_FORMULA = 40  # characters of a demonstration
SVAMP = 1000  # problems of the whole set
NAMES = ("sft", "train", "validation", "test")


class Sets(NamedTuple):
  """Rows {"prompt", "answer"}; those of `sft` have an expression as their "response" too."""

  sft: list[dict]
  train: list[dict]
  validation: list[dict]
  test: list[dict]
  removed: dict[str, int]  # why -> rows left out


def prepare(source: str, out: Path) -> dict[str, int]:
  """OUT/{sft,train,validation,test}.jsonl from the sets in the folder `source`, where they are not
  there yet -> what was left out. Raises ValueError for a set that cannot be read."""
  summary = out / "removed.json"
  if not summary.is_file():
    sets = split(*(read(source, name) for name in ("asdiv", "mawps", "svamp")))
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
      rows = getattr(sets, name)
      files.replace(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    counts = {name: len(getattr(sets, name)) for name in NAMES}
    files.replace(summary, json.dumps(counts | sets.removed, indent=2) + "\n")
  return json.loads(summary.read_text())


def read(source: str, name: str) -> list[dict]:
  """Rows {"prompt", "answer", "formula" where the set has one} of a set, SVAMP whole and in its
  order. Raises ValueError where a folder's SVAMP is not the whole set."""
  path = Path(source) / f"{name}.jsonl"
  if path.is_file():
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if name == "svamp" and len(rows) != SVAMP:
      raise ValueError(f"{path}: found {len(rows)} problems, expected all {SVAMP} of SVAMP")
    return rows
  parts = {"svamp": ("svamp_train", "svamp"), "mawps": ("mawps_train",)}.get(name, (name,))
  return [
    row for part in parts for _, row in benchmarks.read(part, benchmarks.hub_rows(part, source))
  ]


def split(asdiv: list[dict], mawps: list[dict], svamp: list[dict]) -> Sets:
  """The rows for each purpose."""
  removed, test = {}, kept(svamp[-TESTED:], {}, "test")
  asdiv = kept(asdiv, removed, "asdiv")
  order = np.random.default_rng(0).permutation(len(asdiv))
  held = {int(i) for i in order[:VALIDATED]}
  validation = apart([asdiv[i] for i in sorted(held)], [test], removed, "validation")
  train = [row for i, row in enumerate(asdiv) if i not in held]
  train += kept(mawps, removed, "mawps") + kept(svamp[:-TESTED], removed, "svamp")
  train = apart(once(train, removed), [test, validation], removed, "train")
  sft = [row | {"response": text} for row in train if (text := demonstration(row))]
  plain = lambda rows: [{key: row[key] for key in ("prompt", "answer")} for row in rows]
  taught = [{key: row[key] for key in ("prompt", "answer", "response")} for row in sft]
  return Sets(taught, plain(train), plain(validation), plain(test), removed)


def kept(rows: list[dict], removed: dict[str, int], name: str) -> list[dict]:
  """The rows whose answer is one number and whose problem is short enough."""
  good = [
    row for row in rows if len(row["prompt"]) <= LONGEST and expression.is_number(row["answer"])
  ]
  removed[f"{name}: long, or no single number"] = len(rows) - len(good)
  return good


def once(rows: list[dict], removed: dict[str, int]) -> list[dict]:
  """The first of the rows that have the same words and numbers."""
  found = {" ".join(words(row["prompt"])): row for row in reversed(rows)}
  removed["train: repeated"] = len(rows) - len(found)
  return list(reversed(found.values()))


def apart(rows: list[dict], others: list[list[dict]], removed: dict[str, int], name: str):
  """The rows that are no near duplicate of any row of `others`."""
  index, sizes = {}, []
  for row in (row for part in others for row in part):
    for triple in (found := triples(row["prompt"])):
      index.setdefault(triple, []).append(len(sizes))
    sizes.append(len(found))
  good = [row for row in rows if nearest(triples(row["prompt"]), index, sizes) < NEAR]
  removed[f"{name}: near duplicates"] = len(rows) - len(good)
  return good


def nearest(own: set, index: dict, sizes: list[int]) -> float:
  """The largest share of common triples (of the shorter text's) with any indexed text."""
  shared = {}
  for triple in own:
    for i in index.get(triple, ()):
      shared[i] = shared.get(i, 0) + 1
  return max((n / min(len(own), sizes[i]) for i, n in shared.items()), default=0.0)


def words(text: str) -> list[str]:
  return re.findall(r"[a-z]+|\d+(?:[.,]\d+)*", text.lower())


def triples(text: str) -> set[tuple[str, ...]]:
  """Three words in a row, every number the same."""
  found = ["0" if word[0].isdigit() else word for word in words(text)]
  return {tuple(found[i : i + 3]) for i in range(max(1, len(found) - 2))}


def demonstration(row: dict) -> str:
  """The formula of a row that is worth its answer, "" where it has none."""
  text = str(row.get("formula") or "").partition("=")[0].strip()
  good = 0 < len(text) <= LONGEST_FORMULA and expression.verify(row["prompt"], text, row) == 1
  return text if good else ""
