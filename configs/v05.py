"""V0.5 with the paper's adaptive budget on the built-in tasks: 4 to 16 rollouts a prompt, c =
1/256.

    v05 train --config=v05 --workdir=runs/v05

Blocks of 2 rollouts, where the paper's rule adds one at a time: half of the sampler calls, and up
to one rollout more than the rule would take. On 2 CPU cores 36 s (22 s of steps); success on 512
held-out prompts from .433 to .655 after 15,208 rollouts (6.0 a prompt), chain left out
(eval.samples = 0); one seed. At equal rollouts that is above configs/grpo.py and below
configs/rloo.py (.668): the rollouts that the rule adds cost prompts.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.baseline = "v05"
  c.prior.kind = "v0"
  c.budget.update({"rule": "sequential", "k_init": 4, "k_max": 16})
  c.budgets.sequential.update({"cost": 1 / 256, "block": 2})
  c.observe = (*c.observe, "scoreboard", "noise")
  c.sampler.slots = 128  # the late rollouts of an adaptive step come in small blocks
  return c
