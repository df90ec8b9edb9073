"""Ids that no token has: never sampled, without probability in the update, and seen in a text."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers import models as backends
import transformers

from tests import support
from v05_jax import models, rng
from v05_jax.budgets.base import fixed_number
from v05_jax.configs import default
from v05_jax.models import decoder
from v05_jax.models import tokenizer as tokenizers
from v05_jax.sampling import rollouts
from v05_jax.sampling.ledger import Order
from v05_jax.scale import sharding
from v05_jax.update import losses, packing, policy_gradient

UNUSED = ((12, 40), (42, 64))  # 50 ids, some of them between others that tokens have
MODEL = dataclasses.replace(support.MODEL, vocab_size=64, unused_ids=UNUSED)
TEMPERATURE = 0.7


@functools.partial(jax.jit, static_argnums=0)
def all_logits(config, params, tokens):
  """Logits [N, T, V] of every id, those without a token too."""
  index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  hidden = decoder.forward(config, params, tokens, index, jnp.ones_like(tokens))
  return decoder.logits(dataclasses.replace(config, unused_ids=()), params, hidden)


@pytest.mark.parametrize(
  "backend, tied, mesh, top_k",
  [
    pytest.param("accelerator", True, (2, 1, 2), 0, marks=pytest.mark.long),
    ("cpu", False, (1, 1, 1), 1),  # the most probable token alone
    pytest.param("accelerator", False, (1, 1, 1), 0, marks=pytest.mark.long),
    pytest.param("cpu", True, (2, 2, 1), 0, marks=pytest.mark.long),
  ],
)
def test_sampler_and_update_leave_them_out_alike(backend, tied, mesh, top_k):
  config = dataclasses.replace(MODEL, backend=backend, tie_embeddings=tied, num_layers=1)
  c = support.config(temperature=TEMPERATURE, top_k=top_k, slot_sizes=1, column_sizes=1)
  c.loss.update({"minibatches": 1, "micro_rows": 4})
  devices = jax.devices()[: int(np.prod(mesh))]
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)), devices)
  params = jax.device_get(decoder.init(config, jax.random.key(0)))
  policy = models.Policy(config, None, support.Tokenizer(), (support.EOS,))
  collect = rollouts.make(policy, c, mesh, support.Verifier())
  update = policy_gradient.make(
    config, c.loss, c.optimizer, mesh, temperature=TEMPERATURE, total_updates=1
  )
  prompts = support.prompts(8)
  rolls, _ = collect(update.place(params), prompts, rng.at(0, 0), Order(fixed_number(4)))

  usable = decoder.usable(config)
  assert usable.sum() == 14
  length = rolls.length[rolls.prompt, rolls.index]
  inside = np.arange(rolls.tokens.shape[1]) < length[:, None]
  assert usable[rolls.tokens[inside]].all() and (rolls.tokens[inside] >= 40).any()
  # The reference: a softmax over the logits of the ids that are left.
  text = np.zeros((len(length), 22), np.int32)
  for row, p in enumerate(rolls.prompt):
    n = prompts.length[p]
    text[row, :n], text[row, n : n + 12] = prompts.tokens[p, :n], rolls.tokens[row]
  logits = np.where(usable, np.asarray(all_logits(config, params, text)) / TEMPERATURE, -np.inf)
  place = prompts.length[rolls.prompt][:, None] - 1 + np.arange(12)
  logits = np.take_along_axis(logits, np.minimum(place, 21)[..., None], 1)
  expected = np.take_along_axis(jax.nn.log_softmax(logits), rolls.tokens[..., None], -1)[..., 0]
  np.testing.assert_allclose(rolls.logprob[inside], expected[inside], atol=2e-5)
  if top_k:
    np.testing.assert_array_equal(rolls.tokens[inside], logits.argmax(-1)[inside])

  advantage = np.random.default_rng(0).normal(size=rolls.mask.shape).astype(np.float32)
  ((batch, used),) = packing.minibatches(prompts, rolls, advantage, c.loss, mesh)
  _, gradient, metrics = update.loss_and_grad(params, batch, used)
  gap, entropy = (float(np.divide(*metrics[f"loss/{x}"])) for x in ("logprob_gap", "entropy"))
  assert gap < 1e-5 and 0 < entropy <= np.log(14)
  gradient = jax.device_get(gradient)["embedding" if tied else "head"]
  assert not gradient[~usable].any() and np.abs(gradient[usable]).max(1).all()


def test_the_update_and_the_exact_success_give_them_no_probability():
  draw = np.random.default_rng(0).normal
  hidden, head = draw(size=(1, 5, 8)).astype(np.float32), draw(size=(64, 8)).astype(np.float32)
  usable, targets = decoder.usable(MODEL), np.array([[0, 3, 41, 40, 11]])
  for chunk in (2, 8):
    found, entropy = losses.token_logprobs(hidden, head, targets, 1.0, chunk, usable=usable)
    logprob = jax.nn.log_softmax(hidden @ head[usable].T)
    places = np.flatnonzero(usable).searchsorted(targets)
    expected = np.take_along_axis(logprob, places[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(logprob) * logprob).sum(-1), atol=1e-5)
  every = np.ones((1, 5), bool)
  again = losses.counted_logprobs(hidden, head, targets, 1.0, 2, every, usable)  # on a CPU
  np.testing.assert_allclose(again, (found, entropy), atol=1e-5)


def test_a_vocabulary_without_them_has_no_mask():
  assert decoder.usable(support.MODEL) is None
  policy = models.load(default.get_config().policy)
  assert policy.config.unused_ids == ()


def test_they_are_found_when_a_policy_is_loaded(tmp_path):
  shutil.copytree("tests/data/qwen3/tied", tmp_path, dirs_exist_ok=True)
  support.character_tokenizer("0123456789", 40).save_pretrained(tmp_path)
  keys = default.get_config().policy
  keys.path = str(tmp_path)
  assert models.load(keys).config.unused_ids == ((40, 64),)


def test_holes_between_the_ids_of_tokens():
  vocabulary = {"<eos>": 1, "a": 2, "b": 7, "c": 4}
  backend = Tokenizer(backends.WordLevel(vocabulary))
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
  assert tokenizers.unused_ids(tokenizer, 10) == ((0, 1), (3, 4), (5, 7), (8, 10))
  assert tokenizers.unused_ids(tokenizer, 8) == ((0, 1), (3, 4), (5, 7))


def test_they_are_seen_in_a_text():
  tokenizer = support.character_tokenizer("0123456789", 16)
  assert tokenizers.decode_response(tokenizer, [4, 40, 41, 5, 1, 6]) == "2<id 40><id 41>3"
