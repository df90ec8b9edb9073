"""The README's hook for another trainer runs as printed; each of its promises has tests."""

import ast
import collections
from pathlib import Path
import re
import types

import numpy as np

from v05_jax import budget, shrinkage


class Tensor(np.ndarray):
  """What the hook asks of a torch tensor."""

  def cpu(self):
    return self

  def numpy(self):
    return np.asarray(self)


def test_the_advantage_hook():
  text = (Path(__file__).parent.parent / "README.md").read_text()
  (code,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if "register_adv_est" in block
  )
  registry = {}
  names = {
    "np": np,
    "shrinkage": shrinkage,
    "budget": budget,
    "torch": types.SimpleNamespace(from_numpy=lambda x: x),
    "register_adv_est": lambda name: lambda f: registry.setdefault(name, f),
  }
  exec(code, names)
  rng = np.random.default_rng(0)
  state, value = shrinkage.ewa_init(), rng.uniform(-1, 1, 6)
  for _ in range(3):
    order = rng.permutation(24)  # the rows of a prompt need not be neighbours
    prompt, success = order // 4, rng.integers(0, 2, 24)
    tokens = np.zeros((24, 5))
    tokens[:, 4] = success
    mask = np.arange(5) < rng.integers(1, 6, 24)[:, None]
    index = np.array([f"uid-{p}" for p in prompt], object)
    prior = ((value[prompt] + 1) / 2).view(Tensor)
    got, returns = registry["ewa"](
      tokens.view(Tensor), mask, index, reward_baselines=prior, config=None
    )
    assert returns is got and got.shape == (24, 5) and not got[~mask].any()
    reward = np.stack([2.0 * success[prompt == p] - 1 for p in range(6)])
    want, _ = shrinkage.advantage("ewa", reward, np.ones((6, 4), bool), value, state=state)
    for p in range(6):
      np.testing.assert_allclose(
        got[prompt == p], np.asarray(want[p])[:, None] * mask[prompt == p], rtol=1e-5
      )
    state = shrinkage.ewa_update(state, value, (reward + 1).sum(1) / 2, np.full(6, 4))
  np.testing.assert_allclose(names["state"].losses, state.losses, rtol=1e-6)
  names["state"] = shrinkage.ewa_init()
  # without a prior: toward the population
  plain, _ = registry["ewa"](tokens.view(Tensor), mask, index)
  assert np.isfinite(plain).all() and not np.allclose(plain, got)
  (line,) = (line for line in text.splitlines() if line.startswith("`budget.extra("))
  k = np.full(6, 4)
  more = eval(line.split("`")[1], names | {"V": value, "s": (reward + 1).sum(1) / 2, "k": k})
  assert more.sum() == 12 and more.min() >= 0


def test_every_promise_names_tests_that_are_there():
  folder = Path(__file__).parent
  text = (folder.parent / "README.md").read_text()
  _, _, rest = text.partition("## What a run promises\n")
  promises = rest.partition("\n## ")[0].split("\n- ")[1:]
  found = [
    (node.name, [ast.unparse(mark) for mark in node.decorator_list])
    for path in folder.glob("test_*.py")
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef)
  ]
  often = collections.Counter(name for name, _ in found)
  absent = re.compile(r"pytest\.mark\.(long|pod|skip)\b")
  left_out = {name for name, marks in found if any(map(absent.match, marks))}
  assert len(promises) >= 10
  for promise in promises:
    names = re.findall(r"`(test_\w+)`", promise)
    assert names and all(often[name] == 1 for name in names), promise
    assert set(names) - left_out, f"make test runs none of {names}"
