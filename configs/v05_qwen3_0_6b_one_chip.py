r"""Qwen3-0.6B on GSM8K with V0.5's adaptive budget and LoRA: one GPU of 24 GB, or one TPU chip of
16 GB as in Colab.

    hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B
    v05 train --config=v05_qwen3_0_6b_one_chip --workdir=runs/gsm8k
    v05 eval --workdir=runs/gsm8k \
      --config=v05_qwen3_0_6b_one_chip --config.eval.size=1319
    v05 export --workdir=runs/gsm8k \
      --config=v05_qwen3_0_6b_one_chip --out=model

GSM8K comes from the Hugging Face hub by the library `datasets`, or from
benchmarks/gsm8k_train.jsonl and benchmarks/gsm8k.jsonl. The base is kept in bfloat16 and frozen; 20
million parameters of adapters of rank 32 are trained, in float32. `enable_thinking=False` has
Qwen3's chat template end the thinking before the response: thinking aloud takes more than 1,024
tokens. With 24 GB, --config.sampler.slots=96 decodes faster. configs/v05_qwen3_tiny.py runs the
same code on a CPU in a minute.

By the TPU's compiler (--mode=compile --topology=v5e:1x1), GiB of 15.75 on a v5e chip with all that
lives beside: prior 2.9, prefill 8.4, decode 8.1, update 3.9.

Measured: nothing yet. Learning rate, rank and numbers of rollouts are chosen, not tuned; time and
score of this run are not known.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.num_steps, c.rollouts_per_step = 200, 128
  c.policy.update(
    {
      "path": "Qwen3-0.6B",
      "dtype": "bfloat16",
      "remat": "full",
      "lora_rank": 32,
      "lora_alpha": 32.0,
    }
  )
  c.data.path = "gsm8k_train"
  c.data.template = (
    "{prompt}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
  )
  c.data.chat_template_kwargs = "enable_thinking=False"
  c.reward = "math"
  c.baseline = "v05"
  c.budget.update({"rule": "sequential", "k_init": 4, "k_max": 16})
  c.budgets.sequential.update({"cost": 1 / 256, "block": 2})
  c.sampler.update(
    {
      "slots": 32,
      "chunk": 32,
      "open_prompts": 16,
      "prefill": 8,
      "slot_sizes": 2,
      "column_sizes": 2,
      "max_prompt": 384,
      "max_response": 1024,
    }
  )
  c.loss.update(
    {"micro_rows": 1, "row_length": 2048, "vocab_chunk": 256, "old_logprob": "recompute"}
  )
  c.optimizer.update({"learning_rate": 2e-5, "warmup_steps": 10, "b2": 0.99})
  c.eval.update({"path": "gsm8k", "period": 20, "size": 256, "samples": 4})
  c.checkpoint.period = 20
  return c
