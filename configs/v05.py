"""V0.5 with the paper's adaptive budget on the built-in tasks: 4 to 16 rollouts a prompt, c = 1/256.

    python -m v05_jax.main --config=configs/v05.py --workdir=runs/v05
"""

from configs import default


def get_config():
  c = default.get_config()
  c.baseline = "v05"
  c.budget.update({"rule": "sequential", "k_init": 4, "k_max": 16, "cost": 1 / 256, "block": 2})
  c.sampler.slots = 128  # the late rollouts of an adaptive step come in small blocks
  return c
