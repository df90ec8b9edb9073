"""The scheduler: rollouts depend on their key alone, slots stay full, adaptive groups are
prefixes."""

from collections import Counter
from concurrent import futures
import math
import re
import time
import types
import zlib

import jax
import numpy as np
import pytest

from tests import support
from v05_jax import budget as budgets
from v05_jax import rewards, rng, shrinkage
from v05_jax.budgets.base import fixed_number
from v05_jax.sampling import rollouts, sampler, verdicts
from v05_jax.sampling.ledger import Order
from v05_jax.sampling.schedule import Sampled, Schedule
from v05_jax.scale import sharding

FIXED = fixed_number(6)
FIELDS = ("tokens", "prompt", "index", "length", "reward", "ended", "mask")

EWA = shrinkage.ewa_update(
  shrinkage.ewa_init(),
  np.linspace(-1, 1, 64),
  np.random.default_rng(0).binomial(4, 0.5, 64),
  np.full(64, 4),
)


def run(
  budget=FIXED,
  devices=1,
  count=14,
  value=None,
  seed=0,
  verifier=None,
  limit=None,
  capacity=None,
  ewa=(),
  **sampler,
):
  collect = support.collector(support.config(**sampler), devices, verifier)
  prompts = support.prompts(count, capacity=capacity)
  return collect(support.params(), prompts, rng.at(0, seed), Order(budget, ewa, value, limit=limit))


@pytest.fixture(scope="module")
def reference():
  return run()[0]


@pytest.fixture(scope="module")
def full():
  return run(fixed_number(16))[0]


def test_a_rule_sees_which_prompts_it_is_asked_about():
  said, seen = np.linspace(0, 1, 14, dtype=np.float32), []

  def more(state, groups, value, asked):
    seen.append((groups, asked))
    return np.zeros(14, int)

  prompts = support.prompts(14)
  prompts = prompts.replace(row=prompts.row[::-1] + 40, step=np.int32(9))
  rule = FIXED._replace(limits=FIXED.limits._replace(most=8, closes=False), more=more)
  order = Order(rule, prior_variance=said)
  rolls, _ = support.collector(support.config())(support.params(), prompts, rng.at(0, 0), order)
  for groups, asked in seen:
    np.testing.assert_array_equal(groups.row, np.arange(53, 39, -1))
    np.testing.assert_array_equal(groups.prior_variance, said)
    assert groups.step == 9
    np.testing.assert_array_equal(groups.length[asked.ended], rolls.length[asked.ended])
  assert np.any([asked.ended for _, asked in seen], axis=0).all()


def test_log_probs_that_are_none_are_counted():
  collect = support.collector(support.config())
  broken = jax.tree.map(lambda x: x * np.nan, support.params())
  _, stats = collect(broken, support.prompts(14), rng.at(0, 0), Order(FIXED))
  assert stats["sampler/not_finite"] == (14 * 6, 1)
  assert "sampler/not_finite" not in run()[1]


# The cache in several sizes, a prompt's keys read once for one, two or four of its rollouts.
SIZES = (
  {"slots": 8, "chunk": 1, "share": 1, "slot_sizes": 3, "prefill": 2},
  {"share": 2, "chunk": 3, "column_sizes": 3, "open_prompts": 4, "prefill": 4},
  {"devices": 2, "slots": 8, "chunk": 3, "slot_sizes": 2, "column_sizes": 2},
)


@pytest.mark.parametrize(
  "change",
  [
    {"slots": 64, "open_prompts": 32},
    {"chunk": 12, "open_prompts": 2, "prefill": 2},
    {"devices": 8},
    {"capacity": 20},
    *SIZES,
  ],
  ids=str,
)
def test_rollouts_do_not_depend_on_slots_chunks_or_devices(reference, change):
  rolls, _ = run(**change)
  for name in FIELDS:
    np.testing.assert_array_equal(
      getattr(rolls, name)[: len(getattr(reference, name))], getattr(reference, name)
    )
  np.testing.assert_allclose(rolls.logprob, reference.logprob, atol=1e-4)


def test_another_order_of_work_at_the_same_shapes_is_equal_bit_for_bit(reference):
  """The prompts in reverse order run in other slots beside other neighbours."""
  prompts = support.prompts(14)
  order = np.arange(14)[::-1]
  mirrored = prompts.replace(
    tokens=prompts.tokens[order],
    length=prompts.length[order],
    position=prompts.position[order],
    rows=prompts.rows[::-1],
  )
  rolls, _ = support.collector(support.config())(
    support.params(), mirrored, rng.at(0, 0), Order(FIXED)
  )
  for row, p, k in zip(range(len(rolls.prompt)), rolls.prompt, rolls.index):
    twin = np.flatnonzero((reference.prompt == order[p]) & (reference.index == k))[0]
    np.testing.assert_array_equal(rolls.tokens[row], reference.tokens[twin])
    np.testing.assert_array_equal(rolls.logprob[row], reference.logprob[twin])


def test_keys_name_rollouts(reference):
  again, _ = run()
  np.testing.assert_array_equal(again.logprob, reference.logprob)
  other, _ = run(seed=1)
  assert not np.array_equal(other.tokens[:20], reference.tokens[:20])
  groups = reference.tokens.reshape(14, 6, -1)
  assert all(len(np.unique(group, axis=0)) > 1 for group in groups)  # members of a group differ


@pytest.mark.parametrize("block", [1, 2, 3])
def test_an_adaptive_group_is_the_prefix_of_the_fixed_one(full, block):
  value = np.random.default_rng(0).uniform(-1, 1, 14).astype(np.float32)
  rolls, stats = run(support.budget("sequential", 4, 16, cost=1 / 256, block=block), value=value)
  k = rolls.mask.sum(1)
  assert k.min() == 4 and k.max() > 4
  for p in range(14):
    np.testing.assert_array_equal(rolls.mask[p], np.arange(16) < k[p])
    np.testing.assert_array_equal(rolls.reward[p, : k[p]], full.reward[p, : k[p]])
    mine, whole = rolls.tokens[rolls.prompt == p], full.tokens[full.prompt == p]
    np.testing.assert_array_equal(mine, whole[: k[p]])
  assert stats["response/length"][1] == k.sum()


def test_the_sequential_rule_stops_where_the_equation_says():
  """Block 1: every prefix up to k - 1 asks for more, and k does not (or is k_max)."""
  value = np.random.default_rng(1).uniform(-1, 1, 14)
  rolls, _ = run(
    support.budget("sequential", 4, 16, cost=1 / 256, block=1), value=value.astype(np.float32)
  )

  def more(rewards, v):
    k, vbar = len(rewards), 2 * np.mean(rewards) - 1
    delta2 = max((vbar - v) ** 2 - 1 / k, 0)
    return delta2**2 / ((k * delta2 + 1) * ((k + 1) * delta2 + 1)) > 1 / 256

  for p in range(14):
    rewards = rolls.reward[p][rolls.mask[p]]
    assert all(more(rewards[:k], value[p]) for k in range(4, len(rewards)))
    assert len(rewards) == 16 or not more(rewards, value[p])


@pytest.mark.parametrize("change", SIZES, ids=str)
def test_the_cache_moves_under_adaptive_groups_and_changes_nothing(full, change, monkeypatch):
  """Sequential and divided groups: the cache grows and shrinks under rollouts in flight, in each of
  its directions."""
  moves = []

  class Spy(Schedule):
    def resize(self):
      before, change = self.shape, super().resize()
      if change is not None and self.active:
        moves.append((before, change[1]))
      return change

  monkeypatch.setattr(rollouts, "Schedule", Spy)
  value = np.random.default_rng(0).uniform(-1, 1, 14).astype(np.float32)
  sequential, _ = run(
    support.budget("sequential", 4, 16, cost=1 / 256, block=2), value=value, **change
  )
  divided, _ = run(support.budget("neyman", 3, 16, k_mean=5.5), value=value, ewa=EWA, **change)
  for rolls in (sequential, divided):
    assert len(set(rolls.mask.sum(1))) > 2
    for row, (p, k) in enumerate(zip(rolls.prompt, rolls.index)):
      same = np.flatnonzero((full.prompt == p) & (full.index == k))[0]
      np.testing.assert_array_equal(rolls.tokens[row], full.tokens[same])
      np.testing.assert_allclose(rolls.logprob[row], full.logprob[same], atol=1e-4)
      assert rolls.reward[p, k] == full.reward[p, k] and rolls.ended[p, k] == full.ended[p, k]
  slots, columns = ({np.sign(b[i] - a[i]) for a, b in moves} for i in (0, 1))
  assert "column_sizes" not in change or {-1, 1} <= columns
  assert "slot_sizes" not in change or {-1, 1} <= slots


class Late:
  """Answers from threads, each after its own delay: verdicts come late and in another order than
  asked."""

  def submit(self, prompts, responses, rows):
    def answer(text):
      time.sleep((zlib.crc32(text.encode()) % 7) * 0.004)
      return types.SimpleNamespace(reward=float(len(text) % 2 == 0), failure="")

    return [self.pool.submit(answer, text) for text in responses]

  def __enter__(self):
    self.pool = futures.ThreadPoolExecutor(8)
    return self

  def __exit__(self, *error):
    self.pool.shutdown()


def test_late_verdicts_change_nothing():
  value = np.zeros(14, np.float32)
  groups = support.budget("sequential", 4, 16, cost=1 / 256, block=1)
  quick, stats = run(groups, value=value)
  with Late() as verifier:
    late, late_stats = run(groups, value=value, verifier=verifier)
  np.testing.assert_array_equal(late.logprob, quick.logprob)
  assert late_stats["sampler/decode_steps"] == stats["sampler/decode_steps"]
  assert late_stats["sampler/refills"] == stats["sampler/refills"]


def test_a_limit_beyond_the_longest_response_is_none():
  """Else the overlong penalty would begin where no response comes to."""
  prompts = types.SimpleNamespace(
    mask=np.ones(4, bool), rows=[{"max_tokens": n} for n in (9, 2, 8)]
  )
  np.testing.assert_array_equal(rollouts.row_limits(prompts, 8)[:, 0], [8, 2, 8, 8])


def test_seconds_of_verdicts_in_this_process_count_as_waited():
  calls = []

  def slow(*job):
    calls.append(job)
    time.sleep(0.02)
    return 1.0

  _, stats = run(fixed_number(2), count=6, verifier=rewards.pool.Direct(slow))
  assert calls and stats["time/verify"][0] >= len(calls) * 0.02


NEVER = {
  "slots": 32,
  "open_prompts": 32,
  "prefill": 8,
  "chunk": 2,
  "max_response": 48,
  "truncated": "score",
}


def by_limits(budget, count, value=None):
  """Rollouts of 16..48 tokens on 32 slots: none ends by itself, the limits make the lengths."""
  limit = np.random.default_rng(0).integers(16, 49, (count, budget.limits.most))
  collect = support.collector(support.config(**NEVER), eos=-1)
  rolls, stats = collect(
    support.params(), support.prompts(count), rng.at(0, 0), Order(budget, (), value, limit=limit)
  )
  np.testing.assert_array_equal(rolls.length, np.where(rolls.length, limit, 0))
  used, offered = stats["sampler/utilisation"]
  assert used == rolls.length.sum() and offered == 32 * stats["sampler/decode_steps"][0]
  return rolls, stats


def test_slots_are_refilled_and_steps_are_near_the_ideal():
  """256 rollouts of 16..48 tokens on 32 slots: at least 200 refills, at most 1.15x the ideal decode
  steps."""
  rolls, stats = by_limits(fixed_number(4), 64)
  assert rolls.length.all() and stats["sampler/refills"][0] == 256 - 32 >= 200
  assert stats["sampler/decode_steps"][0] <= 1.15 * rolls.length.sum() / 32


@pytest.mark.parametrize("block", [1, 2])
def test_adaptive_groups_keep_the_slots_as_full_as_fixed_ones(block):
  """Until nothing waits any more; and with the end of the step, which is long where a prompt's
  rollouts are asked for one after another, within 10 % of the fixed groups' useful tokens a decode
  step."""
  value = np.random.default_rng(1).uniform(-1, 1, 256).astype(np.float32)
  rolls, stats = by_limits(
    support.budget("sequential", 4, 8, cost=1 / 256, block=block), 256, value
  )
  assert 4 < rolls.mask.sum(1).mean() < 8
  used, offered = stats["sampler/utilisation_filled"]
  assert used >= 0.95 * offered and offered > 0.5 * stats["sampler/utilisation"][1]
  _, fixed = by_limits(fixed_number(4), 256)
  each = [s["response/length"][0] / s["sampler/decode_steps"][0] for s in (stats, fixed)]
  assert each[0] >= 0.9 * each[1]


@pytest.mark.parametrize("truncated", ["score", "fail", "mask"])
def test_truncated_rollouts(truncated):
  c = support.config(truncated=truncated)
  always = support.Verifier(lambda text: 1.0)
  collect = support.collector(c, verifier=always)
  rolls, stats = collect(support.params(), support.prompts(14), rng.at(0, 0), Order(FIXED))
  cut = ~rolls.ended
  assert 0 < cut.sum() < cut.size and stats["response/truncated"] == (cut.sum(), cut.size)
  assert np.all(rolls.reward[~cut] == 1)
  assert np.all(rolls.reward[cut] == (1 if truncated == "score" else 0))
  np.testing.assert_array_equal(rolls.mask, ~cut if truncated == "mask" else np.ones_like(cut))


def test_a_failed_verdict_costs_one_rollout():
  broken = support.Verifier(lambda text: float("nan") if text.startswith("b") else 1.0)
  rolls, stats = run(verifier=broken)
  assert 0 < stats["rewards/failed"][0] == np.isnan(rolls.reward).sum()
  np.testing.assert_array_equal(rolls.mask, np.isfinite(rolls.reward))


def test_a_reward_that_always_fails_is_given_up():
  broken = support.Verifier(lambda text: float("nan"))
  error = r"config.reward = 'task': all 8\d verdicts failed, .*crash: broken.*mend the function"
  with pytest.raises(rewards.RewardError, match=error):
    run(verifier=broken, truncated="score")
  run(verifier=support.Verifier(lambda text: float("nan") if text else 1.0), truncated="score")


def test_few_failed_verdicts_are_no_reason_until_there_are_four_in_a_row():
  """Of a step most of whose rollouts are truncated, and not judged."""
  judge = verdicts.Judge(support.policy(), support.config(), None)
  rollout = lambda token: Sampled(0, 0, tokens=[np.array([token])])
  ended, truncated = rollout(support.EOS), rollout(5)
  tell = lambda rollouts, *found: judge.rewards(rollouts, [lambda x=x: x for x in found])
  nan = float("nan")
  for _ in range(3):
    tell([ended, ended, ended, truncated], nan, nan, nan, 0.0)
    assert judge.finish() == {"rewards/failed": (3, 1)}
    tell([ended, ended], nan, 1.0)
    assert judge.finish()["rewards/failed"] == (1, 1)
  tell([ended, ended, ended, truncated], nan, nan, nan, 0.0)
  judge.finish()
  tell([truncated], 0.0)
  assert judge.finish() == {"rewards/failed": (0, 1)}
  tell([truncated, ended], 0.0, nan)  # the fourth
  with pytest.raises(rewards.RewardError, match="another process says which"):
    judge.finish()
  judge = verdicts.Judge(support.policy(), support.config(), None)
  tell([ended], nan)  # all there is
  with pytest.raises(rewards.RewardError, match="all 1 verdicts failed"):
    judge.finish()


@pytest.mark.parametrize("count, best, said", [(16, 0.0, True), (16, 0.5, False), (15, 0.0, False)])
def test_a_first_step_without_any_reward_is_said_once(caplog, count, best, said):
  config = support.config()
  config.data.scratchpad = 24
  judge = verdicts.Judge(support.policy(), config, None)
  rollout = Sampled(0, 0, tokens=[np.array([support.EOS])])
  for part in ([math.nan, best], [0.0] * (count - 2)):
    judge.rewards([rollout] * len(part), [lambda x=x: x for x in part])
  judge.finish()
  judge.rewards([rollout] * 20, [lambda: 0.0] * 20)  # a later step
  judge.finish()
  found = [record.getMessage() for record in caplog.records]
  assert len(found) == said
  if said:
    assert found[0].startswith("none of the first 16 rollouts has a reward above rewards.low = 0:")
    assert "is data.scratchpad = 24 what the policy was taught?" in found[0]


def test_a_run_that_is_to_stop_does_not_wait_for_verdicts_that_do_not_come(monkeypatch):
  monkeypatch.setattr(verdicts, "PATIENCE", 0.2)
  monkeypatch.setattr(verdicts, "LOOK", 0.05)
  asked = []
  never = types.SimpleNamespace(submit=lambda *jobs: [futures.Future() for _ in jobs[0]])
  judge = verdicts.Judge(support.policy(), support.config(), never, lambda: bool(asked))
  prompts = support.prompts(2)
  ended = [Sampled(p, 0, tokens=[np.array([2, support.EOS])]) for p in range(2)]
  waiting = judge.submit(ended, prompts)
  asked.append(True)
  with pytest.raises(verdicts.Interrupted):
    judge.rewards(ended, waiting)
  many = [Sampled(p, 0, tokens=[np.array([2, support.EOS])]) for p in [0, 1] * 40]
  began = time.monotonic()  # the patience is that of all together
  with pytest.raises(verdicts.Interrupted):
    judge.rewards(many, judge.submit(many, prompts))
  assert time.monotonic() - began < 40 * verdicts.LOOK
  asked.clear()
  judge = verdicts.Judge(support.policy(), support.config(), never, lambda: bool(asked))
  late = judge.submit(ended, prompts)
  with futures.ThreadPoolExecutor(1) as pool:
    found = pool.submit(judge.rewards, ended, late)
    assert not futures.wait([found], 0.5).done  # nobody asks it to stop: it waits
    asked.append(True)
    assert isinstance(found.exception(60), verdicts.Interrupted)


def test_a_signal_ends_an_evaluation_at_once_and_a_step_at_its_end():
  c, mesh = support.config(), support.mesh()
  collect = rollouts.make(
    support.policy(), c, mesh, support.Verifier(), stopping=lambda: bool(asked)
  )
  asked = []
  look = lambda stops: collect(
    support.params(), support.prompts(14), rng.at(0, 0), Order(FIXED, interruptible=stops)
  )[0]
  whole = look(True)
  asked.append(True)
  with pytest.raises(verdicts.Interrupted, match="during an evaluation"):
    look(True)
  np.testing.assert_array_equal(look(False).tokens, whole.tokens)


def test_rewards_outside_of_their_range_are_said_once_and_counted(caplog):
  far = support.Verifier(lambda text: {0: 1.5, 1: -2.0}.get(len(text) % 3, 1.0))
  rolls, stats = run(verifier=far, truncated="score")
  assert stats["rewards/clipped"] == (((rolls.reward < 0) | (rolls.reward > 1)).sum(), 1)
  (record,) = [r for r in caplog.records if "rewards.low" in r.getMessage()]
  text = record.getMessage()
  assert re.search(r"a reward of (1.5 .* counts as 1|-2 .* counts as 0):", text), text
  assert record.levelname == "WARNING" and "rewards.high = 0 .. 1" in text
  caplog.clear()
  _, stats = run(verifier=far, truncated="score")
  assert not caplog.records and stats["rewards/clipped"][0] > 0
  assert "rewards/clipped" not in run(truncated="score")[1]


@pytest.mark.parametrize(
  "shape",
  [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.long) for x in ((2, 1, 2), (1, 4, 2)))],
  ids=str,
)
def test_rollouts_do_not_depend_on_how_the_model_is_split(reference, shape):
  """Lanes whose rollouts end at different steps share collectives: they must leave the loop
  together."""
  c = support.config()
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = shape
  mesh = sharding.make_mesh(c.mesh, jax.devices()[: int(np.prod(shape))])
  params = jax.device_put(support.params(), sharding.param_shardings(mesh, support.params()))
  collect = rollouts.make(support.policy(), c, mesh, support.Verifier())
  rolls, _ = collect(params, support.prompts(14), rng.at(0, 0), Order(FIXED))
  np.testing.assert_array_equal(rolls.tokens, reference.tokens)
  np.testing.assert_allclose(rolls.logprob, reference.logprob, atol=1e-4)


def test_a_second_stage_is_the_last():
  value = np.random.default_rng(0).uniform(-1, 1, 14).astype(np.float32)
  rolls, _ = run(support.budget("two_stage", 4, 16, cost=1 / 256), value=value)
  vbar = 2 * rolls.reward[:, :4].mean(1) - 1
  expected = budgets.final_k(shrinkage.fuse(vbar, 4, value).delta2, np.full(14, 4), 1 / 256, 16)
  np.testing.assert_array_equal(rolls.mask.sum(1), expected)
  assert len(set(np.asarray(expected).tolist())) > 2


@pytest.mark.parametrize("store", [{}, {"slots": 8, "open_prompts": 2, "prefill": 2}], ids=str)
@pytest.mark.parametrize("devices", [1, 2])
def test_a_divided_budget_is_met_exactly_and_extends_the_first_stage(full, store, devices):
  """Also where fewer prompts can be open at once than wait for the decision: they are opened
  again."""
  if devices == 2 and store:
    store = {key: 2 * size for key, size in store.items()}
  value = np.random.default_rng(0).uniform(-1, 1, 20).astype(np.float32)
  groups = support.budget("neyman", 3, 16, k_mean=5.5)
  rolls, _ = run(groups, value=value, capacity=20, devices=devices, ewa=EWA, **store)
  k = rolls.mask.sum(1)
  assert (
    k.sum() == len(rolls.prompt) == 77
    and k[:14].min() >= 3
    and len(set(k[:14])) > 2
    and not k[14:].any()
  )
  for p in range(14):
    np.testing.assert_array_equal(rolls.mask[p], np.arange(16) < k[p])
    np.testing.assert_array_equal(rolls.reward[p, : k[p]], full.reward[p, : k[p]])
  s = rolls.reward[:14, :3].sum(1)
  _, sigma2, var = shrinkage.ewa_baseline(EWA, value[:14], s, np.full(14, 3))
  np.testing.assert_array_equal(k[:14], budgets.neyman(sigma2, var, np.full(14, 3), 77, 3, 16))


def test_a_divided_budget_stays_exact_when_verdicts_fail():
  broken = support.Verifier(
    lambda text: float("nan") if text.startswith("b") else float("c" in text)
  )
  value = np.zeros(14, np.float32)
  rolls, _ = run(support.budget("neyman", 4, 7, k_mean=6.0), value=value, ewa=EWA, verifier=broken)
  assert np.isnan(rolls.reward[rolls.length > 0]).any()
  assert (rolls.length > 0).sum() == len(rolls.prompt) == 84 and (rolls.length > 0).sum(
    1
  ).max() <= 7


def test_an_allocation_by_value_is_known_beforehand():
  """The same numbers whatever the rollouts say, all of them asked at once: no second prefill, no
  waiting."""
  value = np.linspace(-1, 1, 14).astype(np.float32)
  groups = support.budget("value", 2, 16, k_mean=6.0)
  one, stats = run(groups, value=value, slots=128, open_prompts=16)
  other, _ = run(
    groups, value=value, slots=128, open_prompts=16, verifier=support.Verifier(lambda text: 0.0)
  )
  k = one.mask.sum(1)
  np.testing.assert_array_equal(k, other.mask.sum(1))
  assert k.sum() == 84 and k[0] == k[-1] == 2 and k[6] == k.max() > 6
  assert stats["sampler/refills"][0] == 0


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (2, 2, 2)])
def test_every_program_compiles_once_and_in_the_first_call(sizes, caplog, request):
  """What is compiled ahead, from shapes and shardings alone, is what the calls then run."""
  c = support.config(slots=8, slot_sizes=2, column_sizes=2)
  mesh = sharding.make_mesh(
    dict(zip(("data", "fsdp", "tensor"), sizes)), jax.devices()[: int(np.prod(sizes))]
  )
  params = jax.device_put(support.params(), sharding.param_shardings(mesh, support.params()))
  collect = rollouts.make(support.policy(), c, mesh, support.Verifier())
  found = []
  request.addfinalizer(lambda: jax.config.update("jax_log_compiles", False))
  jax.config.update("jax_log_compiles", True)  # in all threads
  for seed in range(2):
    caplog.clear()
    collect(params, support.prompts(14), rng.at(0, seed), Order(FIXED))
    names = [
      re.search(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage())
      for record in caplog.records
    ]
    found.append(Counter(name[1] for name in names if name))
  first, second = found
  assert first["decode"] == len(sampler.shapes(c.sampler, sharding.lanes(mesh))) > 2
  assert first["prefill"] == first["weights"] == 1
  assert not second, second
