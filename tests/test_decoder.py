"""The decoder agrees with itself: forward, cached decoding, packing, rematerialisation, any
neighbours."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
import numpy as np
import pytest

from v05_jax.models import cpu, decoder, decoding, flash, presets, rotary
from v05_jax.models.model_config import Local

CONFIG = presets.PRESETS["tiny"]
# All that a family can have computed in another way than Qwen3, at once.
OTHER = dataclasses.replace(
  CONFIG,
  rope_theta=100.0,
  rope_scaling=rotary.Scaling("llama3", 4.0, original_max_position_embeddings=64),
  qkv_bias=True,
  activation="gelu_tanh",
  unit_offset=True,
  post_norms=True,
  embedding_scale=4.0,
  query_scalar=5.0,
  local=Local(3, 20.0, (True, False)),
)
BOTH = pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["qwen3", "other"])
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False)
N, T = 3, 10
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (N, T)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T))
ONES = np.ones((N, T), np.int32)

init = jax.jit(decoder.init, static_argnums=0)
forward = jax.jit(decoder.forward, static_argnums=0)
forward_kernel = jax.jit(decoder.forward_kernel, static_argnums=(0, 1))
logits = jax.jit(decoder.logits, static_argnums=0)
prefill = jax.jit(decoding.prefill, static_argnums=0)


def as_caches(caches, shared, count, step):
  prompts, past, fresh = caches
  return decoding.Caches(prompts, shared, past, count, fresh, step)


@partial(jax.jit, static_argnames="config")
def decode(params, caches, shared, token, position, count, step, config=CONFIG):
  weights = decoding.decode_weights(config, params)
  caches = as_caches(caches, shared, count, step)
  return decoding.decode(config, weights, caches, token, position)


NO_PROMPT = decoding.Shared(
  np.full((1, 1), N, np.int32), np.zeros(N, np.int32), np.zeros(1, np.int32)
)
ZERO = np.zeros(N, np.int32)


def empty(rows, columns, config=CONFIG):
  return decoding.empty_cache(config, rows, columns)


def moved(past, given, start, count, steps):
  """`past` with columns `start` to `start + steps` of `given` at each row's `count`, and noise
  behind them."""
  noise, rows = np.random.default_rng(5), range(len(count))

  def put(old, new, axis):
    old, new = (np.moveaxis(np.array(x), axis, 1) for x in (old, new))
    for row, at, here, n in zip(
      rows, np.broadcast_to(start, len(count)), count, np.broadcast_to(steps, len(count))
    ):
      old[row, here : here + n] = new[row, at : at + n]
      old[row, here + n :] = noise.normal(size=old[row, here + n :].shape)
    return np.moveaxis(old, 1, axis)

  return tuple((put(k, new_k, 3), put(v, new_v, 2)) for (k, v), (new_k, new_v) in zip(past, given))


@functools.cache
def drawn(config):
  """Random parameters with norm scales that are not one (or zero) and biases that are not zero."""
  draw = np.random.default_rng(1)

  def change(path, x):
    noise = draw.uniform(0.5, 1.5, x.shape).astype(np.float32)
    zero = path[-1].key == "bias" or (path[-1].key == "scale" and config.unit_offset)
    return noise - 1 if zero else np.asarray(x) * noise

  return jax.tree_util.tree_map_with_path(change, init(config, jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
  return drawn(CONFIG)


def loss(config, params, tokens=TOKENS, segments=ONES):
  """Mean negative log-likelihood of the next token inside segments."""
  hidden = decoder.forward(config, params, tokens, POSITIONS[: len(tokens)], segments)
  logprob = jax.nn.log_softmax(decoder.logits(config, params, hidden[:, :-1]))
  logprob = jnp.sum(logprob * jax.nn.one_hot(tokens[:, 1:], config.vocab_size), -1)
  weight = jnp.asarray(segments[:, 1:] > 0, jnp.float32)
  return -jnp.sum(logprob * weight) / jnp.sum(weight)


gradient = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  "config, chunk", [(CONFIG, T), (CONFIG, 4), (OTHER, 4)], ids=["all", "four", "other"]
)
def test_decode_step_by_step_equals_forward(config, chunk):
  """All tokens in the newest cache, or moved to the past after every `chunk` of them."""
  params = drawn(config)
  hidden = forward(config, params, TOKENS, POSITIONS, ONES)
  past, fresh = empty(N, T + 3), empty(N, chunk + 1)
  for t in range(T):
    count, step = np.full(N, t - t % chunk, np.int32), np.int32(t % chunk)
    caches = empty(1, 2), past, fresh
    found, fresh = decode(
      params, caches, NO_PROMPT, TOKENS[:, t], np.full(N, t, np.int32), count, step, config=config
    )
    assert_close(found, hidden[:, t])
    if step == chunk - 1:
      past = moved(past, fresh, 0, count, chunk)


@BOTH
def test_rows_of_shared_prompts_at_their_own_counts(config):
  """Four prompts in the store, of which one goes on in three rows, one in none and one has a single
  token.

  Each rollout has come to another length, which lies in the past; the last slot is idle.
  """
  params = drawn(config)
  text = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (6, 14)).astype(np.int32)
  prompt, length = np.array([2, 2, 0, 3, 2, 1]), np.array([4, 1, 7, 1])
  text[:, :7] = np.where(np.arange(7) < length[prompt][:, None], text[prompt, :7], text[:, :7])
  positions = np.broadcast_to(np.arange(14, dtype=np.int32), text.shape)
  hidden = np.asarray(forward(config, params, text, positions, np.ones_like(text)))
  store = prefill(config, params, text[[2, 5, 0, 3], :7], length.astype(np.int32))
  rows, place = (
    np.array([[6, 2, 6], [6, 6, 6], [0, 4, 1], [3, 6, 6]], np.int32),
    np.array([6, 8, 1, 9, 7, 0], np.int32),
  )
  # a rollout's first input is the last token
  shared = decoding.Shared(rows, place, (length - 1).astype(np.int32))
  first, count = length[prompt] - 1, np.array([0, 3, 2, 5, 1, 0], np.int32)
  whole = prefill(config, params, text, np.full(6, 14, np.int32))
  past, fresh = moved(empty(6, 8), whole, first, 0 * count, count), empty(6, 3)
  for step in range(2):
    position = (first + count + step).astype(np.int32)
    token = text[np.arange(6), position]
    found, fresh = decode(
      params, (store, past, fresh), shared, token, position, count, np.int32(step), config=config
    )
    assert_close(found[:5], hidden[np.arange(5), position[:5]])
    assert np.isfinite(found[5]).all()


def test_decode_writes_one_column_of_the_newest_cache_as_prefill_does(params):
  expected = prefill(CONFIG, params, TOKENS, np.full(N, T, np.int32))
  fresh = jax.tree.map(lambda x: x + 7, empty(N, T))
  for t in range(T):
    _, fresh = decode(
      params,
      (empty(1, 2), empty(N, 2), fresh),
      NO_PROMPT,
      TOKENS[:, t],
      ZERO + t,
      ZERO,
      np.int32(t),
    )
    for (k, v), (new_k, new_v) in zip(expected, fresh):
      assert_close((new_k[..., : t + 1], new_v[:, :, : t + 1]), (k[..., : t + 1], v[:, :, : t + 1]))
      assert (new_k[..., t + 1 :] == 7).all() and (new_v[:, :, t + 1 :] == 7).all()


def test_join_of_parts_is_softmax_over_all_columns():
  """Of four parts one is masked whole, and one has scores that are far below the others'."""
  rng = np.random.default_rng(0)
  q = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
  k, v = (
    rng.normal(size=(2, 2, 4, 12)).astype(np.float32),
    rng.normal(size=(2, 2, 12, 4)).astype(np.float32),
  )
  k[0, :, :, :3] *= 60
  mask = rng.random((2, 12)) < 0.6
  mask[0, 3:6], mask[1, 6:9], mask[:, 0] = False, False, True
  scores = np.where(mask[:, None, None], q @ k / 2, -np.inf).astype(np.float64)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  expected = weights / weights.sum(-1, keepdims=True) @ v
  cuts = [slice(i, i + 3) for i in (0, 3, 6, 9)]
  parts = [decoding.attend_part(q, (k[..., cut], v[:, :, cut]), mask[:, cut]) for cut in cuts]
  for order in ([0, 1, 2, 3], [2, 3, 1, 0]):
    np.testing.assert_allclose(
      decoding.join(*(parts[i] for i in order)), expected, rtol=1e-5, atol=1e-6
    )
  whole = decoder.attend(q[:, :, None], k, v, np.broadcast_to(mask[:, None], (2, 3, 12)))[:, :, 0]
  np.testing.assert_allclose(
    decoding.join(decoding.attend_part(q, (k, v), mask)), whole, rtol=1e-5, atol=1e-6
  )


@BOTH
def test_packed_segments_equal_rows_of_their_own(config):
  params = drawn(config)
  packed = np.concatenate([TOKENS[0, :6], TOKENS[1, :4], [0, 0]])[None]
  positions = np.concatenate([np.arange(6), np.arange(4), [0, 0]])[None]
  segments = np.array([[1] * 6 + [2] * 4 + [0] * 2])
  hidden = forward(config, params, packed, positions, segments)
  assert_close(hidden[0, :6], forward(config, params, TOKENS, POSITIONS, ONES)[0, :6])
  assert_close(hidden[0, 6:10], forward(config, params, TOKENS, POSITIONS, ONES)[1, :4])
  # Two rollouts of one prompt of 5 tokens, 3 and 4 tokens long: a window counts positions.
  text = np.stack([TOKENS[0], np.concatenate([TOKENS[0, :5], TOKENS[1, :5]])])
  packed = np.concatenate([text[0, :8], text[1, 5:9], [0]])[None]
  positions = np.concatenate([np.arange(8), np.arange(5, 9), [0]])[None]
  segments = np.array([[1] * 5 + [2] * 3 + [3] * 4 + [0]])
  hidden = forward(config, params, packed, positions, segments, np.minimum(segments, 1))
  alone = forward(config, params, text, POSITIONS[:2], ONES[:2])
  assert_close(hidden[0, :8], alone[0, :8])
  assert_close(hidden[0, 8:12], alone[1, 5:9])


def test_padding_is_finite_and_reaches_nothing(params):
  segments = ONES * (POSITIONS < np.array([[4], [T], [0]]))
  hidden = forward(CONFIG, params, TOKENS, POSITIONS, segments)
  assert np.isfinite(hidden).all()
  value, grads = gradient(CONFIG, params, TOKENS, segments)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  garbage = np.where(segments > 0, TOKENS, 7)
  assert_equal(
    hidden[segments > 0], forward(CONFIG, params, garbage, POSITIONS, segments)[segments > 0]
  )
  assert_close((value, grads), gradient(CONFIG, params, garbage, segments), 1e-6)


def test_a_row_does_not_depend_on_other_rows_bit_for_bit(params):
  others = TOKENS.copy()
  others[1:] = (others[1:] + 11) % CONFIG.vocab_size
  a, b = (forward(CONFIG, params, t, POSITIONS, ONES)[0] for t in (TOKENS, others))
  assert_equal(a, b)
  rows = np.array([[0, N], [2, 1]], np.int32)
  place, length = np.array([0, 3, 2], np.int32), np.array([4, 6], np.int32)

  def step(tokens, rows, place, length, count):
    store = prefill(CONFIG, params, tokens[:2], length)
    past = prefill(CONFIG, params, tokens, count)
    shared = decoding.Shared(rows, place, length)
    hidden, fresh = decode(
      params, (store, past, empty(N, 2)), shared, tokens[:, 3], ZERO + 8, count, np.int32(0)
    )
    return hidden[0], [x[0] for x in jax.tree.leaves(fresh)]

  a = step(TOKENS, rows, place, length, np.array([2, 3, 4], np.int32))
  assert_equal(
    a, step(others, rows, place, np.array([4, 2], np.int32), np.array([2, 0, 9], np.int32))
  )
  rows = np.array([[1, 0], [N, 2]], np.int32)  # another place beside another row
  place = np.array([1, 0, 3], np.int32)
  assert_equal(a, step(others, rows, place, length, np.array([2, 5, 1], np.int32)))


@pytest.mark.parametrize(
  "name", ["full", *(pytest.param(x, marks=pytest.mark.long) for x in ("attention", "dots"))]
)
def test_remat_changes_no_value_and_no_gradient(params, name):
  remat = dataclasses.replace(CONFIG, remat=name)
  assert_close(gradient(CONFIG, params, TOKENS, ONES), gradient(remat, params, TOKENS, ONES), 1e-6)
  less, more = (gradient.lower(c, params, TOKENS, ONES).as_text() for c in (CONFIG, remat))
  assert more.count("dot_general") > less.count("dot_general")  # it does compute again


@pytest.mark.parametrize("window", [None, pytest.param(20, marks=pytest.mark.long)])
def test_splash_attention_has_the_values_and_gradients_of_plain_attention(params, window):
  """Interpreted; rows that are no multiple of its tiles, segments, padding, prompts as segments."""
  rows, tokens = 2, 150
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=(rows, tokens, 2, *s)).astype(np.float32) for s in ((2, 128), (128,), (128,))
  )
  segments = np.sort(rng.integers(0, 4, (rows, tokens)), 1).astype(np.int32)
  mask = decoder.causal(segments)
  behind = np.arange(tokens)[:, None] - np.arange(tokens)
  mask, name = (mask & (behind < window), ("splash", window)) if window else (mask, "splash")

  def plain(q, k, v):
    out = decoder.attend(
      jnp.moveaxis(q, 1, 3), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), mask
    )
    return jnp.moveaxis(out, 3, 1)

  splash = lambda q, k, v: flash.attend(name, q, k, v, segments, interpret=True)
  weight = rng.normal(size=q.shape)
  total = lambda f: jax.jit(jax.value_and_grad(lambda *x: jnp.sum(f(*x) * weight), (0, 1, 2)))
  assert_close(total(splash)(q, k, v), total(plain)(q, k, v), 2e-5)
  config = dataclasses.replace(OTHER if window else CONFIG, head_dim=128)
  weights = init(config, jax.random.key(0))
  kernel = partial(flash.attend, "splash", interpret=True)
  if window:
    near = partial(flash.attend, ("splash", config.local.window), interpret=True)
    kernel = flash.choose(kernel, near)
  packed = np.array([[1] * 10, [1] * 3 + [2] * 5 + [0] * 2, [1] + [2] * 9], np.int32)
  found, expected = (
    f(config, weights, TOKENS, POSITIONS, packed)
    for f in (partial(forward_kernel, kernel), forward)
  )
  assert_close(found, expected, 2e-5)


def test_rows_are_padded_to_large_blocks_where_that_is_cheap():
  found = {tokens: flash.block(tokens) for tokens in (100, 128, 500, 640, 700, 900, 1407, 5120)}
  assert found == {100: 128, 128: 128, 500: 512, 640: 128, 700: 256, 900: 512, 1407: 512, 5120: 512}


@pytest.mark.parametrize(
  "config, remat",
  [
    pytest.param(CONFIG, "none", marks=pytest.mark.long),
    (CONFIG, "full"),
    pytest.param(OTHER, "none", marks=pytest.mark.long),
  ],
  ids=["none", "full", "other"],
)
def test_the_pass_for_a_cpu_has_the_same_values_and_gradients(config, remat, monkeypatch):
  """Packed rows with padding, several blocks of queries of unequal size, rows handled one and all
  at a time."""
  params = drawn(config)
  host = dataclasses.replace(config, backend="cpu", remat=remat)
  segments = np.array([[1] * 10, [1] * 3 + [2] * 5 + [0] * 2, [1] + [2] * 9], np.int32)
  expected = jax.jit(partial(jax.value_and_grad(loss, 1), config))(params, TOKENS, segments)
  monkeypatch.setattr(cpu, "QUERIES", 4)
  for scores in (1, 1 << 18):
    monkeypatch.setattr(cpu, "SCORES", scores)
    found = jax.jit(partial(jax.value_and_grad(loss, 1), host))
    assert_close(found(params, TOKENS, segments), expected, 2e-6)
  text = found.lower(params, TOKENS, segments).as_text()
  assert (
    "scatter" not in text
    and "scatter" in gradient.lower(config, params, TOKENS, segments).as_text()
  )
  monkeypatch.setattr(cpu, "ONEHOT_VOCAB", 1)
  scattered = jax.jit(partial(jax.value_and_grad(loss, 1), host))
  assert_close(scattered(params, TOKENS, segments), expected, 2e-6)
  cached = [
    jax.tree.leaves(prefill(c, params, TOKENS, np.full(N, T, np.int32))) for c in (host, config)
  ]
  assert_close(*cached)


def test_what_families_compute_in_other_ways_is_the_same_on_a_cpu(monkeypatch):
  """Packed rows, in several blocks of queries; long rows of it are in the test above."""
  monkeypatch.setattr(cpu, "QUERIES", 4)
  packed = np.array([[1] * 10, [1] * 3 + [2] * 5 + [0] * 2, [1] + [2] * 9], np.int32)
  host = dataclasses.replace(OTHER, backend="cpu")
  found, expected = (gradient(c, drawn(OTHER), TOKENS, packed) for c in (host, OTHER))
  assert_close(found, expected, 2e-6)


def test_bfloat16_computes_norms_and_logits_in_float32(params):
  half = dataclasses.replace(CONFIG, dtype="bfloat16")
  hidden = forward(half, params, TOKENS, POSITIONS, ONES)
  assert hidden.dtype == jnp.bfloat16
  found, expected = (
    logits(c, params, forward(c, params, TOKENS, POSITIONS, ONES)) for c in (half, CONFIG)
  )
  assert found.dtype == jnp.float32
  assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
  weights = decoding.decode_weights(half, params)
  assert len(weights["layers"]) == half.num_layers
  for path, x in jax.tree_util.tree_leaves_with_path(weights):
    assert x.dtype == (jnp.float32 if path[-1].key == "scale" else jnp.bfloat16), path
  caches = empty(1, 2, half), empty(N, 2, half), empty(N, T, half)
  step, cache = decode(
    params, caches, NO_PROMPT, TOKENS[:, 0], ZERO, ZERO, np.int32(0), config=half
  )
  assert (
    np.abs(np.float32(step) - np.float32(hidden[:, 0])).max()
    < 0.05 * np.abs(np.float32(hidden)).max()
  )
  assert {x.dtype for x in jax.tree.leaves((step, cache))} == {jnp.dtype("bfloat16")}
  big = 300.0 * jnp.ones((1, 4), jnp.bfloat16)
  norm = decoder.RMSNorm(1e-6).apply({"params": {"scale": jnp.ones(4)}}, big)
  assert norm.dtype == jnp.float32
  np.testing.assert_allclose(norm, 1.0, rtol=1e-6)


def test_runs_inside_shard_map_and_while_loop(params):
  """Manual over `data` with its checks on, as sampler and update run it: 2 devices equal 1."""
  mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
  tokens = np.concatenate([TOKENS, TOKENS[::-1] // 2])
  data, everywhere = PartitionSpec("data"), PartitionSpec()

  def sample(params, store, past, fresh, shared, token):
    weights = decoding.decode_weights(CONFIG, params)

    def body(state):
      token, step, fresh = state
      position = 3 + step + jnp.zeros_like(token)
      hidden, fresh = decoding.decode(
        CONFIG,
        weights,
        decoding.Caches(store, shared, past, jnp.zeros_like(token), fresh, step),
        token,
        position,
      )
      return (
        jnp.argmax(decoder.logits(CONFIG, weights, hidden), -1).astype(jnp.int32),
        step + 1,
        fresh,
      )

    token, _, fresh = jax.lax.while_loop(lambda s: s[1] < 6, body, (token, 0 * token[0], fresh))
    return token, fresh

  def update(params, tokens):
    length = jnp.full_like(tokens[:, 0], 4)
    kv = decoding.prefill(CONFIG, params, tokens, length)
    value, grads = jax.value_and_grad(loss, 1)(CONFIG, params, tokens, jnp.ones_like(tokens))
    return jax.lax.psum(value, "data"), grads, kv

  mapped = partial(jax.shard_map, mesh=mesh, check_vma=True)
  store = prefill(CONFIG, params, tokens[:4], np.full(4, 3, np.int32))
  rows = np.array([[0, 2], [1, N]], np.int32)  # of its device's own rows, two entries each
  here = decoding.Shared(
    np.tile(rows, (2, 1)), np.tile([0, 2, 1], 2).astype(np.int32), np.full(4, 3, np.int32)
  )
  apart = np.where(rows < N, rows + N, 2 * N)
  there = decoding.Shared(
    np.concatenate([np.where(rows < N, rows, 2 * N), apart]).astype(np.int32),
    np.array([0, 2, 1, 4, 6, 5], np.int32),
    np.full(4, 3, np.int32),
  )
  arguments = params, store, empty(2 * N, 2), empty(2 * N, 6)
  found = jax.jit(
    mapped(sample, in_specs=(everywhere, data, data, data, data, data), out_specs=data)
  )
  token, fresh = found(*arguments, here, tokens[:, 0])
  assert_close((token, fresh), jax.jit(sample)(*arguments, there, tokens[:, 0]))
  two = jax.jit(
    mapped(update, in_specs=(everywhere, data), out_specs=(everywhere, everywhere, data))
  )
  value, grads, _ = two(params, tokens)
  halves = [gradient(CONFIG, params, t, np.ones_like(t)) for t in (tokens[:N], tokens[N:])]
  assert_close((value, grads), jax.tree.map(jnp.add, *halves))


def test_init_shapes_and_scale():
  params = init(UNTIED, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == presets.num_params(UNTIED)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert params["layers"]["q"]["kernel"].shape == (2, 16, 32)
  assert (params["layers"]["q"]["kernel"][0] != params["layers"]["q"]["kernel"][1]).all()
  hidden = forward(UNTIED, params, TOKENS, POSITIONS, ONES)
  assert 0.5 < logits(UNTIED, params, hidden).std() < 2.0
  assert_equal(decoder.unembed(UNTIED, params), params["head"])
  tied = init(CONFIG, jax.random.key(0))
  assert "head" not in tied
  assert_equal(decoder.unembed(CONFIG, tied), tied["embedding"])


@pytest.mark.parametrize(
  "name, count",
  [
    ("qwen3-0.6b", 596_049_920),
    ("qwen3-1.7b", 1_720_574_976),
    ("qwen3-4b", 4_022_468_096),
    ("qwen3-4b-instruct-2507", 4_022_468_096),
    ("qwen3-8b", 8_190_735_360),
  ],
)
def test_published_parameter_counts(name, count):
  config = presets.PRESETS[name]
  shapes = jax.eval_shape(partial(decoder.init, config), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == presets.num_params(config) == count


def test_task_presets_have_the_size_in_their_name():
  for name, size in (("tasks-58k", 58e3), ("tasks-150k", 150e3)):
    assert abs(presets.num_params(presets.PRESETS[name]) / size - 1) < 0.01
    assert presets.PRESETS[name].vocab_size == 32


@pytest.mark.parametrize(
  "field, value",
  [
    ("num_kv_heads", 3),
    ("head_dim", 7),
    ("dtype", "float16"),
    ("num_layers", 0),
    ("rope_theta", -1.0),
    ("vocab_size", True),
  ],
)
def test_a_config_that_cannot_be_names_its_field(field, value):
  with pytest.raises(
    ValueError, match=r"ModelConfig\." + ("num_heads" if field == "num_kv_heads" else field)
  ):
    dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("window", [None, 3])
def test_cudnn_gets_rows_of_an_even_length_and_no_token_sees_what_is_added(window, monkeypatch):
  """The kernel itself, which refuses masked rows of an odd length, runs on GPUs alone."""
  lengths, attention = [], jax.nn.dot_product_attention

  def without_kernel(q, k, v, mask, implementation):
    assert implementation == "cudnn"
    lengths.append(q.shape[1])
    return attention(q, k, v, mask=mask, implementation="xla")

  monkeypatch.setattr(jax.nn, "dot_product_attention", without_kernel)
  of = lambda number, *shape: jax.random.normal(jax.random.key(number), (2, 37, *shape))
  q, k, v = of(0, 2, 2, 8), of(1, 2, 8), of(2, 2, 8)
  segments = jnp.repeat(jnp.arange(4), np.array([20, 10, 5, 2]))[None].repeat(2, 0)

  def plain(q, k, v):
    behind = jnp.arange(37)[:, None] - jnp.arange(37)
    mask = (segments[:, :, None] == segments[:, None]) & (behind >= 0)
    mask = mask & (behind < window) if window else mask
    q, v = q.transpose(0, 2, 3, 1, 4), v.swapaxes(1, 2)
    return decoder.attend(q, k.transpose(0, 2, 3, 1), v, mask).transpose(0, 3, 1, 2, 4)

  kernel = ("cudnn", window) if window else "cudnn"
  found = lambda q, k, v: flash.attend(kernel, q, k, v, segments)
  assert_close(found(q, k, v), plain(q, k, v))
  slopes = lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(f(*x))))((q, k, v))
  assert_close(slopes(found), slopes(plain))
  assert lengths == [64, 64]


def test_heads_that_cudnn_has_no_form_for_name_the_key(params, monkeypatch):
  for width in (12, 264):
    message = f"config.policy.attention: found 'flash' for heads of {width}.* set it to plain"
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(CONFIG, attention="cudnn", head_dim=width)
  assert dataclasses.replace(CONFIG, attention="cudnn", head_dim=256).head_dim == 256

  def refuse(*_, **__):  # as JAX does on a GPU before Hopper
    raise NotImplementedError("The head dim must be <= 128 and a multiple of 8, but got 256.")

  monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
  q, k = jnp.zeros((1, 4, 1, 1, 256)), jnp.zeros((1, 4, 1, 256))
  with pytest.raises(ValueError, match=r"config\.policy\.attention: found .flash., .* <= 128"):
    flash.attend("cudnn", q, k, k, jnp.ones((1, 4), jnp.int32))
