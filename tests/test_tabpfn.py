"""The TabPFN head against the released stack's tensors (tests/data/v0) and against loops written
from the equations."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import erf

from v05_jax.value_model import cells, ensemble, losses, tabpfn
from v05_jax.value_model.ensemble import Ensemble, Query, Support

DATA = Path(__file__).parent / "data" / "v0"
CONFIG, RNG = (json.loads((DATA / f"{name}.json").read_text()) for name in ("config", "rng"))
EXAMPLE, CASES, TABLES, TRAINING, ACTIVATIONS, STATE = (
  load_file(DATA / f"{name}.safetensors")
  for name in ("e2e", "head_cases", "column_tables", "training", "head_est0_activations", "tabpfn")
)
PARAMS = tabpfn.stack(STATE)
N = 24  # support rows of the example
TABLE = TABLES["col_table.default"]
LAYER = "transformer_encoder.layers."


def close(found, expected, atol, rtol=0.0):
  np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)


def fast(function):
  """jit that compiles faster to slower code."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


compiled, context, query, raw_logits = map(
  fast, (tabpfn.forward, tabpfn.context, tabpfn.query, tabpfn.raw_logits)
)


def forward(params, x, y, x_query, table, support_mask=None, query_mask=None):
  return compiled(params, Support(x, y, support_mask), Query(x_query, query_mask), table)


def permutations(estimators, columns):
  return ensemble.randomness(estimators, columns)[1]


def pad_rows(x, rows, value=0.0, axis=0):
  """x with rows of `value` behind, `rows` in all."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, rows - x.shape[axis])
  return np.pad(x, widths, constant_values=value)


def arguments(case, rows=(N, 8), junk=0.0):
  """Of `raw_logits`, for a recorded case in so many support and query rows, padded with `junk`."""
  x = np.asarray(case["X_support"])
  keep = np.flatnonzero(np.any(x != x[:1], axis=0))  # as in the recorded model
  n, m = len(case["X_support"]), len(case["X_query"])
  table = TABLES[case["table"]]
  if table.shape != TABLE.shape:
    # one for every estimator: the other way to give them
    table = np.broadcast_to(table, (4, *table.shape))
  support = Support(
    pad_rows(case["X_support"], rows[0], junk),
    pad_rows(case["labels"].astype(np.float32), rows[0]),
    np.arange(rows[0]) < n,
  )
  asked = Query(pad_rows(case["X_query"], rows[1], junk), np.arange(rows[1]) < m)
  estimators = Ensemble(
    table,
    pad_rows(case["fingerprint_support"], rows[0], axis=1),
    pad_rows(case["fingerprint_query"], rows[1], axis=1),
    permutations(4, len(keep) + 1),
    keep,
  )
  return PARAMS, support, asked, estimators


def recorded(name):
  case = {key.removeprefix(f"{name}."): x for key, x in CASES.items() if key.startswith(f"{name}.")}
  return case | {"table": CONFIG["cases"][name]["col_table"]}


EXAMPLE_CASE = {
  "X_support": EXAMPLE["features"][:N],
  "labels": EXAMPLE["support_scores"],
  "X_query": EXAMPLE["features"][N:],
  "table": "col_table.default",
  "raw_logits": EXAMPLE["raw_logits"],
  "probs": EXAMPLE["probs"],
  "fingerprint_support": EXAMPLE["fingerprint_support"],
  "fingerprint_query": EXAMPLE["fingerprint_query"],
}


# --- The released stack


@fast
def activations(x, y, x_query):
  """Everything on the way of `forward`, under the names of the recorded file."""
  found, rows, ones = {}, jnp.concatenate([x, x_query]), jnp.ones(len(x) + len(x_query), bool)
  statistics = cells.make_statistics(
    x, y, ones[: len(x)], (x_query, ones[len(x) :]), cells.group_size(PARAMS)
  )
  found["grouped"] = cells.reorder(statistics, rows)
  found["scaled"], found["nan_indicators"] = cells.scale(statistics, found["grouped"])
  found["embedded_x"] = cells.embed_cells(PARAMS, found["scaled"], found["nan_indicators"])
  unlabelled = jnp.broadcast_to(jnp.stack([statistics.label, -2.0]), (len(x_query), 2))
  found["y_columns"] = label = jnp.concatenate([jnp.stack([y, 0 * y], 1), unlabelled])
  found["embedded_y"] = tabpfn.linear(PARAMS, "y_encoder.2.layer", label)
  found["col_emb"] = cells.embed_columns(PARAMS, TABLE, 17)
  thinking = jnp.broadcast_to(PARAMS["add_thinking_tokens.row_token_values"][:, None], (4, 18, 48))
  found["tokens_in"] = jnp.concatenate(
    [thinking, cells.make_tokens(PARAMS, statistics, rows, label, TABLE)]
  )
  training = 4 + len(x)

  def step(tokens, layer):
    feat = tabpfn.mix_columns(layer, tokens)
    keys, values = tabpfn.keys_and_values(layer, feat[:training])
    item = [
      tabpfn.mix_rows(layer, feat[:training], keys, values, ones[:1]),
      tabpfn.mix_rows(layer, feat[training:], keys[:, 0], values[:, 0], ones[:1]),
    ]
    item = jnp.concatenate(item)
    done = tabpfn.mlp(layer, item)
    return done, {"post_feat": feat, "post_item": item, "post_mlp": done}

  layers = {
    name.removeprefix("layers."): v for name, v in PARAMS.items() if name.startswith("layers.")
  }
  tokens, inside = jax.lax.scan(step, found["tokens_in"], layers)
  found |= {f"layer{i}.{name}": v[i] for name, v in inside.items() for i in range(3)}
  found["dec_in"] = tokens[training:, -1]
  found["dec_out"] = tabpfn.decode(PARAMS, found["dec_in"])
  return found


ATOL = {
  "grouped": 1e-6,
  "y_columns": 1e-6,
  "nan_indicators": 0,
  "scaled": 2e-6,
  "embedded_x": 1e-5,
  "embedded_y": 1e-5,
  "col_emb": 1e-5,
  "tokens_in": 1e-5,
  "dec_out": 2e-4,
}


def test_every_recorded_activation():
  y = EXAMPLE["support_labels"].astype(np.float32)
  found = activations(ACTIVATIONS["X_train"], y, ACTIVATIONS["X_test"])
  assert {"X_train", "X_test", "col_table"} == set(ACTIVATIONS) - set(found)
  for name, x in found.items():
    np.testing.assert_allclose(
      x, ACTIVATIONS[name], atol=ATOL.get(name, 1e-4), rtol=0, err_msg=name
    )


def test_recorded_table_of_an_estimator():
  prints = EXAMPLE["fingerprint_support"][0], EXAMPLE["fingerprint_query"][0]
  features, scores = EXAMPLE["features"], EXAMPLE["support_scores"].copy()
  preprocess = fast(ensemble.preprocess)
  table = lambda order: preprocess(
    Support(features[:N], scores), Query(features[N:]), prints, order
  )
  (x, y, _), (x_query, _) = table(permutations(4, 49)[0])
  close(x, ACTIVATIONS["X_train"], 1e-6)
  close(x_query, ACTIVATIONS["X_test"], 1e-6)
  assert np.array_equal(y, EXAMPLE["support_labels"])
  scores[:3] = 0.49999, 0.5, 1.0
  labels = table(np.arange(49))[0].labels[:3]
  assert labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["example", *CONFIG["cases"]])
def test_recorded_cases(name):
  case = EXAMPLE_CASE if name == "example" else recorded(name)
  given = arguments(case)
  if "keep" in case:
    assert np.array_equal(given[3].keep, np.flatnonzero(case["keep"]))
  raw = raw_logits(*given)[:, given[2].mask]
  close(raw, case["raw_logits"], 2e-4)
  logits, probabilities = tabpfn.average(raw)
  close(logits, case["raw_logits"].mean(0) / 0.9, 2e-4)
  close(probabilities, case["probs"], 3e-5)


def test_predict_compiles_once_for_all_row_counts_of_a_bucket():
  before = tabpfn.raw_logits._cache_size()
  for case in (EXAMPLE_CASE, recorded("tiny"), recorded("one_query")):
    given = arguments(case, junk=7.0)
    logits, probabilities = tabpfn.predict(*given)
    close(probabilities[given[2].mask], case["probs"], 3e-5)
    close(logits[given[2].mask], case["raw_logits"].mean(0) / 0.9, 2e-4)
  assert tabpfn.raw_logits._cache_size() == before + 1


def test_recorded_loss_and_its_gradient():
  target = EXAMPLE["query_targets"]
  # with rows of padding
  _, given, asked, estimators = arguments(EXAMPLE_CASE, (N + 2, 8 + 1))

  def loss(support, queries, *fingerprints):
    names = "fingerprints_support", "fingerprints_query"
    logits, _ = tabpfn.predict(
      PARAMS,
      given._replace(features=support),
      asked._replace(features=queries),
      estimators._replace(**dict(zip(names, fingerprints))),
    )
    real = np.arange(10) < 8  # the ninth row is padding, a tenth makes a pair of it
    logits = jnp.pad(logits, ((0, 1), (0, 0)), constant_values=99.0)
    value, parts = losses.total(logits, pad_rows(target, 10), real * 1.0, real, 0.25)
    return value, (parts["pair"], parts["soft"], logits[:8])

  gradient = fast(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
  support = np.where(given.mask[:, None], given.features, np.nan)
  queries = np.where(asked.mask[:, None], asked.features, 9.0)
  prints = estimators.fingerprints_support, estimators.fingerprints_query
  (value, (pair, soft, logits)), (by_support, by_query, *others) = gradient(
    support, queries, *prints
  )
  close(logits, TRAINING["train_logits"], 2e-4)
  for x, name in ((value, "combined"), (pair, "pair"), (soft, "soft")):
    close(x, TRAINING[f"loss_{name}"][0], 2e-5)
  by_features = np.concatenate([by_support[:N], by_query[:8]])
  close(by_features, TRAINING["grad_full.features"], 1e-5, 2e-3)
  # the released code reaches 4 of the 48 columns
  assert np.all(np.any(np.abs(by_features) > 1e-6, axis=0))
  assert np.all(by_support[N:] == 0)
  assert np.all(by_query[8:] == 0)
  assert all(np.all(x == 0) for x in others)  # fingerprints are noise
  support[:, 5] = queries[:, 7] = 1.0
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient(support, queries, *prints)))


def test_random_numbers():
  for estimators, members in RNG.items():
    for columns in ("49", "1009", "7"):
      salts, order = ensemble.randomness(int(estimators), int(columns))
      assert [m["salt"] for m in members] == salts.tolist()
      assert all(np.array_equal(sorted(found), np.arange(int(columns))) for found in order)
      for found, member in zip(order, members, strict=True):
        expected = member["perm"][columns]
        assert found[: len(expected)].tolist() == expected


def test_recorded_fingerprints():
  """From the released z-scores, bit for bit."""
  salts, order = ensemble.randomness(4, 49)
  back = np.argsort(order[0])[:-1]
  for i, salt in enumerate(salts):
    support, query = ensemble.fingerprints(
      ACTIVATIONS["X_train"][:, back], ACTIVATIONS["X_test"][:, back], salt
    )
    assert np.array_equal(support, EXAMPLE["fingerprint_support"][i])
    assert np.array_equal(query, EXAMPLE["fingerprint_query"][i])


# --- Host helpers


def test_fingerprints_of_equal_rows_differ():
  z = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  support, query = ensemble.fingerprints(z[[0, 1, 0, 0]], z[[0, 1, 0]], 1000)

  def value(row):
    return np.float32(int(hashlib.sha256(row.tobytes()).hexdigest(), 16) % 10**12 / 10**12)

  salted = z + np.float32(1000)
  assert support.tolist() == [
    value(x) for x in (salted[0], salted[1], salted[0] + 1, salted[0] + 2)
  ]
  assert query.tolist() == [value(x + np.float32(1000)) for x in salted[[0, 1, 0]]]
  assert support.dtype == query.dtype == np.float32
  support, _ = ensemble.fingerprints(np.full((2, 5), np.nan), z, 1000)
  assert support[0] == support[1]


def test_column_table():
  table = ensemble.column_table(500)
  assert table.shape == (500, 48)
  assert table.dtype == np.float32
  assert np.array_equal(ensemble.column_table(7), table[:7])
  flat = np.float64(table.ravel())
  close([flat.mean(), flat.std(), (flat**3).mean(), (flat**4).mean()], [0, 1, 0, 3], 0.04)
  assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.02
  assert len(np.unique(table)) > 0.99 * table.size
  # Known answers of Philox4x32-10 (Random123's kat_vectors).
  word = lambda *x: tuple(np.array([v], np.uint64) for v in x)
  answers = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
      (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
      (0xA4093822, 0x299F31D0),
      (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
  )
  for counter, key, expected in answers:
    assert tuple(int(x[0]) for x in ensemble.philox(word(*counter), key)) == expected
  a, b = (float(x[0]) for x in ensemble.philox(word(0, 0, 50, 0), (42, 0))[:2])
  a, b = (x * 2.0**-32 + 2.0**-33 for x in (a, b))
  close(table[1, 2], np.sqrt(-2 * np.log(a)) * np.sin(2 * np.pi * b), 1e-6)


def test_torch_table():
  """Torch's own, of sizes that fill the last block of 16 numbers and that do not."""
  for table in TABLES.values():
    close(ensemble.torch_table(*table.shape), table, 1e-6)
  with pytest.raises(ValueError, match="found 1 x 12 numbers, expected 16 or more"):
    ensemble.torch_table(1, 12)


def test_stack_and_wrong_inputs():
  assert PARAMS["layers.mlp.linear1.weight"].shape == (3, 96, 48)
  assert len(PARAMS) == len(STATE) - 2 * 6
  close(
    PARAMS["layers.self_attn_between_items._w_out"][2],
    STATE[f"{LAYER}2.self_attn_between_items._w_out"],
    0,
  )
  gone = {name: x for name, x in STATE.items() if name != f"{LAYER}1.mlp.linear2.weight"}
  with pytest.raises(ValueError, match=r"linear2.weight: found layers \[0, 2\], expected 0 to 2"):
    tabpfn.stack(gone)
  x = np.zeros((3, 49), np.float32)
  with pytest.raises(
    ValueError, match=r"table: found shape \(3, 12\), expected at least 17 rows of 12"
  ):
    tabpfn.forward(PARAMS, Support(x, x[:, 0]), Query(x), TABLE[:3])


# --- Any weights and sizes: loops in float64, one row, column and head at a time

SIZES = {  # E, h, g, T, L, f, width of the MLP encoder (0 = linear)
  "mlp": (16, 4, 2, 1, 1, 3, 11),
  "deep": (12, 1, 4, 3, 4, 1, 0),
}


def random_state(size, seed):
  E, h, g, T, L, f, hidden = size
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 2 * shape[-1] ** -0.5, shape).astype(np.float32)
  state = {
    "y_encoder.2.layer.weight": normal(E, 2),
    "y_encoder.2.layer.bias": normal(E),
    "feature_positional_embedding_embeddings.weight": normal(E, E // 4),
    "feature_positional_embedding_embeddings.bias": normal(E),
    "add_thinking_tokens.row_token_values": normal(T, E),
    "decoder_dict.standard.0.weight": normal(f * E, E),
    "decoder_dict.standard.0.bias": normal(f * E),
    "decoder_dict.standard.2.weight": normal(10, f * E),
    "decoder_dict.standard.2.bias": normal(10),
  }
  if hidden:
    state |= {
      "encoder.5.mlp.0.weight": normal(hidden, 2 * g),
      "encoder.5.mlp.2.weight": normal(E, hidden),
    }
  else:
    state["encoder.5.layer.weight"] = normal(E, 2 * g)
  for i in range(L):
    for kind in ("features", "items"):
      state[f"{LAYER}{i}.self_attn_between_{kind}._w_qkv"] = normal(3, h, E // h, E)
      state[f"{LAYER}{i}.self_attn_between_{kind}._w_out"] = normal(h, E // h, E)
    state |= {
      f"{LAYER}{i}.mlp.linear1.weight": normal(f * E, E),
      f"{LAYER}{i}.mlp.linear2.weight": normal(E, f * E),
    }
  return state


def table_of(size, columns):
  return ensemble.column_table(-(-columns // size[2]), size[0] // 4)


def random_table(n, m, columns, seed):
  """x [n, C], y [n], queries [m, C]: some constant columns, some values missing, infinite or far
  out."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n + m, columns)).astype(np.float32)
  x[:, 0], x[:, 3] = 1.5, 0.0  # constant over all rows
  x[:n, 4] = 0.5  # constant over the support alone
  x[:, 6] = np.nan
  x[1, 1], x[2, 2], x[n, 1], x[n + 1, 5] = np.nan, -np.inf, np.inf, -np.inf
  x[n + 2, 2], x[n, 5] = 1e4, -1e3
  return x[:n], (rng.random(n) < 0.4).astype(np.float32), x[n:]


def encode(x, n, size):
  """(cells, indicators), both [R, G, g], of all rows x [R, C], the first n of which are the
  support."""
  groups = -(-x.shape[1] // size)
  x = np.float64(np.pad(x, ((0, 0), (0, groups * size - x.shape[1]))))
  differs = lambda column: np.any(column != column[0])
  scaled, indicators = np.zeros((2, len(x), groups, size))
  for i in range(groups):
    kept = [c for c in x[:, i * size : (i + 1) * size].T if differs(c)]
    for j, column in enumerate(kept):
      indicators[:, i, j] = [
        -2 if np.isnan(v) else 2 if v == np.inf else 4 if v == -np.inf else 0 for v in column
      ]
      finite = [v for v in column[:n] if np.isfinite(v)]
      column = np.where(np.isfinite(column), column, np.mean(finite) if finite else 0.0)
      spread = lambda v: (np.mean(v), np.sqrt(np.sum((v - np.mean(v)) ** 2) / max(len(v) - 1, 1)))
      mean, std = spread(column[:n])
      mean, std = spread(np.array([v for v in column[:n] if abs(v - mean) <= 12 * std]))
      column = np.maximum(column, mean - 12 * std - np.log(1 + abs(column)))
      column = np.minimum(column, mean + 12 * std + np.log(1 + abs(column)))
      mean, std = spread(column[:n])
      scaled[:, i, j] = np.clip((column - mean) / (std or 1.0), -100, 100)
    used = sum(differs(scaled[:, i, j]) for j in range(size))
    scaled[:, i] *= np.sqrt(size / max(used, 1))
  return scaled, indicators


def attention(weight, out, asking, q_head, sources, kv_head):
  """What asking [E] gets, [E]: head q of the query and head kv of keys and values of sources [S,
  E]."""
  q = weight[0, q_head] @ asking
  scores = np.array([q @ (weight[1, kv_head] @ s) for s in sources]) / np.sqrt(len(q))
  share = np.exp(scores - scores.max())
  value = sum(
    a * (weight[2, kv_head] @ s) for a, s in zip(share / share.sum(), sources, strict=True)
  )
  return value @ out[q_head]


def reference(state, x, y, x_query, table):
  """Raw logits [m, 2], straight from the equations."""
  p = {name: np.float64(v) for name, v in state.items()}
  norm = lambda v: (v - v.mean()) / np.sqrt(v.var() + 1e-5)
  gelu = lambda v: v * (1 + erf(v / np.sqrt(2))) / 2
  n, mlp = len(x), "encoder.5.mlp.0.weight" in p
  size = p["encoder.5.mlp.0.weight" if mlp else "encoder.5.layer.weight"].shape[1] // 2
  scaled, indicators = encode(np.concatenate([x, x_query]), n, size)
  rows = [[v] * (scaled.shape[1] + 1) for v in p["add_thinking_tokens.row_token_values"]]
  training = len(rows) + n
  embedding = "feature_positional_embedding_embeddings"
  for i, (row, marks) in enumerate(zip(scaled, indicators, strict=True)):
    tokens = []
    for j in range(len(row)):
      v = np.concatenate([row[j], marks[j]])
      if mlp:
        v = p["encoder.5.mlp.2.weight"] @ gelu(p["encoder.5.mlp.0.weight"] @ v)
      else:
        v = p["encoder.5.layer.weight"] @ v
      tokens.append(v + p[f"{embedding}.weight"] @ table[j] + p[f"{embedding}.bias"])
    label = np.array([y[i], 0] if i < n else [np.mean(y), -2])
    rows.append([*tokens, p["y_encoder.2.layer.weight"] @ label + p["y_encoder.2.layer.bias"]])
  t = np.array(rows)
  for i in range(sum(name.endswith("linear1.weight") for name in p)):
    w = {
      name.removeprefix(f"{LAYER}{i}."): v
      for name, v in p.items()
      if name.startswith(f"{LAYER}{i}.")
    }
    weight, out = w["self_attn_between_features._w_qkv"], w["self_attn_between_features._w_out"]
    heads = range(len(out))
    t = np.array(
      [
        [norm(c + sum(attention(weight, out, c, h, row, h) for h in heads)) for c in row]
        for row in t
      ]
    )
    weight, out, old = (
      w["self_attn_between_items._w_qkv"],
      w["self_attn_between_items._w_out"],
      t.copy(),
    )
    for r, c in np.ndindex(t.shape[:2]):
      sources = old[:training, c]
      got = sum(
        attention(weight, out, old[r, c], h, sources, h if r < training else 0) for h in heads
      )
      t[r, c] = norm(old[r, c] + got)
    for r, c in np.ndindex(t.shape[:2]):
      t[r, c] = norm(t[r, c] + w["mlp.linear2.weight"] @ gelu(w["mlp.linear1.weight"] @ t[r, c]))
  name = "decoder_dict.standard"
  hidden = [gelu(p[f"{name}.0.weight"] @ v + p[f"{name}.0.bias"]) for v in t[training:, -1]]
  return np.array([(p[f"{name}.2.weight"] @ v + p[f"{name}.2.bias"])[:2] for v in hidden])


@pytest.mark.parametrize("name", SIZES)
def test_any_weights_and_sizes(name):
  state = random_state(SIZES[name], len(name))
  x, y, x_query = random_table(5, 3, 10, len(name))
  table = table_of(SIZES[name], 10)
  close(
    forward(tabpfn.stack(state), x, y, x_query, table),
    reference(state, x, y, x_query, table),
    1e-4,
    1e-4,
  )


def test_support_outliers_beyond_twelve_deviations_do_not_widen_the_bounds():
  x, y, x_query = random_table(300, 5, 10, 0)  # of fewer than 146 rows none can be so far out
  x[7, 8], x_query[3, 8] = 1e3, -1e3

  @fast
  def scaled(x, y, x_query):
    ones = jnp.ones(305, bool)
    statistics = cells.make_statistics(x, y, ones[:300], (x_query, ones[300:]), 4)
    return cells.scale(statistics, cells.reorder(statistics, jnp.concatenate([x, x_query])))

  for found, expected in zip(
    scaled(x, y, x_query), encode(np.concatenate([x, x_query]), 300, 4), strict=True
  ):
    close(found, expected, 1e-4, 1e-4)


# --- Properties

SIZE = (16, 2, 3, 3, 3, 2, 0)
SMALL = tabpfn.stack(random_state(SIZE, 7))
COLUMN_TABLE = table_of(SIZE, 10)


def test_column_constant_on_the_support_needs_the_queries():
  """What a stream cannot know: a column that varies in the queries alone is in use where they are
  given."""
  x, y, x_query = random_table(9, 6, 10, 0)
  streamed = query(SMALL, context(SMALL, Support(x, y), COLUMN_TABLE), x_query, COLUMN_TABLE)
  x[:, 4] = x_query[:, 4] = 0.5
  close(streamed, forward(SMALL, x, y, x_query, COLUMN_TABLE), 1e-5, 1e-5)


def plain_table(n=9, m=6):
  rng = np.random.default_rng(3)
  x = rng.normal(size=(n + m, 10)).astype(np.float32)
  return x[:n], (rng.random(n) < 0.5).astype(np.float32), x[n:]


def test_streamed_queries_give_the_same_whatever_the_chunks():
  x, y, x_query = plain_table()
  exact = forward(SMALL, x, y, x_query, COLUMN_TABLE)
  cache = context(SMALL, Support(x, y), COLUMN_TABLE)
  run = lambda rows: query(SMALL, cache, x_query[rows], COLUMN_TABLE)
  close(run(slice(None)), exact, 1e-5, 1e-5)
  close(np.concatenate([run([i]) for i in range(6)]), exact, 1e-5, 1e-5)
  close(run([5, 3, 3, 0, 1, 1]), exact[np.array([5, 3, 3, 0, 1, 1])], 1e-5, 1e-5)
  assert cache.keys.shape == (2, 5, 12, 8)
  assert cache.target_keys.shape == (1, 12, 8)


def test_order_of_the_support_is_nothing():
  x, y, x_query = plain_table()
  order = np.random.default_rng(0).permutation(len(x))
  exact = forward(SMALL, x, y, x_query, COLUMN_TABLE)
  close(forward(SMALL, x[order], y[order], x_query, COLUMN_TABLE), exact, 1e-5, 1e-5)
  assert np.abs(forward(SMALL, x, y[order], x_query, COLUMN_TABLE) - exact).max() > 1e-2


def pad(x, rows, value):
  """x [R, ...] with `rows` more in front and behind, and the mask of its own."""
  widths = [(rows, rows)] + [(0, 0)] * (x.ndim - 1)
  mask = np.pad(np.ones(len(x), bool), (rows, rows))
  return np.pad(x, widths, constant_values=value), mask


@pytest.mark.parametrize(
  "make", [plain_table, lambda: random_table(9, 6, 10, 0)], ids=["plain", "odd"]
)
def test_padding_rows_change_nothing(make):
  x, y, x_query = make()
  exact = forward(SMALL, x, y, x_query, COLUMN_TABLE)
  (wide, mask), (many, query_mask) = pad(x, 4, np.nan), pad(x_query, 3, 7.0)
  found = forward(SMALL, wide, pad(y, 4, np.nan)[0], many, COLUMN_TABLE, mask, query_mask)
  close(found[query_mask], exact, 1e-5, 1e-5)
  assert np.all(np.isfinite(found))
