import builtins
import json
import pathlib

import numpy as np
import pytest

from configs import default
from v05_jax import config as configuration
from v05_jax import metrics, report


def make(folder: pathlib.Path, scores, per_step=100, seed=0, k=4, name="eval/exact", **extra):
  """A run whose line n has the n-th score; None = a line without one."""
  folder.mkdir(parents=True)
  config = default.get_config()
  config.seed, config.budget.k_init = seed, k
  (folder / "config.json").write_text(configuration.to_json(config))
  lines = [
    {"step": n, "rollouts": n * per_step, name: score, "prompts": per_step // k if n else 0} | extra
    for n, score in enumerate(scores)
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(folder)


def cells(text):
  lines = [x for x in text.splitlines() if x.startswith("| ") and "---" not in x]
  rows = [line.strip("| ").split(" | ") for line in lines]
  return {row[0]: dict(zip(rows[0], row)) for row in rows[1:]}


def test_the_table_compares_at_equal_rollouts(tmp_path, capsys):
  a = make(tmp_path / "v05", [0.2, None, 0.4, 0.4], **{"time/sample": 2.0, "time/update": 1.0})
  scores = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
  b = make(tmp_path / "grpo", scores, per_step=50, k=16, **{"time/step": 0.5})
  rows = report.report([a, b])
  assert [(row.name, round(row.gain, 6)) for row in rows] == [("v05", 0.2), ("grpo", 0.8)]
  text = capsys.readouterr().out
  assert text.startswith("exact success on held-out prompts; up to 250 rollouts;")
  table = cells(text)
  assert list(table) == ["grpo", "v05"]  # the better end first
  v05 = dict(start="0.2000", end="0.4000", gain="0.2000", area="0.3200")
  assert table["v05"] == {"run": "v05", **v05, "rollouts": "300", "prompts": "75", "time": "12 s"}
  grpo = table["grpo"]
  assert (grpo["end"], grpo["prompts"], grpo["time"]) == ("1.0000", "15", "3 s")
  assert float(grpo["area"]) == pytest.approx(np.mean([0.3, 0.5, 0.7, 0.9, 1.0]), abs=1e-4)
  assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_of_a_method_are_averaged(tmp_path, capsys):
  ends = [0.4, 0.6, 0.8]
  runs = [make(tmp_path / f"v05-s{s}", [0.2, end], seed=s) for s, end in enumerate(ends)]
  runs.append(make(tmp_path / "grpo-16", [0.2, 0.3], k=16))
  report.report(runs, str(tmp_path / "plots"))
  table = cells(capsys.readouterr().out)
  error = np.std(ends, ddof=1) / np.sqrt(3)
  assert table["v05"]["seeds"] == "3" and table["v05"]["end"] == f"0.6000 ± {error:.4f}"
  assert table["grpo-16"]["seeds"] == "1"
  assert (tmp_path / "plots" / "comparison.png").exists()


def test_names(tmp_path):
  paths = [make(tmp_path / "rloo" / str(s), [0.1, 0.2], seed=s) for s in range(2)]
  paths += [make(tmp_path / side / "v05", [0.1, 0.2], k=k) for side, k in (("a", 8), ("b", 16))]
  names = lambda *arguments: [row.name for row in report.report(*arguments)]
  assert names(paths) == ["rloo", "a/v05", "b/v05"]
  assert names(paths[1:], None, ["RLOO", "V0.5 8", "V0.5 16"]) == ["RLOO", "V0.5 8", "V0.5 16"]


def test_the_score_is_one_that_all_runs_have(tmp_path, capsys):
  def head(*workdirs):
    report.report(workdirs)
    return capsys.readouterr().out

  a = make(tmp_path / "a", [0.1, 0.2])
  b = make(tmp_path / "b", [0.1, 0.5], k=8, accuracy=0.5)
  (tmp_path / "a" / "metrics.jsonl").open("a").write(
    '{"step": 2, "rollouts": 200, "accuracy": 0.3}\n{"step": 3, "rollouts": 300, "accu'  # torn
  )
  assert head(a, b).startswith("exact success")
  c = make(tmp_path / "c", [0.5, 0.6, 0.7], name="accuracy", k=16)
  assert head(a, c).startswith("success of the rollouts; up to 200 rollouts")
  d = make(tmp_path / "d", [0.5], name="grad/norm")
  with pytest.raises(ValueError, match="no metric is in all of"):
    report.report([a, d])


def test_a_workdir_without_metrics(tmp_path):
  (tmp_path / "empty").mkdir()
  for call in (report.summary, lambda path: report.report([path])):
    for name in ("empty", "nowhere"):
      with pytest.raises(ValueError, match=rf"workdir {tmp_path}/{name}: found no metrics.jsonl"):
        call(str(tmp_path / name))
  assert not (tmp_path / "nowhere").exists()


def test_summary_shows_what_there_is(tmp_path):
  folder = make(tmp_path / "run", [0.1 * n if n % 5 == 0 else None for n in range(40)])
  path = tmp_path / "run" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines[1:]:
    line |= {"accuracy": 0.5, "reward": 0.5, "k/mean": 4.0}
    line |= {"grad/norm": None, "loss/entropy": line["step"]}
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  titles = [title for title, _ in report._panels(report.load(folder))]
  # The reward repeats the accuracy, and no gradient norm is finite.
  shown = "held-out success, success of the rollouts, rollouts per prompt, entropy, nats a token"
  assert ", ".join(titles) == shown
  assert report.summary(folder) == f"{folder}/summary.png"
  assert (tmp_path / "run" / "summary.png").stat().st_size > 10_000


def test_a_warm_start_is_drawn_over_its_steps(tmp_path):
  run = report.load(make(tmp_path / "sft", [0.1, 0.2, 0.3], per_step=0))
  assert run.axis == "step" and run.curve("eval/exact")[0].tolist() == [0, 1, 2]


def test_every_panel_is_a_documented_metric():
  names = [name for _, curves in report.PANELS for name in curves.values()]
  assert all(name in metrics.METRICS for name in (*names, *report.SCORES))


def test_moving_mean_keeps_the_ends():
  y = np.arange(30.0)
  smooth = report._moving_mean(y, 3)
  np.testing.assert_allclose(smooth[1:-1], y[1:-1])
  np.testing.assert_allclose(smooth[[0, -1]], [0.5, 28.5])


def test_without_matplotlib_the_table_remains(tmp_path, monkeypatch, capsys):
  a = make(tmp_path / "a", [0.1, 0.2])
  original = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name.startswith("matplotlib"):
      raise ImportError(name)
    return original(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", refuse)
  assert report.report([a])[0].end == 0.2 and report.summary(a) is None
  said = capsys.readouterr()
  assert "| a |" in said.out and "without matplotlib" in said.err


def test_the_scoreboard_is_ranked_with_the_runs_own_baseline_at_zero(tmp_path):
  line = {"scoreboard/v05/sq_adv": 0.5}
  for name, difference in (("ewa", -0.02), ("mean", 0.03)):
    values = {"sq_adv": 0.5, "difference": difference, "standard_error": 0.01}
    line |= {f"scoreboard/{name}/{x}": y for x, y in values.items()}
  run = report.load(make(tmp_path / "v05", [0.1, 0.2], **line))
  assert report.standings(run) == [("ewa", -0.02, 0.01), ("v05 (own)", 0.0, 0.0), ("mean", 0.03, 0.01)]
  assert pathlib.Path(report.summary(str(tmp_path / "v05"))).stat().st_size > 10_000
  assert report.standings(report.load(make(tmp_path / "none", [0.1, 0.2]))) == []
