"""warm start (draft)."""

from configs import default


def get_config():
  c = default.get_config()
  c.policy.preset = "tasks-58k"
  c.data.size = 65536
  c.sft.update({"steps": 1500, "batch": 256, "learning_rate": 1e-2, "warmup_steps": 50})
  c.loss.vocab_chunk = 4096
  c.eval.update({"period": 100, "split": "validation", "size": 1536})
  return c
