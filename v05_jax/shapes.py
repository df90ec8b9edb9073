"""The static sizes of a run's programs, from its config alone: for the step, --mode=sample and
--mode=compile."""

import math
from typing import NamedTuple

from v05_jax.budgets.base import Limits
from v05_jax.update import packing


class Shapes(NamedTuple):
  """The static sizes of a step, from the config alone."""

  prompts: int  # P: of a step, at most
  pool: int  # prompts looked at, at most
  rollouts: int  # K: of a prompt, at most
  tokens: int  # of a prompt and a response together, less one

  def batch(self, loss, mesh) -> tuple[int, int, int]:
    """(M, B, T) of an update's batch, for a `config.loss`."""
    return packing.batch_shape(loss, self.prompts, self.rollouts, self.tokens, mesh)


def shapes(config, limits: Limits) -> Shapes:
  """The sizes that a config asks for, under a budget's limits."""
  most = math.ceil(config.rollouts_per_step / (limits.mean or limits.first))
  most += -most % config.loss.minibatches
  longest = config.sampler.max_prompt + config.sampler.max_response - 1
  return Shapes(most, most * config.selection.pool, limits.most, longest)
