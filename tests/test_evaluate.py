"""Evaluation: metrics of known results, and a tiny model on two benchmarks, its files and its
table."""

import json
import math
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from v05_jax import data, rewards
from v05_jax.configs import default
from v05_jax.models import tokenizer as tokenizers
from v05_jax.run import eval_mode, evaluate, metrics, success

pytestmark = pytest.mark.usefixtures("few_devices")

DATA = pathlib.Path(__file__).parent / "data"
NAN = math.nan


def result(names, hits, exact=None, key="benchmark", tokens=None, ended=True):
  """A Result of `hits[i]` successes among 4 responses to prompt i."""
  n = len(names)
  wins = np.arange(4) < np.array(hits, float)[:, None]
  lengths = np.full((n, 4), 10) if tokens is None else np.array(tokens)
  rows = tuple(
    {"prompt": str(i), "answer": "1", **({key: name} if name else {})}
    for i, name in enumerate(names)
  )
  exact = np.full(n, NAN) if exact is None else np.array(exact)
  ended, texts = np.broadcast_to(ended, (n, 4)).copy(), np.full((n, 4), "a response")
  return evaluate.Result(rows, exact, wins.astype(float), lengths, ended, texts)


def test_metrics_by_benchmark_and_their_mean():
  found = result(["a", "a", "a", "b"], [4, 1, 0, 2])
  found.ended[0, :2] = False
  found.tokens[3] = [10, 20, 30, 40]
  got = metrics.means(evaluate.summarise(found, every=True))
  assert not [name for name in got if metrics.meaning(name) is None]
  assert got["eval/mean"] == pytest.approx(7 / 16) and got["eval/pass"] == pytest.approx(3 / 4)
  assert got["eval/mean/a"] == pytest.approx(5 / 12) and got["eval/mean/b"] == 0.5
  assert got["eval/average/mean"] == pytest.approx((5 / 12 + 1 / 2) / 2)
  assert got["eval/pass_at_2/a"] == pytest.approx((1 + 1 / 2 + 0) / 3)
  assert got["eval/pass_at_2/b"] == pytest.approx(1 - 1 / 6)
  assert (got["eval/truncated/a"], got["eval/truncated/b"]) == (pytest.approx(2 / 12), 0)
  assert (got["eval/length/a"], got["eval/length/b"], got["eval/average/length"]) == (10, 25, 17.5)
  assert (
    got["eval/failed"] == 0
    and "eval/exact" not in got
    and got["eval/accuracy/a"] == got["eval/mean/a"]
  )
  during_training = evaluate.summarise(found)
  assert (
    not [name for name in during_training if "pass_at" in name]
    and "eval/average/mean" in during_training
  )


def test_one_benchmark_has_no_mean_of_several():
  got = evaluate.summarise(result(["a", "a"], [1, 2]))
  assert not [name for name in got if "average" in name]
  assert metrics.means(got)["eval/mean/a"] == metrics.means(got)["eval/mean"]


def test_a_failed_verdict_is_no_success_and_is_counted():
  found = result(["a", "a"], [2, 2])
  found.success[0, :2] = NAN
  got = metrics.means(evaluate.summarise(found))
  assert (got["eval/mean"], got["eval/pass"], got["eval/failed"]) == (0.25, 0.5, 0.25)


def test_families_sampled_in_part_have_their_own_metrics_alone():
  found = result(
    ["add", "chain"], [0, 3], exact=[0.75, NAN], key="family", tokens=[[0] * 4, [5] * 4]
  )
  found.success[0] = NAN
  got = metrics.means(evaluate.summarise(found))
  assert (
    got["eval/accuracy"] == 0.75 and got["eval/exact"] == 0.75 and got["eval/accuracy/add"] == 0.75
  )
  assert got["eval/mean/chain"] == 0.75 and "eval/mean" not in got and "eval/mean/add" not in got
  assert "eval/length" not in got and got["eval/failed"] == 0


def test_partial_success_passes_only_where_it_is_whole():
  found = result(["a"], [0])
  found.success[:] = [[0.5, 0.9, 0, 0]]
  got = metrics.means(evaluate.summarise(found, every=True))
  assert got["eval/mean"] == pytest.approx(0.35) and got["eval/pass"] == got["eval/pass_at_2"] == 0


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.1, 0.9), (0.3, 0.7), (9.9, 10.03)])
def test_the_highest_reward_passes_however_it_is_rounded(low, high):
  found = result(["a"], [0])
  reward = np.array([[high, high, low, NAN]], np.float32)
  found.success[:] = evaluate.shares(reward, low, high)
  got = metrics.means(evaluate.summarise(found, every=True))
  assert got["eval/pass"] == 1 and got["eval/pass_at_2"] == pytest.approx(5 / 6)
  assert got["eval/mean"] == pytest.approx(0.5) and got["eval/failed"] == 0.25


def test_intervals_hold_the_values_and_do_not_depend_on_the_company():
  rng = np.random.default_rng(0)
  both = result(["a"] * 30 + ["b"] * 80, rng.integers(0, 5, 110))
  ends = evaluate.intervals(both, seed=1)
  values = metrics.means(evaluate.summarise(both, every=True))
  assert ends.keys() == values.keys() - {"eval/failed"}
  assert all(low <= values[name] <= high for name, (low, high) in ends.items())
  width = {name: high - low for name, (low, high) in ends.items()}
  assert width["eval/mean/b"] < width["eval/mean/a"] and 0.15 < width["eval/mean/a"] < 0.35
  assert width["eval/average/mean"] == pytest.approx(
    np.hypot(width["eval/mean/a"], width["eval/mean/b"]) / 2, rel=0.1
  )
  alone = evaluate.Result(both.rows[30:], *(x[30:] for x in both[1:]))
  assert evaluate.intervals(alone, seed=1)["eval/mean/b"] == ends["eval/mean/b"]
  assert evaluate.intervals(alone, seed=2)["eval/mean/b"] != ends["eval/mean/b"]


def test_the_table():
  found = result(["math500"] * 2 + ["mine"], [4, 1, 0])
  values, ends = metrics.means(evaluate.summarise(found, every=True)), evaluate.intervals(found, 0)
  head, _, first, second, mean = eval_mode.table(found, values, ends).splitlines()
  assert head == "| | prompts | mean@4 | pass@2 | pass@4 | tokens | truncated |"
  assert first.startswith(
    "| math500 | 2 of 500 | 0.625 [0.250, 1.000] | 0.750 [0.500, 1.000] | 1.000 [1.000, 1.000] |"
  )
  assert second.startswith("| mine | 1 | 0.000") and mean.startswith("| mean | 3 | 0.312 [")
  families = result(["add", "sort"], [4, 1], exact=[1, NAN], key="family")
  values, ends = (
    metrics.means(evaluate.summarise(families, every=True)),
    evaluate.intervals(families, 0),
  )
  text = eval_mode.table(families, values, ends).splitlines()
  assert [line.split(" | ")[0] for line in text[2:]] == ["| add", "| sort", "| all"]
  assert text[0].endswith("| exact or mean |") and text[4].count("|") == text[0].count("|")
  plain = result([""], [1])
  assert "| all | 1 | 0.250" in eval_mode.table(
    plain, metrics.means(evaluate.summarise(plain, every=True)), {}
  )


@pytest.mark.parametrize(
  "names, expected",
  [
    (["hard"] * 2 + [""] * 6, {"hard": ("2", "0.000"), "all": ("8", "0.750")}),
    (["a", "b"] + [""] * 6, {"a": 0, "b": 0, "mean": ("2", "0.000"), "all": ("8", "0.750")}),
    (["a"] * 8, {"a": ("8", "0.750")}),
  ],
)
def test_the_table_counts_rows_that_have_no_benchmark(names, expected):
  found = result(names, [0, 0, 4, 4, 4, 4, 4, 4])
  values = metrics.means(evaluate.summarise(found, every=True))
  _, _, *lines = eval_mode.table(found, values, {}).splitlines()
  cells = {
    cells[0]: cells[1:3] for cells in ([x.strip() for x in line.split("|")[1:]] for line in lines)
  }
  assert list(cells) == list(expected)
  assert all(cells[name] == list(x) for name, x in expected.items() if x)


def said(caplog, begin: str) -> list[str]:
  """The warnings so far that begin so; the next call sees later ones."""
  found = [x.getMessage() for x in caplog.records if x.getMessage().startswith(begin)]
  caplog.clear()
  return found


def test_prompts_that_training_knows_and_those_left_out_are_said(tmp_path, caplog):
  rows = [{"prompt": f"{i}+1", "answer": str(i + 1)} for i in range(6)]
  c, tokenizer = default.get_config(), tokenizers.load(DATA / "math" / "model")

  def read(some, size=4, **more):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    c.data.update({"path": str(tmp_path / "p.jsonl"), "size": size})
    return data.load(c.data, tokenizer, 99, **more)

  train, heldout = read(rows[:4]), read(rows[2:], shuffle=False, key="eval.path")
  assert (len(train), len(heldout)) == (4, 4) and not caplog.records
  evaluate.warn_shared(train, heldout, "h")
  assert said(caplog, "eval.path=h: 2 of 4 prompts are in data.path too")
  evaluate.warn_shared(read(rows[:2]), heldout, "h")
  many, usual = rows * 100, c.eval.size
  assert len(read(many, usual)) == 600  # training takes all
  assert len(read(many, 4, shuffle=False)) == 4 and not caplog.records  # as was asked for
  assert len(read(many, usual, shuffle=False)) == usual == 512
  assert said(caplog, "eval.size: of ")[0].endswith("p.jsonl the first 512 rows alone are taken")


def test_samples_are_named_by_benchmark_and_row():
  rows = [{"benchmark": "a"}, {"benchmark": "b"}, {"benchmark": "b"}]
  together, alone = evaluate.positions(rows), evaluate.positions(rows[1:])
  assert (
    together[1:].tolist() == alone.tolist()
    and len(set(together.tolist())) == 3
    and together.dtype == np.int32
  )
  assert evaluate.positions([{}, {"family": "add"}]).tolist() == [0, 1]  # as without benchmarks


# --- A tiny model with random weights


def settings(path):
  c = default.get_config()
  c.policy.path, c.reward = str(DATA / "math" / "model"), "math"
  c.data.update({"path": "aime2024", "folder": str(DATA / "benchmarks")})
  c.sampler.update(
    {"max_prompt": 256, "max_response": 12, "slots": 8, "open_prompts": 8, "prefill": 8}
  )
  c.sampler.truncated = "score"
  c.eval.update({"path": path, "samples": 3, "period": 0})
  return c


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The workdir of `--mode=eval` on two benchmarks."""
  workdir = tmp_path_factory.mktemp("eval")
  values = eval_mode.evaluate_workdir(settings("gsm8k,aime2024"), str(workdir))
  return workdir, values


def test_evaluation_writes_a_table_its_values_and_its_prompts(written):
  workdir, values = written
  record = json.loads((workdir / "eval.json").read_text())
  assert (
    {name: record[name] for name in values} == values
    and record["step"] is None
    and record["samples"] == 3
  )
  assert [record[x] for x in ("path", "prompts", "temperature", "max_response")] == [
    "gsm8k,aime2024",
    4,
    1,
    12,
  ]
  text = (workdir / "eval.md").read_text()
  assert text.startswith(
    "gsm8k,aime2024, the policy of the config; n = 3 samples a prompt at temperature 1, at most 12 "
    "tokens each;"
  )
  assert [line.split(" | ")[:2] for line in text.splitlines()[4:]] == [
    ["| gsm8k", "2 of 1319"],
    ["| aime2024", "2 of 30"],
    ["| mean", "4"],
  ]
  lines = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]
  assert [line["benchmark"] for line in lines] == ["gsm8k"] * 2 + ["aime2024"] * 2 and lines[0][
    "answer"
  ] == "294"
  assert all(
    len(line["success"]) == 3 and 0 < min(line["tokens"]) <= max(line["tokens"]) <= 12
    for line in lines
  )
  assert all(len(line["responses"]) == 3 and all(map(str, line["responses"])) for line in lines)
  assert 0 < values["eval/length"] <= 12 and values["eval/truncated"] > 0.5


def test_values_and_intervals_come_back_from_the_prompts(written):
  workdir, values = written
  again = eval_mode.read(str(workdir))
  assert metrics.means(evaluate.summarise(again, every=True)) == pytest.approx(values)
  saved = json.loads((workdir / "eval.json").read_text())["intervals"]
  assert {
    name: list(ends) for name, ends in evaluate.intervals(again, default.get_config().seed).items()
  } == saved


@pytest.mark.parametrize("text", [None, "{", "3", '{"exact": 1}', '{"exact": "x", "success": []}'])
def test_prompts_that_were_not_written_by_an_evaluation_are_named(tmp_path, text):
  if text is not None:
    (tmp_path / "eval.jsonl").write_text(text)
  with pytest.raises(ValueError, match=r"eval\.jsonl: cannot be read as what --mode=eval writes"):
    eval_mode.read(str(tmp_path))


def test_a_benchmark_is_asked_for_the_same_samples_in_any_company():
  policy = types.SimpleNamespace(tokenizer=tokenizers.load(DATA / "math" / "model"), config=None)

  def asked(path):
    seen = []

    def collect(params, prompts, key, order):
      seen.append(
        (
          prompts.position.tolist(),
          jax.random.key_data(key).tolist(),
          order.budget.limits,
          order.temperature,
        )
      )
      shape = len(prompts.mask), order.budget.limits.most
      some = {"reward": np.ones(shape, np.float32), "ended": np.ones(shape, bool)}
      none = {name: np.zeros((0, 7), int) for name in ("tokens", "prompt", "index")}
      return types.SimpleNamespace(length=np.full(shape, 7), **some, **none), {}

    found = evaluate.make(policy, settings(path), collect)(None)
    assert (
      found.mean.tolist() == found.passes(3).tolist() == [1] * len(found.rows)
      and (found.tokens == 7).all()
    )
    return seen[0]

  alone, together = asked("aime2024"), asked("gsm8k,aime2024")
  assert together[0][2:] == alone[0] and len(set(together[0])) == 4
  assert together[1:] == alone[1:] and alone[2][:2] == (3, 3)


def test_a_policy_whose_weights_are_too_large_is_refused_by_name(tmp_path):
  model = pathlib.Path(shutil.copytree(DATA / "math" / "model", tmp_path / "model"))
  tensors = load_file(model / "model.safetensors")
  name = "model.norm.weight"
  tensors[name] = tensors[name] * np.float32(1e30)
  save_file(tensors, model / "model.safetensors")
  c = settings("aime2024")
  c.policy.path = str(model)
  with pytest.raises(
    ValueError, match=r"model\.norm\.weight: found \d+ of \d+ values of .* or more"
  ):
    eval_mode.evaluate_workdir(c, str(tmp_path / "run"))
  assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("eval")]


def test_a_policy_without_finite_log_probs_is_not_measured():
  policy = types.SimpleNamespace(tokenizer=tokenizers.load(DATA / "math" / "model"), config=None)
  collect = lambda *_: (None, {"sampler/not_finite": (3, 1)})
  with pytest.raises(FloatingPointError, match="log-probs are not finite"):
    evaluate.make(policy, settings("aime2024"), collect)(None)


def test_an_evaluation_in_which_every_verdict_fails_writes_nothing(tmp_path, monkeypatch):
  (tmp_path / "my_reward.py").write_text(
    "def broken(prompt, response, row):\n  return row['no such field']\n"
    "def two(prompt, response):\n  return 1.0\n"
  )
  monkeypatch.chdir(tmp_path)
  c = settings("aime2024")
  c.reward = "my_reward:broken"
  error = r"all 6 verdicts failed.*crash: KeyError: 'no such field' \(.*my_reward.py:2\)"
  with pytest.raises(rewards.RewardError, match=error):
    eval_mode.evaluate_workdir(c, str(tmp_path / "run"))
  assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("eval")]
  c.reward, c.policy.path = "my_reward:two", str(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="has other parameters"):  # before the model is looked for
    eval_mode.evaluate_workdir(c, str(tmp_path / "run"))


def test_no_samples_are_a_clear_error(tmp_path):
  c = settings("aime2024")
  c.eval.samples = 0
  with pytest.raises(ValueError, match=r"config.eval.samples: found 0, expected at least 1"):
    eval_mode.evaluate_workdir(c, str(tmp_path))
  assert success.LEVEL == 0.95  # as the table's heading says
