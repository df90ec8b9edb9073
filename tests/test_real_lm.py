"""The experiment on a real language model: its problems, configs, results and tables."""

import importlib.util
import json

import numpy as np
import pytest

from experiments.real_lm import plan, results, run, table, words
from v05_jax import config as configuration
from v05_jax.run.evaluate import Result

WITH_PROBLEMS = importlib.util.find_spec("reasoning_gym") is not None


def problem(text, answer="5", **more):
  return {"prompt": text, "answer": answer, **more}


# --- Problems


def test_near_duplicates_of_the_test_are_taken_out_of_everything_that_is_trained_on():
  test = (
    "Ann has 3 red apples in a large basket and buys 2 more apples at the market. How many now?"
  )
  near = test.replace("3", "17").replace("Ann", "Bob")
  far = "A train with 9 wagons leaves the station, and 4 of its wagons stay behind. How many go on?"
  asdiv = [problem(near, "19", formula="17+2=19"), problem(far, "5", formula="9 - 4")]
  asdiv += [
    problem(f"Story {i} of its own about {'xyzw'[i % 4] * (i + 2)} things", str(i))
    for i in range(words.VALIDATED + 40)
  ]
  svamp = [problem(f"Filler {'ab'[i % 2] * (i % 97 + 1)} number {i}") for i in range(700)]
  found = words.split(asdiv, [problem(near), problem(far)], [*svamp, problem(test)] * 300)
  texts = {name: [row["prompt"] for row in getattr(found, name)] for name in words.NAMES}
  assert test in texts["test"] and len(texts["validation"]) > 100
  assert near not in texts["train"] + texts["sft"] + texts["validation"]
  assert found.removed["train: near duplicates"] > 0
  assert texts["train"].count(far) + texts["validation"].count(far) <= 1
  assert all(row["response"] == "9 - 4" for row in found.sft)


def test_two_texts_are_near_by_their_words_not_by_their_numbers():
  one, other = "a b c d 1 e f", "A, b c d 22 e f?"
  index = {triple: [0] for triple in words.triples(one)}
  assert words.nearest(words.triples(other), index, [len(words.triples(one))]) == 1
  assert words.nearest(words.triples("g h i j"), index, [5]) == 0


def test_a_demonstration_is_worth_the_answer():
  assert words.demonstration(problem("p", "16", formula="9 + 7 = 16")) == "9 + 7"
  assert words.demonstration(problem("p", "15", formula="9 + 7 = 16")) == ""
  assert words.demonstration(problem("p")) == ""


def test_a_folder_has_all_of_svamp_or_is_refused(tmp_path):
  (tmp_path / "svamp.jsonl").write_text(json.dumps(problem("p")) + "\n")
  with pytest.raises(ValueError, match=r"svamp.jsonl: found 1 problems, expected all 1000"):
    words.read(str(tmp_path), "svamp")


# --- Configs


@pytest.mark.parametrize("method", plan.METHODS)
def test_every_method_is_a_valid_config(tmp_path, method):
  for name in words.NAMES:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(problem("p")) + "\n")
  c = plan.training(plan.Task("words", method, 3, 1e-5), tmp_path, "builtin")
  configuration.validate(c)
  assert (c.seed, c.optimizer.learning_rate) == (3, 1e-5) and method in plan.TITLES
  assert c.num_steps * c.rollouts_per_step == 2560
  assert plan.heldout(c, "words", tmp_path).eval.path.endswith("test.jsonl")
  assert c.eval.path.endswith("validation.jsonl")


# --- Results and tables


def record(method, seed, end, rate=3e-5, arena="tasks", curve=((0, 0.2), (64, 0.3))):
  judged = lambda mean: {
    "mean": list(mean),
    "pass": [float(x > 0) for x in mean],
    "length": 3.0,
    "truncated": 0.0,
  }
  return {
    **plan.Task(arena, method, seed, rate)._asdict(),
    "rollouts": 64,
    "seconds": {"time/sample": 2.0, "time/update": 3.0},
    "curve": [list(x) for x in curve],
    "last": dict.fromkeys(results.KEPT),
    "before": judged([0.0, 0.5]),
    "after": judged(end),
  }


def keep(folder, *records):
  for x in records:
    file = results.path(folder, plan.Task(*(x[key] for key in plan.Task._fields)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(x))


def test_the_table_pairs_seeds_and_problems(tmp_path):
  ends = {"v05": [[0.5, 1.0], [0.75, 0.75]], "grpo16": [[0.25, 1.0], [0.5, 0.5]]}
  keep(tmp_path, *(record(m, i, end) for m, found in ends.items() for i, end in enumerate(found)))
  text = table.write(tmp_path)
  assert "| V0.5, 4 | 2 | 3e-05 | 0.250 | 0.750 | +0.500 ± 0.000 |" in text
  # seeds: .125 and .25, mean .1875, half 12.706 * .0625; problems: .25 and .125
  assert "| V0.5, 4 | +0.188 ± 0.794 [+0.125, +0.250] |" in text


def test_rates_are_chosen_by_the_tuning_seed_once_all_were_tried(tmp_path):
  tried = lambda rate, height: record(
    "v05", plan.TUNING_SEED, [0, 0], rate, curve=((0, 0.9), (64, height))
  )
  keep(tmp_path, tried(1e-5, 0.2), tried(3e-5, 0.3), record("grpo4", 0, [1, 1], 1e-4))
  assert results.rate(tmp_path)("tasks", "v05") == plan.RATE
  keep(tmp_path, tried(1e-4, 0.4))
  assert results.rate(tmp_path)("tasks", "v05") == 1e-4
  assert results.rate(tmp_path)("words", "v05") == plan.RATE
  assert "| V0.5, 4 |" not in table.write(tmp_path)


def test_a_result_keeps_what_the_tables_need(tmp_path):
  shape = (2, 4)
  rows = tuple(problem(str(i)) for i in range(2))
  result = Result(
    rows,
    np.full(2, np.nan),
    np.array([[1.0, 0, 0, 0], [0.25] * 4]),
    np.full(shape, 3),
    np.ones(shape, bool),
    np.full(shape, "", object),
  )
  lines = [{"step": 0, "rollouts": 0, "eval/mean": 0.25}]
  lines += [
    {"step": i, "rollouts": 8 * i, "time/sample": 1.5, "loss/entropy": float(i)}
    for i in range(1, 8)
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  task = plan.Task("words", "v05", 0, 3e-5)
  results.write(tmp_path, task, tmp_path, result, result)
  (found,) = results.read(tmp_path)
  assert found["after"] == {"mean": [0.25, 0.25], "pass": [1, 0], "length": 3, "truncated": 0}
  assert found["rollouts"] == 56 and found["seconds"]["time/sample"] == 10.5
  assert found["last"]["loss/entropy"] == 5 and found["last"]["prior/mse"] is None
  assert found["curve"] == [[0, 0.25]]


# --- All of it


@pytest.mark.long
def test_all_of_it_with_the_built_in_policy(tmp_path, monkeypatch):
  """The arena `words` with the built-in model, which knows digits and signs alone."""
  for name in ("asdiv", "mawps", "svamp"):
    count = words.SVAMP if name == "svamp" else 300
    rows = [
      problem(f"{i % 13}+{i // 13}={'=' * (len(name) + i % 3)}", str(i % 13 + i // 13))
      | {"formula": f"{i % 13}+{i // 13}"}
      for i in range(count)
    ]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
  monkeypatch.setattr(words, "NEAR", 1.1)
  base = plan.base

  def small(arena, data):
    c = base(arena, data)
    c.data.template, c.cpu_devices = "{prompt}", 1
    c.sampler.update({"slots": 16, "open_prompts": 16, "prefill": 8})
    c.num_steps, c.rollouts_per_step = 2, 16
    c.sft.update({"steps": 2, "batch": 8})
    return c

  monkeypatch.setattr(plan, "base", small)
  monkeypatch.setattr(plan, "HELDOUT", {"words": 8})
  monkeypatch.setattr(run, "HERE", tmp_path)
  monkeypatch.setattr(run, "policy", lambda: "builtin")
  task = plan.Task("words", "v05", 1, 1e-5)
  run.play(task, tmp_path / "work", str(tmp_path))
  assert "| V0.5, 4 | 1 |" in table.write(tmp_path)
  assert not (tmp_path / "work" / "words" / task.name / "checkpoints").exists()
