"""verl's registry with an estimator of ours, in an environment that has torch: by verl's own code
where that is installed, else by a stub of what it publishes.

python -P tests/verl_run.py
"""

import importlib.util
import sys
import types

import numpy as np

from v05_jax import shrinkage
from v05_jax.integrations import verl


def rows(seed=0, sizes=(4, 4, 4, 4)):
  """(reward, index, prior) of shuffled rows, and the same as [P, K] with a mask."""
  rng = np.random.default_rng(seed)
  index = rng.permutation(np.repeat([f"uid-{i}" for i in range(len(sizes))], sizes))
  reward = rng.integers(0, 2, len(index)).astype(np.float32)
  of_prompt = dict(zip(np.unique(index), rng.random(len(sizes)).astype(np.float32)))
  prior = np.array([of_prompt[x] for x in index])
  names = list(dict.fromkeys(index.tolist()))
  dense = np.full((len(sizes), max(sizes)), np.nan, np.float32)
  place = []
  for i, name in enumerate(names):
    at = np.flatnonzero(index == name)
    dense[i, : len(at)] = reward[at]
    place += [(i, j, row) for j, row in enumerate(at)]
  return (reward, index, prior), dense, np.array([of_prompt[x] for x in names]), place


def verl_call(function, given, torch):
  """As verl's ray_trainer.compute_advantage calls a registered estimator."""
  reward, index, prior = given
  mask = torch.tensor([[1, 1, 1, 0]] * len(reward))
  scores = torch.zeros(len(reward), 4)
  scores[:, 2] = torch.from_numpy(reward)
  return mask, function(
    token_level_rewards=scores,
    response_mask=mask,
    config=None,
    index=np.array(index, object),
    reward_baselines=torch.from_numpy(prior),
  )


def core_algos():
  """verl's module, or where verl is not installed a stub of its published registry."""
  if importlib.util.find_spec("verl"):
    from verl.trainer.ppo import core_algos

    return core_algos
  known = {}

  def register_adv_est(name):
    def decorator(function):
      if name in known and known[name] != function:
        raise ValueError(f"Adv estimator {name} has already been registered")
      known[name] = function
      return function

    return decorator

  stub = types.ModuleType("verl.trainer.ppo.core_algos")
  stub.register_adv_est, stub.get_adv_estimator_fn = register_adv_est, known.__getitem__
  for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
    sys.modules[name] = types.ModuleType(name)
  sys.modules[stub.__name__] = stub
  return stub


def main():
  import torch

  algorithms = core_algos()
  verl.register("v05_test", kind="v05")
  given, dense, prior, place = rows(sizes=(4, 2, 4, 3))
  function = algorithms.get_adv_estimator_fn("v05_test")
  mask, (advantage, returns) = verl_call(function, given, torch)
  value, every = 2 * prior - 1, np.isfinite(dense)
  expected = np.asarray(shrinkage.advantage("v05", 2 * dense - 1, every, value)[0])
  assert advantage.shape == mask.shape == (13, 4) and advantage is returns
  for i, j, row in place:
    assert advantage[row].tolist() == [expected[i, j]] * 3 + [0]
  try:
    verl.register("v05_test", kind="rloo")
  except ValueError as error:
    assert "already been registered" in str(error)
  else:
    sys.exit("verl took two estimators of one name")
  own = hasattr(algorithms, "compute_grpo_outcome_advantage")
  print("checked with", "verl's own code" if own else "a stub of verl's registry")


if __name__ == "__main__":
  main()
