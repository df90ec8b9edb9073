"""A run's config for the measurements, its prompts and tokenizer in a folder, its objects as
train.py builds them."""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
from pathlib import Path
import tempfile
from typing import NamedTuple

import jax
import numpy as np

from experiments.throughput import process, work
from v05_jax import models, rewards
from v05_jax.configs import default
from v05_jax.run.progress import CompilationCounter
from v05_jax.sampling import rollouts
from v05_jax.setup import Run, setup
from v05_jax.structs import Prompts, TrainState

SMALL = ("s", "l", "tiny", "smollm2", "49k", "152k", "262k")  # shapes that one CPU can hold


# Packed rows of a micro-batch and their places, where no others are asked for: with one row at once
# the cores have as many to do, and a layer's activations fit the memory.
MICRO = {"smollm2": 1, "49k": 1, "152k": 1, "262k": 1}
ROW = {"smollm2": 512}


class Bench(NamedTuple):
  """What a measured program is made of."""

  config: object
  run: Run
  collect: object  # rollouts.make
  prompts: Prompts
  compilations: CompilationCounter

  def init(self) -> TrainState:
    """The state before the first step. The weights are read anew, so that nothing keeps them on
    host beside it."""
    policy = models.load(self.config.policy, self.config.seed)
    return self.run._replace(policy=policy).init()


def force_devices(count: int):
  """On a CPU backend gives jax `count` devices, 0 = one for each core of this process. Before the
  backend starts."""
  jax.config.update("jax_num_cpu_devices", count or process.cores())


def config(folder, args, overrides=()):
  """configs/default.py with the measured work; writes what it needs into `folder`.

  overrides: "KEY=VALUE" texts, VALUE in JSON or a plain word.
  """
  n, folder = args.groups * args.group, Path(folder)
  c = default.get_config()
  c.num_steps, c.rollouts_per_step = 1, n
  preset = "" if args.weights else work.PRESETS[args.size]
  c.policy.update({"path": str(folder), "preset": preset, "dtype": args.dtype})
  c.data.update({"path": str(folder / "prompts.jsonl"), "chat_template": False})
  c.reward = "experiments.throughput.reward:coin"
  c.prior.kind, c.baseline = "none", "grpo"
  c.budget.update({"rule": "fixed", "k_init": args.group, "k_max": args.group})
  c.sampler.update(
    {
      "slots": n,
      "open_prompts": args.groups,
      "prefill": args.groups,
      "chunk": 8,
      "max_prompt": args.prompt,
      "max_response": args.response,
      "truncated": "score",
      "share": args.group,
      "slot_sizes": 3,
      "column_sizes": 2,
    }
  )
  # On a CPU a row has room for a prompt and all its responses.
  row = args.prompt - 1 + args.group * args.response if args.size in SMALL else 0
  micro = args.micro or MICRO.get(args.size, 2)
  c.loss.update({"minibatches": 1, "micro_rows": micro, "row_length": ROW.get(args.size, row)})
  c.policy.remat = "none" if args.size in SMALL else "full"
  c.optimizer.update({"learning_rate": 1e-6, "weight_decay": 0.01})
  c.eval.period = c.checkpoint.period = 0
  change(c, overrides)
  if args.weights:
    link_weights(folder, Path(args.weights))
  write_tokenizer(folder, work.SHAPES[args.size].vocab)
  write_prompts(folder / "prompts.jsonl", args)
  return c


def change(c, overrides):
  """Sets "KEY=VALUE" texts in a config, KEY with dots. Raises KeyError for a key that it does not
  have."""
  flat = {}
  for text in overrides:
    key, _, value = text.partition("=")
    try:
      flat[key] = json.loads(value)
    except ValueError:
      flat[key] = value
  c.update_from_flattened_dict(flat)


def link_weights(folder: Path, weights: Path):
  """The model of a Hugging Face directory without its tokenizer: the words of `write_tokenizer`
  stand for its ids. Raises ValueError where the directory has none."""
  for name in work.WEIGHTS:
    if not (weights / name).is_file():
      raise ValueError(f"--weights={weights}: found no {name}, expected a Hugging Face directory")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to((weights / name).absolute())


def write_tokenizer(folder: Path, vocab: int):
  """A Hugging Face tokenizer of the words t0, t1, ..., one for each id."""
  words = [f"t{i}" for i in range(vocab)]
  # not t0 and t2, which would be found inside t25
  words[work.PAD], words[work.END] = "<pad>", "<end>"
  special = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
  }
  tokenizer = {
    "version": "1.0",
    "added_tokens": [{"id": i, "content": words[i], **special} for i in (work.PAD, work.END)],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {
      "type": "WordLevel",
      "vocab": {w: i for i, w in enumerate(words)},
      "unk_token": words[work.UNKNOWN],
    },
  }
  names = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": words[work.PAD],
    "eos_token": words[work.END],
  }
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
  (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_prompts(path: Path, args):
  """One data row for each prompt of a step: every step then has the same prompts, in an order of
  its own."""
  ids = work.prompts(args.groups, work.SHAPES[args.size], args.prompt)
  rows = [{"prompt": " ".join(f"t{i}" for i in row), "answer": "0"} for row in ids]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def limited(run: Run, args) -> Run:
  """The run with a response length in each data row (`max_tokens`), of work.row_lengths."""
  lengths = work.row_lengths(args.groups, args.group, args.response, args.shortest)
  rows = [
    row | {"max_tokens": int(length)} for row, length in zip(run.prompts.rows, lengths, strict=True)
  ]
  return run._replace(prompts=dataclasses.replace(run.prompts, rows=rows))


@contextlib.contextmanager
def bench(args, overrides=()) -> Iterator[Bench]:
  """The objects of a run of `config`, built as train.py builds them, but for one thing: no token
  ends a response, so that its limit alone does. The loader only takes tokens of the vocabulary,
  each of which a random policy samples now and then, so the stop token is put outside of it
  here."""
  with tempfile.TemporaryDirectory() as folder, CompilationCounter() as compilations:
    c = config(folder, args, overrides)
    with rewards.load(c) as verifier:
      run = setup(c)
      policy = run.policy._replace(params=None, stop=(run.policy.config.vocab_size,))
      run = run._replace(policy=policy)
      collect = rollouts.make(policy, c, run.mesh, verifier)
      prompts = run.prompts.at(0, args.groups, pad_to=run.shapes.prompts)
      yield Bench(c, run, collect, prompts, compilations)


def versions() -> str:
  return f"jax {jax.__version__}, numpy {np.__version__}"
