"""Every property holds, and fails on a module with the mistake that it is there to find."""

import sys

import pytest

from tests import mutation, properties
from v05_jax import budget, shrinkage

MODULES = ("shrinkage", "budget")  # what a check takes


@pytest.mark.parametrize("name", properties.CHECKS)
def test_holds(name):
  properties.CHECKS[name](shrinkage, budget)


@pytest.mark.parametrize("kind", ["v05", "dr_grpo"])
def test_the_baseline_that_sees_the_rollout_is_biased(kind):
  bias = properties.gradient_bias(shrinkage, kind, properties.PRIORS)
  assert abs(bias).max() > 0.01


# Mistake -> (function or constant, right, wrong, the property that finds it, what it looks at).
MUTANTS = {
  "no -1/k": ("fuse", "statistic - 1.0", "statistic", "the_test_takes_the_noise_off"),
  ">= for > in the test": (
    "fuse",
    "statistic > 1.0",
    "statistic >= 1.0",
    "a_statistic_of_1_keeps_the_prior",
  ),
  "no test": (
    "fuse",
    "statistic > 1.0",
    "statistic > 2.0",
    "the_baseline_stays_near_the_group_mean",
  ),
  ">= for > in the rule": (
    "should_continue",
    "gain(delta2, k) > cost",
    "gain(delta2, k) >= cost",
    "a_gain_equal_to_the_cost_is_not_enough",
  ),
  "k for k - 1 in the others": (
    "_both",
    "jnp.maximum(k - 1.0, 0.0)",
    "jnp.maximum(k, 0.0)",
    "the_scoreboard_is_the_noise_plus_the_error",
    ["mean"],
  ),
  "k for k - 1 in the fit's variance": (
    "beta_fit",
    "group - 1.0",
    "group",
    "the_variance_is_unbiased",
  ),
  "k for k - 1 in EWA's variance": (
    "ewa_update",
    "jnp.where(k > 1, k - 1.0, 1.0)",
    "jnp.where(k > 1, k, 1.0)",
    "the_variance_is_unbiased",
  ),
  "k for k - 1 in EWA's losses": (
    "ewa_update",
    "jnp.maximum(k - 1.0, 0.0)",
    "k",
    "experts_are_judged_by_the_scoreboard",
  ),
  "k + 1 dropped": ("gain", "k + 1", "k", "the_gain_is_what_one_more_rollout_saves"),
  "2 for 1 + 4 / cost": (
    "final_k",
    "1.0 / jnp.where(biased, delta2, 1.0)",
    "1.0 + 1.0 / jnp.where(biased, delta2, 1.0)",
    "a_bias_of_2_stops_at_16",
  ),
  "the rollout itself is not left out": (
    "_both",
    "(reward + 1.0) / 2.0",
    "0.0 * reward",
    "the_gradient_is_unbiased",
    ["rloo", "v05_loo"],
  ),
  "v05_loo is v05": (
    "advantage",
    'kind in ("v05", "value")',
    'kind in ("v05", "v05_loo", "value")',
    "the_gradient_is_unbiased",
    ["v05_loo"],
  ),
  "leave_out ignored in beta_fit": (
    "beta_fit",
    "own if leave_out else 0.0",
    "0.0 * own",
    "the_gradient_is_unbiased",
    ["beta_shrink"],
  ),
  "EWA without discount": ("DISCOUNT", "0.8", "1.0", "ewa_forgets"),
  "an infinite prior speaks": (
    "clean",
    "jnp.isfinite(value)",
    "~jnp.isnan(value)",
    "an_infinite_prior_is_none",
  ),
  "A_full with k + 1": (
    "beta_shrink",
    "n0 + k",
    "n0 + k + 1.0",
    "full_and_leave_one_out_are_proportional",
  ),
  "neyman without the remainder": (
    "neyman",
    "whole + (room & (rank < left))",
    "whole",
    "neyman_spends_the_budget",
  ),
  "neyman rounds beyond k_max": (
    "neyman",
    "room & (rank < left)",
    "rank < left",
    "neyman_clips_what_cannot_be",
  ),
  "neyman by the variance": (
    "neyman",
    "jnp.sqrt(jnp.maximum(sigma2, 0.0))",
    "jnp.maximum(sigma2, 0.0)",
    "neyman_is_the_best_allocation",
  ),
  "neyman forgets what is known": (
    "neyman",
    "k0 + sigma * x - nu",
    "k0 + sigma * x",
    "neyman_is_the_best_allocation",
  ),
  "neyman halves too seldom": ("HALVINGS", "60", "4", "neyman_spends_the_budget"),
  "neyman against the noise": ("neyman", "whole - k", "k - whole", "neyman_follows_the_noise"),
  "neyman does not wait": ("extra", "jnp.all(ended | ~real)", "True", "neyman_waits_for_the_batch"),
  "neyman waits for padding": (
    "extra",
    "jnp.all(ended | ~real)",
    "jnp.all(ended)",
    "neyman_waits_for_the_batch",
  ),
}


@pytest.mark.parametrize("mistake", MUTANTS)
def test_finds(mistake):
  where, right, wrong, name, *more = MUTANTS[mistake]
  with mutation.mutated(MODULES, where, right, wrong) as modules:
    with pytest.raises(AssertionError):
      properties.CHECKS[f"check_{name}"](*modules, *more)


def test_every_property_can_fail():
  assert {f"check_{m[3]}" for m in MUTANTS.values()} == set(properties.CHECKS)


def test_a_fresh_copy_without_a_mistake_passes():
  """It is the mistake that the properties find, and not the way in which the modules are made."""
  with mutation.mutated(MODULES, "DISCOUNT", "0.8", "0.80") as modules:
    assert modules[0] is not shrinkage and modules[1].shrinkage is modules[0]
    assert sys.modules["v05_jax.shrinkage"] is modules[0]
    for name in ("ewa_forgets", "a_bias_of_2_stops_at_16", "neyman_spends_the_budget"):
      properties.CHECKS[f"check_{name}"](*modules)
  assert sys.modules["v05_jax.shrinkage"] is shrinkage and sys.modules["v05_jax.budget"] is budget


@pytest.mark.parametrize(
  ("where", "right", "found"),
  [
    ("fuse", "statistic - 17.0", "found 0 times .* no file"),
    ("gain", "statistic - 1.0", r"found 0 times .* stands in: .*\.py: fuse, 1 times"),
    ("gain", "delta2", "found 2 times"),
  ],
)
def test_a_mistake_has_exactly_one_place(where, right, found):
  with pytest.raises(LookupError, match=found):
    with mutation.mutated(MODULES, where, right, "0.0"):
      pass
  assert sys.modules["v05_jax.shrinkage"] is shrinkage


def test_formatting_hides_no_expression():
  source = "def f(x):\n  # here\n  return (  # and there\n    x\n    +1\n  )\n"
  tree, count = mutation.mutate(source, "f", "x + 1", "x - 1")
  scope = {}
  exec(compile(tree, "f.py", "exec"), scope)
  assert count == 1 and scope["f"](3) == 2
