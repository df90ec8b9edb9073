"""Named model shapes: two for the built-in tasks, one for tests, some for measurements, and those
that the families publish.
"""

import dataclasses
import math

import jax

from v05_jax.models import decoder, families, lora
from v05_jax.models.decoder import ModelConfig

# Characters are few and rollouts short: a small rope_theta turns the slowest pair within their
# length.
_TASKS = {
  "vocab_size": 32,
  "num_heads": 4,
  "num_kv_heads": 2,
  "rope_theta": 100.0,
  "max_positions": 512,
}

_OWN = {
  "tiny": ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    rope_theta=5e6,
    max_positions=512,
  ),
  "tasks-58k": ModelConfig(
    hidden_size=48, num_layers=2, head_dim=12, intermediate_size=148, **_TASKS
  ),
  "tasks-150k": ModelConfig(
    hidden_size=64, num_layers=3, head_dim=16, intermediate_size=192, **_TASKS
  ),
  # The policies of experiments/throughput: 4.8M and 62M parameters.
  "throughput-s": ModelConfig(
    vocab_size=512,
    hidden_size=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=768,
  ),
  "throughput-l": ModelConfig(
    vocab_size=512,
    hidden_size=768,
    num_layers=9,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=2304,
  ),
  # Few layers of SmolLM2's with the vocabularies of larger models.
  **{
    f"throughput-{name}": ModelConfig(
      vocab_size=vocab,
      hidden_size=576,
      num_layers=4,
      num_heads=9,
      num_kv_heads=3,
      head_dim=64,
      intermediate_size=1536,
    )
    for name, vocab in (("49k", 49152), ("152k", 151936), ("262k", 262144))
  },
}
PRESETS: dict[str, ModelConfig] = _OWN | {
  preset: dataclasses.replace(shape, family=name)
  for name in families.known()
  for preset, shape in families.find(name).presets.items()
}


def known(family: str = "") -> dict[str, ModelConfig]:
  """The shapes by their names. With a `family` (see `families.find`) its own are among them, and
  that family reads and writes all of them."""
  if not family:
    return PRESETS
  every = PRESETS | dict(families.find(family).presets)
  return {name: dataclasses.replace(shape, family=family) for name, shape in every.items()}


def num_params(config: ModelConfig) -> int:
  """Parameters of a shape without adapters: an untied head counts, a tied one does not."""
  shapes = decoder.shapes(lora.plain(config))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
