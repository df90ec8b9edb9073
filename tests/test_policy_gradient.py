"""The update: equal on any mesh and split, equal to a plain reference, one program, safe against
NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from v05_jax import structs
from v05_jax.configs.default import get_config
from v05_jax.models import cpu, decoder, flash
from v05_jax.scale import sharding
from v05_jax.update import losses, objective, packing, policy_gradient
from v05_jax.update import optimizer as optimizers

P, K, T, R, V = 6, 4, 6, 5, 20
MODEL = decoder.ModelConfig(V, 16, 2, 4, 2, 4, 24)
TEMPERATURE = 0.9
LONG = 20  # of a row that takes several rollouts


def config(**loss):
  c = get_config()
  c.loss.update({"micro_rows": 2, "minibatches": 1, "vocab_chunk": 8, **loss})
  return c


def mesh_of(data=1, fsdp=1, tensor=1):
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  return sharding.make_mesh(sizes, jax.devices()[: data * fsdp * tensor])


@functools.cache
def parameters(seed=0):
  init = jax.jit(functools.partial(decoder.init, MODEL))
  params = jax.device_get(init(jax.random.key(seed)))
  return jax.tree.map(lambda x: 2 * x, params)  # sharper than at the start, so that losses differ


HOST = dataclasses.replace(MODEL, backend="cpu")


def built(data=1, fsdp=1, tensor=1, **loss):
  return _built((data, fsdp, tensor), tuple(loss.items()))


@functools.cache
def _built(sizes, loss):
  c, mesh = config(**dict(loss)), mesh_of(*sizes)
  return policy_gradient.make(
    MODEL, c.loss, c.optimizer, mesh, temperature=TEMPERATURE, total_updates=10
  )


def sample(seed=0, real=5, share=0.8):
  """Prompts, rollouts of ragged number and length with log-probs near the policy's, advantages."""
  rng = np.random.default_rng(seed)
  mask = rng.random((P, K)) < share
  mask[real:] = False
  # unused rows, so that the reference compiles once
  prompt, index = np.full((2, P * K), -1, np.int32)
  prompt[: mask.sum()], index[: mask.sum()] = np.nonzero(mask)
  prompts = structs.Prompts(
    tokens=rng.integers(0, V, (P, T)).astype(np.int32),
    length=rng.integers(1, T + 1, P).astype(np.int32),
    position=np.arange(P, dtype=np.int32),
    mask=np.arange(P) < real,
    row=np.arange(P, dtype=np.int32),
    rows=(),
  )
  rollouts = structs.Rollouts(
    tokens=rng.integers(0, V, (len(prompt), R)).astype(np.int32),
    logprob=np.zeros((len(prompt), R), np.float32),
    sampled_logprob=np.zeros((len(prompt), R), np.float32),
    prompt=prompt,
    index=index,
    length=np.where(mask, rng.integers(1, R + 1, (P, K)), 0).astype(np.int32),
    reward=np.zeros((P, K), np.float32),
    ended=mask,
    mask=mask,
  )
  logprob = np.array(padded_logprobs(parameters(), *padded(prompts, rollouts)[:2])[0])
  places = padded(prompts, rollouts)[2]
  near = np.take_along_axis(logprob, places, 1) + rng.normal(0, 0.25, places.shape)
  rollouts = dataclasses.replace(rollouts, logprob=near.astype(np.float32))
  return prompts, rollouts, rng.normal(size=(P, K)).astype(np.float32)


def batches(rows, c, data=1, fsdp=1, tensor=1):
  return packing.minibatches(*rows, c.loss, mesh_of(data, fsdp, tensor))


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])


def norm(tree):
  return np.linalg.norm(flat(tree))


def distance(a, b):
  a, b = flat(a), flat(b)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def mean(metrics, name):
  total, count = metrics[name]
  return float(total) / float(count)


# A plain reference: one padded row a rollout, all logits at once, no packing, no micro-batches.


def padded(prompts, rollouts):
  """-> tokens [N, T + R], length [N], place [N, R] where each response token is predicted."""
  before = prompts.length[rollouts.prompt]
  tokens = np.zeros((len(before), T + R), np.int32)
  for i, (p, k) in enumerate(zip(rollouts.prompt, rollouts.index)):
    r = rollouts.length[p, k] * (p >= 0)
    tokens[i, : before[i]] = prompts.tokens[p, : before[i]]
    tokens[i, before[i] : before[i] + r] = rollouts.tokens[i, :r]
  place = np.minimum(before[:, None] - 1 + np.arange(R), T + R - 2)
  return tokens, before + rollouts.length[rollouts.prompt, rollouts.index], place


@jax.jit
def padded_logprobs(params, tokens, length):
  """(log-probs of tokens[:, 1:], entropies), both [N, T + R - 1]."""
  index = jnp.broadcast_to(jnp.arange(T + R), tokens.shape)
  hidden = decoder.forward(MODEL, params, tokens, index, (index < length[:, None]) * 1)
  logits = decoder.logits(MODEL, params, hidden[:, :-1]) / TEMPERATURE
  every = jax.nn.log_softmax(logits)
  logprob = jnp.take_along_axis(every, tokens[:, 1:, None], -1)[..., 0]
  return logprob, -jnp.sum(jnp.exp(every) * every, -1)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def reference_loss(params, reference, tokens, length, place, old, advantage, weight, settings):
  """Sum over tokens of weight [N, R] * (PPO's loss + kl_coef * k3 - entropy_coef * entropy)."""
  clip_low, clip_high, kl_coef, entropy_coef = settings
  logprob, entropy = padded_logprobs(params, tokens, length)
  logprob = jnp.take_along_axis(logprob, place, 1)
  entropy = jnp.take_along_axis(entropy, place, 1)
  frozen = jnp.take_along_axis(padded_logprobs(reference, tokens, length)[0], place, 1)
  used = weight > 0
  ratio = jnp.exp(jnp.where(used, logprob - old, 0))
  clipped = jnp.where(advantage > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
  bound = jnp.where(advantage > 0, 1 + clip_high, 1 - clip_low)
  policy = -advantage * jnp.where(clipped, bound, ratio)
  ahead = jnp.where(used, frozen - logprob, 0)
  kl = jnp.exp(ahead) - 1 - ahead
  tokenwise = policy + kl_coef * kl - entropy_coef * entropy
  count = used.sum()
  sums = {"clip_fraction": clipped, "entropy": entropy, "kl": kl, "logprob_gap": abs(logprob - old)}
  sums = {name: jnp.where(used, x, 0).sum() / count for name, x in sums.items()}
  return jnp.sum(jnp.where(used, weight * tokenwise, 0)), sums


def hand_weights(aggregate, rollouts):
  """[N, R], from the sentence that defines each aggregation, one rollout at a time."""
  lengths = {(p, k): int(rollouts.length[p, k]) for p, k in zip(*np.nonzero(rollouts.mask))}
  prompts = {p for p, _ in lengths}
  weight = np.zeros(rollouts.tokens.shape)
  for i, (p, k) in enumerate(zip(rollouts.prompt.tolist(), rollouts.index.tolist())):
    if p < 0:
      continue
    of_prompt = sum(n for (q, _), n in lengths.items() if q == p)
    weight[i, : lengths[p, k]] = {
      "token": 1 / sum(lengths.values()),
      "rollout": 1 / len(lengths) / lengths[p, k],
      "prompt": 1 / len(prompts) / of_prompt,
      "constant": 1 / len(lengths) / R,
    }[aggregate]
  return weight.astype(np.float32)


def by_reference(rows, aggregate, settings, reference=None):
  prompts, rollouts, advantage = rows
  tokens, length, place = padded(prompts, rollouts)
  of_rollout = advantage[rollouts.prompt, rollouts.index][:, None]
  weight = hand_weights(aggregate, rollouts)
  (loss, sums), grads = reference_loss(
    parameters(),
    parameters() if reference is None else reference,
    tokens,
    length,
    place,
    rollouts.logprob,
    of_rollout,
    weight,
    settings,
  )
  return loss, grads, sums


@pytest.mark.parametrize("aggregate", losses.AGGREGATES)
def test_gradient_is_that_of_a_plain_reference(aggregate):
  rows, c = sample(), config(aggregate=aggregate)
  ((batch, used),) = batches(rows, c)
  assert 1 < used < batch.tokens.shape[0]
  loss, grads, metrics = built().loss_and_grad(parameters(), batch, used)
  expected, gradient, sums = by_reference(rows, aggregate, (0.2, 0.2, 0.0, 0.0))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert distance(grads, gradient) < 1e-5
  assert sums["clip_fraction"] > 0.1
  for name in ("clip_fraction", "entropy", "logprob_gap"):
    np.testing.assert_allclose(mean(metrics, f"loss/{name}"), sums[name], rtol=1e-5)
  assert "loss/kl" not in metrics


def test_kl_and_entropy_enter_loss_and_gradient():
  rows = sample(1)
  other = dict(kl_coef=0.3, entropy_coef=0.1, clip_high=0.4)
  c, update = config(**other), built(**other)
  ((batch, used),) = batches(rows, c)
  loss, grads, metrics = update.loss_and_grad(parameters(), batch, used, parameters(1))
  settings = (0.2, 0.4, 0.3, 0.1)
  expected, gradient, sums = by_reference(rows, "prompt", settings, parameters(1))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert distance(grads, gradient) < 1e-5
  assert sums["kl"] > 0.1
  np.testing.assert_allclose(mean(metrics, "loss/kl"), sums["kl"], rtol=1e-5)
  with pytest.raises(ValueError, match=r"kl_coef=0.3 needs reference"):
    update.loss_and_grad(parameters(), batch, used)
  with pytest.raises(ValueError, match=r"kl_coef=0.0 takes no reference"):
    built().loss_and_grad(parameters(), batch, used, parameters(1))


@pytest.mark.parametrize(
  "sizes",
  [
    (2, 2, 2),
    pytest.param((1, 1, 1), marks=pytest.mark.long),
    pytest.param((2, 1, 1), marks=pytest.mark.long),
    pytest.param((2, 1, 4), marks=pytest.mark.long),
  ],
)
def test_the_pass_for_a_cpu_has_the_same_loss_gradient_and_metrics(sizes, monkeypatch):
  """Prompts shared and chunks and blocks many, beside one prompt a rollout and the pass for
  accelerators."""
  # so that chunks without counted tokens exist
  monkeypatch.setattr(objective, "CPU_CHUNK", 4)
  monkeypatch.setattr(cpu, "QUERIES", 4)
  monkeypatch.setattr(cpu, "SCORES", 64)
  rows, c = sample(), config(row_length=LONG)
  ((batch, used),) = batches(rows, config(row_length=LONG, share_prompts=False), *sizes)
  expected = built(*sizes).loss_and_grad(parameters(), batch, used)
  host = policy_gradient.make(
    HOST, c.loss, c.optimizer, mesh_of(*sizes), temperature=TEMPERATURE, total_updates=10
  )
  ((batch, used_shared),) = batches(rows, c, *sizes)
  assert used_shared <= used and (batch.segment != batch.prompt).any()
  found = host.loss_and_grad(parameters(), batch, used_shared)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  assert distance(found[1], expected[1]) < 1e-5
  for name, pair in expected[2].items():
    np.testing.assert_allclose(found[2][name], pair, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_recomputed_logprobs_make_the_first_ratio_one_and_keep_the_gap(sizes):
  rows = sample()
  update = built(*sizes)
  given = batches(rows, config(minibatches=2), *sizes)
  again, gap = update.recompute(parameters(), given)
  totals = np.zeros(2)
  for (batch, used), (old, count) in zip(again, given, strict=True):
    assert used == count and np.abs(batch.old_logprob - old.old_logprob).max() > 0.01
    metrics = update.loss_and_grad(parameters(), batch, used)[2]
    assert mean(metrics, "loss/logprob_gap") < 1e-6 and mean(metrics, "loss/clip_fraction") == 0
    totals += np.array(update.loss_and_grad(parameters(), old, used)[2]["loss/logprob_gap"])
    outside = old.weight == 0
    np.testing.assert_array_equal(np.asarray(batch.old_logprob)[outside], old.old_logprob[outside])
  np.testing.assert_allclose(gap, totals, rtol=1e-5)
  assert gap[0] / gap[1] > 0.1


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_mesh_packing_and_micro_batches_leave_loss_gradient_and_norm(sizes):
  """Before clipping and Adam, which hide a factor: a gradient summed twice is 8 times too large."""
  rows = sample()
  ((batch, used),) = batches(rows, config())
  loss, grads, metrics = built().loss_and_grad(parameters(), batch, used)
  ((split, split_used),) = batches(rows, config(row_length=LONG), *sizes)
  assert split.tokens.shape[1:] == (2 * sizes[0] * sizes[1], LONG) and split_used < used
  many = built(*sizes).loss_and_grad(parameters(), split, split_used)
  np.testing.assert_allclose(many[0], loss, rtol=1e-5)
  np.testing.assert_allclose(norm(many[1]), norm(grads), rtol=1e-5)
  assert distance(many[1], grads) < 1e-5
  for name, (total, count) in metrics.items():
    np.testing.assert_allclose(many[2][name], (total, count), rtol=1e-5, err_msg=name)
  where = jax.tree.map(lambda x: x.sharding, many[1])
  assert where == sharding.param_shardings(mesh_of(*sizes), parameters())


def test_minibatches_split_the_prompts_and_weigh_each_part_alone():
  rows = sample(3)
  c = config(minibatches=2)
  parts = batches(rows, c)
  assert len(parts) == 2
  for batch, _ in parts:  # five prompts: three and two; each part's weights sum to one
    np.testing.assert_allclose(batch.weight.sum(), 1, rtol=1e-6)
    assert batch.tokens.shape == parts[0][0].tokens.shape == (6, 2, T + R - 1)
  tokens = rows[1].length[rows[1].mask.nonzero()].sum()
  assert sum((batch.weight > 0).sum() for batch, _ in parts) == tokens
  first = rows[1].mask & (np.arange(P) < 3)[:, None]
  assert (parts[0][0].weight > 0).sum() == rows[1].length[first].sum()

  importance = np.array([0.0, 0.5, 3.0] + [1.0] * (P - 3), np.float32)
  weighed = packing.minibatches(*rows, c.loss, mesh_of(), importance=importance)
  each = losses.rollout_weights(c.loss.aggregate, rows[1].length, first, R) * rows[1].length
  np.testing.assert_allclose(
    weighed[0][0].weight.sum(), np.sum(each * importance[:, None]), rtol=1e-5
  )
  np.testing.assert_array_equal(weighed[1][0].weight, parts[1][0].weight)
  np.testing.assert_array_equal(weighed[0][0].advantage, parts[0][0].advantage)

  one = rows[0].replace(mask=np.arange(P) == 1)
  only = packing.minibatches(one, *rows[1:], c.loss, mesh_of())
  assert len(only) == 1  # the part without prompts is left out
  with pytest.raises(ValueError, match="row_length=9: expected at least 10"):
    batches(rows, config(row_length=9))


def test_step_compiles_once_and_is_the_optimiser_on_the_gradient():
  c, update = config(row_length=LONG), built(8)
  params, rows = parameters(), [sample(s, share=x) for s, x in enumerate((1.0, 0.4, 0.8))]
  given = jax.tree.map(np.copy, params)
  current, state = params, update.init(params)
  optimizer = optimizers.make(c.optimizer, 10)

  @jax.jit
  def optimise(grads, state, params):
    change, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, change), state

  for i, row in enumerate(rows):
    ((batch, used),) = batches(row, c, 8)
    before = jax.device_get(current)
    before_state = jax.device_get(state)
    _, grads, _ = update.loss_and_grad(before, batch, used)
    if i == 2:  # as after a restart
      current, state = before, before_state
    current, state, metrics = update.step(current, state, batch, used)
    expected = optimise(jax.device_get(grads), before_state, before)
    assert distance(current, expected[0]) < 1e-6
    assert distance(state, expected[1]) < 1e-5
    np.testing.assert_allclose(mean(metrics, "grad/norm"), norm(grads), rtol=1e-5)
    assert mean(metrics, "grad/skipped") == 0
  assert update.program._cache_size() == 1
  jax.tree.map(np.testing.assert_array_equal, params, given)  # a host array is never donated
  with pytest.raises(ValueError, match="used=0"):
    update.step(current, state, batch, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing(value):
  c, update = config(row_length=LONG), built(8)
  prompts, rollouts, advantage = sample()
  ((good, used),) = batches((prompts, rollouts, advantage), c, 8)
  params, state, _ = update.step(parameters(), update.init(parameters()), good, used)
  before = jax.device_get((params, state))
  advantage[0, np.flatnonzero(rollouts.mask[0])[0]] = value
  ((batch, used),) = batches((prompts, rollouts, advantage), c, 8)
  params, state, metrics = update.step(params, state, batch, used)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get((params, state)), before)
  assert mean(metrics, "grad/skipped") == 1
  for name, (total, count) in metrics.items():
    assert name == "grad/skipped" or (total == 0 and count == 0), name
  params, state, metrics = update.step(params, state, good, used)  # and the next one is fine
  assert mean(metrics, "grad/skipped") == 0 and distance(params, before[0]) > 0


def test_a_frozen_copy_survives_donation():
  update = built(8)
  params = update.place(parameters())
  frozen, state = update.freeze(params), update.init(params)
  ((batch, used),) = batches(sample(), config(row_length=LONG), 8)
  update.step(params, state, batch, used)
  assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), parameters())


def first_update(c, grads, params):
  optimizer = optimizers.make(c, 10)
  return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def test_clipping_and_decay():
  c = config().optimizer
  c.update({"clip_norm": 0.5, "learning_rate": 0.1, "weight_decay": 0.1, "eps": 1.0})
  params = parameters()
  grads = jax.tree.map(lambda x: np.full_like(x, 3.0), params)
  clipped = jax.tree.map(lambda x: x * 0.5 / norm(grads), grads)
  updates = first_update(c, grads, params)
  g = clipped["norm"]["scale"]  # the first step of Adam is g / (|g| + eps); norms do not decay
  np.testing.assert_allclose(updates["norm"]["scale"], -0.1 * g / (g + 1), rtol=1e-5)
  scale = updates["layers"]["q_norm"]["scale"]
  np.testing.assert_allclose(scale, np.full_like(scale, updates["norm"]["scale"][0]), rtol=1e-6)
  for path in (("embedding",), ("layers", "q", "kernel")):
    update, x = (functools.reduce(lambda tree, k: tree[k], path, t) for t in (updates, params))
    np.testing.assert_allclose(update, -0.1 * (g[0] / (g[0] + 1) + 0.1 * x), rtol=1e-4, atol=1e-7)
  c.clip_norm = 0.0
  updates = first_update(c, grads, params)
  np.testing.assert_allclose(updates["norm"]["scale"], -0.1 * 3 / 4, rtol=1e-5)


@pytest.mark.parametrize(
  ("schedule", "last"), [("constant", 0.5), ("linear", 0.5 * 1 / 8), ("cosine", 0.5 * 0.0380602)]
)
def test_schedules(schedule, last):
  c = config().optimizer
  c.update({"schedule": schedule, "warmup_steps": 2, "learning_rate": 0.5, "clip_norm": 0.0})
  optimizer = optimizers.make(c, total_updates=10)
  params = {"kernel": np.zeros(1, np.float32)}
  state, rates = optimizer.init(params), []
  for _ in range(10):
    updates, state = optimizer.update({"kernel": np.ones(1, np.float32)}, state, params)
    rates.append(-float(updates["kernel"][0]))
  np.testing.assert_allclose(rates[:3], [0.5 / 3, 1 / 3, 0.5], rtol=1e-5)
  np.testing.assert_allclose(rates[-1], last, rtol=1e-4)
  c.schedule = "triangle"
  with pytest.raises(ValueError, match=r"config.optimizer.schedule: found 'triangle'"):
    optimizers.make(c, 10)


def test_an_attention_kernel_is_split_over_the_mesh(monkeypatch):
  """Splash attention, interpreted: every device has its rows and its heads."""
  monkeypatch.setattr(flash, "attend", functools.partial(flash.attend, interpret=True))
  model = dataclasses.replace(MODEL, head_dim=128, num_layers=1)
  params = jax.device_get(jax.jit(functools.partial(decoder.init, model))(jax.random.key(0)))
  rows, c = sample(), config(share_prompts=False, row_length=LONG)

  def gradient(model, *sizes):
    update = policy_gradient.make(
      model, c.loss, c.optimizer, mesh_of(*sizes), temperature=TEMPERATURE, total_updates=10
    )
    return update.loss_and_grad(params, *batches(rows, c, *sizes)[0])[:2]

  found = gradient(dataclasses.replace(model, attention="splash"), 2, 1, 2)
  assert distance(found, gradient(model)) < 1e-5
