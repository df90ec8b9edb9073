"""Dr.GRPO (arXiv 2503.20783) with groups of 16 on the built-in tasks: GRPO without its division by
the group's deviation, and without that by a response's length.

    v05 train --config=dr_grpo --workdir=runs/dr_grpo

FIGURES
"""

from v05_jax.configs import grpo


def get_config():
  c = grpo.get_config()
  c.baseline = "dr_grpo"
  c.loss.aggregate = "constant"
  return c
