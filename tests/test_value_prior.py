import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from v05_jax import plug
from v05_jax.models import decoder
from v05_jax.priors import base, neighbours, v0
from v05_jax.priors import context as contexts
from v05_jax.scale import sharding
from v05_jax.structs import Prompts

MODEL = decoder.ModelConfig(
  vocab_size=12,
  hidden_size=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  intermediate_size=16,
)
WIDTH = 10  # tokens of a prompt at most


def made(kind, policy=None, mesh=None, **changes):
  """The prior of that name, in context of 64 pairs."""
  options = {"context": 64, "min_support": 8} | changes
  config = types.SimpleNamespace(
    prior=types.SimpleNamespace(**options), sampler=types.SimpleNamespace(max_prompt=WIDTH)
  )
  setting = plug.Setting(config, policy=policy, mesh=mesh)
  return plug.find("prior", kind)(plug.defaults("prior", kind), setting)


def features_of(prior, prompts):
  return prior.ask(prior.init(), prompts)[1]["features"]


@functools.cache
def params():
  return jax.device_get(jax.jit(lambda key: decoder.init(MODEL, key))(jax.random.key(0)))


def policy():
  return types.SimpleNamespace(config=MODEL, params=params())


def mesh(devices=1):
  devices = jax.devices()[: min(devices, jax.device_count())]
  return sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)


def make_prompts(count, capacity=None, behind=0):
  """Always the same first prompts; `behind` fills the tokens after each."""
  rng = np.random.default_rng(0)
  tokens, length = (
    np.zeros((capacity or count, WIDTH), np.int32),
    np.ones(capacity or count, np.int32),
  )
  for i in range(count):
    length[i] = (1, WIDTH, 4, 7, 2)[i]
    tokens[i] = rng.integers(2, 12, WIDTH)
  tokens = np.where(np.arange(WIDTH) < length[:, None], tokens, behind).astype(np.int32)
  mask = np.arange(len(length)) < count
  place = np.arange(len(length))
  return Prompts(tokens=tokens, length=length, position=place, mask=mask, row=place, rows=())


def filled(features, success, size=None):
  features, success = np.asarray(features, np.float32), np.asarray(success, np.float32)
  empty = contexts.empty(size or len(success), features.shape[1])
  return contexts.remember(
    empty, features, np.full_like(success, np.nan), success, np.ones(len(success), bool)
  )


# --- The ring buffer


def test_remember_keeps_the_last_pairs_in_order():
  """Against a list, with masks, NaN and batches that are longer than the buffer."""
  rng = np.random.default_rng(0)
  context, pairs = contexts.empty(5, 3), []
  for size in (4, 4, 4, 13, 4):
    features = rng.normal(size=(size, 3)).astype(np.float32)
    success, mask = rng.random(size).astype(np.float32), rng.random(size) < 0.6
    value = np.where(np.arange(size) % 3, features[:, 0], np.nan)
    success[rng.random(size) < 0.2] = np.nan
    pairs += [
      (f, v, s) for f, v, s, m in zip(features, value, success, mask) if m and np.isfinite(s)
    ]
    context = contexts.remember(context, features, value, success, mask)
    assert context.count == len(pairs) and context.count.dtype == jnp.int32
    np.testing.assert_array_equal(contexts.valid(context), np.arange(5) < len(pairs))
    for i in range(max(0, len(pairs) - 5), len(pairs)):
      np.testing.assert_array_equal(context.features[i % 5], pairs[i][0])
      np.testing.assert_array_equal(context.value[i % 5], pairs[i][1])
      assert context.success[i % 5] == pairs[i][2]
    assert np.isnan(np.asarray(context.value)[len(pairs) :]).all()
  assert len(pairs) > 12


def test_remember_nothing():
  before = filled(np.ones((2, 3)), [0.5, 1.0], size=4)
  after = contexts.remember(before, np.full((3, 3), 7.0), np.ones(3), np.ones(3), np.zeros(3, bool))
  jax.tree.map(np.testing.assert_array_equal, before, after)


# --- The priors


def test_constant_is_the_mean_of_the_valid_pairs():
  context = filled(np.zeros((3, 1)), [1.0, 0.5, 0.0], size=8)
  np.testing.assert_allclose(contexts.mean_value(context, 3), 0, atol=1e-7)
  context = contexts.remember(context, np.zeros((1, 1)), np.zeros(1), np.ones(1), np.ones(1, bool))
  np.testing.assert_allclose(contexts.mean_value(context, 3), 0.25, rtol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "neighbours"])
def test_no_value_before_min_support(kind):
  loaded, prompts = made(kind, policy(), mesh(), min_support=3, context=4), make_prompts(3)
  features = np.eye(3, loaded.init().features.shape[1], dtype=np.float32)
  two, three = (filled(features[:n], [1.0, 0.0, 1.0][:n], size=4) for n in (2, 3))
  assert np.isnan(loaded.ask(two, prompts)[0]).all()
  assert np.isfinite(loaded.ask(three, prompts)[0]).all()


def by_hand(support_features, success, features, h):
  """The docstring's formula, pair by pair."""
  mean, std = support_features.mean(0), support_features.std(0)
  a, b = (np.clip((x - mean) / std, -5, 5) for x in (features, support_features))
  w = np.exp(-np.square(a[:, None] - b).sum(-1) / (2 * h**2 * 2 * b.shape[1]))
  return 2 * (0.1 * success.mean() + w @ success) / (0.1 + w.sum(1)) - 1


def test_neighbours_by_hand_and_scale_free():
  """Empty rows, scale, shift and a feature that only rounding varies change nothing; outliers are
  clipped."""
  rng = np.random.default_rng(1)
  known, success, asked = rng.normal(size=(40, 4)), rng.random(40), rng.normal(size=(6, 4))
  known[0, :2], asked[0, :2] = 100.0, 200.0
  want = by_hand(known, success, asked, 0.4)
  assert np.abs(want[0] - want[1:]).min() > 0.01
  context = filled(known, success, size=64)
  np.testing.assert_allclose(neighbours.kernel_regression(context, asked, 0.4, 5), want, atol=1e-5)
  stretch, shift = np.array([1e-3, 1.0, 50.0, 7.0]), np.array([0.0, 3.0, -100.0, 1e-2])
  rounding = lambda n: 1e4 + 1e-3 * (np.arange(n) % 2)[:, None]
  moved = filled(np.hstack([known * stretch + shift, rounding(40)]), success, size=64)
  query = np.hstack([asked * stretch + shift, rounding(6)]).astype(np.float32)
  np.testing.assert_allclose(neighbours.kernel_regression(moved, query, 0.4, 5), want, atol=1e-3)


def test_neighbours_tell_two_groups_apart():
  rng = np.random.default_rng(2)
  label = np.arange(64) % 2
  features = rng.normal(size=(64, 16)) + 4 * label[:, None]
  value = neighbours.kernel_regression(filled(features, 0.1 + 0.8 * label), features, 0.25, 8)
  np.testing.assert_allclose(value[label == 0], -0.8, atol=0.05)
  np.testing.assert_allclose(value[label == 1], 0.8, atol=0.05)


def test_neighbours_fall_back_to_the_mean_far_from_everything():
  rng = np.random.default_rng(3)
  known, success = rng.normal(size=(16, 8)), rng.random(16)
  value = neighbours.kernel_regression(
    filled(known, success), np.full((1, 8), 1e6, np.float32), 0.05, 8
  )
  np.testing.assert_allclose(value, 2 * success.mean() - 1, atol=1e-5)


@pytest.mark.parametrize(
  "features",
  [
    np.zeros((8, 3)),  # every feature constant
    np.full((8, 3), 1e4) * (1 + 1e-8 * np.arange(8)[:, None]),  # constant up to rounding
    np.tile([1e15, -1e-15, 0.0], (8, 1)),
    np.concatenate([np.full((7, 3), 2.0), np.full((1, 3), 3.0)]),
  ],
)
def test_neighbours_are_finite_for_degenerate_features(features):
  success = np.linspace(0, 1, 8)
  for asked in (features, features + 1e3, 0 * features):
    value = neighbours.kernel_regression(
      filled(features, success), np.asarray(asked, np.float32), 0.1, 8
    )
    assert np.isfinite(value).all() and np.all(np.abs(value) <= 1)


# --- Features


def test_features_are_last_and_mean_hidden_state_without_padding():
  forward = jax.jit(functools.partial(decoder.forward, MODEL))
  frozen, prompts = policy(), make_prompts(5)
  loaded = made("neighbours", frozen, mesh())
  got = features_of(loaded, prompts)
  assert got.shape == (5, loaded.init().features.shape[1]) == (5, 32) and got.dtype == np.float32
  for i in (1, 2):
    tokens = prompts.tokens[i : i + 1, : prompts.length[i]]
    place = np.arange(tokens.shape[1])[None]
    hidden = forward(frozen.params, tokens, place, np.ones_like(tokens))[0]
    np.testing.assert_allclose(got[i], np.concatenate([hidden[-1], hidden.mean(0)]), atol=2e-5)


def test_padding_does_not_matter(monkeypatch):
  """Tokens behind a prompt, padding rows, the size of the blocks and the mesh leave the features
  alone."""
  want = features_of(made("neighbours", policy(), mesh()), make_prompts(5))
  assert np.abs(want[0] - want[1]).max() > 0.1
  monkeypatch.setattr(neighbours, "TOKENS_PER_CALL", WIDTH)  # a row at a time on each device
  loaded = made("neighbours", policy(), mesh(4))
  got = features_of(loaded, make_prompts(5, capacity=11, behind=11))
  assert got.shape == (11, 32)
  np.testing.assert_allclose(got[:5], want, atol=2e-5)


def test_features_stay_those_of_the_first_policy():
  """An update donates the parameters that it is given: the prior must not read them."""
  frozen, prompts = policy(), make_prompts(3)
  frozen.params = jax.device_put(frozen.params)  # as a caller may have placed them
  loaded = made("neighbours", frozen, mesh())
  before = features_of(loaded, prompts)
  jax.tree.map(lambda x: x.delete(), frozen.params)
  np.testing.assert_array_equal(features_of(loaded, prompts), before)


@pytest.mark.parametrize("kind", ["none", "constant"])
def test_priors_without_features(kind):
  loaded, prompts = made(kind), make_prompts(2, capacity=6)
  value, asked = loaded.ask(filled(np.zeros((9, 1)), np.ones(9)), prompts)
  np.testing.assert_array_equal(value, np.full(6, np.nan if kind == "none" else 1.0))
  assert (asked == {}) == (kind == "none") and not loaded.learned


def test_v0_says_whether_the_success_rate_had_to_serve():
  half = lambda support, success, queries, *_: np.full(len(queries), 0.5, np.float32)
  model = types.SimpleNamespace(
    width=1,
    features=lambda texts, rows: np.zeros((len(texts), 1), np.float32),
    marks=lambda support, query: None,
    predict_from_features=half,
  )
  prior = v0.of_model(model, 8, 2)

  def smoothed(success, size=8, differ=1.0):
    state = filled(differ * np.arange(len(success))[:, None], success, size)
    return bool(prior.ask(state, make_prompts(2))[1]["smoothed"].all())

  assert not smoothed([1.0])  # it does not speak yet
  # too few rows, and one class
  assert smoothed([1.0, 0.0, 1.0]) and smoothed([0.5, 1.0, 0.75, 0.5])
  assert not smoothed([0.4, 1.0, 0.75, 0.5])
  assert smoothed([0.4, 1.0, 0.75, 0.5], differ=0.0)  # one prompt again and again
  assert smoothed([0.0, 1.0, 1.0, 1.0, 1.0], size=4)  # the only failure has left the ring


def test_a_wrong_answer_of_a_prior_is_refused_with_its_name():
  short = base.Prior(lambda state, prompts: (np.zeros(2), {}))
  prior = base.named("mine:short", short)
  with pytest.raises(ValueError, match=r"prior.kind=mine:short: ask: found V of shape \(2,\)"):
    prior.ask(prior.init(), make_prompts(3))
  layer = base.Layer(lambda state, prompts, value, asked: (value[:1], {}))
  wrapped = base.wrapped("mine:first", layer, base.named("none", made("none")))
  with pytest.raises(
    ValueError, match=r"prior.wrappers=mine:first: ask: .*\(1,\), expected \(3,\)"
  ):
    wrapped.ask(wrapped.init(), make_prompts(3))
  nameless = base.Prior(lambda state, prompts: (np.zeros(3), np.zeros(3)))
  with pytest.raises(
    ValueError, match=r"prior.kind=mine:a: ask: remembers a ndarray, expected a dict"
  ):
    prior = base.named("mine:a", nameless)
    prior.ask(prior.init(), make_prompts(3))
  with pytest.raises(ValueError, match=r"prior.kind=mine:broken: ZeroDivisionError"):
    broken = base.named("mine:broken", base.Prior(lambda state, prompts: 1 / 0))
    broken.ask(broken.init(), make_prompts(1))
