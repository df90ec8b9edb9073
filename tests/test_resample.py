"""DAPO's dynamic sampling: which groups are kept, and that what is kept stays together."""

import types

import jax
import numpy as np
import pytest

from tests import support
from tests.test_train import small
from v05_jax import groups as grouping
from v05_jax import rewards, rng, step
from v05_jax.budgets.base import fixed_number
from v05_jax.configs import default
from v05_jax.estimators.base import Estimator
from v05_jax.priors.base import Prior
from v05_jax.sampling import resample, rollouts
from v05_jax.sampling.draw import Drawn, draw
from v05_jax.sampling.ledger import Order
from v05_jax.setup import Run, setup
from v05_jax.structs import Draw, TrainState
from v05_jax.update import optimizer, packing


def drawn(seed):
  prompts = support.prompts(6, seed=seed, capacity=8)
  place = np.arange(8, dtype=np.float32) + 10 * seed
  prompts = prompts.replace(position=prompts.position + 10 * seed, row=prompts.row + 10 * seed)
  verifier = support.Verifier(lambda text: float("b" in text or "d" in text))
  c = support.config()
  collect = support.collector(c, verifier=verifier)
  rolls, _ = collect(support.params(), prompts, rng.at(0, 0), Order(fixed_number(3)))
  shaping = -0.01 * place[:, None] * np.ones((8, 3), np.float32)
  groups = grouping.of_rollouts(rolls, c.rewards, shaping, prompts.row, 5, 2)
  return Draw(prompts, place, {}, rolls, groups, place + 1)


def test_groups_without_signal_are_dropped_and_the_rest_stays_whole():
  draws = [drawn(0), drawn(1)]
  keep = [resample.informative(one.groups) for one in draws]
  for one, kept in zip(draws, keep):
    rolls = one.rolls
    successes = np.where(rolls.mask, rolls.reward, 0).sum(1)
    np.testing.assert_array_equal(kept, (successes > 0) & (successes < rolls.mask.sum(1)))
  total = sum(int(k.sum()) for k in keep)
  assert 2 < total < 12, total
  taken = resample.select(draws, keep, total - 1)
  prompts, rolls = taken.prompts, taken.rolls
  np.testing.assert_array_equal(prompts.mask, np.arange(8) < total - 1)
  source = [(d, p) for d in range(2) for p in np.flatnonzero(keep[d])][: total - 1]
  for new, (d, p) in enumerate(source):
    old = draws[d]
    assert prompts.position[new] == old.prompts.position[p] and taken.value[new] == old.value[p]
    assert prompts.row[new] == old.prompts.row[p] and taken.importance[new] == old.importance[p]
    assert prompts.rows[new] is old.prompts.rows[p]
    np.testing.assert_array_equal(rolls.reward[new], old.rolls.reward[p])
    np.testing.assert_array_equal(
      rolls.tokens[rolls.prompt == new], old.rolls.tokens[old.rolls.prompt == p]
    )
    row = lambda tree, i: jax.tree.map(lambda x: np.asarray(x)[i] if np.ndim(x) else x, tree)
    jax.tree.map(np.testing.assert_array_equal, row(taken.groups, new), row(old.groups, p))
  assert taken.groups.step == 5 and taken.groups.first.mask.shape == (8, 2)
  assert not taken.groups.mask[total - 1 :].any() and not taken.groups.k[total - 1 :].any()
  # The packed batch is what the update sees: every kept rollout is in it, once.
  _, used = packing.pack(prompts, rolls, np.zeros((8, 3)), np.ones((8, 3)), (64, 21))
  assert used and len(rolls.prompt) == 3 * (total - 1)


def may_draw(times: int):
  """A config of steps that draw so often at most."""
  config = default.get_config()
  config.budget.max_resample = times - 1
  return config


def test_a_step_is_learnt_from_once_however_often_it_has_drawn():
  """In arrays of one size: what could have been drawn and was not counts for nothing."""
  draws = tuple(drawn(i)._replace(asked={"mine": {"place": np.arange(8) + 8 * i}}) for i in (0, 1))
  told = []

  def learn(*arguments):
    told.append(arguments[1:])
    return arguments[0], {}

  run = types.SimpleNamespace(
    config=may_draw(3),
    prior=Prior(ask=None, learn=learn),
    budget=fixed_number(3)._replace(learn=lambda *x: learn(*x)[0]),
    estimator=Estimator(baseline=None, learn=lambda *x: learn(*x)[0]),
  )
  fields = TrainState.__dataclass_fields__
  state = TrainState(**dict.fromkeys(fields) | {"step": 5, "rollouts": 0})
  after, _ = step.learn(run, state, Drawn(draws[0], draws, 12, {}))
  assert after.step == 6 and after.rollouts == sum(len(x.rolls.prompt) for x in draws)
  (asked, groups), *others = told
  np.testing.assert_array_equal(asked["mine"]["place"][:16], np.arange(16))
  for name in ("reward", "mask", "k", "row"):
    both = [getattr(draw.groups, name) for draw in draws]
    np.testing.assert_array_equal(getattr(groups, name)[:16], np.concatenate(both))
  assert groups.step == 5 and groups.unconditional.mask.shape == (24, 2)
  assert not groups.mask[16:].any() and not groups.unconditional.mask[16:].any()
  for same, value in others:
    assert same is groups
    np.testing.assert_array_equal(value[:16], np.concatenate([draw.value for draw in draws]))
  assert len(others) == 2


def test_groups_without_signal_are_replaced_by_those_of_further_prompts(few_devices):
  config = small(**{"eval.period": 0, "mesh.data": 1, "prior.kind": "none", "prior.wrappers": ()})
  config.observe = ()
  config.budget.update({"rule": "fixed", "k_init": 2, "k_max": 2, "max_resample": 2})
  with rewards.load(config) as verifier:
    run = setup(config)
    found = draw(run, rollouts.make(run.policy, config, run.mesh, verifier), run.init())
  places = [x.prompts.position[x.prompts.mask].tolist() for x in found.draws]
  kept = [int(resample.informative(x.groups).sum()) for x in found.draws]
  missing = len(places[0])
  assert len(places) == 3
  for place, kept_of_it in zip(places, kept):
    assert len(place) == missing  # as many at a time as are missing
    missing -= kept_of_it
  assert np.concatenate(places).tolist() == list(range(found.cursor))
  assert int(found.taken.prompts.mask.sum()) == sum(kept) > kept[0]
  assert found.generated == 2 * found.cursor


def test_the_running_mean_of_rollouts_a_prompt():
  draws, fixed = (drawn(0), drawn(1)), fixed_number(3)
  same = lambda *x: x[0]
  run = types.SimpleNamespace(
    config=may_draw(2),
    prior=Prior(ask=None, learn=lambda *x: (x[0], {})),
    budget=fixed._replace(learn=same, limits=fixed.limits._replace(mean=None)),
    estimator=Estimator(baseline=None, learn=same),
  )
  fields = TrainState.__dataclass_fields__
  state = TrainState(**dict.fromkeys(fields) | {"step": 5, "rollouts": 0, "mean_k": 10.0})
  after, _ = step.learn(run, state, Drawn(draws[0], draws, 12, {}))
  assert after.mean_k == np.float32(0.8 * 10 + 0.2 * 36 / 6)  # 36 rollouts for the 6 that are taken
  run.budget = run.budget._replace(limits=fixed.limits)
  assert step.learn(run, state, Drawn(draws[0], draws, 12, {}))[0].mean_k == 10


@pytest.mark.parametrize(
  "mean_k, minibatches, expected",
  [
    (4, 2, 32),
    (16, 2, 8),
    (10, 2, 12),
    (10, 1, 13),
    (10, 4, 12),
    (100, 2, 2),
    (1e4, 2, 2),
    (2, 2, 40),
  ],
)
def test_prompts_of_a_step(mean_k, minibatches, expected):
  """128 rollouts, in whole minibatches, of at most 40 prompts."""
  loss, sizes = types.SimpleNamespace(minibatches=minibatches), types.SimpleNamespace(prompts=40)
  config = types.SimpleNamespace(rollouts_per_step=128, loss=loss)
  run = types.SimpleNamespace(config=config, shapes=sizes)
  assert Run.prompts_per_step(run, mean_k) == expected


def test_a_schedule_ends_with_the_last_update():
  config = default.get_config()
  config.num_steps = 5
  config.loss.update({"minibatches": 3, "epochs": 2})
  assert optimizer.total_updates(config) == 30


def test_signal_is_what_the_loss_sees():
  """Rewards that differ outside of their range alone are equal for the loss."""
  reward = np.array([[2, 3, 9], [1, 3, 1], [-1, 0, -5], [-1, 0.5, 0], [2, np.nan, 0.5], [0, 1, 0]])
  mask = np.ones((6, 3), bool)
  mask[5, 1] = False
  groups = grouping.make(grouping.map_reward(reward, 0.0, 1.0), mask)
  found = resample.informative(groups)
  np.testing.assert_array_equal(found, [False, False, False, True, True, False])


def test_a_shortage_of_groups_leaves_padding():
  taken = resample.select([drawn(0)], [np.arange(8) == 2], 6)
  rolls = taken.rolls
  assert taken.prompts.mask.sum() == 1 and set(rolls.prompt.tolist()) == {0}
  assert not rolls.mask[1:].any() and np.isnan(taken.value[1:]).all()
