"""The verifier of the measurements: a coin of each prompt's own bias, thrown by the response's
text.

Deterministic, and random enough for the budget rule to ask for anything between its fewest and most
rollouts.
"""

import zlib


def share(text: str) -> float:
  """A number in [0, 1) that the text decides."""
  return zlib.crc32(text.encode()) / 2**32


def success(prompt: str) -> float:
  """The prompt's chance of success, in [0, 1)."""
  return share("success of " + prompt)


def prior(prompt: str) -> float:
  """A value prior for the prompt, in [-1, 1), that knows nothing: right for some prompts and far
  off for others."""
  return 2 * share("guess of " + prompt) - 1


def coin(prompt: str, response: str, row: dict) -> float:
  """1 or 0, as a verifier of `config.reward` is called."""
  del row
  return float(share(prompt + response) < success(prompt))
