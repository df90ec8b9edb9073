"""transformers (PyTorch) on the same work: `generate` with its cache, and a clipped update written
by hand.

    python -m experiments.throughput.peers.with_transformers --program=ragged --size=s

    sample, ragged        one `generate` call; ragged rows stop by a criterion of their own, the
                          call at the longest
    train, train_ragged   one update of padded rows
    step                  sample and update, full length
"""

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from experiments.throughput import process, work
from experiments.throughput.peers import torch_policy

PROGRAMS = ("sample", "ragged", "train", "train_ragged", "step")
# sequences of a micro-batch, where none is asked for
MICRO = {"tiny": 64, "s": 64, "l": 64, "smollm2": 8, "0.6b": 4, "1.7b": 4}


class Stop(StoppingCriteria):
  """Ends row i after `lengths[i]` response tokens."""

  def __init__(self, lengths, prompt: int):
    self.lengths, self.prompt = lengths, prompt

  def __call__(self, ids, scores, **_):
    return ids.shape[1] - self.prompt >= self.lengths


class Generator:
  """`generate` on the measured prompts; `steps` are the forward passes of its last call."""

  def __init__(self, model, args, lengths=None):
    self.model, self.args, self.passes, self.steps = model, args, 0, 0
    prompts = work.prompts(args.groups, work.SHAPES[args.size], args.prompt)
    self.ids = torch.tensor(prompts, device=model.device).long().repeat_interleave(args.group, 0)
    self.config = GenerationConfig(
      max_new_tokens=args.response,
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      pad_token_id=work.PAD,
      eos_token_id=None,
      bos_token_id=None,
    )
    self.stop = None
    if lengths is not None:
      self.stop = StoppingCriteriaList(
        [Stop(torch.tensor(lengths, device=model.device), args.prompt)]
      )
    model.model.register_forward_hook(self.count)

  def count(self, *_):
    self.passes += 1

  def __call__(self, seed: int):
    self.model.eval()
    self.passes = 0
    torch.manual_seed(seed)
    with torch.no_grad():
      ids = self.model.generate(
        input_ids=self.ids,
        attention_mask=torch.ones_like(self.ids),
        generation_config=self.config,
        stopping_criteria=self.stop,
      )
    self.steps = self.passes
    return ids


def wait(device: str):
  if device == "cuda":
    torch.cuda.synchronize()


def sample(args, model, lengths, generate) -> dict:
  def call(i):
    generate(i)
    wait(args.device)

  fields = process.timed(call, args.reps)
  steps = generate.steps
  share = round(float(lengths.sum()) / (len(lengths) * steps), 4)
  found = {"decode_steps": steps, "utilisation": share, "useful_over_computed": share}
  return fields | found | process.rates(args, fields["med_s"], lengths, "sample", steps)


def train(args, model, lengths, micro) -> dict:
  rng, shape, adamw = (
    np.random.default_rng(0),
    work.SHAPES[args.size],
    torch_policy.optimizer(model),
  )
  model.train()

  def data():
    ids = rng.integers(work.FIRST, shape.vocab, (len(lengths), args.prompt + int(lengths.max())))
    advantage = rng.standard_normal(len(lengths)).astype(np.float32)
    return [torch.tensor(x, device=model.device) for x in (ids, lengths, advantage)]

  sets = [data() for _ in range(args.reps + 1)]

  def call(i):
    torch_policy.update(model, adamw, *sets[i], args.prompt, micro)
    wait(args.device)

  fields = process.timed(call, args.reps)
  computed = len(lengths) * (args.prompt + int(lengths.max()) - 1)
  share = work.update_tokens(args.prompt, lengths, args.groups) / computed
  return (
    fields
    | {"useful_over_computed": round(share, 4)}
    | process.rates(args, fields["med_s"], lengths, "update")
  )


def step(args, model, lengths, generate, micro) -> dict:
  adamw, counts = torch_policy.optimizer(model), torch.tensor(lengths, device=model.device)

  def call(i):
    ids = generate(i)
    reward = (ids[:, args.prompt :] % 2).float().mean(1).view(args.groups, args.group)
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    model.train()
    torch_policy.update(model, adamw, ids, counts, advantage.flatten(), args.prompt, micro)
    wait(args.device)

  fields = process.timed(call, args.reps) | {"decode_steps": generate.steps}
  return fields | process.rates(args, fields["med_s"], lengths, "step")


def main():
  parser = process.parser(PROGRAMS)
  parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
  args = parser.parse_args()
  model = torch_policy.build(args.size, args.dtype, args.device, args.weights)
  n, ragged = args.groups * args.group, "ragged" in args.program
  lengths = work.ragged(n, args.response, args.shortest) if ragged else np.full(n, args.response)
  micro = min(args.micro or MICRO[args.size], n)
  if args.program.startswith("train"):
    fields = train(args, model, lengths, micro)
  else:
    generate = Generator(model, args, lengths if ragged else None)
    run = (args, model, lengths, generate)
    fields = step(*run, micro) if args.program == "step" else sample(*run)
  fields |= {"peak_rss_mb": process.peak_rss_mb(), "devices": torch.get_num_threads()}
  if args.device == "cuda":
    fields |= {
      "devices": 1,
      "details": {"peak_device_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)},
    }
  versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
  process.emit(args, "transformers", versions, **fields)


if __name__ == "__main__":
  main()
