"""A prior that has come to be wrong: its record, its recalibration, and the context's mean in its
place."""

import logging
import shutil

import jax
import numpy as np
import pytest

from tests import support
from tests.test_train import lines, small
from v05_jax import groups as grouping
from v05_jax import plug, tasks, train
from v05_jax.configs import default
from v05_jax.priors import base, fallback, recalibrate
from v05_jax.priors import context as contexts

pytestmark = pytest.mark.usefixtures("few_devices")


def recorded(value, outcome, size=None):
  """A context of these V and outcomes, both in [-1, 1]."""
  value, outcome = np.asarray(value, np.float32), np.asarray(outcome, np.float32)
  empty = contexts.empty(size or len(value), 1)
  return contexts.remember(
    empty, np.zeros((len(value), 1)), value, (outcome + 1) / 2, np.ones(len(value), bool)
  )


def line(context):
  """(a, b), where no V' is clipped."""
  low, high = np.asarray(recalibrate.affine(context, np.array([-0.1, 0.1], np.float32)))
  return (low + high) / 2, (high - low) / 0.2


# --- The record


def test_errors_by_hand():
  rmse, bias = contexts.errors(recorded([0.5, -0.5, np.nan, 1.0], [1.0, 0.0, 1.0, 0.5], size=8))
  np.testing.assert_allclose(rmse, 0.5, rtol=1e-6)
  np.testing.assert_allclose(bias, (-0.5 - 0.5 + 0.5) / 3, rtol=1e-6)


@pytest.mark.parametrize(
  "context", [contexts.empty(4, 1), recorded([np.nan, np.nan], [1.0, -1.0], size=4)]
)
def test_without_pairs_nothing_is_known_and_nothing_changed(context):
  assert np.isnan(contexts.errors(context)).all()
  value = np.array([-1.0, -0.3, 0.0, 0.7, 1.0, np.nan], np.float32)
  np.testing.assert_array_equal(recalibrate.affine(context, value), value)


def test_only_the_pairs_that_are_left_in_the_ring_count():
  rng = np.random.default_rng(0)
  value, outcome = rng.uniform(-1, 1, (2, 23))
  value[::4] = np.nan
  ring = contexts.empty(5, 1)
  for part in (slice(0, 3), slice(3, 7), slice(7, 20), slice(20, 23)):
    given = value[part], (outcome[part] + 1) / 2
    ring = contexts.remember(
      ring, np.zeros((len(given[0]), 1)), *given, np.ones(len(given[0]), bool)
    )
  last = recorded(value[-5:], outcome[-5:])
  np.testing.assert_allclose(contexts.errors(ring), contexts.errors(last), rtol=1e-5)
  np.testing.assert_allclose(line(ring), line(last), atol=1e-5)


# --- Recalibration


def test_recalibration_by_hand():
  """8 pairs each at V = 1 and -1, outcome .5: sum e = 8, sum e V = -16, so a = 8 / 32 and b = 1 -
  16 / 32."""
  context = recorded([1.0, -1.0] * 8, [0.5] * 16)
  np.testing.assert_allclose(
    recalibrate.affine(context, np.array([1.0, 0.0, -1.0])), [0.75, 0.25, -0.25], atol=1e-6
  )


def test_recalibration_is_least_squares_with_pairs_that_agree_with_v():
  rng = np.random.default_rng(1)
  for size in (1, 2, 7, 300):
    value = rng.uniform(-1, 1, size)
    outcome = np.clip(0.4 * value - 0.3 + rng.normal(0, 0.2, size), -1, 1)
    rows, wanted = np.stack([np.ones(size), value], 1), outcome
    ends = np.repeat([-1.0, 1.0], int(recalibrate.PRIOR_PAIRS) // 2)
    rows, wanted = (
      np.concatenate([rows, np.stack([np.ones(16), ends], 1)]),
      np.concatenate([wanted, ends]),
    )
    want = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    np.testing.assert_allclose(line(recorded(value, outcome)), want, atol=1e-5)


def test_few_pairs_change_little_and_many_almost_all():
  distance = []
  for size in (2, 16, 256, 65536):
    # y = V - .25
    shift, slope = line(recorded([0.5, -0.5] * (size // 2), [0.25, -0.75] * (size // 2)))
    assert slope == pytest.approx(1, abs=1e-3)
    distance.append(shift)
  assert 0 > distance[0] > -0.05 and distance[0] > distance[1] > distance[2] > distance[3]
  assert distance[3] == pytest.approx(-0.25, abs=1e-3)


def test_an_inverted_prior_becomes_a_constant():
  value = [1.0, -1.0] * 32
  context = recorded(value, [0.0, 1.0] * 32)  # y = .5 - .5 V; without the bound b = -.2
  got = recalibrate.affine(context, np.array([-1.0, 0.2, 1.0, np.nan], np.float32))
  np.testing.assert_allclose(got, [0.4, 0.4, 0.4, np.nan], atol=1e-6)  # sum y / (n + n0) = 32 / 80


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -1.0])
def test_degenerate_records_give_numbers(value):
  for size in (1, 3, 4096):
    for outcome in (-1.0, 0.3, 1.0):
      got = np.asarray(
        recalibrate.affine(recorded([value] * size, [outcome] * size), np.linspace(-1, 1, 5))
      )
      assert np.isfinite(got).all() and np.all(np.abs(got) <= 1) and np.all(np.diff(got) >= 0)


@pytest.mark.parametrize(
  "shift, scale", [(0.3, 1.0), (-0.4, 0.5), (0.0, -1.0), (0.2, 0.2), (0.0, 1.0)]
)
def test_recalibration_lowers_the_error_on_new_prompts(shift, scale):
  """V = shift + scale mu, clipped, against the true mu of other prompts; a V that fits loses next
  to nothing."""
  rng, raw, better = np.random.default_rng(2), 0.0, 0.0
  for _ in range(20):
    mu = rng.beta(1, 1, 512) * 2 - 1
    value = np.clip(shift + scale * mu + rng.normal(0, 0.1, 512), -1, 1).astype(np.float32)
    outcome = 2 * rng.binomial(4, (mu[:256] + 1) / 2) / 4 - 1
    after = np.asarray(recalibrate.affine(recorded(value[:256], outcome), value[256:]))
    raw += np.mean((value[256:] - mu[256:]) ** 2) / 20
    better += np.mean((after - mu[256:]) ** 2) / 20
  assert better < (raw + 0.002 if (shift, scale) == (0.0, 1.0) else 0.9 * raw), (raw, better)


# --- The fallback


def states(lessons, patience):
  """(streak, fallen) after each lesson."""
  drift, found = fallback.init(), []
  for worse in lessons:
    drift = fallback.update(drift, worse, patience)
    assert drift.streak.dtype == np.int32 and drift.fallen.dtype == bool
    assert drift.streak.shape == drift.fallen.shape == ()
    found.append((int(drift.streak), bool(drift.fallen)))
  return found


def test_only_a_streak_turns_and_it_takes_as_long_to_return():
  lessons = [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0]
  want = [
    (1, 0),
    (2, 0),
    (0, 0),
    (1, 0),
    (2, 0),
    (0, 1),
    (1, 1),
    (0, 1),
    (1, 1),
    (2, 1),
    (0, 0),
    (0, 0),
  ]
  assert states(lessons, 3) == want
  assert states([1, 1, 0], 1) == [(0, 1), (0, 0), (0, 0)]


def test_without_patience_v_is_never_given_up():
  assert not any(fallen for _, fallen in states([1] * 50, 0))


# --- Around a prior


def setting(**keys):
  config = default.get_config()
  config.prior.update({"context": 16, "min_support": 4, "wrappers": ("fallback",)})
  config.update_from_flattened_dict(keys)
  return plug.Setting(config, rows=64)


def linear(options, setting):
  """V is the row / 40 - .2."""

  def ask(state, prompts):
    value = prompts.row / 40 - 0.2
    return value, contexts.remembered(state, np.zeros((len(value), 1)), value)

  return base.Prior(ask, lambda: contexts.empty(16, 1), contexts.learn)


KIND = f"{__name__}:linear"
RECORD = ([0.5, 0.3, -0.2, 0.1, 0.0], [0.0, 0.5, -0.5, 0.0, 0.5])  # V and outcome, their mean .1


def asked(fallen=False, streak=0, **keys):
  """(prior, its state, prompts, V, what is remembered) with RECORD in every record."""
  prior, prompts = base.make(setting(**{"prior.kind": KIND} | keys)), support.prompts(8)
  state = prior.init()
  if "recalibrate" in state:
    state["recalibrate"] = recorded(*RECORD, size=16)
  if "fallback" in state:
    drift = fallback.Drift(np.int32(streak), np.bool_(fallen))
    record = recorded(*RECORD, size=16).replace(features=np.zeros((16, 0), np.float32))
    state["fallback"] = fallback.Fallback(record, drift)
  return prior, state, prompts, *prior.ask(state, prompts)


@pytest.mark.parametrize("fallen", [False, True])
def test_what_is_asked_is_corrected_and_remembered_by_each_layer(fallen):
  wrappers = ("recalibrate", "fallback")
  _, _, prompts, value, told = asked(fallen, **{"prior.wrappers": wrappers})
  raw = prompts.row / 40 - 0.2
  affine = recalibrate.affine(recorded(*RECORD, size=16), raw)
  assert np.abs(affine - raw).max() > 0.005
  np.testing.assert_allclose(told["linear"]["value"], raw, rtol=1e-6)
  np.testing.assert_allclose(told["recalibrate"]["value"], raw, rtol=1e-6)
  np.testing.assert_allclose(told["fallback"]["value"], affine, rtol=1e-5)
  np.testing.assert_allclose(told["fallback"]["mean"], np.full(8, 0.1), rtol=1e-5)
  np.testing.assert_allclose(value, np.full(8, 0.1) if fallen else affine, rtol=1e-5)


@pytest.mark.parametrize(
  "keys, layers",
  [
    ({"prior.kind": "constant", "prior.wrappers": ("recalibrate", "fallback")}, {"constant"}),
    ({"prior.kind": "none", "prior.wrappers": ("recalibrate", "fallback")}, {"none"}),
    ({"prior.kind": "none", "prior.wrappers": ("history",)}, {"none", "history"}),
    ({"prior.kind": KIND, "prior.wrappers": ()}, {"linear"}),
    ({"prior.kind": KIND}, {"linear", "fallback"}),
  ],
)
def test_only_a_learned_prior_is_corrected(keys, layers):
  assert set(base.make(setting(**keys)).init()) == layers


def taught(value, mean, reward, fallen=False, streak=0, assessed=True):
  """The drift and metrics after four prompts, and two of padding, with these V, context means and
  rewards."""
  layer = fallback.fallback(plug.defaults("wrapper", "fallback", patience=8), setting())
  drift = fallback.Drift(np.int32(streak), np.bool_(fallen))
  state = fallback.Fallback(contexts.empty(16), drift)
  full = lambda x: np.full(4, x, np.float32)
  told = contexts.remembered(state.record, np.zeros((4, 0)), full(value))
  told |= {"mean": full(mean), "assessed": np.full(4, assessed)}
  told = {name: np.concatenate([x, np.zeros_like(x[:2])]) for name, x in told.items()}
  groups = grouping.make(np.full((6, 1), reward), np.arange(6)[:, None] < 4)
  after, metrics = layer.learn(state, told, groups)
  return after.drift, metrics


def test_what_counts_is_the_prior_in_use():
  for arguments, streak in (
    ((0.5, 0.9, 1.0, False), 1),
    ((0.9, 0.5, 1.0, False), 0),
    ((0.5, 0.5, 1.0, False), 0),
    ((0.5, 0.9, 1.0, True), 0),
    ((0.9, 0.5, 1.0, True), 1),
    ((0.5, 0.5, 1.0, True), 0),
  ):
    drift, metrics = taught(*arguments)
    assert int(drift.streak) == streak and bool(drift.fallen) == arguments[3]
    value, mean, reward, fallen = arguments
    assert metrics["prior/mse"] == pytest.approx((4 * (value - reward) ** 2, 4), rel=1e-5)
    assert metrics["prior/constant_mse"] == pytest.approx((4 * (mean - reward) ** 2, 4), rel=1e-5)
    assert metrics["prior/fallback"] == (fallen, 1)


def test_a_step_that_cannot_tell_changes_nothing():
  for value, mean, assessed in ((np.nan, 0.9, True), (0.5, np.nan, True), (0.5, 0.9, False)):
    drift, _ = taught(value, mean, 1.0, streak=2, assessed=assessed)
    assert int(drift.streak) == 2 and not drift.fallen


def test_only_rollouts_that_no_outcome_chose_are_learnt_from():
  prior, state, prompts, _, told = asked()
  reward = np.random.default_rng(0).choice([-1.0, 1.0], (8, 4))
  groups = grouping.make(reward, np.ones((8, 4), bool))
  groups = groups._replace(first=grouping.leading(groups, 2))
  after, metrics = prior.learn(state, told, groups)
  vbar, raw = reward[:, :2].mean(1), prompts.row / 40 - 0.2
  assert metrics["prior/mse"] == pytest.approx((np.sum((raw - vbar) ** 2), 8), rel=1e-5)
  np.testing.assert_allclose(after["linear"].success[:8], (vbar + 1) / 2, rtol=1e-6)
  np.testing.assert_allclose(after["linear"].value[:8], raw, rtol=1e-6)
  np.testing.assert_allclose(after["fallback"].record.success[5:13], (vbar + 1) / 2, rtol=1e-6)


# --- In a run


MANY = 40  # pairs of the context from which on the oracle tells the truth


def oracle(options, setting):
  """The exact success as the only feature; V first is its opposite."""
  config, policy = setting.config, setting.policy
  exact = tasks.make_exact(policy.config, policy.tokenizer, config.sampler)

  def ask(state, prompts):
    found = np.zeros((len(prompts.length), 1), np.float32)
    found[: len(prompts.rows), 0] = exact(policy.params, prompts.rows)
    value = (1.0 if state.count >= MANY else -1.0) * (2 * found[:, 0] - 1)
    value = np.where(state.count >= config.prior.min_support, value, np.nan)
    return value, contexts.remembered(state, found, value)

  return base.Prior(ask, lambda: contexts.empty(config.prior.context, 1), contexts.learn)


def short():
  """Nine steps of eight prompts each; everything else as in tests/test_train.py, whose compiled
  programs it shares."""
  keys = {
    "prior.kind": f"{__name__}:oracle",
    "priors.fallback.patience": 3,
    "data.families": ("add", "sub", "mod", "sort"),
    "eval.period": 0,
    "checkpoint.period": 6,
  }
  return small(num_steps=9, **keys)


@pytest.fixture
def replaced(monkeypatch):
  """`train.train` without a plot."""
  monkeypatch.setattr(train.report, "summary", lambda workdir: None)
  return lambda config, workdir: train.train(config, str(workdir))


def test_a_wrong_prior_gives_way_after_exactly_its_patience_and_comes_back(
  replaced, tmp_path, caplog
):
  """Worse in steps 2 to 5 and better from step 6 on; continued from step 6, with one step toward
  its return done."""
  with caplog.at_level(logging.WARNING):
    state = replaced(short(), tmp_path / "whole")
  written = lines(tmp_path / "whole")
  assert [line["prior/fallback"] for line in written] == [0, 0, 0, 0, 1, 1, 1, 1, 0]
  worse = [line["prior/mse"] > line["prior/constant_mse"] for line in written[1:]]
  assert worse == [True] * 4 + [False] * 4 and written[0]["prior/mse"] is None
  fell, back = (
    record.getMessage() for record in caplog.records if "in a row" in record.getMessage()
  )
  numbers = [f"{written[3][name]:.4f}" for name in ("prior/mse", "prior/constant_mse")]
  assert fell.startswith("step 4: the prior was worse than the context's mean for 3 steps")
  assert all(number in fell for number in numbers) and fell.endswith(
    "from now on the context's mean is used"
  )
  assert back.startswith("step 8: the context's mean was worse") and back.endswith(
    "from now on the prior is used"
  )
  # The context remembers what V said, whichever was in use: its last 32 pairs are of steps 6 to 9.
  context = jax.device_get(state.prior["oracle"])
  np.testing.assert_allclose(context.value, 2 * context.features[:, 0] - 1, rtol=1e-6)
  error = context.value - (2 * context.success - 1)
  np.testing.assert_allclose(written[-1]["prior/rmse"], np.sqrt(np.mean(error**2)), rtol=1e-5)
  np.testing.assert_allclose(written[-1]["prior/bias"], error.mean(), atol=1e-6)
  assert (
    written[0]["prior/rmse"] is None and written[3]["prior/rmse"] > 1.5 * written[-1]["prior/rmse"]
  )
  assert "prior/smoothed" not in written[0]

  shutil.copytree(tmp_path / "whole", tmp_path / "parts")
  shutil.rmtree(tmp_path / "parts" / "checkpoints" / "9")
  again = replaced(short(), tmp_path / "parts")
  assert lines(tmp_path / "parts") == written
  jax.tree.map(np.testing.assert_array_equal, again.prior, state.prior)
