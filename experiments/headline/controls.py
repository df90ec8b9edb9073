"""Priors that no run could have, to see what a prior is worth: the truth, and V spoilt in known
ways."""

import zlib

import jax
import numpy as np

from v05_jax import rng
from v05_jax.budgets.base import fixed_number
from v05_jax.priors.base import Prior
from v05_jax.sampling.ledger import Order
from v05_jax.structs import Prompts

SAMPLES = 32  # rollouts that stand for the truth of a prompt whose success is not exact


def make(control: str, prior: Prior, seed: int, truth) -> Prior:
  """`prior` with V replaced as `control` says.

  ""            as it is
  "oracle"      2 mu - 1 of the present policy: `truth(prompts) -> success probability [P]`, asked
                in every step
  "flip SHARE"  the sign is turned over for that share of the prompts, always the same ones
  "shuffle"     V is permuted among the prompts of a batch, before any of them is selected
  """
  if not control:
    return prior
  kind, *share = control.split()

  def spoilt(value: np.ndarray, prompts: Prompts) -> np.ndarray:
    if kind == "oracle":
      return (2.0 * truth(prompts) - 1.0).astype(np.float32)
    if kind == "flip":
      return np.where(flipped(prompts, float(share[0]), seed), -value, value)
    count = len(prompts.rows)
    order = np.random.default_rng([seed, int(prompts.position[0])]).permutation(count)
    return np.concatenate([value[:count][order], value[count:]])

  def ask(state, prompts: Prompts):
    value, asked = prior.ask(state, prompts)
    return spoilt(value, prompts), asked

  return prior._replace(ask=ask)


def flipped(prompts: Prompts, share: float, seed: int) -> np.ndarray:
  """bool [P]: the prompts that are lied about, a function of text and seed."""
  draws = [zlib.crc32(f"{seed} {row['prompt']}".encode()) / 2**32 for row in prompts.rows]
  return np.pad(np.array(draws) < share, (0, len(prompts.mask) - len(draws)))


def make_truth(run, collect, params, seed: int):
  """Builds `truth(prompts)`: exact where the task allows it, else the mean of SAMPLES rollouts.
  `params()` are the policy's at that time."""
  order = Order(fixed_number(SAMPLES))
  key = jax.random.fold_in(rng.at(seed, 0, rng.EVAL), 1)

  def truth(prompts: Prompts) -> np.ndarray:
    found = np.zeros(len(prompts.mask))
    found[: len(prompts.rows)] = run.exact(params(), prompts.rows)
    wanted = prompts.mask & np.isnan(found)
    if wanted.any():
      rolls, _ = collect(params(), prompts.replace(mask=wanted), key, order)
      success = np.where(rolls.mask, rolls.reward, 0.0).sum(1) / np.maximum(rolls.mask.sum(1), 1)
      found = np.where(wanted, success, found)
    return np.nan_to_num(found)

  return truth
