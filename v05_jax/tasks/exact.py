"""The exact probability of success, from one teacher-forced pass instead of samples.

Five of the six families accept exactly one string. With one token per character that string is one
token sequence, so the policy's success rate on a prompt is that sequence's probability: no sampling
noise in the accuracy, and a true mean reward to compare baselines with. A scratchpad stands behind
the answer, so the sequence that decides ends with the mark between them, and whatever follows sums
to 1: success stays exact.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax.models import decoder, encoding
from v05_jax.scale import distributed
from v05_jax.tasks import families
from v05_jax.update import losses

PROMPTS_PER_CALL = 64  # prompts scored at once
CHUNK = 4096  # tokens whose logits exist at once


def exact_success(logprob: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Probability that the policy writes exactly one given response: exp(sum_t mask_t log p_t).

  Args:
    logprob: [N, T] teacher-forced log-probs of the response's tokens, EOS included.
    mask: [N, T] True on those tokens.

  Returns: float64 [N].
  """
  masked = np.where(mask, np.asarray(logprob, np.float64), 0.0)
  return np.exp(masked.sum(axis=-1))


def has_exact(names: Sequence[str], sampler) -> bool:
  """Whether the success on any row of these families of built-in tasks is exact: with all tokens to
  choose from, of the families of `EXACT`."""
  return not truncates(sampler) and any(name in families.EXACT for name in names)


def truncates(sampler) -> bool:
  """Whether sampling leaves out unlikely tokens."""
  return sampler.top_k > 0 or sampler.top_p < 1


def make_exact(
  model_config, tokenizer, sampler, rows_per_call: int = PROMPTS_PER_CALL
) -> Callable[..., np.ndarray]:
  """Builds `exact(params, rows) -> float64 [n]`: success probabilities of task rows.

  The probability is that of a rollout sampled at `sampler.temperature`, with EOS after the answer,
  or ":" where the row has a scratchpad (which needs `sampler.truncated` = "score": a scratchpad
  that reaches the limit must not change a verdict).
  It is NaN where success is not exact: rows of other families than `tasks.EXACT`, and every row
  when the sampler truncates (top-k, top-p), since the log-probs here are untruncated. A response
  longer than `sampler.max_response` has probability 0.

  One program of fixed shape, `rows_per_call` x (max_prompt + max_response - 1) tokens, whatever n
  is. A tokenizer that spells one text in several ways makes the result a lower bound for every
  family.
  """
  width = sampler.max_prompt + sampler.max_response
  known = () if truncates(sampler) else families.EXACT
  score = make_score(model_config, float(sampler.temperature))
  encode_prompt = encoding.prompt_encoder(tokenizer)

  @functools.lru_cache(maxsize=1 << 16)
  def encode(prompt: str, response: str, ends: bool) -> tuple[list[int], int]:
    """(tokens of prompt and response, with EOS where it `ends`, length of the prompt)."""
    start = encode_prompt(prompt)
    answer = tokenizer(response, add_special_tokens=False)["input_ids"]
    return [*start, *answer, *([tokenizer.eos_token_id] if ends else [])], len(start)

  def exact(params, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    wanted = [i for i, row in enumerate(rows) if row.get("family") in known]
    result = np.full(len(rows), np.nan)
    for first in range(0, len(wanted), rows_per_call):
      part = wanted[first : first + rows_per_call]
      pairs = [encode(*_decisive(rows[i])) for i in part]
      fits = np.array([len(ids) - start <= sampler.max_response for ids, start in pairs])
      tokens, prompt, length = _pad(pairs, rows_per_call, width)
      logprob = distributed.fetch(score(params, tokens, length))
      place = np.arange(width - 1)
      mask = (place >= prompt[:, None] - 1) & (place < length[:, None] - 1)
      result[part] = np.where(fits, exact_success(logprob, mask)[: len(part)], 0.0)
    return result

  return exact


def _decisive(row) -> tuple[str, str, bool]:
  """(prompt, the response or the part of it that decides, whether EOS must follow)."""
  return row["prompt"], families.canonical(row), not row.get("scratchpad")


def make_score(config, temperature: float):
  """The program of `make_exact`."""

  @jax.jit
  def score(params, tokens, length):
    """tokens [N, T], length [N] -> log-prob of each token given those before it [N, T - 1]."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    place = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    segments = (place < length[:, None]).astype(jnp.int32)
    hidden = decoder.forward(config, params, inputs, place, segments)
    matrix = decoder.unembed(config, params)
    usable = decoder.usable(config)
    return losses.token_logprobs(hidden, matrix, targets, temperature, CHUNK, usable=usable)[0]

  return score


def _pad(pairs, count: int, width: int):
  """tokens [count, width] right-padded, prompt length [count], whole length [count].

  Rows too long for the width are cut; raises ValueError for a prompt that alone does not fit.
  """
  tokens = np.zeros((count, width), np.int32)
  prompt, length = np.ones((2, count), np.int32)
  for i, (ids, start) in enumerate(pairs):
    if start >= width:
      raise ValueError(
        f"a built-in task's prompt has {start} tokens, found room for {width}: raise "
        "config.sampler.max_prompt"
      )
    ids = ids[:width]
    tokens[i, : len(ids)], prompt[i], length[i] = ids, start, len(ids)
  return tokens, prompt, length
