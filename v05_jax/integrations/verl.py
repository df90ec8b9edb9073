"""verl: an estimator of the package as its advantage estimator, and the budget as rollout numbers.

    # my_verl.py, imported where verl's trainer runs
    from v05_jax.integrations import verl
    estimator = verl.register("v05_ewa", kind="ewa")

and `algorithm.adv_estimator=v05_ewa`. verl hands over `reward_baselines` where the batch has them:
put the prior's success probability there, one for each row. Rows of a prompt share their `uid`;
they may be of different numbers, as `gen_batch.sample_level_repeat(first_rollouts(...))` makes
them. `estimator.state` is what it has learnt: save it with your checkpoint.

Checked against verl 0.9's `core_algos`.
"""

import numpy as np

from v05_jax.integrations.rows import Advantages, first_rollouts

__all__ = ["Advantages", "first_rollouts", "register"]


def register(
  name: str, kind: str = "ewa", low: float = 0.0, high: float = 1.0, first: int | None = None
) -> Advantages:
  """Registers an estimator with verl under a name -> it, whose `state` it learns.

  low, high: a row's reward, the sum of its token-level rewards, for failure and for success. first:
  rollouts of every prompt before `more` is asked, if it is. Raises ValueError as `Advantages` does,
  and where verl has another estimator of that name.
  """
  from verl.trainer.ppo.core_algos import register_adv_est

  estimator = Advantages(kind, low, high, first)
  register_adv_est(name)(as_verl_calls_it(estimator))
  return estimator


def as_verl_calls_it(estimator: Advantages):
  """The function of token-level rewards [N, T] that verl calls; it returns (advantages, returns),
  both [N, T], 0 outside of the response."""

  def compute(token_level_rewards, response_mask, index=None, reward_baselines=None, **_):
    import torch

    if index is None:
      raise ValueError("found no uid in the batch, expected one for each row: it names its prompt")
    reward = token_level_rewards.sum(-1).detach().float().cpu().numpy()
    prior = None if reward_baselines is None else reward_baselines.float().cpu().numpy()
    found = torch.from_numpy(np.array(estimator(reward, index, prior)))
    advantage = found.to(response_mask.device)[:, None] * response_mask
    return advantage, advantage

  return compute
