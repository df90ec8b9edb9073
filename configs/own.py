"""Your own problems and your own model, on whatever machine is there.

    v05 train --config=own --config.data.path=problems.jsonl --config.policy.path=Qwen/Qwen3-0.6B

problems.jsonl has lines of {"prompt": ..., "answer": ...}; the model is a Hugging Face directory or
a name on the hub. What depends on memory is chosen when the run starts, and said: slots, open
prompts, prefill, micro rows, rematerialisation and the compute dtype (scale/fit.py); each can be
set by hand. What one may want to change next:

    --config.eval.path=heldout.jsonl --config.eval.period=10    success on problems kept apart
    --config.reward=my_reward:brief     a function of your own, in my_reward.py (docs/extending.md)
    --config.sampler.max_prompt=1024 --config.sampler.max_response=4096
    --config.policy.lora_rank=32 --config.optimizer.learning_rate=2e-5    adapters, for less memory

V0.5 with four rollouts a prompt, 32 prompts a step, 200 steps.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.num_steps, c.rollouts_per_step = 200, 128
  c.reward = "math"
  c.policy.update({"dtype": "", "remat": ""})
  c.sampler.update({"slots": 0, "open_prompts": 0, "prefill": 0})  # 0 = what fits
  c.sampler.update({"max_prompt": 512, "max_response": 1024, "chunk": 32})
  c.loss.update({"micro_rows": 0, "vocab_chunk": 256, "old_logprob": "recompute"})
  c.optimizer.update({"learning_rate": 1e-6, "warmup_steps": 10})
  c.eval.update({"period": 0, "samples": 4})  # no evaluation without held-out problems
  c.checkpoint.period = 20
  return c
