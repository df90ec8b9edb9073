"""The examples of docs/extending.md are files outside of the package, and training steps run with
them: nothing else is touched."""

import dataclasses
import importlib
from pathlib import Path
import re
import shlex
import subprocess
import sys

from absl import flags
import numpy as np
import pytest

from tests.test_train import small
from v05_jax import command_line, plug
from v05_jax import groups as grouping
from v05_jax.models import BUILTIN, hf
from v05_jax.models import tokenizer as tokenizers
from v05_jax.run import metrics
from v05_jax.structs import Prompts
from v05_jax.train import train

pytestmark = pytest.mark.usefixtures("few_devices")

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
EXAMPLES = {
  match[1]: (match[2], match[3])
  for match in re.finditer(r"```python\n# (\w+)\.py: ([^\n]*)\n(.*?)```", PAGE, re.DOTALL)
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A user's folder with the page's files, where a run is started."""
  for name, (_, text) in EXAMPLES.items():
    (tmp_path / f"{name}.py").write_text(text)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  for name in EXAMPLES:
    sys.modules.pop(name, None)


def run(folder, *names, **keys):
  """Two steps of a small run with the flags that the page gives for these files -> (config, state,
  last line of the metrics)."""
  typed = [word for name in names for word in shlex.split(EXAMPLES[name][0]) if "--config." in word]
  values = flags.FlagValues()
  typed = [word.replace("FOLDER", str(folder)) for word in typed]
  command_line.parse(["main", "--config.eval.period=0", *typed], values)
  config = small(values.config, num_steps=2, **{"eval.period": 0, "checkpoint.period": 0, **keys})
  state = train(config, str(folder / "run"))
  return config, state, metrics.read(folder / "run")[-1]


def test_every_kind_of_plug_has_an_example_of_ten_to_thirty_lines():
  kinds = {kind.key for kind in plug.KINDS.values()} | {"policy.family", "reward", "data.path"}
  typed = " ".join(flags for flags, _ in EXAMPLES.values())
  assert kinds <= set(re.findall(r"--config\.([\w.]+)=", typed))
  assert all(text.count("\n") <= 30 for _, text in EXAMPLES.values())


def test_estimator_prior_wrapper_and_observer(folder):
  names = ("my_estimator", "my_prior", "my_wrapper", "my_observer")
  config, state, line = run(folder, *names)
  assert config.estimators.blend.share == 0.3 and config.priors.cautious.share == 0.8
  assert set(state.prior) == {"by_length", "cautious"} and set(state.estimator) == {"blend"}
  s, k = state.prior["by_length"]
  assert k.sum() == 64 and 0 < s.sum() < 64  # every rollout of both steps was learnt from
  assert 0 <= line["unanimous"] <= 1 and line["prior/abs_error"] > 0
  place = np.flatnonzero(k)
  value = (
    importlib.import_module("my_prior")
    .by_length({}, None)
    .ask(state.prior["by_length"], type("Prompts", (), {"length": 4 * place, "mask": place > 0}))
  )
  np.testing.assert_allclose(value[0], 2 * s[place] / k[place] - 1)


def test_an_estimator_of_the_other_rollouts(folder):
  mask = np.array([[True] * 4, [True, True, False, False], [True] + [False] * 3])
  reward = np.float32([[1, -1, -1, -1], [1, -1, 0, 0], [1, 0, 0, 0]])
  estimator = importlib.import_module("my_median").of_others(None, None)
  found = estimator.baseline((), grouping.make(reward, mask), np.full(3, np.nan))
  assert np.where(mask, found, 0).tolist() == [[-1, -1, -1, -1], [-1, 1, 0, 0], [0, 0, 0, 0]]
  assert run(folder, "my_median")[2]["grad/norm"] > 0


def test_the_page_names_all_that_a_plug_is_given():
  named = lambda text: set(re.findall(r"`(\w+)`", text))
  table = PAGE[PAGE.index("| `groups.` |") :].split("\n\n")[0]
  assert not set(grouping.Groups._fields) - named(table)
  paragraph = PAGE[PAGE.index("It is asked with `prompts`") :].split("\n\n")[0]
  assert not {x.name for x in dataclasses.fields(Prompts)} - named(paragraph)


def test_an_estimator_that_learns_and_a_budget(folder):
  _, state, line = run(folder, "my_tracker", "my_budget", **{"prior.kind": "none"})
  bought = {int(name.rpartition("/")[2]) for name in line if name.startswith("k/hist/")}
  assert min(bought) == 2 and max(bought) <= 6 and len(bought) > 1
  learnt = state.estimator["running_mean"]
  assert float(learnt["count"]) > 0 and abs(float(learnt["total"])) <= float(learnt["count"])


def test_a_family(folder):
  module = importlib.import_module("my_family")
  shape, params = hf.load(BUILTIN)
  tokenizer = tokenizers.load(BUILTIN)
  assert module.prefixed().architectures == ("ActorLM",)
  own = dataclasses.replace(shape, family="my_family:prefixed")
  hf.save(folder, own, params, tokenizer)
  config, state, line = run(folder, "my_family")
  assert config.policy.family == "my_family:prefixed" and line["grad/norm"] > 0
  assert state.params["embedding"].shape == params["embedding"].shape


def test_a_task(folder):
  subprocess.run([sys.executable, "my_task.py"], check=True, timeout=60)
  rows = (folder / "sums.jsonl").read_text().splitlines()
  assert len(rows) == 512
  keys = {"data.chat_template": False, "sampler.max_prompt": 16}
  _, state, line = run(folder, "my_task", **keys)
  assert line["reward"] >= 0 and line["rewards/failed"] == 0 and int(state.rollouts) == 64


def test_a_sink(folder):
  run(folder, "my_sink", **{"prior.kind": "none"})
  steps = [line.split(",")[0] for line in (folder / "run" / "reward.csv").read_text().split()]
  assert steps == ["1", "2"]


def test_a_reward(folder):
  my_task = importlib.import_module("my_task")
  with open("sums.jsonl", "w") as file:
    file.writelines(f'{{"prompt": "{row["prompt"]}", "answer": "1"}}\n' for row in my_task.rows(64))
  keys = {"data.path": "sums.jsonl", "data.chat_template": False, "sampler.max_prompt": 16}
  _, _, line = run(folder, "my_reward", **keys)
  assert 0 < line["reward"] < 1 and line["rewards/failed"] == 0
  brief = importlib.import_module("my_reward").brief
  assert brief("", "12", {"answer": "1"}) == 1 / 1.01 and brief("", "2", {"answer": "1"}) == 0
