"""(prompt, score) pairs on disk: what a run writes, what training reads, and what is refused."""

import json

import numpy as np
import pytest

from v05_jax.value_model import pairs

pytestmark = pytest.mark.usefixtures("few_devices")

ROW = {"id": 1, "dataset": "d", "model": "m", "step": 16, "score": 0.5, "type": "context"}


TEXTS = {"d_1": "one", "d_2": "two"}


def folder(path, rows=(ROW,), prompts=TEXTS, name="context.jsonl"):
  path.mkdir(exist_ok=True)
  (path / "prompts.json").write_text(json.dumps(prompts))
  (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_written_pairs_are_read_back(tmp_path):
  texts = ["1+1=", "2+2=", "Größe"]
  with pairs.Collector(tmp_path / "run", "tasks", texts) as collected:
    collected.write(0, np.array([2, 0]), np.array([0.5, -1.0]), np.array([4, 4]))
    collected.write(3, np.array([1]), np.array([1 / 3]), np.array([2]))
  found, contexts = pairs.read([tmp_path / "run" / "pairs"])
  assert found == ["Größe", "1+1=", "2+2="]
  assert [c.key[1:] for c in contexts] == [("tasks", "run", 0), ("tasks", "run", 3)]
  assert contexts[0].prompt.tolist() == [0, 1] and contexts[0].score.tolist() == [0.75, 0.0]
  np.testing.assert_allclose(contexts[1].score, [2 / 3], atol=1e-6)
  assert not contexts[0].type.any()
  assert len(pairs.read([tmp_path / "run" / "pairs"], window=4)[1]) == 1
  line = json.loads((tmp_path / "run" / "pairs" / "pairs.jsonl").read_text().split("\n")[0])
  assert line == ROW | {"id": 2, "dataset": "tasks", "model": "run", "step": 0, "rollouts": 4}


def test_a_resumed_run_cuts_off_what_it_will_write_again(tmp_path):
  with pairs.Collector(tmp_path, "d", ["a"]) as collected:
    for step in range(4):
      collected.write(step, [0], [1.0], [4])
  file = tmp_path / "pairs" / "pairs.jsonl"
  before = file.read_text()
  file.write_text(before + '{"id": 0, "da')  # torn by a kill
  with pairs.Collector(tmp_path, "d", ["a"], done=2) as collected:
    assert file.read_text() == "".join(before.splitlines(True)[:2])
    collected.write(2, [0], [1.0], [4])
    collected.write(3, [0], [1.0], [4])
  assert file.read_text() == before
  with pairs.Collector(tmp_path, "d", ["a"]):  # its checkpoints are gone: what was measured is not
    assert file.read_text() == "" and file.with_name("pairs.jsonl.old").read_text() == before


def test_the_public_format_with_marked_queries_and_two_folders(tmp_path):
  rows = [
    ROW,
    ROW | {"id": 2, "score": -1.0, "type": "train_query"},
    ROW | {"model": "other", "score": 0},
  ]
  a, b = folder(tmp_path / "a", rows), folder(tmp_path / "b", [ROW], {"d_1": "two"})
  texts, contexts = pairs.read([a, b])
  # the same names in another folder are another context
  assert texts == ["one", "two"] and len(contexts) == 3
  assert contexts[0].type.tolist() == [0, 1] and contexts[0].score.tolist() == [0.75, 0.0]
  assert [c.prompt.tolist() for c in contexts] == [[0, 1], [0], [1]]


def test_prompt_dict_of_the_public_data_is_taken_alone_and_beside_prompts(tmp_path):
  path = tmp_path / "data"
  folder(path, [ROW])
  (path / "prompts.json").rename(path / "prompt_dict.json")
  assert pairs.read([path])[0] == ["one"]
  (path / "prompts.json").write_text(json.dumps({"d_2": "two"}))
  (path / "more.jsonl").write_text(json.dumps(ROW | {"id": 2}))
  assert pairs.read([path])[0] == ["one", "two"]  # each of the two files holds one of them
  (path / "prompts.json").write_text(json.dumps({"d_2": "two", "d_1": "another"}))
  with pytest.raises(ValueError, match=r"prompt_dict\.json: d_1: found another text than in prom"):
    pairs.read([path])


@pytest.mark.parametrize(
  "row, message",
  [
    (ROW | {"id": 7}, r"line 1: found the prompt d_7, expected one that .*prompts.json holds"),
    (
      ROW | {"score": 1.5},
      r"context.jsonl, line 1: score: found 1.5, expected a mean reward in \[-1, 1\]",
    ),
    (ROW | {"score": "1"}, r"line 1: score: found '1', expected a number"),
    (ROW | {"step": True}, r"line 1: step: found True, expected a whole number"),
    (
      ROW | {"type": "x"},
      r"line 1: type: found 'x', expected one of context, train_query, test_query",
    ),
    ([1], r"line 1: id: found None, expected a whole number"),
  ],
)
def test_a_bad_line_of_pairs_is_named(tmp_path, row, message):
  with pytest.raises(ValueError, match=message):
    pairs.read([folder(tmp_path / "x", [row])])


def test_bad_folders_are_named(tmp_path):
  with pytest.raises(
    ValueError,
    match=r"nowhere: found no pairs, expected a folder with prompts\.json or prompt_dict\.json",
  ):
    pairs.read([tmp_path / "nowhere"])
  path = tmp_path / "x"
  folder(path)
  (path / "context.jsonl").write_text("{\n" + json.dumps(ROW))
  with pytest.raises(
    ValueError, match=r"context\.jsonl, line 1: found '\{', expected a JSON object"
  ):
    pairs.read([path])
  # no newline at the end: a whole line all the same
  (path / "context.jsonl").write_text(json.dumps(ROW))
  assert len(pairs.read([path])[1]) == 1
  (path / "prompts.json").write_text("[")
  with pytest.raises(ValueError, match=r"prompts\.json: found no JSON"):
    pairs.read([path])
  for damaged in (b'{"d_1": "\xff"}', b"[" * 100_000):
    (path / "prompts.json").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"prompts\.json: found no JSON"):
      pairs.read([path])
  (path / "prompts.json").write_text(json.dumps(TEXTS))
  (path / "context.jsonl").write_bytes(b'{"id": "\xff"}\n' + json.dumps(ROW).encode())
  with pytest.raises(ValueError, match=r"context\.jsonl, line 1: found .*, expected a JSON object"):
    pairs.read([path])
  (path / "context.jsonl").write_text(json.dumps(ROW))
  for text in ("", " ", "\ud800"):
    (path / "prompts.json").write_text(json.dumps(TEXTS | {f"d_{ROW['id']}": text}))
    with pytest.raises(ValueError, match=r"context\.jsonl, line 1: found .* as the prompt d_"):
      pairs.read([path])
  (path / "prompts.json").write_text('{"d_1": 3}')
  with pytest.raises(ValueError, match=r"prompts\.json: .*expected an object"):
    pairs.read([path])
