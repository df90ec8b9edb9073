"""V0 as its users call it, from converted checkpoint files to probabilities, against the reference
tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from v05_jax.run import metrics
from v05_jax.scale import sharding
from v05_jax.value_model import convert, v0
from v05_jax.value_model.smoothed import smoothed

DATA = Path(__file__).parent / "data" / "v0"
PROMPTS = json.loads((DATA / "prompts.json").read_text())
E2E = load_file(DATA / "e2e.safetensors")
TABLES = load_file(DATA / "column_tables.safetensors")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  out = tmp_path_factory.mktemp("v0") / "converted"
  convert.convert(
    str(DATA / "v0_checkpoint.pt"),
    str(DATA / "tabpfn-v2.5-tiny.ckpt"),
    str(DATA / "backbone"),
    str(out),
  )
  return out


@pytest.fixture(scope="module")
def loaded(directory):
  return v0.load(str(directory))


def table(groups):
  return next(x for x in TABLES.values() if len(x) == groups)


def test_features_from_text_equal_the_reference(loaded):
  np.testing.assert_allclose(loaded.features(PROMPTS), E2E["features"], atol=5e-5)
  some = [5, 31, 0]
  np.testing.assert_allclose(
    loaded.features([PROMPTS[i] for i in some]), E2E["features"][some], atol=5e-5
  )


def test_probabilities_from_text_equal_the_reference(loaded, monkeypatch):
  features = loaded.features(PROMPTS)
  marks = list(zip(E2E["fingerprint_support"], E2E["fingerprint_query"]))
  given = features[:24], E2E["support_scores"], features[24:], table(17), marks
  np.testing.assert_allclose(loaded.judge(*given), E2E["probs"], atol=5e-5)
  monkeypatch.setattr(v0, "QUERIES_PER_CALL", 3)  # streamed in chunks
  np.testing.assert_allclose(loaded.judge(*given), E2E["probs"], atol=5e-5)


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
  assert smoothed(np.array([0.2, 0.9, 0.4, 0.5]), np.array([0, 1, 0, 1], bool)) is None


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_a_mesh_changes_nothing(loaded, directory, sizes):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)))
  spread = v0.load(str(directory), mesh)
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
  judge = lambda n, m: loaded.judge(rows(n), np.arange(n) % 2, rows(m), table(17))
  judge(17, 20)
  with metrics.CompilationCounter() as compilations:
    for n, m in ((18, 17), (25, 32), (32, 31)):
      assert judge(n, m).shape == (m,)
    assert compilations() == 0


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
    v0.load(str(tmp_path))
