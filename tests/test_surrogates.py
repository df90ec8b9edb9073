"""The surrogates of `loss.surrogate` and the weights of `loss.correction`: numbers by hand, and
what reaches the gradient."""

import contextlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_policy_gradient import batches, built, config, mean, parameters, sample
from v05_jax import config as configuration
from v05_jax import rules
from v05_jax.configs import default
from v05_jax.update import losses, surrogates

CLIP = losses.Clip(0.2, 0.5)
# Two rows of tokens; numbers of segments as a row has them: a prompt of two tokens is 1.
RESPONSE = jnp.array([[1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 0, 0]])
MASK = jnp.array([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]], bool)
RATIO = jnp.array([[7.0, 7, 4, 1, 0.5, 7], [7, 2, 2, 2, 7, 7]])
ADVANTAGE = jnp.array([[9.0, 9, 2, 2, -1, 9], [9, -3, -3, -3, 9, 9]])
OLD = jnp.full(RATIO.shape, -1.5)


def of(name, clip=CLIP, ratio=RATIO):
  """(loss, bound active, gradient by the log-probs of the loss's sum over MASK)."""

  def total(logprob):
    loss, active = surrogates.SURROGATES[name](logprob, OLD, ADVANTAGE, clip, MASK, RESPONSE)
    return jnp.sum(jnp.where(MASK, loss, 0.0)), (loss, active)

  (_, (loss, active)), gradient = jax.value_and_grad(total, has_aux=True)(OLD + jnp.log(ratio))
  masked = lambda x: np.where(MASK, x, 0)
  return masked(loss), masked(active), gradient


def test_gspo_by_hand():
  """The responses' ratios are sqrt(4 1) = 2, .5 and 2: 1.5 bounds the first, .8 the second, and
  none the third, as its advantage is negative."""
  loss, active, gradient = of("gspo")
  np.testing.assert_allclose(loss, [[0, 0, -3, -3, 0.8, 0], [0, 6, 6, 6, 0, 0]], rtol=1e-6)
  np.testing.assert_array_equal(active, [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
  np.testing.assert_allclose(gradient, [[0, 0, 0, 0, 0, 0], [0, 6, 6, 6, 0, 0]], rtol=1e-6)
  # -A s inside of the bounds; the gradient of length * s is s for every token of the response
  loss, active, gradient = of("gspo", losses.Clip(0.9, 3.0))
  np.testing.assert_allclose(loss, [[0, 0, -4, -4, 0.5, 0], [0, 6, 6, 6, 0, 0]], rtol=1e-6)
  np.testing.assert_allclose(gradient, loss, rtol=1e-6)
  assert not active.any()


def test_the_numbers_of_responses_do_not_matter():
  """Prompts are numbered too, and one of a single token takes a number and no place: up to 2T."""
  high = jnp.array([0, 11, 12, 9])[RESPONSE]
  arguments = OLD + jnp.log(RATIO), OLD, ADVANTAGE, CLIP, MASK
  for found, expected in zip(
    surrogates.gspo(*arguments, high), surrogates.gspo(*arguments, RESPONSE), strict=True
  ):
    np.testing.assert_array_equal(np.where(MASK, found, 0), np.where(MASK, expected, 0))


def test_gspo_is_the_gradient_of_the_mean_over_responses():
  """With the weights of "rollout", 1 / length each, it is that of the paper's sum of -A s."""

  def direct(logprob):
    total = 0.0
    for row, places in ((0, [2, 3]), (0, [4]), (1, [1, 2, 3])):
      places = jnp.array(places)
      s = jnp.exp(jnp.mean(logprob[row, places] - OLD[row, places]))
      total -= ADVANTAGE[row, places[0]] * s
    return total

  length = jnp.array([[1.0, 1, 2, 2, 1, 1], [1, 3, 3, 3, 1, 1]])

  def packed(logprob):
    clip = losses.Clip(0.99, 99.0)
    loss, _ = surrogates.gspo(logprob, OLD, ADVANTAGE, clip, MASK, RESPONSE)
    return jnp.sum(jnp.where(MASK, loss / length, 0.0))

  logprob = OLD + jnp.log(RATIO)
  assert float(packed(logprob)) == pytest.approx(float(direct(logprob)), rel=1e-6)
  np.testing.assert_allclose(jax.grad(packed)(logprob), jax.grad(direct)(logprob), atol=1e-6)


def test_cispo_by_hand():
  """Weights 1.5, 1, .8; 1.5, 1.5, 1.5: every token keeps its gradient, -A times its weight."""
  weight = np.array([[0, 0, 1.5, 1, 0.8, 0], [0, 1.5, 1.5, 1.5, 0, 0]])
  loss, active, gradient = of("cispo")
  np.testing.assert_allclose(gradient, -weight * ADVANTAGE, rtol=1e-6)
  np.testing.assert_allclose(loss, -weight * ADVANTAGE * (OLD + np.log(RATIO)), rtol=1e-6)
  np.testing.assert_array_equal(active, [[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]])


def test_dis_by_hand():
  """Only the ratio 1 lies within .8 .. 1.5; with wider bounds the ratio itself is the weight."""
  loss, active, gradient = of("dis")
  np.testing.assert_allclose(gradient, [[0, 0, 0, -2, 0, 0], [0] * 6], atol=1e-6)
  np.testing.assert_allclose(loss, [[0, 0, 0, 3, 0, 0], [0] * 6], atol=1e-6)
  np.testing.assert_array_equal(active, [[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]])
  gradient = of("dis", losses.Clip(0.3, 5.0))[2]
  want = [[0, 0, -8, -2, 0, 0], [0, 6, 6, 6, 0, 0]]
  np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-6)


def test_corrections_by_hand():
  ratio = jnp.array([0.1, 0.5, 0.6, 1.0, 1.9, 2.0, 7.0])
  np.testing.assert_allclose(surrogates.tis(ratio, 0.5, 2.0), [0.1, 0.5, 0.6, 1, 1.9, 2, 2])
  np.testing.assert_allclose(surrogates.icepop(ratio, 0.5, 2.0), [0, 0, 0.6, 1, 1.9, 0, 0])
  mask = jnp.array([1, 1, 1, 1, 1, 1, 0], bool)
  for name, want, changed in (
    ("tis", [0.1, 0.5, 0.6, 1, 1.9, 1.95, 1], 1),
    ("icepop", [0, 0, 0.6, 1, 1.9, 0, 1], 3),
  ):
    options = types.SimpleNamespace(correction=name, correction_low=0.55, correction_high=1.95)
    weight, cut = surrogates.correction(options, jnp.log(ratio) - 1.0, -jnp.ones(7), mask)
    np.testing.assert_allclose(weight, want, rtol=1e-6)
    assert int(cut.sum()) == changed and not cut[-1]


@pytest.mark.parametrize("name", surrogates.SURROGATES)
def test_on_policy_all_of_them_are_reinforce(name):
  gradient = of(name, ratio=jnp.ones_like(RATIO))[2]
  np.testing.assert_allclose(gradient, jnp.where(MASK, -ADVANTAGE, 0.0), rtol=1e-6)


@pytest.mark.parametrize("name", surrogates.SURROGATES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e9])
def test_masked_tokens_may_hold_anything_and_no_real_nan_is_hidden(name, bad):
  logprob = OLD + jnp.log(RATIO)
  call = lambda new, old, a: surrogates.SURROGATES[name](new, old, a, CLIP, MASK, RESPONSE)[0]
  total = lambda new, old, a: jnp.sum(jnp.where(MASK, call(new, old, a), 0.0))
  given = logprob, OLD, ADVANTAGE
  want = jax.value_and_grad(total)(*given)
  got = jax.value_and_grad(total)(*(jnp.where(MASK, x, bad) for x in given))
  for x, y in zip(got, want):
    np.testing.assert_array_equal(x, y)
  assert np.isnan(total(logprob.at[1, 2].set(jnp.nan), OLD, ADVANTAGE))


@pytest.mark.parametrize("name", surrogates.SURROGATES)
def test_far_off_policy_tokens_stay_finite(name):
  loss, _, gradient = of(name, ratio=jnp.exp(jnp.where(MASK, 60.0, 0.0)))
  assert np.isfinite(loss).all() and np.isfinite(gradient).all()


# --- In the update


@pytest.mark.parametrize("name", ["gspo", pytest.param("dis", marks=pytest.mark.long)])
def test_the_loss_of_a_batch_is_the_same_on_every_mesh(name):
  """A response's tokens stand in one row, which one device has."""
  rows, keys = sample(), {"surrogate": name, "clip_low": 0.05, "clip_high": 0.05}
  found = []
  for sizes in ((1, 1, 1), (2, 2, 2)):
    ((batch, used),) = batches(rows, config(**keys), *sizes)
    found.append(built(*sizes, **keys).loss_and_grad(parameters(), batch, used))
  (loss, gradient, metrics), (other, same, _) = found
  assert float(loss) == pytest.approx(float(other), rel=1e-4)
  for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(same), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)
  assert 0 < mean(metrics, "loss/clip_fraction") < 1


def test_a_correction_weighs_the_advantages_of_a_batch():
  keys = {"correction": "icepop", "correction_low": 0.9, "correction_high": 1.1}
  given = batches(sample(), config(minibatches=2), 1, 1, 1)
  update = built(1, 1, 1, **keys)
  again, _ = update.recompute(parameters(), given)
  corrected, (cut, count) = update.correct(again, given)
  total = 0
  for (new, used), (old, _), (before, number) in zip(corrected, again, given, strict=True):
    assert used == number
    mask = np.asarray(old.weight) > 0
    ratio = np.exp(np.asarray(old.old_logprob) - before.old_logprob)
    want = np.where((ratio > 0.9) & (ratio < 1.1), ratio, 0) * before.advantage
    np.testing.assert_allclose(np.asarray(new.advantage)[mask], want[mask], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(new.old_logprob, old.old_logprob)
    total += mask.sum()
  assert count == total and 0 < cut < count


def test_the_rules_know_the_tables():
  assert rules.RULES["loss.surrogate"].choices == tuple(surrogates.SURROGATES)
  assert rules.RULES["loss.correction"].choices == ("none", *surrogates.CORRECTIONS)


@pytest.mark.parametrize("name", surrogates.SURROGATES)
def test_the_dual_bound_is_allowed_where_it_changes_the_loss(name):
  plain, bounded = (of(name, losses.Clip(0.2, 0.5, dual))[0] for dual in (0.0, 1.5))
  assert (plain != bounded).any() == (name in surrogates.DUAL)
  c = default.get_config()
  c.loss.update({"surrogate": name, "clip_dual": 1.5})
  with contextlib.nullcontext() if name in surrogates.DUAL else pytest.raises(ValueError):
    configuration.validate(c)


@pytest.mark.parametrize(
  "keys, message",
  [
    ({"surrogate": "gpso"}, "loss.surrogate: found 'gpso', expected one of clip"),
    ({"surrogate": "cispo", "clip_dual": 3.0}, "loss.clip_dual: found 3.0, expected 0, since"),
    ({"surrogate": "reinforce", "clip_dual": 3.0}, "loss.clip_dual: found 3.0, expected 0, since"),
    ({"correction": "tis"}, "loss.old_logprob: found 'sampler', expected recompute, since"),
    (
      {"correction": "tis", "old_logprob": "recompute", "correction_high": 1.0},
      "loss.correction_high: found 1.0, expected above 1",
    ),
  ],
)
def test_bad_combinations_are_one_error(keys, message):
  c = default.get_config()
  c.loss.update(keys)
  with pytest.raises(ValueError, match=message) as error:
    configuration.validate(c)
  assert str(error.value).count("expected") == 1


def test_good_combinations_pass():
  c = default.get_config()
  c.loss.update({"surrogate": "gspo", "clip_dual": 3.0})
  c.loss.update({"correction": "icepop", "old_logprob": "recompute"})
  configuration.validate(c)
