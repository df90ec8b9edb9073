"""SmolLM2-135M on problems that reasoning-gym makes, for two CPU cores: V0.5, 4 rollouts a prompt.

    make lm

fetches and converts the model, gives it a warm start on the problems' own answers, trains V0.5 and
GRPO, and compares them. The parts by hand: experiments/lm/README.md.
"""

from configs import default

METHODS = {"v05": "V0.5 (k=4)", "grpo16": "GRPO (G=16)", "grpo4": "GRPO (G=4)"}

# Solved by the model after its warm start now and then, and each by its own verifier.
TASKS = {
  "chain_sum": "min_terms=2,max_terms=2,min_digits=2,max_digits=2",
  "letter_counting": "max_words=7",
  "leg_counting": "min_animals=1,max_animals=2,min_instances=1,max_instances=5",
  "gcd": "min_value=10,max_value=100",
  "products": "min_terms=2,max_terms=2,min_digits=1,max_digits=2",
  "spell_backward": "min_word_len=3,max_word_len=5",
  "count_bits": "min_n=10,max_n=1000",
  "family_relationships": "min_family_size=3,max_family_size=4",
}


def get_config(method="v05"):
  c = default.get_config()
  c.policy.path = ".cache/lm/smollm2"
  c.reward = "reasoning_gym"
  c.data.path = c.eval.path = "reasoning_gym:" + ",".join(TASKS)
  c.data.options = ",".join(
    f"{task}.{option}" for task, options in TASKS.items() for option in options.split(",")
  )
  c.data.size = 4096
  # The model's chat template would put a system message of 30 tokens before every prompt.
  c.data.template, c.data.chat_template = "Question: {prompt}\nAnswer: ", False
  c.eval.update({"size": 240, "samples": 8, "period": 0})
  c.sampler.update({"max_prompt": 56, "max_response": 12, "slots": 64, "open_prompts": 32})
  c.sampler.update({"prefill": 16, "chunk": 4})
  c.num_steps, c.rollouts_per_step = 48, 64
  c.loss.micro_rows, c.loss.minibatches, c.loss.row_length = 4, 1, 256
  c.optimizer.learning_rate = 3e-5
  c.sft.update({"steps": 40, "batch": 64, "learning_rate": 1.5e-4, "warmup_steps": 5})
  c.checkpoint.update({"period": 12, "keep": 1})
  if method != "v05":
    c.prior.kind, c.baseline, c.loss.aggregate = "none", "grpo", "rollout"
    c.budget.k_init = c.budget.k_max = int(method.removeprefix("grpo"))
  return c
