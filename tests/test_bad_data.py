"""Data files that are wrong: every one is refused as it is read, with file and line or row."""

import json
import re

import pytest

from tests import support
from v05_jax import data, models, row_files, tasks
from v05_jax.configs import default
from v05_jax.run import runs

NAN, INFINITY = float("nan"), float("inf")
GOOD = {"prompt": "1+1=", "answer": "2"}
# (field, what is said of it, values)
FIELDS = [
  (
    "max_tokens",
    "as max_tokens, expected a whole number from 1 to 2147483647, or null",
    [NAN, "none", INFINITY, -INFINITY, {}, 10**20, -1, 0, True, False, 1e30, "many", 1.5, [], [4]]
    + ["64", -5, 2**31],
  ),
  ("family", "as family, expected a text", [["x"], {}, 3, True, NAN, "\ud800"]),
  ("benchmark", "as benchmark, expected a text", [["x"], 1.5, False]),
  ("level", "as level, expected a text, a finite number", [NAN, [1], {"a": 1}, True, ""]),
  (
    "answer",
    "as answer, expected a text that is not empty, a finite number, or a list",
    [NAN, INFINITY, -INFINITY, True, False, {}, {"value": 2}, "", " \n", [], [NAN], [True], [[2]]]
    + [[""], ["2", None], "\udfff"],
  ),
  ("answer", "found no answer among the fields", [None]),
  ("prompt", "found no prompt among the fields", [None]),
  (
    "prompt",
    "as prompt, expected a text",
    [3, NAN, True, {}, "", " ", "\n\t", [], {"role": "user", "content": "1"}, "1\ud83d"],
  ),
  (
    "prompt",
    "expected a text that is not empty, in messages .* that end with one user message",
    [
      ["1+1="],
      [["user", "1"]],
      [{}],
      [{"role": "user"}],
      [{"content": "1"}],
      [{"role": "user", "content": None}],
      [{"role": "user", "content": ""}],
      [{"role": "user", "content": 3}],
      [{"role": "user", "content": [{"type": "text", "text": "1"}]}],
      [{"role": 1, "content": "1"}],
      [{"role": "system", "content": " "}, {"role": "user", "content": "1"}],
    ],
  ),
  (
    "prompt",
    "expected a text or messages .* that end with one user message",
    [
      [{"role": "system", "content": "1"}],
      [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
    ],
  ),
  ("prompt", "tokenizer cannot encode the prompt", ["what?", "1é", "<eos>", "1<pad>"]),
  ("prompt", "the prompt has 17 tokens, expected at most", ["1" * 17]),
]
ROWS = [
  (f"{key}={json.dumps(value)}"[:60], json.dumps(GOOD | {key: value}).encode(), words)
  for key, words, values in FIELDS
  for value in values
]
LINES = [
  ("torn", b'{"prompt": "1+1=", "answer": "2"', "not JSON: .* in column 33"),
  ("two", b'{"prompt": "1"} {"answer": "2"}', "not JSON"),
  ("quotes", b"{'prompt': '1', 'answer': '2'}", "not JSON"),
  ("comma", b'{"prompt": "1", "answer": "2",}', "not JSON"),
  ("text", b"1+1=2", "not JSON"),
  ("csv", b"prompt,answer", "not JSON"),
  ("a list", b"[1, 2]", "expected a JSON object"),
  ("a number", b"3", "expected a JSON object"),
  ("null", b"null", "expected a JSON object"),
  ("a string", b'"1"', "expected a JSON object"),
  ("NaN", b"NaN", "expected a JSON object"),
  ("latin-1", '{"prompt": "é", "answer": "2"}'.encode("latin-1"), "not JSON"),
  ("utf-16", '{"prompt": "1", "answer": "2"}'.encode("utf-16"), "not JSON"),
  ("zeros", b"\0" * 100, "not JSON"),
  ("gzip", b"\x1f\x8b\x08\x00 1234", "not JSON"),
  ("deep list", b"[" * 100_000, "not JSON"),
  (
    "deep answer",
    b'{"prompt": "1", "answer": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not JSON",
  ),
  ("deep object", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not JSON"),
  ("a number of many digits", b'{"prompt": "1", "answer": ' + b"9" * 5000 + b"}", "not JSON"),
  ("1e999", b'{"prompt": "1", "answer": 1e999}', "found inf as answer"),
  (
    "a key twice",
    b'{"prompt": "1", "answer": "2", "answer": "3"}',
    "the key 'answer' is there twi",
  ),
  ("a key twice inside", b'{"prompt": "1", "answer": "2", "m": {"a": 1, "a": 1}}', "key 'a' is"),
  ("no fields", b"{}", "found no prompt"),
  ("other names", b'{"input": "1", "output": "2"}', "found no prompt among the fields input"),
]
CASES = ROWS + LINES


@pytest.fixture(scope="module")
def tokenizer():
  return support.character_tokenizer(tasks.CHARACTERS, 32)


def load(tokenizer, path, **keys):
  config = default.get_config().data
  config.update({"path": str(path), **keys})
  return data.load(config, tokenizer, 16)


@pytest.mark.parametrize("line, words", [x[1:] for x in CASES], ids=[x[0] for x in CASES])
def test_a_bad_line_is_named(tokenizer, tmp_path, line, words):
  file = tmp_path / "rows.jsonl"
  file.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
  with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}:3: ") as error:
    load(tokenizer, file)
  assert re.search(words, str(error.value)) and len(str(error.value)) < 600


@pytest.mark.parametrize(
  "fields",
  [
    {"max_tokens": 1},
    {"max_tokens": 64.0},
    {"max_tokens": None, "family": None, "benchmark": None, "level": None},
    {"family": "sums", "level": 3, "other": NAN, "more": [{"a": None}]},
    {"level": "hard", "answer": 2},
    {"answer": -0.5},
    {"answer": [2, "3"]},
    {"prompt": [{"role": "user", "content": "1+1="}]},
  ],
)
def test_a_good_row_is_taken(tokenizer, tmp_path, fields):
  (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD | fields))
  (row,) = load(tokenizer, tmp_path / "rows.jsonl").rows
  assert row["prompt"] == "1+1=" and isinstance(row["answer"], str)
  assert row.get("max_tokens") == fields.get("max_tokens")
  assert isinstance(row.get("max_tokens"), int | None)


@pytest.fixture
def parquet(tmp_path):
  """parquet(table of columns) -> the path of a file with it."""
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  def write(columns):
    table = pa.table({name: pa.array(*column) for name, column in columns.items()})
    parquet.write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"

  return write


def columns(values, kind=None, name="answer"):
  import pyarrow as pa

  given = {"prompt": (["1", "1", "1"],), "answer": (["2", "2", "2"],)}
  return given | {name: (values, getattr(pa, kind)() if kind else None)}


@pytest.mark.parametrize(
  "values, kind, name, words",
  [
    ([2.0, NAN, 1.0], "float64", "answer", "row 2: found nan as answer"),
    ([2, None, 1], "int64", "answer", "row 2: found no answer"),
    ([b"2", b"\xff", b"1"], "binary", "answer", "row 1: found b'2' as answer"),
    ([True, False, True], "bool_", "answer", "row 1: found True as answer"),
    ([16.0, None, NAN], "float64", "max_tokens", "row 3: found nan as max_tokens"),
    ([16, 2**40, 3], "int64", "max_tokens", "row 2: found 1099511627776 as max_tokens"),
    ([["x"], ["y"], None], None, "family", r"row 1: found \['x'\] as family"),
  ],
)
def test_a_bad_row_of_a_parquet_file_is_named(tokenizer, parquet, values, kind, name, words):
  file = parquet(columns(values, kind, name))
  with pytest.raises(ValueError, match=rf"rows\.parquet: {words}"):
    load(tokenizer, file)


def test_text_of_a_parquet_file_that_is_not_utf_8_is_named(tokenizer, tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  texts = pa.Array.from_buffers(  # a column of strings whose third is no UTF-8
    pa.string(),
    3,
    [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"11\xff")],
  )
  table = pa.table({"prompt": texts, "answer": ["2", "2", "2"]})
  parquet.write_table(table, tmp_path / "rows.parquet")
  with pytest.raises(ValueError, match=r"rows\.parquet: row 3 cannot be read: .*utf-8"):
    load(tokenizer, tmp_path / "rows.parquet")


@pytest.mark.parametrize("keep", [0, 4, 100, -8, -1])
def test_a_torn_parquet_file_is_named(tokenizer, parquet, keep):
  file = parquet(columns(["2", "3", "4"]))
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r"rows\.parquet: found no readable parquet file"):
    load(tokenizer, file)


def test_damaged_pages_of_a_parquet_file_are_named(tokenizer, parquet):
  file = parquet(columns(["2", "3", "4"]))
  whole = bytearray(file.read_bytes())
  whole[4:60] = b"\xff" * 56
  file.write_bytes(whole)
  with pytest.raises(ValueError, match=r"rows\.parquet: row 1 cannot be read"):
    load(tokenizer, file)


def test_a_missing_file_is_blamed_on_the_key_that_names_it(tokenizer):
  with pytest.raises(ValueError, match=r"config\.data\.path: nowhere\.jsonl does not exist"):
    load(tokenizer, "nowhere.jsonl")
  config = default.get_config()
  config.eval.path = "nowhere.jsonl"
  with pytest.raises(ValueError, match=r"config\.eval\.path: nowhere\.jsonl does not exist"):
    data.load(data.eval_config(config), tokenizer, 16, shuffle=False, key="eval.path")


def test_what_is_mistyped_is_answered_with_what_stands_beside_it(tokenizer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "problems.jsonl").touch()
  (tmp_path / "warm").mkdir()
  for typed, meant in (
    ("problem.jsonl", "problems.jsonl"),
    ("./problems.json1", "./problems.jsonl"),
    (f"{tmp_path}/problms.jsonl", f"{tmp_path}/problems.jsonl"),
  ):
    with pytest.raises(ValueError) as error:
      list(row_files.read_file(typed))
    assert str(error.value) == f"config.data.path: {typed} does not exist, did you mean {meant}?"
  with pytest.raises(ValueError, match=r"warn is not a directory, did you mean .*warm\?"):
    models.folder("warn")
  with pytest.raises(ValueError, match=r"builtn is not a directory, did you mean \"builtin\"\?"):
    models.folder("builtn")
  with pytest.raises(ValueError, match=r"workdir warn: found no metrics.*, did you mean warm\?"):
    runs.load("warn")
  with pytest.raises(ValueError, match=r"workdir warm: found no metrics.jsonl, expected the"):
    runs.load("warm")
  with pytest.raises(ValueError, match=r"away/problems\.jsonl does not exist$"):
    list(row_files.read_file("away/problems.jsonl"))


@pytest.mark.parametrize(
  "path, words",
  [
    ("http://host/rows.jsonl", "found http://, expected a local path or gs://"),
    ("file:///rows.jsonl", "found file://, expected a local path"),
    ("s3://bucket/rows.jsonl", "nstall s3fs"),
    ("rows\0.jsonl", "found a zero byte"),
  ],
)
def test_an_address_that_cannot_be_read_is_blamed_on_its_key(tokenizer, path, words):
  with pytest.raises(ValueError, match=rf"^config\.data\.path: .*{words}"):
    load(tokenizer, path)


def test_the_users_folder(tokenizer, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
  assert len(load(tokenizer, "~/rows.jsonl")) == 1


def test_there_are_many_cases():
  assert len(CASES) + 13 >= 100
