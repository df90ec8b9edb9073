"""The rotary position embedding (RoPE, arXiv 2104.09864), half-rotated as in Hugging Face
transformers: component i of a head is paired with component i + Dh/2."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

KINDS = ("linear", "llama3")  # of scaling


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How the angles of a model that was first trained on shorter texts are slowed down. Hashable,
  as a part of ModelConfig. The fields are called as in transformers' config.json.

      linear   every angle is divided by `factor` (arXiv 2306.15595)
      llama3   angles whose wavelength is above original_max_position_embeddings / low_freq_factor
               are divided by `factor`, those below original_max_position_embeddings /
               high_freq_factor stay, and between the two it is a mixture (Llama 3.1)
  """

  rope_type: str  # of KINDS
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192

  def __post_init__(self):
    if self.rope_type not in KINDS:
      raise ValueError(f"rope_type: found {self.rope_type!r}, expected one of {KINDS}")
    for name in ("factor", "low_freq_factor", "original_max_position_embeddings"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}: found {getattr(self, name)!r}, expected a positive number")
    if not self.high_freq_factor > self.low_freq_factor:
      raise ValueError(
        f"high_freq_factor: found {self.high_freq_factor!r}, expected more than "
        f"low_freq_factor = {self.low_freq_factor!r}"
      )


def frequencies(width: int, theta: float, scaling: Scaling | None = None) -> np.ndarray:
  """The angle of each pair at position 1, `theta^(-2i/Dh)` before scaling: float32 [Dh/2]."""
  exponent = np.arange(0, width, 2, dtype=np.float32) / width
  plain = (1.0 / theta**exponent).astype(np.float32)
  if scaling is None:
    return plain
  slow = plain / np.float32(scaling.factor)
  if scaling.rope_type == "linear":
    return slow
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
  share = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)  # of the angle that stays
  return (1 - share) * slow + share * plain


def rotation(positions, frequency):
  """(cos, sin) float32 [..., Dh/2] of the angles `position * frequency`."""
  angle = positions[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos, sin):
  """x [..., Dh] with each pair turned by its angle."""
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
