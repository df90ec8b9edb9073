"""What an estimator is, and the advantages made of one.

    advantage = scale(reward + shaping - baseline)

Shaping (the overlong penalty) is a property of a rollout, not of the prompt's difficulty: it is
added to the reward and not clipped, and baselines that compare a prompt's rollouts with each other
compare shaped rewards (DAPO, arXiv 2503.14476, 3.4). The test, the fusion and V speak of the
verifier's reward alone, so that a rollout pays its penalty in full.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from v05_jax import groups as grouping
from v05_jax import plug, shrinkage
from v05_jax.groups import Groups

STD_EPSILON = 1e-6  # added to standard deviations that divide
# functions of an Estimator whose first argument is its own state
OF_STATE = ("baseline", "scale", "explain", "unseen", "expect", "prompt", "counts")


class Estimator(NamedTuple):
  """A baseline, what it learns, and how it is shown. `value` [P] is the prior V, NaN = it does not
  speak; `state` is what `init` and `learn` return. All but `init` run inside of a program."""

  # (state, Groups, value) -> [P, K] or [P, 1]: what each rollout's reward is compared with
  baseline: Callable
  init: Callable = lambda: ()
  # (state, Groups, value) -> state. The groups hold all rollouts: learn from
  # `groups.unconditional`.
  learn: Callable = lambda state, groups, value: state
  # (state, Groups, value, reward + shaping - baseline [P, K]) -> advantage [P, K]
  scale: Callable = lambda state, groups, value, difference: difference
  # (state, Groups, value) -> {name: [P]}, for metrics and --mode=sample. "baseline" is that of all
  # rollouts, "weight" that of the group mean in it, "expected_mse" its squared error as the
  # estimator sees it; any other name is shown as it is.
  explain: Callable = lambda state, groups, value: {}
  # The same as `baseline`, from a rollout's k - 1 others alone; None = `baseline` is that already.
  unseen: Callable | None = None
  # (state, row [P], step, value) -> [P]: what to expect of a prompt before any rollout
  expect: Callable = lambda state, row, step, value: value
  of_batch: bool = False  # advantages depend on the other prompts of a step
  # The baseline compares a group's shaped rewards (`groups.shaped`), so that what is added to all
  # rewards of a group changes no advantage
  of_shaped: bool = False
  counts_history: bool = False  # it wants V without the prompt's history, which it counts itself
  # (state, groups, value) -> what `counts` knows of each prompt, arrays [P]
  prompt: Callable = lambda state, groups, value: ()
  # (state, prompt, value, s, k) -> baseline, elementwise, where it is a function of counts
  counts: Callable | None = None


def mean_reward(s, k):
  """vbar in [-1, 1] of s successes among k rollouts, elementwise; 0 without any."""
  return jnp.where(k > 0, 2.0 * s / jnp.where(k > 0, k, 1.0) - 1.0, 0.0)


def from_counts(counts: Callable, leave_out: bool = True, weight: Callable | None = None, **more):
  """An Estimator whose baseline is a function of the successes `s` among `k` rollouts.

  Args:
    counts: (state, prompt, value, s, k) -> baseline in [-1, 1], elementwise; k may be 0.
    leave_out: every rollout is compared with the baseline of the k - 1 others, so that at a fixed k
      the policy gradient is unbiased.
    weight: (Groups, value) -> weight [P] of the group mean.
    more: other fields of Estimator.
  """
  prompt = more.get("prompt", lambda state, groups, value: ())

  def full(state, groups, value):
    return counts(state, prompt(state, groups, value), value, groups.s, groups.k)

  def others(state, groups, value):
    column = functools.partial(jax.tree.map, lambda x: x[:, None])
    k = jnp.maximum(groups.k - 1.0, 0.0)[:, None]
    s = jnp.clip(groups.s[:, None] - (groups.reward + 1.0) / 2.0, 0.0, k)
    return counts(state, column(prompt(state, groups, value)), value[:, None], s, k)

  def explain(state, groups, value):
    found = {"baseline": full(state, groups, value)}
    return found | ({"weight": weight(groups, value)} if weight else {})

  baseline = others if leave_out else lambda *arguments: full(*arguments)[:, None]
  return Estimator(
    baseline, counts=counts, unseen=others, **({"explain": explain, "prompt": prompt} | more)
  )


def at_least_two(name: str, why: str = "compares a prompt's rollouts") -> Callable:
  """`check` of an estimator that has nothing to say of a prompt with one rollout."""

  def check(config):
    if config.budget.k_init < 2:
      yield "budget.k_init", f"at least 2, since baseline {name} {why}"

  return check


def compared(name: str) -> Callable:
  """`check` of an estimator that compares a rollout with V, or else with its group's mean."""

  def check(config):
    if config.budget.k_max < 2 and not plug.speaks(config):
      yield "budget.k_max", f"at least 2, since baseline {name} has no prior to compare one with"

  return check


def standardised(state, groups, value, difference):
  """`scale` of an Estimator: centred and divided by the deviation over the whole batch."""
  total = jnp.maximum(jnp.sum(groups.mask), 1)
  centred = jnp.where(groups.mask, difference - jnp.sum(difference) / total, 0.0)
  variance = jnp.sum(centred**2) / total
  some = variance > 0
  return centred / (jnp.sqrt(jnp.where(some, variance, 1.0)) * some + STD_EPSILON)


def make(setting: plug.Setting) -> Estimator:
  """The estimator that `config.baseline` names: see `named`."""
  return named(setting.config.baseline, setting)


def named(name: str, setting: plug.Setting) -> Estimator:
  """The estimator of a name; its state is kept under that name: {label: state}. A user's own is
  tried on shapes, and a ValueError says what is wrong with it."""
  found, key = plug.make("estimator", name, setting, Estimator), plug.label(name)
  if ":" in name:
    try_out(f"baseline={name}", found)
  lift = lambda f: f and (lambda state, *rest: f(state[key], *rest))
  return found._replace(
    init=lambda: {key: jax.tree.map(canonical, plug.begun(f"baseline={name}", found.init()))},
    learn=lambda state, *rest: {key: found.learn(state[key], *rest)},
    **{x: lift(getattr(found, x)) for x in OF_STATE},
  )


def canonical(x):
  """An array in the dtype that programs give it, such as float32 for float64."""
  return x if isinstance(x, jax.Array) else x.astype(jax.dtypes.canonicalize_dtype(x.dtype))


def try_out(what: str, estimator: Estimator):
  """Raises ValueError where a function of the estimator raises, or gives another shape than
  expected."""
  prompts, rollouts = 3, 2
  example = grouping.make(np.zeros((prompts, rollouts)), np.ones((prompts, rollouts), bool))
  of = lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))
  groups, value = jax.tree.map(of, example), jax.ShapeDtypeStruct((prompts,), np.float32)
  run = lambda name, *rest: plug.call(
    f"{what}: {name}", jax.eval_shape, getattr(estimator, name), *rest
  )
  state = run("init")
  shapes = {
    "baseline": (run("baseline", state, groups, value), [(3, 2), (3, 1)]),
    "scale": (run("scale", state, groups, value, groups.reward), [(3, 2)]),
  }
  for name, found in run("explain", state, groups, value).items():
    shapes[f"explain: {name}"] = found, [(3,)]
  for name, (found, wanted) in shapes.items():
    if getattr(found, "shape", None) not in wanted:
      shape = getattr(found, "shape", type(found).__name__)
      raise ValueError(
        f"{what}: {name}: found {shape} for 3 prompts of 2 rollouts, expected "
        f"{' or '.join(map(str, wanted))}"
      )
  form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  after = run("learn", state, groups, value)
  if form(after) != form(state):
    raise ValueError(f"{what}: learn: found the state {form(after)}, expected {form(state)}")


def advantages(estimator: Estimator, state, groups: Groups, value):
  """Advantages [P, K], 0 where masked, and what is behind them, {name: [P]}: what the estimator
  explains, and the test of V (`delta2` and `statistic` of `shrinkage.fuse`)."""
  baseline = estimator.baseline(state, groups, value)
  difference = jnp.where(groups.mask, groups.shaped - baseline, 0.0)
  advantage = jnp.where(groups.mask, estimator.scale(state, groups, value, difference), 0.0)
  test = shrinkage.fuse(groups.vbar, groups.k, value)
  count = jnp.maximum(groups.k, 1.0)
  found = {"baseline": jnp.sum(jnp.where(groups.mask, baseline, 0.0), axis=1) / count}
  found |= {"weight": jnp.full_like(groups.vbar, jnp.nan)}
  found |= estimator.explain(state, groups, value)
  return advantage, found | {"delta2": test.delta2, "statistic": test.statistic}


def squared_unseen(estimator: Estimator, state, groups: Groups, value, weight=1.0):
  """Mean over a prompt's rollouts of weight_i (r_i - baseline of the k - 1 others)^2, [P]; NaN
  without any. weight: [P, K] or the same for all.

  For rewards in {-1, 1} and a k fixed in advance its expectation is E[1 - mu^2] + MSE of the
  baseline at k - 1, so it ranks baselines on real rollouts without knowing the true mean mu. Give
  the rollouts whose number no outcome has chosen. With k = 1 nothing but the priors is assessed (a
  group mean is 0). With the squared length of a rollout's gradient as its weight, it is the second
  moment of the policy gradient.
  """
  others = (estimator.unseen or estimator.baseline)(state, groups, value)
  square = weight * (groups.reward - others) ** 2
  total = jnp.sum(jnp.where(groups.mask, square, 0.0), axis=1)
  return jnp.where(groups.k > 0, total / jnp.maximum(groups.k, 1.0), jnp.nan)


# --- By name and plain arrays, for other trainers


@functools.cache
def _of_package(name: str, rows: int = 1) -> Estimator:
  options, setting = plug.defaults("estimator", name), plug.Setting(None, rows=rows)
  return plug.find("estimator", name)(options, setting)


@functools.partial(jax.jit, static_argnames="kind")
def advantage(kind: str, reward, mask, value, shaping=0.0, state=()):
  """Advantages by an estimator of the package, for use in another trainer.

  Args:
    kind: a name that `config.baseline` may have (static).
    reward: [P, K] in [-1, 1]; a NaN is masked and lowers k.
    mask: bool [P, K], the rollout exists and counts.
    value: [P] the prior V; NaN = it does not speak.
    shaping: [P, K] or a scalar, in units of the mapped reward.
    state: what the estimator has learnt, EWA for "ewa"; () = nothing yet.

  Kinds that weigh rollouts by their score weigh all alike here, where none is given.

  Returns:
    (advantage [P, K], 0 where masked; {name: [P]} as in `advantages`).

  Raises ValueError for an unknown kind.
  """
  estimator, groups = _of_package(kind), _groups(reward, mask, shaping)
  return advantages(estimator, _known(estimator, state), groups, jnp.asarray(value))


@functools.partial(jax.jit, static_argnames="kind")
def sq_loo(kind: str, reward, mask, value, state=()):
  """`squared_unseen` [P] by an estimator of the package; the arguments are those of `advantage`."""
  estimator, groups = _of_package(kind), _groups(reward, mask)
  return squared_unseen(estimator, _known(estimator, state), groups, jnp.asarray(value))


def initial(kind: str):
  """What an estimator of the package knows before it has learnt; () where it never learns."""
  return _of_package(kind).init()


@functools.partial(jax.jit, static_argnames="kind")
def learnt(kind: str, state, reward, mask, value):
  """What an estimator of the package knows after these rollouts, from what it knew before; the
  arguments are those of `advantage`. Raises ValueError for one that remembers every row of the
  data, of which nothing is said here."""
  one, two = (jax.tree.map(np.shape, _of_package(kind, rows).init()) for rows in (1, 2))
  if one != two:
    raise ValueError(f"learnt: found {kind!r}, expected one that remembers no rows of the data")
  return _of_package(kind).learn(state, _groups(reward, mask), jnp.asarray(value))


def baseline(kind: str, value, s, k, prompt=(), state=()):
  """The baseline of a named estimator after `s` successes in `k` rollouts, elementwise.

  prompt: what the estimator knows of each prompt, as its `prompt` gives it: `beta_shrink.Fit`, or
  the (successes, rollouts) of earlier visits for "spo". Raises ValueError where it is no function
  of counts.
  """
  estimator = _of_package(kind)
  if estimator.counts is None:
    raise ValueError(f"baseline: found {kind!r}, expected one that is a function of counts")
  return estimator.counts(_known(estimator, state), prompt, *shrinkage.floats(value, s, k))


def _known(estimator: Estimator, state):
  return state if jax.tree.leaves(state) else jax.tree.map(jnp.asarray, estimator.init())


def _groups(reward, mask, shaping=0.0) -> Groups:
  reward = jnp.asarray(reward)
  reward = reward.astype(jnp.result_type(reward, jnp.float32))
  mask = jnp.asarray(mask, bool) & jnp.isfinite(reward)
  reward = jnp.where(mask, reward, 0.0)
  shaping = jnp.broadcast_to(jnp.asarray(shaping), reward.shape)
  zeros, row = jnp.zeros_like(reward), jnp.arange(len(reward))
  outcomes = grouping.outcomes(reward, mask)
  return Groups(reward, mask, *outcomes, shaping, zeros, zeros, zeros, row, jnp.int32(0))
