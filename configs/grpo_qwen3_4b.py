r"""GRPO (arXiv 2402.03300) with groups of 16 in the setting of configs/v05_qwen3_4b.py, from which
only the method differs: what V0.5 is compared with at equal rollouts.

    v05 compile --config=grpo_qwen3_4b --topology=v5e:4x8
    v05 train --config=grpo_qwen3_4b \
      --workdir=gs://BUCKET/grpo --distributed

Hardware and memory are those of configs/v05_qwen3_4b.py without its prior: the programs are the
same. It has not run.
"""

from v05_jax.configs import v05_qwen3_4b


def get_config():
  c = v05_qwen3_4b.get_config()
  c.prior.kind = "none"
  c.baseline = "grpo"
  c.budget.update({"rule": "fixed", "k_init": 16, "k_max": 16})
  c.loss.aggregate = "rollout"
  return c
