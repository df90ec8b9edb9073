"""The headline experiment: its methods, controls, gradient and statistics, and that its report is of its results."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.headline import controls, gradient, methods, prepare, report, run, session
from v05_jax import config as configuration
from v05_jax import data, rng
from v05_jax.step import sample
from v05_jax.value_prior import Prior

FOLDER = Path(run.__file__).parent


def tiny(method: str, **changes):
  config = methods.config("default", methods.METHODS[method].changes, 1e-3, 0, "builtin", "builtin")
  config.rollouts_per_step, config.eval.size, config.data.size = 32, 24, 256
  config.sampler.slots = config.loss.micro_rows = 32
  return config


@pytest.mark.parametrize("regime", methods.REGIMES)
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_is_a_valid_config_of_its_own(regime, method):
  made = [methods.config(regime, m.changes, 1e-3, 0, "builtin", "builtin") for m in methods.METHODS.values()]
  own = methods.config(regime, methods.METHODS[method].changes, 1e-3, 0, "builtin", "builtin")
  configuration.validate(own)
  same = [m.control for m, c in zip(methods.METHODS.values(), made) if c == own]
  assert same.count(methods.METHODS[method].control) == 1
  assert methods.METHODS[method].rate_of in {"", *methods.METHODS}


def test_the_exact_gradient_is_that_of_the_exact_success():
  run_of = session.Session().run(tiny("rloo4"))[0]
  run_of.config.eval.size = 8
  params, at = run_of.policy.params, gradient.make(run_of)
  rows = [row for row in run_of.prompts.rows if row["family"] in gradient.tasks.EXACT][: gradient.PROMPTS]
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
  for k, prompts in ((4, 32), (4, 1024)):
    config = tiny("rloo4")
    config.rollouts_per_step = k * prompts
    made = session.Session()
    run_of, collect, _ = made.run(config)
    state = run_of.init()
    draw = sample(run_of, collect, state, 0)
    found[prompts] = gradient.cosine(run_of, gradient.make(run_of), state, draw)
  assert 0 < found[32] < found[1024] and found[1024] > 0.5, found


def test_controls_replace_v_as_they_say():
  prompts = data.load(tiny("v05").data, session.SESSION.run(tiny("v05"))[0].policy.tokenizer, 16).at(0, 200, pad_to=210)
  value = np.linspace(-0.9, 0.9, 210, dtype=np.float32)
  plain = Prior(1, lambda prompts: np.zeros((210, 1)), lambda context, features: value)

  def ask(control):
    prior = controls.make(control, plain, 3, lambda prompts: np.full(210, 0.75))
    return prior.predict(None, prior.features(prompts))

  np.testing.assert_array_equal(ask(""), value)
  np.testing.assert_allclose(ask("oracle"), 0.5)
  flipped = ask("flip 0.5") != value
  np.testing.assert_array_equal(ask("flip 0.5")[flipped], -value[flipped])
  assert 70 < flipped.sum() < 130 and not flipped[200:].any()
  assert set(np.flatnonzero(ask("flip 0.1") != value)) < set(np.flatnonzero(flipped))
  shuffled = ask("shuffle")
  assert sorted(shuffled[:200]) == sorted(value[:200]) and (shuffled[:200] != value[:200]).mean() > 0.9


def test_a_run_counts_every_rollout_and_its_curve_ends_at_the_total():
  config = tiny("dapo16")
  config.rollouts_per_step = 64
  result = session.play(session.Session(), config, "", 256, cosines=True)
  rollouts, success, exact = np.array(result["curve"]).T
  assert rollouts[0] == 0 and rollouts[-1] >= 256 and (np.diff(rollouts) > 0).all()
  assert ((0 < success) & (success < 1)).all() and np.isfinite(exact).all()
  steps = result["steps"]
  kept = sum(int(k) * n for k, n in result["k"].items())
  assert kept == rollouts[-1] and sum(steps["rollouts_discarded"]) > 0
  assert all(len(x) == len(steps["prompts"]) for x in steps.values()) and -1 < result["cosine"][0] < 1
  line = run.summary(result)
  assert line["area"] == pytest.approx(run.area(result["curve"]), rel=1e-4) and line["discarded"] > 0
  json.dumps(line, allow_nan=False)


def test_area_crossing_and_interval_against_a_hand_computation():
  assert run.area([[0, 0.0, 0], [10, 1.0, 0], [30, 1.0, 0]]) == pytest.approx((5 + 20) / 30)
  runs = [{"seed": s, "end": e, "curve": [[0, 0.0, 0], [100, 0.4 + d, 0], [200, 0.6 + d, 0]]}
          for s, e, d in ((1, 0.6, 0.0), (2, 0.8, 0.1), (3, 0.7, 0.05))]  # fmt: skip
  assert report.rollouts_to(runs, 0.55) == pytest.approx(150)
  assert report.rollouts_to(runs, 0.9) is None
  other = [{"seed": s, "end": 0.5} for s in (3, 2, 1, 9)]
  mean, half = report.paired(runs, other, "end")
  assert mean == pytest.approx(0.2)
  assert half == pytest.approx(stats.ttest_1samp([0.1, 0.3, 0.2], 0).confidence_interval().high - 0.2)


def test_the_tables_are_those_of_the_results(tmp_path):
  for name in ("results.json", "rates.json"):
    (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
  report.report(tmp_path)
  assert (tmp_path / "table.md").read_text() == (FOLDER / "table.md").read_text()
  record = json.loads((FOLDER / "results.json").read_text())
  assert record["commit"] and record["cores"]
  assert {line["seed"] for line in record["runs"]} == set(prepare.SEEDS)
  assert not set(prepare.SEEDS) & set(prepare.TUNING)
