"""SAO (arXiv 2607.07508) on the built-in tasks: one rollout a prompt, an online critic that is
updated twice a step, and a loss without gradient where the ratio leaves its bounds.

    v05 train --config=sao --workdir=runs/sao

What the paper has besides, an asynchronous sampler and a critic of the policy's size, is not here:
docs/rivals.md. On 2 CPU cores with other work 25 s of steps; success on 512 held-out prompts from
.433 to .720 after 16,384 rollouts, chain left out (eval.samples = 0); one seed. With the prior
neighbours in the critic's place it is .711.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.prior.kind, c.prior.wrappers = "critic", ()
  c.baseline = "value"
  c.budget.update({"k_init": 1, "k_max": 1})
  c.loss.update({"surrogate": "dis", "clip_low": 0.3, "clip_high": 5.0})
  return c
