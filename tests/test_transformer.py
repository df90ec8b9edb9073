"""The decoder agrees with itself: forward, cached decoding, packing, rematerialisation, any neighbours."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
import numpy as np
import pytest

from v05_jax.models import cpu, presets, transformer

CONFIG = presets.PRESETS["tiny"]
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False)
N, T = 3, 10
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (N, T)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T))
ONES = np.ones((N, T), np.int32)

init = jax.jit(transformer.init, static_argnums=0)
forward = jax.jit(transformer.forward, static_argnums=0)
logits = jax.jit(transformer.logits, static_argnums=0)
prefill = jax.jit(transformer.prefill, static_argnums=0)


@partial(jax.jit, static_argnames="config")
def decode(params, cache, token, position, config=CONFIG):
  layers = transformer.unstack(config, params)
  return transformer.decode(config, params, layers, cache, token, position)


@pytest.fixture(scope="module")
def params():
  """Random parameters with norm scales that are not one."""
  draw = np.random.default_rng(1)
  return jax.tree.map(lambda x: np.asarray(x) * draw.uniform(0.5, 1.5, x.shape).astype(np.float32),
                      init(CONFIG, jax.random.key(0)))


def loss(config, params, tokens=TOKENS, segments=ONES):
  """Mean negative log-likelihood of the next token inside segments."""
  hidden = transformer.forward(config, params, tokens, POSITIONS[: len(tokens)], segments)
  logprob = jax.nn.log_softmax(transformer.logits(config, params, hidden[:, :-1]))
  logprob = jnp.sum(logprob * jax.nn.one_hot(tokens[:, 1:], config.vocab_size), -1)
  weight = jnp.asarray(segments[:, 1:] > 0, jnp.float32)
  return -jnp.sum(logprob * weight) / jnp.sum(weight)


gradient = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_decode_step_by_step_equals_forward(params):
  hidden = forward(CONFIG, params, TOKENS, POSITIONS, ONES)
  cache = transformer.empty_cache(CONFIG, N, T + 3)
  for t in range(T):
    step, cache = decode(params, cache, TOKENS[:, t], np.full(N, t, np.int32))
    assert_close(step, hidden[:, t])


def test_rows_at_their_own_positions_after_prefill(params):
  hidden = forward(CONFIG, params, TOKENS, POSITIONS, ONES)
  length = np.array([2, 5, 7], np.int32)
  padded = np.where(POSITIONS < length[:, None], TOKENS, 0)
  cache = prefill(CONFIG, params, padded, length)
  for step in range(3):
    position = length + step
    found, cache = decode(params, cache, TOKENS[np.arange(N), position], position)
    assert_close(found, hidden[np.arange(N), position])


def test_prefill_gives_the_columns_that_decode_writes(params):
  length = np.full(N, T, np.int32)
  expected = transformer.empty_cache(CONFIG, N, T)
  for t in range(T):
    _, expected = decode(params, expected, TOKENS[:, t], np.full(N, t, np.int32))
  found = prefill(CONFIG, params, TOKENS, length)
  assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(expected)]
  assert_close(found, expected)


def test_packed_segments_equal_rows_of_their_own(params):
  packed = np.concatenate([TOKENS[0, :6], TOKENS[1, :4], [0, 0]])[None]
  positions = np.concatenate([np.arange(6), np.arange(4), [0, 0]])[None]
  segments = np.array([[1] * 6 + [2] * 4 + [0] * 2])
  hidden = forward(CONFIG, params, packed, positions, segments)
  assert_close(hidden[0, :6], forward(CONFIG, params, TOKENS, POSITIONS, ONES)[0, :6])
  assert_close(hidden[0, 6:10], forward(CONFIG, params, TOKENS, POSITIONS, ONES)[1, :4])


def test_padding_is_finite_and_reaches_nothing(params):
  segments = ONES * (POSITIONS < np.array([[4], [T], [0]]))
  hidden = forward(CONFIG, params, TOKENS, POSITIONS, segments)
  assert np.isfinite(hidden).all()
  value, grads = gradient(CONFIG, params, TOKENS, segments)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  garbage = np.where(segments > 0, TOKENS, 7)
  assert_equal(hidden[segments > 0], forward(CONFIG, params, garbage, POSITIONS, segments)[segments > 0])
  assert_close((value, grads), gradient(CONFIG, params, garbage, segments), 1e-6)


def test_a_row_does_not_depend_on_other_rows_bit_for_bit(params):
  others = TOKENS.copy()
  others[1:] = (others[1:] + 11) % CONFIG.vocab_size
  a, b = (forward(CONFIG, params, t, POSITIONS, ONES)[0] for t in (TOKENS, others))
  assert_equal(a, b)
  cache = prefill(CONFIG, params, TOKENS, np.array([3, 4, 5], np.int32))
  changed = prefill(CONFIG, params, others, np.array([3, 9, 1], np.int32))
  a, first = decode(params, cache, TOKENS[:, 3], np.array([3, 4, 5], np.int32))
  b, second = decode(params, changed, others[:, 3], np.array([3, 9, 1], np.int32))
  assert_equal((a[0], [x[0] for x in jax.tree.leaves(first)]),
               (b[0], [x[0] for x in jax.tree.leaves(second)]))


@pytest.mark.parametrize("position", [-1, T, 99])
def test_a_position_outside_the_cache_writes_nothing(params, position):
  cache = prefill(CONFIG, params, TOKENS, np.full(N, T, np.int32))
  hidden, after = decode(params, cache, TOKENS[:, 0], np.array([3, position, 4], np.int32))
  assert np.isfinite(hidden).all()
  for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after)):
    assert_equal(old[1], new[1])
    assert (old[0] != new[0]).any()


def test_remat_changes_no_value_and_no_gradient(params):
  remat = dataclasses.replace(CONFIG, remat=True)
  assert_close(gradient(CONFIG, params, TOKENS, ONES), gradient(remat, params, TOKENS, ONES), 1e-6)
  less, more = (gradient.lower(c, params, TOKENS, ONES).as_text() for c in (CONFIG, remat))
  assert more.count("dot_general") > less.count("dot_general")  # it does compute again


@pytest.mark.parametrize("remat", [False, True])
def test_the_pass_for_a_cpu_has_the_same_values_and_gradients(params, remat, monkeypatch):
  """Packed rows with padding, several blocks of queries of unequal size, rows handled one and all at a time."""
  host = dataclasses.replace(CONFIG, backend="cpu", remat=remat)
  segments = np.array([[1] * 10, [1] * 3 + [2] * 5 + [0] * 2, [1] + [2] * 9], np.int32)
  expected = jax.jit(partial(jax.value_and_grad(loss, 1), CONFIG))(params, TOKENS, segments)
  monkeypatch.setattr(cpu, "QUERIES", 4)
  for scores in (1, 1 << 18):
    monkeypatch.setattr(cpu, "SCORES", scores)
    found = jax.jit(partial(jax.value_and_grad(loss, 1), host))
    assert_close(found(params, TOKENS, segments), expected, 2e-6)
  text = found.lower(params, TOKENS, segments).as_text()
  assert "scatter" not in text and "scatter" in gradient.lower(CONFIG, params, TOKENS, segments).as_text()
  monkeypatch.setattr(cpu, "ONEHOT_VOCAB", 1)
  scattered = jax.jit(partial(jax.value_and_grad(loss, 1), host))
  assert_close(scattered(params, TOKENS, segments), expected, 2e-6)
  cached = [jax.tree.leaves(prefill(c, params, TOKENS, np.full(N, T, np.int32))) for c in (host, CONFIG)]
  assert_close(*cached)


def test_bfloat16_computes_norms_and_logits_in_float32(params):
  half = dataclasses.replace(CONFIG, dtype="bfloat16")
  hidden = forward(half, params, TOKENS, POSITIONS, ONES)
  assert hidden.dtype == jnp.bfloat16
  found, expected = (logits(c, params, forward(c, params, TOKENS, POSITIONS, ONES))
                     for c in (half, CONFIG))
  assert found.dtype == jnp.float32
  assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
  layers = transformer.unstack(half, params)
  assert layers[0]["q"]["kernel"].dtype == jnp.bfloat16
  assert layers[0]["q_norm"]["scale"].dtype == jnp.float32
  step, cache = decode(params, transformer.empty_cache(half, N, T), TOKENS[:, 0],
                       np.zeros(N, np.int32), config=half)
  assert {x.dtype for x in jax.tree.leaves((step, cache))} == {jnp.dtype("bfloat16")}
  big = 300.0 * jnp.ones((1, 4), jnp.bfloat16)
  norm = transformer.RMSNorm(1e-6).apply({"params": {"scale": jnp.ones(4)}}, big)
  assert norm.dtype == jnp.float32
  np.testing.assert_allclose(norm, 1.0, rtol=1e-6)


def test_runs_inside_shard_map_and_while_loop(params):
  """Manual over `data` with its checks on, as sampler and update run it: 2 devices equal 1."""
  mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
  tokens = np.concatenate([TOKENS, TOKENS[::-1] // 2])
  data, everywhere = PartitionSpec("data"), PartitionSpec()

  def sample(params, cache, token):
    layers = transformer.unstack(CONFIG, params)

    def body(state):
      token, position, cache = state
      hidden, cache = transformer.decode(CONFIG, params, layers, cache, token, position)
      token = jnp.argmax(transformer.logits(CONFIG, params, hidden), -1).astype(jnp.int32)
      return token, position + 1, cache

    state = token, jnp.zeros_like(token), cache
    return jax.lax.while_loop(lambda s: s[1][0] < 6, body, state)

  def update(params, tokens):
    length = jnp.full_like(tokens[:, 0], 4)
    kv = transformer.prefill(CONFIG, params, tokens, length)
    value, grads = jax.value_and_grad(loss, 1)(CONFIG, params, tokens, jnp.ones_like(tokens))
    return jax.lax.psum(value, "data"), grads, kv

  mapped = partial(jax.shard_map, mesh=mesh, check_vma=True)
  cache = transformer.empty_cache(CONFIG, 2 * N, 8)
  found = jax.jit(mapped(sample, in_specs=(everywhere, data, data), out_specs=data))
  assert_close(found(params, cache, tokens[:, 0]), jax.jit(sample)(params, cache, tokens[:, 0]))
  two = jax.jit(mapped(update, in_specs=(everywhere, data), out_specs=(everywhere, everywhere, data)))
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
  assert_equal(transformer.unembed(UNTIED, params), params["head"])
  tied = init(CONFIG, jax.random.key(0))
  assert "head" not in tied
  assert_equal(transformer.unembed(CONFIG, tied), tied["embedding"])


@pytest.mark.parametrize("name, count", [
  ("qwen3-0.6b", 596_049_920), ("qwen3-1.7b", 1_720_574_976), ("qwen3-4b", 4_022_468_096),
  ("qwen3-4b-instruct-2507", 4_022_468_096), ("qwen3-8b", 8_190_735_360),
])
def test_published_parameter_counts(name, count):
  config = presets.PRESETS[name]
  shapes = jax.eval_shape(partial(transformer.init, config), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == presets.num_params(config) == count


def test_task_presets_have_the_size_in_their_name():
  for name, size in (("tasks-58k", 58e3), ("tasks-150k", 150e3)):
    assert abs(presets.num_params(presets.PRESETS[name]) / size - 1) < 0.01
    assert presets.PRESETS[name].vocab_size == 32


@pytest.mark.parametrize("field, value", [
  ("num_kv_heads", 3), ("head_dim", 7), ("dtype", "float16"), ("num_layers", 0), ("rope_theta", -1.0),
  ("vocab_size", True),
])
def test_a_config_that_cannot_be_names_its_field(field, value):
  with pytest.raises(ValueError, match=r"ModelConfig\." + ("num_heads" if field == "num_kv_heads" else field)):
    dataclasses.replace(CONFIG, **{field: value})
