"""Rewards that were written for other trainers, as `config.reward` takes them.

In a file of your own, `trl(function)`, `verifiers(function, ...)` or `openenv(make, action)` gives
a function, which `--config.reward=my_reward:NAME` names. Nothing here imports these packages.
"""

from collections.abc import Callable, Sequence
import functools
import inspect
import math
import numbers
from typing import Any

from v05_jax.rewards.worker import checked

# Columns that TRL's trainer does not hand on to a reward function, since it has arguments for them.
OWN = ("prompt", "completion", "completion_ids")
# What a function of verifiers may ask for.
KNOWN = ("prompt", "completion", "answer", "state", "task", "info", "parser")


def trl(function: Callable, conversational: bool = False) -> Callable:
  """A TRL reward function, (prompts, completions, **columns) -> list of floats, sync or async.

  It is called with all responses of a prompt at once; the row's fields are the columns, and
  `trainer_state`, `log_extra` and `log_metric` do nothing. A None in its list counts as 0, which is
  what TRL's sum of rewards makes of it. A function without **columns is given what it names.
  conversational: prompts and completions are lists of messages, as TRL has them where the data set
  is conversational. Raises TypeError for a function that wants one of `OWN`, which TRL or we do not
  hand on; the verdict of a row without a column that the function wants fails, and names it.
  """
  takes, wants = _takes(function), _wants(function)
  if unknown := ", ".join(sorted(wants & set(OWN))):
    known = "found only prompts and completions of TRL's own"
    raise TypeError(f"{_name(function)} wants {unknown}: {known}, and the row's fields")

  def score(prompt: str, responses: list[str], row: dict):
    count = len(responses)
    messages = row.get("messages") or [{"role": "user", "content": prompt}]
    columns = {name: [value] * count for name, value in row.items() if name not in OWN}
    nothing = lambda *_: None
    columns |= {"trainer_state": None, "log_extra": nothing, "log_metric": nothing}
    columns["prompts"] = [messages if conversational else prompt] * count
    columns["completions"] = list(map(_message, responses)) if conversational else list(responses)
    if missing := ", ".join(sorted(wants - columns.keys())):
      raise ValueError(f"{_name(function)} wants {missing}: found a row with {', '.join(row)}")
    return _then(function(**_named(columns, takes)), _without_none)

  return score


def verifiers(
  *functions: Callable, weights: Sequence[float] | None = None, parser=None
) -> Callable:
  """Single-turn reward functions of verifiers: each takes some of prompt, completion, answer,
  state, task, info and parser by name and returns a float, sync or async; a rubric, an object with
  `funcs`, `weights` and `class_objects`, stands for its own. Their weighted sum is the reward.

  prompt and completion are lists of messages; `state` has these, the row's answer and the response
  as `responses`; `info` is the row's field of that name, else the row. Raises ValueError for other
  weights than a finite number for each function, and TypeError for a function that wants anything
  else.
  """
  rubric = functions[0] if len(functions) == 1 and hasattr(functions[0], "funcs") else None
  functions = tuple(rubric.funcs) if rubric else functions
  weights = getattr(rubric, "weights", None) if weights is None else weights
  weights = [1.0] * len(functions) if weights is None else list(weights)
  further = dict(getattr(rubric, "class_objects", None) or {})
  parser = parser or getattr(rubric, "parser", None) or further.get("parser")
  if not functions or len(weights) != len(functions):
    raise ValueError(
      f"found {len(functions)} functions and {len(weights)} weights, expected as many"
    )
  for weight in weights:
    if not (isinstance(weight, numbers.Real) and math.isfinite(weight)):
      raise ValueError(f"weights: found {weight!r}, expected finite numbers")
  for function in functions:
    if unknown := ", ".join(sorted(_wants(function) - {*KNOWN, *further})):
      known = ", ".join((*KNOWN, *further))
      raise TypeError(f"{_name(function)} wants {unknown}: found only {known} here")

  async def score(prompt: str, response: str, row: dict) -> float:
    messages = row.get("messages") or [{"role": "user", "content": prompt}]
    said = {"prompt": messages, "completion": _message(response), "answer": row.get("answer", "")}
    said |= {"task": row.get("task", "default"), "info": row.get("info", row)}
    known = further | said | {"state": said | {"responses": [response]}, "parser": parser}
    total = 0.0
    for function, weight in zip(functions, weights):
      found = function(**_named(known, _takes(function)))
      reward, wrong = checked(await found if inspect.isawaitable(found) else found)
      if wrong:
        raise ValueError(f"{_name(function)} {wrong}")
      total += weight * reward
    return total

  return score


def openenv(make: Callable, action: Callable[[str, dict], Any]) -> Callable:
  """The reward of one step in an environment as OpenEnv's clients have it, sync or async.

  Args:
    make: () -> a client with `reset()` and `step(action)`, whose result has a `reward`. Called once
      in each worker; what was made is used for one response at a time.
    action: (response, row) -> the action.
  """
  client = functools.cache(make)

  async def score(prompt: str, response: str, row: dict) -> float:
    environment = client()
    for call in (environment.reset, lambda: environment.step(action(response, row))):
      found = call()
      found = await found if inspect.isawaitable(found) else found
    return found.reward

  return score


def _message(text: str) -> list[dict[str, str]]:
  return [{"role": "assistant", "content": text}]


def _takes(function) -> set[str] | None:
  """The parameters that a function names; None where it takes any."""
  found = inspect.signature(function).parameters.values()
  if any(x.kind is inspect.Parameter.VAR_KEYWORD for x in found):
    return None
  return {x.name for x in found}


def _wants(function) -> set[str]:
  """The parameters that a function cannot be called without."""
  found = inspect.signature(function).parameters.values()
  several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  return {x.name for x in found if x.default is x.empty and x.kind not in several}


def _named(values: dict, names: set[str] | None) -> dict:
  """Those of the values that have one of the names; all of them for None."""
  return {name: x for name, x in values.items() if names is None or name in names}


def _name(function) -> str:
  return getattr(function, "__name__", type(function).__name__)


def _without_none(rewards):
  """TRL's list with 0 for None; anything but a list unchanged, for the worker to report."""
  if not hasattr(rewards, "__iter__") or isinstance(rewards, (str, bytes, dict, set)):
    return rewards
  return [0.0 if x is None else x for x in rewards]


def _then(found, work: Callable):
  """work(found), or, where `found` is an awaitable, an awaitable of `work` of its result."""
  if not inspect.isawaitable(found):
    return work(found)

  async def later():
    return work(await found)

  return later()
