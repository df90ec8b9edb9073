"""What a comparison shows, in words: which methods are ahead of the first one, by how much, with
intervals over seeds. Of one seed nothing is claimed."""

import math
from typing import NamedTuple

from v05_jax.rewards import mixture
from v05_jax.run.comparison import LEVEL, Difference, Row, paired
from v05_jax.run.runs import behind

# Config keys that decide what a score measures.
MEASURED = ("reward", "rewards.high", "rewards.low")
PROMPTS = (
  *("data.families", "data.options", "data.seed", "data.prompt_key", "data.answer_key"),
  *("data.template", "data.chat_template", "data.chat_template_kwargs"),
)
SAMPLING = ("sampler.top_k", "sampler.top_p", "sampler.max_response")
SAMPLED = "eval.samples"  # whether there are any: without them success is exact, or not known
TRUNCATED = "sampler.truncated"  # of held-out samples: whether those without an end are judged
HELD_OUT = ("eval.path", "eval.split", "eval.size", "eval.temperature", SAMPLED, TRUNCATED)
# Of the rollouts that a run learns from: which prompts they are of, and which of them count.
LEARNT = (
  *("data.path", "data.split", "selection.pool", "selection.score"),
  *("sampler.temperature", TRUNCATED),
)
HELD_OUT, TRAINING = ((*keys, *PROMPTS, *SAMPLING, *MEASURED) for keys in (HELD_OUT, LEARNT))
ONE = "one seed: no claim"
NAMED = 3  # methods in a headline


class Verdict(NamedTuple):
  """What is concluded of a method, compared with the first one."""

  number: int  # of the method
  word: str  # ahead, behind, "no difference shown" or "no claim"
  text: str


def verdicts(rows: list[Row], score: str) -> list[Verdict]:
  """One for each method but the first, by the paired difference of the ends over shared seeds."""
  return [_verdict(number, row, rows[0], score) for number, row in enumerate(rows) if number]


def _verdict(number: int, row: Row, first: Row, score: str) -> Verdict:
  claim = lambda word, text: Verdict(number, word, f"{row.name}: {text}")
  if keys := other_measure(row, first, score):
    what = f"scored otherwise than {first.name} ({', '.join(keys)})"
    return claim("no claim", f"{what}: no claim")
  end, area = (paired(row, first, what) for what in ("end", "area"))
  if end is None:
    known = row.by_seed and first.by_seed
    reason = f"no seed shared with {first.name}" if known else "the seeds are not known"
    return claim("no claim", f"{row.end - first.end:+.4f} at the end; {reason}: no claim")
  if end.pairs < 2:
    return claim("no claim", f"{end.mean:+.4f} at the end; {ONE}")
  word = _word(end)
  text = f"{word}, {spread(end)} at the end, {spread(area)} in the area; {end.pairs} shared seeds"
  return claim(word, text)


def _word(found: Difference) -> str:
  if abs(found.mean) > found.half:
    return "ahead" if found.mean > 0 else "behind"
  return "no difference shown"


def spread(found: Difference, scale: float = 1.0, digits: int = 4) -> str:
  """A mean with its interval."""
  mean, half = scale * found.mean, scale * found.half
  if math.isnan(half):
    return f"{mean:+.{digits}f} ({ONE})"
  return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def other_measure(row: Row, first: Row, score: str) -> list[str]:
  """The config keys by which the two methods' scores were measured on different things."""
  held_out = score.startswith("eval/")
  keys = HELD_OUT if held_out else TRAINING
  sampled = lambda keys: bool(keys.get(SAMPLED))
  read = {"reward": _success, SAMPLED: sampled}
  if held_out:
    read[TRUNCATED] = lambda keys: sampled(keys) and keys.get(TRUNCATED) == "score"
  of = lambda keys, key: read[key](keys) if key in read else keys.get(key)
  values = lambda row, key: {repr(of(run.keys, key)) for run in row.runs if run.keys}
  found = [
    key
    for key in keys
    if (a := values(row, key)) and (b := values(first, key)) and (a != b or len(a) > 1)
  ]
  a, b = ({code for run in each.runs if (code := _reward_code(run.keys))} for each in (row, first))
  return found + (["the reward's own code"] if a and b and (a != b or len(a) > 1) else [])


def _reward_code(keys: dict) -> tuple:
  """The user's own files behind the reward that the scores are of; () where none is known."""
  return tuple(behind(str(_success(keys)), keys).items())


def _success(keys: dict):
  """Which reward the scores are of where a run has several: one of them, or their sum."""
  reward = keys.get("reward")
  try:
    index = mixture.success(reward, keys.get("rewards.success", ""))
  except ValueError:  # a config.json of another version
    return reward
  return reward if index is None else mixture.targets(reward)[index]


def headline(rows: list[Row], score: str) -> str:
  """The conclusion in one sentence."""
  first, found = rows[0].name, verdicts(rows, score)
  if not found:
    one = f" ({ONE})" if rows[0].seeds < 2 else f" (mean over {rows[0].seeds} seeds)"
    return f"{first}: from {rows[0].start:.3f} to {rows[0].end:.3f}{one}"
  ahead = [v for v in found if v.word == "ahead"]
  if ahead:
    ahead.sort(key=lambda v: -paired(rows[v.number], rows[0], "end").mean)
    named = [
      f"{rows[v.number].name} by {spread(paired(rows[v.number], rows[0], 'end'), digits=3)}"
      for v in ahead
    ]
    more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"Ahead of {first}: {'; '.join(named[:NAMED])}{more}"
  if all(v.word == "no claim" for v in found):
    alone = all(v.text.endswith(ONE) for v in found)
    return (
      f"{ONE[0].upper()}{ONE[1:]} about a difference" if alone else "No claim about a difference"
    )
  if all(v.word == "behind" for v in found):
    every = "the other method is" if len(found) == 1 else f"all {len(found)} other methods are"
    return f"{first} is ahead: {every} behind it"
  return f"No method is shown to be ahead of {first}"


def basis(rows: list[Row]) -> str:
  """How the verdicts are to be read: what was compared, and what the words mean."""
  compared = len(rows) - 1
  many = f", without a correction for {compared} comparisons" if compared > 1 else ""
  return (
    f"Each method minus {rows[0].name}, the first one, seed by seed, with a {LEVEL * 100:.0f} % "
    f"interval over the seeds (t, n - 1){many}. Ahead or behind: the interval of the difference at "
    "the end leaves out 0. Area: the mean height of the curve"
  )


def text(rows: list[Row], score: str, remark: str = "") -> str:
  """The conclusion in lines, for a terminal and for Markdown."""
  found = verdicts(rows, score)
  lines = [f"**{headline(rows, score)}.**"]
  if found:
    lines += ["", *(f"- {verdict.text}" for verdict in found), "", f"{basis(rows)}."]
  return "\n".join([*lines, *(["", remark] if remark else [])])
