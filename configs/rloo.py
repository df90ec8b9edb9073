"""RLOO (arXiv 2402.14740) with groups of 4 on the built-in tasks.

    python -m v05_jax.main --config=configs/rloo.py --workdir=runs/rloo
"""

from configs import default


def get_config():
  c = default.get_config()
  c.prior.kind = "none"
  c.baseline = "rloo"
  return c
