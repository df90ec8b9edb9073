"""--mode=sample: what it prints is what the next training step computes."""

import json
import math

import numpy as np
import pytest

from tests import support
from tests.test_train import small
from v05_jax import budget, main, plug, shrinkage
from v05_jax import groups as grouping
from v05_jax.budgets import base as budgets
from v05_jax.estimators import base as estimators
from v05_jax.run import metrics, show
from v05_jax.sampling.draw import Drawn
from v05_jax.setup import Run
from v05_jax.structs import Draw, Rollouts, TrainState
from v05_jax.train import train

pytestmark = pytest.mark.usefixtures("few_devices")


def config():
  return small(**{"eval.period": 0, "num_steps": 2, "checkpoint.period": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of two steps with checkpoints after both, and the second step as it is shown."""
  workdir = tmp_path_factory.mktemp("run")
  train(config(), str(workdir))
  before = files(workdir)
  prompts = int(metrics.read(workdir)[1]["prompts"])
  main.start(main.Command("sample", config(), str(workdir), step=1, prompts=prompts))
  return workdir, before


def files(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def read(workdir):
  return [json.loads(line) for line in (workdir / "sample.jsonl").read_text().splitlines()]


def each(lines, name):
  return np.array([math.nan if line[name] is None else line[name] for line in lines], float)


def of_rollouts(lines, name):
  return np.array(
    [rollout[name] for line in lines for rollout in line["rollouts"] if rollout["counts"]], float
  )


def test_it_shows_what_the_next_training_step_computed(run):
  shown, line = read(run[0]), metrics.read(run[0])[1]
  assert line["step"] == 2 and {x["step"] for x in shown} == {1}
  assert len(shown) == line["prompts"] and sum(x["bought"] for x in shown) == 32
  value, vbar = each(shown, "value"), each(shown, "vbar")
  assert np.isfinite(value).all() and line["prior/accepted"] is not None  # the prior speaks by then
  baseline_error = (each(shown, "baseline") - (2 * each(shown, "exact") - 1)) ** 2
  for name, found in {
    "reward": of_rollouts(shown, "reward"),
    "advantage/mean_square": of_rollouts(shown, "advantage") ** 2,
    "response/length": of_rollouts(shown, "length"),
    "shrinkage/weight": each(shown, "weight"),
    "prior/accepted": each(shown, "delta2") == 0,
    "prior/abs_error": np.abs(value - vbar),
    "k/mean": each(shown, "k"),
    "shrinkage/true_mse": baseline_error[np.isfinite(baseline_error)],
  }.items():
    assert np.mean(found) == pytest.approx(line[name], abs=2e-6), name


def test_its_numbers_are_those_of_the_functions(run):
  for line in read(run[0]):
    reward = np.array([2 * r["reward"] - 1 for r in line["rollouts"]])
    assert (
      line["vbar"] == pytest.approx(reward.mean(), abs=1e-6)
      and line["k"] == len(reward) == line["bought"]
    )
    fusion = shrinkage.fuse(reward.mean(), len(reward), line["value"])
    for name, expected in fusion._asdict().items():
      assert line[name] == pytest.approx(float(expected), abs=1e-5), name
    assert [r["advantage"] for r in line["rollouts"]] == pytest.approx(
      reward - float(fusion.baseline), abs=1e-5
    )


def test_fewer_prompts_and_rollouts_are_the_same_ones_and_nothing_else_changes(run, capsys):
  workdir, before = run
  more, adaptive = read(workdir), config()
  adaptive.budget.update({"rule": "sequential", "k_init": 2, "k_max": 4})
  adaptive.budgets.sequential.cost = 0.05
  fewer = show.show(adaptive, str(workdir), 1, prompts=3)
  assert read(workdir) == fewer and len(fewer) == 3
  for a, b in zip(fewer, more):
    assert [r["text"] for r in a["rollouts"]] == [r["text"] for r in b["rollouts"]][: a["bought"]]
    assert a["value"] == pytest.approx(b["value"], abs=1e-5) and a["position"] == b["position"]
    assert (a["stop"], a["bought"]) in (("k_max", 4), ("cost", 2), ("cost", 3), ("cost", 4))
    assert (a["gain"] <= 0.05) == (a["stop"] == "cost")
  after = files(workdir)
  assert after.pop("sample.jsonl") and after == before
  said = capsys.readouterr().out
  assert said.startswith(f"step 1 of {workdir}: the next 3 prompts")
  for line in fewer:
    assert (
      line["prompt"] in said
      and f"(success {(line['vbar'] + 1) / 2:.3f}), {line['k']} rollout" in said
    )
  assert said.count("<eos>") >= sum(r["ended"] for line in fewer for r in line["rollouts"])


def test_bad_input(tmp_path):
  with pytest.raises(ValueError, match=r"--prompts=0: expected at least 1"):
    show.show(config(), str(tmp_path), prompts=0)
  with pytest.raises(ValueError, match=r"--step=7: found checkpoints of steps \[\]"):
    show.show(config(), str(tmp_path), step=7)


# --- By hand, without sampling


def drawn(baseline, rule="fixed", k=4, history=False, **bounds):
  """(Run, TrainState, Draw) of four prompts with made-up rollouts: all, none, half and one of k
  succeed."""
  c, K = support.config(), 8
  most = 4 if rule == "fixed" else K
  c.budget.update({"rule": rule, "k_init": 4, "k_max": most} | bounds)
  c.baseline = baseline
  prompts = support.prompts(4)
  wins = np.array([k, 0, k // 2, 1])
  reward = np.where(np.arange(K) < wins[:, None], 1.0, 0.0)
  mask = np.broadcast_to(np.arange(K) < k, (4, K))
  flat = np.argwhere(mask)
  tokens = np.tile([2, 3, 1], (len(flat), 1)).astype(np.int32)
  zeros = np.zeros((len(flat), 3), np.float32)
  shown = np.where(mask, reward, np.nan).astype(np.float32)
  rolls = Rollouts(tokens, zeros, zeros, *flat.T, 3 * mask, shown, mask, mask)
  groups = grouping.make(2 * shown - 1, mask)
  value = np.array([0.9, 0.9, np.nan, 0.0], np.float32)
  asked = {"neighbours": {"support": np.zeros(4, int)}}
  if history:
    asked["history"] = {"before": value, "weight": np.zeros(4)}
  draw = Draw(prompts, value, asked, rolls, groups, np.ones(4, np.float32))
  setting = plug.Setting(c, rows=4)
  estimator = estimators.make(setting)
  run = Run(**dict.fromkeys(Run._fields))._replace(
    config=c,
    policy=support.policy(),
    budget=budgets.make(setting),
    estimator=estimator,
    advantages=lambda *arguments: estimators.advantages(estimator, *arguments),
  )
  state = TrainState(**dict.fromkeys(TrainState.__dataclass_fields__))
  return run, state.replace(step=np.int32(5), estimator=estimator.init()), draw


@pytest.mark.parametrize(
  "kind", ("v05", "ewa", "beta_shrink", "pass_at_k", "james_stein", "spo", "grpo", "value")
)
def test_every_baseline_is_shown_with_what_it_has(kind):
  run, state, draw = drawn(kind, history=kind == "value")
  lines = show.lines(run, state, draw)
  json.dumps(lines, allow_nan=False)
  said = "\n".join(show.text(line) for line in lines)
  reward = shrinkage.map_reward(draw.rolls.reward, 0.0, 1.0)
  learnt = state.estimator[kind]
  if kind == "spo":  # by hand: (V + 2 s - k) / (1 + k) of the others
    won = np.nan_to_num((reward + 1) / 2)[:, :4]
    others = (np.nan_to_num(draw.value)[:, None] + 2 * (won.sum(1)[:, None] - won) - 3) / 4
    x = reward[:, :4] - others
    advantage = (x - x.mean()) / (x.std() + 1e-6)
    fused = (np.nan_to_num(draw.value) + 2 * won.sum(1) - 4) / 5
  else:
    advantage, found = shrinkage.advantage(kind, reward, draw.rolls.mask, draw.value, state=learnt)
    fused = found["baseline"]
  for i, line in enumerate(lines):
    assert line["baseline"] == pytest.approx(float(fused[i]), abs=1e-6)
    assert [r["advantage"] for r in line["rollouts"]] == pytest.approx(
      np.asarray(advantage)[i, :4].tolist(), abs=1e-5
    )
  assert lines[2]["value"] is None and "there is no prior to test" in said
  assert f"({kind}" in said and ("w vbar" in said) == (kind in ("v05", "value"))
  names = {
    "ewa": "expected squared error",
    "grpo": "standard deviation",
    "spo": "past rollouts",
    "value": "weight of the history",
    "beta_shrink": "rollouts that its prior is worth",
    "pass_at_k": "slope of pass@8",
    "james_stein": "noise of a group mean",
  }
  assert [list(line["terms"]) != [] for line in lines] == [kind in names] * 4
  assert kind not in names or f"{names[kind]} " in said
  if kind == "grpo":
    assert lines[3]["terms"]["standard deviation"] == pytest.approx(np.std([1, -1, -1, -1], ddof=1))


def test_what_depends_on_the_whole_step_is_said():

  def said(*arguments, usual=64):
    run, _, draw = drawn(*arguments)
    return show.heading(run, Drawn(draw, (draw,), 4, {}), "step 5 of runs/a", usual)

  assert said("v05").startswith(
    "step 5 of runs/a: the next 4 prompts\nbaseline v05; prior neighbours, 0 pairs"
  )
  assert "--prompts" not in said("v05") + said("spo", usual=4)
  assert "baseline spo: of these prompts alone; --prompts=64 shows a whole training step" in said(
    "spo"
  )
  assert "budget.rule neyman: of these" in said("ewa", "neyman")


def test_why_the_budget_stopped():
  reasons = lambda *arguments, **groups: [
    (line["stop"], show.stopping(line)) for line in show.lines(*drawn("v05", *arguments, **groups))
  ]
  assert reasons()[0] == ("fixed", "4 rollouts: fixed")
  assert reasons("neyman")[0] == ("share", "4 rollouts: its share of the step's total")
  # V = .9: eight successes do not contradict it, eight failures do; no V: 1 / (8 * 9) is what one
  # more is worth.
  stops = reasons("sequential", 8)
  assert [stop for stop, _ in stops] == ["cost", "k_max", "k_max", "k_max"]
  delta2 = shrinkage.fuse(-1.0, 8, 0.9).delta2
  assert f"gain {float(budget.gain(delta2, 8)):.5f} > cost 0.00391" in stops[1][1]
  assert stops[0][1] == "8 rollouts: stopped, as one more would gain 0.00000 <= cost 0.00391"
  assert stops[2][1] == f"8 rollouts: budget.k_max; one more would gain {1 / 72:.5f} > cost 0.00391"
  assert [stop for stop, _ in reasons("two_stage", 6, k_max=8)][:2] == ["cost", "planned"]
  planned = show.lines(*drawn("v05", "two_stage", 6))[1]["gain"]  # by the first four of the six
  assert planned == pytest.approx(
    float(budget.gain(shrinkage.fuse(-1.0, 4, 0.9).delta2, 4)), rel=1e-5
  )


def test_totals():
  lines = show.lines(*drawn("v05"))
  # the last by T = 1
  assert show.totals(lines) == "prior accepted: 2 of 3; rollouts: 16, 4.00 a prompt"
  assert show.totals([]) == "no group had a signal (budget.max_resample)"


def test_long_and_control_characters():
  long = "a\n" + "b" * 1000 + "<|im_end|>"
  short = show.shortened(long)
  assert short.startswith("a\\nb") and short.endswith("<|im_end|>")
  assert f"[... {len(long) - 240:,} characters ...]" in short
  assert show.shortened("x² = 4\t") == "x² = 4\\t" and show.shortened("b" * 280) == "b" * 280
