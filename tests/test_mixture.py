"""Several rewards with weights: what the config may say, what the estimator sees, and functions
that are async, batched, or written for other trainers."""

import itertools
import json
import math
from types import SimpleNamespace

from absl import flags
import jax
import numpy as np
import pytest

from tests import support
from tests.test_train import small
from v05_jax import command_line, plug, rewards
from v05_jax import config as configuration
from v05_jax import groups as grouping
from v05_jax.configs import default
from v05_jax.rewards import adapters, mixture
from v05_jax.run import metrics
from v05_jax.run.show import show
from v05_jax.sampling import rollouts
from v05_jax.sampling.ledger import Order
from v05_jax.scale import sources
from v05_jax.train import train

MODULE = r"""
import asyncio, math, os, time
from v05_jax.rewards import adapters
from v05_jax.rewards.llm_judge import LLMJudge

STATE = []

def length(prompt, response, row): return len(response)
def no_batch(prompt, response, responses): return len(response)  # its third parameter is a row
def answer(prompt, response, row): return float(response == row["answer"])
def worker(prompt, response, row): return os.getpid()
async def slow(prompt, response, row):
  await asyncio.sleep(0.01)
  if response == "raise": raise RuntimeError("in vain")
  if response == "hang": await asyncio.sleep(1000)
  return len(response)
class Called:
  async def __call__(self, prompt, response, row): return 2.0
called = Called()
def returns_a_coroutine(prompt, response, row): return slow(prompt, response, row)
async def leaves_a_task(prompt, response, row):
  async def late():
    await asyncio.sleep(0.05)
    raise SystemExit(3)
  STATE.append(asyncio.create_task(late()))
  return float(sum(not task.done() for task in STATE))
async def loop(prompt, response, row): return float(id(asyncio.get_running_loop()))

class Patient(LLMJudge):
  def __call__(self, prompt, responses, row): return [self.limit] * len(responses)
patient = Patient("http://x/v1", "m", template="{prompt}")

def rank(prompt, responses, row):
  if "raise" in responses: raise RuntimeError("the whole batch")
  if "hang" in responses: time.sleep(1000)
  if "exit" in responses: os._exit(3)
  if "short" in responses: return [1.0]
  if "text" in responses: return "1" * len(responses)
  if "none" in responses: return None
  if "nan" in responses: return [math.nan if x == "nan" else 1.0 for x in responses]
  order = sorted(set(responses), key=len)
  return [order.index(x) + 100 * len(responses) for x in responses]
async def rank_async(prompt, responses, row):
  await asyncio.gather(*(asyncio.sleep(0.01) for _ in responses))
  return rank(prompt, responses, row)

def of_trl(prompts, completions, answer, **columns):
  assert columns["trainer_state"] is None and columns["log_metric"]("x", 1.0) is None
  return [None if c == "skip" else float(c == a) for c, a in zip(completions, answer, strict=True)]
def of_trl_wrong(prompts, completions, answer, **columns):
  return {"one": 1.0, "none": None, "text": "11", "more": [1.0]}[completions[0]]
def of_trl_named(completions, prompts):
  return [float(len(p + c)) for p, c in zip(prompts, completions)]
def of_trl_columns(prompts, completions, **columns):
  own = {"prompt", "completion", "completion_ids"} & set(columns)  # TRL has arguments for these
  return [float(len(columns) - 100 * len(own)) for _ in completions]
def of_trl_completions(completions, **columns): return [float(len(c)) for c in completions]
def of_trl_column(completions, ground_truth, level=0): return [float(x) for x in ground_truth]
def of_trl_ids(completion_ids, **columns): return [1.0 for _ in completion_ids]
def of_trl_mixed(prompt, completions, row): return 1.0
async def of_trl_async(prompts, completions, **columns): return [len(c) for c in completions]
def _messages(prompts, completions, **columns):
  good = lambda p, c: p[-1]["role"] == "user" and c[0]["content"] == "4"
  return [float(good(p, c)) for p, c in zip(prompts, completions)]
of_trl_messages = adapters.trl(_messages, conversational=True)

def right(completion, answer): return float(completion[-1]["content"] == answer)
async def short(completion, state, **_): return 1.0 / len(state["responses"][0])
def unsure(completion, **_): return None if completion[-1]["content"] == "4" else "1.0"
of_verifiers_unsure = adapters.verifiers(right, unsure)
def judged(completion, judge): return judge(completion[-1]["content"])
class Rubric:
  funcs, weights, class_objects = [right, short, judged], [1.0, 0.5, 2.0], {"judge": len}
of_verifiers = adapters.verifiers(right, short, weights=[1.0, 0.5])
of_a_rubric = adapters.verifiers(Rubric())

class Environment:
  made = 0
  def __init__(self): Environment.made += 1  # once in each worker
  def reset(self, **_): self.steps = 0
  async def step(self, action):
    self.steps += 1
    reward = float(action["said"] == "4") * self.steps * self.made
    return type("Result", (), {"reward": reward, "done": True})
in_an_environment = adapters.openenv(Environment, lambda response, row: {"said": response})
"""
TWO = [["my_terms:answer", 1.0], ["my_terms:length", -0.25]]


def config(reward, workers=1, timeout=60.0):
  return SimpleNamespace(reward=reward, rewards=SimpleNamespace(workers=workers, timeout=timeout))


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / "my_terms.py").write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def judge(reward, *responses, workers=1, timeout=60.0, **row):
  with rewards.load(config(reward, workers, timeout)) as verifier:
    handles = verifier.submit(["2+2="] * len(responses), list(responses), [row] * len(responses))
    return [handle.result(timeout=300) for handle in handles]


def values(*arguments, **keys):
  return [verdict.reward for verdict in judge(*arguments, **keys)]


# --- What the config may say


def with_reward(reward, **keys):
  c = default.get_config()
  c.reward = reward
  c.rewards.update(keys)
  return c


def test_a_list_is_taken_from_a_file_the_command_line_and_config_json():
  values_of = flags.FlagValues()
  text = '[["task", 1.0], ["my_reward:brief", 0.1]]'
  command_line.parse(["main", f"--config.reward={text}"], values_of)
  typed = values_of.config
  configuration.validate(typed)
  saved = configuration.from_json(configuration.to_json(typed))
  written = with_reward([["task", 1.0], ["my_reward:brief", 0.1]])
  for c in (typed, saved, written):
    configuration.validate(c)
    configuration.check_resume(saved, c, "the run")
    assert [t[1:] for t in rewards.terms(c.reward)] == [("task", 1.0), ("my_reward:brief", 0.1)]
  with pytest.raises(ValueError, match=r"reward: found .*0.2.*, expected .*0.1"):
    configuration.check_resume(saved, with_reward([["task", 1.0], ["my_reward:brief", 0.2]]), "it")
  found = sources.of(typed, {})["the code"]
  assert "my_reward:brief" in found  # its file is compared between processes


@pytest.mark.parametrize(
  "reward",
  [
    *([], (), [[]], ["task"], "task,math", [["task"]], [["task", 1, 2]], [["task", "1"]]),
    *([["task", True]], [["task", 0]], [["task", math.nan]], [["task", math.inf]], [[1, "task"]]),
    *([["tusk", 1.0]], [["task", 1.0], ["task", 2.0]], [["a:b", 1.0], ["a b:c", 1.0]], 1, None),
    *(
      [["task", 1.0], "math"],
      [["a:", 1.0]],
      [["task", 10**400]],
      '[["task", 1.0]',
      [[["task"], 1]],
    ),
  ],
)
def test_what_is_no_reward_is_named(reward):
  with pytest.raises(ValueError, match=r"reward: found .*, expected "):
    configuration.validate(with_reward(reward))
  with pytest.raises(ValueError, match=r"config\.reward = "):
    rewards.load(config(reward))


def test_functions_are_called_by_their_own_names():
  names = lambda *targets: [t.name for t in rewards.terms([[x, 1.0] for x in targets])]
  assert names("math", "a.b:Scorer.brief") == ["math", "brief"]
  assert names("a:f", "b:f", "c:g") == ["a.f", "b.f", "g"]
  assert names("a:sum") == ["a.sum"]  # "sum" is all of them
  assert rewards.terms("math") == (mixture.Term("math", "math", 1.0),)


def test_which_of_them_the_success_is():
  assert [rewards.success(TWO, x) for x in ("", "answer", "sum")] == [0, 0, None]
  configuration.validate(with_reward([["task", 1.0], ["a:f", 2.0]], success="f"))
  for wanted, expected in (
    ("brief", "task, f, sum, or empty"),
    ("g", "above 0, or sum: g has the weight -"),
  ):
    with pytest.raises(
      ValueError, match=rf"rewards.success: found '{wanted}', expected .*{expected}"
    ):
      configuration.validate(
        with_reward([["task", 1.0], ["a:f" if wanted == "brief" else "a:g", -1.0]], success=wanted)
      )


def test_each_of_a_list_is_checked_against_the_data():
  with pytest.raises(ValueError, match='"task" knows the built-in tasks alone'):
    c = with_reward([["math", 1.0], ["task", 1.0]])
    c.data.path = "rows.jsonl"
    configuration.validate(c)
  with pytest.raises(ValueError, match="the reward is reasoning_gym"):
    configuration.validate(with_reward([["task", 1.0], ["reasoning_gym", 1.0]]))
  with pytest.raises(ValueError, match=r"expected numbers, since config.reward names expression"):
    rewards.check_answers([["a:f", 1.0], ["expression", 1.0]], [{"answer": "x"}], "rows.jsonl")


# --- What the estimator sees


def test_the_others_are_added_beside_the_success_in_its_units():
  c = with_reward([["a:right", 2.0], ["a:brief", 0.5]], low=0.0, high=4.0)
  brief = np.array([[1.0, 3.0, np.nan, 9.0], [5.0, 9.0, 9.0, 9.0]])
  mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
  parts = np.stack([np.full((2, 4), 7.0), brief], 2)
  found = rewards.others(c, parts, mask)
  value = np.array([1, 3, 0]) * (0.5 / 2.0) * 2 / 4  # in units of the mapped reward
  mine = 5 * (0.5 / 2.0) * 2 / 4
  others = (value.sum() - value) / 2
  np.testing.assert_allclose(found[0], [*(value - others), 0], rtol=1e-6)
  np.testing.assert_allclose(found[1], [mine - value.mean(), 0, 0, 0], rtol=1e-6)
  plain = rewards.others(c, parts, mask, centred=False)
  np.testing.assert_allclose(plain, [[*value, 0], [mine, 0, 0, 0]], rtol=1e-6)
  only = rewards.others(c, parts[1:], mask[1:])
  np.testing.assert_allclose(only, [[mine, 0, 0, 0]], rtol=1e-6)  # with nothing to compare it with
  c.rewards.success = "sum"
  assert not rewards.others(c, parts, mask).any()
  assert rewards.combine(c.reward, "sum", (7.0, 3.0)) == 15.5
  assert rewards.combine(c.reward, "brief", (7.0, 3.0)) == 3.0


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("weight", [0.1, -0.1])
def test_a_truncated_rollout_is_no_better_off_than_the_worst_complete_one(weight, centred):
  """Failures of one group, the last of which has never ended: the other reward is a penalty in the
  first prompt, a bonus in the second; the penalty of the third says nothing of the others."""
  c = with_reward([["a:right", 1.0], ["a:brief", weight]])
  brief = np.array([[-1, -5, -3, np.nan], [1, 5, 3, np.nan], [-50, -50, -50, -50]])
  brief *= np.sign(weight)
  parts = np.stack([np.where(np.isnan(brief), np.nan, 0.0), brief], 2)
  every = np.ones(brief.shape, bool)
  penalty, bonus, _ = rewards.others(c, parts, every, centred)
  assert penalty[3] == penalty[1] == penalty.min() < penalty[2] < penalty[0]
  assert bonus[3] == bonus.min() < bonus[0] < bonus[2] < bonus[1]
  if not centred:
    assert bonus[3] == 0 and penalty[3] == pytest.approx(-5 * 0.1 * 2)
  nobody = rewards.others(c, np.full_like(parts, np.nan), every, centred)
  np.testing.assert_array_equal(nobody, 0.0)


def test_group_baselines_see_the_plain_weighted_sum():
  """As in TRL, which sums first and compares then."""
  from v05_jax import shrinkage

  rng = np.random.default_rng(0)
  right, brief = rng.integers(0, 2, (5, 4)).astype(np.float32), rng.random((5, 4), np.float32)
  c = with_reward([["a:right", 1.0], ["a:brief", 0.3]])
  every = np.ones((5, 4), bool)
  shaping = rewards.others(c, np.stack([right, brief], 2), every, centred=False)
  value = np.full(5, np.nan, np.float32)
  total = right + 0.3 * brief
  for kind, expected in {
    "rloo": 2 * (total - (total.sum(1, keepdims=True) - total) / 3),
    "grpo": (total - total.mean(1, keepdims=True)) / total.std(1, keepdims=True, ddof=1),
  }.items():
    found, _ = shrinkage.advantage(kind, 2 * right - 1, every, value, shaping)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_others_keep_their_weight_in_the_gradient(k):
  """E[A s] over all outcomes of k rollouts, s the derivative of the log-probability: for a response
  that is brief with chance q, s = brief / q - (1 - brief) / (1 - q), and d E[brief] / dq = 1."""
  c, q = with_reward([["a:right", 1.0], ["a:brief", 0.3]]), 0.3
  cases = np.array(list(itertools.product((0.0, 1.0), repeat=2 * k))).reshape(-1, 2, k)
  gradient = 0.0
  for brief in cases:  # [prompts, K]
    found = rewards.others(c, np.stack([np.ones_like(brief), brief], 2), np.ones((2, k), bool))
    chance = np.prod(np.where(brief > 0, q, 1 - q))
    gradient += chance * np.mean(found * np.where(brief > 0, 1 / q, -1 / (1 - q)))
  assert gradient == pytest.approx(2 * 0.3, rel=1e-5)  # in units of the mapped reward


def test_estimators_say_whether_they_compare_shaped_rewards():
  rng = np.random.default_rng(1)
  reward = rng.choice([-1.0, 1.0], (6, 4)).astype(np.float32)
  groups = grouping.make(reward, np.ones((6, 4), bool), score=rng.random((6, 4), np.float32))
  shaped = groups._replace(shaping=rng.random((6, 4), np.float32))
  value = rng.uniform(-0.9, 0.9, 6).astype(np.float32)
  found = {}
  for name in plug.known("estimator"):
    estimator = plug.find("estimator", name)(
      plug.defaults("estimator", name), plug.Setting(None, rows=6)
    )
    before, after = (
      np.asarray(estimator.baseline(estimator.init(), x, value)) for x in (groups, shaped)
    )
    found[name] = not np.array_equal(before, after)
    assert estimator.of_shaped == found[name], name
  assert sum(found.values()) == 6 and found["grpo"] and not found["v05"]


# --- Verifiers


def test_a_verdict_has_every_part_and_fails_with_any(module):
  reward = [*TWO, ["expression", 1.0]]
  good, bad = judge(reward, "4", "5 = five", answer="4")
  assert good.parts == (1.0, 1.0, 1.0) and good.reward == 1.0 and not good.failure
  assert bad.parts == (0.0, 8.0, 0.0)
  reward = [["my_terms:slow", 1.0], ["my_terms:length", 1.0]]
  good, bad = judge(reward, "ok", "raise")
  assert good.parts == (2.0, 2.0)
  assert math.isnan(bad.reward) and bad.failure == "crash" and bad.parts[1] == 5.0
  assert bad.detail.startswith("slow: RuntimeError: in vain") and "my_terms.py:" in bad.detail


def test_one_that_cannot_be_loaded_is_named_and_the_others_are_closed(module):
  with pytest.raises(ValueError, match=r"config.reward = .*: my_terms:nothing: .*nothing"):
    rewards.load(config([["my_terms:length", 1.0], ["my_terms:nothing", 1.0]]))


def test_async_functions(module):
  first, failed, last = judge("my_terms:slow", "a", "raise", "abc")
  assert (first.reward, last.reward) == (1.0, 3.0)
  assert failed.failure == "crash" and "in vain" in failed.detail
  assert values("my_terms:called", "a") == [2.0]
  assert values("my_terms:no_batch", "a", "abc") == [1.0, 3.0]
  assert values("my_terms:returns_a_coroutine", "ab") == [2.0]
  assert values("my_terms:leaves_a_task", "a", "b", "c") == [1.0, 1.0, 1.0]
  assert len(set(values("my_terms:loop", "a", "b"))) == 1  # one event loop: connections live on
  late, after = judge("my_terms:slow", "hang", "ab", timeout=3.0)
  assert late.failure == "timeout" and after.reward == 2.0


def test_a_judge_is_told_how_long_a_call_may_take(module):
  assert values("my_terms:patient", "a", timeout=50.0) == [45.0]


@pytest.mark.parametrize("name", ["rank", "rank_async"])
def test_batched_functions_see_all_responses_of_a_prompt(module, name):
  with rewards.load(config(f"my_terms:{name}")) as verifier:
    assert verifier.batched
    rows = [{"n": 1}, {"n": 2}]
    order = [0, 1, 0, 1, 0]
    handles = verifier.submit(["p"] * 5, ["aaa", "b", "a", "bb", "aa"], [rows[i] for i in order])
    assert [h.result(60).reward for h in handles] == [302, 200, 300, 201, 301]
    handles = verifier.submit(["p"] * 3, ["a", "aa", "aaa"], [rows[0]] * 3, ["x", "y", "x"])
    assert [h.result(60).reward for h in handles] == [200, 100, 201]
  with rewards.load(config([["my_terms:length", 1.0], [f"my_terms:{name}", 1.0]])) as verifier:
    assert verifier.batched
    found = [h.result(60).parts for h in verifier.submit(["p"] * 2, ["a", "aa"], [rows[0]] * 2)]
    assert found == [(1, 200), (2, 201)]


@pytest.mark.parametrize(
  "bad, failure, detail",
  [
    ("raise", "crash", "the whole batch"),
    ("exit", "crash", "status 3"),
    ("hang", "timeout", "no verdict within"),
    ("short", "crash", "expected a list of 2 numbers, one for each response"),
    ("text", "crash", "expected a list of 2 numbers"),
    ("none", "crash", "NoneType"),
  ],
)
def test_a_bad_batch_costs_its_own_verdicts_at_most(module, bad, failure, detail):
  with rewards.load(config("my_terms:rank", timeout=3.0 if bad == "hang" else 60.0)) as verifier:
    groups = [0, 1, 0, 1, 2]
    handles = verifier.submit(["p"] * 5, ["a", "b", bad, "bb", "c"], [{}] * 5, groups)
    found = [handle.result(300) for handle in handles]
  assert [v.failure for v in found] == [failure, "", failure, "", ""]
  assert detail in found[0].detail and [v.reward for v in found[1::2]] == [200, 201]


def test_a_bad_number_in_a_batch_costs_its_own_verdict(module):
  first, failed, last = judge("my_terms:rank", "a", "nan", "b")
  assert (first.reward, last.reward) == (1.0, 1.0) and failed.failure == "crash"


def test_a_trl_function_without_a_list_of_the_right_length_is_told_so(module):
  wanted = "expected a list of 2 numbers, one for each response"
  found = {"one": "1.0 (float)", "none": "None (NoneType)", "text": "'11' (str)", "more": "[1.0]"}
  for kind, said in found.items():
    for verdict in judge("my_terms:of_trl_wrong", kind, kind, answer="4"):
      assert verdict.detail == f"returned {said}, {wanted}"


def test_functions_that_were_written_for_others(module):
  said = lambda name, *responses: values(f"my_terms:{name}", *responses, answer="4")
  assert said("of_trl", "4", "5", "skip") == [1.0, 0.0, 0.0]
  assert said("of_trl_named", "4", "44") == [5.0, 6.0]
  assert said("of_trl_async", "4", "44") == [1.0, 2.0]
  row = {"prompt": "2+2=", "completion": "4", "completion_ids": [1], "level": 1}
  assert values("my_terms:of_trl_columns", "4", **row) == [4.0]  # level and TRL's three helpers
  assert said("of_trl_messages", "4", "5") == [1.0, 0.0]
  assert said("of_verifiers", "4", "55") == [1.5, 0.25]
  assert said("of_a_rubric", "4", "55") == [3.5, 4.25]  # 2 for each character more
  assert said("in_an_environment", "4", "5", "4") == [1.0, 0.0, 1.0]
  assert said("of_trl_completions", "4", "44") == [1.0, 2.0]
  assert values("my_terms:of_trl_column", "4", ground_truth="7", answer="4") == [7.0]


def test_what_an_adapted_function_returns_or_lacks_is_said_with_its_name(module):
  (lacks,) = judge("my_terms:of_trl_column", "4", answer="4", level=1)
  assert "of_trl_column wants ground_truth: found a row with answer, level" in lacks.detail
  none, text = judge("my_terms:of_verifiers_unsure", "4", "5", answer="4")
  assert "unsure returned None, expected a finite number" in none.detail
  assert "unsure returned '1.0', expected a finite number" in text.detail
  with pytest.raises(ValueError, match="of_trl_ids wants completion_ids: found only prompts and"):
    rewards.load(config("my_terms:of_trl_ids"))
  with pytest.raises(ValueError, match="of_trl_mixed wants prompt: found only prompts and"):
    rewards.load(config("my_terms:of_trl_mixed"))


def _right(completion, answer):
  return 1.0


@pytest.mark.parametrize(
  "function, weights, message",
  [
    (_right, [1.0, 2.0], "found 1 functions and 2 weights, expected as many"),
    (_right, [], "found 1 functions and 0 weights"),
    (_right, [math.nan], "weights: found nan, expected finite numbers"),
    (_right, [math.inf], "weights: found inf, expected finite numbers"),
    (_right, ["1.0"], "weights: found '1.0', expected finite numbers"),
    (lambda completion, judge: 1.0, None, "<lambda> wants judge: found only prompt, completion, "),
    (lambda completions, answers: [1.0], [1.0], "wants answers, completions: found only prompt"),
    ("right", None, "'right' is not a callable"),
  ],
)
def test_an_adapter_that_cannot_work_is_an_error_when_it_is_made(function, weights, message):
  with pytest.raises((TypeError, ValueError), match=message):
    adapters.verifiers(function, weights=weights)


# --- A run


class Batched(support.Verifier):
  """Two rewards, of all responses of a prompt at once; keeps whose it was asked about."""

  batched = True

  def __init__(self):
    super().__init__()
    self.asked = []

  def submit(self, prompts, responses, rows, groups):
    self.asked.append(groups)
    both = lambda text: rewards.Verdict(1.0, parts=(self.reward(text), float(len(text))))
    return [SimpleNamespace(result=lambda r=r: both(r)) for r in responses]


@pytest.mark.parametrize("rule", ["fixed", "sequential"])
def test_the_rollouts_do_not_depend_on_when_they_are_judged(rule):
  options = {} if rule == "fixed" else {"cost": 0.01}
  order = Order(support.budget(rule, 2, 2 if rule == "fixed" else 6, **options))
  prompts, key = support.prompts(12), jax.random.key(1)
  plain, _ = support.collector(support.config())(support.params(), prompts, key, order)
  c, verifier = support.config(), Batched()
  c.reward = [["task", 1.0], ["a:letters", 0.5]]
  collect = rollouts.make(support.policy(), c, support.mesh(), verifier)
  found, stats = collect(support.params(), prompts, key, order)
  for name in ("tokens", "reward", "mask", "length"):
    np.testing.assert_array_equal(getattr(plain, name), getattr(found, name))
  judged = np.isfinite(found.parts)
  assert (judged[..., 0] == found.ended).all() and (judged[..., 1] == found.ended).all()
  letters = found.parts[..., 1][found.ended]
  assert stats["reward/letters"] == (letters.sum(), len(letters)) and letters.sum() > 0
  asked = [prompt for groups in verifier.asked for prompt in groups]
  assert len(asked) == found.ended.sum()
  once = [prompt for groups in verifier.asked for prompt in set(groups)]
  if rule == "fixed":  # at once, and so none of them twice
    assert len(set(once)) == len(once)


@pytest.mark.long
@pytest.mark.usefixtures("few_devices")
def test_a_run_with_several_rewards_logs_each_and_goes_on(module):
  keys = {"eval.period": 0, "checkpoint.period": 1, "sampler.truncated": "score"}
  c = small(num_steps=2, **keys)
  c.reward = [["task", 1.0], ["my_terms:length", -0.05], ["my_terms:rank", 0.01]]
  state = train(c, str(module / "run"))
  line = metrics.read(module / "run")[-1]
  assert line["reward/task"] == pytest.approx(line["reward"]) == line["accuracy"]
  assert line["reward/length"] > 0 and 200 <= line["reward/rank"] < 800
  assert int(state.rollouts) == 64 and line["rewards/failed"] == 0
  c.num_steps = 3
  shown = show(c, str(module / "run"), prompts=2)
  rollout = shown[0]["rollouts"][0]
  assert rollout["reward"] == rollout["reward/task"] and rollout["reward/rank"] >= 200
  train(configuration.from_json(json.dumps(configuration.to_dict(c))), str(module / "run"))
  assert [line["step"] for line in metrics.read(module / "run")] == [1, 2, 3]
