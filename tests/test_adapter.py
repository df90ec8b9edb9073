"""The residual query adapter against the released V0's tensors (tests/data/v0) and a loop from the
equations."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import erf

from v05_jax.value_model import adapter

DATA = Path(__file__).parent / "data" / "v0"
EXAMPLE = load_file(DATA / "e2e.safetensors")
TRAINING = load_file(DATA / "training.safetensors")
PARAMS = load_file(DATA / "adapter.safetensors")
HEADS = 3
GRADIENT = "grad_full.adapter."

# Compiles faster to slower code.
fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
features = fast(adapter.features, static_argnames=("num_heads", "pooling"))


def close(found, expected, atol, rtol=0.0):
  np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)


def reference(params, hidden, length, heads):
  """Features [Q d] of one prompt without padding, hidden [L, D], in float64: one head and one query
  at a time."""
  p = {name: np.float64(x) for name, x in params.items()}
  hidden = np.float64(hidden[:length])

  def norm(name, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

  x = norm("generator.1", p["generator.0.weight"] @ hidden[-1] + p["generator.0.bias"])
  x = x * (1 + erf(x / np.sqrt(2))) / 2
  queries = p["static_queries"][0] + (p["generator.4.weight"] @ x + p["generator.4.bias"]).reshape(
    p["static_queries"][0].shape
  )
  tokens = [p["proj_kv.weight"] @ h + p["proj_kv.bias"] for h in hidden]
  width = queries.shape[1]
  weight, bias = p["mha.in_proj_weight"], p["mha.in_proj_bias"]
  q = [weight[:width] @ norm("ln_q", s) + bias[:width] for s in queries]
  k = [weight[width : 2 * width] @ norm("ln_kv", t) + bias[width : 2 * width] for t in tokens]
  v = [weight[2 * width :] @ t + bias[2 * width :] for t in tokens]
  features = []
  for a in q:
    out = np.zeros(width)
    for part in np.split(np.arange(width), heads):
      score = np.array([a[part] @ b[part] for b in k]) / np.sqrt(len(part))
      share = np.exp(score - score.max())
      out[part] = sum(s * b[part] for s, b in zip(share / share.sum(), v, strict=True))
    features.append(p["mha.out_proj.weight"] @ out + p["mha.out_proj.bias"])
  return np.concatenate(features)


def random_params(seed, hidden_size, queries, width, bottleneck):
  """Every tensor random, so that none can be left out unnoticed."""
  shapes = jax.eval_shape(
    lambda key: adapter.init(key, hidden_size, queries, width, bottleneck), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)
  return {name: rng.normal(0.2, 0.5, x.shape).astype(np.float32) for name, x in shapes.items()}


def test_official_features_and_intermediates():
  hidden, mask = EXAMPLE["hidden"], EXAMPLE["attention_mask"]
  close(adapter.features(PARAMS, hidden, mask, HEADS), EXAMPLE["features"], 5e-5)

  @fast
  def inside(hidden):
    last = adapter.last_token(hidden, mask)
    return last, adapter.correction(PARAMS, last), adapter.tokens(PARAMS, hidden) * mask[..., None]

  for found, name in zip(inside(hidden), ("v_global", "delta_q", "kv"), strict=True):
    close(found, EXAMPLE[name], 2e-5 * (name != "v_global"))


def test_official_gradients_beside_a_row_without_tokens():
  pad = lambda x: np.concatenate([x, np.ones_like(x[:1]) * (x.ndim > 2)])
  hidden, mask, cotangent = (
    pad(EXAMPLE["hidden"]),
    pad(EXAMPLE["attention_mask"]),
    TRAINING["grad_full.features"],
  )

  @fast
  def gradients(params, hidden):
    found, back = jax.vjp(lambda *x: adapter.features(x[0], x[1], mask, HEADS), params, hidden)
    return found, *back(jnp.pad(cotangent, ((0, 1), (0, 0))))

  found, gradient, by_hidden = gradients(PARAMS, hidden)
  assert np.all(np.isfinite(found))
  assert np.all(np.isfinite(by_hidden))
  assert sorted(gradient) == sorted(
    x.removeprefix(GRADIENT) for x in TRAINING if x.startswith(GRADIENT)
  )
  for name, found in gradient.items():
    close(found, TRAINING[GRADIENT + name], 1e-5, 2e-3)


@pytest.mark.parametrize("size", [(5, 4, 6, 3, 2), (24, 3, 4, 7, 1), (7, 2, 10, 5, 5)], ids=str)
def test_any_weights_and_sizes(size):
  hidden_size, queries, width, bottleneck, heads = size
  params = random_params(sum(size), hidden_size, queries, width, bottleneck)
  hidden = np.random.default_rng(1).normal(size=(3, 6, hidden_size)).astype(np.float32)
  lengths = np.array([6, 1, 4])
  found = features(params, hidden, np.arange(6) < lengths[:, None], heads)
  for row, length, one in zip(hidden, lengths, found, strict=True):
    close(one, reference(params, row, length, heads), 2e-5, 1e-5)


@pytest.mark.parametrize("pooling", adapter.POOLINGS)
def test_padding_left_or_right_or_none_gives_the_same(pooling):
  hidden = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
  run = lambda x, mask: features(
    PARAMS, x, np.broadcast_to(mask, x.shape[:2]), HEADS, pooling=pooling
  )
  exact = run(hidden, np.ones(5, int))
  junk = np.full((2, 3, 64), 1e3, np.float32)
  close(run(np.concatenate([junk, hidden], 1), np.arange(8) >= 3), exact, 2e-6)
  close(run(np.concatenate([hidden, junk], 1), np.arange(8) < 5), exact, 2e-6)


def test_poolings():
  hidden, mask = EXAMPLE["hidden"][:4], EXAMPLE["attention_mask"][:4]
  close(features(PARAMS, hidden, mask, HEADS, pooling="last"), hidden[:, -1], 0)
  still = PARAMS | {
    name: np.zeros_like(PARAMS[name]) for name in ("generator.4.weight", "generator.4.bias")
  }
  fixed = features(PARAMS, hidden, mask, HEADS, pooling="fixed")
  close(fixed, features(still, hidden, mask, HEADS), 1e-6)
  assert np.abs(fixed - EXAMPLE["features"][:4]).max() > 0.01
  with pytest.raises(ValueError, match=r"pooling: found 'mean', expected one of dynamic"):
    adapter.features(PARAMS, hidden, mask, HEADS, pooling="mean")


def test_first_parameters():
  params = fast(lambda key: adapter.init(key, 256))(jax.random.key(0))
  params = jax.device_get(params)
  assert {name: x.shape for name, x in params.items()} == {
    "static_queries": (1, 168, 6),
    "proj_kv.weight": (6, 256),
    "proj_kv.bias": (6,),
    "generator.0.weight": (128, 256),
    "generator.0.bias": (128,),
    "generator.1.weight": (128,),
    "generator.1.bias": (128,),
    "generator.4.weight": (1008, 128),
    "generator.4.bias": (1008,),
    "ln_q.weight": (6,),
    "ln_q.bias": (6,),
    "ln_kv.weight": (6,),
    "ln_kv.bias": (6,),
    "mha.in_proj_weight": (18, 6),
    "mha.in_proj_bias": (18,),
    "mha.out_proj.weight": (6, 6),
    "mha.out_proj.bias": (6,),
  }
  assert all(x.dtype == jnp.float32 for x in params.values())
  assert sorted(params) == sorted(PARAMS)
  close(np.std(params["static_queries"]), 1.0, 0.1)
  bounds = {
    "generator.0.weight": 1 / 16,
    "generator.0.bias": 1 / 16,
    "proj_kv.weight": 1 / 16,
    "proj_kv.bias": 1 / 16,
    "mha.in_proj_weight": 0.5,
    "mha.out_proj.weight": 6**-0.5,
  }
  for name, bound in bounds.items():
    most = np.max(np.abs(params[name]))
    assert (0.97 if params[name].size > 50 else 0.4) * bound < most <= bound, name
  flat = [name for name in params if name not in bounds and name != "static_queries"]
  assert all(np.all(params[name] == (name.endswith("weight") and "4" not in name)) for name in flat)


def test_dropout():
  params = random_params(0, 8, 5, 4, 64)
  last = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 4000)
  dropped = jax.device_get(fast(jax.vmap(lambda key: adapter.correction(params, last, key)))(keys))
  error = np.std(dropped, 0) / 4000**0.5
  exact = fast(adapter.correction)(params, last)
  assert np.all(np.abs(np.mean(dropped, 0) - exact) < 5 * error)
  x = adapter.gelu(
    adapter.layer_norm(params, "generator.1", adapter.linear(params, "generator.0", last))
  )
  variance = (
    0.2 / 0.8 * adapter.matmul(x**2, params["generator.4.weight"] ** 2).reshape(dropped.shape[1:])
  )
  close(np.var(dropped, 0), variance, 0, 0.15)
  hidden, mask = EXAMPLE["hidden"][:2], EXAMPLE["attention_mask"][:2]
  run = lambda key: features(PARAMS, hidden, mask, HEADS, key)
  assert np.array_equal(run(keys[0]), run(keys[0]))
  assert not np.array_equal(run(keys[0]), run(keys[1]))
