"""SmolLM2-135M on problems that reasoning-gym makes, for two CPU cores: V0.5, 4 rollouts a prompt.

    make lm

fetches and converts the model, gives it a warm start on the problems' own answers, trains V0.5 and
GRPO, and compares them. The parts by hand: experiments/lm/README.md.
"""

from v05_jax.configs import default

METHODS = {"v05": "V0.5 (k=4)", "grpo16": "GRPO (G=16)", "grpo4": "GRPO (G=4)"}

# After the warm start the model solves .1 to .5 of each, and most problems now and then
# (experiments/lm/README.md has the figures, and those of the tasks that were left out).
TASKS = (
  "aiw",
  "calendar_arithmetic",
  "count_bits",
  "family_relationships",
  "gcd",
  "letter_counting",
  "number_sequence",
  "sentence_reordering",
)
OPTIONS = (
  "aiw.max_entities=4",
  "aiw.task_type_weights=[0.5,0.5,0]",  # siblings, friends, colleagues
  "count_bits.min_n=10",
  "count_bits.max_n=1000",
  "family_relationships.min_family_size=3",
  "family_relationships.max_family_size=4",
  "gcd.min_value=10",
  "gcd.max_value=100",
  "letter_counting.max_words=7",
  "number_sequence.max_complexity=1",
  "number_sequence.min_value=0",
  "number_sequence.max_value=20",
  "sentence_reordering.min_words_in_sentence=3",
  "sentence_reordering.max_words_in_sentence=5",
)


def get_config(method="v05"):
  c = default.get_config()
  c.policy.path = ".cache/lm/smollm2"
  c.reward = "reasoning_gym"
  c.data.path = c.eval.path = "reasoning_gym:" + ",".join(TASKS)
  c.data.options = ",".join(OPTIONS)
  c.data.size = 4096
  # The model's chat template would put a system message of 30 tokens before every prompt.
  c.data.template, c.data.chat_template = "Question: {prompt}\nAnswer: ", False
  c.eval.update({"split": "validation", "size": 160, "samples": 2, "period": 5})
  c.sampler.update({"max_prompt": 64, "max_response": 16, "slots": 64, "open_prompts": 32})
  c.sampler.update({"prefill": 16, "chunk": 4})
  c.num_steps, c.rollouts_per_step = 20, 128
  c.loss.micro_rows, c.loss.minibatches, c.loss.row_length = 2, 1, 256
  c.cpu_devices = 0  # one a core
  c.optimizer.learning_rate = 3e-5
  c.sft.update({"steps": 30, "batch": 24, "learning_rate": 1.5e-4, "warmup_steps": 5})
  c.checkpoint.update({"period": 10, "keep": 1})
  if method != "v05":
    c.prior.kind, c.baseline, c.loss.aggregate = "none", "grpo", "rollout"
    c.budget.k_init = c.budget.k_max = int(method.removeprefix("grpo"))
  return c
