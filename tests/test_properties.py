"""Every property holds, and fails on a module with the mistake that it is there to find."""

import contextlib
import sys

import pytest

from tests import mutation, properties
from v05_jax import budget, shrinkage

IMPORTED = (*properties.NAMES, *properties.BEHIND)  # where a mistake may be


@pytest.mark.parametrize("name", properties.CHECKS)
def test_holds(name):
  properties.CHECKS[name](properties.modules())


@pytest.mark.parametrize("kind", ["v05", "dr_grpo"])
def test_the_baseline_that_sees_the_rollout_is_biased(kind):
  bias = properties.gradient_bias(properties.modules(), kind, properties.PRIORS)
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
  "2 for 1 in the test": (
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
    "from_counts",
    "groups.k - 1.0",
    "groups.k",
    "the_scoreboard_is_the_noise_plus_the_error",
    ["v05"],
  ),
  "k for k - 1 in the mean of the others": (
    "_mean_of_others",
    "groups.k[:, None] - 1.0",
    "groups.k[:, None]",
    "the_scoreboard_is_the_noise_plus_the_error",
    ["rloo"],
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
    "experts_are_assessed_as_by_the_scoreboard",
  ),
  "k + 1 dropped": ("gain", "k + 1", "k", "the_gain_is_what_one_more_rollout_saves"),
  "1 / delta2 + 1": (
    "final_k",
    "1.0 / jnp.where(biased, delta2, 1.0)",
    "1.0 + 1.0 / jnp.where(biased, delta2, 1.0)",
    "a_bias_of_2_stops_at_16",
  ),
  "2 for the 4 under the root": (
    "final_k",
    "1.0 + 4.0 / jnp.where(costly, cost, 1.0)",
    "1.0 + 2.0 / jnp.where(costly, cost, 1.0)",
    "a_bias_of_2_stops_at_16",
  ),
  "the rollout itself is not left out": (
    "from_counts",
    "(groups.reward + 1.0) / 2.0",
    "0.0 * groups.reward",
    "the_gradient_is_unbiased",
    ["v05_loo"],
  ),
  "the rollout itself is in the mean of the others": (
    "_mean_of_others",
    "jnp.sum(behind, axis=1, keepdims=True) - behind",
    "jnp.sum(behind, axis=1, keepdims=True)",
    "the_gradient_is_unbiased",
    ["rloo"],
  ),
  "v05_loo is v05": (
    "v05_loo",
    "from_counts(_fused, weight=_weight)",
    "from_counts(_fused, leave_out=False, weight=_weight)",
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
    "posterior_mean",
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
  "neyman does not wait": (
    "neyman",
    "asked.ended[real].all()",
    "True",
    "neyman_waits_for_the_batch",
  ),
  "neyman waits for padding": (
    "neyman",
    "asked.ended[real].all()",
    "asked.ended.all()",
    "neyman_waits_for_the_batch",
  ),
}


@contextlib.contextmanager
def mutated(where, right, wrong):
  """The modules of a check with a mistake in them."""
  with mutation.mutated(IMPORTED, where, right, wrong):
    yield properties.modules()


@pytest.mark.parametrize("mistake", MUTANTS)
def test_finds(mistake):
  where, right, wrong, name, *more = MUTANTS[mistake]
  with mutated(where, right, wrong) as modules:
    with pytest.raises(AssertionError):
      properties.CHECKS[f"check_{name}"](modules, *more)


def test_every_property_can_fail():
  assert {f"check_{m[3]}" for m in MUTANTS.values()} == set(properties.CHECKS)


def test_a_fresh_copy_without_a_mistake_passes():
  """It is the mistake that the properties find, and not the way in which the modules are made."""
  before, advantage, extra = properties.modules(), shrinkage.advantage, budget.extra
  with mutated("DISCOUNT", "0.8", "0.80") as modules:
    assert not any(x is y for x, y in zip(modules, before))
    assert sys.modules["v05_jax.shrinkage"] is modules.shrinkage
    assert modules.shrinkage.advantage is not advantage and modules.budget.extra is not extra
    for name in ("ewa_forgets", "a_bias_of_2_stops_at_16", "neyman_spends_the_budget"):
      properties.CHECKS[f"check_{name}"](modules)
    properties.CHECKS["check_the_gradient_is_unbiased"](modules, ["v05_loo", "rloo"])
    properties.CHECKS["check_neyman_waits_for_the_batch"](modules)
  assert all(x is y for x, y in zip(properties.modules(), before))
  assert shrinkage.advantage is advantage and budget.extra is extra


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
    with mutated(where, right, "0.0"):
      pass
  assert sys.modules["v05_jax.shrinkage"] is shrinkage


def test_formatting_hides_no_expression():
  source = "def f(x):\n  # here\n  return (  # and there\n    x\n    +1\n  )\n"
  tree, count = mutation.mutate(source, "f", "x + 1", "x - 1")
  scope = {}
  exec(compile(tree, "f.py", "exec"), scope)
  assert count == 1 and scope["f"](3) == 2
