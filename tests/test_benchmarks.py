"""Public benchmarks: their rows, where they are found, and every kind of bad input."""

import json
import pathlib
import sys
import types

import numpy as np
import pytest

from v05_jax import benchmarks, config, data
from v05_jax.configs import default
from v05_jax.models import tokenizer as tokenizers
from v05_jax.rewards import math as mathematics

DATA = pathlib.Path(__file__).parent / "data"
OWN = DATA / "benchmarks"  # problems of our own in the releases' fields: README.md there
# Answers, and the last line of a response that has each right, and one that has not.
ANSWERS = {
  "aime2024": [("043", "43", "34"), ("033", "33", "3")],
  "aime2025": [(r"540^\circ", "540", "54"), ("85", "85", "58")],
  "amc2023": [("9.0", "9", "8")],
  "math500": [
    (r"\frac{5}{4}", "1.25", "1.2"),
    (r"\left( \sqrt{2}, \frac{\pi}{4} \right)", r"(\sqrt2,\pi/4)", "1"),
  ],
  "minerva": [
    ("1e30", r"1.0 \times 10^{30}\,\text{kg}", r"10^{29}"),
    ("1e-18", r"10^{-18}", r"2 \times 10^{-18}"),
  ],
  "olympiadbench": [
    ("2, -2", r"x=-2 \text{ or } x=2", "2"),
    ("(2,3), (2,5), (3,5)", "(3,5),(2,5),(2,3)", "(2,3)"),
  ],
  "gsm8k": [("294", "294", "21"), ("70,000", "70000", "70")],
  "gsm8k_train": [("20", "20", "5")],
  "dapo_math_17k": [("45", "45", "54"), ("81", "81", "9"), ("7", "7", "8")],
  "svamp": [("45", "45", "17"), ("72", "72", "18")],
  "svamp_train": [("5", "5", "36")],
  "asdiv": [("42", "42", "8"), ("14, 7", "7, 14", "14"), ("3.33", "3.33", "3")],
  "mawps": [("1500", "1500", "900")],
  "mawps_train": [("0.3", "0.3", "0.7")],
}


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizers.load(DATA / "math" / "model")


def settings(path, folder=OWN, **keys):
  c = default.get_config().data
  c.update({"path": path, "folder": str(folder), **keys})
  return c


def load(tokenizer, path, folder=OWN, shuffle=False, max_prompt=512, **keys):
  return data.load(settings(path, folder, **keys), tokenizer, max_prompt, shuffle=shuffle)


def test_every_benchmark_has_a_sample():
  assert set(ANSWERS) == set(benchmarks.BENCHMARKS) == {file.stem for file in OWN.glob("*.jsonl")}


@pytest.mark.parametrize("name", ANSWERS)
def test_rows_of_each_release(tokenizer, name):
  dataset = load(tokenizer, name)
  assert [row["answer"] for row in dataset.rows] == [answer for answer, _, _ in ANSWERS[name]]
  assert {row["benchmark"] for row in dataset.rows} == {name}
  own = {
    key for line in (OWN / f"{name}.jsonl").read_text().splitlines() for key in json.loads(line)
  }
  for i, (row, (_, right, wrong)) in enumerate(zip(dataset.rows, ANSWERS[name])):
    assert row.keys() == own | {"prompt", "answer", "benchmark"}
    verdicts = [
      mathematics.verify(row["prompt"], rf"So it is \boxed{{{answer}}}.", row)
      for answer in (right, wrong)
    ]
    assert verdicts == [1, 0]
    text = tokenizer.decode(dataset.tokens[dataset.start[i] : dataset.start[i + 1]])
    ask = r"Please reason step by step, and put your final answer within \boxed{}."
    assert text.startswith(f"<|im_start|>user\n{row['prompt']}\n\n{ask}<|im_end|>"), text


def test_dapo_is_rid_of_its_instructions_and_repetitions(tokenizer, monkeypatch):
  said = []
  monkeypatch.setattr(
    benchmarks.logging, "warning", lambda text, *values: said.append(text % values)
  )
  rows = load(tokenizer, "dapo_math_17k", shuffle=True).rows
  assert (
    rows[0]["prompt"] == "Let $n$ be the number of pairs $(a,b)$ of digits with $a<b$. Find $n$."
  )
  assert [row["extra_info"]["index"] for row in rows] == ["own-0", "own-1", "own-4"]
  assert not any("Answer:" in row["prompt"] for row in rows)
  (line,) = said
  assert line.startswith("dapo_math_17k: 3 of 7 rows are repetitions") and "1 of 4 problems" in line
  load(tokenizer, "gsm8k")
  assert len(said) == 1


def test_a_context_stands_before_its_question(tokenizer):
  first, second = load(tokenizer, "olympiadbench").rows
  assert first["prompt"] == "Solve $x^2=4$ for $x$."
  assert (
    second["prompt"] == "Let $p$ and $q$ be primes below $6$.\n\nFind all pairs $(p,q)$ with $p<q$."
  )


def test_word_problems_stand_in_one_line(tokenizer):
  prompts = [row["prompt"] for row in load(tokenizer, "svamp,asdiv").rows]
  assert prompts[:3] == [
    "Lena has 31 stamps and buys 14 more. How many stamps does she have now?",
    "A baker fills 6 trays with 12 rolls each. How many rolls does he have?",
    "Two boats carry 17 and 25 people. How many people do they carry together?",
  ]


@pytest.mark.parametrize("name", ["svamp", "asdiv", "mawps", "gsm8k", "gsm8k_train", "aime2024"])
def test_a_copy_may_have_prompt_and_answer(tokenizer, tmp_path, name):
  (tmp_path / f"{name}.jsonl").write_text(
    '{"prompt": "There are 3 (of 7). How many?", "answer": "3 (of 7)", "formula": "3"}\n'
    '{"prompt": "Two and two?", "answer": 4}\n'
  )
  first, second = load(tokenizer, name, tmp_path).rows
  assert (first["prompt"], first["formula"]) == ("There are 3 (of 7). How many?", "3")
  assert (second["answer"], second["benchmark"]) == ("4", name)
  assert first["answer"] == "3 (of 7)"


def test_several_sources_one_after_another(tokenizer, tmp_path):
  mine = tmp_path / "mine.jsonl"
  mine.write_text('{"prompt": "1+1=", "answer": 2}\n' * 3)
  dataset = load(tokenizer, f"aime2024, {mine},gsm8k", size=2)
  assert [row["benchmark"] for row in dataset.rows] == ["aime2024"] * 2 + ["mine"] * 2 + [
    "gsm8k"
  ] * 2
  text = lambda i: tokenizer.decode(dataset.tokens[dataset.start[i] : dataset.start[i + 1]])
  assert (
    "boxed" in text(1)
    and "boxed" in text(4)
    and text(2).startswith("<|im_start|>user\n1+1=<|im_end|>")
  )
  # training takes them whole
  assert len(load(tokenizer, f"aime2024,{mine}", size=1, shuffle=True)) == 5
  assert "boxed" not in tokenizer.decode(
    load(tokenizer, "aime2024", template="{prompt} Think.").tokens
  )


class Hub:
  """What `datasets.load_dataset` gives, for the samples."""

  def __init__(self, error=None):
    self.error, self.asked = error, []

  def load_dataset(self, repository, name=None, split=None):
    self.asked.append((repository, name, split))
    if self.error:
      raise self.error
    key = {(b.repository, b.config, b.split): key for key, b in benchmarks.BENCHMARKS.items()}[
      repository, name, split
    ]
    rows = [json.loads(line) for line in (OWN / f"{key}.jsonl").read_text().splitlines()]
    batches = lambda batch_size: (
      {field: [row[field] for row in rows] for field in rows[0]} for _ in range(1)
    )
    return types.SimpleNamespace(iter=batches)


@pytest.mark.parametrize("name", ["olympiadbench", "gsm8k", "dapo_math_17k"])
def test_the_hub_is_asked_where_no_file_is(tokenizer, monkeypatch, tmp_path, name):
  hub = Hub()
  monkeypatch.setitem(sys.modules, "datasets", hub)
  found, benchmark = load(tokenizer, name, tmp_path), benchmarks.BENCHMARKS[name]
  assert hub.asked == [(benchmark.repository, benchmark.config, benchmark.split)]
  assert found.rows == load(tokenizer, name).rows and len(hub.asked) == 1
  np.testing.assert_array_equal(found.tokens, load(tokenizer, name).tokens)


def test_a_parquet_copy_serves_as_well(tokenizer, tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  rows = [json.loads(line) for line in (OWN / "dapo_math_17k.jsonl").read_text().splitlines()]
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "dapo_math_17k.parquet")
  assert load(tokenizer, "dapo_math_17k", tmp_path).rows == load(tokenizer, "dapo_math_17k").rows


# --- Bad input


@pytest.mark.parametrize(
  ("module", "message"),
  [
    (
      None,
      r"gsm8k: found no FOLDER/gsm8k.jsonl or FOLDER/gsm8k.parquet: pip install datasets, .* or "
      r"download the "
      r"split 'test', configuration main of https://huggingface.co/datasets/openai/gsm8k and put "
      r"it at FOLDER",
    ),
    (
      Hub(ConnectionError("no route")),
      r"gsm8k cannot be had from the hub \(ConnectionError: no route\): go online",
    ),
    (Hub(FileNotFoundError("no such set")), r"Error: no such set\): go online"),
    (Hub(ValueError("Unknown split")), r"\(ValueError: Unknown split\): go online"),
  ],
)
def test_without_a_copy_the_error_says_what_to_do(
  tokenizer, monkeypatch, tmp_path, module, message
):
  monkeypatch.setitem(sys.modules, "datasets", module)
  with pytest.raises(ValueError, match=message.replace("FOLDER", str(tmp_path))):
    load(tokenizer, "gsm8k", tmp_path)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    (
      "aime2024",
      '{"Problem": "1", "Answer": 2}',
      r"aime2024.jsonl:1: found the fields Problem, Answer, expected problem and answer, as "
      r"HuggingFaceH4/aime_2024",
    ),
    (
      "aime2024",
      '{"problem": "1", "answer": "2"}\n{"problem": "1"}',
      r"2024.jsonl:2: found the fields problem, exp",
    ),
    (
      "dapo_math_17k",
      '{"prompt": "1", "reward_model": {"label": 1}}',
      r"17k.jsonl:1: .* expected .*ground_truth",
    ),
    (
      "gsm8k",
      '{"question": "1", "answer": "So it is 42."}',
      r"jsonl:1: found the answer 'So it is 42.', .* ####",
    ),
    (
      "gsm8k",
      '{"question": "1", "answer": "It is\\n#### "}',
      r"gsm8k.jsonl:1: found the answer .* it after ####",
    ),
    (
      "olympiadbench",
      '{"question": "1", "final_answer": []}',
      r"olympiadbench.jsonl:1: found \[\] as answer",
    ),
    (
      "olympiadbench",
      '{"question": "1", "final_answer": ["2", null]}',
      r"jsonl:1: found \['2', None\] as answer",
    ),
    ("math500", '{"problem": "", "answer": "2"}', r"math500.jsonl:1: found '' as prompt"),
    ("math500", "", r"math500: found no row"),
    ("svamp", '{"prompt": "1"}', r"svamp.jsonl:1: found the fields prompt, .* or prompt and"),
    ("svamp", '{"prompt": "1", "answer": ""}', r"svamp.jsonl:1: found '' as answer"),
    ("mawps", '{"prompt": 1, "answer": "2"}', r"mawps.jsonl:1: found 1 as prompt"),
    ("math500", '{"problem"', r"math500.jsonl:1: .* not JSON"),
  ],
)
def test_bad_files_are_named(tokenizer, tmp_path, name, content, message):
  (tmp_path / f"{name}.jsonl").write_text(content)
  with pytest.raises(ValueError, match=message):
    load(tokenizer, name, tmp_path)


@pytest.mark.parametrize(
  "path",
  [
    "aime24",
    "AIME2024",
    "aime2024,aime2024",
    "aime2024,",
    "tasks,gsm8k",
    "reasoning_gym:",
    "reasoning_gym:a,",
    "reasoning_gym:a,a",
    "reasoning_gym:a,b/a.jsonl",
    "reasoning_gym:a b",
    "gsm8k,chain_sum",
    "a/x.jsonl,b/x.parquet",
    "rows.csv",
    "",
    " ",
  ],
)
def test_unknown_and_repeated_names_list_the_known_ones(tokenizer, path):
  c = default.get_config()
  c.eval.path = path
  names = (
    r"one of aime2024, aime2025, amc2023, math500, minerva, olympiadbench, gsm8k.* each "
    r"once, with commas"
  )
  with pytest.raises(ValueError, match=rf"eval.path: found '{path}', expected .*{names}"):
    config.validate(c)
  with pytest.raises(ValueError, match=names):
    load(tokenizer, path)


def test_what_paths_may_be():
  for path in (
    "tasks",
    "aime2024",
    "aime2024, math500",
    "a/x.jsonl",
    "gs://a/x.parquet,gsm8k",
    "reasoning_gym:chain_sum",
    "reasoning_gym:chain_sum, leg_counting,gsm8k,a/x.jsonl",
  ):
    assert benchmarks.is_path(path), path
  path = "x.jsonl, reasoning_gym:a, b,reasoning_gym:c,gsm8k,gs://y.jsonl"
  assert benchmarks.names(path) == ["x.jsonl", "reasoning_gym:a,b,c", "gsm8k", "gs://y.jsonl"]
  assert [benchmarks.gym_tasks(x) for x in benchmarks.names(path)[:2]] == [[], ["a", "b", "c"]]
  assert data.label(path) == "x+a+b+c+gsm8k+y"
  assert [benchmarks.label(x) for x in ("gsm8k", "a/b.c.jsonl", "gs://a/x.parquet")] == [
    "gsm8k",
    "b.c",
    "x",
  ]
