"""Every property holds, and fails on a module with the mistake that it is there to find."""

import pathlib
import sys
import types

import pytest

from tests import properties
import v05_jax
from v05_jax import budget, shrinkage

SOURCE = pathlib.Path(v05_jax.__file__).parent
MODULES = ("ewa", "shrinkage", "budget")  # in the order of their imports


@pytest.mark.parametrize("name", properties.CHECKS)
def test_holds(name):
  properties.CHECKS[name](shrinkage, budget)


@pytest.mark.parametrize("kind", ["v05", "dr_grpo"])
def test_the_baseline_that_sees_the_rollout_is_biased(kind):
  bias = properties.gradient_bias(shrinkage, kind, properties.PRIORS)
  assert abs(bias).max() > 0.01


def mutated(monkeypatch, file, old, new):
  """shrinkage and budget, executed anew on top of each other from sources in which `old` is
  `new`."""
  found = {}
  with monkeypatch.context() as patch:
    for name in MODULES:
      text = (SOURCE / f"{name}.py").read_text()
      if name == file:
        assert text.count(old) == 1, f"{file}.py: {text.count(old)} times {old!r}"
        text = text.replace(old, new)
      module = found[name] = types.ModuleType(f"v05_jax.{name}")
      exec(compile(text, f"mutated {name}.py", "exec"), module.__dict__)
      patch.setitem(sys.modules, module.__name__, module)
      patch.setattr(v05_jax, name, module)
  return found["shrinkage"], found["budget"]


# Mistake -> (file, right, wrong, the property that finds it, what it looks at).
MUTANTS = {
  "no -1/k": ("shrinkage", "statistic - 1.0", "statistic", "the_test_takes_the_noise_off"),
  ">= for > in the test": (
    "shrinkage",
    "statistic > 1.0",
    "statistic >= 1.0",
    "a_statistic_of_1_keeps_the_prior",
  ),
  "no test": (
    "shrinkage",
    "statistic > 1.0",
    "statistic > 2.0",
    "the_baseline_stays_near_the_group_mean",
  ),
  ">= for > in the rule": (
    "budget",
    "gain(delta2, k) > cost",
    "gain(delta2, k) >= cost",
    "a_gain_equal_to_the_cost_is_not_enough",
  ),
  "k for k - 1 in the others": (
    "shrinkage",
    "k_others = jnp.maximum(k - 1.0, 0.0)",
    "k_others = jnp.maximum(k, 0.0)",
    "the_scoreboard_is_the_noise_plus_the_error",
    ["mean"],
  ),
  "k for k - 1 in the fit's variance": (
    "shrinkage",
    "group / (group - 1.0)",
    "group / group",
    "the_variance_is_unbiased",
  ),
  "k for k - 1 in EWA's variance": (
    "ewa",
    "k / jnp.where(k > 1, k - 1.0, 1.0)",
    "k / jnp.where(k > 1, k, 1.0)",
    "the_variance_is_unbiased",
  ),
  "k for k - 1 in EWA's losses": (
    "ewa",
    "others = jnp.maximum(k - 1.0, 0.0)",
    "others = k",
    "experts_are_judged_by_the_scoreboard",
  ),
  "k + 1 dropped": (
    "budget",
    "mse(delta2, k) * mse(delta2, k + 1)",
    "mse(delta2, k) * mse(delta2, k)",
    "the_gain_is_what_one_more_rollout_saves",
  ),
  "2 for 1 + 4 / cost": (
    "budget",
    "jnp.ceil(stop -",
    "jnp.ceil(stop - 1.0 -",
    "a_bias_of_2_stops_at_16",
  ),
  "the rollout itself is not left out": (
    "shrinkage",
    "s[:, None] - (reward + 1.0) / 2.0",
    "s[:, None] - 0.0 * reward",
    "the_gradient_is_unbiased",
    ["rloo", "v05_loo"],
  ),
  "v05_loo is v05": (
    "shrinkage",
    'kind in ("v05", "value")',
    'kind in ("v05", "v05_loo", "value")',
    "the_gradient_is_unbiased",
    ["v05_loo"],
  ),
  "leave_out ignored in beta_fit": (
    "shrinkage",
    "(jnp.sum(own) - (own if leave_out else 0.0))",
    "(jnp.sum(own) + 0.0 * own)",
    "the_gradient_is_unbiased",
    ["beta_shrink"],
  ),
  "EWA without discount": ("ewa", "DISCOUNT = 0.8", "DISCOUNT = 1.0", "ewa_forgets"),
  "an infinite prior speaks": (
    "ewa",
    "spoken = jnp.isfinite(value)\n  return",
    "spoken = ~jnp.isnan(value)\n  return",
    "an_infinite_prior_is_none",
  ),
  "A_full with k + 1": (
    "shrinkage",
    "/ (n0 + k)\n",
    "/ (n0 + k + 1.0)\n",
    "full_and_leave_one_out_are_proportional",
  ),
  "neyman without the remainder": (
    "budget",
    "(whole + (room & (rank < left)))",
    "whole",
    "neyman_spends_the_budget",
  ),
  "neyman rounds beyond k_max": (
    "budget",
    "(whole + (room & (rank < left)))",
    "(whole + (rank < left))",
    "neyman_clips_what_cannot_be",
  ),
  "neyman by the variance": (
    "budget",
    "jnp.sqrt(jnp.maximum(sigma2, 0.0))",
    "jnp.maximum(sigma2, 0.0)",
    "neyman_is_the_best_allocation",
  ),
  "neyman forgets what is known": (
    "budget",
    "k0 + sigma * x - nu",
    "k0 + sigma * x",
    "neyman_is_the_best_allocation",
  ),
  "neyman halves too seldom": (
    "budget",
    "HALVINGS = 60",
    "HALVINGS = 4",
    "neyman_spends_the_budget",
  ),
  "neyman against the noise": (
    "budget",
    "whole - k, 1.0)",
    "k - whole, 1.0)",
    "neyman_follows_the_noise",
  ),
  "neyman does not wait": (
    "budget",
    "jnp.all(ended | ~real)",
    "True",
    "neyman_waits_for_the_batch",
  ),
  "neyman waits for padding": (
    "budget",
    "jnp.all(ended | ~real)",
    "jnp.all(ended)",
    "neyman_waits_for_the_batch",
  ),
}


@pytest.mark.parametrize("mistake", MUTANTS)
def test_finds(mistake, monkeypatch):
  file, right, wrong, name, *more = MUTANTS[mistake]
  modules = mutated(monkeypatch, file, right, wrong)
  with pytest.raises(AssertionError):
    properties.CHECKS[f"check_{name}"](*modules, *more)


def test_every_property_can_fail():
  assert {f"check_{m[3]}" for m in MUTANTS.values()} == set(properties.CHECKS)


def test_a_fresh_copy_without_a_mistake_passes(monkeypatch):
  """It is the mistake that the properties find, and not the way in which the modules are made."""
  modules = mutated(monkeypatch, "ewa", "DISCOUNT = 0.8", "DISCOUNT = 0.80")
  assert modules[0] is not shrinkage and modules[1].shrinkage is modules[0]
  assert sys.modules["v05_jax.shrinkage"] is shrinkage and v05_jax.budget is budget
  for name in ("ewa_forgets", "a_bias_of_2_stops_at_16", "neyman_spends_the_budget"):
    properties.CHECKS[f"check_{name}"](*modules)
