"""A program of a run as --mode=compile sees it, and what else lives on a device beside it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

# What a run keeps on its devices, and for how long.
PARTS = {
  "params": "always",
  "optimizer": "always",
  "reference": "always, with loss.kl_coef and without adapters",
  "prior": "always",
  "weights": "while sampling: the parameters as decode wants them",
  "store": "while sampling: the cache of the open prompts",
  "cache": "while sampling: the cache of the slots",
}
ALWAYS = ("params", "optimizer", "reference", "prior")


class Program(NamedTuple):
  """One program of a run."""

  name: str
  lower: Callable[[], Any]  # -> jax.stages.Lowered
  beside: tuple[str, ...]  # PARTS that live at the same time and are neither arguments nor results
  trips: int  # of a loop whose number only the run knows
  work: str  # what one call does
  knobs: str  # keys that lower its memory


OF_PRIOR = tuple(part for part in ALWAYS if part != "prior")  # beside a program of the prior's


def others(*names: str) -> tuple[str, ...]:
  """All `PARTS` but those."""
  return tuple(part for part in PARTS if part not in names)


def held(tree) -> int:
  """Bytes of a tree of shapes with shardings on one device."""
  local = lambda x: np.prod(
    x.sharding.shard_shape(x.shape) if x.sharding else x.shape, dtype=np.int64
  )
  return int(sum(local(x) * x.dtype.itemsize for x in jax.tree.leaves(tree)))
