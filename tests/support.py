"""What several tests share: a small random policy, prompts of random tokens, and a run's config."""

import os
import types

import jax
import numpy as np

from v05_jax import models, plug, rewards
from v05_jax.budgets.base import Budget
from v05_jax.configs import default
from v05_jax.models import decoder, encoding
from v05_jax.models import tokenizer as tokenizers
from v05_jax.sampling import rollouts
from v05_jax.scale import sharding
from v05_jax.structs import Prompts

EOS = 1
VOCAB = 12  # small, so that random weights sample EOS often and rollouts end at random lengths
MODEL = decoder.ModelConfig(
  vocab_size=VOCAB,
  hidden_size=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  intermediate_size=64,
  tie_embeddings=False,
)


def one_device() -> str:
  """XLA_FLAGS for a process with one device, whose programs are compiled as those of the tests."""
  return " ".join(f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f)


def character_tokenizer(characters, vocab_size: int = 0):
  """A tokenizer with one token per character: `<pad>` is 0, `<eos>` 1, then `characters` in order.

  `vocab_size` > 0 pads the vocabulary to that many tokens with `<unused0>`, ..., which no text
  encodes to and which stay visible in decoded text. Raises ValueError for repeated or too many
  characters. Encoding text with any other character is an error, never a silent loss.
  """
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

  characters = list(characters)
  tokens = ["<pad>", "<eos>", *characters]
  if any(len(c) != 1 for c in characters) or len(set(characters)) != len(characters):
    raise ValueError(
      f"characters: found {''.join(characters)!r}, expected single characters, each of them once"
    )
  if vocab_size and len(tokens) > vocab_size:
    raise ValueError(
      f"characters: found {len(characters)}, expected at most {vocab_size - 2} for a "
      f"vocabulary of {vocab_size}"
    )
  tokens += [f"<unused{i}>" for i in range(vocab_size - len(tokens))]
  backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
  backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
  backend.decoder = decoders.Fuse()  # characters are joined as they are, without spaces
  return tokenizers.wrap(backend, pad_token="<pad>", eos_token="<eos>")


class Tokenizer:
  """Letters for tokens: what `rollouts` asks of a tokenizer, without a file."""

  def __init__(self, eos=EOS):
    self.eos_token_id = eos

  def decode(self, tokens, **_):
    return "".join(chr(96 + int(t)) for t in tokens if t > 1)


def encode_prompt(tokenizer, prompt, chat_template: bool, template: str = "{prompt}") -> list[int]:
  """Token ids of a prompt, by itself and between others alike."""
  wrapping = encoding.Wrapping(chat_template, template)
  encode = encoding.prompt_encoder(tokenizer, wrapping)
  alone, between = encode(prompt), [prompt, "1", prompt]
  expected = [alone, encode("1"), alone]
  found = list(encoding.encode_prompts(tokenizer, between, wrapping))
  assert found == expected, f"{found} of {between}, expected {expected}"
  return alone


class Verifier:
  """Succeeds where the response has an even number of letters; a real verifier needs no model to be
  wrong."""

  def __init__(self, reward=lambda text: float(len(text) % 2 == 0)):
    self.reward = reward

  def submit(self, prompts, responses, rows):
    verdict = lambda x: rewards.Verdict(x, *(("crash", "broken") if np.isnan(x) else ()))
    return [types.SimpleNamespace(result=lambda r=r: verdict(self.reward(r))) for r in responses]


def params(seed=0):
  return decoder.init(MODEL, jax.random.key(seed))


def config(**sampler):
  c = default.get_config()
  c.sampler.update(
    {"slots": 16, "open_prompts": 8, "prefill": 8, "chunk": 4, "max_prompt": 10, "max_response": 12}
  )
  c.sampler.update(sampler)
  return c


def prompts(count, seed=0, capacity=None, width=10):
  """`count` random prompts, padded to `capacity`."""
  rng = np.random.default_rng(seed)
  padding = (capacity or count) - count
  length = rng.integers(1, width + 1, count)
  tokens = np.where(np.arange(width) < length[:, None], rng.integers(2, VOCAB, (count, width)), 0)
  return Prompts(
    tokens=np.pad(tokens, ((0, padding), (0, 0))).astype(np.int32),
    length=np.pad(length, (0, padding), constant_values=1).astype(np.int32),
    position=np.arange(100, 100 + count + padding, dtype=np.int32),
    mask=np.arange(count + padding) < count,
    row=np.arange(count + padding, dtype=np.int32),
    rows=tuple({"prompt": str(i), "answer": ""} for i in range(count)),
  )


def mesh(devices=1):
  return sharding.make_mesh(default.get_config().mesh, jax.devices()[:devices])


def budget(rule, k_init, k_max, **options):
  """The budget rule of that name with its options; its state is not kept under the name."""
  c = default.get_config()
  c.budget.update({"rule": rule, "k_init": k_init, "k_max": k_max})
  if options:
    c.budgets[rule].update(options)
  return plug.make("budget", rule, plug.Setting(c), Budget)


class Swap:
  """Passes on to the verifier of the moment."""

  def submit(self, *arguments):
    return self.verifier.submit(*arguments)


def policy(eos=EOS):
  return models.Policy(MODEL, None, Tokenizer(eos), (eos,))


_COLLECTORS = {}  # compiling takes seconds: tests share the programs of equal settings


def collector(c, devices=1, verifier=None, eos=EOS):
  key = (c.to_json(), devices, eos)
  if key not in _COLLECTORS:
    swap = Swap()
    _COLLECTORS[key] = swap, rollouts.make(policy(eos), c, mesh(devices), swap)
  swap, collect = _COLLECTORS[key]
  swap.verifier = verifier or Verifier()
  return collect
