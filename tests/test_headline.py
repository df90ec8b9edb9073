"""The headline experiment: its methods, controls, gradient and statistics, and that its report is
of its results."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.headline import controls, gradient, methods, prepare, report, run, session
from v05_jax import config as configuration
from v05_jax import data, rng
from v05_jax.configs import v05_plus
from v05_jax.priors.base import Prior
from v05_jax.sampling.draw import draw

pytestmark = pytest.mark.usefixtures("few_devices")

FOLDER = Path(run.__file__).parent


def tiny(method: str):
  config = methods.config("default", methods.METHODS[method].changes, 1e-3, 0, "builtin", "builtin")
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
  assert set(methods.QUICK) < set(methods.METHODS)


def test_the_recipe_is_its_config():
  rate = json.loads((FOLDER / "rates.json").read_text())["rates"]["v05_plus"]
  found = methods.config(
    "default", methods.METHODS["v05_plus"].changes, rate, 0, "builtin", "builtin"
  )
  wanted = v05_plus.get_config()
  found.eval = wanted.eval  # of the experiment alone
  assert found == wanted


def test_a_learning_rate_is_looked_for_until_its_neighbours_are_worse():
  areas, heights = {}, {3e-4: 0.1, 6e-4: 0.5, 1.2e-3: 0.4, 2.4e-3: 0.2}
  while rates := methods.rates_to_try(areas):
    areas |= {rate: [heights[rate], heights[rate]] for rate in rates}
  assert set(areas) == set(heights) and methods.best(areas) == 6e-4


def test_the_exact_gradient_is_that_of_the_exact_success():
  run_of = session.SESSION.run(tiny("rloo4"))[0]
  params, at = run_of.policy.params, gradient.make(run_of)
  rows = [row for row in run_of.prompts.rows if row["family"] in gradient.tasks.EXACT][
    : gradient.PROMPTS
  ]
  found = at(params)
  direction = jax.tree.map(lambda x: np.asarray(rng_like(x)), params)
  dot = sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(direction)))
  step = 1e-3
  moved = [jax.tree.map(lambda x, d, s=s: x + s * step * d, params, direction) for s in (1, -1)]
  high, low = (run_of.exact(p, rows).mean() for p in moved)
  assert dot == pytest.approx((high - low) / (2 * step), rel=2e-2)


def rng_like(x):
  return jax.random.normal(jax.random.fold_in(rng.at(0, 0), x.size), x.shape) / np.sqrt(x.size)


def test_many_rollouts_point_along_the_exact_gradient_and_few_do_less():
  found = {}
  for k, prompts in ((4, 32), (4, 512)):
    config = tiny("rloo4")
    config.rollouts_per_step = k * prompts
    run_of, collect, _ = session.SESSION.run(config)
    state = run_of.init()
    taken = draw(run_of, collect, state).taken
    found[prompts] = gradient.cosine(run_of, gradient.make(run_of), state, taken)
  assert 0 < found[32] < found[512] and found[512] > 0.4, found


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


def test_a_run_counts_every_rollout_and_its_curve_ends_at_the_total():
  config = tiny("dapo16")
  config.rollouts_per_step = 64
  result = session.play(session.SESSION, config, "", 256, cosines=True)
  rollouts, success, exact = np.array(result["curve"]).T
  assert rollouts[0] == 0 and rollouts[-1] >= 256 and (np.diff(rollouts) > 0).all()
  assert ((0 < success) & (success < 1)).all() and np.isfinite(exact).all()
  steps = result["steps"]
  kept = sum(int(k) * n for k, n in result["k"].items())
  assert kept == rollouts[-1] and min(steps["rollouts_discarded"]) >= 0
  assert (
    all(len(x) == len(steps["prompts"]) for x in steps.values()) and -1 < result["cosine"][0] < 1
  )
  line = run.summary(run.Task("main", "default", "dapo16", 1e-3, 0), result)
  assert line["curve"][-1][0] == methods.ROLLOUTS and line["end"] == pytest.approx(
    success[-1], rel=1e-4
  )
  json.dumps(line, allow_nan=False)


def test_a_curve_is_cut_where_the_rollouts_should_end():
  curve = [[0, 0.2, 0.1], [90, 0.4, 0.3], [110, 0.6, 0.4]]
  assert run.cut(curve, 100) == [
    [0, 0.2, 0.1],
    [90, 0.4, 0.3],
    [100, pytest.approx(0.5), pytest.approx(0.35)],
  ]


def test_area_crossing_and_interval_against_a_hand_computation():
  assert run.area([[0, 0.0, 0], [10, 1.0, 0], [30, 1.0, 0]]) == pytest.approx((5 + 20) / 30)
  runs = [
    {"seed": s, "end": e, "curve": [[0, 0.0, 0], [100, 0.4 + d, 0], [200, 0.6 + d, 0]]}
    for s, e, d in ((1, 0.6, 0.0), (2, 0.8, 0.1), (3, 0.7, 0.05))
  ]
  assert report.rollouts_to(runs, 0.55) == pytest.approx(150)
  assert report.rollouts_to(runs, 0.9) is None
  other = [{"seed": s, "end": 0.5} for s in (3, 2, 1, 9)]
  mean, half = report.paired(runs, other, "end")
  assert mean == pytest.approx(0.2)
  assert half == pytest.approx(
    stats.ttest_1samp([0.1, 0.3, 0.2], 0).confidence_interval().high - 0.2
  )


def test_the_tables_are_those_of_the_results(tmp_path):
  for name in ("results.json", "times.json"):
    (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
  report.report(tmp_path)
  assert (tmp_path / "table.md").read_text() == (FOLDER / "table.md").read_text()
  record = json.loads((FOLDER / "results.json").read_text())
  assert record["commit"] and record["cores"]
  assert {line["seed"] for line in record["runs"]} == set(prepare.SEEDS)
  assert not set(prepare.SEEDS) & set(prepare.TUNING)
