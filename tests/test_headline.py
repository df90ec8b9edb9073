"""The headline experiment: its methods, controls, rules and statistics, and that its report is of
its results."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.headline import (
  claims,
  controls,
  methods,
  prepare,
  report,
  run,
  session,
  summary,
  tuning,
)
from v05_jax import config as configuration
from v05_jax import data
from v05_jax.configs import score, v05_plus
from v05_jax.priors.base import Prior

pytestmark = pytest.mark.usefixtures("few_devices")

FOLDER = Path(run.__file__).parent


def tiny(method: str, toy: str = "default"):
  shipped = {"default": "builtin", "scratchpad": "builtin_scratchpad"}[toy]
  config = methods.config(toy, methods.METHODS[method].changes, 1e-3, 0, shipped, "builtin")
  config.rollouts_per_step, config.eval.size, config.data.size = 32, 24, 1024
  config.sampler.slots = config.loss.micro_rows = 32
  return config


@pytest.mark.parametrize("regime", methods.REGIMES)
def test_every_method_is_a_valid_config_of_its_own(regime):
  seen = {}
  for name, method in methods.METHODS.items():
    config = methods.config(regime, method.changes, 1e-3, 0, "builtin", "builtin")
    configuration.validate(config)
    assert seen.setdefault((configuration.to_json(config), method.control), name) == name
    assert not method.rate_of or not methods.METHODS[method.rate_of].rate_of
    assert set(method.regimes) <= set(methods.METHODS[method.rate_of or name].regimes)
    assert set(method.regimes) <= set(methods.REGIMES)
    assert not method.variant_of or method.variant_of in methods.METHODS
  named = {x for pair in claims.PAIRS for x in pair} - {claims.RECIPE}
  assert {name.removesuffix(" tuned") for name in named} <= set(methods.METHODS)
  wanted = {*methods.QUICK, *methods.RECIPES, *methods.TIMED, methods.FIRST, *report.SHOWN}
  assert wanted <= set(methods.METHODS)


def test_the_paper_s_main_method_is_as_the_paper_has_it():
  c = methods.config("default", methods.METHODS[methods.FIRST].changes, 1e-3, 0, "a", "b")
  assert (c.budget.rule, c.budget.k_init, c.budget.k_max) == ("sequential", 4, 16)
  assert (c.budgets.sequential.block, c.budgets.sequential.cost) == (1, 1 / 256)
  assert (c.baseline, c.prior.kind) == ("v05", "v0")


@pytest.mark.parametrize("name, file", [("v05_plus", v05_plus), ("score_k1_twice", score)])
def test_a_recipe_is_its_config(name, file):
  assert name in ("v05_plus", tuning.load()["recipe"])
  rate = tuning.load()["toys"]["default"]["rates"][name]
  changes = methods.METHODS[name].changes
  found = methods.config("default", changes, rate, 0, "builtin", "builtin")
  wanted = file.get_config()
  found.eval = wanted.eval  # of the experiment alone
  assert found == wanted


def test_every_method_of_every_regime_has_a_rate_and_what_has_none_is_named():
  known = tuning.load()
  for regime in methods.REGIMES:
    rates = tuning.rates(known, regime)
    of_regime = {name for name, x in methods.METHODS.items() if regime in x.regimes}
    variants = {name for name in of_regime if methods.METHODS[name].variant_of}
    assert of_regime - variants <= set(rates) <= of_regime
  del known["toys"]["scratchpad"]["rates"]["v05_k1"]
  tuning.rates(known, "default")
  with pytest.raises(ValueError, match="v05_k1 in scratchpad"):
    tuning.rates(known, "scratchpad")


def test_a_learning_rate_is_looked_for_until_its_neighbours_are_worse():
  areas, heights = {}, {3e-4: 0.1, 6e-4: 0.5, 1.2e-3: 0.4, 2.4e-3: 0.2}
  while rates := tuning.rates_to_try(areas):
    areas |= {rate: [heights[rate], heights[rate]] for rate in rates}
  assert set(areas) == set(heights) and tuning.best(areas) == 6e-4


def test_rate_variant_and_recipe_are_those_of_the_rules():
  score = lambda area, many: {1.2e-3: [(area, many)] * 2, 2.4e-3: [(area - 0.1, many)] * 2}
  toy = {
    "grpo16": score(0.5, 0.90),
    "grpo16_twice": score(0.55, 0.90),
    "grpo16_half": {6e-4: [(0.6, 0.9)], 1.2e-3: [(0.2, 0.9)]},
    "rloo4": score(0.6, 0.9),
    "rloo4_half": score(0.59, 0.9),
    "v05_k1_twice": score(0.7, 0.895),  # within PASS_LOSS of GRPO's pass@64
    "score_k1_twice": score(0.9, 0.88),
  }
  chosen = tuning.choose({"default": toy, "scratchpad": toy})
  assert chosen["recipe"] == "v05_k1_twice"
  found = chosen["toys"]["scratchpad"]
  assert found["variants"] == ["grpo16_half"]  # rloo4 itself is better than its variant
  assert (found["rates"]["grpo16_half"], found["rates"]["v05_k1_twice"]) == (6e-4, 1.2e-3)
  assert found["areas"]["grpo16_half"] == {"0.0006": [0.6], "0.0012": [0.2]}
  assert found["pass@64"]["score_k1_twice"]["0.0012"] == [0.88, 0.88]
  other = toy | {"v05_k1_twice": score(0.7, 0.88)}
  assert (
    tuning.choose({"default": toy, "scratchpad": other})["recipe"] == "score_k1_twice"
  )  # none keeps


def test_holm_against_a_hand_computation():
  nan = float("nan")
  found = claims.holm([0.01, 0.04, nan, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, nan, 0.06, 0.02])
  assert claims.holm([0.9, 0.8]) == [1.0, 1.0] and claims.holm([]) == []


def test_p_values_are_those_of_student_s_paired_test():
  x = [0.1, 0.3, 0.2, -0.05]
  assert claims.p_value(x) == pytest.approx(stats.ttest_rel(x, np.zeros(4)).pvalue)
  assert claims.p_value([0.0, 0.0]) == 1.0 and np.isnan(claims.p_value([0.1]))


def test_controls_replace_v_as_they_say():
  prompts = data.load(
    tiny("v05").data, session.SESSION.run(tiny("v05"))[0].policy.tokenizer, 16
  ).at(0, 200, pad_to=210)
  value = np.linspace(-0.9, 0.9, 210, dtype=np.float32)
  plain = Prior(lambda state, prompts: (value, {"features": state}), lambda: "state")

  def ask(control):
    prior = controls.make(control, plain, 3, lambda prompts: np.full(210, 0.75))
    found, asked = prior.ask(prior.init(), prompts)
    assert asked == {"features": "state"} and prior.learn is plain.learn
    return found

  np.testing.assert_array_equal(ask(""), value)
  np.testing.assert_allclose(ask("oracle"), 0.5)
  flipped = ask("flip 0.5") != value
  np.testing.assert_array_equal(ask("flip 0.5")[flipped], -value[flipped])
  assert 70 < flipped.sum() < 130 and not flipped[200:].any()
  assert set(np.flatnonzero(ask("flip 0.1") != value)) < set(np.flatnonzero(flipped))
  shuffled = ask("shuffle")
  assert (
    sorted(shuffled[:200]) == sorted(value[:200]) and (shuffled[:200] != value[:200]).mean() > 0.9
  )


@pytest.mark.parametrize(
  "toy",
  [pytest.param(x, marks=[] if x == "scratchpad" else pytest.mark.long) for x in methods.TOYS],
)
def test_a_run_counts_every_rollout_and_its_curve_ends_at_the_total(toy):
  config = tiny("dapo16", toy)
  config.rollouts_per_step = 64
  result = session.play(session.SESSION, config, "", 256)
  rollouts, success, *passes = np.array(result["curve"]).T
  assert rollouts[0] == 0 and rollouts[-1] >= 256 and (np.diff(rollouts) > 0).all()
  assert ((0 < success) & (success < 1)).all()
  np.testing.assert_allclose(passes[0], success)
  assert all((a < b).all() for a, b in itertools.pairwise(passes))
  steps = result["steps"]
  kept = sum(int(k) * n for k, n in result["k"].items())
  assert kept == rollouts[-1] and min(steps["rollouts_discarded"]) >= 0
  assert all(len(x) == len(steps["prompts"]) for x in steps.values())
  low, high = {"default": (2.0, 30.0), "scratchpad": (0.5, 2.0)}[toy]
  assert low < np.nanmean(steps["noise/rho"]) < high
  line = run.line(run.Task("main", toy, "dapo16", 1e-3, 0), result)
  assert line["curve"][-1][0] == methods.REGIMES[toy].rollouts
  assert line["end"] == pytest.approx(success[-1], rel=1e-4)
  assert line["pass@64"] == pytest.approx(passes[-1][-1], rel=1e-4)
  json.dumps(line, allow_nan=False)


def test_pass_at_k_of_exact_success():
  found = session.success(np.array([0.5, 0.1, np.nan]))
  assert summary.PASSES == (1, 4, 16, 64)
  wanted = [np.mean([1 - 0.5**k, 1 - 0.9**k]) for k in (1, 1, 4, 16, 64)]
  np.testing.assert_allclose(found, wanted)


def test_a_session_serves_both_toys_in_turn():
  """Whatever a session keeps for the next run must not be that of the other toy."""
  ends = []
  for toy in ("default", "scratchpad", "default"):
    evaluate = session.SESSION.run(tiny("rloo4", toy))[2]
    policy = session.SESSION.run(tiny("rloo4", toy))[0].policy
    ends.append(session.success(evaluate(policy.params).exact)[0])
  assert ends[0] == ends[2] and ends[1] != ends[0] and min(ends) > 0.3


def test_a_curve_is_cut_where_the_rollouts_should_end():
  curve = [[0, 0.2, 0.1], [90, 0.4, 0.3], [110, 0.6, 0.4]]
  assert summary.cut(curve, 100) == [
    [0, 0.2, 0.1],
    [90, 0.4, 0.3],
    [100, pytest.approx(0.5), pytest.approx(0.35)],
  ]


def test_area_crossing_and_interval_against_a_hand_computation():
  assert summary.area([[0, 0.0, 0], [10, 1.0, 0], [30, 1.0, 0]]) == pytest.approx((5 + 20) / 30)
  runs = [
    {"seed": s, "end": e, "curve": [[0, 0.0, 0], [100, 0.4 + d, 0], [200, 0.6 + d, 0]]}
    for s, e, d in ((1, 0.6, 0.0), (2, 0.8, 0.1), (3, 0.7, 0.05))
  ]
  assert report.rollouts_to(runs, 0.55) == pytest.approx(150)
  assert report.rollouts_to(runs, 0.9) is None
  other = [{"seed": s, "end": 0.5} for s in (3, 2, 1, 9)]
  mean, half = claims.paired(runs, other, "end")
  assert mean == pytest.approx(0.2)
  assert half == pytest.approx(
    stats.ttest_1samp([0.1, 0.3, 0.2], 0).confidence_interval().high - 0.2
  )


def test_pass_at_64_is_compared_where_the_reference_ends():
  run = {"curve": [[0, 0.2, 0.9], [100, 0.4, 0.8], [200, 0.8, 0.6]]}
  reached, over = report.at_success(run, {"end": 0.6, "pass@64": 0.75})
  assert reached == pytest.approx(150) and over == pytest.approx(0.7 - 0.75)
  assert report.at_success(run, {"end": 0.9, "pass@64": 0.75}) is None


def made_up(regime: str, method: str, seed: int) -> dict:
  """A line of results.json."""
  draw = np.random.default_rng([seed, list(methods.METHODS).index(method)])
  curve = [(i * 2048, *([0.4 + 0.02 * i + 0.01 * draw.random()] * 5)) for i in range(9)]
  values = lambda: draw.random(16).tolist()
  result = {
    "curve": curve,
    "steps": {name: values() for name in session.KEPT},
    "k": {"4": 10, "5": 2} if method == "v05_osla" else {"4": 10},
    "seconds": 1.0,
  }
  return run.line(run.Task("main", regime, method, 1.2e-3, seed), result)


def test_the_report_says_what_the_runs_say(tmp_path):
  names = ("grpo16", "grpo16_half", "v05_osla", "v05", "v05_k1_twice")
  runs = [made_up(toy, name, seed) for toy in methods.TOYS for name in names for seed in (1, 2, 3)]
  record = {"recipe": "v05_k1_twice", "runs": runs}
  (tmp_path / "results.json").write_text(json.dumps(record))
  seconds = {toy: {name: [1.0, 2.0] for name in names} for toy in methods.TOYS}
  (tmp_path / "times.json").write_text(json.dumps({"seconds": seconds}))
  report.report(tmp_path)
  text = (tmp_path / "table.md").read_text()
  rows = [line.split(" | ") for line in text.splitlines()]
  title = methods.METHODS[methods.FIRST].title
  assert [row[0] for row in rows if row[0].endswith(title)], text
  after_head = [rows[i + 2][0] for i, row in enumerate(rows) if row[0] == "| method"]
  assert after_head[0] == f"| {title}"
  tuned = [row for row in rows if len(row) == 9 and row[2] == "GRPO, 16, 128 a step"]
  assert [row[1] for row in tuned] == [methods.METHODS["v05_k1_twice"].title] * 2
  mine, other = (
    [x for x in runs if (x["method"], x["regime"]) == (m, "default")] for m in ("v05", "grpo16")
  )
  mean, half = claims.paired(mine, other, "area")
  assert f"{mean:+.4f} ± {half:.4f}" in text
  assert "Where the two toys disagree" in text and "The same seconds" in text
  assert {x.name for x in tmp_path.glob("*.png")} == {"default.png", "scratchpad.png"}


def test_warm_starts_of_another_machine_are_told_apart():
  known = {"warm11": "a", "warm12": "b"}
  assert "all as in results.json" in prepare.compared({"warm11": "a"}, known)
  assert "1 of 2 warm starts differ" in prepare.compared({"warm11": "a", "warm12": "c"}, known)
  assert prepare.compared({"warm11": "a"}, {}) == "1 warm starts"
  assert not set(prepare.SEEDS) & set(prepare.TUNING) and len(prepare.SEEDS) >= 8


def test_the_tables_are_those_of_the_results(tmp_path):
  if not (FOLDER / "results.json").exists():
    pytest.skip("the study has not been run yet")
  for path in [*FOLDER.glob("results.json"), *FOLDER.glob("times.json")]:
    (tmp_path / path.name).write_bytes(path.read_bytes())
  report.report(tmp_path)
  assert (tmp_path / "table.md").read_text() == (FOLDER / "table.md").read_text()
  record = json.loads((FOLDER / "results.json").read_text())
  assert record["commit"] and record["cores"] and record["recipe"] == tuning.load()["recipe"]
  assert {line["seed"] for line in record["runs"]} == set(prepare.SEEDS)
