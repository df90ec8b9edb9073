r"""The public sets of problems that runs train on and are evaluated by: where each lies and what
its rows look like.

A benchmark is named in `config.data.path` or `config.eval.path`. Its rows come from NAME.jsonl or
NAME.parquet in `config.data.folder` where that exists, and else from the Hugging Face hub by the
library `datasets`, which keeps a copy of its own. Both have the fields of the public release.

Repositories, splits, fields and numbers of rows are those with which public training and evaluation
code (of verl, slime, inspect_evals, lighteval and others) loads the releases; they were not checked
against the hub itself. What the releases have of their own:

  DAPO-Math-17k repeats each of its problems about a hundred times (1,791,700 rows; verl issue
    3065) and has a handful twice with different answers: users of the hub counted 17,398 problems,
    17,391 of them with one answer. Repetitions are left out, and so are the contradictory ones. Its
    problems stand inside instructions that ask for a last line "Answer: ...", which are taken off:
    training then asks for an answer as evaluation does.
  GSM8K ends its solutions with "#### 72": that is the answer.
  OlympiadBench has a list of final answers, all of which are wanted, and sometimes a context before
    the question.
  Minerva Math writes large numbers as 4.5e33, which `rewards.math` reads.
"""

from collections.abc import Iterable, Iterator
import re
from typing import NamedTuple

from absl import logging

from v05_jax.rows import Row, answer_text, field, prompt_text, show

TASKS = "tasks"  # the path of the built-in tasks
FILES = (".jsonl", ".parquet")
# What Qwen's model cards advise for mathematics; the answer that counts is the last \boxed{...}
# (rewards.math).
TEMPLATE = "{prompt}\n\nPlease reason step by step, and put your final answer within \\boxed{}."

DAPO_BEFORE = (
  "Solve the following math problem step by step. The last line of your response should be of the "
  "form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


class Benchmark(NamedTuple):
  """A public release. Field names with dots go into nested objects."""

  repository: str  # on the hub
  split: str
  rows: int  # of the release, repetitions left out: what a complete evaluation has
  prompt: str  # field
  answer: str  # field
  config: str | None = None  # the release's configuration, where it has several
  context: str = ""  # field of a text that stands before the prompt, where a row has one
  mark: str = ""  # the answer is what follows this in its field
  wrapped: bool = False  # the problem stands between DAPO_BEFORE and DAPO_AFTER
  repeated: bool = False  # rows are repeated


BENCHMARKS = {
  "aime2024": Benchmark("HuggingFaceH4/aime_2024", "train", 30, "problem", "answer"),
  "aime2025": Benchmark("math-ai/aime25", "test", 30, "problem", "answer"),
  "amc2023": Benchmark("math-ai/amc23", "test", 40, "question", "answer"),
  "math500": Benchmark("HuggingFaceH4/MATH-500", "test", 500, "problem", "answer"),
  "minerva": Benchmark("math-ai/minervamath", "test", 272, "question", "answer"),
  "olympiadbench": Benchmark(
    "Hothan/OlympiadBench",
    "train",
    674,
    "question",
    "final_answer",
    "OE_TO_maths_en_COMP",
    context="context",
  ),
  "gsm8k": Benchmark("openai/gsm8k", "test", 1319, "question", "answer", "main", mark="####"),
  "gsm8k_train": Benchmark(
    "openai/gsm8k", "train", 7473, "question", "answer", "main", mark="####"
  ),
  "dapo_math_17k": Benchmark(
    "BytedTsinghua-SIA/DAPO-Math-17k",
    "train",
    17391,
    "prompt",
    "reward_model.ground_truth",
    wrapped=True,
    repeated=True,
  ),
}


def names(path: str) -> list[str]:
  """The benchmarks, files or "tasks" of a path, which may have several with commas between."""
  return [name.strip() for name in path.split(",")]


def label(name: str) -> str:
  """What a benchmark or file is called in metrics: its name without folders and ending."""
  return (
    name if name == TASKS or name in BENCHMARKS else re.split(r"[/\\]", name)[-1].rpartition(".")[0]
  )


def is_path(path: str) -> bool:
  """Whether a `data.path` or `eval.path` is what `EXPECTED` says; whether its files exist is found
  by opening them."""
  given = names(path)
  labels = {label(name) for name in given}
  return path == TASKS or (
    len(labels) == len(given) and all(x in BENCHMARKS or x.endswith(FILES) for x in given)
  )


EXPECTED = (
  f'"{TASKS}", or a file that ends in {" or ".join(FILES)}, or one of {", ".join(BENCHMARKS)}; or '
  "several files and names, each once, with commas between"
)


def hub_rows(name: str, folder: str) -> Iterator[tuple[str, Row]]:
  """Yields (where, row) of a benchmark from the Hugging Face hub.

  Raises ValueError that says what to install, or what to download and where to put it: without
  `datasets`, offline without a copy of its own, or where the hub has no such release.
  """
  benchmark = BENCHMARKS[name]
  files = " or ".join(f"{folder}/{name}{ending}" for ending in FILES)
  config = f", configuration {benchmark.config}" if benchmark.config else ""
  page = f"https://huggingface.co/datasets/{benchmark.repository}"
  place = (
    f"or download the split {benchmark.split!r}{config} of {page} and put it at {files} "
    "(config.data.folder)"
  )
  try:
    import datasets
  except ImportError:
    raise ValueError(
      f"{name}: found no {files}: pip install datasets, to read it from the hub, {place}"
    ) from None
  try:
    found = datasets.load_dataset(benchmark.repository, benchmark.config, split=benchmark.split)
  except Exception as error:  # offline, refused, no such split: of many kinds, from many libraries
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    raise ValueError(
      f"{name}: found no {files}, and {benchmark.repository} cannot be had from the hub "
      f"({reason}): go online, {place}"
    ) from None
  number = 0
  for columns in found.iter(batch_size=1000):
    for values in zip(*columns.values(), strict=True):
      number += 1
      yield (
        f"{benchmark.repository}, {benchmark.split}: row {number}",
        dict(zip(columns, values, strict=True)),
      )


def read(name: str, found: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
  """The (where, row) of a release as the package wants them: problem under "prompt", answer under
  "answer", the benchmark's name under "benchmark", and the release's other fields. Raises
  ValueError that names `where`, the fields found and those expected."""
  rows = ((where, read_row(name, row, where)) for where, row in found)
  return without_repetitions(name, rows) if BENCHMARKS[name].repeated else rows


def read_row(name: str, row: Row, where: str) -> Row:
  """One row of `read`."""
  benchmark = BENCHMARKS[name]
  prompt, answer = field(row, benchmark.prompt), field(row, benchmark.answer)
  if prompt is None or answer is None:
    raise ValueError(
      f"{where}: found the fields {', '.join(map(str, row))}, expected {benchmark.prompt} and "
      f"{benchmark.answer}, as {benchmark.repository} has them for {name}; a file with fields of "
      "its own is read where config.data.path or config.eval.path is the file, by "
      "config.data.prompt_key and answer_key"
    )
  prompt, answer = prompt_text(prompt, where), answer_text(answer, where)
  if benchmark.mark:
    before, mark, answer = answer.rpartition(benchmark.mark)
    answer = answer.strip()
    if not mark or not answer:
      raise ValueError(
        f"{where}: found the answer {show(before or answer)}, expected it after {benchmark.mark}"
      )
  if benchmark.wrapped:
    prompt = prompt.strip().removeprefix(DAPO_BEFORE).removesuffix(DAPO_AFTER).strip()
  if benchmark.context and (context := field(row, benchmark.context)):
    prompt = f"{context.strip()}\n\n{prompt}"
  return {**row, "prompt": prompt, "answer": answer, "benchmark": name}


def without_repetitions(name: str, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
  """The first row of each problem, in their order, less the problems that have rows with different
  answers: nothing says which of them is right. Logs how many rows were left out."""
  first: dict[str, tuple[str, Row]] = {}
  contradictory: set[str] = set()
  total = 0
  for where, row in rows:
    total += 1
    _, known = first.setdefault(row["prompt"], (where, row))
    if known["answer"] != row["answer"]:
      contradictory.add(row["prompt"])
  if total > len(first) - len(contradictory):
    logging.warning(
      "%s: %d of %d rows are repetitions and were left out, then %d of %d problems, whose rows "
      "have different answers",
      name,
      total - len(first),
      total,
      len(contradictory),
      len(first),
    )
  for prompt, found in first.items():
    if prompt not in contradictory:
      yield found
