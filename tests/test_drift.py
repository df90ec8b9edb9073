"""A prior that has come to be wrong: its record, its recalibration, and the context's mean in its
place."""

import logging
import shutil

import jax
import numpy as np
import pytest

from configs import default
from tests import support
from tests.test_train import lines, small
from v05_jax import estimator, structs, tasks, train
from v05_jax import priors as value_prior
from v05_jax import step as steps
from v05_jax.priors import context as contexts
from v05_jax.priors import drift as drifts
from v05_jax.sampling import rollouts

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
  low, high = np.asarray(drifts.recalibrate(context, np.array([-0.1, 0.1], np.float32)))
  return (low + high) / 2, (high - low) / 0.2


# --- The record


def test_errors_by_hand():
  rmse, bias = drifts.errors(recorded([0.5, -0.5, np.nan, 1.0], [1.0, 0.0, 1.0, 0.5], size=8))
  np.testing.assert_allclose(rmse, 0.5, rtol=1e-6)
  np.testing.assert_allclose(bias, (-0.5 - 0.5 + 0.5) / 3, rtol=1e-6)


@pytest.mark.parametrize(
  "context", [contexts.empty(4, 1), recorded([np.nan, np.nan], [1.0, -1.0], size=4)]
)
def test_without_pairs_nothing_is_known_and_nothing_changed(context):
  assert np.isnan(drifts.errors(context)).all()
  value = np.array([-1.0, -0.3, 0.0, 0.7, 1.0, np.nan], np.float32)
  np.testing.assert_array_equal(drifts.recalibrate(context, value), value)


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
  np.testing.assert_allclose(drifts.errors(ring), drifts.errors(last), rtol=1e-5)
  np.testing.assert_allclose(line(ring), line(last), atol=1e-5)


# --- Recalibration


def test_recalibration_by_hand():
  """8 pairs each at V = 1 and -1, outcome .5: sum e = 8, sum e V = -16, so a = 8 / 32 and b = 1 -
  16 / 32."""
  context = recorded([1.0, -1.0] * 8, [0.5] * 16)
  np.testing.assert_allclose(
    drifts.recalibrate(context, np.array([1.0, 0.0, -1.0])), [0.75, 0.25, -0.25], atol=1e-6
  )


def test_recalibration_is_least_squares_with_pairs_that_agree_with_v():
  rng = np.random.default_rng(1)
  for size in (1, 2, 7, 300):
    value = rng.uniform(-1, 1, size)
    outcome = np.clip(0.4 * value - 0.3 + rng.normal(0, 0.2, size), -1, 1)
    rows, wanted = np.stack([np.ones(size), value], 1), outcome
    ends = np.repeat([-1.0, 1.0], int(drifts.PRIOR_PAIRS) // 2)
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
  got = drifts.recalibrate(context, np.array([-1.0, 0.2, 1.0, np.nan], np.float32))
  np.testing.assert_allclose(got, [0.4, 0.4, 0.4, np.nan], atol=1e-6)  # sum y / (n + n0) = 32 / 80


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -1.0])
def test_degenerate_records_give_numbers(value):
  for size in (1, 3, 4096):
    for outcome in (-1.0, 0.3, 1.0):
      got = np.asarray(
        drifts.recalibrate(recorded([value] * size, [outcome] * size), np.linspace(-1, 1, 5))
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
    after = np.asarray(drifts.recalibrate(recorded(value[:256], outcome), value[256:]))
    raw += np.mean((value[256:] - mu[256:]) ** 2) / 20
    better += np.mean((after - mu[256:]) ** 2) / 20
  assert better < (raw + 0.002 if (shift, scale) == (0.0, 1.0) else 0.9 * raw), (raw, better)


# --- The fallback


def states(lessons, patience):
  """(streak, fallen) after each lesson."""
  drift, found = drifts.init(), []
  for worse in lessons:
    drift = drifts.update(drift, worse, patience)
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


def pairs(own, mean, count=4):
  return {"prior/mse": (own, count), "prior/constant_mse": (mean, count)}


def test_what_counts_is_the_prior_in_use():
  fallen = drifts.Drift(np.int32(0), np.bool_(True))
  for drift, lesson, streak in (
    (drifts.init(), pairs(2.0, 1.0), 1),
    (drifts.init(), pairs(1.0, 2.0), 0),
    (drifts.init(), pairs(1.0, 1.0), 0),
    (fallen, pairs(2.0, 1.0), 0),
    (fallen, pairs(1.0, 2.0), 1),
    (fallen, pairs(1.0, 1.0), 0),
  ):
    assert int(steps.watch(drift, lesson, 8, 0).streak) == streak
  half = drifts.Drift(np.int32(2), np.bool_(False))
  for nothing in (pairs(0.0, 0.0, 0), {}):
    assert steps.watch(half, nothing, 3, 0) is half


# --- In a step


def scripted(**keys):
  """(Run, TrainState) of a policy that is never asked; V is the row / 40 - .2 and the context's
  mean .1."""
  config = default.get_config()
  config.prior.update({"context": 16, "min_support": 4, "fallback": 8})
  config.update_from_flattened_dict(keys)
  prior = value_prior.Prior(
    1,
    lambda prompts: prompts.row[:, None].astype(np.float32),
    lambda context, features: features[:, 0] / 40 - 0.2,
  )
  stream = support.prompts(64)
  fields = {name: getattr(stream, name) for name in ("tokens", "length", "position", "row")}

  class Stream(list):
    def at(self, cursor, n, pad_to):
      index = np.minimum(np.arange(cursor, cursor + pad_to), 63)
      return structs.Prompts(
        **{name: x[index] for name, x in fields.items()},
        mask=np.arange(pad_to) < n,
        rows=tuple(stream.rows[i] for i in index[:n]),
      )

  groups = rollouts.Groups(**{name: config.budget[name] for name in rollouts.Groups._fields})
  nothing = dict.fromkeys(steps.Run._fields)
  run = steps.Run(
    **nothing
    | {
      "config": config,
      "prompts": Stream(stream.rows),
      "prior": prior,
      "groups": groups,
      "capacity": 8,
    }
  )
  state = structs.TrainState(**dict.fromkeys(structs.TrainState.__dataclass_fields__))
  context = recorded([0.5, 0.3, -0.2, 0.1, 0.0], [0.0, 0.5, -0.5, 0.0, 0.5], size=16)
  return run, state.replace(
    cursor=3,
    mean_k=4.0,
    context=context,
    drift=drifts.init(),
    estimator=estimator.init(64),
    params={},
  )


@pytest.mark.parametrize("pool", [1, 4])
@pytest.mark.parametrize("fallen", [False, True])
def test_what_is_asked_stays_beside_its_prompt(pool, fallen):
  run, state = scripted(**{"prior.recalibrate": True, "selection.pool": pool})
  asked = steps.ask(run, state.replace(drift=drifts.Drift(np.int32(5), np.bool_(fallen))), 3, 6, 0)
  want = asked.prompts.row / 40 - 0.2
  assert pool == 1 or np.any(np.diff(asked.prompts.row[:6]) > 1)
  np.testing.assert_allclose(asked.raw, want, rtol=1e-6)
  np.testing.assert_allclose(
    asked.rivals, [drifts.recalibrate(state.context, want), np.full(8, 0.1)], rtol=1e-5
  )
  assert np.abs(asked.rivals[0] - want).max() > 0.005
  np.testing.assert_array_equal(asked.prior, asked.rivals[int(fallen)])
  np.testing.assert_array_equal(asked.value, asked.prior)


@pytest.mark.parametrize(
  "keys, rivals",
  [
    ({"prior.kind": "constant", "prior.recalibrate": True}, 1),
    ({"prior.kind": "none", "prior.recalibrate": True}, 1),
    ({"prior.fallback": 0}, 1),
    ({"prior.kind": "v0"}, 2),
  ],
)
def test_only_a_learned_prior_has_a_rival_and_what_is_off_changes_nothing(keys, rivals):
  run, state = scripted(**keys)
  raw, found = steps.predict(run, state.context, np.arange(8.0, dtype=np.float32)[:, None])
  assert len(found) == rivals
  np.testing.assert_array_equal(found[0], raw)
  names = steps.record(run, state, (0.0, 0.0)).keys()
  assert ("prior/fallback" in names) == (rivals == 2) and ("prior/smoothed" in names) == (
    run.config.prior.kind == "v0"
  )


def collector(rewards):
  """A `collect` whose rollouts have these rewards [64, K], NaN = not taken, by row."""

  def collect(params, prompts, key, groups, value, ewa):
    reward = np.where(prompts.mask[:, None], rewards[prompts.row], np.nan).astype(np.float32)
    mask = np.isfinite(reward)
    prompt, index = (x.astype(np.int32) for x in np.nonzero(mask))
    tokens = np.ones((len(prompt), 3), np.int32)
    rolls = structs.Rollouts(
      tokens=tokens,
      logprob=-1.0 * tokens,
      sampled_logprob=-1.0 * tokens,
      prompt=prompt,
      index=index,
      length=3 * mask,
      reward=reward,
      ended=mask,
      mask=mask,
    )
    return rolls, {"response/length": (3.0 * len(prompt), len(prompt))}

  return collect


def test_a_step_is_judged_once_by_all_its_draws_on_rollouts_that_no_outcome_chose():
  """Two draws of dynamic sampling, a budget that stops by the outcome: the first two rollouts of
  each prompt count."""
  keys = {
    "budget.rule": "two_stage",
    "budget.k_init": 2,
    "budget.max_resample": 1,
    "rollouts_per_step": 32,
  }
  run, state = scripted(**keys)
  rewards = np.random.default_rng(0).integers(0, 2, (64, 4)).astype(float)
  rewards[::3, 2:] = np.nan
  rewards[3:7] = 1.0  # without signal: more prompts are drawn
  draw = steps.sample(run, collector(rewards), state, 0)
  rows = np.arange(3, draw.cursor)
  vbar, value = 2 * rewards[rows, :2].mean(1) - 1, (rows / 40 - 0.2).astype(np.float32)
  for name, rival in (("prior/mse", value), ("prior/constant_mse", 0.1)):
    total, count = draw.metrics[name]
    assert count == len(rows) > 11 and total == pytest.approx(np.sum((rival - vbar) ** 2), rel=1e-5)
  worse = np.sum((value - vbar) ** 2) > np.sum((0.1 - vbar) ** 2)
  assert draw.drift == (worse, False) and worse
  np.testing.assert_allclose(
    np.roll(draw.context.value, -(5 + len(rows)))[-len(rows) :], value, atol=1e-6
  )


# --- In a run


MANY = 40  # pairs of the context from which on the oracle tells the truth


def oracle(policy, config):
  """In place of `value_prior.make`: the exact success as the only feature; the prior first says its
  opposite."""
  exact = tasks.make_exact(policy.config, policy.tokenizer, config.sampler)

  def features(prompts):
    found = np.zeros((len(prompts.length), 1), np.float32)
    found[: len(prompts.rows), 0] = exact(policy.params, prompts.rows)
    return found

  def predict(context, features):
    sign = 1.0 if context.count >= MANY else -1.0
    return np.where(
      context.count >= config.prior.min_support, sign * (2 * features[:, 0] - 1), np.nan
    )

  return value_prior.Prior(1, features, predict)


def short():
  """Nine steps of eight prompts each; everything else as in tests/test_train.py, whose compiled
  programs it shares."""
  keys = {
    "prior.fallback": 3,
    "data.families": ("add", "sub", "mod", "sort"),
    "eval.period": 0,
    "checkpoint.period": 6,
  }
  return small(num_steps=9, **keys)


@pytest.fixture
def replaced(monkeypatch):
  """`train.train` with the oracle as its prior and without a plot."""
  monkeypatch.setattr(train.report, "summary", lambda workdir: None)

  def run(config, workdir):
    monkeypatch.setattr(value_prior, "make", lambda options, policy, *_: oracle(policy, config))
    return train.train(config, str(workdir))

  return run


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
  context = jax.device_get(state.context)
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
  jax.tree.map(np.testing.assert_array_equal, again.drift, state.drift)
  jax.tree.map(np.testing.assert_array_equal, again.context, state.context)
