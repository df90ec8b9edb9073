"""What governs the gradient's noise: the observer, and --mode=noise."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from tests.test_train import small
from v05_jax import config as configuration
from v05_jax import groups as grouping
from v05_jax import main, plug
from v05_jax.configs import default
from v05_jax.models import decoder
from v05_jax.observers import noise
from v05_jax.observers.base import Observer
from v05_jax.run import metrics
from v05_jax.run import noise as mode
from v05_jax.structs import Rollouts
from v05_jax.update import losses, score_norms


def test_rho_and_the_weighted_reward_by_hand():
  reward = np.array([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]])
  mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
  groups = grouping.make(reward, mask, score=np.array([[1.0, 6, 2], [3, 8, 100]]))
  found = noise.of_scores(groups)
  # a reward of 0 is half a failure: (6 + 8 + 1) / 2.5 over (1 + 3 + 1) / 2.5
  assert noise.rho(found) == (pytest.approx(3.0), 1)
  assert found["noise/w_reward"] == (-10.0, 20.0)
  assert noise.rho(noise.of_scores(grouping.leading(groups, 1))) == (0, 0)  # no failure
  both = metrics.merge(found, noise.of_scores(grouping.leading(groups, 1)))
  assert noise.rho(both)[0] == pytest.approx(6 / (9 / 4.5))


def test_ratios_of_means_and_their_error():
  rng = np.random.default_rng(0)
  y = rng.gamma(2.0, 1.0, 400)
  moments = np.stack([y, 0.5 * y, y * rng.gamma(2.0, 1.0, 400)]).astype(np.float32)
  moments[1, ::7] = np.nan  # prompts that say nothing of an estimator
  known = np.isfinite(moments[1])
  sums = noise.empty(3)
  for part in (slice(10), slice(10, 400)):
    sums = noise.update(sums, moments[:, part], 0)
  assert sums.count == known.sum()
  rows = noise.standings(sums, ["v05", "score", "rloo"], 0)
  kinds = ("ratio", "standard_error")
  assert set(rows) == {f"noise/{x}/{y}" for x in ("score", "rloo") for y in kinds}
  x, y = moments[2][known], moments[0][known]
  assert rows["noise/rloo/ratio"][0] == pytest.approx(x.mean() / y.mean(), rel=1e-4)
  resampled = [x[i].mean() / y[i].mean() for i in rng.integers(0, len(x), (500, len(x)))]
  assert rows["noise/rloo/standard_error"][0] == pytest.approx(np.std(resampled), rel=0.15)
  assert rows["noise/score/ratio"][0] == pytest.approx(0.5)
  assert rows["noise/score/standard_error"][0] < 1e-3
  for nothing in (noise.empty(2), noise.update(noise.empty(2), np.zeros((2, 5)), 0)):
    assert np.isnan(noise.ratios(nothing, 0)).all()


def test_the_sample_size():
  assert noise.sample_size(np.full((4, 2), 0.3)) == pytest.approx(8)
  assert noise.sample_size(np.array([[0.0, 5.0]])) == 1 and noise.sample_size(np.zeros((2, 2))) == 0
  draw = types.SimpleNamespace(
    rolls=types.SimpleNamespace(tokens=np.zeros((3, 8)), length=np.array([[2, 4], [8, 0]])),
    groups=grouping.make([[1.0, -1.0], [1.0, 0]], [[1, 1], [1, 0]], score=[[4.0, 9], [1, 0]]),
    importance=np.array([1.0, 0.5]),
  )
  loss = default.get_config().loss
  loss.aggregate = "rollout"  # 1 / (3 length)
  advantage = np.array([[1.0, -2.0], [-1.0, 0.0]])
  want = np.array([[2 / 6, 6 / 12], [0.5 / 24, 0]])
  np.testing.assert_allclose(noise.shares(draw, advantage, loss), want, rtol=1e-6)


def observed(steps, rho, **keys):
  """(state, last metrics) of the observer after steps of 64 prompts with 2 rollouts and an exact V,
  failures rho times as long as successes."""
  config = default.get_config()
  config.observe = ("noise",)
  config.update(keys)
  observer = plug.make("observer", "noise", plug.Setting(config, rows=64), Observer)
  state, rng, found = observer.init(), np.random.default_rng(1), {}
  for step in range(steps):
    mu = rng.uniform(-0.9, 0.9, 64)
    reward = np.where(rng.random((64, 2)) < (1 + mu[:, None]) / 2, 1.0, -1.0).astype(np.float32)
    groups = grouping.make(
      reward, np.ones((64, 2), bool), score=np.where(reward > 0, 1.0, rho), step=np.int32(step)
    )
    rolls = types.SimpleNamespace(tokens=np.zeros((128, 4)), length=np.full((64, 2), 3))
    draw = types.SimpleNamespace(
      groups=groups, rolls=rolls, value=mu.astype(np.float32), asked={}, importance=np.ones(64)
    )
    shown = types.SimpleNamespace(drawn=(draw,), taken=draw, advantage=reward)
    state, found = observer.see(state, shown)
  return state, metrics.means(found)


def test_it_ranks_by_the_gradient_and_not_by_the_error():
  """Where failures are eight times as long, the true success rate is a worse baseline than one
  constant, which the scoreboard cannot see."""
  state, found = observed(30, 8.0)
  assert all(metrics.meaning(name) for name in found)
  assert found["noise/rho"] == pytest.approx(8)
  assert found["noise/w_reward"] == pytest.approx(-7 / 9, abs=0.05)
  assert {"noise/" + x for x in ("second_moment", "effective_sample_size")} <= set(found)
  assert "noise/v05/ratio" not in found and 0 < found["noise/effective_sample_size"] < 128
  ratio = lambda name: found[f"noise/{name}/ratio"]
  assert ratio("v05_score") < ratio("score") < 0.6 < ratio("value") < 1 < ratio("rloo")
  # of the exact V: E[w (r - mu)^2] over that of the constant -7/9
  mu = np.linspace(-0.9, 0.9, 1001)
  p, b = (1 + mu) / 2, -7 / 9
  of = lambda b: np.mean(p * (1 - b) ** 2 + 8 * (1 - p) * (1 + b) ** 2)
  error = 4 * (found["noise/score/standard_error"] + found["noise/value/standard_error"])
  assert ratio("score") / ratio("value") == pytest.approx(of(b) / of(mu), abs=error)
  assert state.moments.count == 30 * 64


def test_norms_are_those_of_each_rollouts_own_gradient():
  """On two devices, rollouts of several lengths, one without a verdict: against one sequence at a
  time, without packing."""
  prompts, rng = support.prompts(2), np.random.default_rng(0)
  length = np.array([[3, 7, 1], [5, 2, 0]], np.int32)
  prompt, index = np.nonzero(length)
  rolls = Rollouts(
    tokens=rng.integers(2, support.VOCAB, (5, 8)).astype(np.int32),
    **dict.fromkeys(("logprob", "sampled_logprob"), np.zeros((5, 8), np.float32)),
    prompt=prompt,
    index=index,
    length=length,
    reward=np.zeros((2, 3)),
    ended=length > 0,
    mask=np.array([[1, 1, 1], [0, 1, 0]], bool),
  )
  params, loss = support.params(), default.get_config().loss
  norms = score_norms.make(support.MODEL, loss, 0.7, support.mesh(2))
  found = norms(params, prompts, rolls)
  np.testing.assert_array_equal(np.isfinite(found), rolls.mask)

  @jax.jit
  def squared(tokens, responses):
    def total(params):
      inputs, place = tokens[None, :-1], jnp.arange(tokens.size - 1)[None]
      hidden = decoder.forward(support.MODEL, params, inputs, place, jnp.ones_like(inputs))
      matrix = decoder.unembed(support.MODEL, params)
      return jnp.sum(
        responses * losses.token_logprobs(hidden, matrix, tokens[None, 1:], 0.7, 64)[0]
      )

    return sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(total)(params)))

  for p, k in ((0, 1), (1, 1)):
    row, before = np.flatnonzero((prompt == p) & (index == k))[0], prompts.length[p]
    tokens = np.append(prompts.tokens[p, :before], rolls.tokens[row, : length[p, k]])
    responses = np.arange(len(tokens) - 1) >= before - 1
    assert found[p, k] == pytest.approx(float(squared(tokens, responses)), rel=1e-4)


@pytest.mark.usefixtures("few_devices")
def test_the_mode_on_the_shipped_policy(tmp_path):
  """noise.json is what its own data says; a table is printed."""
  config = small(**{"eval.period": 0, "mesh.data": 1, "baseline": "rloo"})
  config.observers.noise.estimators = ("score", "score_loo", "v05_score", "value")
  main.start(main.Command("noise", config, str(tmp_path), prompts=12))
  found = json.loads((tmp_path / "noise.json").read_text())
  assert found["prompts"] == 12 and found["rollouts"] == 48 and found["step"] is None
  rows = found["data"]
  reward, exact, w = (
    np.array([line[name] for line in rows]) for name in ("reward", "gradient", "score")
  )
  value = lambda name: found["statistics"][name]["value"]
  for name, x in (("gradient", exact), ("score", w)):
    assert value(f"rho, {name}") == pytest.approx(x[reward < 0].mean() / x[reward > 0].mean())
    assert value(f"b*, {name}") == pytest.approx(np.sum(x * reward) / np.sum(x))
    own = x * (reward - (reward.sum(1, keepdims=True) - reward) / 3) ** 2
    prior = x * (reward - np.array([line["value"] for line in rows])[:, None]) ** 2
    assert value(f"value, {name}") == pytest.approx(prior.sum() / own.sum(), rel=1e-4)
    assert value(f"rloo, {name}") == 1
  assert value("correlation") == pytest.approx(np.corrcoef(exact.ravel(), w.ravel())[0, 1])
  assert value(f"{mode.CONSTANT}, gradient") <= min(value("score, gradient"), 1)
  assert {path.name for path in tmp_path.iterdir()} == {"noise.json"}
  for each in found["statistics"].values():
    assert each["low"] <= each["value"] <= each["high"]


def test_without_a_success_there_is_no_rho():
  lengths = dict.fromkeys(mode.LENGTHS, np.ones((3, 2)))
  reward, squared = -np.ones((3, 2)), {"v05": np.ones((3, 2))}
  column = mode.columns(reward, np.ones((3, 2), bool), lengths, squared)
  means = {name: x.mean() for name, x in column.items()}
  found = mode.statistics(means, ["v05"], "v05")
  assert not np.isfinite(found["rho, gradient"]) and found["b*, gradient"] == -1
  shown = {name: mode._with_interval(x, np.full(9, x)) for name, x in found.items()}
  said = {"baseline": "v05", "prompts": 3, "rollouts": 6, "mean reward": -1.0, "statistics": shown}
  assert "no rho without a failure and a success" in mode.text("x", said)


def test_one_prompt_has_no_interval(tmp_path):
  with pytest.raises(ValueError, match="--prompts=1: expected at least 2"):
    mode.noise(default.get_config(), str(tmp_path), prompts=1)


@pytest.mark.parametrize(
  "most, wrappers, expected", [(4, (), 2), (1, ("history",), 1), (4, ("history",), 1)]
)
def test_one_first_rollout_is_measured_beside_another_where_nothing_else_is_known(
  most, wrappers, expected
):
  c = default.get_config()
  rule = "fixed" if most == 1 else "sequential"
  c.budget.update({"rule": rule, "k_init": 1, "k_max": most})
  c.prior.update({"kind": "none", "wrappers": wrappers})
  found = mode.plain(c, 8)
  configuration.validate(found)
  assert (found.budget.k_init, found.budget.k_max, found.budget.rule) == (
    expected,
    expected,
    "fixed",
  )


def test_observers_assess_all_draws_of_a_step_by_what_was_known_before_it():
  """With groups replaced (DAPO) a step draws more than once."""
  setting = plug.Setting(default.get_config(), rows=8)
  setting.config.budget.max_resample = 2
  options = plug.defaults("observer", "scoreboard", estimators=("ewa", "score"))
  observer = plug.find("observer", "scoreboard")(options, setting)
  rng = np.random.default_rng(0)

  def drawn(mask):
    reward = rng.choice(np.float32([-1, 1]), (4, 4))
    groups = grouping.make(reward, mask, score=rng.random((4, 4), np.float32))
    return types.SimpleNamespace(asked={}, groups=groups, value=np.zeros(4, np.float32))

  full = np.ones((4, 4), bool)
  one, two = drawn(full), drawn(full)
  step = lambda *draws: types.SimpleNamespace(drawn=draws)
  first = observer.see(observer.init(), step(drawn(full)))[0]
  both = observer.see(first, step(one, two))[1]
  each = [observer.see(first, step(x))[1] for x in (one, two)]
  for name in ("v05", "ewa", "score"):
    key = f"scoreboard/{name}/sq_adv"
    np.testing.assert_allclose(both[key], np.sum([x[key] for x in each], 0), rtol=1e-5)
