"""DAPO's dynamic sampling: which groups are kept, and that what is kept stays together."""

import types

import jax
import numpy as np

from tests import support
from v05_jax import groups as grouping
from v05_jax import rng, step
from v05_jax.budgets.base import fixed_number
from v05_jax.estimators.base import Estimator
from v05_jax.priors.base import Prior
from v05_jax.sampling import resample
from v05_jax.sampling.draw import Drawn
from v05_jax.sampling.ledger import Order
from v05_jax.structs import Draw, TrainState
from v05_jax.update import packing


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
  keep = [resample.informative(draw.groups) for draw in draws]
  for draw, kept in zip(draws, keep):
    rolls = draw.rolls
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


def test_a_step_is_learnt_from_once_however_often_it_has_drawn():
  draws = tuple(drawn(i)._replace(asked={"mine": {"place": np.arange(8) + 8 * i}}) for i in (0, 1))
  told = []

  def learn(*arguments):
    told.append(arguments[1:])
    return arguments[0], {}

  run = types.SimpleNamespace(
    prior=Prior(ask=None, learn=learn),
    budget=fixed_number(3)._replace(learn=lambda *x: learn(*x)[0]),
    estimator=Estimator(baseline=None, learn=lambda *x: learn(*x)[0]),
  )
  fields = TrainState.__dataclass_fields__
  state = TrainState(**dict.fromkeys(fields) | {"step": 5, "rollouts": 0})
  after, _ = step.learn(run, state, Drawn(draws[0], draws, 12, {}))
  assert after.step == 6 and after.rollouts == sum(len(x.rolls.prompt) for x in draws)
  (asked, groups), *others = told
  np.testing.assert_array_equal(asked["mine"]["place"], np.arange(16))
  for name in ("reward", "mask", "k", "row"):
    both = [getattr(draw.groups, name) for draw in draws]
    np.testing.assert_array_equal(getattr(groups, name), np.concatenate(both))
  assert groups.step == 5 and groups.unconditional.mask.shape == (16, 2)
  for same, value in others:
    assert same is groups
    np.testing.assert_array_equal(value, np.concatenate([draw.value for draw in draws]))
  assert len(others) == 2


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
