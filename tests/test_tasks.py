"""The built-in tasks: answers by independent arithmetic, splits, verifier, demonstrator, exact
success."""

import itertools
import json
import math
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from v05_jax import models, tasks
from v05_jax.models import decoder, hf
from v05_jax.models import tokenizer as tokenizers
from v05_jax.tasks.exact import exact_success

ROWS = tasks.rows("train", 2400, seed=3)


def of(family):
  return [row for row in ROWS if row["family"] == family]


def digits(text):
  """Least significant first."""
  return sum(int(d) * 10**i for i, d in enumerate(text))


def test_add_and_sub():
  for row in of("add"):
    assert digits(row["prompt"][1:4]) + digits(row["prompt"][4:7]) == digits(row["answer"])
    assert len(row["answer"]) == 4
  for row in of("sub"):
    assert digits(row["prompt"][1:4]) == digits(row["prompt"][4:7]) + digits(row["answer"])
    assert len(row["answer"]) == 3


def test_mod_sort_and_lin():
  for row in of("mod"):
    a, m, answer = int(row["prompt"][1:3]), int(row["prompt"][3]), int(row["answer"])
    assert 0 <= answer < m and (a - answer) / m == (a - answer) // m
  for row in of("sort"):
    counts = [row["prompt"][1:-1].count(d) for d in "0123456789"]
    assert row["answer"] == "".join(d * n for d, n in zip("0123456789", counts, strict=True))
  for row in of("lin"):
    a, b, c = int(row["prompt"][1]), int(row["prompt"][2]), int(row["prompt"][3:5])
    assert a * int(row["answer"]) + b == c and row["answer"] == str(int(row["answer"]))


def test_chain_answer_is_left_to_right_and_its_trace_ends_in_it():
  for row in of("chain"):
    value, text = int(row["prompt"][1]), row["prompt"][2:-1]
    seen = []
    while text:
      value = eval(f"{value}{text[:2]}") % 10  # one operation at a time: no precedence
      seen.append(value)
      text = text[2:]
    assert tasks.canonical(row) == "".join(map(str, seen))
    assert row["answer"] == str(value)


@pytest.mark.parametrize(
  ("prompt", "family", "right", "sloppy"),
  [
    ("A740580=", "add", "2310", "2200"),  # 047 + 085 = 132, without carries 022
    ("B350940=", "sub", "400", "410"),  # 053 - 049 = 004, without borrows 014
    ("M477=", "mod", "5", "6"),
    ("S50219=", "sort", "01259", "95210"),
    ("L3517=", "lin", "4", "5"),
    ("C7+5*3=", "chain", "26", "25"),
  ],
)
def test_demonstrator_knows_a_right_and_a_sloppy_way(prompt, family, right, sloppy):
  row = {"prompt": prompt, "family": family, "level": 1}
  assert tasks.canonical(row) == right
  assert tasks.FAMILIES[family].sloppy(prompt) == sloppy


def test_rows_are_a_function_of_the_arguments_and_cover_families_and_levels_evenly():
  assert tasks.rows("train", 2400, seed=3) == ROWS
  assert tasks.rows("train", 50, seed=3) == ROWS[:50]
  assert tasks.rows("train", 2400, seed=4) != ROWS
  cells = [(row["family"], row["level"]) for row in ROWS]
  assert {cells.count(cell) for cell in itertools.product(tasks.FAMILIES, range(tasks.LEVELS))} == {
    100
  }
  assert {row["family"] for row in tasks.rows("train", 20, 0, ("mod", "lin"))} == {"mod", "lin"}


def test_draws_are_distinct_until_a_level_is_used_up():
  for family in ("add", "sort", "chain"):
    prompts = [row["prompt"] for row in of(family) if row["level"] == 3]
    assert len(set(prompts)) == len(prompts)
  small = [row["prompt"] for row in tasks.rows("heldout", 240, 0, ("sub",)) if row["level"] == 0]
  counts = {small.count(p) for p in small}
  everything = [f"B{a}00{b}00=" for a in range(10) for b in range(a + 1)]
  assert set(small) == {p for p in everything if zlib.crc32(p.encode()) % 8 == 0}
  assert max(counts) - min(counts) <= 1


def test_splits_are_disjoint_and_by_hash():
  prompts = {s: {row["prompt"] for row in tasks.rows(s, 3000, seed=1)} for s in tasks.SPLITS}
  for a, b in itertools.combinations(tasks.SPLITS, 2):
    assert not prompts[a] & prompts[b]
  assert {zlib.crc32(p.encode()) % 8 for p in prompts["heldout"]} == {0}
  assert {zlib.crc32(p.encode()) % 8 for p in prompts["validation"]} == {1}
  assert {zlib.crc32(p.encode()) % 8 for p in prompts["train"]} == {2, 3, 4, 5, 6, 7}


def test_unknown_split_and_family_are_named():
  with pytest.raises(ValueError, match="'test'"):
    tasks.rows("test", 1, 0)
  with pytest.raises(ValueError, match="'multiply'"):
    tasks.rows("train", 1, 0, ("add", "multiply"))


def test_prompts_and_responses_fit_the_sizes_that_the_package_states():
  rows = ROWS + tasks.rows("heldout", 1200, seed=0)
  assert max(len(row["prompt"]) for row in rows) == tasks.MAX_PROMPT <= 16
  assert max(len(tasks.canonical(row)) for row in rows) + 1 == tasks.MAX_RESPONSE <= 8
  rng = np.random.default_rng(0)
  assert max(len(tasks.demonstration(row, rng)) for row in rows) + 1 <= tasks.MAX_RESPONSE
  assert {c for row in rows for c in row["prompt"] + row["answer"]} <= set(tasks.CHARACTERS)
  assert len(tasks.CHARACTERS) + 2 == 32


def test_verifier_accepts_the_answer_and_rejects_near_misses():
  for row in ROWS:
    right = tasks.canonical(row)
    assert tasks.verify(row["prompt"], right, row) == 1.0
    other = str((int(right[-1]) + 1) % 10)
    wrong = [
      right[:-1] + other,
      right + " ",
      " " + right,
      right + "=",
      "",
      right + "\n",
      "-" + right,
    ]
    if row["family"] != "chain":
      wrong += ["0" + right, right + "0", right[:-1]]
    assert [tasks.verify(row["prompt"], text, row) for text in wrong] == [0.0] * len(wrong)


def test_chain_counts_its_last_digit_only():
  row = {"prompt": "C7+5*3=", "answer": "6", "family": "chain", "level": 1}
  for text, score in [
    ("26", 1),
    ("6", 1),
    ("96", 1),
    ("0000006", 1),
    ("62", 0),
    ("2=6", 0),
    ("x6", 0),
    ("２6", 0),
  ]:
    assert tasks.verify(row["prompt"], text, row) == score


@pytest.mark.parametrize("response", [None, 5, b"2310", ["2310"], "²", "\x00", "<pad>2310", "٢"])
def test_verifier_never_raises(response):
  for row in ROWS[:6]:
    assert tasks.verify(row["prompt"], response, row) == 0.0
  for row in (
    {},
    None,
    {"family": "none", "answer": response},
    {"family": "chain"},
    {"family": "add"},
  ):
    assert tasks.verify("A", response, row) == 0.0


def test_demonstrations_are_as_sloppy_as_stated_and_slips_are_spread():
  row = {"prompt": "A747585=", "answer": "2331", "family": "add", "level": 2}
  sloppy = tasks.sloppy_probability(row)
  rng = np.random.default_rng(0)
  texts = [tasks.demonstration(row, rng) for _ in range(8000)]
  share = np.mean([text != row["answer"] for text in texts])
  assert abs(share - sloppy) < 4 * math.sqrt(sloppy * (1 - sloppy) / 8000)
  method = texts.count(tasks.FAMILIES["add"].sloppy(row["prompt"])) / 8000
  assert abs(method - sloppy / 2) < 0.03
  assert len(set(texts)) > 20  # one digit of four, nine others


def test_sloppiness_varies_within_a_level_with_one_digit_of_the_prompt():
  for family, level in itertools.product(tasks.FAMILIES, range(tasks.LEVELS)):
    rows = [row for row in of(family) if row["level"] == level]
    at = tasks.FAMILIES[family].digit
    seen = {int(row["prompt"][at]) % 3: tasks.sloppy_probability(row) for row in rows}
    assert sorted(seen) == [0, 1, 2] and seen[0] < seen[1] < seen[2] <= 0.95
    assert all(tasks.sloppy_probability(row) == seen[int(row["prompt"][at]) % 3] for row in rows)


# Exact success. A vocabulary of three digits, responses of at most two tokens: everything can be
# enumerated.

SAMPLER = types.SimpleNamespace(max_prompt=10, max_response=8, temperature=1.0, top_k=0, top_p=1.0)
MODEL = decoder.ModelConfig(32, 16, 1, 2, 1, 8, 24, rope_theta=100.0, backend="cpu")


@pytest.fixture(scope="module")
def policy():
  tokenizer = support.character_tokenizer(tasks.CHARACTERS, 32)
  return decoder.init(MODEL, jax.random.key(1)), tokenizer


@jax.jit
def next_logits(params, tokens, place):
  one = jnp.ones_like(tokens)
  hidden = decoder.forward(MODEL, params, tokens, jnp.arange(tokens.shape[1])[None], one)
  return decoder.logits(MODEL, params, hidden)[0, place]


def sequence_probability(params, prompt, response, temperature=1.0):
  """A product over one call per token."""
  total = 1.0
  for i, token in enumerate(response):
    tokens = np.zeros((1, 20), np.int32)  # later tokens are not seen
    tokens[0, : len(prompt) + i] = [*prompt, *response[:i]]
    logits = np.asarray(next_logits(params, tokens, len(prompt) + i - 1), np.float64) / temperature
    total *= np.exp(logits[token]) / np.exp(logits).sum()
  return total


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exact_success_is_the_probability_of_the_only_accepted_sequence(policy, temperature):
  params, tokenizer = policy
  sampler = types.SimpleNamespace(**(vars(SAMPLER) | {"temperature": temperature}))
  exact = tasks.make_exact(MODEL, tokenizer, sampler, rows_per_call=4)
  rows = tasks.rows("heldout", 9, seed=0)  # three calls, the last one padded
  found = exact(params, rows)
  assert found.dtype == np.float64 and found.shape == (9,)
  for row, p in zip(rows, found, strict=True):
    if row["family"] == "chain":
      assert np.isnan(p)
      continue
    prompt = tokenizer(row["prompt"])["input_ids"]
    response = [*tokenizer(tasks.canonical(row))["input_ids"], tokenizer.eos_token_id]
    assert p == pytest.approx(sequence_probability(params, prompt, response, temperature), rel=1e-4)


def test_exact_success_equals_the_sum_over_all_responses_that_verify(policy):
  """Every response of up to two characters and EOS, weighed by its verdict."""
  params, tokenizer = policy
  row = next(row for row in tasks.rows("heldout", 60, 0, ("mod",)))
  prompt = tokenizer(row["prompt"])["input_ids"]
  pairs = [r for n in range(3) for r in itertools.product(range(2, 32), repeat=n)]
  accepted = [r for r in pairs if tasks.verify(row["prompt"], tokenizer.decode(r), row)]
  total = sum(sequence_probability(params, prompt, [*r, 1]) for r in accepted)
  exact = tasks.make_exact(MODEL, tokenizer, SAMPLER)
  assert len(accepted) == 1
  assert exact(params, [row])[0] == pytest.approx(total, rel=1e-4)


def test_exact_success_says_so_where_it_is_not_exact(policy):
  params, tokenizer = policy
  rows = tasks.rows("heldout", 6, seed=0) + [{"prompt": "1", "answer": "1"}]
  for change in ({"top_k": 5}, {"top_p": 0.9}):
    sampler = types.SimpleNamespace(**(vars(SAMPLER) | change))
    assert np.isnan(tasks.make_exact(MODEL, tokenizer, sampler)(params, rows)).all()
  short = types.SimpleNamespace(**(vars(SAMPLER) | {"max_response": 4}))
  found = tasks.make_exact(MODEL, tokenizer, short)(params, rows)
  fits = [len(tasks.canonical(row)) < 4 for row in rows[:5]]  # with EOS
  assert (found[:5] > 0).tolist() == fits and {*fits} == {True, False}
  assert np.isnan(found[5:]).all()


def test_exact_success_sums_the_response_alone():
  logprob = np.log([[0.5, 0.25, 0.1], [0.5, 0.5, 0.5]])
  mask = np.array([[False, True, True], [True, True, True]])
  np.testing.assert_allclose(exact_success(logprob, mask), [0.025, 0.125])
  padded = np.array([[np.nan, np.log(0.5)]])
  np.testing.assert_allclose(exact_success(padded, np.array([[False, True]])), [0.5])


# The shipped policy.


def test_warm_start_is_small_and_holds_the_built_in_tokenizer():
  files = list(models.BUILTIN.iterdir())
  assert sum(f.stat().st_size for f in files) <= 300_000
  assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in files}
  vocabulary = json.loads((models.BUILTIN / "tokenizer.json").read_text())["model"]["vocab"]
  assert list(vocabulary) == ["<pad>", "<eos>", *tasks.CHARACTERS]


def test_warm_start_is_as_good_as_measured_and_its_success_rates_are_spread():
  config, params = hf.load(models.BUILTIN)
  exact = tasks.make_exact(config, tokenizers.load(models.BUILTIN), SAMPLER)
  success = exact(params, tasks.rows("heldout", 360, seed=0, families=tasks.EXACT))
  assert np.mean(success) == pytest.approx(0.43, abs=0.04)
  shares = np.histogram(success, [0, 0.3, 0.7, 1])[0] / len(success)
  assert (shares > 0.15).all()
