"""Three steps of TRL with our advantages, in an environment that has TRL; writes what they were.

python -P tests/trl_run.py FOLDER
"""

import pathlib
import sys

from datasets import Dataset
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig

from v05_jax.integrations.trl import FILE, Trainer

WORDS, PROMPTS, ROLLOUTS, STEPS = 32, 4, 4, 3


def tokenizer() -> PreTrainedTokenizerFast:
  words = {f"t{i}": i for i in range(WORDS)}
  backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="t0", eos_token="t1", unk_token="t0", padding_side="left"
  )


def even(completions, **_):
  """1, 0 or none, by the response alone."""
  last = [int(text.split()[-1][1:]) if text.split() else 2 for text in completions]
  return [None if x == 3 else float(x % 2 == 0) for x in last]


def length(completions, prior, **_):
  assert len(prior) == len(completions)  # a column of the data set
  return [min(1.0, len(text.split()) / 8) for text in completions]


class Seen(Trainer):
  """Keeps what the loss gets, beside what it was made of."""

  seen: list

  def _generate_and_score_completions(self, inputs):
    before = [np.array(x) for x in self.estimator.state]
    output = super()._generate_and_score_completions(inputs)
    if self.model.training:
      sums, prior = self._sums.numpy(), np.array([row["prior"] for row in inputs], np.float32)
      self.seen.append((sums, prior, output["advantages"].numpy(), *before))
    return output


def trainer(folder, kind, steps):
  set_seed(0)
  model = GPT2LMHeadModel(
    GPT2Config(
      vocab_size=WORDS,
      n_positions=32,
      n_embd=16,
      n_layer=1,
      n_head=2,
      bos_token_id=1,
      eos_token_id=1,
    )
  )
  rows = [{"prompt": f"t{i + 4} t5", "prior": (i % 4) / 4} for i in range(16)]
  args = GRPOConfig(
    output_dir=str(folder / kind),
    per_device_train_batch_size=PROMPTS * ROLLOUTS,
    num_generations=ROLLOUTS,
    max_completion_length=8,
    max_steps=steps,
    save_steps=1,
    learning_rate=1e-3,
    reward_weights=[1.0, 0.25],
    report_to=[],
    use_cpu=True,
    bf16=False,
    logging_steps=1,
    disable_tqdm=True,
  )
  Seen.seen = []
  return Seen(
    model=model,
    reward_funcs=[even, length],
    args=args,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer(),
    estimator=kind,
    prior="prior",
    high=1.25,
  )


def main(folder: pathlib.Path):
  for kind in ("v05", "ewa"):
    run = trainer(folder, kind, STEPS)
    run.train()
    found = {f"{i}/{j}": x for i, parts in enumerate(run.seen) for j, x in enumerate(parts)}
    np.savez(folder / f"{kind}.npz", **found)
  last = [np.array(x) for x in run.estimator.state]
  checkpoint = folder / "ewa" / f"checkpoint-{STEPS - 1}"
  assert (checkpoint / FILE).exists()
  again = trainer(folder, "ewa", STEPS)
  again.train(resume_from_checkpoint=str(checkpoint))
  assert len(again.seen) == 1  # a step, after the two of the checkpoint
  np.savez(folder / "again.npz", *last, *again.seen[0][3:])


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
