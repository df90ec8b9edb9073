"""The experiment on a real language model: its problems, plan, results, measurements and tables."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys
import time
import types

from absl import flags
import numpy as np
import pytest
import scipy.stats

from experiments.headline import tuning
from experiments.real_lm import (
  by_task,
  curve,
  measure,
  measured,
  pairing,
  paper,
  plan,
  play,
  results,
  run,
  table,
  words,
)
from v05_jax import config as configuration
from v05_jax.run.evaluate import Result

ROOT = Path(__file__).parent.parent


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
  for i in range(words.VALIDATED + 40):  # none of them near another
    word = "".join("abcdefghij"[int(digit)] for digit in str(i))
    text = " ".join(word + letter for letter in "pqrstuvw")
    asdiv.append(problem(text, formula="9 - 4"))
  svamp = [problem(f"Filler {'ab'[i % 2] * (i % 97 + 1)} number {i}") for i in range(700)]
  found = words.split(asdiv, [problem(near), problem(far)], [*svamp, *[problem(test)] * 300])
  texts = {name: [row["prompt"] for row in getattr(found, name)] for name in words.NAMES}
  assert test in texts["test"] and len(texts["validation"]) > 100
  assert near not in texts["train"] + texts["sft"] + texts["validation"]
  assert found.removed["train: near duplicates"] > 0
  assert texts["train"].count(far) + texts["validation"].count(far) <= 1
  assert found.sft and all(row["response"] == "9 - 4" for row in found.sft)


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


# --- The plan


@pytest.fixture
def nowhere(tmp_path):
  """A folder of prepared word problems."""
  for name in words.NAMES:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(problem("p")) + "\n")
  return tmp_path


@pytest.mark.parametrize("arena", plan.ARENAS)
@pytest.mark.parametrize("method", plan.METHODS)
def test_every_method_is_a_valid_config(nowhere, arena, method):
  c = plan.training(plan.Run(arena, method, 3, 1e-5), nowhere, "builtin", str(nowhere))
  configuration.validate(c)
  assert (c.seed, c.data.seed, c.optimizer.learning_rate) == (3, 3, 1e-5)
  # Rollouts decide, those that DAPO throws away included; steps are no shorter limit.
  assert c.num_rollouts == 2560 <= c.num_steps * c.rollouts_per_step
  assert {"pairs", "noise"} <= set(c.observe)
  k = {"grpo16": 16, "dapo16": 16, "spo": 1}.get(method, 1 if "twice" in method else None)
  assert c.budget.k_init == (k or (1 if method == "v05_plus" else 4))
  assert c.loss.epochs == (2 if "twice" in method or method == "v05_plus" else 1)


def test_what_is_evaluated_is_the_same_for_every_seed_and_no_part_of_training(nowhere):
  for arena in plan.ARENAS:
    evaluated = []
    for seed in plan.SEEDS:
      c = plan.training(plan.Run(arena, "v05", seed, 1e-5), nowhere, "builtin")
      heldout = plan.heldout(c, arena, nowhere)
      evaluated.append((heldout.data.seed, heldout.eval.to_dict(), heldout.data.options))
      assert (heldout.eval.split, heldout.eval.samples) == ("heldout", 8)
      assert c.eval.split == "validation" and c.data.split == "train"
      assert heldout.eval.size >= 299 and heldout.seed == seed  # samples are the seed's own
      assert c.eval.path.endswith("validation.jsonl") == (arena == "words")
      assert heldout.eval.path.endswith("test.jsonl") == (arena == "words")
    assert all(x == evaluated[0] for x in evaluated)


def test_the_same_seed_shares_data_and_warm_start_between_methods(nowhere):
  of = lambda method: plan.training(plan.Run("tasks", method, 2, 1e-5), nowhere, "start")
  for method in plan.FIRST:
    a, b = of("v05"), of(method)
    assert (a.seed, a.data.to_dict(), a.policy.path) == (b.seed, b.data.to_dict(), b.policy.path)
  starts = [plan.warm_start("tasks", seed, nowhere, "m") for seed in plan.SEEDS]
  assert len({c.seed for c in starts}) == len({c.data.seed for c in starts}) == 4
  assert not {c.data.seed for c in starts} & set(plan.SEEDS)


def test_the_recipe_is_what_the_headline_has_chosen(monkeypatch):
  monkeypatch.setattr(tuning, "load", lambda: {"recipe": "score_k1_twice"})
  assert plan.resolved("recipe") == "score_k1_twice" and plan.resolved("v05") == "v05"
  assert (
    plan.rate_of("score_k1_twice") == "score_k1_twice" and len(plan.seeds("score_k1_twice")) == 4
  )
  assert plan.rate_of("probe_k1_twice") == "v05_k1_twice" and len(plan.seeds("v05_plus")) == 2
  monkeypatch.setattr(tuning, "load", lambda: {"recipe": "spo_twice"})
  with pytest.raises(ValueError, match=r"rates.json: recipe: found 'spo_twice', expected one of"):
    plan.resolved("recipe")


def test_every_claim_is_of_methods_and_every_candidate_can_be_the_recipe():
  named = {x for pair in plan.PAIRS for x in pair} - {plan.RECIPE}
  assert named | {x for claim in paper.CLAIMS for x in claim[1:3]} <= set(plan.METHODS)
  assert plan.PAIRS[0] == ("v05", "grpo16")
  assert set(tuning.RECIPES) <= set(plan.METHODS)
  assert all(plan.rate_of(plan.rate_of(x)) == plan.rate_of(x) for x in plan.METHODS)


# --- The order of jobs


@pytest.fixture
def flagged():
  """Sets flags of run.py for a test."""
  before = {name: flags.FLAGS[name].value for name in FLAGS}
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  yield lambda **found: [setattr(flags.FLAGS, name, x) for name, x in found.items()]
  for name, value in before.items():
    setattr(flags.FLAGS, name, value)


FLAGS = "arenas", "stages", "only_methods", "seeds", "minutes", "scratch", "model_dir", "problems"


def test_the_first_comparison_comes_first_and_seeds_come_together(flagged):
  names = [(job.stage, job.arena, job.method, job.seed) for job in run.jobs()]
  stages = list(dict.fromkeys(x[:2] for x in names))
  assert [stage for stage, arena in stages[:3]] == ["tune", "first", "noise"]
  assert "".join(arena[0] for _, arena in stages) == "tttwwwttwwttww"
  first = [x[2:] for x in names if x[:2] == ("first", "tasks")]
  assert first[:2] == [("v05", 0), ("grpo16", 0)]
  assert [seed for _, seed in first] == sorted(seed for _, seed in first)
  assert len(first) == 4 * len(plan.FIRST)
  assert names.index(("value", "words", "", 0)) < names.index(("rest", "words", "v05_v0", 0))
  tuned = [x[2] for x in names if x[0] == "tune"]
  assert set(tuned) == set(plan.FIRST) and tuned.count("v05") == 2 * len(plan.RATES)
  flagged(stages=["first", "rest"], only_methods=["grpo4", "v05"], seeds=["1"], arenas=["words"])
  assert [job[:4] for job in run.jobs()] == [
    ("first", "words", "v05", 1),
    ("first", "words", "grpo4", 1),
  ]


@pytest.mark.parametrize(
  ("flag", "value"),
  [("arenas", "sums"), ("stages", "all"), ("only_methods", "ppo"), ("seeds", "x"), ("seeds", "9")],
)
def test_unknown_names_are_refused_before_anything_runs(flagged, flag, value):
  flagged(**{flag: [value]})
  with pytest.raises(ValueError, match=f"--{flag}: found '{value}', expected of "):
    run.jobs()


def test_a_job_that_fails_is_named_and_does_not_stop_the_others(
  flagged, tmp_path, monkeypatch, capsys
):
  keep(tmp_path, *tuning_runs("v05"), *tuning_runs("grpo16"))
  monkeypatch.setattr(run, "HERE", tmp_path)
  monkeypatch.setattr(run.fetch, "model", lambda folder: None)
  started = []

  def command(job):
    started.append(job.run.name)
    if job.method == "v05":
      return [sys.executable, "-c", "raise SystemExit(3)"]
    keep(tmp_path, record(job.method, job.seed, [1, 1], job.rate))
    return [sys.executable, "-c", ""]

  monkeypatch.setattr(run, "command", command)
  flagged(stages=["first"], arenas=["tasks"], only_methods=["v05", "grpo16", "grpo4"], seeds=["0"])
  failed = run.run(run.jobs())
  assert started == ["v05-0-3e-05", "grpo16-0-3e-05"]
  assert failed[0] == "tasks v05-0-3e-05: the process ended with 3; see above"
  assert failed[1].startswith(
    "tasks grpo4-0: found no learning rate of grpo4, expected one: --stag"
  )
  assert "3 of 3 jobs are left, about" in capsys.readouterr().out
  run.run(run.jobs())
  assert started[2:] == ["v05-0-3e-05"]  # what has a result is left alone


def test_what_is_measured_is_a_job_without_method_and_rate(flagged, tmp_path, monkeypatch):
  monkeypatch.setattr(run, "HERE", tmp_path)
  monkeypatch.setattr(run.fetch, "model", lambda folder: None)
  started = []

  def command(job):
    started.append(job.name)
    return [sys.executable, "-c", ""]

  monkeypatch.setattr(run, "command", command)
  flagged(stages=["noise", "value", "prior"], arenas=["tasks"])
  assert run.run(run.jobs()) == []
  assert started == ["tasks noise", "tasks value", "tasks prior"]


def test_a_result_of_another_plan_stops_everything_before_it_starts(flagged, tmp_path, monkeypatch):
  kept = record("v05", 0, [1, 1])
  kept["config"]["loss.epochs"] = 7
  keep(tmp_path, *tuning_runs("v05"), kept)
  monkeypatch.setattr(run, "HERE", tmp_path)
  flagged(stages=["first"], arenas=["tasks"], only_methods=["v05"], seeds=["0", "1"])
  with pytest.raises(
    ValueError, match=r"v05-0-3e-05.json: made by another plan: loss.epochs: found 7"
  ):
    run.run(run.jobs())


def test_a_job_whose_parent_is_gone_ends(tmp_path):
  """As SIGTERM ends it, so that a run saves its state first."""
  child = """
import pathlib, signal, sys, time
from experiments.real_lm import process
def ended(*_):
  pathlib.Path("ended").write_text("")
  sys.exit()
signal.signal(signal.SIGTERM, ended)
process.end_with_parent()
pathlib.Path("began").write_text("")
time.sleep(600)
"""
  parent = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}])
while not pathlib.Path("began").exists():
  time.sleep(0.05)
"""
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", parent]
  subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
  until = time.monotonic() + 300
  while not (tmp_path / "ended").exists():
    assert time.monotonic() < until, "the job went on without its parent"
    time.sleep(0.05)


# --- Results


def tuning_runs(method, arena="tasks", best=3e-5):
  """Tuning runs of which that of the rate `best` is highest."""
  return [
    record(method, plan.TUNING_SEED, None, rate, arena, end=0.4 if rate == best else 0.3)
    for rate in plan.RATES
  ]


def record(method, seed, evaluated, rate=3e-5, arena="tasks", end=0.3, seconds=100.0, **more):
  """A result of the plan: `evaluated` is the mean success of each held-out problem at the end."""
  one = plan.Run(arena, method, seed, rate)
  config = plan.training(one, Path("-"), "-", "-")
  of = lambda mean: {
    "mean": list(mean),
    "solved": [float(x >= 1) for x in mean],
    "pass": [float(x > 0) for x in mean],
    "length": 3.0,
    "truncated": 0.25,
    "benchmarks": {},
  }
  after = evaluated is not None
  kept = dict.fromkeys(results.KEPT, 0.5)
  return {
    **one._asdict(),
    "failed": "",
    "made": {},
    "config": results.matters(config),
    "rollouts": 2560,
    "steps": 20,
    "prompts": 640,
    "seconds": {"steps": seconds, "train": 2 * seconds, "start": 60.0, "judge": 20.0},
    "curve": [[0, 0.2, 0.0], [2560, end, seconds]],
    "first": kept,
    "last": kept,
    "judged": results.of_evaluation(plan.heldout(config, arena, Path("-"))) if after else None,
    "before": of([0.0, 0.5]) if after else None,
    "after": of(evaluated) if after else None,
    "problems": 1,
    **more,
  }


def keep(folder, *records):
  for x in records:
    file = results.path(folder, plan.Run(*(x[key] for key in plan.Run._fields)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(x))


def test_a_result_depends_on_what_matters_and_on_nothing_else(nowhere):
  one = plan.Run("tasks", "v05", 0, 3e-5)
  kept = json.loads(json.dumps(results.matters(plan.training(one, nowhere, "start"))))
  same = plan.training(one, Path("elsewhere"), "another/start")
  same.update_from_flattened_dict(
    {
      "sampler.slots": 16,
      "loss.micro_rows": 1,
      "cpu_devices": 1,
      "checkpoint.period": 1,
      "observe": ("exact",),
      "priors.probe.dimensions": 3,  # of a prior that is not in use
    }
  )
  assert results.changes(kept, same) == []
  kept["loss.gone"] = 1.0  # a key that there was
  del kept["loss.clip_dual"]  # and one that has come since, at its default
  assert results.changes(kept, same) == []
  for key, value in (
    ("loss.epochs", 2),
    ("loss.clip_dual", 3.0),
    ("priors.neighbours.bandwidth", 0.5),
    ("data.options", ""),
    ("num_rollouts", 100),
    ("eval.samples", 2),
  ):
    other = plan.training(one, nowhere, "start")
    other.update_from_flattened_dict({key: value})
    assert [x.split(":")[0] for x in results.changes(kept, other)] == [key]


def test_a_result_of_another_plan_is_named_and_not_averaged_over(tmp_path):
  other = record("v05", 1, [1, 1])
  other["config"]["budget.k_init"] = 8
  judged = record("v05", 2, [1, 1])
  judged["judged"]["eval.samples"] = 4
  keep(tmp_path, *tuning_runs("v05"), record("v05", 0, [0.5, 0.75]), other, judged)
  keep(tmp_path, record("v05", 3, [1, 1]) | {"method": "gone"})
  text = table.write(tmp_path)
  assert "| V0.5, 4 | 0 | 3e-05 | 2,560 | 0.250 | 0.625 | +0.375 [+0.250, +0.500] |" in text
  assert "v05-1-3e-05.json: made by another plan: budget.k_init: found 8, expected 4" in text
  assert "v05-2-3e-05.json: made by another plan: held out: eval.samples: found 4" in text
  assert "gone-3-3e-05.json: made by another plan: method: found 'gone'" in text
  assert "- tasks, V0.5, 4: no result of seed 1, 2, 3" in text


def test_a_file_that_is_no_result_is_named(tmp_path):
  keep(tmp_path, record("v05", 0, [1, 1]))
  file = tmp_path / "results" / "tasks" / "v05-0-3e-05.json"
  for text, found in (("{", "no JSON object"), ("{}", "found no after")):
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"v05-0-3e-05.json: found .*{found.split()[-1]}"):
      results.read(tmp_path)


def test_rates_are_chosen_by_the_tuning_runs_once_all_were_tried(tmp_path):
  low, middle, high = tuning_runs("v05", best=1e-4)
  assert results.rate([low, middle], "tasks", "v05") is None
  assert results.rate([low, middle, high], "tasks", "v05") == 1e-4
  assert results.rate([low, middle, high | {"failed": "diverged"}], "tasks", "v05") == 1e-5
  assert results.rate([low, middle, high], "tasks", "v05_constant") == 1e-4  # it takes V0.5's
  assert results.rate([low, middle, high], "words", "v05") is None
  assert results.rate([low, middle, high], "tasks", "v05_slow") == 1e-5  # as the plan says
  assert results.rate([low, middle, high], "tasks", "grpo4") is None
  keep(tmp_path, low, middle, high, record("v05", 0, [1, 1], 3e-5), record("v05", 1, [1, 1], 1e-4))
  text = table.write(tmp_path)
  assert "| V0.5, 4 | 1 | 0.0001 |" in text and "| 0.0001 (at the edge) |" in text
  assert "- tasks v05-0-3e-05: not at the learning rate that the tuning has found" in text


def test_a_result_keeps_what_the_tables_need(tmp_path):
  rows = tuple(problem(str(i)) | {"benchmark": "ab"[i]} for i in range(2))
  samples = np.array([[1.0, 0, 0, 0], [0.25] * 4])
  other = (
    np.full(samples.shape, 3),
    np.ones(samples.shape, bool),
    np.array([["5", "5 ", "7", "5"], ["1", "2", "3", "4"]], object),
  )
  evaluated = Result(rows, np.full(2, np.nan), samples, *other)
  lines = [{"step": 0, "rollouts": 0, "eval/mean": 0.25}]
  for i in range(1, 8):
    lines.append({"step": i, "rollouts": 8 * i, "loss/entropy": float(i), "time/step": 10.0})
    # The first step of a process compiles, as does the fifth, where it has been resumed; the third
    # is slow of itself.
    compilations = [9, 9, 22, 22, 7, 7, 7][i - 1]
    seconds = {1: 50.0, 3: 4.5, 5: 50.0}.get(i, 1.5)
    lines[-1]["prompts"] = 2.0
    lines[-1] |= {"time/sample": seconds, "time/update": 0.5, "time/compilations": compilations}
  lines[-1]["eval/mean"] = 0.5
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  one = plan.Run("tasks", "v05", 0, 3e-5)
  config = plan.training(one, tmp_path, "start")
  evaluations = plan.heldout(config, "tasks", tmp_path), evaluated, evaluated
  more = {"seconds": {"judge": 5.0, "start": 1.0}, "trained": "x", "failed": ""}
  results.write(tmp_path, one, tmp_path, config, evaluations, more)
  (found,) = results.read(tmp_path)
  assert results.stale(found) == []
  assert found["after"]["mean"] == [0.25, 0.25] and found["after"]["pass"] == [1, 0]
  assert found["after"]["solved"] == [0.25, 0]  # an answer that is right in part is not
  assert found["after"]["benchmarks"] == {"a": 0.25, "b": 0.25}
  assert found["after"]["answers"]["a"] == {"different": 2, "commonest": 0.75}
  assert found["after"]["answers"]["b"] == {"different": 4, "commonest": 0.25}
  assert (found["rollouts"], found["steps"], found["prompts"]) == (56, 7, 14)
  assert found["seconds"] == {
    "sample": 110.5,
    "update": 3.5,
    "steps": 17.0,
    "train": 70.0,
    "judge": 5.0,
    "start": 1.0,
  }
  assert found["first"]["loss/entropy"] == 1 and found["last"]["loss/entropy"] == 5
  assert found["last"]["prior/mse"] is None
  assert found["curve"] == [[0, 0.25, 0.0], [56, 0.5, 17.0]]


# --- Tables


def first_table(folder, ends):
  for method, found in ends.items():
    keep(folder, *tuning_runs(method))
    keep(folder, *(record(method, i, end) for i, end in found.items()))


def test_differences_are_paired_by_seed_and_by_problem(tmp_path):
  ends = {"v05": {0: [0.5, 1.0], 1: [0.75, 0.75]}, "grpo16": {0: [0.25, 1.0], 1: [0.5, 0.5]}}
  first_table(tmp_path, ends)
  text = table.write(tmp_path)
  # the gain: .5 in each seed; .375 and .625 of the two problems
  gain = "+0.500 ± 0.000 [+0.375, +0.625]"
  assert f"| V0.5, 4 | 0, 1 | 3e-05 | 2,560 | 0.250 | 0.750 | {gain} |" in text
  # seeds: .125 and .25, mean .1875, half 12.706 * .0625; problems: .25 and .125
  row = "| V0.5, 4 | GRPO, 16 | 0, 1 (missing: 2, 3) | +0.188 ± 0.794 | [+0.125, +0.250] |"
  assert row in text and "| no |" in text.split(row)[1].split("\n")[0]


def test_one_method_alone_has_no_table_of_differences(tmp_path):
  first_table(tmp_path, {"v05": {0: [0.5, 1.0]}})
  text = table.write(tmp_path)
  assert "## tasks: 480 held-out problems" in text and "### Differences" not in text
  assert "### Validation success at equal seconds" not in text and "### Learning rates" in text


def test_the_curve_has_the_methods_with_most_seeds_and_no_empty_panel(tmp_path):
  run = lambda method, number: {i: record(method, i, [1.0]) for i in range(number)}
  # pass_at_8 has no colour: its number of seeds says nothing about the others
  runs = {"v05": run("v05", 2), "grpo16": run("grpo16", 1), "pass_at_8": run("pass_at_8", 3)}
  assert [line[0] for line in curve.real(runs)] == ["V0.5, 4"]
  assert curve.real({"pass_at_8": runs["pass_at_8"]}) == []
  curve.draw({"tasks": runs, "words": {}}, tmp_path / "curve.png")
  picture = (tmp_path / "curve.png").read_bytes()
  curve.draw({"tasks": runs}, tmp_path / "curve.png")
  assert picture == (tmp_path / "curve.png").read_bytes()


def test_a_clear_difference_differs_with_the_right_sign(tmp_path):
  lead = lambda seed: [0.6 + 0.02 * seed, 0.8]
  ends = {"v05": {i: lead(i) for i in range(4)}, "grpo16": {i: [0.3, 0.5] for i in range(4)}}
  first_table(tmp_path, ends)
  line = next(
    x for x in table.write(tmp_path).split("\n") if x.startswith("| V0.5, 4 | GRPO, 16 |")
  )
  assert (
    line.startswith("| V0.5, 4 | GRPO, 16 | 0, 1, 2, 3 | +0.315 ± 0.021 |") and "| yes |" in line
  )
  runs = {
    name: {i: record(name, i, end) for i, end in found.items()} for name, found in ends.items()
  }
  cells = dict(zip([x[:1] + x[3:4] for x in paper.CLAIMS], paper.column(runs), strict=True))
  first, entropy = paper.CLAIMS[0], ("Entropy stays higher", "loss/entropy")
  assert cells[first[:1] + first[3:4]].startswith("yes: +0.315 ± 0.021 (4 seeds, p ")
  assert cells[entropy].startswith("not decided: +0.000")
  assert "not run" in cells.values()


def test_both_arenas_together_are_one_comparison():
  lead = lambda method, arena, ends: {
    i: record(method, i, [end, end], arena=arena) for i, end in enumerate(ends)
  }
  runs = {
    arena: {
      "v05": lead("v05", arena, ends),
      "grpo16": lead("grpo16", arena, [0.2, 0.2]),
      "grpo4": lead("grpo4", arena, [0.2] if arena == "words" else [0.2, 0.2]),
    }
    for arena, ends in (("tasks", [0.3, 0.4]), ("words", [0.5, 0.6]))
  }
  # .1, .2 and .3, .4: each of a variance of .005 / 2, so an error of .0354 and t(.975, 2) = 4.303
  one = "| V0.5, 4 | GRPO, 16 | 2 + 2 | +0.250 ± 0.152 | +0.000 ± 0.000 | 0.0194 | 0.019 |"
  assert table.together(runs).split("\n")[2:] == [one]  # words has one seed of GRPO (4)
  assert table.together({"tasks": runs["tasks"]}) == "" == table.together({})


def test_arenas_weigh_the_same_and_have_variances_of_their_own():
  few, many = np.array([0.1, 0.3]), np.array([0.3, 0.31, 0.29, 0.3, 0.3, 0.3])
  found = pairing.stratified([few, many])
  alone = scipy.stats.ttest_1samp(few, 0.0)  # whose variance is nearly all of it
  assert found.mean == pytest.approx(0.25)
  half = alone.confidence_interval(0.95)
  assert found.half == pytest.approx((half.high - half.low) / 4, rel=0.02)
  assert pairing.stratified([few * 0, many * 0]) == (0.0, 0.0, 1.0)
  # two arenas with the same spread: as Welch's test of one against the negative of the other
  a, b = np.array([0.1, 0.2, 0.4]), np.array([0.2, 0.0, 0.3])
  welch = scipy.stats.ttest_ind(a, -b, equal_var=False)
  assert pairing.stratified([a, b]).p == pytest.approx(welch.pvalue)


def test_a_claim_says_whether_it_outlives_the_correction():
  values = np.array([0.2, 0.25, 0.3])
  assert paper.cell(values, 0.01, 0.04, 1).startswith("yes: +0.250 ±")
  assert paper.cell(values, 0.01, 0.04, -1).startswith("the reverse: +0.250 ±")
  undecided = paper.cell(values, 0.01, 0.07, 1)
  assert undecided.startswith("not decided: +0.250 ±")
  assert undecided.endswith("(3 seeds, p 0.01, by Holm's rule 0.07)")
  assert paper.cell(values[:1], np.nan, np.nan, 1) == "one seed: +0.200"
  # p = .012 in three of six claims that were measured: .07 by Holm's rule
  ends = [[0.6, 0.5], [0.56, 0.46], [0.55, 0.45], [0.61, 0.51]]
  runs = {"v05": {i: record("v05", i, end) for i, end in enumerate(ends)}}
  runs |= {m: {i: record(m, i, [0.5, 0.4]) for i in range(4)} for m in ("grpo16", "grpo4")}
  assert paper.column(runs)[0].startswith("not decided: +0.080 ±")


def test_seeds_that_one_method_lacks_are_in_no_difference(tmp_path):
  ends = {"v05": {0: [0, 0], 1: [1, 1]}, "grpo16": {1: [0.5, 0.5], 2: [0, 0]}}
  first_table(tmp_path, ends)
  text = table.write(tmp_path)
  assert (
    "| V0.5, 4 | GRPO, 16 | 1 (missing: 0, 2, 3) | +0.500 |" in text and "| too few seeds |" in text
  )
  assert "- tasks, GRPO, 16: no result of seed 0, 3" in text
  first_table(tmp_path, {"rloo4": {3: [0, 0]}})
  assert "| V0.5, 4 | RLOO, 4 | none (missing: 0, 1, 2, 3) |" in table.write(tmp_path)


def test_runs_that_are_no_pair_are_refused():
  one, other = {0: record("v05", 0, [1, 1])}, {0: record("grpo16", 0, [1, 1], problems=2)}
  with pytest.raises(ValueError, match=r"v05-0-3e-05, .*grpo16-0-3e-05: found the problems"):
    pairing.differences(one, other)
  other[0]["problems"] = 1
  other[0]["before"] = other[0]["before"] | {"mean": [0.5, 0.5]}
  with pytest.raises(ValueError, match="found different warm starts"):
    pairing.differences(one, other)


def test_equal_seconds_are_those_of_the_faster_run(tmp_path):
  slow = record("v05", 0, [1, 1], end=0.6, seconds=200.0)
  fast = record("grpo16", 0, [1, 1], end=0.3, seconds=100.0)
  assert pairing.at_equal_seconds(slow, fast) == pytest.approx((100, 0.4, 0.3))
  assert pairing.at_equal_seconds(fast, slow) == pytest.approx((100, 0.3, 0.4))
  assert pairing.too_early(slow, fast)  # whose only evaluation comes after 200 s
  slow["curve"].insert(1, [640, 0.3, 90.0])
  assert not pairing.too_early(slow, fast) and not pairing.too_early(fast, slow)


def test_success_by_task_is_that_of_problems_in_turns(tmp_path):
  found = record("v05", 0, [1.0, 0.5, 1.0, 0.0])
  found["before"] |= {"mean": [0.5, 0, 0.25, 0], "pass": [1, 0, 1, 0]}
  found["before"]["benchmarks"] = {"a": 0.375, "b": 0.0}
  found["after"]["benchmarks"] = {"a": 1.0, "b": 0.25}
  found["before"]["answers"] = {"a": {"different": 4, "commonest": 0.25}}
  found["after"]["answers"] = {"a": {"different": 2, "commonest": 0.875}}
  text = by_task.by_task({"v05": {0: found}})
  a, b = text.splitlines()[-2:]
  assert a.startswith("| a | V0.5, 4 | 0.375 | 1.000 | 1.000 | 1.000 | +0.000 | [+0.000, +0.000] |")
  assert a.endswith("| 4.0 | 2.0 | 0.25 | 0.88 |") and b.endswith("| - | - | - | - |")
  assert b.startswith("| b | V0.5, 4 | 0.000 | 0.250 | 0.000 | 0.500 | +0.500 | [+0.000, +1.000] |")
  assert by_task.by_task({"v05": {0: record("v05", 0, [1, 1])}}) == ""
  found["after"]["benchmarks"] = {"a": 0.25, "b": 1.0}
  with pytest.raises(ValueError, match=r"tasks v05-0-3e-05: a: found a mean of .*in turns"):
    by_task.by_task({"v05": {0: found}})


def test_the_cost_counts_every_warm_start_as_often_as_it_was_made(tmp_path):
  again = record("rloo4", 0, [1, 1])
  again["seconds"]["start"] = 180.0  # on another machine
  runs = record("v05", 0, [1, 1]), record("grpo4", 0, [1, 1]), again
  keep(tmp_path, *tuning_runs("v05"), *tuning_runs("rloo4"), *runs)
  text = table.write(tmp_path)
  assert "| tasks | warm starts | 3 | 1.7 | 0.08 |" in text  # of seeds 0, twice, and 100
  assert "| tasks | reported runs | 3 | 3.7 | 0.18 |" in text
  assert "| tasks | tuning runs | 6 | 3.7 | 0.37 |" in text and "| all |  |  |  | 0.63 |" in text


# --- What the documents say


def short(cell: str) -> str:
  """A cell as the documents write it: no leading zeros, no marks."""
  return re.sub(r"\b0\.", ".", cell.replace("`", "").strip())


def tables(file: Path) -> dict[str, list[list[str]]]:
  """The tables of a document: its last heading of each depth, joined by " / " -> rows of cells, the
  head first. Of several tables under a heading the rows follow one another."""
  found, path = {}, {}
  for line in file.read_text().splitlines():
    if heading := re.match(r"(#+) (.*)", line):
      depth = len(heading[1])
      path = {k: x for k, x in path.items() if k < depth} | {depth: short(heading[2])}
    elif line.startswith("|") and not line.startswith("| ---"):
      found.setdefault(" / ".join(path.values()), []).append(
        [short(x) for x in line.strip("|").split("|")]
      )
  return found


TABLE = tables(ROOT / "experiments/real_lm/table.md")
README = tables(ROOT / "experiments/real_lm/README.md")
TITLES = {
  "V0.5 (4)": "V0.5, 4",
  "V0.5 (4), a constant as the prior": "V0.5, 4, constant prior",
  "the same with a constant": "V0.5, 4, constant prior",
  "V0.5, 4 rollouts a prompt": "V0.5, 4",
  "V0.5, 4, a constant as the prior": "V0.5, 4, constant prior",
  "V0.5, 4, a third of the learning rate": "V0.5, 4, at 1e-5",
  "V0.5 (4) at 1e-5": "V0.5, 4, at 1e-5",
  "V0.5 (4) with a V0 (two seeds)": "V0.5, 4, V0 of the other problems",
  "V0.5, 4 to 16 by OSLA (two seeds)": "V0.5, 4 to 16 (OSLA)",
  "probe (4), precision (two seeds)": "probe, 4",
  "V0.5 with a constant": "V0.5, 4, constant prior",
  "GRPO (4)": "GRPO, 4",
  "GRPO (16)": "GRPO, 16",
  "RLOO (4)": "RLOO, 4",
  "DAPO (16)": "DAPO, 16",
  "recipe": "score, 1, twice",
  "score, 1, every rollout twice (ours)": "score, 1, twice",
  "v05_score (4)": "v05_score, 4",
  "v05_score, 4 (ours)": "v05_score, 4",
  "pass_at_k for pass@8 (4)": "pass_at_k for pass@8, 4",
}
HELDOUT = {arena: f"{arena}: {plan.heldout_problems(arena)}" for arena in plan.ARENAS}
AT_END = "Differences in success at the end"
AT_SECONDS = "Validation success at equal seconds of sampling and update, and at equal rollouts"


def method_row(arena: str, name: str) -> list[str]:
  """The row of a method in the arena's first table."""
  (row,) = [x for x in TABLE[HELDOUT[arena]] if x[0] == TITLES.get(name, name)]
  return row


def pair_row(where: str, name: str, other: str) -> list[str]:
  """The row of a difference under a heading of table.md."""
  titles = [TITLES.get(x, x) for x in (name, other)]
  (row,) = [x for x in TABLE[where] if x[:2] == titles]
  return row


def test_the_readme_says_what_every_method_came_to():
  ends, starts = (5, 8, 11), (4, 7, 10)  # success, in full, pass@8
  head, start, *rows = README["The headline on a real language model / tasks"]
  assert head == ["", "success", "right in full", "pass@8"]
  assert start[1:] == [method_row("tasks", "V0.5 (4)")[i] for i in starts]
  for name, *cells in rows:
    assert cells == [method_row("tasks", name)[i] for i in ends], name
  head, *rows = README["The headline on a real language model / words"]
  for name, seeds, both, gain, over, passed, change, around in rows:
    row = method_row("words", name)
    assert (seeds, both) == (row[1], f"{row[4]}, {row[5]}"), name
    assert (f"{gain} {over}", passed) == (row[6], f"{row[10]}, {row[11]}"), name
    assert f"{change} {around}" == row[12], name
  assert len(rows) >= 6


def test_the_readme_has_the_differences_of_the_table():
  folder = "The headline on a real language model / tasks"
  _, *rows = README[f"{folder} / At equal rollouts"]
  for name, other, success, over, in_full, p in rows:
    row = pair_row(f"{HELDOUT['tasks']} / {AT_END}", name, other)
    assert (success, over, in_full) == (row[3], row[4], row[5]), (name, other)
    assert float(p) == pytest.approx(float(row[7]), abs=0.00051), (name, other)
  found = len(rows)
  _, *rows = README[f"{folder} / At equal seconds"]
  for name, other, rollouts, seconds in rows:
    row = pair_row(f"{HELDOUT['tasks']} / {AT_SECONDS}", name, other)
    assert (rollouts, seconds) == (row[5], row[4]), (name, other)
  _, *together = README["The headline on a real language model / Both arenas together"]
  for name, other, success, passes, p, holm in together:
    row = pair_row("Both arenas together", name, other)
    assert (success, passes, holm) == (row[3], row[4], row[6]), (name, other)
    assert float(p) == pytest.approx(float(row[5]), abs=0.00051), (name, other)
  assert min(found, len(rows)) >= 12 and len(together) >= 4


def test_the_front_page_has_the_figures_of_the_table():
  """Success, V0.5's difference (the negative of that from V0.5) and pass@8, by kind of problem."""
  text = (ROOT / "README.md").read_text()
  lines = text[text.index("| SmolLM2-135M") :].split("\n\n")[0].splitlines()[2:]
  checked = 0
  for line in lines:
    name, *cells = [short(x) for x in line.strip("|").split("|")]
    for arena, (success, minus, passes) in zip(plan.ARENAS, (cells[:3], cells[3:])):
      if name == "warm start":
        row = method_row(arena, "V0.5 (4)")
        assert (success, passes) == (row[4], row[10]), arena
      elif success:
        row = method_row(arena, name)
        assert (success, passes) == (row[5], row[11]), (arena, name)
        checked += bool(minus)
        assert minus == (difference(arena, name) if row[0] != "V0.5, 4" else ""), (arena, name)
      else:
        assert not minus + passes, (arena, name)
  assert checked >= 11


def difference(arena: str, name: str) -> str:
  """V0.5 (4) minus this method, as table.md has it, or the negative of the reverse."""
  where, title = f"{HELDOUT[arena]} / {AT_END}", TITLES.get(name, name)
  for one, other, _, success, *_ in TABLE[where]:
    if (one, other) == ("V0.5, 4", title):
      return success
    if (one, other) == (title, "V0.5, 4"):
      return success.translate(str.maketrans("+-", "-+"))
  raise AssertionError(f"{arena}: V0.5 is not compared with {name}")


# --- Measurements


def test_noise_that_was_measured_is_not_measured_again(tmp_path, monkeypatch):
  """A step takes minutes: an interrupted measurement goes on."""
  asked = []

  def noise_of(config, where, step, prompts):
    asked.append((step, prompts))
    if len(asked) == 3:
      raise KeyboardInterrupt
    return {"prompts": prompts, "rollouts": 8, "mean reward": 0.0, "statistics": {}, "step": step}

  monkeypatch.setattr(measure, "noise_of", noise_of)
  monkeypatch.setattr(measure, "opened", lambda *_: (tmp_path, None))
  monkeypatch.setattr(measure, "at_halves", lambda *_: [10, 20])
  places = play.Places(tmp_path, tmp_path / "work", "", "")
  with pytest.raises(KeyboardInterrupt):
    measure.noise("tasks", places)
  assert not measured.complete(tmp_path, "tasks", "noise")
  measure.noise("tasks", places)
  assert measured.complete(tmp_path, "tasks", "noise")
  of = {method: plan.MEASURED[method] for method in ("v05", "grpo16")}
  steps = [(step, n) for n in of.values() for step in (None, 10, 20)]
  assert asked == [*steps[:3], steps[2], *steps[3:]]
  monkeypatch.setattr(measure, "opened", lambda *_: (tmp_path / "at_another_rate", None))
  before = len(asked)
  measure.noise("tasks", places)
  assert len(asked) == before + 6
  written = measured.read(tmp_path, "tasks", "noise")
  assert {m: list(x) for m, x in written["methods"].items()} == {m: ["0", "10", "20"] for m in of}


def test_what_is_measured_is_the_run_at_the_rate_of_the_tuning(tmp_path):
  places = play.Places(tmp_path, tmp_path / "work", "", "")
  with pytest.raises(ValueError, match="tasks: found no learning rate of v05: --stages=tune"):
    measure.opened("tasks", "v05", places)
  keep(tmp_path, *tuning_runs("v05", best=1e-4))
  other = places.folder(plan.Run("tasks", "v05", plan.MEASURED_SEED, 1e-5))
  (other / "checkpoints" / "10").mkdir(parents=True)  # as of a rate that was tried before
  with pytest.raises(ValueError, match=r"v05-0-0.0001: found no checkpoints, expected some"):
    measure.opened("tasks", "v05", places)


def test_measures_at_a_checkpoint_know_the_truth():
  rng = np.random.default_rng(0)
  mu = rng.uniform(-0.9, 0.9, 400)
  reward = np.where(rng.uniform(size=(400, 64)) < (mu[:, None] + 1) / 2, 1.0, -1.0)
  values = {"truth": mu, "off": mu + 0.3, "constant": np.full(400, mu.mean()), "mute": mu * np.nan}
  found = measure.at_checkpoint(values, reward, np.ones_like(reward))
  assert set(found) == {"truth", "off", "constant", measure.TRUTH, measured.ALONE}
  assert abs(found["truth"]["mse"]) < 0.003 and found["off"]["mse"] == pytest.approx(0.09, abs=0.01)
  assert found["constant"]["mse"] == pytest.approx(mu.var(), abs=0.02)
  assert found["truth"]["auc"] > 0.75 and found["constant"]["auc"] == 0.5
  assert found[measure.TRUTH]["auc"] == pytest.approx(found["truth"]["auc"], abs=0.03)
  assert found["off"]["bias"] == pytest.approx(0.3, abs=0.02)
  # E (r - mu)^2 = 1 - mu^2, over that of the best constant, which is 1 - mean(r)^2.
  expected = np.mean(1 - mu**2) / (1 - reward.mean() ** 2)
  for name in ("truth", measure.TRUTH):
    assert found[name]["noise over b*'s"] == pytest.approx(expected, abs=0.03)
  assert found[measured.ALONE]["fused mse"] == pytest.approx(np.mean(1 - mu**2) / 4, rel=0.1)
  assert (
    found[measure.TRUTH]["fused mse"]
    < found["off"]["fused mse"]
    < found[measured.ALONE]["fused mse"]
  )
  # A rollout's variance over V's squared error: .73 / .09 and .73 / .27.
  shown = dict(row.split(" | ")[1:4:2] for row in measured.at({"4": found}).splitlines()[2:])
  assert float(shown["off"]) == pytest.approx(8.1, abs=0.9)
  assert float(shown["constant"]) == pytest.approx(2.7, abs=0.3)
  assert shown[measure.TRUTH] == shown[measured.ALONE] == "-"


def test_measures_over_a_run_leave_out_what_was_not_said():
  value, outcome = np.array([np.nan, 0.5, -0.5]), np.array([1.0, 1.0, -1.0])
  found = measure.over_run(value, outcome)
  assert found == {"prompts": 2, "mse": 0.25, "auc": 1.0, "bias": 0.0, "ece": 0.25}


def test_groups_of_pairs_have_the_numbers_of_the_run():
  found = [{"score": 0.5, "rollouts": 4}, {"score": -1.0, "rollouts": 2}]
  prompts = types.SimpleNamespace(mask=np.array([True, True, False]), row=np.arange(3))
  groups = measure.groups_of(found, prompts, 7)
  assert groups.k.tolist() == [4, 2, 0] and groups.s.tolist() == [3, 0, 0]
  assert groups.vbar[:2].tolist() == [0.5, -1] and groups.step == 7


# --- All of it


def test_priors_are_measured_again_once_there_is_a_v0(tmp_path):
  places = play.Places(tmp_path, tmp_path / "work", "", "")
  complete = lambda: measure.complete("words", "prior", places)
  assert not complete() and not measured.lacks_v0(tmp_path, "words")
  measure.write(places, "words-prior", {"run": {"probe": {}}, "checkpoints": {}, "seconds": 1.0})
  assert complete() and measured.lacks_v0(tmp_path, "words")
  (places.value_model("words") / "v0").mkdir(parents=True)
  assert not complete()
  run = {"probe": {}, "v0": {}}
  measure.write(places, "words-prior", {"run": run, "checkpoints": {}, "seconds": 1.0})
  assert complete() and not measured.lacks_v0(tmp_path, "words")


@pytest.mark.long
def test_all_of_it_with_the_built_in_policy(tmp_path, monkeypatch):
  """The arena `words` with the built-in model, which knows digits and signs alone: a run, what is
  measured at its checkpoints, a value model of it and a run with that."""
  for name in ("asdiv", "mawps", "svamp"):
    count = words.SVAMP if name == "svamp" else 300
    rows = [
      problem(f"{i % 13}+{i // 13}={'=' * (len(name) + i % 3)}", str(i % 13 + i // 13))
      | {"formula": f"{i % 13}+{i // 13}"}
      for i in range(count)
    ]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
  # Now and then a success: what a value model learns from.
  monkeypatch.syspath_prepend(tmp_path)
  coin = (
    "def score(prompt, response, row):\n  return zlib.crc32((prompt + response).encode()) % 2\n"
  )
  (tmp_path / "coin.py").write_text(f"import zlib\n\n\n{coin}")
  monkeypatch.setattr(words, "NEAR", 1.1)
  base, value_training = plan.base, plan.value_training

  def small(arena, data):
    c = base("words", data)
    c.data.template, c.cpu_devices, c.reward = "{prompt}", 1, "coin:score"
    c.sampler.update({"slots": 16, "open_prompts": 16, "prefill": 8})
    c.num_steps, c.rollouts_per_step = 4, 32
    c.prior.min_support = 8
    c.sft.update({"steps": 2, "batch": 8})
    return c

  def brief(*given):
    c = value_training(*given)
    c.value.update({"steps": 2, "support": 16, "pairs": 4, "tasks": 8})
    return c

  for name, value in {
    "base": small,
    "value_training": brief,
    "HELDOUT": {"words": 8, "tasks": 8},
    "ROLLOUTS": 128,
    "MEASURED": {"v05": 4},
    "FIRST": ("v05",),
    "SEEDS": (0,),
  }.items():
    monkeypatch.setattr(plan, name, value)
  monkeypatch.setattr(measure, "ASKED", 8)
  monkeypatch.setattr(measure, "SAMPLES", 8)
  places = play.Places(tmp_path, tmp_path / "work", "builtin", str(tmp_path))
  for rate in plan.RATES:
    play.complete(plan.Run("words", "v05", plan.TUNING_SEED, rate), places)
  rate = results.rate(results.current(tmp_path)[0], "words", "v05")
  one = plan.Run("words", "v05", 0, rate)
  play.complete(one, places)
  assert measure.checkpoints(places.folder(one)) == [2, 4]
  measure.noise("words", places)
  play.complete(one, places)  # which finds everything done, and writes the same result
  monkeypatch.setitem(plan.OTHER, "words", "words")
  play.value("words", places)
  measure.prior("words", places)
  assert measure.checkpoints(places.folder(one)) == []
  play.complete(one._replace(method="v05_v0"), places)
  text = table.write(tmp_path)
  assert "| V0.5, 4 | 0 | " in text and "| V0.5, 4, V0 of the other problems | 0 | " in text
  assert "### Priors at checkpoints" in text and "| 2 | v0 | " in text and "| 4 | probe | " in text
  assert (tmp_path / "curve.png").stat().st_size > 10_000
  assert not (places.folder(one._replace(method="v05_v0")) / "checkpoints").exists()
