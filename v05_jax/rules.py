"""What each key of the config may be (`RULES`), and how keys must agree with each other.

configs/default.py declares every key once. Options of plugs have their rules beside their defaults.
"""

from collections.abc import Callable
import re
from typing import Any, NamedTuple

from v05_jax import benchmarks, plug, problems, tasks
from v05_jax.budgets.base import Budget
from v05_jax.models import lora, model_config
from v05_jax.names import is_assignments, show
from v05_jax.rewards import mixture as rewards
from v05_jax.update import losses, surrogates


class Rule(NamedTuple):
  """What a key's value may be, beyond the type of its default."""

  holds: Callable[[Any], bool]
  expected: str
  choices: tuple[str, ...] = ()


ANYTHING = Rule(lambda x: True, "anything")


def _one_of(*choices: str) -> Rule:
  return Rule(lambda x: x in choices, "one of " + ", ".join(choices), choices)


def _at_least(low) -> Rule:
  return Rule(lambda x: x >= low, f"at least {low}")


def _or_open(rule: Rule) -> Rule:
  """The rule of a key that may be left to the machine, by 0 or an empty text."""
  expected = f"{rule.expected}, or {'an empty text' if rule.choices else 0} to have it chosen"
  return Rule(lambda x: x in (0, "") or rule.holds(x), expected, rule.choices)


_NAMES = Rule(
  lambda x: len(set(x)) == len(x) > 0 and all(re.fullmatch(r"\w+", str(name)) for name in x),
  "at least one name, each once; on the command line add,sub",
)
_MATRICES = Rule(
  lambda x: len(set(x)) == len(x) > 0 and set(x) <= set(lora.TARGETS),
  f"at least one of {', '.join(lora.TARGETS)}, each once; on the command line q,v",
)
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function


def _is_reward(value) -> bool:
  try:
    targets = rewards.targets(value)
  except ValueError:
    return False
  return all(x in rewards.KNOWN or _TARGET.fullmatch(x) for x in targets)


_REWARD = Rule(_is_reward, rewards.EXPECTED, (*rewards.KNOWN, "module:function"))


_RANGES = (
  (_at_least(1), "rollouts_per_step data.size prior.context prior.min_support"),
  (_or_open(_at_least(1)), "sampler.slots sampler.open_prompts sampler.prefill loss.micro_rows"),
  (_at_least(0), "cpu_devices"),
  (_at_least(1), "sampler.chunk sampler.share sampler.slot_sizes sampler.column_sizes"),
  (_at_least(1), "sampler.max_prompt sampler.max_response budget.k_init budget.k_max"),
  (_at_least(1), "selection.pool"),
  (_at_least(1), "loss.minibatches loss.epochs loss.vocab_chunk loss.replay_age"),
  (_at_least(1), "sft.batch eval.size checkpoint.keep"),
  (_at_least(0), "num_steps num_rollouts data.seed data.scratchpad rewards.overlong_buffer"),
  (_at_least(0), "sampler.top_k"),
  (_at_least(0), "budget.max_resample loss.clip_high loss.kl_coef loss.entropy_coef"),
  (_at_least(0), "loss.row_length loss.max_skipped loss.replay"),
  (_at_least(0), "optimizer.learning_rate optimizer.warmup_steps optimizer.weight_decay"),
  (_at_least(0), "optimizer.clip_norm sft.steps sft.learning_rate sft.warmup_steps"),
  (_at_least(0), "eval.period eval.samples checkpoint.period"),
  (_at_least(1), "value.steps value.tasks value.pairs value.window value.queries value.width"),
  (
    _at_least(1),
    "value.heads value.bottleneck value.estimators value.layers value.embed value.attention_heads",
  ),
  (_at_least(1), "value.group value.thinking"),
  (_at_least(0), "value.learning_rate value.weight_decay"),
  (_at_least(4), "value.support"),  # of fewer rows the head is not asked
  (Rule(lambda x: 0 <= x <= 1, "at least 0 and at most 1"), "value.pair_weight value.warmup"),
  (_one_of("adapter", "head", "both"), "value.train"),
  (Rule(lambda x: 0 <= x < 2**32, "at least 0 and below 2**32"), "seed"),
  (Rule(lambda x: x > 0, "above 0"), "value.clip_norm optimizer.eps"),
  (Rule(lambda x: 1 <= x <= 1024, "at least 1 and at most 1024"), "rewards.workers"),
  (Rule(lambda x: 0 < x <= 86_400, "seconds above 0 and at most 86400, a day"), "rewards.timeout"),
  (Rule(lambda x: abs(x) <= 1e30, "at least -1e30 and at most 1e30"), "rewards.low rewards.high"),
  (Rule(lambda x: x > 0, "above 0"), "sampler.temperature eval.temperature"),
  (Rule(lambda x: 0 < x <= 1, "above 0 and at most 1"), "sampler.top_p loss.negative_tokens"),
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
  (
    Rule(
      lambda x: is_assignments(x, r"\w+\.\w+"), "TASK.OPTION=VALUE, each once, with commas between"
    ),
    "data.options",
  ),
  (Rule(is_assignments, "NAME=VALUE, each once, with commas between"), "data.chat_template_kwargs"),
  (_at_least(0), "policy.lora_rank"),
  (Rule(lambda x: x > 0, "above 0"), "policy.lora_alpha"),
  (_MATRICES, "policy.lora_targets"),
  (_REWARD, "reward"),
  (_or_open(_one_of(*model_config.DTYPES)), "policy.dtype"),
  (_or_open(_one_of(*model_config.REMAT)), "policy.remat"),
  (_one_of("plain", "flash"), "policy.attention"),
  (_one_of(*tasks.SPLITS), "data.split eval.split"),
  (_one_of("score", "fail", "mask"), "sampler.truncated"),
  (_one_of(*losses.AGGREGATES), "loss.aggregate"),
  (_one_of("sampler", "recompute"), "loss.old_logprob"),
  (_one_of(*surrogates.SURROGATES), "loss.surrogate"),
  (_one_of("none", *surrogates.CORRECTIONS), "loss.correction"),
  (Rule(lambda x: 0 <= x < 1, "at least 0 and below 1"), "loss.correction_low"),
  (Rule(lambda x: x > 1, "above 1"), "loss.correction_high"),
  (_one_of("spread", "second_moment"), "selection.score"),
  (_one_of("constant", "cosine", "linear"), "optimizer.schedule"),
  (ANYTHING, "value.data value.heldout value.start value.head value.natural value.dropout"),
  (ANYTHING, "policy.preset policy.family data.prompt_key data.answer_key"),
  (ANYTHING, "data.chat_template selection.weighted"),
  (ANYTHING, "loss.share_prompts rewards.success"),
  (
    Rule(lambda x: re.fullmatch(r"[\w.-]+", x) is not None, "letters, digits, _ . -"),
    "metrics.project",
  ),
  (
    Rule(
      lambda x: re.fullmatch(r"[\w .:+=,@-]*", x) is not None,
      "letters, digits, _ . : + = , @ -, or empty",
    ),
    "metrics.name",
  ),
)
RULES = {key: rule for rule, keys in _RANGES for key in keys.split()}
# Keys that name plugs are checked by `plug.problems`.
RULES |= {kind.key: ANYTHING for kind in plug.KINDS.values()}


def relations(config, flat, wrong) -> list[str]:
  """Problems between keys, beyond those of the keys that are `wrong` already."""
  problems = []
  loss, sampler, policy = config.loss, config.sampler, config.policy
  longest = sampler.max_prompt + sampler.max_response - 1

  def need(holds: bool, key: str, expected: str):
    if not holds and key not in wrong:
      problems.append(f"{key}: found {show(flat[key])}, expected {expected}")

  one_prompt = f"at least budget.k_init = {config.budget.k_init}, what one prompt takes"
  need(config.rollouts_per_step >= config.budget.k_init, "rollouts_per_step", one_prompt)
  alone = "1, since budget.max_resample replaces prompts by others"
  need(config.selection.pool == 1 or not config.budget.max_resample, "selection.pool", alone)
  weighted = config.selection.weighted and config.selection.pool > 1
  unbiased = (
    "rollout, prompt or constant, since selection.weighted divides by no random number of tokens"
  )
  need(not weighted or loss.aggregate != "token", "loss.aggregate", unbiased)
  tracked = "second_moment" in map(plug.label, config.prior.wrappers)
  tracker = "spread, or second_moment with the wrapper second_moment among prior.wrappers"
  need(config.selection.score == "spread" or tracked, "selection.score", tracker)
  row = f"0, or at least {longest} = sampler.max_prompt + sampler.max_response - 1"
  need(loss.row_length == 0 or loss.row_length >= longest, "loss.row_length", row)
  flash = "bfloat16, since policy.attention is flash, whose kernels want it"
  need(policy.attention == "plain" or policy.dtype in ("bfloat16", ""), "policy.dtype", flash)
  ends = "0, since optimizer.schedule is not constant: its end is that of num_steps"
  constant = config.optimizer.schedule == "constant"
  need(constant or not config.num_rollouts, "num_rollouts", ends)
  plain = "False, since policy.attention is flash, whose kernels see one segment a token"
  need(policy.attention == "plain" or not loss.share_prompts, "loss.share_prompts", plain)
  _ratios(loss, need)
  low, high = config.rewards.low, config.rewards.high
  less = f"less than rewards.high = {high}, by more than float32 rounds"
  apart = high - low > 1e-6 * max(abs(low), abs(high), 1e-30)
  need(apart or "rewards.high" in wrong, "rewards.low", less)
  response = f"at most sampler.max_response = {sampler.max_response}"
  buffer = config.rewards.overlong_buffer
  need(buffer <= sampler.max_response, "rewards.overlong_buffer", response)
  _plugs(config, need)
  named = () if "reward" in wrong else rewards.targets(config.reward)
  if named:
    _success(config, need)
  _data(config, need, named)
  _value(config.value, need)
  context = f"at most prior.context = {config.prior.context}"
  need(config.prior.min_support <= config.prior.context, "prior.min_support", context)
  axes = [axis for axis, size in config.mesh.items() if size == -1]
  if len(axes) > 1:
    need(False, f"mesh.{axes[-1]}", f"-1 for one axis alone, not for {' and '.join(axes)}")
  return problems


def _ratios(loss, need):
  """Which surrogates have a dual bound, and which log-probs corrections and replay need."""
  bounded = " and ".join(surrogates.DUAL)
  dual = f"0, since loss.surrogate is {loss.surrogate}: {bounded} alone have a dual bound"
  need(loss.surrogate in surrogates.DUAL or loss.clip_dual == 0, "loss.clip_dual", dual)
  both = f"recompute, since loss.correction is {loss.correction}, which compares the trainer's "
  both += "log-probs with the sampler's"
  need(loss.correction == "none" or loss.old_logprob == "recompute", "loss.old_logprob", both)
  sampled = "sampler, since loss.replay compares each rollout with the policy that sampled it"
  need(loss.replay == 0 or loss.old_logprob == "sampler", "loss.old_logprob", sampled)
  ratio = (
    "a surrogate with a ratio to the policy that sampled, since loss.replay takes older rollouts"
  )
  need(loss.replay == 0 or loss.surrogate != "reinforce", "loss.surrogate", ratio)


def _plugs(config, need):
  """What plugs require of other keys; that those which keep a state have names of their own; and no
  more minibatches than a step has prompts."""
  for key, names, among in (
    ("prior.wrappers", (config.prior.kind, *config.prior.wrappers), "priors and wrappers"),
    ("observe", dict.fromkeys(config.observe), "observers"),
  ):
    labels = [plug.label(name) for name in names]
    twice = next((label for label in labels if labels.count(label) > 1), "")
    need(
      not twice, key, f"{among} whose names differ, since each has its state by its own: {twice}"
    )
  for kind, name in plug.chosen(config):
    what, check = f"{plug.KINDS[kind].key}={name}", plug.declared(kind, name).check
    for key, expected in plug.call(what, lambda check=check: list(check(config))):
      need(False, key, expected)
  if config.budget.k_init <= config.budget.k_max:
    budget = plug.make("budget", config.budget.rule, plug.Setting(config), Budget)
    most = budget.limits.mean or budget.limits.most
    fewest = max(1, round(config.rollouts_per_step / max(1, most)))  # prompts of a step
    prompts = (
      f"at most {fewest}, the prompts of a step (rollouts_per_step / {most:g} rollouts of each)"
    )
    need(config.loss.minibatches <= fewest, "loss.minibatches", prompts)
    signal = "0, since no group of one rollout has a signal: every step would sample for nothing"
    need(most > 1 or not config.budget.max_resample, "budget.max_resample", signal)


def _success(config, need):
  """`rewards.success` names one of several rewards."""
  try:
    rewards.success(config.reward, config.rewards.success)
  except ValueError as error:
    need(False, "rewards.success", str(error).partition("expected ")[2])


def _data(config, need, named):
  """Files and benchmarks want other rewards than the built-in tasks, of those `named`, and another
  evaluation."""
  own = {"data.path": config.data.path != "tasks", "eval.path": config.eval.path != "tasks"}
  for key in (key for key, is_file in own.items() if is_file):
    other = (
      f'"math", "expression", "reasoning_gym" or module:function, since {key} is a file or '
      'benchmark: "task" knows the built-in tasks alone'
    )
    need("task" not in named, "reward", other)
  _gym(config, need, named)
  scored = "score, since a scratchpad (data.scratchpad) that reaches the limit changes no verdict"
  need(
    not config.data.scratchpad or config.sampler.truncated == "score", "sampler.truncated", scored
  )
  if config.eval.period:
    heldout = (
      "a held-out file or benchmark, as data.path is one (or eval.period = 0: no evaluation)"
    )
    need(own["eval.path"] or not own["data.path"], "eval.path", heldout)
    sampled = (
      "at least 1, since eval.path is a file or benchmark: only the built-in tasks have an exact "
      "success"
    )
    need(config.eval.samples > 0 or not own["eval.path"], "eval.samples", sampled)
    exact = tasks.has_exact(config.data.families, config.sampler)
    keys = "data.families, sampler.top_k and sampler.top_p"
    unknown = f"at least 1, since no success is exact with these {keys}"
    need(config.eval.samples > 0 or own["eval.path"] or exact, "eval.samples", unknown)
    drawn = problems.named(config.eval.path)
    each = f"at least {len(drawn)}, a problem of each task of eval.path"
    need(config.eval.size >= len(drawn), "eval.size", each)


def _gym(config, need, named):
  """reasoning-gym's verifiers know its own problems alone; options are those of tasks in use."""
  paths = {"data.path": config.data.path, "eval.path": config.eval.path}
  if "reasoning_gym" in named:
    for key, path in paths.items():
      if key == "data.path" or path != "tasks":
        sources = benchmarks.names(path)
        need(
          all(benchmarks.gym_tasks(name) for name in sources),
          key,
          f'"{benchmarks.GYM}" and names of its tasks, since the reward is reasoning_gym',
        )
  if RULES["data.options"].holds(config.data.options):
    drawn = {task for path in paths.values() for task in problems.named(path)}
    unused = [task for task in problems.read_options(config.data.options) if task not in drawn]
    expected = (
      f"options of tasks that data.path or eval.path names, which {', '.join(unused)} is not"
    )
    need(not unused, "data.options", expected)


def _value(value, need):
  """Problems between the keys of `config.value`, the training of a V0."""
  need(
    value.heads > 0 and value.width % value.heads == 0,
    "value.heads",
    f"a divisor of value.width = {value.width}",
  )
  divisor = f"a divisor of value.embed = {value.embed}"
  divides = value.attention_heads > 0 and value.embed % value.attention_heads == 0
  need(divides, "value.attention_heads", divisor)
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
