"""Our recipe: one rollout a prompt, prompts selected by V, EWA-Beta as the baseline, every rollout used twice.

    python -m v05_jax.main --config=configs/v05_plus.py --workdir=runs/v05_plus

What it changes in V0.5, and what each change is worth, is in experiments/headline/README.md.
"""

from configs import demo


def get_config():
  c = demo.get_config("v05")
  c.baseline = "ewa"
  c.budget.k_init = c.budget.k_max = 1
  c.prior.fallback = 0  # as it was measured
  c.selection.pool = 4
  c.loss.epochs, c.loss.clip_high = 2, 0.28
  return c
