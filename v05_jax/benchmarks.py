r"""The public sets of problems that runs train on and are evaluated by: where each lies and what
its rows look like.

A benchmark is named in `config.data.path` or `config.eval.path`. Its rows come from NAME.jsonl or
NAME.parquet in `config.data.folder` where that exists, and else from the Hugging Face hub by the
library `datasets`, which keeps a copy of its own. Both have the fields of the public release; a
file may have "prompt" and "answer" instead, which are then taken as they stand.

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
  SVAMP and ASDiv have the story and the question in two fields.
  ASDiv's answers have units, "9 (apples)", which are left out, and a few have several parts with
    semicolons between, all of which are wanted; about 220 of 2,305 are no single number.
  SVAMP is one set of 1,000 problems; train and test are the hub's. MAWPS is read from Calc-mawps,
    whose default configuration has taken out of train what comes again in other sets.
"""

from collections.abc import Iterable, Iterator
import re
from typing import NamedTuple

from absl import logging

from v05_jax.rows import Row, answer_text, field, prompt_text, show

TASKS = "tasks"  # the path of the built-in tasks
GYM = "reasoning_gym:"  # before the names of its tasks
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
  # a word problem: its context stands in the same line, its answer may have units or several parts
  words: bool = False


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
  "svamp": Benchmark(
    "ChilleD/SVAMP", "test", 300, "Question", "Answer", context="Body", words=True
  ),
  "svamp_train": Benchmark(
    "ChilleD/SVAMP", "train", 700, "Question", "Answer", context="Body", words=True
  ),
  "asdiv": Benchmark(
    "EleutherAI/asdiv",
    "validation",
    2305,
    "question",
    "answer",
    "asdiv",
    context="body",
    words=True,
  ),
  "mawps": Benchmark("MU-NLPC/Calc-mawps", "test", 520, "question", "result", words=True),
  "mawps_train": Benchmark("MU-NLPC/Calc-mawps", "train", 1089, "question", "result", words=True),
}


def names(path: str) -> list[str]:
  """The sources of a path: benchmarks, files, "tasks", or "reasoning_gym:" with its tasks.

  Commas stand between sources, and between the tasks of reasoning-gym, whose prefix goes on to the
  next file or benchmark: "reasoning_gym:a,b,gsm8k" is ["reasoning_gym:a,b", "gsm8k"].
  """
  found: list[str] = []
  for name in (part.strip() for part in path.split(",")):
    other = name in BENCHMARKS or name == TASKS or name.endswith(FILES)
    if found and found[-1].startswith(GYM) and not other:
      found[-1] += "," + name.removeprefix(GYM).strip()
    else:
      found.append(name)
  return found


def gym_tasks(name: str) -> list[str]:
  """The tasks of reasoning-gym that a source names; none where it is another one."""
  if not name.startswith(GYM):
    return []
  return [task.strip() for task in name.removeprefix(GYM).split(",")]


def label(name: str) -> str:
  """What a source is called in metrics: a file's name without folders and ending; the tasks of
  reasoning-gym, each of which is called by its own name, with + between."""
  if tasks := gym_tasks(name):
    return "+".join(tasks)
  return (
    name if name == TASKS or name in BENCHMARKS else re.split(r"[/\\]", name)[-1].rpartition(".")[0]
  )


def is_path(path: str) -> bool:
  """Whether a `data.path` or `eval.path` is what `EXPECTED` says; whether its files and tasks exist
  is found by opening them."""
  given = names(path)
  labels = [text for name in given for text in gym_tasks(name) or [label(name)]]
  known = (
    all(re.fullmatch(r"\w+", task) for task in gym_tasks(name))
    if name.startswith(GYM)
    else name in BENCHMARKS or name.endswith(FILES)
    for name in given
  )
  return path == TASKS or (len(set(labels)) == len(labels) and all(known))


EXPECTED = (
  f'"{TASKS}", or a file that ends in {" or ".join(FILES)}, or one of {", ".join(BENCHMARKS)}; or '
  f'several files and names, each once, with commas between; or "{GYM}" and names of its tasks, '
  "each once, with commas between"
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
  "answer", the benchmark's name under "benchmark", and the release's other fields.

  A row without the release's fields but with "prompt" and "answer" is taken as it stands. Raises
  ValueError that names `where`, the fields found and those expected.
  """
  rows = ((where, read_row(name, row, where)) for where, row in found)
  return without_repetitions(name, rows) if BENCHMARKS[name].repeated else rows


def read_row(name: str, row: Row, where: str) -> Row:
  """One row of `read`."""
  benchmark = BENCHMARKS[name]
  prompt, answer = field(row, benchmark.prompt), field(row, benchmark.answer)
  if prompt is None or answer is None:
    return _plain_row(name, row, where)
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
  if benchmark.context and (context := str(field(row, benchmark.context) or "").strip()):
    ended = "" if context.endswith((".", "?", "!", ",", ":", ";")) else "."
    prompt = f"{context}{ended} {prompt}" if benchmark.words else f"{context}\n\n{prompt}"
  answer = word_answer(answer) if benchmark.words else answer
  return {**row, "prompt": prompt, "answer": answer, "benchmark": name}


def _plain_row(name: str, row: Row, where: str) -> Row:
  """A row that has "prompt" and "answer" instead of the release's fields."""
  prompt, answer, benchmark = row.get("prompt"), row.get("answer"), BENCHMARKS[name]
  if prompt is None or answer is None:
    raise ValueError(
      f"{where}: found the fields {', '.join(map(str, row))}, expected {benchmark.prompt} and "
      f"{benchmark.answer}, as {benchmark.repository} has them for {name}, or prompt and answer; a "
      "file with fields of its own is read where config.data.path or config.eval.path is the file, "
      "by config.data.prompt_key and answer_key"
    )
  prompt, answer = prompt_text(prompt, where), answer_text(answer, where)
  return {**row, "prompt": prompt, "answer": answer, "benchmark": name}


def word_answer(answer: str) -> str:
  """A word problem's answer without its units and its release's ways of writing numbers: "9
  (apples)" is 9, "145.0" is 145, "1_200" is 1200; "5 (years); 15 (years)" is "5, 15"."""
  parts = [re.sub(r"\s*\([^()]*\)$", "", part.strip()) or part for part in answer.split(";")]
  parts = [re.sub(r"(?<=\d)_(?=\d)", "", part) for part in parts]
  return ", ".join(re.sub(r"^(-?\d+)\.0+$", r"\1", part.strip()) for part in parts)


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
