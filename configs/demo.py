"""One of the demo's four runs on the built-in tasks, 16,384 rollouts each; `make demo` does all
four.

    v05 train --config=demo --workdir=runs/demo/v05

On 2 CPU cores 9 to 19 s a run; success on 1,024 held-out prompts from .430 to .688 with V0.5, mean
of 3 seeds: the table is in experiments/demo/README.md.
"""

from v05_jax.configs import default

METHODS = {  # the first is what the others are compared with
  "GRPO (G=16)": "grpo16",
  "GRPO (G=4)": "grpo4",
  "RLOO (G=4)": "rloo4",
  "V0.5 (k=4)": "v05",
}


def get_config(method="v05"):
  c = default.get_config()
  c.num_steps, c.rollouts_per_step = 64, 256
  c.eval.update({"period": 8, "size": 1024, "samples": 8})
  c.checkpoint.period = 64
  if method == "v05":
    c.prior.kind = "v0"
    c.observe = (*c.observe, "scoreboard")
    return c
  c.prior.kind = "none"
  c.baseline = method.rstrip("0123456789")
  c.budget.k_init = c.budget.k_max = int(method[len(c.baseline) :])
  if c.baseline == "grpo":
    c.loss.aggregate = "rollout"
  return c
