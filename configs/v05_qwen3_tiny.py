"""The code of configs/v05_qwen3_0_6b_one_chip.py on the built-in tasks and their policy of 58,000
parameters.

    v05 train --config=v05_qwen3_tiny --workdir=runs/tiny

V0.5's adaptive budget, LoRA of rank 8 on a frozen base in bfloat16, rematerialisation: what that
run does, at other sizes. On one CPU core about a minute; success on 512 held-out prompts from .433
to .617 after 15,512 rollouts, chain left out (eval.samples = 0); one seed.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.policy.update({"dtype": "bfloat16", "remat": "full", "lora_rank": 8, "lora_alpha": 8.0})
  c.baseline = "v05"
  c.budget.update({"rule": "sequential", "k_init": 4, "k_max": 16})
  c.budgets.sequential.update({"cost": 1 / 256, "block": 2})
  c.sampler.slots = 128
  c.loss.old_logprob = "recompute"
  c.optimizer.learning_rate = 5e-3
  return c
