"""What a budget rule is, and how one is asked from outside of the training loop."""

from collections.abc import Callable
import types
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from v05_jax import groups as grouping
from v05_jax import plug


class Limits(NamedTuple):
  """What is known of a prompt's number of rollouts beforehand."""

  first: int  # rollouts to begin with; of a rule that divides a total, at least
  most: int
  mean: float | None  # over a batch, where the rule fixes it; None = the outcomes decide
  unconditional: int  # a prompt's first rollouts, whose number no outcome has chosen
  # a prompt gets no more than it began with, unless all prompts are asked again together
  closes: bool


class Asked(NamedTuple):
  """Where the rollouts of P prompts stand when a rule is asked for more."""

  # int [P]  so far; 0 = padding. A rollout without a verdict is not in `groups.k`
  issued: np.ndarray
  ended: np.ndarray  # bool [P]  all of them have ended and have their verdicts


class Budget(NamedTuple):
  """A rule. `value` [P] is the prior V, NaN = it does not speak; `state` is what `init` and `learn`
  return. All run on the host."""

  limits: Limits
  # (value [P], real bool [P]) -> int [P]: rollouts to begin with, at least 1 of a real prompt
  first: Callable
  # (state, Groups so far, value [P], Asked) -> int [P]: further rollouts, for the prompts that have
  # ended; None = never any. What a response's tokens say (logprob, score) is not in these groups
  more: Callable | None = None
  init: Callable = lambda: ()
  # (Groups, value [P], rollouts bought [P]) -> {"stop": why there are no more [P], "gain": what one
  # more would have taken off the MSE [P], "cost": what that was compared with}, for --mode=sample
  explain: Callable = lambda groups, value, bought: {}
  # (state, Groups, value) -> state
  learn: Callable = lambda state, groups, value: state


def make(setting: plug.Setting) -> Budget:
  """The rule that `config.budget.rule` names, tried on a few prompts; its state is {label:
  state}."""
  name = setting.config.budget.rule
  found, what, key = (
    plug.make("budget", name, setting, Budget),
    f"budget.rule={name}",
    plug.label(name),
  )
  value, real = np.full(3, np.nan, np.float32), np.array([True, True, False])
  begun = plug.call(what, found.first, value, real)
  _check(what, "first", begun)
  _within(f"{what}: first", begun, real, 1, found.limits.most)
  if found.more:
    groups = grouping.make(np.zeros((3, found.limits.most)), np.zeros((3, found.limits.most), bool))
    asked = Asked(np.array([1, 1, 0]), real)
    _check(what, "more", plug.call(what, found.more, found.init(), groups, value, asked))

  def first(value, real):
    count = plug.call(what, found.first, value, real)
    return _within(f"{what}: first", count, real, 1, found.limits.most)

  def more(state, groups, value, asked):
    count = plug.call(what, found.more, state[key], groups, value, asked)
    left = found.limits.most - asked.issued
    return _within(f"{what}: more", count, asked.ended, 0, left)

  def learn(state, *rest):
    after = plug.call(what, found.learn, state[key], *rest)
    return {key: plug.kept(f"{what}: learn", state[key], after)}

  init = lambda: {key: plug.first_state(what, found.init)}
  return found._replace(first=first, more=found.more and more, init=init, learn=learn)


def _check(what: str, name: str, found):
  found = np.asarray(found)
  if found.shape != (3,) or not np.issubdtype(found.dtype, np.integer):
    raise ValueError(
      f"{what}: {name}: found {found.dtype}{list(found.shape)} for 3 prompts, expected integers [3]"
    )


def _within(what: str, count, where, least: int, most) -> np.ndarray:
  """int [P]: the counts. Raises PlugError where one of those that matter is outside of the
  bounds: the sampler would wait for rollouts that nobody asks for, or has no room for."""
  count, most = np.asarray(count), np.broadcast_to(most, np.shape(count))
  wrong = np.flatnonzero(where & ((count < least) | (count > most)))
  if len(wrong):
    expected = f"expected {least} to {most[wrong[0]]}"
    raise plug.PlugError(f"{what}: found {count[wrong[0]]} rollouts for a prompt, {expected}")
  return count


def constant(count: int) -> Callable:
  """`first` of a rule that begins every prompt alike."""
  return lambda value, real: np.where(real, count, 0)


def fixed_number(count: int) -> Budget:
  """The same number of rollouts for every prompt."""
  return Budget(Limits(count, count, count, count, closes=True), constant(count))


def extra(rule: str, state, value, s, k, ended, total: int = 0, **options):
  """Further rollouts for each of P prompts by a rule of the package, in another trainer's sampler.

  Args:
    rule: a name that `config.budget.rule` may have.
    state: EWA (`shrinkage.ewa_init`) for "neyman", which must not have learnt from these rollouts
      yet; None for the others.
    value: [P] the prior V; NaN = none.
    s, k: [P] successes, the sum of (r + 1) / 2 over the k rollouts so far, r in [-1, 1].
    ended: bool [P] all issued rollouts of the prompt have verdicts; elsewhere the answer is 0.
    total: rollouts of the whole batch, those in k included, for a rule that divides one.
    options: k_max, [P] or a number (16 by default), and the rule's own options; real = bool [P], no
      padding. A rollout without a verdict is not in k: take it off k_max and total.

  Returns int32 [P]. Raises ValueError for an unknown rule or option.
  """
  declared = plug.declared("budget", rule).options
  real = np.broadcast_to(options.pop("real", True), np.shape(k))
  k, most, ended = (np.where(real, x, 0) for x in (k, options.pop("k_max", 16), ended))
  if unknown := [name for name in options if name not in declared]:
    raise ValueError(f"budget.extra: found {unknown[0]}, expected one of {', '.join(declared)}")

  def of_prompts(lost) -> Budget:
    """The rule with each prompt's own k_init and k_max; `lost` rollouts of it have no verdict."""
    own = dict(options)
    if "k_mean" in declared:
      own["k_mean"] = (total + np.sum(lost)) / max(real.sum(), 1)
    bounds = types.SimpleNamespace(k_init=k + lost, k_max=most + lost)
    setting = plug.Setting(types.SimpleNamespace(budget=bounds))
    return plug.find("budget", rule)(plug.defaults("budget", rule, **own), setting)

  if of_prompts(0).more is None:  # the rule knows every number beforehand
    more = of_prompts(0).first(np.broadcast_to(value, k.shape), real) - k
  else:  # the rule takes a prompt without rollouts for padding and would give it none
    dtype = jnp.result_type(np.asarray(value), np.asarray(s), jnp.float32)
    value, s, counted = (np.broadcast_to(np.asarray(x, dtype), k.shape) for x in (value, s, k))
    groups = grouping.make(np.zeros((len(k), 1), dtype), np.zeros((len(k), 1), bool))
    groups = groups._replace(k=counted, s=s, vbar=2 * s / counted.clip(1) - 1)
    asked = Asked(k + real, ended.astype(bool))
    more = of_prompts(real.astype(int)).more(state, groups, value, asked)
  return np.where(ended, more, 0).astype(np.int32)
