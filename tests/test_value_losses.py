"""V0's objective by hand, the tasks that it is computed on, and the synthetic ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax.value_prior import batches, losses, synthetic
from v05_jax.value_prior.pairs import Context

LOGITS = np.array([[0.2, 1.0], [0.0, -0.5], [1.0, 0.0], [-1.0, 0.5]], np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_the_losses_by_hand():
  score = LOGITS[:, 1] - LOGITS[:, 0]
  pair = -np.log(sigmoid(score[0] - score[1])), -np.log(sigmoid(score[2] - score[3]))
  ones = np.ones(4, bool)
  np.testing.assert_allclose(losses.pair_loss(LOGITS, ones), np.mean(pair), rtol=1e-5)
  np.testing.assert_allclose(losses.pair_loss(LOGITS, np.array([1, 1, 1, 0], bool)), pair[0], rtol=1e-5)
  assert losses.pair_loss(LOGITS, np.zeros(4, bool)) == 0.0
  target, weight = np.array([1.0, 0.25, 0.5, 0.0]), np.array([1.0, 3.0, 0.0, 2.0])
  p = sigmoid(score)
  each = -(target * np.log(p) + (1 - target) * np.log(1 - p))
  np.testing.assert_allclose(losses.soft_cross_entropy(LOGITS, target, weight), each @ weight / 6, rtol=1e-5)
  value, parts = losses.total(LOGITS, target, ones * 1.0, ones, 0.25)
  np.testing.assert_allclose(value, 0.25 * np.mean(pair) + 0.75 * each.mean(), rtol=1e-5)
  np.testing.assert_allclose([parts["pair"], parts["soft"]], [np.mean(pair), each.mean()], rtol=1e-5)


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
  batch = tasks.batch(0, tasks.per_epoch)
  target, query = batch.score[:, 64:], batch.query
  weight = np.asarray(losses.natural_weights(target >= 0.5, batch.share[:, None], query))
  assert abs(target[query].mean() - score.mean()) > 0.15  # half of the pairs are successes
  np.testing.assert_allclose((target * weight).sum() / weight.sum(), score.mean(), atol=0.02)


def context(score, query=None, prompt=None, key=("f", "d", "m", 0)):
  score = np.asarray(score, np.float32)
  query = np.zeros(len(score), bool) if query is None else np.asarray(query)
  prompt = np.arange(len(score)) if prompt is None else np.asarray(prompt)
  return Context(key, prompt.astype(np.int32), score, query)


def test_an_epoch_is_pairs_with_cyclic_oversampling():
  """5 successes and 12 failures make 12 pairs; a context of one class is left out, and prompts asked are not given."""
  first = context([1.0] * 5 + [0.0] * 12, prompt=np.arange(100, 117))
  tasks = batches.Tasks([first, context([0.0] * 9)], 20, 4, seed=3)
  assert tasks.per_epoch == 3
  batch = tasks.batch(0, 3)
  assert batch.prompt.shape == (3, 28) and batch.query.all()
  asked, scores = batch.prompt[:, 20:], batch.score[:, 20:]
  assert np.all(scores[:, ::2] == 1) and np.all(scores[:, 1::2] == 0)
  assert sorted(asked[:, 1::2].ravel()) == list(range(105, 117))
  counts = np.bincount(asked[:, ::2].ravel() - 100, minlength=5)
  assert sorted(counts) == [2, 2, 2, 3, 3]
  np.testing.assert_allclose(batch.share, 5 / 17)
  for given, real, queries in zip(batch.prompt[:, :20], batch.support, asked):
    assert len(set(given[real])) == real.sum() == 17 - len(set(queries)) and not set(given[real]) & set(queries)


def test_marked_queries_are_asked_and_never_given():
  score = np.r_[np.tile([0.0, 1.0], 10), 1.0, 0.0, 0.0]
  tasks = batches.Tasks([context(score, np.arange(23) >= 20)], 8, 4, seed=0)
  batch = tasks.batch(0, 5)
  assert tasks.per_epoch == 1
  assert np.all(batch.prompt[:, :8] < 20) and batch.support.all()
  assert batch.query.tolist() == [[True] * 4 + [False] * 4] * 5  # 2 pairs of the 4
  assert np.all(batch.prompt[:, 8:12:2] == 20) and np.all(np.sort(batch.prompt[:, 9:12:2]) == [21, 22])


def test_tasks_are_a_function_of_seed_and_number():
  made = lambda seed: batches.Tasks([context(np.arange(40) % 3 / 2)], 16, 4, seed)
  whole, other = made(0).batch(0, 20), made(1).batch(0, 20)
  parts = made(0)
  for first in (10, 0, 5):  # in any order
    for x, y in zip(whole, parts.batch(first, 5)):
      np.testing.assert_array_equal(x[first : first + 5], y)
  assert np.any(whole.prompt != other.prompt)
  assert np.any(whole.prompt[: made(0).per_epoch] != whole.prompt[made(0).per_epoch : 2 * made(0).per_epoch])


def test_contexts_of_one_class_alone_are_refused():
  with pytest.raises(ValueError, match="found 1 contexts, expected at least one with a success, a failure"):
    batches.Tasks([context(np.ones(10))], 8, 4, 0)


def test_synthetic_tasks_can_be_learned_and_differ():
  """The features say something of the probability (a ridge regression on one half predicts the other), labels are
  draws from it, and it varies from task to task."""
  draw = jax.jit(jax.vmap(lambda key: synthetic.draw(key, 400, 24)))
  x, success, probability = (np.asarray(a, np.float64) for a in draw(jax.random.split(jax.random.key(0), 40)))
  assert x.shape == (40, 400, 24) and np.isfinite(x).all() and np.all((success >= 0) & (success <= 1))
  np.testing.assert_allclose(success.mean(), probability.mean(), atol=0.01)
  assert probability.mean(1).std() > 0.1 and 0.1 < probability.std(1).mean() < 0.45
  gain = []
  for a, p in zip(x, probability):
    a = np.c_[(a - a.mean(0)) / np.maximum(a.std(0), 1e-6), np.ones(400)]
    weight = np.linalg.solve(a[:200].T @ a[:200] + np.eye(25), a[:200].T @ p[:200])
    gain.append(1 - np.mean((a[200:] @ weight - p[200:]) ** 2) / np.var(p[200:]))
  assert np.median(gain) > 0.2 and np.mean(np.array(gain) > 0) > 0.6
