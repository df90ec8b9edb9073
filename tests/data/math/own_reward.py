"""The README's example of a reward of one's own: short answers are better."""


def brief(prompt: str, response: str, row: dict) -> float:
  return 1.0 / (1.0 + len(response) / 20)
