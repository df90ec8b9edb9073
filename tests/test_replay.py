"""Older rollouts in a further update: which wait, which are drawn, how they are packed."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests import support
from tests.test_train import lines, small
from v05_jax import config as configuration
from v05_jax import groups as grouping
from v05_jax.run import checkpoint
from v05_jax.structs import Draw, Rollouts
from v05_jax.train import train
from v05_jax.update import packing, replay

P, K, T, R = 4, 2, 10, 12  # as support.prompts and support.config


def config(**loss):
  c = support.config()
  c.loss.update({"replay": 3, "replay_age": 2, "minibatches": 1, "micro_rows": 4} | loss)
  return c


def a_draw(seed=0, mask=((1, 1), (1, 0), (1, 1), (0, 0))) -> Draw:
  """Rollouts of three prompts, the fourth is padding."""
  rng, mask = np.random.default_rng(seed), np.array(mask, bool)
  prompts = support.prompts(3, seed, capacity=P)
  prompt, index = np.nonzero(mask)
  tokens = rng.integers(2, support.VOCAB, (len(prompt), R)).astype(np.int32)
  logprob = -rng.random((len(prompt), R)).astype(np.float32)
  length = np.where(mask, rng.integers(1, R + 1, mask.shape), 0).astype(np.int32)
  reward = np.where(mask, 1.0, np.nan).astype(np.float32)
  rolls = Rollouts(
    tokens=tokens,
    logprob=logprob,
    sampled_logprob=logprob,
    prompt=prompt.astype(np.int32),
    index=index.astype(np.int32),
    length=length,
    reward=reward,
    ended=mask,
    mask=mask,
  )
  importance = np.array([1, 2, 3, 1], np.float32)
  return Draw(prompts, np.zeros(P), {}, rolls, grouping.make(reward, mask), importance)


def advantages(*flat):
  """[P, K] of the five rollouts of `a_draw`."""
  found = np.zeros((P, K), np.float32)
  found[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]] = flat
  return found


def test_what_waits():
  """The largest |advantage| of the last steps; none without one, none that would be too old."""
  empty = replay.init(config())["buffer"]
  assert len(empty.step) == 6 and not replay.waits(empty, 0, 2).any()
  first = replay.keep(empty, a_draw(), advantages(0.5, -2, 0, 1, np.nan), step=4, age=2)
  assert sorted(first.advantage[first.step == 4]) == [-2, 0.5, 1]
  assert (first.step != replay.NEVER).sum() == 3
  broken = replay.keep(empty, a_draw(), advantages(0.5, np.inf, 0, 1, np.nan), step=4, age=2)
  assert (
    sorted(broken.advantage[broken.step == 4]) == [0.5, 1] and np.isfinite(broken.advantage).all()
  )
  flat = a_draw().rolls
  place = int(np.argmin(first.advantage))  # rollout 1 of prompt 0, which is flat row 1
  np.testing.assert_array_equal(first.tokens[place], flat.tokens[1])
  np.testing.assert_array_equal(first.logprob[place], flat.logprob[1])
  assert first.length[place] == flat.length[0, 1] and first.importance[place] == 1
  second = replay.keep(first, a_draw(1), advantages(3, 0.1, 0.2, 0.3, 0.4), step=5, age=2)
  # six places: .1 and .2 are the smallest of eight
  assert sorted(np.abs(second.advantage)) == pytest.approx([0.3, 0.4, 0.5, 1, 2, 3])
  third = replay.keep(second, a_draw(2), advantages(0, 0, 0, 0, 0.01), step=6, age=2)
  assert sorted(third.step[third.step != replay.NEVER]) == [5, 5, 5, 6]  # step 4 is too old at 7
  assert replay.waits(third, 7, 2).sum() == 4 and replay.waits(third, 8, 2).sum() == 1


def test_a_rollout_without_finite_log_probs_does_not_wait():
  """It would have every update that it is in skipped."""
  drawn = a_draw()
  drawn.rolls.logprob[1, 3] = np.nan
  kept = replay.keep(
    replay.init(config())["buffer"], drawn, advantages(0.5, -2, 0, 1, 0), step=4, age=2
  )
  assert sorted(kept.advantage[kept.step == 4]) == [0.5, 1]


def test_chances_follow_the_advantage():
  kept = replay.init(config())["buffer"]
  kept = kept._replace(
    advantage=np.float32([1, -2, 3, 0, 0, 0]), step=np.int32([1, 1, 1, -1, 0, -1])
  )
  uniforms = (np.arange(600) + 0.5) / 600
  drawn = [replay.choose(kept, 2, 1, 1, uniform) for uniform in uniforms]
  assert {len(x) for x in drawn} == {1}
  share = np.bincount(np.concatenate(drawn), minlength=6) / 600
  np.testing.assert_allclose(share, [1 / 6, 2 / 6, 3 / 6, 0, 0, 0], atol=0.002)
  np.testing.assert_array_equal(replay.choose(kept, 2, 3, 1, 0.9), [0, 1, 2])  # all that there are
  assert len(replay.choose(kept, 3, 3, 1, 0.9)) == 0


def test_an_update_sees_both():
  """Each replayed rollout stands in the batch with its own prompt, advantage and log-probs, as a
  prompt of one rollout; the fresh ones stand there as they do without."""
  c, old, fresh = config(), a_draw(7), a_draw(8)
  kept = replay.keep(replay.init(c)["buffer"], old, advantages(5, 0, -7, 0, 0), step=0, age=2)
  state = SimpleNamespace(step=np.int32(1), replay={"buffer": kept})
  own = advantages(1, 2, 3, 4, 6)
  taken, advantage, after, found = replay.extend(c, state, fresh, own)
  assert found["replay/rollouts"] == (2, 1) and found["replay/age"] == (2, 2)
  assert found["replay/advantage"] == (12, 2)
  assert set(np.abs(after["buffer"].advantage)) == {2, 3, 4, 5, 6, 7}
  assert taken.prompts.mask.tolist() == [True] * 3 + [False] + [True] * 2 + [False]
  ((batch, _),) = packing.minibatches(
    taken.prompts, taken.rolls, advantage, c.loss, support.mesh(), taken.importance
  )
  for a, row, (p, k), draw in ((5, 0, (0, 0), old), (-7, 2, (1, 0), old), (4, 3, (2, 0), fresh)):
    here = np.asarray(batch.advantage) == a
    length, rolls = draw.rolls.length[p, k], draw.rolls
    np.testing.assert_array_equal(batch.target[here], rolls.tokens[row, :length])
    np.testing.assert_array_equal(batch.old_logprob[here], rolls.logprob[row, :length])
    segment = np.unique(np.asarray(batch.prompt)[here])
    places = (np.asarray(batch.segment) == segment) & np.any(here, axis=-1, keepdims=True)
    before = draw.prompts.tokens[p, : draw.prompts.length[p] - 1]
    np.testing.assert_array_equal(np.asarray(batch.tokens)[places], before)
  # five prompts count alike, but for their importance: .2 for all of a prompt's rollouts
  weight = lambda a: np.asarray(batch.weight)[np.asarray(batch.advantage) == a].sum()
  assert weight(5) == pytest.approx(0.2) and weight(-7) == pytest.approx(0.4)
  assert weight(1) + weight(2) == pytest.approx(0.2) and weight(4) + weight(6) == pytest.approx(0.6)


def test_every_minibatch_has_some():
  c = config(minibatches=2, replay=4)
  kept = replay.keep(replay.init(c)["buffer"], a_draw(7), advantages(9, 9, 9, 9, 0), step=0, age=2)
  state = SimpleNamespace(step=np.int32(1), replay={"buffer": kept})
  taken, advantage, *_ = replay.extend(c, state, a_draw(8), advantages(1, 1, 1, 1, 1))
  parts = packing.minibatches(taken.prompts, taken.rolls, advantage, c.loss, support.mesh())
  assert len({jax.tree.map(np.shape, batch) for batch, _ in parts}) == 1
  count = lambda batch: len(np.unique(np.asarray(batch.segment)[np.asarray(batch.advantage) == 9]))
  assert all(count(batch) for batch, _ in parts)


def test_off():
  assert replay.init(config(replay=0)) == {}


@pytest.mark.parametrize(
  "key, value", [("old_logprob", "recompute"), ("surrogate", "reinforce"), ("replay_age", 0)]
)
def test_bad_input(key, value):
  c = config(**{key: value})
  with pytest.raises(ValueError, match=f"loss.{key}: found {value!r}, expected"):
    configuration.validate(c)


@pytest.mark.usefixtures("few_devices")
def test_training_goes_on_where_it_stopped(tmp_path):
  """What waits is part of a checkpoint: two steps and one more are the same as three."""
  keys = {"loss.replay": 8, "loss.replay_age": 2, "mesh.data": 1, "eval.period": 0}
  keys |= {"num_steps": 3, "observe": ("diagnostics",), "checkpoint.period": 2}
  state = train(small(**keys), str(tmp_path / "whole"))
  whole = lines(tmp_path / "whole")
  assert [line["replay/rollouts"] for line in whole] == [0, 8, 8]
  assert whole[0]["replay/age"] is None and 1 <= whole[2]["replay/age"] <= 2
  assert whole[2]["loss/logprob_gap"] > 2 * whole[0]["loss/logprob_gap"]  # of another policy
  train(small(**keys | {"num_steps": 2}), str(tmp_path / "parts"))
  with checkpoint.Checkpoints(tmp_path / "parts", 1) as saved:
    assert saved.steps() == [2]
  again = train(small(**keys), str(tmp_path / "parts"))
  assert lines(tmp_path / "parts") == whole
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(x, y)
