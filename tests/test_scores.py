"""Measures of a value prior, against the numbers of the released code and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from v05_jax.value_model import scores

GOLDEN = json.loads((Path(__file__).parent / "data" / "v0" / "metrics.json").read_text())
ROWS = GOLDEN["rows"]
P = np.array([row["prob"] for row in ROWS])
POSITIVE = np.array([row["label"] >= 0.5 for row in ROWS])
PAIR = [row["pair_id"] for row in ROWS]


def or_none(x):
  """The released code's -1 for what cannot be measured."""
  return -1 if np.isnan(x) else x


def test_the_summary_equals_the_released_one():
  want = GOLDEN["expected_summary"]
  assert scores.auc(P, POSITIVE) == pytest.approx(want["val/global_auc"], abs=1e-9)
  by_step = [row["step"] for row in ROWS]
  assert scores.grouped_auc(P, POSITIVE, by_step) == pytest.approx(want["val/gAUC"], abs=1e-9)
  assert scores.pair_accuracy(P, POSITIVE, PAIR) == (
    want["val/global_strict_pair_acc"],
    want["val/global_rlhf_pair_acc"],
    want["val/num_valid_pairs"],
  )
  assert np.mean((P > 0.5) == POSITIVE) == pytest.approx(want["val/global_acc"], abs=1e-9)


@pytest.mark.parametrize("want", GOLDEN["expected_per_step"], ids=lambda want: str(want["step"]))
def test_each_step_equals_the_released_one(want):
  inside = np.array([row["step"] == want["step"] for row in ROWS])
  assert or_none(scores.auc(P[inside], POSITIVE[inside])) == pytest.approx(want["auc"], abs=1e-9)
  # a pair counts where both of its rows are
  pair = [key for key, here in zip(PAIR, inside) if here]
  strict, ranked, number = scores.pair_accuracy(P[inside], POSITIVE[inside], pair)
  assert number == want["pair_count"]
  assert (or_none(strict), or_none(ranked)) == (want["strict_pair_acc"], want["rlhf_pair_acc"])


def test_auc_is_the_share_of_pairs_in_order():
  rng = np.random.default_rng(0)
  p, positive = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.4  # many ties
  pairs = [(a > b) + (a == b) / 2 for a in p[positive] for b in p[~positive]]
  assert scores.auc(p, positive) == pytest.approx(np.mean(pairs))
  assert np.isnan(scores.auc(p, np.ones(40, bool)))


def test_groups_are_scored_by_themselves():
  p, positive = np.array([0.9, 0.8, 0.2, 0.1, 0.7]), np.array([1, 0, 1, 0, 1], bool)
  assert scores.grouped_auc(p, positive, ["a", "a", "b", "b", "c"]) == 1  # though .8 is above .2
  assert scores.auc(p, positive) < 1
  assert np.isnan(scores.grouped_auc(p[:1], positive[:1], ["a"]))


def test_calibration_and_error_by_hand():
  p, t = np.array([0.05, 0.15, 0.15, 1.0]), np.array([0.1, 0.1, 0.3, 0.5])
  table = scores.reliability(p, t)
  np.testing.assert_allclose(
    table[[0, 1, 9]], [[0.25, 0.05, 0.1], [0.5, 0.15, 0.2], [0.25, 1, 0.5]]
  )
  assert np.isnan(table[5, 1]) and table[5, 0] == 0
  assert scores.ece(p, t) == pytest.approx(0.25 * 0.05 + 0.5 * 0.05 + 0.25 * 0.5)
  assert scores.rmse(p, t) == pytest.approx(2 * np.sqrt((0.05**2 + 0.05**2 + 0.15**2 + 0.5**2) / 4))
