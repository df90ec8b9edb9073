"""Mistakes in a user's plug: one line names each of them, and nothing that was computed is lost."""

import logging
import sys
import types

from absl import logging as absl_logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from tests.test_train import small
from v05_jax import groups as grouping
from v05_jax import plug, step
from v05_jax.budgets import base as budgets
from v05_jax.configs import default, grpo
from v05_jax.estimators import base as estimators
from v05_jax.observers import base as observers
from v05_jax.priors import base as priors
from v05_jax.priors import context as contexts
from v05_jax.priors import logistic, neighbours, probe
from v05_jax.run import leaves, metrics
from v05_jax.train import train

PROMPTS = types.SimpleNamespace(mask=np.ones(3, bool), step=np.int32(0))
GROUPS = grouping.make(np.ones((3, 2)), np.ones((3, 2), bool))
SAYS = lambda state, prompts: (np.zeros(3, np.float32), {})


@pytest.mark.parametrize("state", [[], {"n": 0}, (0.0, np.float64(2)), np.arange(3), jnp.ones(2)])
def test_a_first_state_is_made_of_arrays(state):
  found = plug.begun("prior.kind=mine:f", state)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
    assert isinstance(x, np.ndarray | jax.Array) and np.array_equal(x, y)
  leaves.tensors(leaves.named({"x": found}))  # as a checkpoint asks


@pytest.mark.parametrize("state", [object(), {"names": "text"}, jax.random.key(0)])
def test_anything_else_in_a_state_is_named(state):
  with pytest.raises(plug.PlugError, match=r"^prior\.kind=mine:f: init: found a \w+ in the state"):
    plug.begun("prior.kind=mine:f", state)


@pytest.mark.parametrize(
  "before, after, message",
  [
    (np.zeros(4, np.float32), np.zeros(4), r"found the state float64\[4\], expected float32\[4\]"),
    (np.zeros(1), np.zeros(2), r"found the state float64\[2\], expected float64\[1\]"),
    ({"a": 1, "b": 2}, {"a": 1}, r"found the state b nothing, expected b int64\[\]"),
  ],
)
def test_a_state_that_changes_its_form_is_named_in_the_first_step(before, after, message):
  begun = plug.begun("", before)
  same = plug.kept("", begun, jax.tree.map(lambda x: x + 1, begun))
  assert jax.tree.structure(same) == jax.tree.structure(begun)
  learn = lambda state, asked, groups: (after, {})
  prior = priors.named("mine:f", priors.Prior(SAYS, lambda: before, learn))
  state = prior.init()
  with pytest.raises(plug.PlugError, match=rf"^prior\.kind=mine:f: learn: {message}.* as before"):
    prior.learn(state, prior.ask(state, PROMPTS)[1], GROUPS)


def test_what_a_plug_returns_is_named_where_it_is_no_pair():
  value = lambda state, prompts, *rest: np.zeros(3, np.float32)
  prior = priors.named("mine:f", priors.Prior(value))
  with pytest.raises(
    plug.PlugError, match=r"mine:f: ask: returned a ndarray, expected \(V \[P\], "
  ):
    prior.ask(prior.init(), PROMPTS)
  inner = priors.named("mine:f", priors.Prior(SAYS, learn=lambda state, asked, groups: state))
  with pytest.raises(plug.PlugError, match=r"mine:f: learn: returned a tuple, expected \(state"):
    inner.learn(inner.init(), {"f": {}}, GROUPS)
  around = priors.wrapped("mine:g", priors.Layer(value), inner)
  with pytest.raises(plug.PlugError, match=r"wrappers=mine:g: ask: returned a ndarray"):
    around.ask(around.init(), PROMPTS)


@pytest.mark.parametrize(
  "found, message",
  [
    (None, "returned a NoneType as its metrics"),
    ({"mine": 3.0}, r"mine: found 3\.0, expected \(sum, count\)"),
    ({"said": (1.0, 1)}, "found the metric said, which there is already"),
    ({"loss/total": (1.0, 1)}, "found the metric loss/total, which there is already"),
    ({"k/hist/4": (1.0, 1)}, "found the metric k/hist/4, which there is already"),
    ({"mine": (1.0, 1)}, r"found the metric mine without a meaning, expected metrics.document\("),
  ],
)
def test_metrics_of_an_observer(found, message, monkeypatch):
  def mine(options, setting):
    return observers.Observer(lambda state, x: (state, found))

  shown = observers.Observers(own(monkeypatch, "observer", mine))
  with pytest.raises(plug.PlugError, match=f"observe=own:mine: see: {message}"):
    shown.see(shown.init(), None, {"said": (0.5, 1)})
  with pytest.raises(plug.PlugError, match="mine:f: learn"):
    learn = lambda state, asked, groups: (state, found if found is None else {"mine": 1.0})
    prior = priors.named("mine:f", priors.Prior(SAYS, learn=learn))
    prior.learn(prior.init(), {"f": {}}, GROUPS)


def test_a_metric_of_a_prior_or_a_wrapper_has_a_meaning():
  learn = lambda state, asked, groups: (state, {"mine": (1.0, 1)})
  prior = priors.named("mine:f", priors.Prior(SAYS, learn=learn))
  message = (
    "prior.kind=mine:f: learn: found the metric mine without a meaning, expected metrics.doc"
  )
  with pytest.raises(plug.PlugError, match=message):
    prior.learn(prior.init(), {"f": {}}, GROUPS)
  inner = priors.named("none", priors.Prior(SAYS))
  around = priors.wrapped("mine:g", priors.Layer(None, learn=learn), inner)
  with pytest.raises(plug.PlugError, match=r"prior\.wrappers=mine:g: learn: found the metric mine"):
    around.learn(around.init(), {"none": {}, "g": {}}, GROUPS)


def own(monkeypatch, kind: str, function):
  """The setting of a run whose plug of this kind is the user's `own:mine`."""
  find = plug.find
  chosen = lambda what, name: function if name == "own:mine" else find(what, name)
  monkeypatch.setattr(plug, "find", chosen)
  config = small(grpo.get_config())
  section, _, last = plug.KINDS[kind].key.rpartition(".")
  several = kind in ("observer", "wrapper", "sink")
  (config[section] if section else config)[last] = ("own:mine",) if several else "own:mine"
  return plug.Setting(config)


@pytest.mark.parametrize("first", [np.zeros(2), [0.0, 0.0], (0.0, np.float64(1))])
def test_the_first_state_of_an_estimator_has_the_dtypes_of_the_next(first, monkeypatch):
  """Otherwise its checkpoint does not fit the state that a resumed run begins with."""

  def mine(options, setting):
    learn = lambda state, groups, value: jax.tree.map(lambda x: x + jnp.sum(groups.k), state)
    zero = lambda state, groups, value: jnp.zeros((len(groups.k), 1))
    return estimators.Estimator(zero, lambda: first, learn)

  estimator = estimators.make(own(monkeypatch, "estimator", mine))
  state = estimator.init()
  after = jax.jit(estimator.learn)(state, GROUPS, np.zeros(3, np.float32))
  assert plug.form(after) == plug.form(state)


def test_a_budget_that_raises_in_a_run_is_named(monkeypatch):
  def mine(options, setting):
    limits = budgets.Limits(2, 4, mean=None, unconditional=2, closes=False)

    def more(state, groups, value, asked):
      return np.zeros(3, int) if not groups.mask.any() else {}["late"]

    return budgets.Budget(limits, budgets.constant(2), more)

  budget = budgets.make(own(monkeypatch, "budget", mine))
  asked = budgets.Asked(np.full(3, 2), np.ones(3, bool))
  with pytest.raises(
    plug.PlugError, match=r"budget\.rule=own:mine: KeyError: 'late' \(.*test_plugs"
  ):
    budget.more(budget.init(), GROUPS, np.zeros(3), asked)


def test_declarations_are_checked_where_they_stand():
  with pytest.raises(ValueError, match=r"declare: found the kind 'estimators', expected one of"):
    plug.declare("estimators")
  for wrong in (0.5, plug.Option([1, 2], "of a list"), plug.Option(None, "nothing")):
    with pytest.raises(ValueError, match=r"declare: share: found .*, expected an Option whose"):
      plug.declare("estimator", share=wrong)


def test_a_function_called_like_one_of_the_package_is_refused(tmp_path, monkeypatch):
  (tmp_path / "copied.py").write_text("def spo(options, setting): pass\n\n\ndef none(*_): pass\n")
  monkeypatch.syspath_prepend(tmp_path)
  for kind, name in (("estimator", "copied:spo"), ("wrapper", "copied:none")):
    with pytest.raises(ValueError, match=rf"found '{name}', expected a function of another name"):
      plug.find(kind, name)
  assert plug.find("budget", "copied:spo")


def test_advantages_that_are_not_finite_are_said_once(caplog):
  taken = types.SimpleNamespace(
    groups=GROUPS, value=np.array([np.nan, 0.5, np.nan]), prompts=PROMPTS
  )
  config, advantage = types.SimpleNamespace(baseline="mine:f"), np.ones((3, 2), np.float32)
  absl_logging._log_counter_per_token.clear()
  with caplog.at_level(logging.WARNING):
    step.check_finite(config, taken, advantage)
    assert not caplog.records
    advantage[0] = np.nan
    for _ in range(2):
      step.check_finite(config, taken, advantage)
  (said,) = caplog.records
  assert "baseline=mine:f: 2 of 6 advantages are not finite" in said.getMessage()
  assert "V is NaN, for 2 of 3 prompts" in said.getMessage()


def test_a_step_without_any_signal_is_said_once(caplog):
  of = lambda mask: types.SimpleNamespace(rolls=types.SimpleNamespace(mask=mask), prompts=PROMPTS)
  taken = of(np.ones((3, 6), bool))
  config, advantage = types.SimpleNamespace(baseline="grpo"), np.zeros((3, 6), np.float32)
  absl_logging._log_counter_per_token.clear()
  with caplog.at_level(logging.WARNING):
    for other in (0.5, np.nan):  # the latter has a warning of its own
      advantage[1, 0] = other
      step.check_signal(config, taken, advantage)
    advantage[1, 0] = 0
    step.check_signal(config, of(np.arange(18).reshape(3, 6) < 12), advantage)  # too few to tell
    assert not caplog.records
    for _ in range(2):
      step.check_signal(config, taken, advantage)
    absl_logging._log_counter_per_token.clear()
    step.check_signal(config, of(np.zeros((3, 6), bool)), advantage)  # all were replaced in vain
  told = [record.getMessage() for record in caplog.records]
  start = "baseline=grpo: no advantage of step 1 differs from 0, of "
  assert [text.partition(" of 3 prompts")[0] for text in told] == [
    f"{start}{n} rollouts" for n in (18, 0)
  ]


def parts():
  """Groups of four rollouts, two of them before any outcome chose; those two; the four as if no
  outcome had chosen."""
  reward = np.array([[1.0, -1, 1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]])
  mask, w = np.ones(reward.shape, bool), np.where(reward > 0, 1.0, 3.0)
  whole = grouping.make(reward, mask, row=np.arange(3), step=np.int32(1), score=w)
  begun = grouping.leading(whole, 2)
  return whole._replace(first=begun), begun, whole


def assert_learns_from_the_first(learn):
  """learn(groups) -> a state."""
  given, begun, whole = map(learn, parts())
  close = lambda a, b: bool(np.allclose(a, b, equal_nan=True))
  alike = lambda a, b: all(jax.tree.leaves(jax.tree.map(close, a, b)))
  assert alike(given, begun)
  assert not jax.tree.leaves(given) or not alike(given, whole)


VALUE = np.array([0.2, -0.3, 0.4], np.float32)


@pytest.mark.parametrize("kind", plug.known("estimator"))
def test_estimators_learn_from_rollouts_whose_number_no_outcome_has_chosen(kind):
  estimator = estimators.named(kind, plug.Setting(default.get_config(), 3))
  assert_learns_from_the_first(lambda groups: estimator.learn(estimator.init(), groups, VALUE))


def test_the_neyman_budget_learns_from_rollouts_whose_number_no_outcome_has_chosen():
  rule = support.budget("neyman", 2, 4)
  assert_learns_from_the_first(lambda groups: rule.learn(rule.init(), groups, VALUE))


def test_priors_learn_from_rollouts_whose_number_no_outcome_has_chosen(monkeypatch):
  x = np.array([[0.5, 1], [-1, 0.3], [0.2, -2]], np.float32)
  monkeypatch.setattr(neighbours, "make_features", lambda *_: lambda prompts: x)
  policy = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=1), params=None)
  setting = plug.Setting(default.get_config(), 3, policy)
  options = lambda kind, name: plug.defaults(kind, name)
  critic = plug.find("prior", "critic")(options("prior", "critic"), setting)
  assert_learns_from_the_first(lambda g: critic.learn(critic.init(), {"features": x}, g)[0])
  history = plug.find("wrapper", "history")(options("wrapper", "history"), setting)
  asked = {"before": VALUE, "weight": np.ones(3), "real": np.ones(3, bool)}
  assert_learns_from_the_first(lambda g: history.learn(history.init(), asked, g)[0])
  probing = plug.find("prior", "probe")(options("prior", "probe"), setting)
  record = contexts.empty(8)
  state = probe.Probe(np.zeros(2), np.eye(2), logistic.empty(probe.MEMBERS, 2), record)
  asked = contexts.remembered(record, np.zeros((3, 0), np.float32), VALUE)
  asked |= {"x": x, "variance": np.ones(3), "support": np.full(3, 8)}
  assert_learns_from_the_first(lambda g: probing.learn(state, asked, g)[0].learnt)


def test_states_whose_names_have_changed_are_told_apart():
  stored = ["params.w", "estimator.f.count", "estimator.f.total", "prior.g", "observers.h.a"]
  wanted = ["params.w", "estimator.f.count", "estimator.f.sum", "prior.h", "observers.h.b"]
  (line,) = leaves.remade(stored, wanted, ("prior", "budget", "estimator"))
  assert line == (
    "estimator.f: found estimator.f.count, estimator.f.total, expected estimator.f.count, "
    "estimator.f.sum"
  )


PLUG = """
import numpy as np
from v05_jax.observers.base import Observer
from v05_jax.priors.base import Prior

def late(options, setting):
  def see(state, x):
    if x.number == 2 and FAILS:
      raise KeyError("late")
    return state, {}
  return Observer(see)

def counts(options, setting):
  say = lambda state, prompts: (np.zeros(len(prompts.mask), np.float32), {})
  first = lambda: {NAME: np.zeros(2)}
  return Prior(say, first, lambda state, asked, groups: ({NAME: state[NAME] + 1}, {}))
"""


@pytest.mark.usefixtures("few_devices")
def test_what_was_computed_before_a_mistake_is_kept_and_goes_on(tmp_path, monkeypatch, caplog):
  monkeypatch.syspath_prepend(tmp_path)
  keys = {"observe": ("own_plugs:late",), "prior.kind": "own_plugs:counts", "eval.period": 0}

  def run(fails: bool, name: str, steps=4):
    text = PLUG.replace("FAILS", str(fails)).replace("NAME", repr(name))
    (tmp_path / "own_plugs.py").write_text(text)
    monkeypatch.delitem(sys.modules, "own_plugs", raising=False)
    config = small(num_steps=steps, **(keys | {"checkpoint.period": 0}))
    return train(config, str(tmp_path / "run"))

  with pytest.raises(plug.PlugError) as error:
    run(True, "steps")
  text = str(error.value)
  assert "observe=own_plugs:late: KeyError: 'late' (" in text
  assert text.endswith(f"saved in {tmp_path / 'run'}: the state after step 2")
  state = run(False, "steps")
  assert int(state.step) == 4 and state.prior["counts"]["steps"].tolist() == [4, 4]
  assert "own_plugs.py has changed since" in caplog.text
  assert [x["step"] for x in metrics.read(tmp_path / "run")] == [1, 2, 3, 4]
  with pytest.raises(ValueError, match=r"with other names[^\n]*\n  prior\.counts: found prior"):
    run(False, "renamed", 5)
