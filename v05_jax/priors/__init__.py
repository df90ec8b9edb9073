"""The value prior: what success to expect of a prompt before anything is sampled, from
`config.prior`."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from v05_jax.models import transformer
from v05_jax.priors import prior as priors
from v05_jax.scale import distributed, sharding
from v05_jax.value_model.v0 import ValuePrior, load

__all__ = (
  "KINDS",
  "Prior",
  "ValuePrior",
  "embed_prompts",
  "load",
  "make",
  "make_features",
  "make_v0",
)

KINDS = ("none", "constant", "neighbours", "v0")
# prompts embedded at once by V0, always as many: a resumed run computes what the unbroken one did
ROWS = 16
ROWS_SPLIT = PartitionSpec(sharding.ROWS)
TOKENS_PER_CALL = 8192  # of prompts embedded at once on a device: bounds the memory of attention


class Prior(NamedTuple):
  """A prior in two steps, so that a prompt's features are computed once and remembered with its
  outcome."""

  width: int  # F
  features: Callable  # Prompts -> float32 [P, F] on host; frozen for the whole run
  predict: Callable  # (Context, features [P, F]) -> V [P] in [-1, 1]; NaN = it does not speak
  # whether V is a smoothed success rate, for want of a better context
  smoothed: Callable = lambda context: False


def make(config, policy, mesh, max_prompt: int) -> Prior:
  """The prior that `config.prior` names.

    none        V is NaN: the group mean serves
    constant    the mean success of the context
    neighbours  kernel regression over the context, on features of the frozen first policy
    v0          the generalist value model in the directory `path`, of `value_prior.convert` or
                `--mode=value`

  Args:
    config: a `config.prior`.
    policy: the first `models.Policy`; its parameters are copied to the mesh and never change.
    mesh: where the features are computed.
    max_prompt: tokens, the width of `Prompts.tokens`.

  Raises ValueError for an unknown kind, a bandwidth not above 0, or a min_support that the context
  cannot hold.
  """
  if config.kind not in KINDS:
    raise ValueError(f"prior.kind: found {config.kind!r}, expected one of {', '.join(KINDS)}")
  if not 1 <= config.min_support <= config.context:
    raise ValueError(
      f"prior.min_support: found {config.min_support}, expected 1 to prior.context = "
      f"{config.context}"
    )
  if config.kind == "none":
    return Prior(
      1, _no_features, lambda context, features: np.full(len(features), np.nan, np.float32)
    )
  if config.kind == "constant":
    return Prior(
      1, _no_features, functools.partial(priors.constant, min_support=config.min_support)
    )
  if config.kind == "v0":
    return make_v0(load(config.path, mesh), config.min_support)
  if not config.bandwidth > 0:
    raise ValueError(f"prior.bandwidth: found {config.bandwidth}, expected a number above 0")
  predict = functools.partial(
    priors.neighbours, bandwidth=config.bandwidth, min_support=config.min_support
  )
  features = make_features(policy.config, policy.params, mesh, max_prompt)
  return Prior(2 * policy.config.hidden_size, features, predict)


def make_v0(model: ValuePrior, min_support: int) -> Prior:
  """The prior of a V0: a prompt's features are computed once, and kept on host by its row of the
  dataset.

  Its fingerprint column is noise by design; here it goes by the place in the context and in the
  batch, so that no rounding error of a feature can turn it over.
  """
  known: dict[int, np.ndarray] = {}

  def features(prompts) -> np.ndarray:
    new = {
      int(i): row["prompt"] for i, row in zip(prompts.row, prompts.rows) if int(i) not in known
    }
    known.update(zip(new, model.features(list(new.values()), ROWS)))
    found = np.zeros((len(prompts.length), model.width), np.float32)
    for place, i in enumerate(prompts.row[: len(prompts.rows)]):
      found[place] = known[int(i)]
    return found

  def predict(context, queries) -> np.ndarray:
    count = min(int(context.count), len(context.success))
    if count < min_support:
      return np.full(len(queries), np.nan, np.float32)
    support, success = np.asarray(context.features)[:count], np.asarray(context.success)[:count]
    marks = model.marks(*([str(i) for i in range(n)] for n in (count, len(queries))))
    capacity = len(context.success)
    return (
      2.0 * model.predict_from_features(support, success, np.asarray(queries), marks, capacity)
      - 1.0
    )

  def smoothed(context) -> bool:
    count = min(int(context.count), len(context.success))
    success = np.asarray(context.success)[:count]
    return count >= min_support and priors.smoothed(success, success >= 0.5) is not None

  return Prior(model.width, features, predict, smoothed)


def _no_features(prompts):
  return np.zeros((len(prompts.length), 1), np.float32)


def make_features(config, params, mesh, max_prompt: int) -> Callable:
  """Builds `features(prompts) -> float32 [P, 2 D]`: the last hidden state of the prompt and their
  mean.

  The prompts go through in blocks of a fixed number of rows, one compiled shape for a given P.
  """

  params = cast(config, params)
  # A copy, for placing may alias what a training step overwrites.
  own = lambda x, where: jnp.copy(distributed.put(x, where))
  params = jax.tree.map(own, params, sharding.param_shardings(mesh, params))
  rows, embed = NamedSharding(mesh, ROWS_SPLIT), make_embed(config, mesh)
  devices, most = sharding.lanes(mesh), most_rows(mesh, max_prompt)

  def features(prompts) -> np.ndarray:
    count = len(prompts.length)
    block = min(most, count + -count % devices)
    padding = -count % block
    tokens = np.pad(prompts.tokens, ((0, padding), (0, 0)))
    length = np.pad(prompts.length, (0, padding), constant_values=1)
    parts = [
      embed(params, *distributed.put((tokens[i : i + block], length[i : i + block]), rows))
      for i in range(0, count, block)
    ]
    return np.concatenate([np.asarray(x) for x in parts])[:count]

  return features


def cast(config, params):
  """Matrices in the compute dtype, to which the model casts them anyway: half the memory in
  bfloat16."""
  keep = lambda path, x: x if path[-1].key == "scale" else x.astype(jnp.dtype(config.dtype))
  return jax.tree_util.tree_map_with_path(keep, params)


def most_rows(mesh, max_prompt: int) -> int:
  """Prompts that go through `make_embed`'s program at once, at most."""
  return sharding.lanes(mesh) * max(TOKENS_PER_CALL // max_prompt, 1)


def make_embed(config, mesh):
  """`embed_prompts` as a program on a mesh."""
  return jax.jit(functools.partial(embed_prompts, config), out_shardings=sharding.replicated(mesh))


def embed_prompts(config, params, tokens, length):
  """tokens int32 [N, T], length int32 [N] -> float32 [N, 2 D]: (last hidden state, mean hidden
  state)."""
  index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  inside = index < length[:, None]
  hidden = transformer.forward(config, params, tokens, index, inside.astype(jnp.int32))
  hidden = jnp.where(inside[..., None], hidden.astype(jnp.float32), 0.0)
  last = jnp.sum(jnp.where((index == length[:, None] - 1)[..., None], hidden, 0.0), axis=1)
  return jnp.concatenate([last, jnp.sum(hidden, axis=1) / length[:, None]], axis=-1)
