"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups without signal are replaced by
new prompts.

A group carries signal when its verifier rewards are not all equal: with a success-or-failure
reward, 0 < correct < k, judged before any shaping.
"""

import numpy as np

from v05_jax.structs import Prompts, Rollouts


def informative(rolls: Rollouts) -> np.ndarray:
  """bool [P]: the group's valid rewards are not all equal."""
  low = np.where(rolls.mask, rolls.reward, np.inf).min(1)
  high = np.where(rolls.mask, rolls.reward, -np.inf).max(1)
  return low < high


def select(draws: list[tuple[Prompts, Rollouts, np.ndarray]], keep: list[np.ndarray], count: int):
  """The first `count` kept groups of several draws of (Prompts, Rollouts, value [P]), as one such
  triple.

  Every draw has the same capacity P, and so has the result. `keep`: bool [P] for each draw.
  """
  left, rows = count, []
  for chosen in keep:
    rows.append(np.flatnonzero(chosen)[:left])
    left -= len(rows[-1])
  capacity = len(draws[0][0].mask)
  total = count - left

  def stack(get, fill):
    """Rows of a [P, ...] field, in order, padded to the capacity."""
    parts = np.concatenate([np.asarray(get(*draw))[r] for draw, r in zip(draws, rows)])
    padding = np.full((capacity - total, *parts.shape[1:]), fill, parts.dtype)
    return np.concatenate([parts, padding])

  prompts = Prompts(
    tokens=stack(lambda p, r, v: p.tokens, 0),
    length=stack(lambda p, r, v: p.length, 1),
    position=stack(lambda p, r, v: p.position, 0),
    mask=np.arange(capacity) < total,
    row=stack(lambda p, r, v: p.row, 0),
    rows=tuple(p.rows[i] for (p, _, _), r in zip(draws, rows) for i in r),
  )
  flat, place = [], 0
  for (_, rolls, _), chosen in zip(draws, rows):
    new = np.full(capacity, -1)
    new[chosen] = np.arange(place, place + len(chosen))
    place += len(chosen)
    picked = np.flatnonzero(new[rolls.prompt] >= 0)
    flat.append((rolls, picked, new[rolls.prompt[picked]]))
  fields = ("tokens", "logprob", "sampled_logprob", "index")
  rollouts = Rollouts(
    **{
      name: np.concatenate([getattr(r, name)[picked] for r, picked, _ in flat]) for name in fields
    },
    prompt=np.concatenate([prompt for _, _, prompt in flat]).astype(np.int32),
    length=stack(lambda p, r, v: r.length, 0),
    reward=stack(lambda p, r, v: r.reward, np.nan),
    ended=stack(lambda p, r, v: r.ended, False),
    mask=stack(lambda p, r, v: r.mask, False),
  )
  return prompts, rollouts, stack(lambda p, r, v: v, np.nan)
