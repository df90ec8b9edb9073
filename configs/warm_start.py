"""The shipped policy of the built-in tasks, trained on noisy demonstrations from random weights.

    v05 sft --config=warm_start --workdir=runs/warm_start

Two CPU cores: 5 minutes (4 of CPU time; half as much again without the memory settings that
experiments/warm_start/README.md names). Exact success .434 on 1,536 validation prompts, which
served for every choice, and .429 on as many held-out ones (without chain, whose success is not
exact; sampled, with chain: .429, greedy: .697). 4,800 further steps gain 1.2 points: it is at its
plateau.

Its result, runs/warm_start/hf, is what v05_jax/tasks/warm_start holds.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.policy.preset = "tasks-58k"  # random weights; the tokenizer is that of the shipped policy
  c.data.size = 65536
  c.sft.update({"steps": 4800, "batch": 128, "learning_rate": 7e-3, "warmup_steps": 50})
  c.loss.vocab_chunk = 4096
  c.eval.update({"split": "validation", "size": 1536, "period": 200})
  return c
