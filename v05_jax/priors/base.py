"""What a value prior is, what a wrapper of one is, and how they are composed.

    history(fallback(recalibrate(v0)))   is   prior.kind=v0, prior.wrappers=(recalibrate, fallback,
                                         history)

Each keeps its state, and what it remembers of a step's prompts, under its own name. V is in [-1,
1], 2 P(success) - 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from v05_jax import plug
from v05_jax.run.metrics import undocumented

# What the functions of priors and wrappers return.
ASKED, LEARNT = "(V [P], {name: array [P, ...]})", "(state, {metric: (sum, count)})"


class Prior(NamedTuple):
  """A prior, asked before the rollouts and taught by them. All run on the host."""

  # (state, Prompts) -> (V float32 [P], NaN = it does not speak; what `learn` is to be told: {name:
  # array [P, ...]})
  ask: Callable
  init: Callable = lambda: ()
  # (state, what `ask` remembered, Groups) -> (state, metrics as (sum, count) pairs)
  learn: Callable = lambda state, asked, groups: (state, {})
  learned: bool = True  # V differs between prompts and can be wrong: wrappers may correct it
  # what `ask` remembered -> float32 [P]: the variance of a prompt's mean reward around V, as the
  # prior sees its own error; NaN = it does not say. None = it never does
  variance: Callable | None = None


class Layer(NamedTuple):
  """What a wrapper adds to the prior inside of it."""

  # (state, Prompts, V of the inner prior, {name: what each prior inside remembers}) -> (V, what
  # `learn` is to be told: {name: array [P, ...]})
  ask: Callable
  init: Callable = lambda: ()
  # (state, what `ask` remembered, Groups) -> (state, metrics as (sum, count) pairs)
  learn: Callable = lambda state, asked, groups: (state, {})
  corrects: bool = False  # it is for learned priors alone, and left out around any other
  # (what its `ask` remembered, variance [P] of the inner prior) -> that of its own V, [P]; None =
  # it does not say, whatever is inside
  variance: Callable | None = None


def make(setting: plug.Setting) -> Prior:
  """The prior of `config.prior`, wrappers and all; its state is {name: state}."""
  options = setting.config.prior
  prior = named(options.kind, plug.make("prior", options.kind, setting, Prior))
  for name in options.wrappers:
    layer = plug.make("wrapper", name, setting, Layer)
    if prior.learned or not layer.corrects:
      prior = wrapped(name, layer, prior)
  return prior


def variance(prior: Prior, asked, count: int) -> np.ndarray:
  """float32 [P]: what the prior says of its own squared error where it was asked about `count`
  prompts, at least 0; NaN = nothing. Raises PlugError for another shape."""
  if prior.variance is None:
    return np.full(count, np.nan, np.float32)
  found = np.asarray(prior.variance(asked), np.float32)
  if found.shape != (count,):
    raise plug.PlugError(f"prior: variance: found the shape {found.shape}, expected ({count},)")
  return np.where(found >= 0, found, np.nan).astype(np.float32)


def named(name: str, prior: Prior) -> Prior:
  """The prior with its state, and what it remembers, under its name; its answers are checked."""
  what, key = f"prior.kind={name}", plug.label(name)

  def ask(state, prompts):
    found = plug.call(what, prior.ask, state[key], prompts)
    value, asked = plug.pair(f"{what}: ask", found, ASKED)
    return checked(what, value, asked, prompts), {key: asked}

  def learn(state, asked, groups):
    found = plug.call(what, prior.learn, state[key], asked[key], groups)
    after, metrics = plug.pair(f"{what}: learn", found, LEARNT)
    metrics = measured(name, f"{what}: learn", metrics)
    return {key: plug.kept(f"{what}: learn", state[key], after)}, metrics

  spread = prior.variance and (lambda asked: plug.call(what, prior.variance, asked[key]))
  init = lambda: {key: plug.first_state(what, prior.init)}
  return Prior(ask, init, learn, prior.learned, spread)


def wrapped(name: str, layer: Layer, inner: Prior) -> Prior:
  """The inner prior with a layer around it."""
  what, key = f"prior.wrappers={name}", plug.label(name)

  def ask(state, prompts):
    value, asked = inner.ask(state, prompts)
    found = plug.call(what, layer.ask, state[key], prompts, value, asked)
    value, own = plug.pair(f"{what}: ask", found, ASKED)
    return checked(what, value, own, prompts), asked | {key: own}

  def learn(state, asked, groups):
    after, metrics = inner.learn(state, asked, groups)
    found = plug.call(what, layer.learn, state[key], asked[key], groups)
    own, more = plug.pair(f"{what}: learn", found, LEARNT)
    metrics = metrics | measured(name, f"{what}: learn", more)
    return after | {key: plug.kept(f"{what}: learn", state[key], own)}, metrics

  def spread(asked):
    return plug.call(what, layer.variance, asked[key], inner.variance(asked))

  init = lambda: inner.init() | {key: plug.first_state(what, layer.init)}
  says = inner.variance is not None and layer.variance is not None
  return Prior(ask, init, learn, inner.learned, spread if says else None)


def measured(name: str, what: str, metrics) -> dict:
  """`plug.measured`, and every metric of a user's own prior or wrapper has a meaning."""
  found = plug.measured(what, metrics)
  if ":" in name and (problem := undocumented(found)):
    raise plug.PlugError(f"{what}: {problem}")
  return found


def checked(what: str, value, remembered, prompts) -> np.ndarray:
  """V as float32 [P]. Raises PlugError for another shape, and where what is remembered has no
  names."""
  if not isinstance(remembered, dict):
    found = type(remembered).__name__
    raise plug.PlugError(f"{what}: ask: remembers a {found}, expected a dict of arrays [P, ...]")
  value = np.asarray(value, np.float32)
  if value.shape != (len(prompts.mask),):
    raise plug.PlugError(
      f"{what}: ask: found V of shape {value.shape}, expected ({len(prompts.mask)},)"
    )
  return value
