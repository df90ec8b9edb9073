"""A run's config: read from a file, checked, saved and read back.

configs/default.py declares every key once; this module knows what each key may be (`RULES`).
Nothing here touches a device, so a typing error costs seconds. `command_line` overrides keys by
flags.
"""

from collections.abc import Callable
import difflib
import json
import math
import re
import traceback
import types
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from configs import default
from v05_jax import benchmarks

# Keys that may change when a run continues; every other one is part of what the run is.
RESUMABLE = (
  "num_steps",
  "data.folder",
  "eval.period",
  "checkpoint.period",
  "checkpoint.keep",
  "cpu_devices",
  "mesh.data",
  "mesh.fsdp",
  "mesh.tensor",
)


class Rule(NamedTuple):
  """What a key's value may be, beyond the type of its default."""

  holds: Callable[[Any], bool]
  expected: str
  choices: tuple[str, ...] = ()


def _one_of(*choices: str) -> Rule:
  return Rule(lambda x: x in choices, "one of " + ", ".join(choices), choices)


def _at_least(low) -> Rule:
  return Rule(lambda x: x >= low, f"at least {low}")


_NAMES = Rule(
  lambda x: len(set(x)) == len(x) > 0 and all(re.fullmatch(r"\w+", str(name)) for name in x),
  "at least one name, each once; on the command line \"('add', 'sub')\"",
)
_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
_MATRICES = Rule(
  lambda x: len(set(x)) == len(x) > 0 and set(x) <= set(_TARGETS),
  f"at least one of {', '.join(_TARGETS)}, each once; on the command line \"('q', 'v')\"",
)
_REWARD = Rule(
  lambda x: x in ("task", "math") or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", x) is not None,
  "task, math or module:function",
  ("task", "math", "module:function"),
)
_BASELINES = (
  *("v05", "v05_loo", "ewa", "beta_shrink", "batch_shrink", "james_stein", "spo"),
  *("grpo", "dr_grpo", "rloo", "value"),
)
_RANGES = (
  (_at_least(1), "rollouts_per_step data.size rewards.workers prior.context prior.min_support"),
  (_at_least(1), "sampler.slots sampler.chunk sampler.open_prompts sampler.prefill"),
  (_at_least(0), "cpu_devices"),
  (_at_least(1), "sampler.share sampler.slot_sizes sampler.column_sizes"),
  (_at_least(1), "sampler.max_prompt sampler.max_response budget.k_init budget.k_max budget.block"),
  (_at_least(1), "budget.k_mean selection.pool"),
  (_at_least(1), "loss.minibatches loss.epochs loss.micro_rows loss.vocab_chunk"),
  (_at_least(1), "sft.batch eval.size checkpoint.keep"),
  (_at_least(0), "num_steps data.seed rewards.overlong_buffer sampler.top_k"),
  (_at_least(0), "budget.cost budget.max_resample loss.clip_high loss.kl_coef loss.entropy_coef"),
  (_at_least(0), "loss.row_length loss.max_skipped"),
  (_at_least(0), "optimizer.learning_rate optimizer.warmup_steps optimizer.weight_decay"),
  (_at_least(0), "optimizer.clip_norm sft.steps sft.learning_rate sft.warmup_steps"),
  (_at_least(0), "eval.period eval.samples checkpoint.period prior.fallback"),
  (
    _at_least(1),
    "value.steps value.tasks value.support value.pairs value.window value.queries value.width",
  ),
  (
    _at_least(1),
    "value.heads value.bottleneck value.estimators value.layers value.embed value.attention_heads",
  ),
  (_at_least(1), "value.group value.thinking"),
  (_at_least(0), "value.learning_rate value.weight_decay"),
  (Rule(lambda x: 0 <= x <= 1, "at least 0 and at most 1"), "value.pair_weight value.warmup"),
  (_one_of("adapter", "head", "both"), "value.train"),
  (Rule(lambda x: 0 <= x < 2**32, "at least 0 and below 2**32"), "seed"),
  (
    Rule(lambda x: x > 0, "above 0"),
    "value.clip_norm rewards.timeout prior.bandwidth prior.half_life optimizer.eps",
  ),
  (Rule(lambda x: x > 0, "above 0"), "sampler.temperature eval.temperature"),
  (Rule(lambda x: 0 < x <= 1, "above 0 and at most 1"), "sampler.top_p"),
  (Rule(lambda x: 0 <= x <= 1, "at least 0 and at most 1"), "loss.clip_low"),
  (Rule(lambda x: x == 0 or x > 1, "above 1, or 0 for off"), "loss.clip_dual"),
  (Rule(lambda x: 0 <= x < 1, "at least 0 and below 1"), "optimizer.b1 optimizer.b2"),
  (Rule(lambda x: x == -1 or x >= 1, "at least 1, or -1"), "mesh.data mesh.fsdp mesh.tensor"),
  (Rule(lambda x: x.strip() != "", "a text that is not empty"), "policy.path data.folder"),
  (Rule(benchmarks.is_path, benchmarks.EXPECTED), "data.path eval.path"),
  (
    Rule(lambda x: not x or "{prompt}" in x, "a text that holds {prompt}, or an empty one"),
    "data.template",
  ),
  (_NAMES, "data.families"),
  (_at_least(0), "policy.lora_rank"),
  (Rule(lambda x: x > 0, "above 0"), "policy.lora_alpha"),
  (_MATRICES, "policy.lora_targets"),
  (_REWARD, "reward"),
  (_one_of("float32", "bfloat16"), "policy.dtype"),
  (_one_of("none", "full", "attention", "dots"), "policy.remat"),
  (_one_of("plain", "flash"), "policy.attention"),
  (_one_of("train", "validation", "heldout"), "data.split eval.split"),
  (_one_of("none", "constant", "neighbours", "v0"), "prior.kind"),
  (_one_of("score", "fail", "mask"), "sampler.truncated"),
  (_one_of("fixed", "sequential", "two_stage", "neyman", "value"), "budget.rule"),
  (_one_of(*_BASELINES), "baseline"),
  (_one_of("after", "before"), "ewa_update"),
  (_one_of("token", "rollout", "prompt", "constant"), "loss.aggregate"),
  (_one_of("sampler", "recompute"), "loss.old_logprob"),
  (_one_of("constant", "cosine", "linear"), "optimizer.schedule"),
  (
    Rule(lambda x: True, "anything"),
    "value.data value.heldout value.start value.head value.natural value.dropout",
  ),
  (
    Rule(lambda x: True, "anything"),
    "collect policy.preset policy.family data.prompt_key data.answer_key prior.path",
  ),
  (
    Rule(lambda x: True, "anything"),
    "data.chat_template rewards.low rewards.high prior.history selection.weighted",
  ),
  (Rule(lambda x: True, "anything"), "prior.recalibrate loss.share_prompts"),
)
RULES = {key: rule for rule, keys in _RANGES for key in keys.split()}


# --- Dictionaries and JSON


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Every leaf by its dotted key: `{"baseline": "v05", "budget.block": 1, ...}`."""
  flat = {}

  def visit(node, prefix):
    for name, value in node.items():
      if isinstance(value, dict):
        visit(value, f"{prefix}{name}.")
      else:
        flat[prefix + name] = value

  visit(to_dict(config), "")
  return flat


def to_dict(config: ConfigDict) -> dict[str, Any]:
  """The config as plain nested dictionaries, references resolved."""
  return config.copy_and_resolve_references().to_dict()


def to_json(config: ConfigDict) -> str:
  """The text of a run's config.json; `from_json` reads it back as an equal config."""
  return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str, name: str = "config.json") -> ConfigDict:
  """The config saved by `to_json`, lists as tuples again. Raises ValueError that names the file."""
  try:
    tree = json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(f"{name}, line {e.lineno}: found no JSON ({e.msg}), expected one") from None
  if not isinstance(tree, dict):
    raise ValueError(f"{name}: found {_show(tree)}, expected an object of config keys")
  tuples = lambda node: (
    {name: tuples(value) for name, value in node.items()}
    if isinstance(node, dict)
    else tuple(tuples(value) for value in node)
    if isinstance(node, list)
    else node
  )
  return ConfigDict(tuples(tree))


# --- Checks


def validate(config: ConfigDict) -> None:
  """Raises one ValueError that lists every problem: the key, what was found, what was expected."""
  problems = structure(config)
  if not problems:  # the rules below need every key, at its type
    flat = flatten(config)
    wrong = [key for key, value in flat.items() if key in RULES and not RULES[key].holds(value)]
    problems = [f"{key}: found {_show(flat[key])}, expected {RULES[key].expected}" for key in wrong]
    problems += _relations(config, wrong)
  if problems:
    head = f"the config has {len(problems)} problem" + ("s" if len(problems) > 1 else "")
    raise ValueError("\n  ".join([head, *problems]))


def structure(config) -> list[str]:
  """Missing keys, unknown keys and wrong types, against configs/default.py."""
  known, given = flatten(default.get_config()), flatten(config)
  sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
  problems = []
  for key, value in given.items():
    if key in sections:
      problems.append(f"{key}: found {_show(value)}, expected a section of keys")
    elif key not in known:
      problems.append(f"{key}: found an unknown key{nearest(key, known)}")
    elif not _same_type(value, known[key]):
      problems.append(f"{key}: found {_show(value)}, expected {_type(known[key])}")
  whole = {key for key in sections if key in given}
  for key in known:
    if key not in given and not any(key.startswith(section + ".") for section in whole):
      problems.append(f"{key}: missing, expected {_type(known[key])} as in configs/default.py")
  return problems


def _same_type(value, like) -> bool:
  if isinstance(like, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(like, bool)
  if isinstance(like, float):
    return isinstance(value, (int, float)) and math.isfinite(value)
  return isinstance(value, type(like))


def _type(like) -> str:
  names = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
  return names.get(type(like), f"a {type(like).__name__}")


def _relations(config, wrong) -> list[str]:
  """Problems between keys, beyond those of the keys that are `wrong` already."""
  flat, problems = flatten(config), []
  budget, sampler = config.budget, config.sampler
  # A rule that stops by the outcome may take as few prompts as if every one got k_max rollouts.
  most = "k_mean" if budget.rule in ("neyman", "value") else "k_max"
  fewest_prompts = max(1, round(config.rollouts_per_step / max(1, budget[most])))
  longest = sampler.max_prompt + sampler.max_response - 1
  axes = [axis for axis, size in config.mesh.items() if size == -1]

  def need(holds: bool, key: str, expected: str):
    if not holds and key not in wrong:
      problems.append(f"{key}: found {_show(flat[key])}, expected {expected}")

  if budget.rule == "fixed":
    equal = f"budget.k_init = {budget.k_init}, since budget.rule is fixed"
    need(budget.k_max == budget.k_init, "budget.k_max", equal)
  else:
    need(budget.k_init <= budget.k_max, "budget.k_init", f"at most budget.k_max = {budget.k_max}")
  if budget.rule in ("neyman", "value"):
    between = f"between budget.k_init = {budget.k_init} and budget.k_max = {budget.k_max}"
    need(budget.k_init <= budget.k_mean <= budget.k_max, "budget.k_mean", between)
  one_prompt = f"at least budget.k_init = {budget.k_init}, what one prompt takes"
  need(config.rollouts_per_step >= budget.k_init, "rollouts_per_step", one_prompt)
  compares = config.baseline in ("grpo", "dr_grpo", "rloo", "james_stein")
  group = f"at least 2, since baseline {config.baseline} compares a prompt's rollouts"
  need(budget.k_init >= 2 or not compares, "budget.k_init", group)
  prompts = f"at most {fewest_prompts}, the prompts of a step (rollouts_per_step / budget.{most})"
  need(config.loss.minibatches <= fewest_prompts, "loss.minibatches", prompts)
  alone = "1, since budget.max_resample replaces prompts by others"
  need(config.selection.pool == 1 or not budget.max_resample, "selection.pool", alone)
  weighted = config.selection.weighted and config.selection.pool > 1
  unbiased = (
    "rollout, prompt or constant, since selection.weighted divides by no random number of tokens"
  )
  need(not weighted or config.loss.aggregate != "token", "loss.aggregate", unbiased)
  twice = "False, since the baseline spo counts the history itself"
  need(not config.prior.history or config.baseline != "spo", "prior.history", twice)
  row = f"0, or at least {longest} = sampler.max_prompt + sampler.max_response - 1"
  need(config.loss.row_length == 0 or config.loss.row_length >= longest, "loss.row_length", row)
  flash = "bfloat16, since policy.attention is flash, whose kernels want it"
  need(
    config.policy.attention == "plain" or config.policy.dtype == "bfloat16", "policy.dtype", flash
  )
  plain = "False, since policy.attention is flash, whose kernels see one segment a token"
  need(
    config.policy.attention == "plain" or not config.loss.share_prompts, "loss.share_prompts", plain
  )
  high = f"less than rewards.high = {config.rewards.high}"
  need(config.rewards.low < config.rewards.high, "rewards.low", high)
  response = f"at most sampler.max_response = {sampler.max_response}"
  need(config.rewards.overlong_buffer <= sampler.max_response, "rewards.overlong_buffer", response)
  _prior_relations(config, need)
  own = {"data.path": config.data.path != "tasks", "eval.path": config.eval.path != "tasks"}
  for key in (key for key, is_file in own.items() if is_file):
    other = (
      f'"math" or module:function, since {key} is a file or benchmark: "task" knows the '
      "built-in tasks alone"
    )
    need(config.reward != "task", "reward", other)
  if config.eval.period:
    heldout = (
      "a held-out file or benchmark, as data.path is one (or eval.period = 0: no evaluation)"
    )
    need(own["eval.path"] or not own["data.path"], "eval.path", heldout)
    sampled = (
      "at least 1, since eval.path is a file or benchmark: only the built-in tasks have an "
      "exact success"
    )
    need(config.eval.samples > 0 or not own["eval.path"], "eval.samples", sampled)
  if len(axes) > 1:
    need(False, f"mesh.{axes[-1]}", f"-1 for one axis alone, not for {' and '.join(axes)}")
  return problems


def _prior_relations(config, need) -> None:
  """The same for the value prior and its training; `need(holds, key, expected)` takes a rule."""
  value = config.value
  need(value.width % value.heads == 0, "value.heads", f"a divisor of value.width = {value.width}")
  divisor = f"a divisor of value.embed = {value.embed}"
  need(value.embed % value.attention_heads == 0, "value.attention_heads", divisor)
  need(value.embed % 4 == 0, "value.embed", "a multiple of 4")
  need(
    value.data != "synthetic" or value.train == "head",
    "value.train",
    "head, since value.data is synthetic",
  )
  trained = value.start or value.head or value.train != "adapter"
  need(
    trained,
    "value.train",
    "both, or a trained head in value.start or value.head: a new one passes no gradient on",
  )
  v0 = config.prior.kind == "v0"
  directory = (
    '"builtin", or a directory of value_prior.convert or --mode=value, since prior.kind is v0'
  )
  need(config.prior.path.strip() != "" or not v0, "prior.path", directory)
  yours = (
    "a directory of your own, since builtin knows the built-in tasks alone and data.path is another"
  )
  need(not v0 or config.prior.path != "builtin" or config.data.path == "tasks", "prior.path", yours)
  context = f"at most prior.context = {config.prior.context}"
  need(config.prior.min_support <= config.prior.context, "prior.min_support", context)


def check_resume(saved: ConfigDict, config: ConfigDict, where: str) -> None:
  """Raises ValueError where `config` differs from the one that the run in `where` was started with.

  `RESUMABLE` keys may differ: the periods of a run, its devices, and its length under a constant
  learning rate.
  """
  old, new = flatten(saved), flatten(config)
  problems = [
    f"{key}: found {_show(new.get(key))}, expected {_show(old.get(key))}"
    for key in dict.fromkeys((*old, *new))
    if key not in RESUMABLE and old.get(key) != new.get(key)
  ]
  longer, schedule = new.get("num_steps") != old.get("num_steps"), new.get("optimizer.schedule")
  if longer and schedule != "constant":
    why = f"the optimizer.schedule {schedule} of the run ends there"
    problems.append(
      f"num_steps: found {new.get('num_steps')}, expected {old.get('num_steps')}: {why}"
    )
  if problems:
    head = f"{where} holds a run of another config; take another workdir, or keep"
    raise ValueError("\n  ".join([head, *problems]))


# --- Files


def load(path: str) -> ConfigDict:
  """The config of a file: `get_config()` of a Python file, or a saved config.json.

  Raises ValueError with one line: the file, the line in it, what is wrong.
  """
  file = epath.Path(path)
  if not file.exists():
    siblings = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
    raise ValueError(f"{path}: found no such config file{nearest(str(file), siblings)}")
  if file.suffix not in (".py", ".json") or file.is_dir():
    raise ValueError(f"{path}: expected a config file, .py or .json")
  try:
    text = file.read_text()
  except (OSError, UnicodeDecodeError) as e:
    raise ValueError(f"{path}: the config file is not readable ({e})") from None
  return from_json(text, path) if file.suffix == ".json" else _execute(text, path)


def _execute(text: str, path: str) -> ConfigDict:
  module = types.ModuleType("config_file")
  module.__file__ = path
  try:
    exec(compile(text, path, "exec"), module.__dict__)
    config = module.get_config() if hasattr(module, "get_config") else None
  except SyntaxError as e:
    raise ValueError(f"{e.filename}, line {e.lineno}: {e.msg}") from None
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
    raise ValueError(f"{path}{''.join(lines[-1:])}: {one_line(e)}") from e
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path}: found no function get_config()")
  if not isinstance(config, ConfigDict):
    raise ValueError(f"{path}: get_config() returned {_show(config)}, expected a ConfigDict")
  return config


# --- Wording


def nearest(name: str, known, prefix: str = "") -> str:
  """A suggestion to append: known keys of the same last part, else the most similar name, or ""."""
  known = list(known)
  last = lambda key: key.rsplit(".", 1)[-1]
  match = [key for key in known if last(key) == last(name)][:3] if "/" not in name else []
  match = match or difflib.get_close_matches(name, known, 1)
  return f", did you mean {' or '.join(prefix + key for key in match)}?" if match else ""


def _show(value) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + "..."


def one_line(error: BaseException) -> str:
  kind = "" if isinstance(error, (ValueError, flags.Error)) else f"{type(error).__name__}: "
  return kind + " ".join(str(error).split())
