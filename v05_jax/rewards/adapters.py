"""Rewards that were written for other trainers, as `config.reward` takes them.

In a file of your own, `trl(function)`, `verifiers(function, ...)` or `openenv(make, action)` gives
a function, which `--config.reward=my_reward:NAME` names. Nothing here imports these packages.
"""

from collections.abc import Callable, Sequence
import functools
import inspect
from typing import Any

# Columns that TRL's trainer does not hand on to a reward function, since it has arguments for them.
OWN = ("prompt", "completion", "completion_ids")


def trl(function: Callable, conversational: bool = False) -> Callable:
  """A TRL reward function, (prompts, completions, **columns) -> list of floats, sync or async.

  It is called with all responses of a prompt at once; the row's fields are the columns, and
  `trainer_state`, `log_extra` and `log_metric` do nothing. There are no `completion_ids`. A None in
  its list counts as 0, which is what TRL's sum of rewards makes of it. A function without **columns
  is given those that it names. conversational: prompts and completions are lists of messages, as
  TRL has them where the data set is conversational.
  """
  takes = _takes(function)

  def score(prompt: str, responses: list[str], row: dict):
    count = len(responses)
    messages = row.get("messages") or [{"role": "user", "content": prompt}]
    columns = {name: [value] * count for name, value in row.items() if name not in OWN}
    nothing = lambda *_: None
    columns |= {"trainer_state": None, "log_extra": nothing, "log_metric": nothing}
    given = {name: value for name, value in columns.items() if takes is None or name in takes}
    found = function(
      prompts=[messages if conversational else prompt] * count,
      completions=[_message(x) for x in responses] if conversational else list(responses),
      **given,
    )
    return _then(found, _without_none)

  return score


def verifiers(
  *functions: Callable, weights: Sequence[float] | None = None, parser=None
) -> Callable:
  """Single-turn reward functions of verifiers: each takes some of prompt, completion, answer,
  state, task, info and parser by name and returns a float, sync or async; a rubric, an object with
  `funcs` and `weights`, stands for its own. Their weighted sum is the reward.

  prompt and completion are lists of messages; `state` has these, the row's answer and the response
  as `responses`; `info` is the row's field of that name, else the row.
  """
  rubric = functions[0] if len(functions) == 1 and hasattr(functions[0], "funcs") else None
  functions = tuple(rubric.funcs) if rubric else functions
  weights = weights or getattr(rubric, "weights", None) or [1.0] * len(functions)
  parser = parser or getattr(rubric, "parser", None)
  if not functions or len(weights) != len(functions):
    raise ValueError(
      f"found {len(functions)} functions and {len(weights)} weights, expected as many"
    )

  async def score(prompt: str, response: str, row: dict) -> float:
    messages = row.get("messages") or [{"role": "user", "content": prompt}]
    said = {"prompt": messages, "completion": _message(response), "answer": row.get("answer", "")}
    said |= {"task": row.get("task", "default"), "info": row.get("info", row)}
    known = said | {"state": said | {"responses": [response]}, "parser": parser}
    total = 0.0
    for function, weight in zip(functions, weights):
      takes = _takes(function)
      given = {name: x for name, x in known.items() if takes is None or name in takes}
      found = function(**given)
      total += weight * float(await found if inspect.isawaitable(found) else found)
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
