"""What an observer is, and what it is shown of a step."""

from collections.abc import Callable
import contextlib
import fnmatch
from typing import Any, NamedTuple

import numpy as np

from v05_jax import plug
from v05_jax.run.metrics import METRICS, Pairs, merge, undocumented
from v05_jax.structs import Draw

# Metrics that are numbers of a step, not means over the draws that it took.
TOTALS = (
  "k/hist/",
  "prompts",
  "rewards/clipped",
  "rewards/failed",
  "sampler/decode_steps",
  "sampler/not_finite",
  "sampler/refills",
  "time/verify",
)


OF_THE_RUN = tuple(METRICS)  # names and patterns, before any plug has documented its own
SEEN = "(state, {metric: (sum, count)})"  # what `see` of an observer returns


class Step(NamedTuple):
  """A step, before its update."""

  number: int  # steps done before it
  params: Any  # the policy that sampled
  # all rollouts; more than one draw where groups without signal are replaced
  drawn: tuple[Draw, ...]
  taken: Draw  # those that the update sees
  advantage: np.ndarray  # float32 [P, K]
  explained: dict[str, np.ndarray]  # {name: [P]} of `estimators.base.advantages`


class Observer(NamedTuple):
  """What is called once a step, on the host."""

  see: Callable  # (state, Step) -> (state, metrics as (sum, count) pairs)
  init: Callable = lambda: ()
  # makes sure that what was written survives; before each checkpoint
  flush: Callable = lambda: None
  close: Callable = lambda: None


class Observers:
  """Those that `config.observe` names; a context manager. Its state is {label: state}."""

  def __init__(self, setting: plug.Setting):
    setting = setting._replace(shared={})
    self._all = {
      name: plug.make("observer", name, setting, Observer) for name in setting.config.observe
    }

  def init(self) -> dict[str, Any]:
    """The state before the first step."""
    first = lambda name, observer: plug.first_state(f"observe={name}", observer.init)
    return {plug.label(name): first(name, observer) for name, observer in self._all.items()}

  def see(self, state, step: Step, known: Pairs | None = None) -> tuple[dict[str, Any], Pairs]:
    """Shows a step to all -> (state, metrics). known: the metrics that the step has already, none
    of which an observer may write."""
    after, metrics = {}, {}
    for name, observer in self._all.items():
      key, what = plug.label(name), f"observe={name}"
      pair = plug.pair(f"{what}: see", plug.call(what, observer.see, state[key], step), SEEN)
      after[key] = plug.kept(f"{what}: see", state[key], pair[0])
      found = plug.measured(f"{what}: see", pair[1])
      check_names(what, found, (known or {}) | metrics)
      metrics |= found
    return after, metrics

  def flush(self):
    for observer in self._all.values():
      observer.flush()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    with contextlib.ExitStack() as stack:  # all are closed, whatever one of them raises
      for observer in self._all.values():
        stack.callback(observer.close)


def check_names(what: str, metrics: Pairs, known: Pairs):
  """Raises PlugError where a user's observer writes a metric that a run or another one writes, or
  one without a meaning."""
  if ":" not in what:
    return
  for name in metrics:
    if name in known or any(fnmatch.fnmatch(name, pattern) for pattern in OF_THE_RUN):
      raise plug.PlugError(f"{what}: see: found the metric {name}, which there is already")
  if problem := undocumented(metrics):
    raise plug.PlugError(f"{what}: see: {problem}")


def pair(x, where=None) -> tuple[float, float]:
  """(sum, count) of the finite entries of `x` under the mask `where`."""
  x = np.asarray(x, np.float64)
  where = np.isfinite(x) if where is None else np.isfinite(x) & np.broadcast_to(where, x.shape)
  return float(x[where].sum()), float(where.sum())


def merged(draws) -> Pairs:
  """The pairs of several draws together; those of `TOTALS` are sums over the draws."""
  found: Pairs = {}
  for pairs in draws:
    found = merge(found, pairs)
  return found | {name: (p[0], 1) for name, p in found.items() if name.startswith(TOTALS)}
