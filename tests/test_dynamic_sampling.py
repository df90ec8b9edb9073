"""DAPO's dynamic sampling: which groups are kept, and that what is kept stays together."""

import numpy as np

from tests import support
from v05_jax import rng
from v05_jax.sampling import dynamic_sampling, rollouts
from v05_jax.update import packing


def draw(seed):
  prompts = support.prompts(6, seed=seed, capacity=8)
  prompts = prompts.replace(position=prompts.position + 10 * seed)
  verifier = support.Verifier(lambda text: float("b" in text or "d" in text))
  collect = support.collector(support.config(), verifier=verifier)
  rolls, _ = collect(support.params(), prompts, rng.at(0, 0), rollouts.Groups("fixed", 3, 3))
  return prompts, rolls, np.arange(8, dtype=np.float32) + 10 * seed


def test_groups_without_signal_are_dropped_and_the_rest_stays_whole():
  draws = [draw(0), draw(1)]
  keep = [dynamic_sampling.informative(rolls) for _, rolls, _ in draws]
  for (_, rolls, _), kept in zip(draws, keep):
    successes = np.where(rolls.mask, rolls.reward, 0).sum(1)
    np.testing.assert_array_equal(kept, (successes > 0) & (successes < rolls.mask.sum(1)))
  total = sum(int(k.sum()) for k in keep)
  assert 2 < total < 12, total
  prompts, rolls, value = dynamic_sampling.select(draws, keep, total - 1)
  np.testing.assert_array_equal(prompts.mask, np.arange(8) < total - 1)
  source = [(d, p) for d in range(2) for p in np.flatnonzero(keep[d])][: total - 1]
  for new, (d, p) in enumerate(source):
    old_prompts, old_rolls, old_value = draws[d]
    assert prompts.position[new] == old_prompts.position[p] and value[new] == old_value[p]
    assert prompts.rows[new] is old_prompts.rows[p]
    np.testing.assert_array_equal(rolls.reward[new], old_rolls.reward[p])
    np.testing.assert_array_equal(
      rolls.tokens[rolls.prompt == new], old_rolls.tokens[old_rolls.prompt == p]
    )
  # The packed batch is what the update sees: every kept rollout is in it, once.
  _, used = packing.pack(prompts, rolls, np.zeros((8, 3)), np.ones((8, 3)), (64, 21))
  assert used and len(rolls.prompt) == 3 * (total - 1)


def test_a_shortage_of_groups_leaves_padding():
  draws = [draw(0)]
  keep = [np.arange(8) == 2]
  prompts, rolls, _ = dynamic_sampling.select(draws, keep, 6)
  assert prompts.mask.sum() == 1 and set(rolls.prompt.tolist()) == {0} and not rolls.mask[1:].any()
