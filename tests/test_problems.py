"""Problems of reasoning-gym: options, splits, the same rows in every process, its verifiers, and
every kind of bad input. Tests that draw problems need the package, an extra."""

import functools
import json
import re
import subprocess
import sys

import pytest

from tests import support
from v05_jax import benchmarks, config, data, problems, rewards, setup, tasks
from v05_jax.configs import default
from v05_jax.rewards import process
from v05_jax.rewards import reasoning_gym as verifiers

EASY = "chain_sum.min_terms=2,chain_sum.max_terms=3,chain_sum.max_digits=2"


@pytest.fixture
def gym():
  return pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


@pytest.fixture(scope="module")
def tokenizer():
  characters = "".join(map(chr, range(32, 127))) + "\n"
  return support.character_tokenizer(characters, 128)


def settings(path="reasoning_gym:chain_sum", **keys):
  c = default.get_config().data
  c.update({"path": path, "size": 40, "options": EASY if "chain_sum" in path else "", **keys})
  return c


@functools.lru_cache
def draw(**keys):
  c = settings(**keys)
  return [row for _, row in problems.rows(problems.named(c.path), c)]


def prompts(**keys):
  return [row["prompt"] for row in draw(**keys)]


# --- What is drawn


def test_prompts_belong_to_their_split_and_sizes_are_prefixes(gym):
  drawn = {(split, 0): prompts(split=split) for split in tasks.SPLITS}
  drawn["train", 1] = prompts(seed=1)
  for key, texts in drawn.items():
    assert len(set(texts)) == 40, key
    assert {tasks.split_of(text) for text in texts} == {key[0]}
  assert len({*drawn["train", 0]} & {*drawn["train", 1]}) < 10  # another seed, other problems
  assert prompts(size=7) == drawn["train", 0][:7]


def test_tasks_take_turns_and_have_their_own_name(gym, tokenizer):
  path = "reasoning_gym:chain_sum,leg_counting,spell_backward"
  for shuffle in (True, False):
    rows = data.load(settings(path, size=8), tokenizer, 1000, shuffle=shuffle).rows
    assert [row["benchmark"] for row in rows] == (path.split(":")[1].split(",") * 3)[:8]
  assert rows[3]["options"] == {"min_terms": 2, "max_terms": 3, "max_digits": 2}
  assert rows[4]["options"] == {} and json.loads(json.dumps(rows)) == rows


def test_it_stands_beside_files(gym, tokenizer, tmp_path):
  mine = tmp_path / "mine.jsonl"
  mine.write_text('{"prompt": "1+1=", "answer": 2}\n' * 3)
  path = f"{mine},reasoning_gym:chain_sum"
  rows = data.load(settings(path, size=2), tokenizer, 1000, shuffle=False).rows
  assert [row["benchmark"] for row in rows] == ["mine"] * 2 + ["chain_sum"] * 2
  assert data.label(path) == "mine+chain_sum"


def test_every_process_draws_the_same(gym):
  """list_functions draws from Python's own stream, polynomial_multiplication goes through a set."""
  path = "reasoning_gym:list_functions,polynomial_multiplication"
  program = f"""
from tests import test_problems
print(test_problems.json.dumps(test_problems.draw(path={path!r}, size=8)))
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=500
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1]) == draw(path=path, size=8)


def test_a_small_task_gives_what_it_has(gym, monkeypatch):
  said = []
  monkeypatch.setattr(problems.logging, "warning", lambda text, *values: said.append(text % values))
  options = "chain_sum.max_terms=2,chain_sum.max_digits=1"
  rows = draw(path="reasoning_gym:chain_sum,leg_counting", options=options, size=600)
  names = [row["benchmark"] for row in rows]
  assert 120 < names.count("chain_sum") < 200 and names.count("leg_counting") == 300
  assert len({row["prompt"] for row in rows}) == len(rows)
  assert re.search(r"reasoning_gym:chain_sum: found \d+ problems, of 300 wanted", said[0])


def test_evaluation_draws_held_out_problems(gym, tokenizer):
  c = default.get_config()
  c.data = settings()
  c.eval.update({"path": "reasoning_gym:chain_sum", "size": 40})
  rows = data.load(data.eval_config(c), tokenizer, 1000, shuffle=False).rows
  assert [row["prompt"] for row in rows] == prompts(split="heldout")


# --- What it is worth


def test_its_own_verifiers_run_in_the_workers(gym):
  c = default.get_config()
  c.update({"reward": "reasoning_gym"})
  c.data = settings("reasoning_gym:chain_sum,mini_sudoku,gsm_symbolic", size=3, options="")
  rows = [row for _, row in problems.rows(problems.named(c.data.path), c.data)]
  total, grid, symbolic = rows
  cases = [
    (total, total["answer"], 1.0),
    (total, f"I think\n{total['answer']}\n", 1.0),
    (total, f"<answer> {total['answer']} </answer> is what it is.", 1.0),
    (total, f"<answer>1</answer><answer>{total['answer']}.0</answer>", 1.0),
    (total, f"{total['answer']}\nor not", 0.0),
    (total, "", 0.0),
    (grid, grid["answer"], 1.0),  # several lines
    (grid, f"Here it is: <answer>{grid['answer']}</answer>", 1.0),
    (symbolic, symbolic["answer"], 1.0),
  ]
  with rewards.load(c) as verifier:
    handles = verifier.submit(*zip(*((row["prompt"], text, row) for row, text, _ in cases)))
    verdicts = [handle.result(120) for handle in handles]
  assert [verdict.reward for verdict in verdicts] == [worth for _, _, worth in cases]


def test_a_verifier_that_raises_gives_nothing(gym):
  (row,) = draw(path="reasoning_gym:prime_factorization", size=1)
  assert verifiers.verify("", row["answer"], row) == 1.0
  assert verifiers.verify("", "banana", row) == 0.0


def test_no_verifier_evaluates_a_response(gym, tmp_path):
  mark = tmp_path / "mark"
  rows = draw(path="reasoning_gym:" + ",".join(verifiers.EVALUATE), size=len(verifiers.EVALUATE))
  for task, row in zip(verifiers.EVALUATE, rows, strict=True):
    code = f"__import__('pathlib').Path({str(mark)!r}).touch() or [['0']]"
    assert verifiers.verify("", f"<answer>{code}</answer>", row) < 1.0
    assert not mark.exists(), task
    assert verifiers.verify("", row["answer"], row) == 1.0
    if task == "spiral_matrix":  # a list is still read
      assert 0 < verifiers.verify("", str(row["answer"].split()), row) < 1


@pytest.mark.long
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_task_takes_its_own_answer(gym, split):
  from reasoning_gym.factory import DATASETS

  slow = {"futoshiki", "knight_swap", "sokoban"}
  wrong = []
  names = sorted(set(DATASETS) - {"composite"} - slow)
  rows = json.loads(
    json.dumps(
      draw(path="reasoning_gym:" + ",".join(names), size=2 * len(names), split=split, options="")
    )
  )
  for task in names:
    known = [row for row in rows if row["benchmark"] == task and row["answer"]]
    worth = [verifiers.verify("", f"<answer>{row['answer']}</answer>", row) for row in known]
    wrong += [task] * (min(worth, default=1.0) < 1)
  assert not wrong


# --- Bad input


@pytest.mark.parametrize(
  ("path", "options", "message"),
  [
    (
      "reasoning_gym:chain_sums",
      "",
      r"reasoning_gym:chain_sums: found no such task .*, the nearest are chain_sum, .*",
    ),
    ("reasoning_gym:leg_counting,zzz", "", r"reasoning_gym:zzz: found no such task.* ab, "),
    (
      "reasoning_gym:chain_sum",
      "chain_sum.max_term=3",
      r"config.data.options: found chain_sum.max_term, expected one of min_terms, max_terms, .* "
      r"did you mean max_terms\?",
    ),
    (
      "reasoning_gym:chain_sum",
      "chain_sum.min_terms=5,chain_sum.max_terms=3",
      r"config.data.options: found chain_sum.min_terms=5, chain_sum.max_terms=3, which the task "
      r"refuses: max_terms must be >= min_terms",
    ),
    (
      "reasoning_gym:chain_sum",
      "chain_sum.max_terms=many",
      r"config.data.options: found chain_sum.max_terms='many', which the task refuses",
    ),
    ("reasoning_gym:chain_sum", "chain_sum.seed=3", r"found chain_sum.seed, expected one of min_"),
  ],
)
def test_bad_tasks_and_options_are_named(gym, path, options, message):
  c = default.get_config()
  c.data = settings(path, options=options)
  c.update({"reward": "reasoning_gym"})
  c.eval.period = 0
  c.policy.path = "nowhere"  # found before a model is opened
  with pytest.raises(ValueError, match=message):
    setup.setup(c)
  c.eval.path, c.data.path = path, "reasoning_gym:leg_counting"
  with pytest.raises(ValueError, match=message):
    problems.check(c)


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  c = default.get_config()
  c.data = settings()
  message = r"reasoning_gym:chain_sum needs the package .*: pip install reasoning-gym, or .* extra"
  with pytest.raises(ValueError, match=message):
    problems.check(c)


def test_a_task_that_fails_or_hangs_is_named(gym, monkeypatch):
  prompts = lambda: [*problems.rows(["chain_sum"], settings())]
  monkeypatch.setattr(process, "BOOT", "import sys; sys.exit(3)")
  with pytest.raises(ValueError, match=r"reasoning_gym:chain_sum: the process .* ended"):
    prompts()
  monkeypatch.setattr(process, "BOOT", "import time; time.sleep(600)")
  monkeypatch.setattr(problems, "LONGEST_WAIT", 0.2)
  with pytest.raises(ValueError, match=r"reasoning_gym:chain_sum: found no problem within 0.2 s"):
    prompts()


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", {}),
    (" ", {}),
    (EASY, {"chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 2}}),
    ("a.b = (1, 2), a.c=[0.5,1] ,d.e=True", {"a": {"b": (1, 2), "c": [0.5, 1]}, "d": {"e": True}}),
    ("a.b=1,", {"a": {"b": (1,)}}),
    ("a.b=1,c", {"a": {"b": "1,c"}}),
    ("a.b=words here,a.c='x=1, y'", {"a": {"b": "words here", "c": "x=1, y"}}),
  ],
)
def test_options_are_read(text, expected):
  assert problems.read_options(text) == expected


@pytest.mark.parametrize("text", ["max_terms=3", "a.b", "a.b=", "a.b=1,a.b=2", ".b=1", "=", "a"])
def test_options_of_another_form_are_refused(text):
  c = default.get_config()
  c.data.options = text
  with pytest.raises(ValueError, match=r"data.options: found .* expected TASK.OPTION=VALUE"):
    config.validate(c)


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"reward": "reasoning_gym"}, r'data.path: found \'tasks\', expected "reasoning_gym:"'),
    (
      {"reward": "reasoning_gym", "data.path": "gsm8k"},
      r'data.path: found \'gsm8k\', expected "reasoning_gym:" and names of its tasks, since',
    ),
    (
      {"reward": "reasoning_gym", "data.path": "reasoning_gym:a,gsm8k"},
      r"data.path: found 'reasoning_gym:a,gsm8k', expected",
    ),
    (
      {"reward": "reasoning_gym", "data.path": "reasoning_gym:a", "eval.path": "gsm8k"},
      r"eval.path: found 'gsm8k', expected",
    ),
    (
      {"data.path": "reasoning_gym:a"},
      r"reward: found 'task', expected \"math\", \"expression\", \"reasoning_gym\"",
    ),
    (
      {"reward": "math", "data.path": "reasoning_gym:a", "data.options": "a.x=1,b.x=1"},
      r"data.options: found 'a.x=1,b.x=1', expected options of tasks that .*, which b is not",
    ),
    (
      {"reward": "math", "eval.path": "reasoning_gym:a,b", "eval.size": 1, "eval.samples": 1},
      r"eval.size: found 1, expected at least 2, a problem of each task",
    ),
    ({"sampler.top_p": 0.9}, "eval.samples: found 0, expected at least 1, since no success is ex"),
    ({"data.families": ("chain",)}, "eval.samples: found 0, expected at least 1, since no success"),
    ({"reward": "expresion"}, r"reward: .* expected task, math, expression, reasoning_gym or mod"),
  ],
)
def test_keys_that_do_not_fit_each_other(keys, message):
  c = default.get_config()
  c.update_from_flattened_dict(keys)
  with pytest.raises(ValueError, match=message):
    config.validate(c)


def test_what_fits():
  c = default.get_config()
  c.update_from_flattened_dict(
    {
      "reward": "reasoning_gym",
      "data.path": "reasoning_gym:a",
      "eval.path": "reasoning_gym:b",
      "eval.samples": 1,
      "data.options": "a.x=1,b.x=2",
    }
  )
  config.validate(c)
  assert problems.named(c.data.path) == ["a"] and benchmarks.is_path("reasoning_gym:a,b,gsm8k")
