"""The loss of a V0's training as a function of the parameters that learn."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.scale import sharding
from v05_jax.value_model import adapter, directory, ensemble, losses, synthetic, tabpfn, v0
from v05_jax.value_model.cells import group_size
from v05_jax.value_model.ensemble import Ensemble, Query, Support

# Up to so many bytes, the hidden states of all prompts are computed once and kept on the device.
TABLE_BYTES = 2**31
PROMPTS_PER_BLOCK = 64  # that go through the backbone at once


def make_lookup(model: v0.ValuePrior, texts, mesh) -> dict[str, Any]:
  """What `features` takes: tokens [N, L] and mask [N, L] of all texts, and either the hidden states
  of all, [N, L, D], or the backbone's parameters."""
  encoded = model.encode(texts)
  longest = max(map(len, encoded))
  tokens, mask = np.zeros((2, len(encoded), longest), np.int32)
  for row, ids in enumerate(encoded):
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
  where = sharding.replicated(mesh)
  params = jax.device_put(model.params, sharding.param_shardings(mesh, model.params))
  table = None
  if 4 * tokens.size * model.config.hidden_size <= TABLE_BYTES:
    size = len(tokens) + -len(tokens) % PROMPTS_PER_BLOCK
    padded = (v0.pad(x, size).reshape(-1, PROMPTS_PER_BLOCK, longest) for x in (tokens, mask))
    forward = jax.jit(functools.partial(v0.hidden, model.config))
    table = np.concatenate([np.asarray(forward(params, *part)) for part in zip(*padded)])[
      : len(tokens)
    ]
  put = lambda x: None if x is None else jax.device_put(x, where)
  params = params if table is None else None
  return {"tokens": put(tokens), "mask": put(mask), "table": put(table), "params": params}


def features(model: v0.ValuePrior, params, lookup, prompt, dropout_key=None):
  """Features [R, F] of the texts `prompt` [R] by the adapter `params`.

  Where the lookup has no table of hidden states, the texts go through the backbone in blocks of
  PROMPTS_PER_BLOCK, whose hidden states the backward pass computes once more: those of one block
  exist at a time.
  """
  options = model.settings["adapter"]

  def block(prompt, number):
    mask = lookup["mask"][prompt]
    if lookup["table"] is not None:
      states = lookup["table"][prompt]
    else:
      states = jax.lax.stop_gradient(
        v0.hidden(model.config, lookup["params"], lookup["tokens"][prompt], mask)
      )
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
    return adapter.features(params, states, mask, options["heads"], key, options["pooling"])

  if lookup["table"] is not None:
    return block(prompt, 0)
  parts = jnp.pad(prompt, (0, -len(prompt) % PROMPTS_PER_BLOCK)).reshape(-1, PROMPTS_PER_BLOCK)
  found = jax.lax.map(lambda part: jax.checkpoint(block)(*part), (parts, jnp.arange(len(parts))))
  return found.reshape(-1, found.shape[-1])[: len(prompt)]


def logits(head, settings, x, labels, masks, key):
  """Logits [m, 2] of features x [n + m, F], whose first n rows are the support with `labels` [n],
  with new random fingerprints; masks (support [n], query [m]), None = all rows are real."""
  n, estimators = len(labels), settings["estimators"]
  columns = x.shape[1] + 1
  groups = -(-columns // group_size(head))
  table = directory.column_table(settings, groups)
  marks = jax.random.uniform(key, (estimators, len(x)))
  permutations = ensemble.randomness(estimators, columns)[1]
  support, asked = Support(x[:n], labels, masks[0]), Query(x[n:], masks[1])
  differing = Ensemble(table, marks[:, :n], marks[:, n:], permutations)
  return tabpfn.predict(head, support, asked, differing, settings["temperature"])[0]


def pairs_loss(model: v0.ValuePrior, options) -> Callable:
  """Builds `loss(params, lookup, Batch, key) -> (mean over the tasks, {name: []})`."""
  settings = model.settings

  def one(head, x, batch, key):
    n = len(batch.support)
    z = logits(head, settings, x, batch.score[:n], (batch.support, batch.query), key)
    target = batch.score[n:]
    weight = batch.query * 1.0
    if options.natural:
      weight = losses.natural_weights(target >= 0.5, batch.share, batch.query)
    return losses.total(z, target, weight, batch.query, options.pair_weight)

  def loss(params, lookup, batch, key):
    size, rows = batch.prompt.shape
    dropout, marks = jax.random.split(key)
    dropout = dropout if options.dropout else None
    x = features(model, params["adapter"], lookup, batch.prompt.reshape(-1), dropout)
    each = jax.vmap(functools.partial(one, params["head"]))
    found = each(x.reshape(size, rows, -1), batch, jax.random.split(marks, size))
    return jax.tree.map(jnp.mean, found)

  return loss


def synthetic_loss(model: v0.ValuePrior, options) -> Callable:
  """The same for tasks of `synthetic.draw`, whose true probabilities are the targets: soft
  cross-entropy alone."""

  def one(head, key):
    task, marks = jax.random.split(key)
    n, m = options.support, 2 * options.pairs
    x, success, probability = synthetic.draw(task, n + m, model.width)
    z, true = logits(head, model.settings, x, success[:n], (None, None), marks), probability[n:]
    best = jnp.log(jnp.stack([1.0 - true, true], 1).clip(1e-6))
    return tuple(losses.soft_cross_entropy(z, true, jnp.ones(m)) for z in (z, best))

  def loss(params, lookup, keys, key):
    soft, best = jax.vmap(functools.partial(one, params["head"]))(keys)
    return jnp.mean(soft), {"soft": jnp.mean(soft), "excess": jnp.mean(soft - best)}

  return loss
