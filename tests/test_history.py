"""A prompt's own past: the discounted counts, and its fusion with the prior by the precisions seen
online."""

import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import groups as grouping
from v05_jax import history as histories

HALF_LIFE = 4.0


def visit(history, row, s, k, step, value=None, mask=None):
  row, s, k = np.asarray(row, np.int32), np.asarray(s, np.float32), np.asarray(k, np.float32)
  value = np.full(row.shape, np.nan, np.float32) if value is None else np.asarray(value, np.float32)
  mask = np.ones(row.shape, bool) if mask is None else mask
  k = np.where(mask, k, 0)  # what padding has does not count
  groups = grouping.make(np.zeros((len(row), 1), np.float32), np.zeros((len(row), 1), bool))
  groups = groups._replace(row=row, step=np.int32(step), s=s, k=k)
  return histories.remember(history, groups, value, HALF_LIFE)


def read(history, row, step):
  return np.stack(histories.read(history, np.asarray(row, np.int32), np.int32(step), HALF_LIFE))


def test_evidence_halves_in_a_half_life_and_fades_a_little_at_once():
  history = visit(histories.empty(5), [3, 1], [2, 0], [4, 4], step=10)
  np.testing.assert_allclose(read(history, [3, 1, 0], 14), [[1, 0, 0], [2, 2, 0]])
  np.testing.assert_allclose(read(history, [3], 10), [[0.96 * 2], [0.96 * 4]], rtol=1e-6)
  np.testing.assert_allclose(read(history, [3], 18), [[0.5], [1]])


def test_visits_add_up_and_other_rows_keep_theirs():
  history = visit(histories.empty(4), [0, 2], [4, 1], [4, 4], step=0)
  history = visit(history, [2], [3], [4], step=4)
  np.testing.assert_allclose(read(history, [0, 1, 2, 3], 8), [[1, 0, 1.75, 0], [1, 0, 3, 0]])


def test_a_row_may_stand_twice_in_a_batch_and_padding_leaves_no_trace():
  history = visit(
    histories.empty(3),
    [1, 1, 0, 2],
    [4, 1, 3, 2],
    [4, 4, 4, 0],
    0,
    mask=np.array([1, 1, 0, 1], bool),
  )
  np.testing.assert_allclose(read(history, [0, 1, 2], 4), [[0, 2.5, 0], [0, 4, 0]])


def test_without_a_past_the_prior_stays_and_without_a_prior_the_past_speaks():
  past = jnp.array([0.0, 3.0, 0.0]), jnp.array([0.0, 4.0, 0.0])
  value, weight = histories.fuse(jnp.zeros(5), jnp.array([0.3, np.nan, np.nan]), past)
  np.testing.assert_allclose(value, [0.3, 2 / 5, np.nan], rtol=1e-6)  # (2 * 3 - 4) / (1 + 4)
  np.testing.assert_allclose(weight, [0, 1, 0])


def simulate(prior_sd, drift_sd, k, seed=0, rows=512, visits=60):
  """(mse of V, of H, of their fusion, of the best fixed mixture) over the last visits of prompts
  that drift."""
  rng = np.random.default_rng(seed)
  mu = rng.uniform(-0.9, 0.9, rows)
  history, errors = histories.empty(rows), []
  row = np.arange(rows)
  for step in range(visits):
    mu = np.clip(mu + drift_sd * rng.normal(size=rows), -1, 1)
    value = np.clip(mu + prior_sd * rng.normal(size=rows), -1, 1).astype(np.float32)
    past = histories.read(history, row, np.int32(step), HALF_LIFE)
    fused, _ = histories.fuse(history.moments, value, past)
    if step > 20:
      own = 2 * np.asarray(past[0]) / np.asarray(past[1]) - 1
      mixtures = [np.mean(((1 - w) * value + w * own - mu) ** 2) for w in np.linspace(0, 1, 21)]
      errors.append(
        [
          np.mean((value - mu) ** 2),
          np.mean((own - mu) ** 2),
          np.mean((fused - mu) ** 2),
          min(mixtures),
        ]
      )
    s = rng.binomial(k, (1 + mu) / 2)
    history = visit(history, row, s, np.full(rows, k), step, value)
  return np.mean(errors, 0)


@pytest.mark.parametrize("prior_sd, drift_sd", [(0.2, 0.02), (0.6, 0.02), (0.2, 0.3), (0.5, 0.1)])
@pytest.mark.parametrize("k", [1, 4])
def test_the_fusion_is_better_than_both_and_near_the_best_mixture(prior_sd, drift_sd, k):
  """Whether the prior is the better one, or the past, and at one rollout a visit too."""
  prior, own, fused, best = simulate(prior_sd, drift_sd, k)
  assert fused < min(prior, own)
  assert fused < 1.05 * best
