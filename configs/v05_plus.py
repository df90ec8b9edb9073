"""The recipe before configs/score.py: one rollout a prompt, prompts selected by V, EWA-Beta as the
baseline, every rollout used twice.

    v05 train --config=v05_plus --workdir=runs/v05_plus

On 2 CPU cores 18 s of steps; success on 768 held-out prompts .708 after 16,384 rollouts where V0.5
with 4 rollouts a prompt has .653 (5 seeds with other warm starts and value models). What each
change is worth is in experiments/headline/first/README.md; V0.5's own baseline without selection
(baseline=v05, selection.pool=1) does as well.
"""

from v05_jax.configs import demo


def get_config():
  c = demo.get_config("v05")
  c.baseline = "ewa"
  c.budget.k_init = c.budget.k_max = 1
  c.prior.wrappers = ()  # as it was measured
  c.selection.pool = 4
  c.loss.epochs, c.loss.clip_high = 2, 0.28
  return c
