"""Rollouts of a training step as a table, for people: what `metrics.sinks` shows beside numbers."""

from typing import Any

import numpy as np

from v05_jax import rewards
from v05_jax.models import tokenizer as tokenizers
from v05_jax.setup import Run
from v05_jax.structs import Draw

MOST = 16  # rollouts of a step
LONGEST = 10_000  # characters of a text


def rows(run: Run, draw: Draw, advantage) -> list[dict[str, Any]]:
  """The first rollouts of a draw, of one prompt after another: prompt, answer, response as the
  verifier reads it, reward in the verifier's units (None where it failed) and those of several,
  advantage, tokens."""
  rolls, advantage, found = draw.rolls, np.asarray(advantage), []
  for tokens, i, j in list(zip(rolls.tokens, rolls.prompt, rolls.index))[:MOST]:
    row, length = draw.prompts.rows[i], int(rolls.length[i, j])
    response = tokenizers.decode_response(run.policy.tokenizer, tokens[:length], run.policy.stop)
    reward = float(rolls.reward[i, j])
    texts = {"prompt": row["prompt"], "answer": row.get("answer", ""), "response": response}
    found.append(
      {name: str(text)[:LONGEST] for name, text in texts.items()}
      | {"reward": reward if np.isfinite(reward) else None, **parts(run.config, rolls, i, j)}
      | {"advantage": float(advantage[i, j]), "tokens": length}
    )
  return found


def parts(config, rolls, prompt: int, index: int) -> dict[str, float | None]:
  """Of several rewards each one's own of a rollout, "reward/NAME", None where there is none; {} of
  a single reward."""
  if rolls.parts is None:
    return {}
  found = [float(x) if np.isfinite(x) else None for x in rolls.parts[prompt, index]]
  names = (term.name for term in rewards.terms(config.reward))
  return {f"reward/{name}": x for name, x in zip(names, found, strict=True)}
