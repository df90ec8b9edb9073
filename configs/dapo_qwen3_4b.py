r"""DAPO (arXiv 2503.14476) with groups of 16 in the setting of configs/v05_qwen3_4b.py, from which
only the method differs: clip-higher, token aggregation, dynamic sampling and the overlong penalty.
Discarded rollouts count as generated.

    v05 compile --config=dapo_qwen3_4b --topology=v5e:4x8
    v05 train --config=dapo_qwen3_4b \
      --workdir=gs://BUCKET/dapo --distributed

Hardware and memory are those of configs/v05_qwen3_4b.py without its prior: the programs are the
same. It has not run.
"""

from v05_jax.configs import v05_qwen3_4b


def get_config():
  c = v05_qwen3_4b.get_config()
  c.prior.kind = "none"
  c.baseline = "grpo"
  c.budget.update({"rule": "fixed", "k_init": 16, "k_max": 16, "max_resample": 9})
  c.loss.update({"clip_low": 0.2, "clip_high": 0.28, "aggregate": "token"})
  c.rewards.overlong_buffer = 1024
  return c
