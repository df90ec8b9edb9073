"""Dr.GRPO (arXiv 2503.20783) with groups of 16 on the built-in tasks: GRPO without its division by
the group's deviation, and without that by a response's length.

    v05 train --config=dr_grpo --workdir=runs/dr_grpo

On 2 CPU cores 20 s (13 s of steps); success on 512 held-out prompts from .433 to .621 after 16,384
rollouts, chain left out (eval.samples = 0); one seed.
"""

from v05_jax.configs import grpo


def get_config():
  c = grpo.get_config()
  c.baseline = "dr_grpo"
  c.loss.aggregate = "constant"
  return c
