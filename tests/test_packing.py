"""Packing keeps every rollout whole, in any number of rows, and puts each number where it is
used."""

import dataclasses
import time

import numpy as np
import pytest

from v05_jax import structs
from v05_jax.update import losses, packing


def make(seed, P=7, K=4, T=6, R=5, real=6, share=0.8, vocab=50):
  """Random prompts and rollouts in a random flat order; a quarter of the flat rows are unused."""
  rng = np.random.default_rng(seed)
  mask = rng.random((P, K)) < share
  mask[real:] = False
  prompt, index = np.nonzero(np.ones((P, K)))
  order = rng.permutation(len(prompt))  # rollouts without mask stand in the flat rows too
  prompt, index = prompt[order].astype(np.int32), index[order].astype(np.int32)
  unused = rng.permutation(len(prompt) + 9)
  prompt = np.append(prompt, [-1] * 9)[unused]
  index = np.append(index, [-1] * 9)[unused]
  number = len(prompt)
  prompts = structs.Prompts(
    tokens=rng.integers(1, vocab, (P, T)).astype(np.int32),
    length=rng.integers(1, T + 1, P).astype(np.int32),
    position=np.arange(P, dtype=np.int32),
    mask=np.arange(P) < real,
    row=np.arange(P, dtype=np.int32),
    rows=(),
  )
  rollouts = structs.Rollouts(
    tokens=rng.integers(1, vocab, (number, R)).astype(np.int32),
    logprob=-rng.uniform(0.1, 4, (number, R)).astype(np.float32),
    sampled_logprob=np.zeros((number, R), np.float32),
    prompt=prompt,
    index=index,
    length=np.where(mask, rng.integers(1, R + 1, (P, K)), 0).astype(np.int32),
    reward=rng.random((P, K)).astype(np.float32),
    ended=mask,
    mask=mask,
  )
  return prompts, rollouts, rng.normal(size=(P, K)).astype(np.float32)


def weigh(rollouts, aggregate="rollout", mask=None):
  mask = rollouts.mask if mask is None else mask
  return losses.rollout_weights(aggregate, rollouts.length, mask, 5)


def unpack(batch):
  """The rollouts of a batch as a list of dicts of 1-D arrays, each with the prompt that it goes on
  from."""
  fields = dataclasses.asdict(batch)
  out = []
  for row in range(batch.tokens.shape[0]):
    for segment in np.unique(batch.segment[row][batch.segment[row] != batch.prompt[row]]):
      (prompt,) = np.unique(batch.prompt[row, batch.segment[row] == segment])
      where = [np.flatnonzero(batch.segment[row] == s) for s in (prompt, segment)]
      assert all((np.diff(w) == 1).all() for w in where)  # in one piece
      where = np.concatenate(where)
      assert (np.diff(where) > 0).all()  # the prompt first
      out.append({name: values[row, where] for name, values in fields.items()})
  return out


def expected(prompts, rollouts, advantage, weight, members):
  """What `unpack` must give, written down one rollout at a time."""
  out = []
  for flat, (p, k) in enumerate(zip(rollouts.prompt, rollouts.index)):
    if p < 0 or not members[p] or not rollouts.mask[p, k]:
      continue
    n, r = prompts.length[p], rollouts.length[p, k]
    whole = np.concatenate([prompts.tokens[p, :n], rollouts.tokens[flat, :r]])
    head = np.zeros(n - 1)
    fill = lambda x, head=head, r=r: np.concatenate([head, np.full(r, x)]).astype(np.float32)
    out.append(
      {
        "tokens": whole[:-1],
        "target": np.concatenate([head, rollouts.tokens[flat, :r]]).astype(int),
        "position": np.arange(n + r - 1),
        "weight": fill(weight[p, k]),
        "advantage": fill(advantage[p, k]),
        "old_logprob": np.concatenate([head, rollouts.logprob[flat, :r]]).astype(np.float32),
      }
    )
  return out


def key(rollout):
  return tuple(
    tuple(np.asarray(rollout[name]).tolist()) for name in ("tokens", "target", "old_logprob")
  )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [10, 11, 40])
@pytest.mark.parametrize("share", [True, False])
def test_unpacking_gives_every_rollout_back(seed, length, share):
  prompts, rollouts, advantage = make(seed)
  weight = weigh(rollouts)
  batch, used = packing.pack(prompts, rollouts, advantage, weight, (30, length), share=share)
  assert batch.tokens.shape == (30, length) and batch.tokens.dtype == np.int32
  found = sorted(unpack(batch), key=key)
  wanted = sorted(expected(prompts, rollouts, advantage, weight, prompts.mask), key=key)
  assert len(found) == len(wanted) == rollouts.mask.sum() > 0
  for a, b in zip(found, wanted):
    for name in b:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  for array in dataclasses.asdict(batch).values():  # nothing outside the segments
    assert not array[batch.segment == 0].any()
  filled = batch.segment.any(axis=1)
  assert filled[:used].all() and not filled[used:].any()
  places, alone = (batch.segment > 0).sum(), sum(len(rollout["tokens"]) for rollout in found)
  assert places < alone if share and length == 40 else places <= alone if share else places == alone


def test_the_negative_token_filter_by_hand():
  """Of five tokens with a negative advantage the two least likely ones are kept at .3, one of two;
  those of positive ones and of prompts stay as they are."""
  array = lambda *rows: np.array(rows, np.float32)
  batch = structs.Batch(
    tokens=None,
    target=None,
    segment=np.array([[1, 1, 2, 2, 2, 2, 2], [1, 1, 2, 2, 0, 0, 0]]),
    prompt=None,
    position=None,
    weight=array([0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]),
    advantage=array([-9, -9, -1, -1, -1, -1, -1], [-2, -2, 3, 3, -9, -9, -9]),
    old_logprob=array([0, 0, -1, -5, -2, -4, -3], [-1, -1.5, -7, -8, 0, 0, 0]),
  )
  got = packing.spared(batch, 0.3)
  want = [[-9, -9, 0, -1, 0, -1, 0], [0, -2, 3, 3, -9, -9, -9]]
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(packing.spared(batch, 1.0), batch.advantage)
  high = batch.segment + np.array([[7], [0]])  # prompts of one token take a number and no place
  np.testing.assert_array_equal(packing.spared(batch.replace(segment=high), 0.3), want)


@pytest.mark.parametrize("seed", range(3))
def test_the_filter_spares_tokens_of_every_response_with_a_negative_advantage(seed):
  prompts, rollouts, advantage = make(seed)
  weight = weigh(rollouts)
  batch, _ = packing.pack(prompts, rollouts, advantage, weight, (30, 16))
  batch = batch.replace(advantage=packing.spared(batch, 0.4))
  for rollout in unpack(batch):
    of = rollout["weight"] > 0
    kept = rollout["advantage"][of] != 0
    if (rollout["advantage"] < 0).any():
      assert kept.sum() == np.ceil(0.4 * of.sum())
      least = rollout["old_logprob"][of]
      assert least[kept].max() <= least[~kept].min(initial=0.0)
    else:
      assert kept.all()


@pytest.mark.parametrize("aggregate", losses.AGGREGATES)
def test_weights_sum_to_what_rollout_weights_says(aggregate):
  prompts, rollouts, advantage = make(1)
  weight = weigh(rollouts, aggregate)
  batch, _ = packing.pack(prompts, rollouts, advantage, weight, (30, 16))
  total = float((weight * rollouts.length).sum())
  np.testing.assert_allclose(batch.weight.sum(), total, rtol=1e-6)
  if aggregate != "constant":
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_only_response_tokens_have_weight():
  prompts, rollouts, advantage = make(2)
  batch, _ = packing.pack(prompts, rollouts, advantage, weigh(rollouts), (30, 16))
  assert (batch.weight > 0).sum() == rollouts.length[rollouts.mask].sum()
  weighted = np.sort(batch.old_logprob[batch.weight > 0])
  inside = [
    rollouts.logprob[flat, : rollouts.length[p, k]]
    for flat, (p, k) in enumerate(zip(rollouts.prompt, rollouts.index))
    if p >= 0 and rollouts.mask[p, k]
  ]  # nothing from behind the end of a response, nothing of a prompt
  np.testing.assert_array_equal(weighted, np.sort(np.concatenate(inside)))


def test_members_choose_prompts():
  prompts, rollouts, advantage = make(3)
  members = np.zeros(7, bool)
  members[[1, 4]] = True
  weight = weigh(rollouts)
  chosen = prompts.replace(mask=members)
  batch, _ = packing.pack(chosen, rollouts, advantage, weight, (8, 10))
  wanted = expected(prompts, rollouts, advantage, weight, members)
  assert sorted(map(key, unpack(batch))) == sorted(map(key, wanted)) and wanted


def test_order_depends_on_lengths_alone():
  prompts, rollouts, advantage = make(4)
  weight = weigh(rollouts)
  one, _ = packing.pack(prompts, rollouts, advantage, weight, (30, 16))
  other = dataclasses.replace(
    rollouts, tokens=rollouts.tokens[::-1], logprob=rollouts.logprob[::-1]
  )
  two, _ = packing.pack(prompts, other, -3 * advantage, 7 * weight, (30, 16))
  np.testing.assert_array_equal(one.segment, two.segment)
  np.testing.assert_array_equal(one.prompt, two.prompt)
  np.testing.assert_array_equal(one.position, two.position)
  np.testing.assert_array_equal(two.advantage, -3 * one.advantage)


def test_fit_is_tight():
  rng = np.random.default_rng(0)
  for capacity, longest in [(23, 23), (64, 23), (100, 7)]:
    size, before = rng.integers(1, longest + 1, 500), np.zeros(500, int)
    at, used = packing.place(before, size, np.arange(500), capacity)
    taken = np.zeros((used, capacity), int)
    for r, s, n in zip(at.row, at.response_start, size):
      taken[r, s : s + n] += 1
    assert taken.max() == 1 and taken.sum() == size.sum()  # no overlap, nothing outside
    assert used <= 1.1 * np.ceil(size.sum() / capacity)
  # The bound that the static capacity rests on: every row takes capacity // longest of the longest.
  for capacity, longest, number in [(23, 23, 9), (64, 23, 9), (47, 23, 1), (69, 23, 10)]:
    for _ in range(50):
      prompt = rng.integers(0, 4, number)
      before = rng.integers(0, longest // 2, 4)[prompt]
      size = rng.integers(longest // 4, longest - before + 1)
      assert packing.place(before, size, prompt, capacity)[1] <= -(-number // (capacity // longest))


def test_groups_share_a_prompt_and_fill_their_rows():
  """Four responses to each prompt in rows that hold more than a group: a prompt is repeated where a
  row ends."""
  rng = np.random.default_rng(1)
  prompt, before = np.arange(200) // 4, np.full(200, 63)
  size = rng.integers(8, 129, 200)
  at, used = packing.place(before, size, prompt, 576)
  assert used * 576 <= 1.1 * (at.first.sum() * 63 + size.sum())
  assert at.first.sum() <= 50 + used
  alone = packing.place(before, size, np.arange(200), 576)[1]
  assert used <= 0.75 * alone
  for i in np.flatnonzero(~at.first):  # behind a prompt of its own, in the same row
    same = (at.row == at.row[i]) & (at.prompt_start == at.prompt_start[i])
    assert (at.first & (prompt == prompt[i]) & same).sum() == 1


def test_too_many_and_too_long():
  prompts, rollouts, advantage = make(0)
  weight = weigh(rollouts)
  with pytest.raises(ValueError, match=r"need \d+ rows of 10, found 2"):
    packing.pack(prompts, rollouts, advantage, weight, (2, 10))
  with pytest.raises(ValueError, match=r"takes 10 places.*config.loss.row_length"):
    packing.pack(prompts, rollouts, advantage, weight, (30, 9))


@pytest.mark.parametrize("change", ["missing", "twice"])
def test_flat_rows_must_be_those_of_the_mask(change):
  prompts, rollouts, advantage = make(0)
  at = np.flatnonzero((rollouts.prompt >= 0) & rollouts.mask[rollouts.prompt, rollouts.index])
  prompt, index = rollouts.prompt.copy(), rollouts.index.copy()
  prompt[at[0]], index[at[0]] = (-1, -1) if change == "missing" else (prompt[at[1]], index[at[1]])
  broken = dataclasses.replace(rollouts, prompt=prompt, index=index)
  with pytest.raises(ValueError, match="flat rows, expected"):
    packing.pack(prompts, broken, advantage, weigh(rollouts), (30, 10))


def test_nothing_to_pack():
  prompts, rollouts, advantage = make(0, share=0.0)
  batch, used = packing.pack(prompts, rollouts, advantage, weigh(rollouts), (4, 10))
  assert used == 0 and not batch.segment.any()


def test_a_thousand_rollouts_are_packed_at_once():
  prompts, rollouts, advantage = make(0, P=256, K=4, T=16, R=8, real=256, share=1.0)
  weight = weigh(rollouts)
  times = []
  for _ in range(5):
    start = time.process_time()
    packing.pack(prompts, rollouts, advantage, weight, (512, 64))
    times.append(time.process_time() - start)
  assert min(times) < 0.05, times
