"""The README's example of a reward of one's own: short answers are better."""

import json
import os


def brief(prompt: str, response: str, row: dict) -> float:
  return 1.0 / (1.0 + len(response) / 20)


def noted(prompt: str, response: str, row: dict) -> float:
  """`brief`, with a note of who asked: a line in the file `notes`, for the tests of several
  processes."""
  with open(os.path.join(os.environ["V05_NOTES"], "notes"), "a") as file:
    file.write(json.dumps({"prompt": prompt, "of": os.getppid()}) + "\n")
  return brief(prompt, response, row)
