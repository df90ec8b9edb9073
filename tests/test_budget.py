import functools
import gc
import json
import math
import pathlib
from statistics import NormalDist
import sys
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import properties
from v05_jax import budget, groups, plug, shrinkage
from v05_jax.budgets import base as budgets
from v05_jax.configs import default
from v05_jax.estimators import beta_shrink, ewa

GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "estimator.json").read_text())
CASES = GOLDEN["static"]
COST = 1 / 256
RULES = tuple(plug.known("budget"))
BATCH_RULES = ("neyman", "value")  # which divide a known total among the prompts of a batch

# Prompts with mean score -1, -.8, ..., 1 in the reference sample.
COUNTS = np.array([505, 236, 177, 147, 156, 171, 143, 191, 251, 338, 757])


def test_no_plug_keeps_the_first_policy_s_weights():
  """The loop lets go of them once they are on the device."""
  config, made, alive = default.get_config(), [], {}
  for kind in ("budget", "estimator", "wrapper"):
    for name in plug.known(kind):
      weights = np.zeros(3)
      setting = plug.Setting(config, rows=4, policy=types.SimpleNamespace(params=weights))
      made.append(plug.find(kind, name)(plug.defaults(kind, name), setting))
      alive[name] = weakref.ref(weights)
  del weights, setting
  gc.collect()
  assert len(made) > 20 and not [name for name, known in alive.items() if known() is not None]


def column(name, none=np.inf):
  return np.array([none if case.get(name) is None else case[name] for case in CASES])


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-6), (False, 1e-5)])
def test_equal_to_the_reference_numbers(x64, tolerance):
  with jax.enable_x64(x64):
    delta2, k = column("D2"), column("k")
    np.testing.assert_allclose(
      budget.gain(delta2, k), column("gain"), rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(budget.mse(delta2, k), column("mse"), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(budget.should_continue(delta2, k, COST, 16), column("more"))
    final = budget.final_k(delta2, k, COST, 16)
    np.testing.assert_array_equal(final, column("k_next"))
    assert final.dtype == jnp.int32
    for i, case in enumerate(CASES):  # scalars alike, k as an integer
      assert bool(budget.should_continue(delta2[i], int(k[i]), COST, 16)) == case["more"]
      assert int(budget.final_k(delta2[i], int(k[i]), COST, 16)) == case["k_next"]


@pytest.mark.parametrize("x64", [True, False])
def test_decisions_through_fuse_equal_the_reference(x64):
  """From rewards to decisions, as a run takes them."""
  with jax.enable_x64(x64):
    value = column("V", none=np.nan)
    s, k = (
      np.array([sum((r + 1) / 2 for r in c["rewards"]) for c in CASES]),
      column("k").astype(np.int32),
    )
    ended = np.ones(len(k), bool)
    more = budget.extra("sequential", None, value, s, k, ended, k_max=16, cost=COST, block=1)
    np.testing.assert_array_equal(more, column("more"))
    two = budget.extra("two_stage", None, value, s, k, ended, k_max=16, cost=COST)
    np.testing.assert_array_equal(k + two, column("k_next"))
    assert more.dtype == two.dtype == jnp.int32


@pytest.mark.parametrize(
  "mu, value, want", [(1.0, -1.0, 16), (1.0, 0.0, 15), (-1.0, 0.0, 15), (1.0, 1.0, 4)]
)
def test_where_a_prompt_without_noise_stops(mu, value, want):
  """A bias of 2 stops at exactly 16 by the rule itself: k_max is far away."""
  k = 4
  while budget.should_continue(shrinkage.fuse(mu, k, value).delta2, k, COST, 100):
    k += 1
  assert k == want
  assert budget.final_k(shrinkage.fuse(mu, 4, value).delta2, 4, COST, 100) == want


def test_thresholds_on_delta2():
  """The least delta2 that goes on, for k = 4 .. 15; in float64, since at k = 15 it moves the gain
  little."""
  thresholds = np.array(
    [
      0.086898,
      0.095167,
      0.105177,
      0.117539,
      0.133195,
      0.153662,
      0.181560,
      0.221837,
      0.285078,
      0.398754,
      0.663213,
      1.969238,
    ]
  )
  k = np.arange(4, 16)
  with jax.enable_x64(True):
    assert not np.any(budget.should_continue(thresholds - 1e-6, k, COST, 100))
    assert np.all(budget.should_continue(thresholds + 1e-6, k, COST, 100))


def test_limits():
  """Equality is not enough to go on; k_max ends it; no prior and no rollout goes on; cost 0 goes on
  to k_max."""
  assert budget.gain(np.inf, 3) == pytest.approx(1 / 12)
  assert not budget.should_continue(np.inf, 1, 0.5, 16)  # gain 1/2 exactly
  assert budget.should_continue(np.inf, 1, 0.4999, 16)
  assert not budget.should_continue(1.0, 16, 0.0, 16) and budget.should_continue(1.0, 15, 0.0, 16)
  assert budget.should_continue(np.inf, 0, COST, 16) and budget.final_k(np.inf, 0, COST, 20) == 16
  assert budget.gain(0.0, 4) == 0 and not budget.should_continue(0.0, 4, 0.0, 16)
  for delta2 in (1e-30, 1e-6, 0.3, np.inf):
    assert budget.final_k(delta2, 4, 0.0, 16) == 16
  assert budget.final_k(0.0, 4, 0.0, 16) == 4
  assert budget.final_k(1e-30, 4, COST, 16) == 4 and budget.final_k(np.inf, 4, 1e-12, 16) == 16


def test_gain_is_what_one_more_rollout_saves():
  delta2, k = np.meshgrid(np.geomspace(1e-3, 4, 50), np.arange(1, 20))
  with jax.enable_x64(True):
    gain = budget.gain(delta2, k)
    np.testing.assert_allclose(gain, budget.mse(delta2, k) - budget.mse(delta2, k + 1), atol=1e-12)
    n = k + 1 / delta2
    np.testing.assert_allclose(gain, 1 / (n * (n + 1)), rtol=1e-9)


def test_two_stage_is_where_the_sequential_rule_stops_at_constant_delta2():
  rng = np.random.default_rng(0)
  for delta2 in rng.uniform(0, 2, 20):
    k = 4
    while budget.should_continue(delta2, k, COST, 16):
      k += 1
    assert budget.final_k(delta2, 4, COST, 16) == k


def test_gradients_are_finite():
  delta2 = np.array([0.0, 1e-30, 1e-6, 0.5, 4.0, np.inf])
  for f in (budget.mse, budget.gain):
    slope = jax.vmap(jax.grad(f), (0, None))(delta2, 4)
    assert np.isfinite(slope).all()


def test_extra_in_blocks_within_k_max_and_only_where_ended():
  value, s = np.array([-1.0, -1.0, -1.0, -1.0, 1.0, np.nan]), np.array([4.0, 15, 14, 4, 4, 0])
  k, ended = np.array([4, 15, 14, 4, 4, 0]), np.array([1, 1, 1, 0, 1, 1], bool)
  options = {"sequential": {"cost": COST, "block": 4}, "two_stage": {"cost": COST}}
  extra = lambda rule, **more: budget.extra(
    rule, None, value, s, k, ended, **({"k_max": 16} | options.get(rule, {}) | more)
  )
  np.testing.assert_array_equal(extra("sequential"), [4, 1, 2, 0, 0, 4])
  np.testing.assert_array_equal(extra("two_stage"), [12, 1, 2, 0, 0, 16])
  np.testing.assert_array_equal(extra("fixed"), np.zeros(6))
  real = np.array([0, 1, 1, 1, 1, 0], bool)
  np.testing.assert_array_equal(extra("sequential", real=real), [0, 1, 2, 0, 0, 0])
  np.testing.assert_array_equal(extra("two_stage", real=real), [0, 1, 2, 0, 0, 0])
  k_max = np.array([6, 15, 16, 16, 16, 3])  # a bound of each prompt
  np.testing.assert_array_equal(extra("two_stage", k_max=k_max), [2, 0, 2, 0, 0, 3])
  with pytest.raises(ValueError, match=r"budget\.rule.*'osla'"):
    extra("osla")
  with pytest.raises(ValueError, match=r"budget\.extra: found block, expected one of cost"):
    extra("two_stage", block=2)


@pytest.mark.parametrize("x64", [True, False])
def test_neyman_equals_the_reference_allocation(x64):
  case = GOLDEN["ewa"]
  with jax.enable_x64(x64):
    sigma2, var, k = (np.array(case[name]) for name in ("sigma2", "var", "k"))
    got = budget.neyman(sigma2, var, k, 72, np.maximum(k, 1), 16)
    np.testing.assert_array_equal(got, case["neyman72"])
    assert got.dtype == jnp.int32


@pytest.mark.parametrize("x64", [True, False])
def test_neyman_through_extra_equals_the_reference_allocation(x64):
  """From successes to rollouts, with the state that the batch itself has taught, as the reference
  has it."""
  case = GOLDEN["ewa"]
  with jax.enable_x64(x64):
    value = np.array([np.nan if v is None else v for v in case["V"]])
    s, k = np.array(case["s"]), np.array(case["k"], np.int32)
    state = shrinkage.ewa_update(shrinkage.ewa_init(), value, s, k)
    ended = np.ones(12, bool)
    got = budget.extra("neyman", state, value, s, k, ended, 72, k_max=16, real=ended)
    np.testing.assert_array_equal(k + got, case["neyman72"])
    assert got.dtype == jnp.int32


@pytest.mark.parametrize("count, issued", [(0, 0), (9, 0), (5, 4), (-1, 4)])
def test_a_rule_of_a_users_own_is_held_to_its_bounds(count, issued, tmp_path, monkeypatch):
  """A prompt without any rollout, or with more than there is room for, would never be done."""
  (tmp_path / "own_rule.py").write_text(
    "import numpy as np\nfrom v05_jax.budgets import base\n"
    "def some(options, setting):\n"
    "  of = lambda value, n: np.where(np.nan_to_num(value) > 0, n, 2)\n"
    "  limits = base.Limits(2, 8, None, 2, closes=False)\n"
    f"  return base.Budget(limits, lambda value, real: of(value, {count}),\n"
    f"    lambda state, groups, value, asked: of(value, {count}))\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  config = default.get_config()
  config.budget.rule = "own_rule:some"
  rule = budgets.make(plug.Setting(config))  # tried on prompts without a V
  value, real = np.array([-0.5, 0.5, 0.5]), np.array([True, True, False])
  which, most = ("more", 8 - issued) if issued else ("first", 8)
  if issued:
    asked = budgets.Asked(np.full(3, issued), real)
    ask = lambda value: rule.more(rule.init(), None, value, asked)
  else:
    ask = lambda value: rule.first(value, real)
  expected = f"budget.rule=own_rule:some: {which}: found {count} rollouts for a prompt, expected "
  with pytest.raises(ValueError, match=f"{expected}{0 if issued else 1} to {most}"):
    ask(value)
  np.testing.assert_array_equal(ask(np.full(3, -0.5)), [2, 2, 2])
  sys.modules.pop("own_rule")


def test_a_rule_that_begins_with_more_than_it_allows_is_refused_before_a_run(monkeypatch):
  rule = lambda options, setting: budgets.Budget(
    budgets.Limits(8, 4, None, 8, closes=True), budgets.constant(8)
  )
  monkeypatch.setattr(plug, "find", lambda kind, name: rule)
  with pytest.raises(ValueError, match="first: found 8 rollouts for a prompt, expected 1 to 4"):
    budgets.make(plug.Setting(default.get_config()))


@pytest.mark.parametrize("rule", BATCH_RULES)
def test_padding_gets_nothing_and_does_not_count(rule):
  rng = np.random.default_rng(1)
  state, value, s, k = (
    properties.taught(ewa),
    rng.uniform(-1, 1, 9),
    1.0 * rng.integers(0, 5, 9),
    np.full(9, 4),
  )
  ended = np.ones(9, bool)
  want = np.asarray(budget.extra(rule, state, value, s, k, ended, 85, k_max=16, real=True))
  assert np.sum(k + want) == 85 and len(set(want)) > 2
  padding = lambda x, fill: np.insert(x, [0, 5, 9], fill)
  got = np.asarray(
    budget.extra(
      rule,
      state,
      padding(value, 0.1),
      padding(s, 2),
      padding(k, 3),
      padding(ended, False),
      85,
      k_max=16,
      real=padding(ended, False),
    )
  )
  np.testing.assert_array_equal(got, padding(want, 0))


def test_the_value_rule_depends_on_the_prior_alone():
  rng = np.random.default_rng(2)
  value = np.array([np.nan, 0.0, 0.5, -0.5, 0.9, -0.9, 1.0, 3.0])
  ended, k = np.ones(8, bool), np.zeros(8, int)
  first = np.asarray(budget.extra("value", None, value, k, k, ended, 48, k_max=16))
  assert first.sum() == 48 and first[6] == first[7] == 0
  # 1 - V^2; no prior = 0
  assert first[0] == first[1] and first[2] == first[3] and first[4] == first[5]
  assert first[1] > first[2] > first[4]
  later = np.asarray(
    budget.extra("value", None, value, rng.integers(0, first + 1), first, ended, 48, k_max=16)
  )
  assert not later.any()  # whatever came out, nothing is added
  for k in (np.full(8, 2), np.minimum(first, 4)):
    answers = {
      tuple(
        k
        + np.asarray(
          budget.extra("value", None, value, rng.integers(0, k + 1), k, ended, 48, k_max=16)
        )
      )
      for _ in range(8)
    }
    assert len(answers) == 1 and sum(*answers) == 48
  # One prompt that has not ended gets nothing for now, and the others are not held up.
  got = budget.extra("value", None, value, k * 0, k * 0, ended & (np.arange(8) != 1), 48, k_max=16)
  np.testing.assert_array_equal(got, np.where(np.arange(8) == 1, 0, first))


@pytest.mark.parametrize("rule", RULES)
def test_rules_give_whole_numbers_within_bounds_for_any_input(rule):
  """NaN, infinite and out-of-range priors; k = 0, 1 and k_max; all-equal groups."""
  value = np.repeat([np.nan, np.inf, -np.inf, -5.0, 5.0, 0.0, -1.0, 0.3], 6)
  k = np.tile([0, 1, 1, 4, 4, 16], 8)
  s = np.tile([0.0, 0, 1, 0, 4, 7.3], 8)
  state, ended = properties.taught(ewa), np.ones(48, bool)
  options = {"sequential": {"cost": COST, "block": 3}, "two_stage": {"cost": COST}}.get(rule, {})
  for total in (0, int(k.sum()), 500, 10_000):
    got = np.asarray(budget.extra(rule, state, value, s, k, ended, total, k_max=16, **options))
    assert got.dtype == np.int32 and np.all(got >= 0) and np.all(k + got <= 16)
    if rule in BATCH_RULES:
      assert np.sum(k + got) == np.clip(total, k.sum(), 16 * 48)


def made(rule, **options):
  """The rule of a run."""
  config = default.get_config()
  config.budget.update({"rule": rule, "k_init": 4, "k_max": 16})
  config.budgets[rule].update(options)
  return plug.make("budget", rule, plug.Setting(config), budgets.Budget)


@pytest.mark.parametrize(
  "rule, options",
  [
    ("sequential", {"cost": COST, "block": 4}),
    ("two_stage", {"cost": COST}),
    ("neyman", {"k_mean": 8.0}),
  ],
)
def test_a_rollout_without_a_verdict_counts_as_bought(rule, options):
  """The rule of a run, told of lost verdicts, is `extra` with k_max and total less by them."""
  rng, state, differs = np.random.default_rng(3), properties.taught(ewa), False
  # The last is padding. Of a rule that goes on block by block, what is lost shows near k_max.
  issued = np.array([4, 4, 4, 14, 14, 0] if rule == "sequential" else [4, 4, 4, 4, 4, 0])
  real = issued > 0
  for _ in range(10):
    reward = np.where(rng.random((6, 16)) < 0.2, np.nan, rng.choice([-1.0, 1.0], (6, 16)))
    seen = groups.make(reward, np.arange(16) < issued[:, None])
    value = np.array([np.nan, *rng.uniform(-1, 1, 5)])
    ask = functools.partial(budget.extra, rule, state, value, seen.s, seen.k.astype(int), real)
    got = real * made(rule, **options).more(state, seen, value, budgets.Asked(issued, real))
    lost = issued - seen.k.astype(int)
    of_extra = {"total": 40 - lost.sum()} if rule == "neyman" else options
    np.testing.assert_array_equal(got, ask(k_max=16 - lost, real=real, **of_extra))
    assert np.all(issued + got <= 16) and (rule != "neyman" or np.sum(issued + got) == 40)
    of_extra = {"total": 40} if rule == "neyman" else options
    differs |= np.any(got != ask(k_max=16, real=real, **of_extra))
  assert differs


@pytest.mark.parametrize("rule", ["sequential", "two_stage", "neyman", "value"])
def test_a_prompt_without_rollouts_is_not_padding(rule):
  value, k = np.array([np.nan, 0.0, 0.1, 0.2]), np.array([0, 0, 4, 4])
  ask = lambda real: budget.extra(
    rule, properties.taught(ewa), value, k / 2, k, np.ones(4, bool), 32, real=real
  )
  assert ask(True)[0] > 0 and ask(np.array([False, True, True, True]))[0] == 0
  if rule in BATCH_RULES:
    assert np.sum(k + ask(True)) == 32


def population(sd, h):
  """(mu, V, mass), each [11, 400]: a normal error of the prior at 200 quantiles; a share h is
  hallucinated."""
  mu = np.repeat(np.linspace(-1, 1, 11)[:, None], 400, 1)
  z = np.array([NormalDist().inv_cdf((q + 0.5) / 200) for q in range(200)])
  wrong = mu[:, :200] - 1.2 * np.where(mu[:, :200] >= -1e-9, 1, -1)
  value = np.clip(np.concatenate([mu[:, :200] + sd * z, wrong], axis=1), -1, 1)
  mass = np.repeat([[(1 - h) / 200, h / 200]], 200, axis=1).reshape(-1, order="F")
  return mu, value, COUNTS[:, None] / COUNTS.sum() * mass


S = np.arange(17)  # successes; one shape for every k, so that each function compiles once


def binomial(k, mu):
  """Probability of s successes in k rollouts, [..., 17]."""
  p = (1 + mu[..., None]) / 2
  return np.array([math.comb(k, s) for s in S]) * p**S * (1 - p) ** np.maximum(k - S, 0)


def squared_error(mu, value, k):
  """(baseline - mu)^2 of V0.5 at every s, [..., 17]; where s > k it means nothing."""
  return np.square(
    np.asarray(shrinkage.fuse(2 * S / k - 1, k, value[..., None]).baseline) - mu[..., None]
  )


def decisions(rule, value, k):
  """`budget.extra` at every s, [..., 17]."""
  shape = (*value.shape, len(S))
  s, v = (np.broadcast_to(x, shape).ravel() for x in (S.astype(float), value[..., None]))
  ended = np.ones(s.shape, bool)
  return budget.extra(rule, None, v, s, k * ended, ended, k_max=16, cost=COST).reshape(shape)


@pytest.mark.parametrize("row", GOLDEN["accept"], ids=lambda row: f"sd{row['sd']}h{row['h']}")
def test_acceptance_table_by_exact_enumeration(row, monkeypatch):
  """No randomness: every outcome of up to 16 rollouts, weighted by its probability."""
  with jax.enable_x64(True):
    mu, value, mass = population(row["sd"], row["h"])
    error = {k: squared_error(mu, value, k) for k in (1, 2, *range(4, 17))}
    start = binomial(4, mu)
    got = {
      f"v05_{k}": np.sum(mass * np.sum(binomial(k, mu) * error[k], -1)) for k in (1, 2, 4, 8, 16)
    }

    alive, rollouts, loss = start, 0.0, 0.0  # probability of reaching (k, s) undecided
    p = (1 + mu[..., None]) / 2
    for k in range(4, 17):
      more = decisions("sequential", value, k) > 0
      stopped = np.where(more, 0.0, alive)
      rollouts += k * np.sum(mass * stopped.sum(-1))
      loss += np.sum(mass * np.sum(stopped * error[k], -1))
      alive = np.where(more, alive, 0.0)
      alive = alive * (1 - p) + np.roll(alive * p, 1, -1)
    assert not alive.any()
    got |= {"oslaK": rollouts, "oslaM": loss}

    final = 4 + decisions("two_stage", value, 4)
    rollouts, loss = np.sum(mass * np.sum(start * final, -1)), 0.0
    for k in range(4, 17):
      for s in range(5):
        here = np.where(final[..., s] == k, mass * start[..., s], 0.0)
        loss += np.sum(here[..., None] * binomial(k - 4, mu)[..., : 17 - s] * error[k][..., s:])
    got |= {"tsK": rollouts, "tsM": loss}

    groups = np.where(np.arange(4) < np.arange(5)[:, None], 1.0, -1.0)  # s = 0 .. 4 of 4
    ask = np.broadcast_to(groups, (*value.shape, 5, 4)).reshape(-1, 4)
    a2 = shrinkage.sq_loo("v05", ask, np.ones(ask.shape, bool), np.repeat(value.reshape(-1), 5))
    got["a2_v05"] = np.sum(
      mass * np.sum(start[..., :5] * np.asarray(a2).reshape(*value.shape, 5), -1)
    )

    # BetaShrink, with the strength that the whole population, known exactly, gives its prior. The
    # reference lets V reach 1 here.
    monkeypatch.setattr(beta_shrink, "MAX_PRIOR", 1.0)
    error2 = np.sum(mass * (value - mu) ** 2)
    got |= {"rmse": np.sqrt(error2), "n0": np.sum(mass * (1 - mu**2)) / error2}
    fit = beta_shrink.Fit(got["n0"], 0.0, 0.0, 0.0, 0.0)
    bb = lambda s, k: np.asarray(beta_shrink.posterior_mean(value[..., None], s, k, fit))
    for k in (4, 16):
      got[f"bb{k}"] = np.sum(mass * np.sum(binomial(k, mu) * (bb(S, k) - mu[..., None]) ** 2, -1))
    a2 = (S * (1 - bb(S - 1, 3)) ** 2 + (4 - S) * (-1 - bb(S, 3)) ** 2) / 4
    got["a2_bb"] = np.sum(mass * np.sum(start * a2, -1))
    got["a2true"] = np.sum(mass * (1 - mu**2))
    for k in (4, 16):
      mean = 2 * S / k - 1
      got[f"mean{k}"] = np.sum(mass * np.sum(binomial(k, mu) * (mean - mu[..., None]) ** 2, -1))
  assert set(got) == set(row) - {"sd", "h"}
  for name, x in got.items():
    assert x == pytest.approx(row[name], abs=1e-9), name
