"""The measurements of experiments/throughput: the work is what it says, and a wrong result is not
timed in silence."""

import json

import jax
import numpy as np
import pytest

from experiments.throughput import process, programs, reward, rows, setting, tables, work
from v05_jax import budget, data, models, shrinkage
from v05_jax import config as configuration
from v05_jax.models import decoder, hf, presets
from v05_jax.models import tokenizer as tokenizers
from v05_jax.sampling.ledger import Order

pytestmark = pytest.mark.usefixtures("few_devices")


def arguments(*flags):
  args = programs.arguments(["--program=sample", "--size=tiny", "--groups=8", "--group=2", *flags])
  args.program = args.program[0]
  return args


@pytest.fixture(scope="module")
def bench():
  args = arguments("--prompt=6", "--response=12", "--reps=1", "--matmul=10", "--copy=10")
  with setting.bench(args, ("sampler.chunk=4",)) as made:
    yield args, made


def test_the_shapes_are_those_of_the_presets():
  for size, shape in work.SHAPES.items():
    c = presets.PRESETS[work.PRESETS[size]]
    found = (
      c.hidden_size,
      c.num_layers,
      c.num_heads,
      c.num_kv_heads,
      c.head_dim,
      c.intermediate_size,
      c.vocab_size,
    )
    assert tuple(shape) == found and c.tie_embeddings, size
    of_heads = c.head_dim if c.qk_norm else 0
    norms = c.num_layers * 2 * (c.hidden_size + of_heads) + c.hidden_size
    assert shape.params() == presets.num_params(c) - norms, size


def test_useful_work():
  s, full = work.SHAPES["s"], [work.RESPONSE] * 64
  assert abs(work.sample_flops(s, work.PROMPT, full, 16) / 95e9 - 1) < 0.01
  assert abs(work.update_flops(s, work.PROMPT, full, 64) / 376e9 - 1) < 0.01
  # One sequence by hand: prompt of 3, response of 2. One decode step, which attends to 4 keys.
  prefill = work.forward_flops(s, 3, 1 + 2 + 3, 1)
  assert work.sample_flops(s, 3, [2], 1) == prefill + work.forward_flops(s, 1, 4, 1)
  # The update computes neither the last token nor, for a second response, the prompt again.
  assert work.update_flops(s, 3, [2], 1) == 3 * work.forward_flops(s, 2 + 2, 1 + 2 + 3 + 4, 2)
  assert work.update_flops(s, 3, [2, 2], 1) == 3 * work.forward_flops(
    s, 2 + 4, 1 + 2 + 2 * (3 + 4), 4
  )
  # Two sampled tokens read columns 0..2 and 0..3 and write one each.
  column = 2 * s.layers * s.kv_heads * s.head_dim * 4
  assert work.decode_bytes(s, 3, [2], 2, 4) == 2 * 4 * s.params() + column * (4 + 5)


def test_ragged_lengths():
  lengths = work.ragged(64, work.RESPONSE)
  assert work.SHORTEST <= lengths.min() and lengths.max() <= work.RESPONSE
  grouped = work.row_lengths(16, 4, work.RESPONSE)
  assert grouped.max() == lengths.max() and lengths.mean() <= grouped.mean() < lengths.mean() + 4


def test_the_coin_makes_the_rule_ask_for_few_and_many_rollouts():
  found = []
  for i in range(64):
    text, k = f"prompt {i}", 4
    rewards = np.array([reward.coin(text, f"response {j}", {}) for j in range(16)])
    assert set(rewards) <= {0.0, 1.0}
    while k < 16:
      delta2 = shrinkage.fuse(2 * rewards[:k].mean() - 1, k, reward.prior(text)).delta2
      if not budget.should_continue(delta2, k, 1 / 256, 16):
        break
      k += 1
    found.append(k)
  assert min(found) == 4 and max(found) == 16 and 6 < np.mean(found) < 12
  assert len(set(found)) > 5


def test_the_config_is_valid_and_the_prompts_have_their_length(tmp_path):
  args = arguments("--prompt=6", "--response=12")
  c = setting.config(tmp_path, args, ("sampler.chunk=4", "baseline=rloo"))
  configuration.validate(c)
  assert c.sampler.chunk == 4 and c.baseline == "rloo"
  found = data.load(c.data, tokenizers.load(tmp_path), c.sampler.max_prompt)
  assert np.diff(found.start).tolist() == [6] * 8
  np.testing.assert_array_equal(found.tokens.reshape(8, 6), work.prompts(8, work.SHAPES["tiny"], 6))


def test_sampling_is_measured_and_checked(bench):
  args, b = bench
  fields = programs.sample(args, b, ragged=True)
  assert not set(fields) - set(process.FIELDS)
  lengths = work.ragged(16, args.response)
  assert fields["useful_tokens"] == lengths.sum() and 0 <= fields["logprob_gap"] < 1e-4
  assert (
    fields["useful_over_computed"] == fields["utilisation"] <= 1
    and fields["matmul_share"] is not None
  )
  params = b.init().params
  key = programs.rng.at(0, 0)
  order = Order(b.run.budget, limit=lengths.reshape(8, 2))
  rolls, _ = b.collect(params, b.prompts, key, order)
  wrong = rolls.logprob.copy()
  wrong[3, lengths[3] - 1] += 0.01
  with pytest.raises(RuntimeError, match=r"0\.01 nats"):
    programs.sampled(b, params, b.prompts, rolls.replace(logprob=wrong), lengths)
  with pytest.raises(RuntimeError, match="tokens, expected"):
    programs.sampled(b, params, b.prompts, rolls, lengths + 1)


def test_the_update_is_measured_and_checked(bench, monkeypatch):
  args, b = bench
  fields = programs.train(args, b, ragged=True)
  assert fields["useful_tokens"] == work.ragged(16, args.response).sum() + 16 * args.prompt
  assert 0 < fields["useful_over_computed"] <= 1 and fields["details"]["mean_logprob_gap"] < 1e-4
  right = programs.logprobs
  monkeypatch.setattr(programs, "logprobs", lambda *a: right(*a) + 0.01)
  with pytest.raises(RuntimeError, match="not what was expected"):
    programs.train(args, b, ragged=True)


def test_data_rows_limit_a_step(bench):
  args, b = bench
  prompts = setting.limited(b.run, args).prompts.at(0, 8)
  assert sorted(row["max_tokens"] for row in prompts.rows) == sorted(
    work.row_lengths(8, 2, args.response)
  )
  assert not any("max_tokens" in row for row in b.prompts.rows)


def line(**fields):
  return dict.fromkeys(process.FIELDS) | {"devices": 2, "unit": "tokens/s"} | fields


def test_a_bar_is_met_by_medians_and_shows_its_rounds():
  row = rows.versus("x", "sampling", "sample", {"transformers": 2.0, "tunix": 3.0})
  ours, theirs = (
    [line(per_s=float(x)) for x in speeds] for speeds in ((90, 100, 400), (50, 40, 60))
  )
  results = {
    "machine": "m",
    "command": "c",
    "ceilings": [],
    "rows": {"x": {"contenders": {"ours": ours}}},
  }
  results["rows"]["x"]["contenders"]["transformers"] = theirs
  text = tables.everything(results, (row, rows.START))
  assert "| sampling | >= 2x transformers | 2x transformers | 1.80 to 6.67 | yes |" in text
  assert "| sampling | >= 3x tunix | - | - | not measured |" in text
  ours[1]["per_s"] = 99.0
  assert "| 1.98x transformers | 1.80 to 6.67 | **no** |" in tables.everything(results, (row,))


def test_weights_of_a_folder_are_measured_and_a_missing_folder_is_one_line(tmp_path):
  args = arguments("--prompt=6", "--response=12", f"--weights={tmp_path / 'model'}")
  with pytest.raises(ValueError, match=r"model: found no config.json, expected a Hugging Face dir"):
    setting.config(tmp_path, args)
  shape = presets.PRESETS["tiny"]
  hf.save(tmp_path / "model", shape, jax.device_get(decoder.init(shape, jax.random.key(3))))
  (tmp_path / "work").mkdir()
  loaded = models.load(setting.config(tmp_path / "work", args).policy)
  again = jax.device_get(decoder.init(shape, jax.random.key(3)))
  np.testing.assert_array_equal(loaded.params["embedding"], again["embedding"])
  assert not loaded.config.unused_ids  # every id has its word
  left, reason = rows.loadable(rows.LM, tmp_path / "absent")
  assert not any(row.weights for row in left) and len(left) == 3
  assert reason.startswith("not measured: lm_sample, lm_update, lm_step: --weights=")
  assert "no config.json and no model.safetensors" in reason and "make lm" in reason
  results = {"machine": "m", "command": "c", "ceilings": [], "rows": {}, "left_out": reason}
  assert reason in tables.everything(results, rows.LM)
  assert rows.loadable(rows.LM, tmp_path / "model") == (list(rows.LM), "")
  assert rows.loadable(rows.LM, None) == (list(rows.LM), "")


def test_every_bar_names_a_field_and_contenders_of_its_row():
  for row in (*rows.CPU, *rows.GPU, *rows.LM):
    names = {c.name for c in row.contenders}
    assert len(names) == len(row.contenders)
    for bar in row.bars:
      assert bar.of in names and (not bar.against or bar.against in names), row.name
      assert bar.field.split(".")[0] in process.FIELDS, row.name


def test_rows_that_are_there_are_skipped():
  row = rows.CPU[0]
  lines = {c.name: [line()] * 3 for c in row.contenders}
  assert rows.done({"contenders": lines}, row.contenders, 3) and not rows.done(
    None, row.contenders, 3
  )
  assert not rows.done({"contenders": lines}, row.contenders, 4)
  assert not rows.done({"contenders": lines | {"tunix": []}}, row.contenders, 3)
  assert rows.done({"contenders": lines | {"tunix": []}}, row.contenders[:2], 3)
  with pytest.raises(SystemExit, match="nonsense"):
    rows.pick(rows.CPU, ["nonsense"])


def test_a_line_has_every_field_and_no_other(capsys):
  process.emit(arguments(), "ours", "jax", med_s=1.0)
  assert list(json.loads(capsys.readouterr().out)) == list(process.FIELDS)
  with pytest.raises(ValueError, match="speed"):
    process.emit(arguments(), "ours", "jax", speed=1.0)
