"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups without signal are replaced by
new prompts.

A group carries signal when its rewards, as the loss sees them (mapped by `rewards.low` and
`rewards.high`, and clipped), are not all equal: with a success-or-failure reward, 0 < correct < k.
The paper decides by the rewards before any shaping.
"""

import jax
import numpy as np

from v05_jax.groups import Groups
from v05_jax.structs import Draw, Prompts, Rollouts


def informative(groups: Groups) -> np.ndarray:
  """bool [P]: the group's rewards are not all equal."""
  low = np.where(groups.mask, groups.reward, np.inf).min(1)
  high = np.where(groups.mask, groups.reward, -np.inf).max(1)
  return low < high


def select(draws: list[Draw], keep: list[np.ndarray], count: int) -> Draw:
  """The first `count` kept groups of several draws, as one.

  Every draw has the same capacity P, and so has the result. `keep`: bool [P] for each draw.
  """
  left, rows = count, []
  for chosen in keep:
    rows.append(np.flatnonzero(chosen)[:left])
    left -= len(rows[-1])
  capacity, total = len(draws[0].prompts.mask), count - left

  def stack(parts, fill):
    """The chosen rows of each draw's [P, ...] array, in order, padded to the capacity."""
    found = np.concatenate([np.asarray(x)[r] for x, r in zip(parts, rows)])
    padding = np.full((capacity - total, *found.shape[1:]), fill, found.dtype)
    return np.concatenate([found, padding])

  of = lambda part, name, fill: stack([getattr(getattr(d, part), name) for d in draws], fill)
  prompts = Prompts(
    mask=np.arange(capacity) < total,
    rows=tuple(draw.prompts.rows[i] for draw, r in zip(draws, rows) for i in r),
    step=draws[0].prompts.step,
    **{name: of("prompts", name, 0) for name in ("tokens", "position", "row")},
    length=of("prompts", "length", 1),
  )
  rolls = _rollouts(draws, rows, capacity, of)
  groups = jax.tree.map(
    lambda *parts: stack(parts, 0) if np.ndim(parts[0]) else parts[0], *[d.groups for d in draws]
  )
  value = stack([d.value for d in draws], np.nan)
  importance = stack([d.importance for d in draws], 1)
  return Draw(prompts, value, {}, rolls, groups, importance)


def _rollouts(draws, rows, capacity: int, of) -> Rollouts:
  """The rollouts of the prompts at `rows` of each draw, numbered anew."""
  flat, place = [], 0
  for draw, chosen in zip(draws, rows):
    new = np.full(capacity, -1)
    new[chosen] = np.arange(place, place + len(chosen))
    place += len(chosen)
    picked = np.flatnonzero(new[draw.rolls.prompt] >= 0)
    flat.append((draw.rolls, picked, new[draw.rolls.prompt[picked]]))
  fields = ("tokens", "logprob", "sampled_logprob", "index")
  return Rollouts(
    **{
      name: np.concatenate([getattr(r, name)[picked] for r, picked, _ in flat]) for name in fields
    },
    prompt=np.concatenate([prompt for _, _, prompt in flat]).astype(np.int32),
    length=of("rolls", "length", 0),
    reward=of("rolls", "reward", np.nan),
    ended=of("rolls", "ended", False),
    mask=of("rolls", "mask", False),
    parts=None if draws[0].rolls.parts is None else of("rolls", "parts", np.nan),
  )
