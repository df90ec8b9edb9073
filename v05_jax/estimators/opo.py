"""OPO (arXiv 2505.23585): the group's mean reward, weighted by the lengths of the responses.

    b = sum(l_i x_i) / sum(l_i),  A_i = x_i - b

l is a response's length in tokens and x the shaped reward. The baseline of least gradient variance
weighs rewards by |grad log p|^2 (score.py); the paper takes that to grow with the length. A
rollout is part of its own mean, as in the authors' code (verl, `opo`). They also take
one update a batch and neither clipping, KL nor entropy bonus: `loss.minibatches=1`,
`loss.surrogate=reinforce`. There the advantage of a prompt's only rollout is its reward; here it is
compared with itself, as by the other group baselines.
"""

import jax.numpy as jnp

from v05_jax import plug
from v05_jax.estimators.base import Estimator, at_least_two
from v05_jax.estimators.score import FLOOR, mean_of_all, mean_of_others


def _lengths(groups):
  """[P, K], 0 where masked; alike where no length is known."""
  return jnp.where(groups.mask, groups.length + FLOOR, 0.0)


@plug.declare("estimator", check=at_least_two("opo"))
def opo(options, setting):
  """The length-weighted mean of the group; `unseen` is that of the others."""
  return Estimator(
    baseline=lambda state, groups, value: mean_of_all(groups.shaped, _lengths(groups))[:, None],
    unseen=lambda state, groups, value: mean_of_others(groups.reward, _lengths(groups)),
    explain=lambda state, groups, value: {"baseline": mean_of_all(groups.reward, _lengths(groups))},
    of_shaped=True,
  )
