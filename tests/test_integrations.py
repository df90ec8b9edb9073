"""The estimators and the budgets inside of verl and TRL: what they say there is what they say here.

TRL runs in the environment of the peers that experiments/throughput measures (`make peers`), verl's
own code where verl and torch are installed; elsewhere these tests are skipped.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.verl_run import rows
from v05_jax import budget, plug, shrinkage
from v05_jax import groups as grouping
from v05_jax.estimators import base as estimators
from v05_jax.integrations.rows import WANTING, Advantages, Groups, first_rollouts

ROOT = pathlib.Path(__file__).parents[1]
PEERS = pathlib.Path(os.environ.get("V05_PEERS", ROOT / ".cache" / "peers"))
# What the package's own environment lends to another one of the same Python.
LENT = "jax jaxlib ml_dtypes opt_einsum scipy scipy.libs".split()
KINDS = sorted(set(plug.known("estimator")) - set(WANTING))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_any_order_have_the_advantages_of_their_groups(kind):
  given, dense, prior, place = rows(sizes=(4, 2, 4, 3))
  found = Advantages(kind)(*given)
  state = shrinkage.ewa_init() if kind == "ewa" else ()
  mapped, value = 2 * dense - 1, 2 * prior - 1
  expected, _ = shrinkage.advantage(kind, mapped, np.isfinite(mapped), value, state=state)
  for i, j, row in place:
    assert found[row] == np.asarray(expected)[i, j]


def test_it_learns_what_the_estimator_learns():
  estimator, state = Advantages("ewa"), shrinkage.ewa_init()
  for seed in range(3):
    given, dense, prior, place = rows(seed)
    mapped, value, every = 2 * dense - 1, 2 * prior - 1, np.isfinite(dense)
    expected, _ = shrinkage.advantage("ewa", mapped, every, value, state=state)
    found = estimator(*given)
    assert [found[row] for *_, row in place] == [np.asarray(expected)[i, j] for i, j, _ in place]
    state = shrinkage.ewa_update(state, value, dense.sum(1), every.sum(1).astype(np.float32))
  for ours, theirs in zip(estimator.state, state):
    np.testing.assert_array_equal(ours, theirs)


def test_it_learns_from_the_rollouts_alone_whose_number_no_outcome_chose():
  given, dense, prior, _ = rows(sizes=(4, 2, 4, 3))
  estimator = Advantages("ewa", first=2)
  estimator(*given)
  one = shrinkage.ewa_init()
  two = shrinkage.ewa_update(one, 2 * prior - 1, dense[:, :2].sum(1), np.full(4, np.float32(2)))
  for ours, theirs in zip(estimator.state, two):
    np.testing.assert_array_equal(ours, theirs)
  every = Advantages("ewa")
  every(*given)
  assert any(np.any(x != y) for x, y in zip(every.state, two))
  with pytest.raises(ValueError, match=r"first: found 0, expected at least 1"):
    Advantages("ewa", first=0)


@pytest.mark.parametrize("kind", ["spo", "dbb", "kae"])
def test_what_remembers_rows_of_the_data_learns_from_no_nameless_ones(kind):
  one = np.ones((2, 2))
  with pytest.raises(ValueError, match=rf"learnt: found '{kind}', expected one that remembers no"):
    estimators.learnt(kind, estimators.initial(kind), one, one > 0, np.zeros(2))


@pytest.mark.parametrize("kind", ["basis", "ebpo", "precision"])
def test_every_estimator_that_learns_goes_on_from_what_it_has_learnt(kind):
  found = plug.find("estimator", kind)(plug.defaults("estimator", kind), plug.Setting(None, rows=1))
  estimator, state = Advantages(kind), found.init()
  for seed in range(3):
    given, dense, prior, place = rows(seed)
    groups, value = grouping.make(2 * dense - 1, np.isfinite(dense)), 2 * prior - 1
    expected, _ = estimators.advantages(found, state, groups, value)
    ours = estimator(*given)
    theirs = [np.asarray(expected)[i, j] for i, j, _ in place]
    np.testing.assert_allclose([ours[row] for *_, row in place], theirs, atol=1e-5)
    state = found.learn(state, groups, value)
  assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (state, found.init()))))


@pytest.mark.parametrize("kind", plug.known("estimator"))
def test_what_another_trainer_is_offered_looks_at_nothing_that_it_does_not_give(kind):
  rng = np.random.default_rng(0)
  reward = rng.choice(np.float32([-1, 1]), (2, 4, 3))
  value = np.zeros(4, np.float32)
  mask, setting = np.ones((4, 3), bool), plug.Setting(None, rows=9)
  found = plug.find("estimator", kind)(plug.defaults("estimator", kind), setting)
  seen = []
  for given in (False, True):
    more = {"length": rng.integers(1, 99, (4, 3)), "row": np.int32([0, 7, 3, 8])} if given else {}
    more |= {x: rng.random((4, 3), np.float32) for x in ("logprob", "score") if given}
    first, then = (grouping.make(x, mask, **more) for x in reward)
    state = found.learn(jax.tree.map(jnp.asarray, found.init()), first, value)
    same = then._replace(row=first.row if given else np.int32([4, 5, 6, 7]))
    seen.append(estimators.advantages(found, state, same, value)[0])
  assert (kind in WANTING) == bool(np.any(np.abs(seen[0] - seen[1]) > 1e-6))


def test_a_failed_verdict_has_no_advantage_and_no_prior_is_no_prior():
  (reward, index, _), dense, _, place = rows()
  reward[place[0][2]] = np.nan
  dense[0, 0] = np.nan
  found = Advantages("rloo")(reward, index)
  assert found[place[0][2]] == 0
  mapped = 2 * dense - 1
  expected, _ = shrinkage.advantage("rloo", mapped, np.isfinite(mapped), np.full(4, np.nan))
  assert [found[row] for *_, row in place] == [np.asarray(expected)[i, j] for i, j, _ in place]


def test_wrong_arguments_are_named():
  for kind in ("v5", "spo", "os:path"):
    with pytest.raises(ValueError, match=r"(baseline|estimator): found .*expected"):
      Advantages(kind)
  with pytest.raises(ValueError, match=r"found 'dbb': it wants more than a step's rewards and V"):
    Advantages("dbb")
  with pytest.raises(ValueError, match=r"rewards.low, rewards.high"):
    Advantages("v05", low=1.0, high=0.0)


def test_groups_there_and_back():
  groups = Groups(["b", "a", "b", "c", "b"])
  assert groups.size.tolist() == [3, 1, 1] and groups.first.tolist() == [0, 1, 3]
  dense = groups.dense(np.arange(5.0), np.nan)
  np.testing.assert_array_equal(dense[0], [0, 2, 4])
  np.testing.assert_array_equal(groups.flat(dense), np.arange(5.0))


def test_rollout_numbers_are_the_budgets():
  (reward, index, prior), dense, of_prompt, _ = rows(3)
  estimator, value = Advantages("ewa"), 2 * of_prompt - 1
  for rule, options in (("neyman", {"total": 24, "k_max": 8}), ("sequential", {"k_max": 8})):
    found = estimator.more(rule, reward, index, prior, **options)
    state = shrinkage.ewa_init() if rule == "neyman" else None
    ended = np.ones(4, bool)
    wanted = budget.extra(rule, state, value, dense.sum(1), np.full(4, 4), ended, **options)
    assert found.tolist() == wanted.tolist()
  numbers = first_rollouts([0.5, 0.99, 0.01, np.nan], total=20, k_max=8)
  assert numbers.sum() == 20 and numbers[0] == numbers[3] > numbers[1] == numbers[2] >= 1


# --- verl


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
  """(interpreter, environment) of the peers, with this package and jax beside theirs."""
  python = PEERS / "torch" / "bin" / "python"
  if not python.exists():
    pytest.skip(f"no environment with torch and TRL in {PEERS} (make peers)")
  version = "import sys; print(sys.version_info[:2])"
  told = subprocess.run([python, "-c", version], capture_output=True, text=True, timeout=60)
  if told.stdout.strip() != str(sys.version_info[:2]):
    pytest.skip(f"{python} is of another Python than this one, whose jax it would be lent")
  lent = tmp_path_factory.mktemp("lent")
  for name in LENT:
    found = [pathlib.Path(p) / name for p in sys.path if (pathlib.Path(p) / name).is_dir()]
    if found:
      (lent / name).symlink_to(found[0])
  more = os.environ.get("V05_PEERS_PATH", "")  # further packages: verl
  path = os.pathsep.join(filter(None, [str(ROOT), str(lent), more]))
  return python, os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"}


def run(peers, *arguments):
  python, environment = peers
  done = subprocess.run(
    [python, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_verl_calls_it_by_its_registry(peers):
  assert "checked with" in run(peers, "-P", "tests/verl_run.py")


# --- TRL


@pytest.mark.long
def test_trls_trainer_has_our_advantages(peers, tmp_path):
  """Three steps of a tiny model; and what was learnt goes on from a checkpoint."""
  run(peers, "-P", "tests/trl_run.py", str(tmp_path))
  for kind in ("v05", "ewa"):
    with np.load(tmp_path / f"{kind}.npz") as found:
      for step in range(3):
        sums, prior, advantage, *state = (
          found[name] for name in found.files if name.startswith(f"{step}/")
        )
        dense = (2 * (sums / 1.25) - 1).reshape(4, 4)
        mask, value = np.isfinite(dense), 2 * prior.reshape(4, 4)[:, 0] - 1
        known = shrinkage.EWA(*state) if kind == "ewa" else ()
        expected, _ = shrinkage.advantage(kind, dense, mask, value, state=known)
        np.testing.assert_array_equal(advantage.reshape(4, 4), expected)
        assert mask.any() and (advantage != 0).any()
  with np.load(tmp_path / "again.npz") as found:
    last, again = [found[f"arr_{i}"] for i in range(2)], [found[f"arr_{i}"] for i in range(2, 4)]
  assert not np.array_equal(last[0], again[0])  # the resumed one knows two steps, the other three
  assert np.abs(again[0]).sum() > 0
