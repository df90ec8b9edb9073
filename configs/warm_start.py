"""The shipped policy of the built-in tasks, trained on noisy demonstrations from random weights.

    python -m v05_jax.main --mode=sft --config=configs/warm_start.py --workdir=runs/warm_start

Its result, runs/warm_start/hf, is what v05_jax/tasks/warm_start holds. Validation prompts served for every
choice.
"""

from configs import default


def get_config():
  c = default.get_config()
  c.policy.preset = "tasks-58k"  # random weights; the tokenizer is that of the shipped policy
  c.data.size = 65536
  c.sft.update({"steps": 4800, "batch": 128, "learning_rate": 7e-3, "warmup_steps": 50})
  c.loss.vocab_chunk = 4096
  c.eval.update({"split": "validation", "size": 1536, "period": 200})
  return c
