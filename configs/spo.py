"""SPO (arXiv 2509.13232) on the built-in tasks: one rollout a prompt, every prompt's own past as
the baseline.

    v05 train --config=spo --workdir=runs/spo

Advantages are centred and scaled over the batch, and prompts are taken from a pool four times as
large by the spread that their past promises, without weights. A past needs prompts that come back:
1,024 of them, all looked at in every step, a quarter taken. Two things differ from the paper: a
prompt not seen before has the running mean as its value, which stays worth one rollout, where SPO
samples eight rollouts of every prompt beforehand, which fade, and a past fades with the training
steps since, where SPO measures the KL divergence; with these numbers a visit keeps about .92 of it,
within SPO's .875 to .96.

On 2 CPU cores with other work 32 s (24 s of steps); success on 512 held-out prompts from .433 to
.680 after 12,288 rollouts and .673 after 16,384, chain left out (eval.samples = 0); one seed.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.baseline = "spo"
  c.data.size = 1024
  c.prior.kind = "constant"
  c.estimators.spo.half_life = 32.0
  c.budget.update({"k_init": 1, "k_max": 1})
  c.selection.update({"pool": 4, "weighted": False})
  c.loss.aggregate = "rollout"
  return c
