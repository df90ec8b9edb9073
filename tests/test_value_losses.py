"""V0's objective by hand, the tasks that it is computed on, and the synthetic ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax.value_model import batches, losses, pairs, synthetic
from v05_jax.value_model.pairs import Context

LOGITS = np.array([[0.2, 1.0], [0.0, -0.5], [1.0, 0.0], [-1.0, 0.5]], np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_the_losses_by_hand():
  score = LOGITS[:, 1] - LOGITS[:, 0]
  pair = -np.log(sigmoid(score[0] - score[1])), -np.log(sigmoid(score[2] - score[3]))
  ones = np.ones(4, bool)
  np.testing.assert_allclose(losses.pair_loss(LOGITS, ones), np.mean(pair), rtol=1e-5)
  np.testing.assert_allclose(
    losses.pair_loss(LOGITS, np.array([1, 1, 1, 0], bool)), pair[0], rtol=1e-5
  )
  assert losses.pair_loss(LOGITS, np.zeros(4, bool)) == 0.0
  target, weight = np.array([1.0, 0.25, 0.5, 0.0]), np.array([1.0, 3.0, 0.0, 2.0])
  p = sigmoid(score)
  each = -(target * np.log(p) + (1 - target) * np.log(1 - p))
  np.testing.assert_allclose(
    losses.soft_cross_entropy(LOGITS, target, weight), each @ weight / 6, rtol=1e-5
  )
  value, parts = losses.total(LOGITS, target, ones * 1.0, ones, 0.25)
  np.testing.assert_allclose(value, 0.25 * np.mean(pair) + 0.75 * each.mean(), rtol=1e-5)
  np.testing.assert_allclose(
    [parts["pair"], parts["soft"]], [np.mean(pair), each.mean()], rtol=1e-5
  )


def test_padding_gives_no_gradient_and_no_nan():
  mask = np.array([1, 1, 0, 0], bool)
  value = lambda z: losses.total(z, np.zeros(4), mask * 1.0, mask, 0.25)[0]
  gradient = jax.grad(value)(jnp.asarray(LOGITS).at[2].set(jnp.inf).at[3].set(500.0))
  assert np.all(gradient[2:] == 0) and np.all(np.isfinite(gradient)) and np.all(gradient[:2] != 0)


def test_natural_weights_undo_the_oversampling():
  """The weighted mean target of the pairs is the context's, whatever share of it succeeds."""
  rng = np.random.default_rng(0)
  score = rng.choice([0.0, 0.25, 0.5, 1.0], 400, p=[0.5, 0.3, 0.1, 0.1]).astype(np.float32)
  tasks = batches.Tasks([context(score)], 64, 50, seed=1)
  batch = tasks.batch(0, 8 * tasks.per_epoch)
  target, query = batch.score[:, 64:], batch.query
  weight = np.asarray(losses.natural_weights(target >= 0.5, batch.share[:, None], query))
  assert abs(target[query].mean() - score.mean()) > 0.15  # half of the pairs are successes
  np.testing.assert_allclose((target * weight).sum() / weight.sum(), score.mean(), atol=0.03)


@pytest.mark.parametrize("share", [0.12, 0.5, 0.86])
def test_the_support_has_the_successes_of_its_context(share):
  """Taking a balanced choice of queries out of it first would leave a context of 86 % with 98 %."""
  score = (np.arange(512) < share * 512).astype(np.float32)
  batch = batches.Tasks([context(score)], 256, 64, seed=0).batch(0, 60)
  np.testing.assert_allclose(batch.score[:, :256][batch.support].mean(), share, atol=0.02)


def test_a_support_has_both_classes():
  """With one class alone the head is not asked, and would learn what it never meets."""
  score = (np.arange(400) < 6).astype(np.float32)
  batch = batches.Tasks([context(score)], 4, 8, seed=0).batch(0, 60)
  given = batch.score[:, :4]
  assert batch.support[:, :4].all() and np.all((given.max(1) == 1) & (given.min(1) == 0))


def context(score, kind=None, prompt=None, key=("f", "d", "m", 0)):
  score = np.asarray(score, np.float32)
  kind = np.zeros(len(score), np.int8) if kind is None else np.asarray(kind, np.int8)
  prompt = np.arange(len(score)) if prompt is None else np.asarray(prompt)
  return Context(key, prompt.astype(np.int32), score, kind)


def test_an_epoch_is_pairs_with_cyclic_oversampling():
  """Half of the prompts is asked; the fewer of its successes and failures are repeated, and none is
  given; a context of one class is left out."""
  first = context([1.0] * 10 + [0.0] * 24, prompt=np.arange(100, 134))
  tasks = batches.Tasks([first, context([0.0] * 9)], 20, 4, seed=3)
  batch = tasks.batch(0, tasks.per_epoch)
  assert batch.prompt.shape == (tasks.per_epoch, 28)
  asked, scores = batch.prompt[:, 20:][batch.query], batch.score[:, 20:][batch.query]
  assert np.all(scores[::2] == 1) and np.all(scores[1::2] == 0)
  won, lost = asked[::2], asked[1::2]
  assert (
    len(set(won)) + len(set(lost)) == 17
    and set(won) <= set(range(100, 110))
    and set(lost) <= set(range(110, 134))
  )
  for side in (won, lost):
    counts = np.unique(side, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
  assert max(len(set(won)), len(set(lost))) == len(won) == len(lost)
  np.testing.assert_allclose(batch.share, len(set(won)) / 17)
  for given, real in zip(batch.prompt[:, :20], batch.support):
    assert len(set(given[real])) == real.sum() == 17 and not set(given[real]) & set(asked)


def test_rows_marked_as_queries_leave_the_share_to_the_context():
  """Queries may have been chosen by their outcomes, as V0's public ones are."""
  kind = np.repeat([0, 1], [40, 10])
  marked = context(np.repeat([1.0, 0.0, 1.0, 0.0], [30, 10, 2, 8]), kind)
  np.testing.assert_allclose(batches.Tasks([marked], 20, 4, seed=0).batch(0, 2).share, 0.75)


def test_a_prompt_that_comes_twice_is_asked_or_given():
  batch = batches.Tasks(
    [context(np.arange(60) % 2, prompt=np.arange(60) // 3)], 30, 6, seed=0
  ).batch(0, 12)
  for row, real, query in zip(batch.prompt, batch.support, batch.query):
    assert not set(row[:30][real]) & set(row[30:][query])


def test_marked_queries_are_asked_and_never_given():
  """Those of training alone; a given row of the same prompt is left out; test queries are the
  evaluation's."""
  score = np.r_[np.tile([0.0, 1.0], 10), 1.0, 0.0, 0.0, 1.0]
  kind = np.r_[np.zeros(20), 1, 1, 1, 2]
  marked = context(score, kind, prompt=np.r_[np.arange(20), 20, 21, 0, 23])
  tasks = batches.Tasks([marked], 8, 4, seed=0)
  batch = tasks.batch(0, 5)
  assert tasks.per_epoch == 1
  assert np.all((batch.prompt[:, :8] > 0) & (batch.prompt[:, :8] < 20)) and batch.support.all()
  assert batch.query.tolist() == [[True] * 4 + [False] * 4] * 5  # 2 pairs of the 4
  assert np.all(batch.prompt[:, 8:12:2] == 20) and np.all(
    np.sort(batch.prompt[:, 9:12:2]) == [0, 21]
  )
  asked, given = pairs.split(marked, pairs.TYPES.index("test_query"), np.random.default_rng(0))
  assert asked.tolist() == [23] and given.tolist() == list(range(20))


def test_tasks_are_a_function_of_seed_and_number():
  made = lambda seed: batches.Tasks([context(np.arange(40) % 3 / 2)], 16, 4, seed)
  whole, other = made(0).batch(0, 20), made(1).batch(0, 20)
  parts = made(0)
  for first in (10, 0, 5):  # in any order
    for x, y in zip(whole, parts.batch(first, 5)):
      np.testing.assert_array_equal(x[first : first + 5], y)
  assert np.any(whole.prompt != other.prompt)
  assert np.any(
    whole.prompt[: made(0).per_epoch] != whole.prompt[made(0).per_epoch : 2 * made(0).per_epoch]
  )


@pytest.mark.parametrize(
  "scores, kind", [(np.ones(10), None), (np.r_[np.ones(9), 0, 1], np.r_[np.zeros(9), 1, 1])]
)
def test_contexts_without_both_classes_are_refused(scores, kind):
  with pytest.raises(ValueError, match="found 1 contexts, none with successes and failures both"):
    batches.Tasks([context(scores, kind)], 8, 4, 0)


def test_synthetic_tasks_can_be_learned_and_differ():
  """The features say something of the probability (a ridge regression on one half predicts the
  other), labels are draws from it, and it varies from task to task."""
  draw = jax.jit(jax.vmap(lambda key: synthetic.draw(key, 400, 24)))
  x, success, probability = (
    np.asarray(a, np.float64) for a in draw(jax.random.split(jax.random.key(0), 40))
  )
  assert (
    x.shape == (40, 400, 24) and np.isfinite(x).all() and np.all((success >= 0) & (success <= 1))
  )
  np.testing.assert_allclose(success.mean(), probability.mean(), atol=0.01)
  assert probability.mean(1).std() > 0.1 and 0.1 < probability.std(1).mean() < 0.45
  gain = []
  for a, p in zip(x, probability):
    a = np.c_[(a - a.mean(0)) / np.maximum(a.std(0), 1e-6), np.ones(400)]
    weight = np.linalg.solve(a[:200].T @ a[:200] + np.eye(25), a[:200].T @ p[:200])
    gain.append(1 - np.mean((a[200:] @ weight - p[200:]) ** 2) / np.var(p[200:]))
  assert np.median(gain) > 0.2 and np.mean(np.array(gain) > 0) > 0.6
