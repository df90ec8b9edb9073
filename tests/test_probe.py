"""The prior that knows its own error: its regression against sums over a grid, its plug in runs."""

import itertools
import re
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

from tests.test_train import lines, small
from v05_jax import plug
from v05_jax.priors import base, logistic, probe
from v05_jax.train import train


def members(kept=1.0, misfit=0.0, spread=1.0):
  return logistic.Members(*np.broadcast_arrays(*map(np.atleast_1d, (kept, misfit, spread))))


def whole(x):
  return np.asarray(x, float)


@pytest.fixture
def precise():
  with jax.enable_x64(True):
    yield


def by_grid(features, s, k, query, misfit, spread=1.0):
  """(V, variance) of a prompt with the feature `query`, u on a grid and e summed over a normal
  distribution."""
  u0, u1 = np.meshgrid(*[np.linspace(-9, 9, 241)] * 2, indexing="ij")
  log = stats.norm(0, 2).logpdf(u0) + stats.norm(0, np.sqrt(spread)).logpdf(u1)
  nodes, weights = np.polynomial.hermite_e.hermegauss(32)
  weights = weights / weights.sum()
  p = lambda x: 1 / (1 + np.exp(-(u0 + x * u1)[..., None] - np.sqrt(misfit) * nodes))
  for x, a, b in zip(features, s, k):
    log = log + np.log((p(x) ** a * (1 - p(x)) ** (b - a)) @ weights)
  density = np.exp(log - log.max())
  mean = lambda f: np.sum(density * (f @ weights)) / density.sum()
  reward = 2 * p(query) - 1
  value = mean(reward)
  return value, mean((reward - value) ** 2)


@pytest.mark.parametrize("misfit", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 4])
def test_the_posterior_is_that_of_the_grid(precise, misfit, k):
  rng = np.random.default_rng(k)
  features = rng.normal(size=12)
  s = rng.binomial(k, 1 / (1 + np.exp(-0.5 - 1.5 * features))).astype(float)
  one = members(misfit=misfit, spread=2.0)
  state = logistic.empty(one, 1)
  state = logistic.learn(one, state, features[:, None], s, np.full(12, float(k)))
  for query in (-2.0, 0.0, 1.0):
    got = [float(x[0]) for x in logistic.predict(one, state, np.array([[query]]))]
    want = by_grid(features, s, np.full(12, k), query, misfit, 2.0)
    assert got[0] == pytest.approx(want[0], abs=0.06)
    assert np.sqrt(got[1]) == pytest.approx(np.sqrt(want[1]), rel=0.15)


def test_linear_systems_are_solved_one_by_one():
  """A batch of them can wait for ever on a CPU of few threads: `logistic._solved`."""
  state, x, k = logistic.empty(probe.MEMBERS, 16), np.ones((8, 16), np.float32), np.full(8, 4.0)
  for lowered in (
    logistic.predict.lower(probe.MEMBERS, state, x),
    logistic.learn.lower(probe.MEMBERS, state, x, k / 2, k),
  ):
    calls = [line for line in lowered.as_text().splitlines() if "@lapack_" in line]
    operands = [x for line in calls for x in re.findall(r"tensor<([0-9x]+)xf32>", line)]
    assert operands and all(x.count("x") == 1 for x in operands)


def test_before_the_first_outcome_it_knows_nothing(precise):
  one = members(misfit=0.5, spread=3.0)
  value, variance = logistic.predict(one, logistic.empty(one, 4), np.ones((2, 4)))
  z = np.random.default_rng(0).normal(0, np.sqrt(logistic.CONSTANT + 3.0 + 0.5), 400_000)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(variance, np.var(np.tanh(z / 2)), rtol=0.01)


def test_prompts_without_rollouts_leave_no_trace(precise):
  one, rng = members(misfit=0.3), np.random.default_rng(1)
  features = rng.normal(size=(5, 3))
  s, k = whole([2, 0, 1, 0, 4]), whole([4, 0, 1, 0, 4])
  some = k > 0
  got = logistic.learn(one, logistic.empty(one, 3), features, s, k)
  want = logistic.learn(one, logistic.empty(one, 3), features[some], s[some], k[some])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_what_is_not_kept_returns_to_the_prior(precise):
  many, rng = members(kept=[0.0, 0.5, 1.0]), np.random.default_rng(2)
  first = logistic.empty(many, 3)
  after = logistic.learn(many, first, rng.normal(size=(8, 3)), whole([1] * 8), whole([1] * 8))
  np.testing.assert_allclose(after.precision[0], first.precision[0])
  np.testing.assert_allclose(after.shift[0], 0, atol=1e-12)
  half = (first.precision[1] + after.precision[2]) / 2
  np.testing.assert_allclose(after.precision[1], half, rtol=1e-6)
  np.testing.assert_allclose(after.shift[1], after.shift[2] / 2)


def test_the_record_is_the_probability_of_what_was_seen(precise):
  """Two members that differ in spread: log E p^s (1 - p)^(k - s) of each, discounted."""
  many, x = members(spread=[0.1, 9.0]), np.array([[1.0]])
  state = logistic.empty(many, 1)
  state = logistic.learn(many, state, x, whole([2]), whole([2]))
  z = np.random.default_rng(0).normal(size=1_000_000)
  p = lambda spread: 1 / (1 + np.exp(-np.sqrt(4 + spread) * z))
  want = np.log(np.mean(p(9.0) ** 2) / np.mean(p(0.1) ** 2))
  assert float(state.record[1] - state.record[0]) == pytest.approx(want, abs=0.01)
  again = logistic.learn(many, state, x, whole([0]), whole([0]))
  kept = logistic.RECORD * (state.record[1] - state.record[0])
  assert float(again.record[1] - again.record[0]) == pytest.approx(float(kept))


@pytest.mark.parametrize("s", [0.0, 16.0, 7.5])
def test_surprises_are_taken_in_without_overshooting(s):
  """A sure prediction that turns out wrong moves toward the outcome and not beyond."""
  one, x = members(spread=400.0, misfit=0.01), 3 * np.ones((1, 2), np.float32)
  state = logistic.empty(one, 2)
  for outcome in (16.0, s, s):
    state = logistic.learn(one, state, x, np.float32([outcome]), np.float32([16]))
    value, variance = (float(y[0]) for y in logistic.predict(one, state, x))
    assert np.isfinite([value, variance]).all() and -1 <= value <= 1 and variance >= 0
  last, seen = s / 8 - 1, (16 + 2 * s) / 24 - 1
  assert last - 0.1 <= value <= seen + 0.1 and variance < 0.1
  assert all(np.isfinite(y).all() for y in state)


def stream(drift, misfit, steps=30, prompts=64, width=8, k=4, seed=0):
  """(features, s, mean reward) of a policy whose u moves by `drift` a step."""
  rng = np.random.default_rng(seed)
  u = rng.normal(size=width) * 0.6
  for _ in range(steps):
    u = np.sqrt(1 - drift) * u + np.sqrt(drift) * 0.6 * rng.normal(size=width)
    x = rng.normal(size=(prompts, width)).astype(np.float32)
    p = 1 / (1 + np.exp(-x @ u - np.sqrt(misfit) * rng.normal(size=prompts)))
    yield x, rng.binomial(k, p).astype(np.float32), 2 * p - 1


@pytest.mark.parametrize("drift, misfit", [(0.0, 1.0), (0.3, 1.0)])
def test_its_intervals_hold_what_they_say_and_it_finds_how_fast_to_forget(drift, misfit):
  many = members(*zip(*itertools.product((1.0, 0.5), (0.0, 1.0), (3.0,))))
  state, inside, error, said = logistic.empty(many, 8), [], [], []
  for step, (x, s, mu) in enumerate(stream(drift, misfit)):
    value, variance = (np.asarray(y, float) for y in logistic.predict(many, state, x))
    state = logistic.learn(many, state, x, s, np.full(len(s), 4, np.float32))
    if step >= 5:
      n0 = (1 - value**2) / np.maximum(variance, 1e-9) - 1
      p = stats.beta(n0 * (1 + value) / 2, n0 * (1 - value) / 2).cdf((1 + mu) / 2)
      inside.append(np.abs(p - 0.5) < 0.4)
      error.append((value - mu) ** 2)
      said.append(variance)
  best = int(np.argmax(state.record))
  assert (many.kept[best], many.misfit[best]) == (0.5 if drift else 1.0, misfit)
  assert np.mean(inside) == pytest.approx(0.8, abs=0.08)
  assert np.mean(said) == pytest.approx(np.mean(error), rel=0.35)


# --- The plug


def test_components_are_half_whitened_and_leave_out_what_does_not_vary():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(400, 3)) @ np.diag([30.0, 1.0, 0.01]) @ rng.normal(size=(3, 7)) + 5
  mean, basis = probe.components(x, 16)
  found = (x - mean) @ basis
  assert found.shape == (400, 3)
  square = np.cov(found.T, bias=True)
  np.testing.assert_allclose(square, np.diag(np.diag(square)), atol=1e-4)
  assert np.trace(square) == pytest.approx(3, rel=1e-4)
  spread = np.sqrt(np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1][:3])
  np.testing.assert_allclose(np.diag(square), spread / spread.mean(), rtol=1e-2)
  assert probe.components(x, 2)[1].shape == (7, 2)
  assert probe.components(np.ones((4, 7)), 16)[1].shape == (7, 1)
  assert np.isfinite(probe.components(np.ones((1, 7)), 16)[1]).all()
  # One prompt again and again, whose features round in several ways: no component.
  for width in (7, 1152):
    same = 3 + 2e-7 * np.random.default_rng(0).normal(size=(6, width))
    assert not probe.components(same, 16)[1].any()


def says(variance):
  """A prior that says that variance, or None."""
  ask = lambda state, prompts: (np.zeros(3), {"variance": variance})
  return base.Prior(ask, variance=None if variance is None else lambda asked: asked["variance"])


class ThreePrompts:
  mask, row, step = np.ones(3, bool), np.arange(3, dtype=np.int32), np.int32(0)


def test_what_a_prior_says_of_its_error_goes_through_wrappers_that_know_what_to_make_of_it():
  said = np.float32([0.1, np.nan, -1.0])
  prior = base.named("mine", says(said))
  told = lambda prior: base.variance(prior, prior.ask(prior.init(), ThreePrompts)[1], 3)
  np.testing.assert_array_equal(told(prior), np.float32([0.1, np.nan, np.nan]))
  assert np.isnan(told(base.named("mine", says(None)))).all()
  keep = lambda state, prompts, value, asked: (value, {})
  silent = base.wrapped("silent", base.Layer(keep), prior)
  assert np.isnan(told(silent)).all()
  double = base.wrapped("double", base.Layer(keep, variance=lambda own, inner: 2 * inner), prior)
  assert told(double)[0] == pytest.approx(0.2)
  assert np.isnan(told(base.wrapped("double", base.Layer(keep, variance=max), silent))).all()
  with pytest.raises(ValueError, match=r"variance: found the shape \(2,\), expected \(3,\)"):
    told(base.named("mine", says(np.zeros(2))))


def test_the_mean_that_stands_in_for_v_says_no_variance():
  layer = plug.find("wrapper", "fallback")(
    plug.defaults("wrapper", "fallback"), plug.Setting(small())
  )
  prior = base.wrapped("fallback", layer, base.named("mine", says(np.float32([0.1, 0.2, 0.3]))))
  state = prior.init()
  told = lambda state: base.variance(prior, prior.ask(state, ThreePrompts)[1], 3)
  np.testing.assert_allclose(told(state), [0.1, 0.2, 0.3])
  drift = state["fallback"].drift._replace(fallen=np.array(True))
  assert np.isnan(told(state | {"fallback": state["fallback"]._replace(drift=drift)})).all()


@pytest.mark.long
def test_a_run_with_it_resumes_bit_for_bit(few_devices, tmp_path):
  keys = {"prior.kind": "probe", "baseline": "precision", "observe": ("diagnostics",)}
  keys |= {"num_steps": 2, "eval.period": 0, "checkpoint.period": 1}
  state = train(small(**keys), str(tmp_path / "whole"))
  kept = state.prior["probe"]
  assert kept.record.count == 16 and np.asarray(kept.learnt.shift).any()
  assert kept.basis.shape[1] == kept.learnt.shift.shape[1] - 1
  shutil.copytree(tmp_path / "whole", tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
  again = train(small(**keys), str(tmp_path / "run"))
  assert lines(tmp_path / "run") == lines(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, again.prior, state.prior)
  last = lines(tmp_path / "run")[-1]
  assert last["prior/support"] == 8 and 0 < last["shrinkage/estimated_mse"] < 0.5
