"""TRL's GRPOTrainer on the same step: `transformers` generates, full length.

python -m experiments.throughput.peers.with_trl --program=step --size=s
"""

import tempfile
import time

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast, TrainerCallback
import trl
from trl import GRPOConfig, GRPOTrainer

from experiments.throughput import process, work
from experiments.throughput.peers import torch_policy

# sequences of a micro-batch, where none is asked for: with a large vocabulary the fewest
MICRO = {"smollm2": 8}


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
  """The words t0, t1, ...; the end of a response lies outside of the vocabulary, so that lengths
  are exact."""
  words = {f"t{i}": i for i in range(vocab)} | {"<end>": vocab + 8}
  unknown = f"t{work.UNKNOWN}"
  backend = Tokenizer(models.WordLevel(words, unk_token=unknown))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token=f"t{work.PAD}",
    eos_token="<end>",
    unk_token=unknown,
    padding_side="left",
  )


def reward(completions, **_) -> list[float]:
  return [float(len(text) % 7) for text in completions]


class Laps(TrainerCallback):
  """A step ends when the next one may begin."""

  def __init__(self):
    self.watch, self.first_end = process.Stopwatch(), 0.0

  def on_step_end(self, *_, **__):
    self.watch.lap()
    self.first_end = self.first_end or time.time()


def main():
  args = process.parser(("step",)).parse_args()
  shape, n = work.SHAPES[args.size], args.groups * args.group
  model = torch_policy.build(args.size, args.dtype, "cpu", args.weights)
  texts = [
    " ".join(f"t{i}" for i in row)
    for row in work.prompts(args.groups * (args.reps + 2), shape, args.prompt)
  ]
  micro, laps = min(args.micro or MICRO.get(args.size, 64), n), Laps()
  with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(
      output_dir=folder,
      per_device_train_batch_size=micro,
      gradient_accumulation_steps=n // micro,
      num_generations=args.group,
      max_completion_length=args.response,
      max_steps=args.reps + 1,
      beta=0.0,
      learning_rate=1e-6,
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      report_to=[],
      save_strategy="no",
      logging_strategy="no",
      disable_tqdm=True,
      temperature=1.0,
      top_p=1.0,
      top_k=0,
      optim="adamw_torch_fused",
    )
    trainer = GRPOTrainer(
      model=model,
      reward_funcs=reward,
      args=config,
      train_dataset=Dataset.from_dict({"prompt": texts}),
      processing_class=tokenizer(shape.vocab),
      callbacks=[laps],
    )
    laps.watch.restart()
    trainer.train()
  fields = laps.watch.fields() | {
    "start_s": round(laps.first_end - process.started(), 2),
    "peak_rss_mb": process.peak_rss_mb(),
    "devices": torch.get_num_threads(),
    "decode_steps": args.response,
  }
  fields |= process.rates(args, fields["med_s"], [args.response] * n, "step")
  versions = (
    f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
  )
  process.emit(args, "trl", versions, **fields)


if __name__ == "__main__":
  main()
