"""The built-in verifiable tasks, their exact success probability, and a policy warm-started on
them."""

from v05_jax.tasks.exact import has_exact, make_exact
from v05_jax.tasks.families import (
  CHARACTERS,
  EXACT,
  FAMILIES,
  LEVELS,
  MAX_PROMPT,
  MAX_RESPONSE,
  SCRATCHPAD,
  SPLITS,
  canonical,
  demonstration,
  rows,
  sloppy_probability,
  split_of,
  verify,
)

__all__ = [
  "CHARACTERS",
  "EXACT",
  "FAMILIES",
  "LEVELS",
  "MAX_PROMPT",
  "MAX_RESPONSE",
  "SCRATCHPAD",
  "SPLITS",
  "canonical",
  "demonstration",
  "has_exact",
  "make_exact",
  "rows",
  "sloppy_probability",
  "split_of",
  "verify",
]
