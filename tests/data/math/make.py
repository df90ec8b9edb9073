"""Makes what test_main.py trains on: problems.jsonl and a random tiny Qwen3 that `transformers`
wrote.

    pip install torch transformers
    python tests/data/math/make.py

The problems are our own (Apache-2.0, as everything here). The model has random weights, a
byte-level BPE tokenizer trained on the problems, and a chat template.
"""

from fractions import Fraction
import json
import pathlib
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def problems(count=60):
  rng = random.Random(0)
  for i in range(count):
    a, b, c = rng.randint(2, 30), rng.randint(2, 12), rng.randint(2, 9)
    kind = i % 6
    if kind == 0:
      text, answer = f"Compute ${a} \\cdot {b} - {c}$.", a * b - c
    elif kind == 1:
      text = f"Write $\\frac{{{a}}}{{{b}}} + \\frac{{1}}{{{c}}}$ as a fraction."
      answer = Fraction(a, b) + Fraction(1, c)
    elif kind == 2:
      text, answer = f"Solve ${b}x + {c} = {b * a + c}$ for $x$.", a
    elif kind == 3:
      text, answer = (
        f"What is the area of a triangle with base {a} and height {b}?",
        Fraction(a * b, 2),
      )
    elif kind == 4:
      text, answer = f"Simplify $\\sqrt{{{b * b * c}}}$ as far as you can.", f"{b}\\sqrt{{{c}}}"
    else:
      text, answer = f"Which open interval solves $|x - {a}| < {b}$?", f"({a - b}, {a + b})"
    if isinstance(answer, Fraction) and answer.denominator > 1:
      answer = f"\\frac{{{answer.numerator}}}{{{answer.denominator}}}"
    yield {"problem": text + " Put the answer in \\boxed{}.", "answer": f"\\boxed{{{answer}}}"}


def main():
  rows = list(problems())
  (HERE / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  trainer = trainers.BpeTrainer(
    vocab_size=384,
    special_tokens=special,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator((row["problem"] for row in rows), trainer)
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    chat_template=TEMPLATE,
  )
  torch.manual_seed(0)
  config = Qwen3Config(
    vocab_size=384,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    rope_theta=5e6,
    tie_word_embeddings=True,
    max_position_embeddings=512,
    eos_token_id=tokenizer.eos_token_id,
    bos_token_id=None,
  )
  Qwen3ForCausalLM(config).save_pretrained(HERE / "model")
  tokenizer.save_pretrained(HERE / "model")


if __name__ == "__main__":
  main()
