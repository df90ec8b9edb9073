"""How a name in the config finds a function: one of the package's, or `module:function`, a user's
own; and what a mistyped name or path may have meant.

Workers of rewards import this: nothing here may import jax.
"""

import ast
from collections.abc import Callable, Iterable
import contextlib
import difflib
import importlib
import os
from pathlib import Path
import re
import sys
import traceback
from typing import Any

FOOTER = "\n--------------------\n"  # before what JAX adds to an exception about its traceback
STANDARD_LIBRARY = os.path.dirname(os.__file__)
# Files of the frames between this package and the user's function in a traceback.
BETWEEN = (
  __file__,
  importlib.__file__,
  os.path.join(os.path.dirname(__file__), "rewards", "worker.py"),
  "",  # code that was made without a file
)


def nearest(name: str, known: Iterable[str], least: float = 0.6, most: int = 1) -> list[str]:
  """The known names that a mistyped one may have meant, the most similar first: at most `most`,
  each with a similarity (`difflib`'s ratio, 0 to 1) of at least `least`."""
  return difflib.get_close_matches(name, list(known), most, least)


def suggestion(meant: Iterable[str]) -> str:
  """What an error appends to what it found: ", did you mean A or B?", or "" for no names."""
  text = " or ".join(meant)
  return f", did you mean {text}?" if text else ""


def alike(path, pattern: str = "*") -> str:
  """`suggestion` of what a local path that is not there may have meant, among what stands beside it
  and fits the pattern, or holds what does (`*/config.json`)."""
  folder, name = os.path.split(os.fspath(path).rstrip("/"))
  with contextlib.suppress(OSError, RuntimeError):  # the last: no such user's folder
    place = Path(folder).expanduser()
    beside = {x.relative_to(place).parts[0] for x in place.glob(pattern)} - {name}
    return suggestion(os.path.join(folder, x) for x in nearest(name, beside))
  return ""


# What a setting is called elsewhere, as in TRL, verl or a paper, beside our keys for it.
ELSEWHERE = {
  "optimizer.learning_rate": "lr learning_rate",
  "optimizer.warmup_steps": "warmup warmup_ratio",
  "optimizer.weight_decay": "wd",
  "optimizer.clip_norm": "max_grad_norm grad_clip clip_grad",
  "optimizer.schedule": "scheduler lr_scheduler lr_scheduler_type",
  "budget.k_init": "k group_size num_generations n rollout_n",
  "rollouts_per_step": "batch_size train_batch_size per_device_train_batch_size",
  "loss.micro_rows": "micro_batch_size microbatch_size gradient_accumulation_steps",
  "num_steps": "steps max_steps total_steps iterations",
  "loss.epochs": "num_train_epochs ppo_epochs num_iterations",
  "loss.kl_coef": "beta kl",
  "loss.clip_high": "clip epsilon clip_ratio clip_eps eps_clip",
  "loss.entropy_coef": "entropy entropy_bonus",
  "sampler.max_response": "max_tokens max_new_tokens max_completion_length response_length",
  "sampler.max_prompt": "max_prompt_length prompt_length",
  "policy.path": "model model_path model_name model_name_or_path",
  "policy.dtype": "bf16 precision",
  "policy.lora_rank": "lora rank lora_r",
  "policy.remat": "gradient_checkpointing checkpointing",
  "data.path": "dataset dataset_name train_files train_file",
  "eval.path": "eval_dataset val_files test_file",
  "eval.period": "eval_steps eval_every test_freq",
  "checkpoint.period": "save_steps save_every save_freq",
  "reward": "reward_fn reward_func reward_funcs reward_function",
  "baseline": "algorithm adv_estimator estimator",
}


def meant(name: str, known, prefix: str = "") -> str:
  """`suggestion` for a config key that is none, each name after `prefix`: by what it is called
  elsewhere, by its last part, or by likeness."""
  known = list(known)
  last = lambda key: key.rsplit(".", 1)[-1]
  elsewhere = [key for key in known if last(name) in ELSEWHERE.get(key, "").split()]
  match = [key for key in known if last(key) == last(name)] if "/" not in name else []
  match = list(dict.fromkeys([*elsewhere, *match] if "." not in name else match or elsewhere))[:3]
  parts = nearest(last(name), {last(key) for key in known}, 0.8)
  similar = [key for key in known if last(key) in parts][:3]
  section = name.removesuffix(last(name))
  match = match or [key for key in similar if section and key.startswith(section)] or similar
  return suggestion(prefix + key for key in match or nearest(name, known))


def assignments(text: str, name: str = r"\w+") -> dict[str, Any]:
  """`a=3,b=[1, 2]` as {"a": 3, "b": [1, 2]}: names that match the pattern `name`, each with a
  Python literal (with commas, if need be; true, false and null in any case too), or else a text.

  Raises ValueError for anything else, and for a name that is given twice.
  """
  result: dict[str, Any] = {}
  for part in re.split(rf",(?=\s*{name}\s*=)", text) if text.strip() else ():
    match = re.fullmatch(rf"\s*({name})\s*=\s*(.*?)\s*", part, re.DOTALL)
    if not match or not match[2]:
      raise ValueError(f"found {show(part.strip())}, expected NAME=VALUE")
    if match[1] in result:
      raise ValueError(f"found {match[1]} twice")
    result[match[1]] = _value(match[2])
  return result


def _value(text: str):
  """What a text says as Python or, of its constants, as JSON; else the text."""
  constants = {"true": True, "false": False, "null": None, "none": None}
  if text.lower() in constants:
    return constants[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def is_assignments(text: str, name: str = r"\w+") -> bool:
  """Whether `assignments` can read the text."""
  try:
    assignments(text, name)
  except ValueError:
    return False
  return True


def own(key: str, name, known: Iterable[str]) -> Callable:
  """The user's function that `name`, "module:function", names.

  Raises ValueError, naming the config's `key`: where it cannot be imported, and where `name` is
  none of that kind, with those that are `known` and the nearest one.
  """
  if not isinstance(name, str):
    raise ValueError(f"{key}: found {name!r}, expected a name")
  if ":" not in name:
    known = list(known)
    meant = suggestion(nearest(name, known)) or ","
    raise ValueError(
      f"{key}: found {name!r}{meant} expected one of {', '.join(known)}, or "
      "module:function for a function that Python can import"
    )
  if os.getcwd() not in sys.path:  # where the run was started, and often the user's file lies
    sys.path.append(os.getcwd())
  try:
    return resolve(name)
  except Exception as error:
    raise ValueError(
      f"{key}: found {name!r}, expected module:function: {describe(error)}"
    ) from error


def resolve(target: str):
  """The function that "module:function" names; raises ImportError, AttributeError or TypeError."""
  module, _, name = target.partition(":")
  try:
    function = importlib.import_module(module)
  except ModuleNotFoundError as error:
    missing = error.name == module.partition(".")[0]
    near = f" in {os.getcwd()} or where PYTHONPATH says" if missing else ""
    near += alike(f"{module}.py", "*.py") if error.name == module else ""
    if module.endswith(".py"):  # a file's name
      near = suggestion([f"{module.removesuffix('.py').replace('/', '.')}:{name}"])
    raise ModuleNotFoundError(f"{error}{near}", name=error.name) from error
  for part in name.split("."):
    if not hasattr(function, part):
      where = getattr(function, "__name__", module)
      meant = suggestion(nearest(part, dir(function)))
      raise AttributeError(f"{where} has no attribute {part!r}{meant}")
    function = getattr(function, part)
  if not callable(function):
    raise TypeError(f"{name} is a {type(function).__name__}, expected a function")
  return function


def show(value) -> str:
  """The value in an error message, cut where it is long."""
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + "..."


def describe(error: BaseException) -> str:
  """The exception in one line, with the place in the user's file that it came from: of the lines on
  its way, the last that is no library's."""
  try:
    text = "".join(traceback.format_exception_only(error)).split(FOOTER)[0]
    text = " ".join(text.split())[:500]
  except BaseException:  # an exception whose own __str__ raises
    text = type(error).__name__
  # The first frame is the one that caught it.
  places = [(x.f_code.co_filename, line) for x, line in traceback.walk_tb(error.__traceback__)]
  places = [(name, line) for name, line in places[1:] if name not in BETWEEN and name[0] != "<"]
  library = lambda name: (
    name.startswith(STANDARD_LIBRARY) or f"{os.sep}site-packages{os.sep}" in name
  )
  places = [(name, line) for name, line in places if not library(name)] or places
  return f"{text} ({places[-1][0]}:{places[-1][1]})" if places else text
