"""The built-in tasks with a scratchpad: no verdict reads it, and success stays exact."""

import collections
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from v05_jax import config as configuration
from v05_jax import data, models, setup, tasks
from v05_jax.configs import demo, scratchpad, warm_start_scratchpad
from v05_jax.models import decoder
from v05_jax.models import tokenizer as tokenizers
from v05_jax.run import sft
from v05_jax.run.eval_mode import evaluate_workdir
from v05_jax.train import train

pytestmark = pytest.mark.usefixtures("few_devices")

PLAIN = tasks.rows("train", 240, seed=3)
ROWS = tasks.rows("train", 240, seed=3, scratchpad=5)
MODEL = decoder.ModelConfig(32, 16, 1, 2, 1, 8, 24, rope_theta=100.0, backend="cpu")


def test_rows_and_answers_are_those_without_and_say_the_scratchpad():
  assert [row | {"scratchpad": 5} for row in PLAIN] == ROWS
  assert not any("scratchpad" in row for row in tasks.rows("train", 12, 0, scratchpad=0))
  assert [tasks.canonical(row) + ":" for row in PLAIN] == [tasks.canonical(row) for row in ROWS]


def test_a_verdict_reads_what_stands_before_the_first_mark_alone():
  rest = ["", "5", ":", "::1", "99999999", "<pad>", "²\x00", "26:26"]
  for row, plain in zip(ROWS, PLAIN):
    right = tasks.canonical(plain)
    wrong = str((int(right[-1]) + 1) % 10)
    for tail in rest:
      for text in (right, wrong, " " + right, ""):
        found = tasks.verify(row["prompt"], f"{text}:{tail}", row)
        assert found == tasks.verify(plain["prompt"], text, plain)
    for text in (right, wrong, ""):  # no scratchpad at all
      assert tasks.verify(row["prompt"], text, row) == 0.0
      assert tasks.verify(plain["prompt"], text + ":", plain) == 0.0
  for text in (None, 5, b"2310:", ["2310:"]):
    assert tasks.verify("A", text, ROWS[0]) == 0.0
  assert tasks.verify("A", "1:", {"scratchpad": 3}) == 0.0


def test_demonstrations_are_those_without_and_random_characters_behind():
  draws = [np.random.default_rng(i) for i in range(len(ROWS))]
  plain = [tasks.demonstration(row, np.random.default_rng(i)) for i, row in enumerate(PLAIN)]
  found = [tasks.demonstration(row, draw) for row, draw in zip(ROWS, draws)]
  answers, pads = zip(*(text.split(":") for text in found))
  assert list(answers) == plain
  assert {len(pad) for pad in pads} == {5}
  counts = collections.Counter("".join(pads))
  assert set(counts) == set(tasks.CHARACTERS) - {":"}
  expected = 5 * len(ROWS) / 29
  assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5


def test_a_demonstrator_without_a_scratchpad_draws_as_before():
  """The shipped warm start and every run of --mode=sft hang on the draws."""
  draw = np.random.default_rng(0)
  texts = "\n".join(tasks.demonstration(row, draw) for row in PLAIN)
  assert (zlib.crc32(texts.encode()), draw.integers(1000)) == (1953999606, 509)


@pytest.fixture(scope="module")
def policy():
  tokenizer = support.character_tokenizer(tasks.CHARACTERS, 32)
  return decoder.init(MODEL, jax.random.key(1)), tokenizer


@jax.jit
def next_logprobs(params, tokens, place):
  """tokens [N, T], each of `place` + 1 -> log-probs of the next one [N, 32]."""
  hidden = decoder.forward(
    MODEL,
    params,
    tokens,
    jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    jnp.ones_like(tokens),
  )
  return jax.nn.log_softmax(decoder.logits(MODEL, params, hidden)[:, place])


def rollouts(params, prompt, limit: int, eos: int):
  """Every response of up to `limit` tokens with its probability: they end with EOS, or are cut."""
  found, open_ones = [], [((), 1.0)]
  for _ in range(limit):
    tokens = np.array([[*prompt, *response, *[0] * limit][:12] for response, _ in open_ones])
    place = len(prompt) + len(open_ones[0][0]) - 1
    chance = np.exp(np.asarray(next_logprobs(params, tokens, place), np.float64))
    each = [
      ((*response, token), p * chance[i, token])
      for i, (response, p) in enumerate(open_ones)
      for token in range(32)
    ]
    found += [(response[:-1], p) for response, p in each if response[-1] == eos]
    open_ones = [(response, p) for response, p in each if response[-1] != eos]
  return found + open_ones


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_exact_success_is_the_sum_over_all_rollouts_that_verify(policy, limit):
  """Whether EOS ends a response or the limit does: with `truncated` = "score" both count."""
  params, tokenizer = policy
  row = next(row for row in ROWS if row["family"] == "mod")
  prompt = tokenizer(row["prompt"])["input_ids"]
  every = rollouts(params, prompt, limit, tokenizer.eos_token_id)
  assert sum(p for _, p in every) == pytest.approx(1.0, rel=1e-5)
  texts = tokenizer.batch_decode([list(response) for response, _ in every])
  total = sum(p for (_, p), text in zip(every, texts) if tasks.verify(row["prompt"], text, row))
  sampler = types.SimpleNamespace(
    max_prompt=10, max_response=limit, temperature=1.0, top_k=0, top_p=1.0
  )
  found = tasks.make_exact(MODEL, tokenizer, sampler)(params, [row])[0]
  assert found == pytest.approx(total, rel=1e-4) and (found > 0) == (limit > 1)


def test_a_config_whose_limit_changes_verdicts_is_refused():
  config = scratchpad.get_config()
  configuration.validate(config)
  for name in ("fail", "mask"):
    config.sampler.truncated = name
    with pytest.raises(ValueError, match=rf"sampler.truncated: found '{name}', expected score"):
      configuration.validate(config)
  config = demo.get_config()
  config.data.scratchpad = -1
  with pytest.raises(ValueError, match=r"data.scratchpad: found -1, expected at least 0"):
    configuration.validate(config)


@pytest.mark.parametrize(
  "path, length, wanted",
  [("builtin", 24, "builtin_scratchpad"), ("builtin_scratchpad", 0, "builtin")],
)
def test_a_shipped_policy_of_the_other_tasks_is_refused(path, length, wanted, tmp_path):
  config = scratchpad.get_config()
  config.policy.path, config.data.scratchpad = path, length
  message = rf"policy.path: found '{path}', expected '{wanted}', since data.scratchpad is {length}"
  for mode in (
    setup.setup,
    lambda c: train(c, str(tmp_path)),
    lambda c: evaluate_workdir(c, tmp_path),
  ):
    with pytest.raises(ValueError, match=message):
      mode(config)
  config.policy.preset = "tiny"  # random weights, which know neither
  setup.check_scratchpad(config)
  config = warm_start_scratchpad.get_config()  # --mode=sft, which teaches it
  configuration.validate(config)


def test_a_demonstration_that_does_not_fit_is_refused():
  config = warm_start_scratchpad.get_config()
  config.data.size = 256
  tokenizer = tokenizers.load(models.BUILTIN)
  longest = tasks.MAX_RESPONSE + 1 + scratchpad.LENGTH
  for limit in (longest, longest - 1):
    config.sampler.max_response = limit
    dataset = data.load(config.data, tokenizer, config.sampler.max_prompt)
    if limit == longest:
      found = sft.make_examples(config, config.data, dataset, tokenizer)(0, 64).responses
      assert {tokenizer.decode(ids).count(":") for ids in found} == {1}
    else:
      with pytest.raises(ValueError, match=f"the longest has {longest}"):
        sft.make_examples(config, config.data, dataset, tokenizer)


def test_the_shipped_policy_does_the_tasks_and_fills_its_scratchpad():
  config = scratchpad.get_config()
  policy = models.load(config.policy)
  files = list(models.SHIPPED["builtin_scratchpad"].iterdir())
  assert sum(f.stat().st_size for f in files) <= 300_000
  exact = tasks.make_exact(policy.config, policy.tokenizer, config.sampler)
  rows = tasks.rows("heldout", 360, 0, tasks.EXACT, scratchpad=scratchpad.LENGTH)
  success = exact(policy.params, rows)
  assert np.mean(success) == pytest.approx(0.43, abs=0.04)
  assert (np.histogram(success, [0, 0.3, 0.7, 1])[0] / len(success) > 0.15).all()
