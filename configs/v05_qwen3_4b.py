r"""The paper's setting (arXiv 2603.10848): Qwen3-4B-Instruct-2507 on DAPO-Math-17k with V0.5's
adaptive budget, on a TPU pod slice; six benchmarks, mean@16.

    # before you pay
    v05 compile --config=v05_qwen3_4b --topology=v5e:4x8
    # on every host
    v05 train --config=v05_qwen3_4b --workdir=gs://BUCKET/v05 --distributed

32 chips of v5e or v5p, or more. By the TPU's compiler (the first command), GiB of 15.75 on a v5e
chip with all that lives beside: prior 2.8, its head 5.7, prefill 10.4, decode 8.7, update 11.0. The
policy is the folder of `hf download Qwen/Qwen3-4B-Instruct-2507 --local-dir
Qwen3-4B-Instruct-2507`; the prior is made of V0's files by `python -m v05_jax.value_model.convert
... --out=v0-converted`. A run can do without them: --config.prior.kind=neighbours .
See docs/pods.md.

From the paper: policy, data, four to sixteen rollouts, c = 1/256, responses of 4,096 tokens,
rollouts a step constant, the six benchmarks. Ours: learning rate, 512 rollouts a step in two
minibatches, the sizes of the sampler. An evaluation has 1,546 problems; in training they get 4
samples each every 100 steps, which is 25,000 rollouts in all beside the 154,000 of training; the
paper's mean@16 is

    v05 eval --config=v05_qwen3_4b --workdir=gs://BUCKET/v05 \
      --distributed --config.eval.samples=16

Measured: nothing but what the compiler says; this config has not run.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  # rollouts a step stay constant: fewer a prompt means more prompts
  c.num_steps, c.rollouts_per_step = 300, 512
  c.policy.update(
    {"path": "Qwen3-4B-Instruct-2507", "dtype": "bfloat16", "remat": "full", "attention": "flash"}
  )
  c.data.path = "dapo_math_17k"
  c.reward = "math"
  c.prior.kind, c.priors.v0.path = "v0", "v0-converted"
  c.baseline = "v05"
  c.budget.update({"rule": "sequential", "k_init": 4, "k_max": 16})
  c.budgets.sequential.cost = 1 / 256
  c.sampler.update(
    {
      "slots": 256,
      "chunk": 32,
      "open_prompts": 128,
      "prefill": 32,
      "slot_sizes": 2,
      "column_sizes": 4,
      "max_prompt": 1024,
      "max_response": 4096,
    }
  )
  c.loss.update(
    {"share_prompts": False, "row_length": 5120, "micro_rows": 4, "old_logprob": "recompute"}
  )
  c.optimizer.update({"learning_rate": 1e-6, "warmup_steps": 10, "b2": 0.999})
  c.mesh.update({"data": 1, "fsdp": -1, "tensor": 4})
  c.eval.update(
    {"path": "aime2024,aime2025,amc2023,math500,minerva,olympiadbench", "size": 1000, "samples": 4}
  )
  c.eval.period = 100
  c.checkpoint.update({"period": 10, "keep": 3})
  return c
