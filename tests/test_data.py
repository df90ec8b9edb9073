"""Data: order and resumption, padding, every kind of row and of bad input."""

import json

import numpy as np
import pytest

from tests import support
from v05_jax import data, row_files, tasks
from v05_jax.configs import default

CHAT = (
  "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
  return support.character_tokenizer(tasks.CHARACTERS, 32)


@pytest.fixture
def load(tmp_path, tokenizer):
  """load(lines or bytes or None, name=..., max_prompt=..., shuffle=..., **config.data keys)."""

  def run(content=None, name="rows.jsonl", max_prompt=16, shuffle=True, seed=0, **keys):
    config = default.get_config().data
    if content is not None:
      if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content).encode()
      (tmp_path / name).write_bytes(content)
      config.path = str(tmp_path / name)
    config.update(keys)
    return data.load(config, tokenizer, max_prompt, seed=seed, shuffle=shuffle)

  return run


def numbered(n):
  return [{"prompt": str(i), "answer": str(i), "id": i} for i in range(n)]


def ids(prompts):
  return [row["id"] for row in prompts.rows]


def test_each_epoch_is_another_permutation(load):
  dataset = load(numbered(40))
  epochs = [ids(dataset.at(40 * e, 40)) for e in range(4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(40))
  assert len({tuple(epoch) for epoch in epochs}) == 4 and list(range(40)) not in epochs
  assert ids(load(numbered(40), seed=1).at(0, 40)) != epochs[0]


def test_the_digest_is_that_of_the_rows_in_their_order(load):
  rows = numbered(6)
  digest = load(rows).digest
  assert len(digest) == 16 and digest == load(rows, name="a-copy.jsonl").digest
  changed = {
    "an answer": [rows[0] | {"answer": "7"}, *rows[1:]],
    "a prompt": [rows[0] | {"prompt": "7"}, *rows[1:]],
    "another field": [rows[0] | {"id": 7}, *rows[1:]],
    "the order": [rows[1], rows[0], *rows[2:]],
    "a row twice": [rows[0], rows[0], *rows[2:]],
    "a row less": rows[1:],
  }
  found = {name: load(other).digest for name, other in changed.items()}
  found["the template"] = load(rows, template="0{prompt}").digest
  assert len({digest, *found.values()}) == 1 + len(found), found


def test_a_fresh_dataset_continues_where_another_stopped(load):
  steps, cursor, continued = [3, 7, 5, 9, 4, 8], 0, []
  first = load(numbered(10))
  for n in steps:  # crosses epochs inside a batch
    prompts = first.at(cursor, n, 9)
    again = load(numbered(10)).at(cursor, n, 9)
    for a, b in zip(
      (prompts.tokens, prompts.length, prompts.position),
      (again.tokens, again.length, again.position),
    ):
      np.testing.assert_array_equal(a, b)
    assert prompts.rows == again.rows
    assert prompts.position[:n].tolist() == list(range(cursor, cursor + n))
    continued += ids(prompts)
    cursor += n
  assert continued == ids(first.at(0, cursor))
  assert all(sorted(continued[i : i + 10]) == list(range(10)) for i in (0, 10, 20))


def test_the_order_is_the_one_that_earlier_runs_used():
  # Part of what a seed means: a run resumed after an upgrade must go on in the same order.
  assert data.order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
  assert data.order(8, 3, 1).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]


def test_batches_are_padded_with_masked_rows(load, tokenizer):
  dataset = load(
    [{"prompt": "12", "answer": "1"}, {"prompt": "123=", "answer": "2"}], shuffle=False
  )
  prompts = dataset.at(0, 2, pad_to=4)
  assert prompts.tokens.shape == (4, 16) and prompts.tokens.dtype == np.int32
  assert prompts.length.tolist() == [2, 4, 1, 1] and prompts.mask.tolist() == [
    True,
    True,
    False,
    False,
  ]
  assert prompts.tokens[1, :4].tolist() == tokenizer("123=")["input_ids"]
  assert not prompts.tokens[0, 2:].any() and not prompts.tokens[2:].any()
  assert [row["answer"] for row in prompts.rows] == ["1", "2"]
  assert dataset.at(0, 2).mask.tolist() == [True, True]
  with pytest.raises(ValueError, match=r"3 prompts .* batch of 2"):
    dataset.at(0, 3, pad_to=2)


def test_built_in_tasks(load):
  dataset = load(path="tasks", split="validation", size=60, families=("add", "mod"), shuffle=False)
  assert dataset.rows == tasks.rows("validation", 60, 0, ("add", "mod"))
  assert dataset.at(0, 60).rows == tuple(dataset.rows)


def test_evaluation_takes_its_own_path_split_and_size(load):
  config = default.get_config()
  config.eval.update({"path": "tasks", "split": "validation", "size": 7})
  found = data.eval_config(config)
  assert (found.path, found.split, found.size, found.seed) == ("tasks", "validation", 7, 0)
  assert (config.data.split, config.data.size) == ("train", 16384)
  assert ids(load(numbered(30), shuffle=False, size=5).at(0, 5)) == list(range(5))
  assert len(load(numbered(30), shuffle=False, size=5)) == 5
  assert len(load(numbered(30), size=5)) == 30  # training takes the whole file


DAPO = {
  "data_source": "math_dapo",
  "prompt": [{"content": "1+1=", "role": "user"}],
  "ability": "MATH",
  "reward_model": {"ground_truth": "2", "style": "rule"},
  "extra_info": {"index": "x"},
}


@pytest.mark.parametrize(
  ("row", "keys", "prompt", "answer"),
  [
    ({"prompt": "1", "answer": "2"}, {}, "1", "2"),
    ({"question": "1", "answer": "2"}, {}, "1", "2"),
    ({"problem": "1", "solution": "2"}, {}, "1", "2"),
    ({"problem": "1", "solution": "3", "answer": 2}, {}, "1", "2"),
    ({"problem": "1", "solution": "3", "answer": 2.5}, {"answer_key": "solution"}, "1", "3"),
    (
      {"prompt": "0", "text": "1", "answer": "3", "meta": {"a": "2"}},
      {"prompt_key": "text", "answer_key": "meta.a"},
      "1",
      "2",
    ),
    (DAPO, {}, "1+1=", "2"),
  ],
)
def test_fields_are_found_and_the_others_kept(load, row, keys, prompt, answer):
  found = load([row], **keys).rows[0]
  assert (found["prompt"], found["answer"]) == (prompt, answer)
  assert found == {**row, "prompt": prompt, "answer": answer}


def test_parquet_holds_the_same_rows(load, tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  rows = [DAPO | {"extra_info": {"index": str(i)}} for i in range(5)]
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
  assert load(path=str(tmp_path / "rows.parquet")).rows == load(rows).rows
  parquet.write_table(pa.Table.from_pylist([DAPO, {"prompt": None}]), tmp_path / "rows.parquet")
  with pytest.raises(ValueError, match=r"rows.parquet: row 2: found no prompt"):
    load(path=str(tmp_path / "rows.parquet"))


def test_template_and_chat_template(load, tokenizer, tmp_path):
  rows = [{"prompt": "1{}2".replace("{}", "+"), "answer": "3"}]
  text = lambda dataset: tokenizer.decode(dataset.tokens)
  assert text(load(rows, template="A{prompt}=")) == "A1+2="
  assert text(load(rows, template="({prompt})%{prompt}")) == "(1+2)%1+2"
  tokenizer.chat_template = CHAT
  try:
    assert text(load(rows, template="A{prompt}")) == "<A1+2>="
    assert text(load(rows, template="A{prompt}", chat_template=False)) == "A1+2"
    # the tasks' prompts are whole
    assert "<" not in text(load(path="tasks", size=6, template="A{prompt}"))
  finally:
    tokenizer.chat_template = None
  # rewards see the row's own prompt
  assert load(rows, template="A{prompt}=").rows[0]["prompt"] == "1+2"


GOOD = b'{"prompt": "1", "answer": "2"}\n'


@pytest.mark.parametrize(
  ("content", "keys", "message"),
  [
    (None, {"path": "nowhere/rows.jsonl"}, r"config.data.path: nowhere/rows.jsonl does not exist"),
    (
      None,
      {"path": "rows.csv"},
      r"'rows.csv', expected \"tasks\", or a file that ends in .jsonl or .parquet",
    ),
    (b"", {}, r"rows.jsonl: found no row"),
    (b"\n  \n", {}, r"rows.jsonl: found no row"),
    (GOOD + b"{'prompt'}\n", {}, r"rows.jsonl:2: found .*, which is not JSON"),
    (GOOD + b"\n" + GOOD + b"{", {}, r"rows.jsonl:4: .* not JSON"),
    (GOOD + b'{"prompt": "\xff", "answer": "2"}\n', {}, r"rows.jsonl:2: .* not JSON"),
    (GOOD + b"[1, 2]\n", {}, r"rows.jsonl:2: found \[1, 2\], expected a JSON object"),
    (
      GOOD + b'{"answer": "2", "text": "1"}\n',
      {},
      r"rows.jsonl:2: found no prompt among the fields answer, text",
    ),
    (GOOD + b'{"prompt": "1"}\n', {}, r"rows.jsonl:2: found no answer among the fields prompt"),
    (GOOD + b'{"prompt": "1", "answer": null}\n', {}, r"rows.jsonl:2: found no answer"),
    (GOOD + b'{"prompt": "1", "answer": ""}\n', {}, r"rows.jsonl:2: found '' as answer"),
    (GOOD + b'{"prompt": "1", "answer": true}\n', {}, r"rows.jsonl:2: found True as answer"),
    (GOOD + b'{"prompt": " ", "answer": "1"}\n', {}, r"rows.jsonl:2: found ' ' as prompt"),
    (GOOD + b'{"prompt": 3, "answer": "1"}\n', {}, r"rows.jsonl:2: found 3 as prompt"),
    (
      GOOD + b'{"prompt": [], "answer": "1"}\n',
      {},
      r"rows.jsonl:2: found \[\] as prompt, .* one user message",
    ),
    (
      b'{"prompt": [{"role": "system", "content": "1"}], "answer": "1"}',
      {},
      r"rows.jsonl:1: .* one user message",
    ),
    (
      GOOD,
      {"prompt_key": "text"},
      r"rows.jsonl:1: found no prompt .* config.data.prompt_key = 'text'",
    ),
    (
      GOOD,
      {"answer_key": "a.b"},
      r"rows.jsonl:1: found no answer .* config.data.answer_key = 'a.b'",
    ),
    (
      GOOD + b'{"prompt": "what?", "answer": "2"}\n',
      {},
      r"rows.jsonl:2: the tokenizer cannot encode",
    ),
    (
      GOOD + b'{"prompt": "123456", "answer": "2"}\n' + b'{"prompt": "1234567", "answer": "2"}\n',
      {"max_prompt": 5},
      r"rows.jsonl:2: the prompt has 6 tokens, .*max_prompt = 5; 2 of 3 .* raise "
      r"config.sampler.max_prompt to 7",
    ),
    (
      None,
      {"path": "tasks", "max_prompt": 4},
      r"row 1 of the built-in tasks: .* raise config.sampler.max_prompt",
    ),
  ],
)
def test_bad_input_is_named(load, content, keys, message):
  with pytest.raises(ValueError, match=message):
    load(content, **keys)


def test_bad_files_are_named(load, tmp_path, monkeypatch):
  (tmp_path / "folder.jsonl").mkdir()
  with pytest.raises(ValueError, match=r"folder.jsonl is a folder"):
    load(path=str(tmp_path / "folder.jsonl"))
  with pytest.raises(ValueError, match=r"rows.parquet: found no readable parquet file"):
    load(b"not parquet", name="rows.parquet")
  (tmp_path / "rows.jsonl").write_bytes(GOOD)

  def refuse(*_):
    raise PermissionError("Permission denied")

  monkeypatch.setattr(row_files, "_read_jsonl", refuse)
  with pytest.raises(ValueError, match=r"rows.jsonl: cannot be read \(Permission denied\)"):
    load(path=str(tmp_path / "rows.jsonl"))


def test_a_selection_keeps_positions_and_rows(load):
  """What names a prompt's rollouts (its position) and its past (its row) goes with it; the rest is
  padding."""
  dataset = load(numbered(40))
  pool = dataset.at(37, 8)  # over the end of an epoch
  np.testing.assert_array_equal(pool.row, ids(pool))
  taken = data.take(pool, np.array([1, 6]), 4)
  np.testing.assert_array_equal(taken.mask, [True, True, False, False])
  np.testing.assert_array_equal(taken.position[:2], [38, 43])
  np.testing.assert_array_equal(taken.row[:2], pool.row[[1, 6]])
  np.testing.assert_array_equal(taken.tokens[:2], pool.tokens[[1, 6]])
  np.testing.assert_array_equal(taken.length, [pool.length[1], pool.length[6], 1, 1])
  assert taken.rows == (pool.rows[1], pool.rows[6])
  assert dataset.rows[taken.row[1]] is taken.rows[1]
