"""The squared length of each rollout's own gradient, |grad log pi(y | x)|^2, exactly.

One forward and one backward pass a rollout: there is one gradient at a time on each device, so that
the memory is that of an update with one row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax

from v05_jax import structs
from v05_jax.models import decoder, lora
from v05_jax.scale import sharding
from v05_jax.update import objective, packing


def make(model_config, loss_config, temperature: float, mesh) -> Callable:
  """Builds `norms(params, Prompts, Rollouts) -> float64 [P, K]`, NaN where its mask is False.

  The gradient is that of the log-probability of the whole response, under the softmax at
  `temperature`, with respect to the parameters that are trained: with adapters, these alone.
  `params` lie on the mesh.
  """
  program, lanes, each = make_program(model_config, loss_config, temperature, mesh), *_rows(mesh)

  def norms(params, prompts: structs.Prompts, rolls: structs.Rollouts) -> np.ndarray:
    found = np.full(rolls.mask.shape, np.nan)
    length = prompts.tokens.shape[1] + rolls.tokens.shape[1] - 1
    wanted = np.argwhere(np.asarray(rolls.mask) & (rolls.length > 0))
    for first in range(0, len(wanted), lanes):
      part = wanted[first : first + lanes]
      rows = [row_of(prompts, rolls, place, (each, length)) for place in part]
      rows += [jax.tree.map(np.zeros_like, rows[0])] * (lanes - len(rows))
      batch = jax.tree.map(lambda *x: np.concatenate(x), *rows)
      found[tuple(part.T)] = np.asarray(program(params, batch))[: len(part)]
    return found

  return norms


def make_program(model_config, loss_config, temperature: float, mesh):
  """-> program(params, Batch of `_rows`) -> float32 [devices along `data`], one rollout each."""
  logprobs = objective.make_logprobs(model_config, loss_config, temperature, mesh)
  shapes = decoder.shapes(model_config)
  specs = lora.split(sharding.param_specs(mesh, shapes))[0]

  def norm(params, batch: structs.Batch):
    local, frozen = lora.split(sharding.vary(params))

    def total(x):
      logprob, _ = logprobs(lora.join(x, frozen), batch)
      return jnp.sum(jnp.where(batch.weight > 0, logprob, 0.0))

    gradient = jax.tree.map(jax.lax.with_sharding_constraint, jax.grad(total)(local), specs)
    return optax.tree.norm(gradient, squared=True)[None]

  split = PartitionSpec("data")
  at = sharding.param_shardings(mesh, shapes), *sharding.shardings(mesh, [_ROWS])
  plain = model_config.attention == "plain"
  mapped = sharding.mapped(mesh, norm, (PartitionSpec(), split), split, check=plain)
  return jax.jit(mapped, in_shardings=at)


_ROWS = PartitionSpec(sharding.ROWS)


def _rows(mesh) -> tuple[int, int]:
  """(rollouts at a time, rows for each of which the first holds it): a row for each device."""
  return mesh.shape["data"], mesh.shape["fsdp"]


def row_of(prompts: structs.Prompts, rolls: structs.Rollouts, place, shape) -> structs.Batch:
  """A Batch of `shape` [rows, places of a row] with one rollout, (p, k) = `place`, of weight 1 in
  its first row."""
  mask = np.zeros(rolls.mask.shape, bool)
  mask[tuple(place)] = True
  one, nothing = np.ones(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
  return packing.pack(prompts, rolls.replace(mask=mask), nothing, one, shape, share=False)[0]
