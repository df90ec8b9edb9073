"""The estimators of docs/rivals.md: each equation by hand, and a training step of each."""

import itertools

import jax
import numpy as np
import pytest

from tests import support
from tests.test_train import small
from v05_jax import groups as grouping
from v05_jax import plug, rewards, step
from v05_jax.budgets.base import Asked
from v05_jax.configs import sao
from v05_jax.estimators import base as estimators
from v05_jax.estimators import basis, dbb, ebpo, kae, poise
from v05_jax.priors import critic
from v05_jax.run import metrics
from v05_jax.run.export import restored
from v05_jax.sampling import draw as drawing
from v05_jax.sampling import rollouts
from v05_jax.setup import setup
from v05_jax.train import train

RIVALS = ("opo", "dbb", "kae", "ebpo", "basis", "poise")
KINDS = (*RIVALS, "maxrl")


def make(kind, rows=8, **options):
  """An estimator whose state is not kept under its name."""
  given = plug.defaults("estimator", kind, **options)
  return plug.find("estimator", kind)(given, plug.Setting(None, rows=rows))


def groups_of(reward, **more):
  """Groups of rewards, NaN = no rollout."""
  reward = np.asarray(reward, float)
  return grouping.make(reward, np.isfinite(reward), **more)


def none(groups):
  return np.full(len(groups.k), np.nan)


@pytest.fixture(autouse=True)
def precise(request):
  with jax.enable_x64("step" not in request.node.name):
    yield


# --- By hand


def test_opo():
  groups = groups_of([[1, -1, 1], [1, np.nan, np.nan]], length=np.array([[1, 2, 5], [3, 9, 9]]))
  estimator = make("opo")
  got, found = estimators.advantages(estimator, (), groups, none(groups))
  np.testing.assert_allclose(got, [[0.5, -1.5, 0.5], [0, 0, 0]], atol=1e-5)  # (1 - 2 + 5) / 8
  np.testing.assert_allclose(found["baseline"], [0.5, 1], atol=1e-5)
  unseen = estimator.unseen((), groups, none(groups))
  np.testing.assert_allclose(unseen[0], [3 / 7, 1, -1 / 3], atol=1e-5)
  assert unseen[1, 0] == 0


def test_dbb():
  estimator = make("dbb", discount=0.5)
  groups = groups_of([[1, 1, 1, -1]], row=np.array([3]))
  state = estimator.init()
  # alpha = .5 + 3, beta = .5 + 1: p = .7
  got, found = estimators.advantages(estimator, state, groups, none(groups))
  won, lost = 0.3 / np.sqrt(0.21), -0.7 / np.sqrt(0.21)
  np.testing.assert_allclose(got, [[won, won, won, lost]], rtol=1e-5)
  np.testing.assert_allclose(found["baseline"], 0.4)
  unseen = estimator.unseen(state, groups, none(groups))  # 2.5 of 4, or 3.5 of 4
  np.testing.assert_allclose(unseen, [[0.25, 0.25, 0.25, 0.75]])
  state = estimator.learn(state, groups, none(groups))
  np.testing.assert_allclose(state[3], [3.5, 1.5])
  np.testing.assert_allclose(np.delete(state, 3, axis=0), 1.0)
  # all fail: the deviation does not vanish as a group's own does
  failed = groups_of([[-1] * 4], row=np.array([3]))
  got, _ = estimators.advantages(estimator, state, failed, none(failed))
  p = 1.75 / 6.5
  np.testing.assert_allclose(got, -np.sqrt(p / (1 - p)), rtol=1e-5)
  assert estimator.expect(state, np.array([3]), 9, none(failed)) == pytest.approx(0.4)


def test_dbb_discounts_a_prompt_that_stands_twice_in_a_batch_once():
  before = np.ones((4, 2))
  row, s, k = np.array([2, 2, 0]), np.array([1.0, 0, 0]), np.array([1.0, 2, 0])
  after = dbb.remember(before, row, s, k, 0.5)
  np.testing.assert_allclose(after, [[1, 1], [1, 1], [1.5, 2.5], [1, 1]])


def test_ebpo():
  groups = groups_of([[1, 1, -1, -1], [1] * 4, [np.nan] * 4])
  estimator = make("ebpo")
  state = estimator.init()
  # mean .5 and variance .75 of the rewards, variance .25 of the means 0 and 1
  share = (0.75 / 4) / (0.75 / 4 + 0.25)
  baseline = np.array([share * 0.5, 1 - share * 0.5, 0.5])
  got, found = estimators.advantages(estimator, state, groups, none(groups))
  np.testing.assert_allclose(found["baseline"], baseline)
  raw = (groups.reward - baseline[:, None])[:2]
  np.testing.assert_allclose(got[:2], (raw - raw.mean()) / (raw.std() + 1e-6), rtol=1e-5)
  assert not np.any(got[2])
  np.testing.assert_allclose(
    estimator.unseen(state, groups, none(groups))[:2], [[-1 / 3, -1 / 3, 1 / 3, 1 / 3], [1] * 4]
  )
  # of three others, by the moments before
  state = estimator.learn(state, groups, none(groups))
  share = (0.75 / 3) / (0.75 / 3 + 0.25)
  unseen = estimator.unseen(state, groups, none(groups))
  others = np.array([-1 / 3, -1 / 3, 1 / 3, 1 / 3])
  np.testing.assert_allclose(unseen[0], others + share * (0.5 - others))
  alone = groups_of([[-1.0]])
  assert estimator.unseen(state, alone, none(alone))[0, 0] == 0.5  # the mean of all training
  # the penalty of a group that failed as a whole: -S (mu - r)
  failed = groups_of([[-1] * 4, [1] * 4])
  base = estimator.baseline(state, failed, none(failed))
  assert -1 < base[0, 0] < 0.5


def test_ebpos_moments_are_those_of_everything_at_once():
  rng = np.random.default_rng(0)
  part = lambda n: np.where(rng.random((n, 4)) < 0.9, rng.uniform(-1, 1, (n, 4)), np.nan)
  parts = [part(n) for n in (1, 7, 9)]
  moments = make("ebpo").init()
  for part in parts:
    moments = ebpo.taken_in(moments, groups_of(part))
  every = np.concatenate(parts)
  means = np.array([np.nanmean(row) for row in every if np.isfinite(row).any()])
  for i, x in enumerate((every[np.isfinite(every)], means)):
    found = [float(field[i]) for field in moments]
    np.testing.assert_allclose(found, [len(x), x.mean(), len(x) * x.var()], rtol=1e-9)


def test_kae():
  estimator = make("kae", bandwidth=1.0)
  state, row = estimator.init(), np.array([5])
  for at, rewards_ in ((0, [1, -1]), (2, [1, 1])):
    seen = groups_of([rewards_], row=row, step=np.int32(at))
    state = estimator.learn(state, seen, none(seen))
  now = groups_of([[1, -1]], row=row, step=np.int32(5))
  # the 6th step: weights 1 - 5/6 and 1 - 3/6 of the visits in the 1st and 3rd
  successes, all_of_them = 1 / 6 + 2 / 2, 2 / 6 + 2 / 2
  want = [2 * (successes + other) / (all_of_them + 1) - 1 for other in (0, 1)]
  np.testing.assert_allclose(estimator.baseline(state, now, none(now)), [want], atol=1e-6)
  # a narrow kernel sees none of them, and a rollout alone then has 0
  narrow = make("kae", bandwidth=0.1)
  np.testing.assert_allclose(narrow.baseline(state, now, none(now)), [[-1, 1]])
  alone = groups_of([[1.0]], row=row, step=np.int32(5))
  assert narrow.baseline(state, alone, none(alone))[0, 0] == 0
  other = groups_of([[1, -1]], row=np.array([4]), step=np.int32(5))
  np.testing.assert_allclose(estimator.baseline(state, other, none(other)), [[-1, 1]])


def test_kae_keeps_the_last_visits_and_one_for_a_step():
  visits = kae.empty(3)
  for at in range(kae.VISITS + 3):
    row = np.array([1, 1]) if at % 2 else np.array([1, 2])
    visits = kae.remember(visits, groups_of([[1, -1], [1, np.nan]], row=row, step=np.int32(at)))
  last = kae.VISITS + 3
  assert visits.step[1].tolist() == list(range(last, 3, -1))
  both = [3.0 if (at - 1) % 2 else 2.0 for at in range(last, 3, -1)]
  assert visits.rollouts[1].tolist() == both and not visits.rollouts[0].any()
  assert int((visits.rollouts[2] > 0).sum()) == 6


def test_basis():
  groups = groups_of([[1], [-1], [1], [np.nan]])
  value = np.array([0.0, np.nan, 0.6, 0.2])  # v = .5, .5, .8
  estimator = make("basis")
  got = estimator.baseline(estimator.init(), groups, value)
  # (0 / .5 + 1 / .2) / (.5 / .5 + .8 / .2) = 1; (1 / .5 + 1 / .2) / 5 = 1.4; (1 / .5) / 2 = 1
  np.testing.assert_allclose(got[:3], [[0], [0.4], [0.6]], rtol=1e-6)
  np.testing.assert_allclose(got[3], 2 * min(0.6 * 7 / 6, 1) - 1, rtol=1e-6)
  assert basis.values(np.zeros(1))[2, 0] == pytest.approx(np.log(1 + (np.e - 1) / 2))
  with jax.enable_x64(False):
    assert np.isfinite(basis.values(np.array([-1.0, 1.0, np.nan, np.inf], np.float32))).all()


def test_basis_is_unbiased_where_values_are_right_up_to_a_factor():
  v, c = np.array([0.2, 0.5, 0.6]), 1.2
  outcomes = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
  chance = np.prod(np.where(outcomes > 0, c * v, 1 - c * v), axis=1)
  each = np.array([basis.of_others(v, s, np.ones(3)) for s in outcomes])[:, 0]
  assert each.max() < 1  # no bound is active
  assert chance @ each == pytest.approx(c * v[0], rel=1e-6)


def test_basis_without_a_prior_is_the_mean_of_the_others_and_no_reward_is_its_own_baseline():
  reward = np.array([[1.0, -1], [1, 1], [-1, -1]])
  estimator, value = make("basis"), np.full(3, np.nan)
  got = estimator.baseline(estimator.init(), groups_of(reward), value)[:, 0]
  np.testing.assert_allclose(got, [0, -0.5, 0.5], atol=1e-9)
  flipped = reward.copy()
  flipped[1] = -1
  other = estimator.baseline(estimator.init(), groups_of(flipped), value)[:, 0]
  assert other[1] == got[1] and other[0] != got[0]


def test_basis_takes_the_temperature_that_has_fitted_best():
  """Where prompts of q = .2 and .5 have become those of beta log(1 + q (e^(1/beta) - 1)), with 1 /
  beta = 4."""
  rng = np.random.default_rng(0)
  value = np.where(np.arange(2000) % 2, 0.0, -0.6)
  p = np.asarray(basis.values(value))[4]
  assert basis.INVERSE[4] == 4
  groups = groups_of(np.where(rng.random(2000) < p, 1.0, -1.0)[:, None])
  estimator = make("basis")
  state = estimator.learn(estimator.init(), groups, value)
  assert int(np.argmin(state)) in (3, 4, 5)
  found = (estimator.baseline(state, groups, value)[:, 0] + 1) / 2
  assert np.abs(found - p).mean() < 0.05
  before = (estimator.baseline(estimator.init(), groups, value)[:, 0] + 1) / 2
  assert np.abs(before - p).mean() > np.abs(found - p).mean()


def rolls(seed=0, prompts=40, k=3):
  """Groups with statistics of their responses, and V."""
  rng = np.random.default_rng(seed)
  mu = rng.uniform(-0.9, 0.9, prompts)
  reward = np.where(rng.random((prompts, k)) < (1 + mu[:, None]) / 2, 1.0, -1.0)
  length = rng.integers(1, 9, (prompts, k))
  logprob = -length * (1 - mu[:, None]) * rng.uniform(0.5, 1, (prompts, k))
  score = length * rng.random((prompts, k))
  groups = groups_of(reward, length=length, logprob=logprob, score=score)
  return groups, np.clip(mu + 0.5 * rng.normal(size=prompts), -1, 1)


def test_poise_is_a_ridge_regression_on_the_other_rollouts():
  groups, value = rolls()
  estimator = make("poise")
  state = estimator.learn(estimator.init(), groups, value)
  shape = groups.reward.shape
  phi = np.stack(
    [
      np.broadcast_to(value[:, None], shape),
      groups.logprob / groups.length,
      groups.score / groups.length,
      np.log(groups.length),
    ],
    -1,
  )
  target = (groups.reward.sum(1, keepdims=True) - groups.reward) / 2
  x, y = phi.reshape(-1, 4), target.ravel()
  z = (x - x.mean(0)) / x.std(0)
  w = np.linalg.solve(z.T @ z + poise.ALPHA * np.eye(4), z.T @ (y - y.mean()))
  g = (y.mean() + z @ w).reshape(shape)
  want = np.clip((g.sum(1, keepdims=True) - g) / 2, -1, 1)
  got = np.asarray(estimator.baseline(state, groups, value))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert np.corrcoef(got.ravel(), groups.reward.ravel())[0, 1] > 0.3
  # neither the reward nor the features of a rollout are in its own baseline
  changed = groups._replace(reward=-groups.reward, logprob=groups.logprob.copy())
  changed.logprob[:, 0] *= 3
  again = np.asarray(estimator.baseline(state, changed, value))
  np.testing.assert_array_equal(again[:, 0], got[:, 0])
  assert np.abs(again[:, 1] - got[:, 1]).max() > 0.01


def test_poise_at_first_and_alone():
  groups, value = rolls(k=1)
  estimator = make("poise")
  got = estimator.baseline(estimator.init(), groups, value)
  np.testing.assert_allclose(got[:, 0], value)
  state = estimator.learn(estimator.init(), groups, value)
  assert state.count == 0  # nothing stands beside a rollout
  pairs, of_pairs = rolls(1)
  state = estimator.learn(state, pairs, of_pairs)
  found = np.asarray(estimator.baseline(state, groups, value))[:, 0]
  order = np.argsort(value)
  assert np.all(np.diff(found[order]) >= 0) and np.ptp(found) > 0.3  # by V alone


def test_maxrl():
  groups = groups_of([[1, -1, -1, -1], [1, 1, 1, 1], [-1] * 4])
  got, _ = estimators.advantages(make("maxrl"), (), groups, none(groups))
  np.testing.assert_allclose(got, [[3, -1, -1, -1], [0] * 4, [0] * 4], atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_maxrl_follows_the_first_terms_of_the_log_likelihood(k):
  """One logit: the mean over k rollouts of A grad log p has the expectation of the gradient of
  sum_{j < k} -(1 - p)^j / j."""
  p = 0.3
  outcomes = np.array(list(itertools.product([-1.0, 1.0], repeat=k)))
  chance = np.prod(np.where(outcomes > 0, p, 1 - p), axis=1)
  groups = groups_of(outcomes)
  advantage, _ = estimators.advantages(make("maxrl"), (), groups, none(groups))
  by_p = np.where(outcomes > 0, 1 / p, -1 / (1 - p))
  found = chance @ np.mean(np.asarray(advantage) * by_p, axis=1)
  assert found == pytest.approx(sum((1 - p) ** (j - 1) for j in range(1, k)), abs=1e-12)


# --- The critic


def test_the_critic_takes_two_steps_of_adam():
  rng, rate = np.random.default_rng(0), 0.01
  features = rng.normal(3.0, 2.0, (6, 4))
  features[:, 3] = 7.0  # says nothing
  reward, mask = rng.uniform(-1, 1, 6), np.array([1, 1, 0, 1, 1, 1], bool)
  state = critic.learn(critic.empty(4), features, reward, mask, (rate, 2))
  x = features[mask]
  z = np.divide(x - x.mean(0), x.std(0), out=np.zeros_like(x), where=x.std(0) > 0).clip(-5, 5)
  z, y = np.column_stack([z, np.ones(5)]), reward[mask]
  w, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
  for t in (1, 2):
    slope = 2 * z.T @ (z @ w - y) / 5
    m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
    w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
  np.testing.assert_allclose(state.head["weight"], w[:4], rtol=1e-4, atol=1e-7)
  assert float(state.head["bias"]) == pytest.approx(w[4], rel=1e-4)
  assert state.head["weight"][3] == 0 and state.count == 5
  still = critic.learn(state, features, reward, np.zeros(6, bool), (rate, 2))  # no verdict
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, still, state)))
  assert np.isnan(critic.predict(state, features, 6)).all()
  np.testing.assert_allclose(critic.predict(state, features, 5)[mask], z @ w, rtol=1e-4, atol=1e-6)


def test_the_critic_learns_what_is_linear():
  rng, state = np.random.default_rng(1), critic.empty(6)
  truth = rng.normal(size=6)
  for _ in range(150):
    x = rng.normal(size=(32, 6)) * [1, 2, 3, 4, 5, 6] + 10
    mu = np.tanh((x - 10) / [1, 2, 3, 4, 5, 6] @ truth / 3)
    reward = np.where(rng.random(32) < (1 + mu) / 2, 1.0, -1.0)
    state = critic.learn(state, x, reward, np.ones(32, bool), (0.01, 2))
  error = np.mean((np.asarray(critic.predict(state, x, 1)) - mu) ** 2)
  assert error < 0.25 * np.var(mu)


# --- The budget


def test_pilot_commit():
  rule = support.budget("pilot_commit", 4, 16)
  assert rule.first(np.zeros(3), np.array([True, True, False])).tolist() == [4, 4, 0]
  reward = np.full((6, 16), np.nan)
  for i, s in enumerate((0, 1, 3, 4)):
    reward[i, :4] = np.where(np.arange(4) < s, 1.0, -1.0)
  reward[4, :8] = [1.0, -1.0] * 4  # has got more already
  groups = groups_of(reward)
  issued = np.array([4, 4, 4, 4, 8, 4])  # of the last no rollout has a verdict
  more = rule.more((), groups, np.zeros(6), Asked(issued, np.ones(6, bool)))
  assert more.tolist() == [0, 12, 12, 0, 0, 0]
  assert rule.limits.unconditional == 4 and rule.limits.most == 16


# --- In training


@pytest.fixture(scope="module")
def sampled(few_devices):
  """(a run of four rollouts a prompt, what one step has drawn)."""
  config = small(**{"eval.period": 0, "mesh.data": 1, "prior.kind": "none", "prior.wrappers": ()})
  config.observe = ()
  with jax.enable_x64(False), rewards.load(config) as verifier:
    run = setup(config)
    collect = rollouts.make(run.policy, config, run.mesh, verifier)
    return run, drawing.draw(run, collect, run.init()).taken


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step(kind, sampled):
  """Advantages of rollouts that were sampled, an update by them, and what is learnt; twice."""
  run, taken = sampled
  setting = plug.Setting(run.config, len(run.prompts))
  estimator = estimators.named(kind, setting)
  learnt, params = estimator.init(), None
  for _ in range(2):
    call = jax.jit(lambda state, *x: estimators.advantages(estimator, state, *x))
    advantage, found = call(learnt, taken.groups, taken.value)
    assert np.isfinite(advantage).all() and np.any(advantage)
    assert np.isfinite(found["baseline"]).all() and np.abs(found["baseline"]).max() <= 1 + 1e-6
    unseen = (estimator.unseen or estimator.baseline)(learnt, taken.groups, taken.value)
    assert np.isfinite(unseen).all() and np.abs(unseen).max() <= 1 + 1e-6
    learnt = jax.jit(estimator.learn)(learnt, taken.groups, taken.value)
  before = run.init()
  params = jax.device_get(before.params)
  state, pairs = step.update(run, before, taken, advantage)
  assert pairs["grad/skipped"][0] == 0 and pairs["grad/norm"][0] > 0
  moved = jax.tree.map(lambda x, y: np.any(x != y), params, jax.device_get(state.params))
  assert any(jax.tree.leaves(moved))


@pytest.mark.long
@pytest.mark.usefixtures("few_devices")
def test_the_steps_of_sao(tmp_path):
  """Its config trains, the critic speaks from the second step on and comes back from a checkpoint,
  and the scoreboard assesses them all at one rollout a prompt, each in its leave-one-out form."""
  keys = {"num_steps": 2, "eval.period": 0, "mesh.data": 1, "prior.min_support": 32}
  keys |= {"loss.old_logprob": "recompute", "loss.correction": "icepop"}
  config = small(sao.get_config(), **keys, **{"loss.negative_tokens": 0.5})
  config.observe = ("diagnostics", "scoreboard")
  config.observers.scoreboard.estimators = RIVALS
  state = train(config, str(tmp_path))
  assert state.prior["critic"].count == 64
  lines = metrics.read(tmp_path)
  assert [line.get("prior/support") for line in lines] == [0, 32]
  last = lines[-1]
  assert 0 <= last["loss/clip_fraction"] < 1 and 0 <= last["loss/correction_fraction"] < 0.01
  for kind in RIVALS:
    assert np.isfinite(last[f"scoreboard/{kind}/difference"])
  assert set(state.observers["scoreboard"].learnt) >= {"dbb", "kae", "ebpo", "basis", "poise"}
  head = np.asarray(state.prior["critic"].head["weight"])
  assert np.isfinite(head).all() and head.any()
  again = restored(setup(config), str(tmp_path))[1]
  for x, y in zip(jax.tree.leaves(again.prior), jax.tree.leaves(state.prior), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.long
@pytest.mark.usefixtures("few_devices")
def test_the_steps_of_gspo_with_a_pilot(tmp_path):
  """One rollout for every prompt, and three more for those that fail."""
  keys = {"rule": "pilot_commit", "k_init": 1, "k_max": 4}
  keys = {f"budget.{name}": x for name, x in keys.items()} | {"budgets.pilot_commit.low": 0.0}
  keys |= {"num_steps": 2, "eval.period": 0, "checkpoint.period": 0, "mesh.data": 1}
  train(small(**keys, **{"loss.surrogate": "gspo", "baseline": "value"}), str(tmp_path))
  last = metrics.read(tmp_path)[-1]
  assert {name for name in last if name.startswith("k/hist/")} == {"k/hist/1", "k/hist/4"}
  assert last["grad/norm"] > 0 and 0 <= last["loss/clip_fraction"] < 1
