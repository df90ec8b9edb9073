"""The recipe that the headline's rule chose: one rollout a prompt, no prior, the baseline of least
gradient noise, every rollout used twice.

    v05 train --config=score --workdir=runs/score

FIGURES
"""

from v05_jax.configs import demo


def get_config():
  c = demo.get_config("v05")
  c.baseline = "score"
  c.budget.k_init = c.budget.k_max = 1
  c.prior.kind, c.prior.wrappers = "none", ()  # as it was measured
  c.loss.epochs, c.loss.clip_high = 2, 0.28
  return c
