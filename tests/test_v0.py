"""V0 as its users call it, from converted checkpoint files to probabilities, against the reference
tensors."""

import dataclasses
import json
from pathlib import Path
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from v05_jax import value_model
from v05_jax.run.progress import CompilationCounter
from v05_jax.scale import sharding
from v05_jax.value_model import convert, ensemble, tabpfn, v0

DATA = Path(__file__).parent / "data" / "v0"
PROMPTS = json.loads((DATA / "prompts.json").read_text())
E2E = load_file(DATA / "e2e.safetensors")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  out = tmp_path_factory.mktemp("v0") / "converted"
  convert.convert(
    str(DATA / "v0_checkpoint.pt"),
    str(DATA / "tabpfn-v2.5-tiny.ckpt"),
    str(DATA / "backbone"),
    str(out),
    heads=3,
    table="torch",
  )
  return out


@pytest.fixture(scope="module")
def loaded(directory):
  return value_model.load(str(directory))


def test_features_from_text_equal_the_reference(loaded):
  np.testing.assert_allclose(loaded.features(PROMPTS), E2E["features"], atol=5e-5)
  some = [5, 31, 0]
  np.testing.assert_allclose(
    loaded.features([PROMPTS[i] for i in some]), E2E["features"][some], atol=5e-5
  )


def test_probabilities_from_text_equal_the_reference(loaded, monkeypatch):
  features = loaded.features(PROMPTS)
  marks = list(zip(E2E["fingerprint_support"], E2E["fingerprint_query"]))
  given = features[:24], E2E["support_scores"], features[24:], marks
  np.testing.assert_allclose(loaded.predict_from_features(*given), E2E["probs"], atol=5e-5)
  monkeypatch.setattr(v0, "QUERIES_PER_CALL", 3)  # streamed in chunks
  np.testing.assert_allclose(loaded.predict_from_features(*given), E2E["probs"], atol=5e-5)


def test_predict_is_text_to_probability(loaded):
  """With hashes of the texts and its own column table: the same in any order of the targets, and
  one target alone."""
  context, target = PROMPTS[:24], PROMPTS[24:]
  p = loaded.predict(context, E2E["support_scores"], target)
  assert p.shape == (8,) and p.dtype == np.float32 and np.all((p > 0) & (p < 1)) and p.std() > 1e-3
  np.testing.assert_allclose(
    loaded.predict(context, E2E["support_scores"], [target[3]]), p[3:4], atol=1e-5
  )
  twice = loaded.predict(context, E2E["support_scores"], target[::-1] + target)
  np.testing.assert_allclose(twice, np.r_[p[::-1], p], atol=1e-5)


@pytest.mark.parametrize(
  "scores, want",
  [([], 0.5), ([1.0], 2 / 3), ([0.2, 0.9, 0.4], 0.5), ([0.9] * 6, 6.4 / 8), ([0.1] * 6, 1.6 / 8)],
)
def test_contexts_that_the_head_was_not_made_for_give_the_smoothed_success_rate(
  loaded, scores, want
):
  p = loaded.predict(PROMPTS[: len(scores)], scores, PROMPTS[24:27])
  np.testing.assert_allclose(p, [want] * 3, rtol=1e-6)
  assert ensemble.smoothed(np.array([0.2, 0.9, 0.4, 0.5]), np.array([0, 1, 0, 1], bool)) is None


@pytest.mark.parametrize(
  "sizes", [(2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.long)], ids=str
)
def test_a_mesh_changes_nothing(loaded, directory, sizes):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)))
  spread = value_model.load(str(directory), mesh)
  kernel = spread.params["layers"]["q"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size / (sizes[1] * sizes[2])
  np.testing.assert_allclose(spread.features(PROMPTS, 2), E2E["features"], atol=5e-5)
  given = PROMPTS[:24], E2E["support_scores"], PROMPTS[24:]
  np.testing.assert_allclose(spread.predict(*given), loaded.predict(*given), atol=1e-5)


def test_no_targets_and_long_texts(loaded):
  assert loaded.predict(PROMPTS[:24], E2E["support_scores"], []).shape == (0,)
  marks = v0.fingerprints("support 0", PROMPTS)
  assert (
    len(set(marks.tolist())) == 32
    and np.all((marks >= 0) & (marks < 1))
    and marks.dtype == np.float32
  )
  assert np.isfinite(loaded.features([PROMPTS[0] * 200])).all()  # cut to max_tokens


def test_few_shapes_are_compiled(loaded):
  """Any number of rows within a bucket uses the programs of the bucket."""
  rng = np.random.default_rng(0)
  rows = lambda n: rng.normal(size=(n, 48)).astype(np.float32)
  predict = lambda n, m: loaded.predict_from_features(rows(n), np.arange(n) % 2, rows(m))
  predict(17, 20)
  with CompilationCounter() as compilations:
    for n, m in ((18, 17), (25, 32), (32, 31)):
      assert predict(n, m).shape == (m,)
    assert compilations() == 0


def test_a_context_of_one_prompt_gives_the_smoothed_success_rate(loaded):
  same = PROMPTS[0]
  p = loaded.predict([same] * 5, [1, 0, 1, 0, 1], [same])
  np.testing.assert_allclose(p, [4 / 7], rtol=1e-6)
  # whatever prompt is asked about, and from features as a run keeps them
  p = loaded.predict([same] * 6, [1, 0, 0, 0, 0.5, 0], PROMPTS[:3])
  np.testing.assert_allclose(p, [2.5 / 8] * 3, rtol=1e-6)


def noisy(x, relative, seed=0):
  noise = np.random.default_rng(seed).uniform(-1, 1, x.shape)
  return (x * (1 + relative * noise)).astype(np.float32)


def test_features_that_differ_by_rounding_alone_tell_nothing(loaded):
  """Of a whole context, and of single columns, which then are left out as constant ones are."""
  rng = np.random.default_rng(1)
  row, scores = rng.normal(size=48) * np.logspace(-4, 0, 48), np.arange(20) % 3 == 0
  asked = rng.normal(size=(3, 48)).astype(np.float32)
  predict = lambda support: loaded.predict_from_features(support, scores, asked, MARKS)
  MARKS = loaded.marks([str(i) for i in range(20)], ["a", "b", "c"])
  # sums in another order err by as much of the largest number that is added
  once_more = np.float32(row + 3e-7 * rng.uniform(-1, 1, (20, 48)))
  for support in (np.tile(np.float32(row), (20, 1)), noisy(np.tile(row, (20, 1)), 3e-7), once_more):
    np.testing.assert_allclose(predict(support), [8 / 22] * 3, rtol=1e-6)
  plain = rng.normal(size=(20, 48)).astype(np.float32)
  plain[:, 5], plain[:, 7] = 0.25, 3.0
  alike = plain.copy()
  alike[:, [5, 7]] = noisy(plain[:, [5, 7]], 3e-7)
  np.testing.assert_array_equal(predict(alike), predict(plain))
  assert ensemble.varying_columns(alike).tolist() == [i for i in range(48) if i not in (5, 7)]
  tiny = plain * np.float32(1e-30)  # whose squares are 0
  tiny[:, :9] = plain[:, :9]
  assert np.isfinite(predict(tiny)).all()


@pytest.mark.parametrize(
  "name, call, message",
  [
    (
      "target_prompts",
      lambda x: ([], [], x),
      "found one text, 'What is 1\\+1\\?', expected a list",
    ),
    ("target_prompts", lambda x: ([], [], x.encode()), "found one text, b'What"),
    ("target_prompts", lambda x: ([], [], None), "found NoneType, expected a list of texts"),
    ("target_prompts[1]", lambda x: ([], [], [x, 3]), "found int 3, expected a text"),
    ("context_prompts", lambda x: (x, [1.0] * len(x), [x]), "found one text"),
    ("context_prompts[0]", lambda x: ([None], [1.0], [x]), "found NoneType None, expected a text"),
    ("context_scores", lambda x: ([x], ["high"], [x]), "found .*'high'.* expected numbers"),
    ("context_scores", lambda x: ([x], None, [x]), "found None .* expected numbers"),
    ("context_scores", lambda x: ([x], ["1"], [x]), "found .*'1'.* expected numbers"),
    ("context_scores", lambda x: ([x], "1", [x]), "found a str, expected a list of numbers"),
    ("context_scores", lambda x: ([x], {x: 1}, [x]), "found a dict, expected a list of numbers"),
    ("context_scores", lambda x: ([x], {1.0}, [x]), "found a set, expected a list of numbers"),
    ("context_scores", lambda x: ([x], [10**400], [x]), "found .* expected numbers"),
    ("context_scores", lambda x: ([x], [1j], [x]), "found .* expected numbers"),
    ("target_prompts", lambda x: ([], [], {x}), "found a set, which has no order"),
    ("context_prompts", lambda x: (frozenset([x]), [1.0], [x]), "found a set, which has no order"),
  ],
)
def test_what_is_no_list_of_texts_or_numbers_is_named(loaded, name, call, message):
  with pytest.raises(ValueError, match=f"^{re.escape(name)}: {message}"):
    loaded.predict(*call("What is 1+1?"))


def test_any_iterable_is_a_list_of_texts(loaded):
  given = PROMPTS[:24], E2E["support_scores"], PROMPTS[24:]
  found = loaded.predict(*(iter(x) for x in given))
  np.testing.assert_array_equal(found, loaded.predict(*given))
  with_keys = dict(enumerate(given[1])).values()
  np.testing.assert_array_equal(loaded.predict(given[0], with_keys, given[2]), found)
  with pytest.raises(ValueError, match=r"^prompts: found one text"):
    loaded.features(PROMPTS[0])


@pytest.mark.parametrize("part, words", [("adapter", "features of"), ("head", "probabilities")])
def test_what_is_not_finite_is_no_answer(loaded, part, words):
  broken = jax.tree.map(lambda x: x * np.nan, getattr(loaded, part))
  model = dataclasses.replace(loaded, **{part: broken})
  with pytest.raises(ValueError, match=rf"{words} .*are not finite: the weights of its"):
    model.predict(PROMPTS[:24], E2E["support_scores"], PROMPTS[24:])


def test_blocks_and_one_block_are_the_same(loaded, monkeypatch):
  """Attention in blocks of rows, for training rows and queries, with a remainder."""
  rng = np.random.default_rng(0)
  given = rng.normal(size=(37, 48)), np.arange(37) % 2, rng.normal(size=(21, 48))
  given = [np.float32(x) for x in given]
  marks = loaded.marks([str(i) for i in range(37)], [str(i) for i in range(21)])
  whole = loaded.predict_from_features(*given, marks)
  monkeypatch.setattr(tabpfn, "BLOCK", 30_000)
  jax.clear_caches()
  np.testing.assert_allclose(loaded.predict_from_features(*given, marks), whole, atol=1e-5)
  jax.clear_caches()


@pytest.mark.parametrize(
  "scores, message",
  [
    ([0.5], r"found shape \(1,\), expected \(2,\)"),
    ([0.5, 1.5], "found 1.5, expected 0 to 1"),
    ([0.5, np.nan], "found nan"),
  ],
)
def test_bad_scores(loaded, scores, message):
  with pytest.raises(ValueError, match=f"context_scores: {message}"):
    loaded.predict(PROMPTS[:2], scores, PROMPTS[2:])


def test_a_directory_without_a_converted_model(tmp_path):
  with pytest.raises(ValueError, match=r"v0\.json"):
    value_model.load(str(tmp_path))
