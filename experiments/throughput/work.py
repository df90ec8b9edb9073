"""The work that every contender is given, and the least arithmetic and memory traffic that it
takes.

Standard library and numpy alone: the peers' environments import this file too.
"""

from typing import NamedTuple

import numpy as np

PROMPT, RESPONSE = 64, 128  # tokens
SHORTEST = 8  # tokens of the shortest ragged response
# what the directory of `--weights` must have
WEIGHTS = ("config.json", "model.safetensors")
PAD, END, UNKNOWN, FIRST = 0, 2, 3, 8  # token ids; prompts are drawn from FIRST on


class Shape(NamedTuple):
  """A decoder with tied embeddings."""

  hidden: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  vocab: int

  def params(self, embedding: bool = True) -> int:
    """Weights of the matrices; those of the norms are left out."""
    attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
    layer = attention + 3 * self.hidden * self.mlp
    return self.layers * layer + (self.vocab * self.hidden if embedding else 0)


SHAPES = {
  "tiny": Shape(16, 2, 4, 2, 8, 32, 64),
  "s": Shape(256, 6, 8, 4, 32, 768, 512),
  "l": Shape(768, 9, 12, 4, 64, 2304, 512),
  "smollm2": Shape(576, 30, 9, 3, 64, 1536, 49152),
  # four of its layers with the vocabularies of SmolLM2, Qwen and Gemma
  "49k": Shape(576, 4, 9, 3, 64, 1536, 49152),
  "152k": Shape(576, 4, 9, 3, 64, 1536, 151936),
  "262k": Shape(576, 4, 9, 3, 64, 1536, 262144),
  "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151936),
  "1.7b": Shape(2048, 28, 16, 8, 128, 6144, 151936),
}
# The names of these shapes in v05_jax/models/presets.py.
PRESETS = {
  "tiny": "tiny",
  "s": "throughput-s",
  "l": "throughput-l",
  "smollm2": "smollm2-135m",
  "49k": "throughput-49k",
  "152k": "throughput-152k",
  "262k": "throughput-262k",
  "0.6b": "qwen3-0.6b",
  "1.7b": "qwen3-1.7b",
}

# The cache's shapes as configs/default.py has them: one. Each further shape is a decode program
# more to compile.
ONE_SHAPE = ("sampler.slot_sizes=1", "sampler.column_sizes=1")


def prompts(count: int, shape: Shape, length: int, seed: int = 0) -> np.ndarray:
  """Random prompts, int32 [count, length]."""
  # All vocabularies share the small one's words, so that one tokenizer serves them all.
  high = min(shape.vocab, SHAPES["s"].vocab)
  return np.random.default_rng(seed).integers(FIRST, high, (count, length)).astype(np.int32)


def ragged(count: int, longest: int, shortest: int = SHORTEST, seed: int = 0) -> np.ndarray:
  """Response lengths, uniform from `shortest` to `longest`, int32 [count]."""
  low = min(shortest, longest)
  return np.random.default_rng(seed + 77).integers(low, longest + 1, count).astype(np.int32)


def row_lengths(groups: int, group: int, longest: int, shortest: int = SHORTEST) -> np.ndarray:
  """One response length for each of `groups` prompts, int32 [groups]: of `ragged`'s, sorted
  downwards, every `group`-th, so that the longest one stays and the mean is hardly above that of
  all."""
  return np.sort(ragged(groups * group, longest, shortest))[::-1][::group].copy()


def forward_flops(shape: Shape, tokens: float, attended: float, logits: float) -> float:
  """FLOPs of `tokens` through the layers, which attend to `attended` keys in all, with `logits`
  rows of logits."""
  layers = 2 * shape.params(embedding=False) * tokens
  return (
    layers
    + 4 * shape.layers * shape.heads * shape.head_dim * attended
    + 2 * shape.vocab * shape.hidden * logits
  )


def sample_flops(shape: Shape, prompt: int, lengths, groups: int) -> float:
  """The least of a sampling call: each of `groups` prompts prefilled once, a row of logits for each
  sampled token.

  The first response token comes from the prompt's last one, so a response of n tokens takes n - 1
  decode steps.
  """
  lengths = np.asarray(lengths, np.int64)
  steps = lengths - 1
  attended = (steps * prompt + steps * (steps + 1) // 2).sum()
  prefill = forward_flops(shape, groups * prompt, groups * prompt * (prompt + 1) // 2, groups)
  return prefill + forward_flops(shape, steps.sum(), attended, steps.sum())


def update_tokens(prompt: int, lengths, groups: int) -> int:
  """Tokens that the least of an update computes: a prompt once for its responses, whose last tokens
  are no input."""
  return int(groups * (prompt - 1) + np.sum(lengths))


def update_flops(shape: Shape, prompt: int, lengths, groups: int) -> float:
  """The least of an update of `groups` prompts: forward and twice as much backward over
  `update_tokens`, causal attention, logits for responses alone."""
  lengths = np.asarray(lengths, np.int64)
  attended = (
    groups * (prompt - 1) * prompt // 2
    + (lengths * (prompt - 1) + lengths * (lengths + 1) // 2).sum()
  )
  return 3 * forward_flops(shape, update_tokens(prompt, lengths, groups), attended, np.sum(lengths))


def decode_bytes(shape: Shape, prompt: int, lengths, steps: int, itemsize: int) -> float:
  """The least memory traffic of `steps` decode steps: the weights once a step, and for every
  sampled token the live part of its own cache read and one column written."""
  lengths = np.asarray(lengths, np.int64)
  column = 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize
  columns = (lengths * (prompt + 1) + lengths * (lengths - 1) // 2).sum()
  return float(steps * shape.params() * itemsize + columns * column)
