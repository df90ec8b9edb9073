import builtins
import contextlib
import functools
import html.parser
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from experiments.demo.credit import credit
from v05_jax import config as configuration
from v05_jax.configs import default, demo
from v05_jax.run import comparison, conclusion, facts, figures, looks, metrics, page, report, runs


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


@pytest.fixture
def plain(monkeypatch):
  """Tables alone: drawing takes seconds."""
  monkeypatch.setattr(figures, "available", lambda: False)


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


def test_the_time_is_that_without_compilation(tmp_path, plain):
  times, compiled = [0.0, 9.0, 5.0, 1.0, 0.5, 1.5, 7.0, 1.0], [0, 20, 24, 24, 24, 24, 3, 3]
  folder = pathlib.Path(make(tmp_path / "v05", [0.1] * 8))
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  write = lambda: (folder / "metrics.jsonl").write_text(
    "".join(f"{json.dumps(x)}\n" for x in lines)
  )
  for line, time, count in zip(lines, times, compiled):
    line |= {"time/step": time, "time/compilations": count}
  lines[0]["time/compilations"] = None
  write()
  # Steps 1 and 2 compiled, and step 6, of the process that went on; the others' median is 1.
  assert report.load(str(folder)).seconds == pytest.approx(3 * 1.0 + 1.0 + 0.5 + 1.5 + 1.0)
  for count, line in enumerate(lines):
    line["time/compilations"] = count
  write()  # all compiled: there is nothing else to go by
  assert report.load(str(folder)).seconds == pytest.approx(sum(times))


def test_a_run_that_is_there_twice_is_no_second_seed(tmp_path):
  run = make(tmp_path / "a", [0.2, 0.4])
  (tmp_path / "link").symlink_to(tmp_path / "a")
  for again in (run, f"{run}/", f"{run}/../a", str(tmp_path / "link")):
    with pytest.raises(ValueError, match="expected each run once"):
      report.report([run, again])


def test_seeds_of_a_method_are_averaged(tmp_path, capsys, plain):
  ends = [0.4, 0.6, 0.8]
  runs = [make(tmp_path / f"v05-s{s}", [0.2, end], seed=s) for s, end in enumerate(ends)]
  runs.append(make(tmp_path / "grpo-16", [0.2, 0.3], k=16))
  report.report(runs, str(tmp_path / "plots"))
  table = cells(capsys.readouterr().out)
  error = np.std(ends, ddof=1) / np.sqrt(3)
  assert table["v05"]["seeds"] == "3" and table["v05"]["end"] == f"0.6000 ± {error:.4f}"
  assert table["grpo-16"]["seeds"] == "1" and table["grpo-16"]["end"] == "0.3000"
  assert (
    (tmp_path / "plots" / "comparison.md")
    .read_text()
    .startswith("exact success on held-out prompts")
  )


def test_runs_of_other_own_code_are_no_seeds_of_one_method(tmp_path, capsys, plain):
  """The config names module:function alone: an edited file is another method."""
  runs = [make(tmp_path / f"mine-s{s}", [0.2, 0.4], seed=s) for s in range(3)]
  for run, text in zip(runs, ("b = 0", "b = 0", "b = 1")):
    by_own(run, text, "baseline", "my_baseline")
  report.report(runs, str(tmp_path / "plots"))
  table = cells(capsys.readouterr().out)
  assert (table["mine"]["seeds"], table["mine-s2"]["seeds"]) == ("2", "1")
  assert "own_code/my_baseline.py" in (tmp_path / "plots" / "comparison.html").read_text()


def by_own(run, text, key, module):
  """Lets a run have been made by a user's own function, of a file of this text, and an observer."""
  file = pathlib.Path(run) / "config.json"
  keys = json.loads(file.read_text()) | {key: f"{module}:mine"}
  file.write_text(json.dumps(keys))
  kept = {f"{module}.py": text, "my_observer.py": run}  # what looks on decides nothing
  (pathlib.Path(run) / "own_code.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("text, problems", [("x = 1", []), ("x = 2", ["the reward's own code"])])
def test_nothing_is_claimed_by_an_edited_reward(text, problems, tmp_path):
  rows = []
  for name, k, code in (("a", 4, "x = 1"), ("b", 8, text)):
    folders = [make(tmp_path / f"{name}-s{s}", [0.2, 0.4], k=k, seed=s) for s in range(3)]
    for folder in folders:
      by_own(folder, code, "reward", "my_reward")
    rows += comparison.compare([runs.load(folder) for folder in folders], "eval/exact")
  assert conclusion.other_measure(rows[1], rows[0], "eval/exact") == problems


def test_names(tmp_path, plain):
  paths = [make(tmp_path / "rloo" / str(s), [0.1, 0.2], seed=s) for s in range(2)]
  paths += [make(tmp_path / side / "v05", [0.1, 0.2], k=k) for side, k in (("a", 8), ("b", 16))]
  names = lambda *arguments: [row.name for row in report.report(*arguments)]
  assert names(paths) == ["rloo", "a/v05", "b/v05"]
  assert names(paths[1:], None, ["RLOO", "V0.5 8", "V0.5 16"]) == ["RLOO", "V0.5 8", "V0.5 16"]


def test_the_score_is_one_that_all_runs_have(tmp_path, capsys, plain):
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
  with pytest.raises(ValueError, match=r"no metrics\.jsonl, as there is no such folder, exp"):
    report.report([str(tmp_path / "nowhere")])
  assert not (tmp_path / "nowhere").exists()
  (tmp_path / "empty" / "metrics.jsonl").touch()
  with pytest.raises(ValueError, match="found a run without a first line yet"):
    report.report([str(tmp_path / "empty")])


def test_a_folder_in_the_place_of_a_file_is_named_or_left_out(tmp_path, capsys):
  good = make(tmp_path / "runs" / "good", [0.5, 0.6])
  bad = make(tmp_path / "runs" / "bad", [0.5, 0.6])
  (tmp_path / "runs" / "bad" / "config.json").unlink(missing_ok=True)
  (tmp_path / "runs" / "bad" / "config.json").mkdir()
  with pytest.raises(ValueError, match=r"runs/bad: cannot be read: .*config\.json"):
    report.report([good, bad])
  assert len(report.report([str(tmp_path / "runs")])) == 1
  assert "left out: workdir" in capsys.readouterr().err


def test_summary_shows_what_there_is(tmp_path):
  folder = make(tmp_path / "run", [0.1 * n if n % 5 == 0 else None for n in range(40)])
  path = tmp_path / "run" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines[1:]:
    line |= {"accuracy": 0.5, "reward": 0.5, "k/mean": 4.0}
    line |= {"grad/norm": None, "loss/entropy": line["step"]}
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  titles = [title for title, _ in report.panels(report.load(folder))]
  # The reward repeats the accuracy, and no gradient norm is finite.
  shown = (
    "held-out success: exact, success of the rollouts, rollouts per prompt, entropy, nats a token"
  )
  assert ", ".join(titles) == shown
  assert report.summary(folder) == f"{folder}/summary.png"
  assert (tmp_path / "run" / "summary.png").stat().st_size > 10_000


def test_a_warm_start_is_drawn_over_its_steps(tmp_path):
  run = report.load(make(tmp_path / "sft", [0.1, 0.2, 0.3], per_step=0))
  assert run.axis == "step" and run.curve("eval/exact")[0].tolist() == [0, 1, 2]
  (row,) = comparison.compare([run], "eval/exact")
  assert row.axis == "step" and "on held-out prompts; up to 2 steps" in page.heading(
    [row], "eval/exact"
  )


def test_every_panel_is_a_documented_metric():
  names = [name for _, curves in runs.PANELS for name in curves.values()]
  assert all(name in metrics.METRICS for name in (*names, *comparison.SCORES))


def test_moving_mean_keeps_the_ends():
  y = np.arange(30.0)
  smooth = runs.moving_mean(y, 3)
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
  text = (tmp_path / "comparison.html").read_text()
  assert text.count("<figure") == 2 + 1 and "<td>0.2000</td>" in text  # the page draws its own


def test_the_scoreboard_is_ranked_with_the_runs_own_baseline_at_zero(tmp_path):
  line = {"scoreboard/v05/sq_adv": 0.5}
  for name, difference in (("ewa", -0.02), ("mean", 0.03)):
    values = {"sq_adv": 0.5, "difference": difference, "standard_error": 0.01}
    line |= {f"scoreboard/{name}/{x}": y for x, y in values.items()}
  run = report.load(make(tmp_path / "v05", [0.1, 0.2], **line))
  assert report.standings(run) == [
    ("ewa", -0.02, 0.01),
    ("v05 (own)", 0.0, 0.0),
    ("mean", 0.03, 0.01),
  ]
  assert pathlib.Path(report.summary(str(tmp_path / "v05"))).stat().st_size > 10_000
  assert report.standings(report.load(make(tmp_path / "none", [0.1, 0.2]))) == []


# --- Methods of several seeds, and the page


def seeds(tmp_path, name, scores, k=4, **extra):
  """A run for each seed, with `scores` {seed: score of each line}."""
  return [
    make(tmp_path / f"{name}-s{seed}", y, seed=seed, k=k, **extra) for seed, y in scores.items()
  ]


def rows(*workdirs):
  return comparison.compare([report.load(workdir) for workdir in workdirs], "eval/exact")


def test_paired_differences_by_hand(tmp_path, plain, capsys):
  curves = {0: [0.2, 0.3, 0.4], 1: [0.2, 0.4, 0.6], 2: [0.2, 0.5, 0.5], 3: [0.2, 0.9, 0.9]}
  first = seeds(tmp_path, "grpo", curves, k=16)
  second = seeds(
    tmp_path,
    "v05",
    {2: [0.2, 0.5, 0.8], 1: [0.2, 0.5, 0.7], 0: [0.2, 0.4, 0.6], 9: [0.2, 0.0, 0.0]},
  )
  third = seeds(tmp_path, "spo", {0: [0.2, 0.3, 0.5], 7: [0.2, 0.3, 0.3]}, k=2)
  fourth = seeds(tmp_path, "ewa", {8: [0.2, 0.3, 0.5]}, k=1)
  found = rows(*first, *second, *third, *fourth)
  # Seeds 0, 1, 2 are shared; t(.975, 2) = 4.302653. Ends differ by .2, .1, .3, areas by .1, .075,
  # .075.
  end, area = (comparison.paired(found[1], found[0], what) for what in ("end", "area"))
  assert end == pytest.approx((0.2, 4.302653 * 0.1 / np.sqrt(3), 3))
  assert area == pytest.approx(
    (0.25 / 3, 4.302653 * np.std([0.1, 0.075, 0.075], ddof=1) / np.sqrt(3), 3)
  )
  assert comparison.paired(found[2], found[0], "end")[::2] == pytest.approx((0.1, 1))
  assert comparison.paired(found[3], found[0], "end") is None
  report.report([*first, *second, *third, *fourth])
  table = cells(capsys.readouterr().out)
  assert table["v05"]["end - grpo"] == "+0.2000 [-0.0484, +0.4484]"
  assert table["spo"]["end - grpo"] == "+0.1000 (1 pair)"
  assert "+0.2000 [-0.0484, +0.4484]" in (tmp_path / "comparison.md").read_text()
  # One seed each: nothing to say of chance.
  report.report([first[0], second[0]])
  assert "end - grpo" not in cells(capsys.readouterr().out)["v05-s2"]


class Page(html.parser.HTMLParser):
  """Checks that tags are closed in order; collects ids, what would be loaded, scripts, tables by id
  and the data of charts by their titles."""

  VOID = ("meta", "input", "br", "img", "link")

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.loaded, self.tables, self.text = [], [], [], {}, ""
    self.charts, self.scripts = {}, []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag not in self.VOID:
      self.open.append(tag)
    self.ids += [attributes["id"]] if "id" in attributes else []
    if tag == "script":
      self.scripts.append(attributes.get("type"))
    if tag in ("link", "iframe", "object", "embed", "base"):
      self.loaded.append(tag)
    for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
      if name in attributes:
        self.loaded.append(attributes[name])
    if tag == "table":
      self.tables[attributes.get("id")] = self.rows = []
    elif tag == "tr":
      self.rows.append([])
    elif tag in ("td", "th"):
      self.rows[-1].append("")

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in self.VOID:
      self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == "script":
      if self.scripts[-1] == "application/json":
        chart = json.loads(data)
        self.charts.setdefault(chart["title"], []).append(chart)
      return
    self.text += data
    if any(tag in ("td", "th") for tag in self.open):
      self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """Two methods of two seeds, one with a name that HTML must escape, and one of one seed: (folder,
  rows, page)."""
  folder = tmp_path_factory.mktemp("compared")
  board = {
    "scoreboard/v05/sq_adv": 0.5,
    "scoreboard/ewa/difference": -0.02,
    "scoreboard/ewa/standard_error": 0.01,
  }
  shared = {"k/mean": 4.0, "k/hist/4": 20.0, "k/hist/8": 5.0, "grad/norm": 1.0, **board}
  workdirs = seeds(folder, "v05", {0: [0.2, 0.4], 1: [0.2, 0.5]}, **shared)
  workdirs += seeds(folder, "grpo", {0: [0.2, 0.3, 0.3], 1: [0.2, 0.3, 0.4]}, k=16)
  workdirs += [make(folder / "alone", [0.2, 0.3], k=2)]
  names = ["V0.5", "V0.5", "<GRPO> & co", "<GRPO> & co", "alone"]
  found = report.report(workdirs, str(folder / "out"), names)
  return folder / "out", found, (folder / "out" / "comparison.html").read_text()


def test_the_page_loads_nothing_and_is_well_formed(compared):
  folder, _, text = compared
  parsed = Page(text)
  assert parsed.loaded == [] and "@import" not in text and "url(" not in text
  assert "default-src 'none'" in text  # of the browser, that it loads nothing
  assert set(parsed.scripts) == {None, "application/json"} and parsed.scripts.count(None) == 1
  assert len(set(parsed.ids)) == len(parsed.ids) > 5
  for name in ("comparison.png", "comparison_steps.png", "comparison_metrics.png"):
    assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_holds_the_table(compared):
  _, found, text = compared
  head, *body = Page(text).tables["scores"]
  expected_head, expected = page.cells(found)
  assert head == expected_head and body == [line for _, line in expected]
  # the best end first; escaped in the source
  assert [line[0] for line in body] == ["V0.5", "<GRPO> & co", "alone"]
  assert body[0][head.index("end")] == "0.4500 ± 0.0500" and "&lt;GRPO&gt; &amp; co" in text
  # t(.975, 1) = 12.7062, of -.1 and -.2
  assert body[1][head.index("end - V0.5")] == "-0.1500 [-0.7853, +0.4853]"
  markdown = (compared[0] / "comparison.md").read_text()
  assert all(" | ".join(line) in markdown for line in body)


def test_the_page_says_in_what_the_runs_differ_and_how_they_went(compared):
  parsed = Page(compared[2])
  settings = {line[0]: line[1:] for line in parsed.tables["settings"][1:]}
  assert settings == {"seeds": ["0, 1", "0, 1", "0"], "budget.k_init": ["4", "16", "2"]}
  assert parsed.tables["histogram"] == [
    ["run", "mean k", "4", "8"],
    ["V0.5", "4.80", "80.0 %", "20.0 %"],
  ]
  board = parsed.tables["scoreboard"]  # two equal errors of .01 give one of .01 / sqrt 2
  assert board == [["run", "ewa", "v05"], ["V0.5", "-0.0200 ± 0.0071", "its own"]]
  assert (
    parsed.text.count("rollouts, 0 s") == 5
    and "<GRPO> & co, seed 1 (compared0/grpo-s1)" in parsed.text
  )


def test_the_charts_hold_the_curves(compared):
  charts = Page(compared[2]).charts
  over_rollouts, over_steps = charts["exact success on held-out prompts"]
  assert (over_rollouts["x"], over_steps["x"]) == ("rollouts generated", "steps")
  first = over_rollouts["lines"][0]
  assert (first["name"], first["method"]) == ("V0.5", 0)
  assert (first["x"], first["y"]) == ([0, 100], [0.2, 0.45]) and first["error"] == [0, 0.05]
  assert over_steps["lines"][1]["x"] == [0, 1, 2]
  (ends,) = charts["end minus that of V0.5"]
  by_name = {row["name"]: row for row in ends["rows"]}
  assert by_name["<GRPO> & co"]["mean"] == pytest.approx(-0.15)
  assert by_name["<GRPO> & co"]["half"] == pytest.approx(0.1 / 2 * 12.7062, rel=1e-4)
  assert by_name["alone"] == by_name["alone"] | {"half": None, "pairs": 1}
  assert len(charts["held-out success: exact"]) == 5  # the runs
  (board, _) = charts["baseline MSE minus that of the run's own, ± standard error"]
  assert [row["name"] for row in board["rows"]] == ["ewa", "v05 (own)"]


def test_looks_differ_without_their_colours():
  found = [looks.look(number) for number in range(40)]
  assert len({(look.dashes, look.mark) for look in found[:20]}) == 20
  assert len(set(found)) == 40
  # next to each other, both do
  assert all(a.dashes != b.dashes and a.mark != b.mark for a, b in itertools.pairwise(found))


def test_a_chart_holds_few_points_and_no_value_that_is_not_finite(tmp_path):
  scores = [0.1 + 1e-9 * n for n in range(3000)]
  run = make(tmp_path / "long", scores, per_step=1, **{"loss/entropy": None, "grad/norm": 2.0})
  report.report([run])
  text = (tmp_path / "comparison.html").read_text()
  lines = [x for found in Page(text).charts.values() for chart in found for x in chart["lines"]]
  assert max(len(line["x"]) for line in lines) <= comparison.MOST_POINTS
  assert all(line["x"][0] == 0 and line["x"][-1] == 2999 for line in lines) and len(text) < 120_000
  assert "NaN" not in text and "Infinity" not in text.split("<script>")[0]


def test_curves_over_steps_reach_each_methods_own_end(compared):
  v05, grpo, _ = compared[1]
  assert v05.curve.x[-1] == grpo.curve.x[-1] == 100  # rollouts that all have reached
  assert comparison.metric_curve(grpo, "eval/exact", "step").x.tolist() == [0, 1, 2]
  assert comparison.metric_curve(v05, "eval/exact", "step").mean.tolist() == [0.2, 0.45]
  assert comparison.metric_curve(v05, "loss/kl", "step") is None
  titles = [title for title, _ in comparison.overlays(compared[1], "eval/exact")]
  assert titles == ["rollouts per prompt", "gradient norm before clipping"]
  assert list(dict(comparison.overlays(compared[1], "eval/exact"))["rollouts per prompt"]) == [0]


def test_of_many_runs_one_a_method_is_drawn(compared, monkeypatch):
  monkeypatch.setattr(page, "MOST_RUNS", 4)
  text = Page(page.page(compared[1], "eval/exact")).text
  assert (
    "One run of each method; 2 further runs are in the means above." in text
    and text.count("rollouts, 0 s") == 3
  )


def test_a_full_disk_leaves_the_files_of_the_report_before(tmp_path, small_disk, plain):
  run = make(tmp_path / "v05", [0.2, 0.4])
  disk = small_disk(tmp_path / "disk", 200)
  report.report([run], str(disk))
  before = {p.name: p.read_bytes() for p in disk.iterdir()}
  assert set(before) == {"comparison.html", "comparison.md"}
  with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as file:
    file.write(bytes(shutil.disk_usage(disk).free))
  with pytest.raises(OSError, match=rf"{disk}/comparison.html: cannot be written: No space left"):
    report.report([run], str(disk))
  (disk / "ballast").unlink()
  assert {p.name: p.read_bytes() for p in disk.iterdir()} == before


# --- What is concluded


def lines(*workdirs):
  return conclusion.text(rows(*workdirs), "eval/exact").splitlines()


def test_of_one_seed_nothing_is_claimed(tmp_path):
  first, second = make(tmp_path / "grpo", [0.2, 0.3], k=16), make(tmp_path / "v05", [0.2, 0.9])
  found = lines(first, second)
  assert found[0] == "**One seed: no claim about a difference.**"
  assert found[2] == "- v05: +0.6000 at the end; one seed: no claim"
  assert not any(word in line for line in found[:3] for word in ("ahead", "behind"))
  # the same seed a second time is no second seed
  again = make(tmp_path / "again", [0.2, 0.9])
  assert lines(first, second, again)[0] == found[0]
  assert rows(second, again)[0].seeds == 1 and rows(second, again)[0].errors == (0, 0, 0, 0)
  assert lines(second) == ["**v05: from 0.200 to 0.900 (one seed: no claim).**"]


def test_who_is_ahead_by_how_much_and_who_is_not(tmp_path):
  grpo = seeds(tmp_path, "grpo", {0: [0.2, 0.3], 1: [0.2, 0.4], 2: [0.2, 0.5]}, k=16)
  v05 = seeds(tmp_path, "v05", {0: [0.2, 0.5], 1: [0.2, 0.61], 2: [0.2, 0.69]})
  spo = seeds(tmp_path, "spo", {0: [0.2, 0.1], 1: [0.2, 0.19], 2: [0.2, 0.31]}, k=1)
  rloo = seeds(tmp_path, "rloo", {0: [0.2, 0.5], 1: [0.2, 0.35], 2: [0.2, 0.5]}, k=2)
  other = seeds(tmp_path, "other", {7: [0.2, 0.5], 8: [0.2, 0.5]}, k=8)
  found = lines(*grpo, *v05, *spo, *rloo, *other)
  assert found[0] == "**Ahead of grpo: v05 by +0.200 [+0.175, +0.225].**"
  assert found[2].startswith("- v05: ahead, +0.2000 [+0.1752, +0.2248] at the end, +0.1000 [")
  assert found[2].endswith("; 3 shared seeds")
  assert found[3].startswith("- spo: behind, -0.2000 [")
  assert found[4].startswith("- rloo: no difference shown, +0.0500 [-")
  assert found[5] == "- other: +0.1000 at the end; no seed shared with grpo: no claim"
  assert "without a correction for 4 comparisons" in found[7]
  assert lines(*grpo, *spo)[0] == "**grpo is ahead: the other method is behind it.**"
  assert lines(*grpo, *rloo)[0] == "**No method is shown to be ahead of grpo.**"
  assert lines(*grpo, *other)[0] == "**No claim about a difference.**"
  assert lines(*grpo)[0] == "**grpo: from 0.200 to 0.400 (mean over 3 seeds).**"
  high = {seed: [0.2, 0.9] for seed in range(3)}
  many = [run for k in (5, 6, 7, 9) for run in seeds(tmp_path, f"m{k}", high, k=k)]
  assert lines(*grpo, *many)[0].endswith("; and 1 more.**")
  same = seeds(tmp_path, "same", {0: [0.2, 0.3], 1: [0.2, 0.4], 2: [0.2, 0.5]}, k=3)
  assert "no difference shown, +0.0000 [+0.0000, +0.0000]" in lines(*grpo, *same)[2]


def reconfigured(workdir, **keys):
  """The run with other config keys."""
  path = pathlib.Path(workdir) / "config.json"
  config = json.loads(path.read_text())
  for key, value in keys.items():
    *folders, name = key.split(".")
    functools.reduce(dict.__getitem__, folders, config)[name] = value
  path.write_text(json.dumps(config))
  return workdir


def test_scores_of_other_prompts_are_not_compared(tmp_path):
  grpo = seeds(tmp_path, "grpo", {0: [0.2, 0.3], 1: [0.2, 0.4]}, k=16)
  v05 = seeds(tmp_path, "v05", {0: [0.2, 0.8], 1: [0.2, 0.9]})
  assert lines(*grpo, *v05)[0].startswith("**Ahead of grpo: v05 by")
  for key, value in (
    ("eval.path", "aime2024"),
    ("eval.size", 100),
    ("eval.samples", 4),
    ("data.seed", 1),
    ("data.template", "{prompt} ="),
    ("sampler.top_p", 0.9),
    ("sampler.max_response", 4),
    ("data.answer_key", "solution"),
    ("reward", "math"),
  ):
    others = [reconfigured(run, **{key: value}) for run in v05]
    found = lines(*grpo, *others)
    assert found[0] == "**No claim about a difference.**"
    assert found[2] == f"- v05: scored otherwise than grpo ({key}): no claim"
    for run in v05:
      reconfigured(run, **{key: configuration.flatten(default.get_config())[key]})
  # Whether a sample without an end is judged; "mask" and "fail" count it as a failure alike.
  for samples, truncated, differs in ((4, "score", True), (4, "mask", False), (0, "score", False)):
    changed = {"eval.samples": samples}
    compared = rows(
      *(reconfigured(run, **changed, **{"sampler.truncated": "fail"}) for run in grpo),
      *(reconfigured(run, **changed, **{"sampler.truncated": truncated}) for run in v05),
    )
    found = conclusion.other_measure(compared[1], compared[0], "eval/mean")
    assert found == ["sampler.truncated"] * differs
  plain = configuration.flatten(default.get_config())
  for run in (*grpo, *v05):
    reconfigured(run, **{key: plain[key] for key in ("eval.samples", "sampler.truncated")})
  # Several rewards are measured by the one that is the success, which may be the same.
  several = [["task", 1.0], ["mine:brief", 0.1]]
  for wanted, differs in (("", False), ("task", False), ("brief", True), ("sum", True)):
    keys = {"reward": several, "rewards.success": wanted}
    compared = rows(*grpo, *(reconfigured(run, **keys) for run in v05))
    for score in ("eval/exact", "accuracy"):
      assert conclusion.other_measure(compared[1], compared[0], score) == ["reward"] * differs
  for run in v05:
    reconfigured(run, **{"reward": "task", "rewards.success": ""})
  # Other training data are no other measure of held-out prompts, but are of the rollouts' success.
  for key, value in (
    ("data.path", "dapo_math_17k"),
    ("selection.pool", 4),
    ("sampler.temperature", 0.5),
    ("sampler.truncated", "mask"),
  ):
    compared = rows(*grpo, *(reconfigured(run, **{key: value}) for run in v05))
    assert conclusion.other_measure(compared[1], compared[0], "eval/exact") == []
    assert conclusion.other_measure(compared[1], compared[0], "accuracy") == [key]
    for run in v05:
      reconfigured(run, **{key: configuration.flatten(default.get_config())[key]})


def test_the_demo_credits_nothing_on_one_seed(tmp_path):
  ends = {"grpo16": (0.3, 0.4), "grpo4": (0.5, 0.61), "rloo4": (0.51, 0.6), "v05": (0.52, 0.62)}
  runs = {
    name: seeds(tmp_path, name, {s: [0.2, y] for s, y in enumerate(scores)}, k=k + 1)
    for k, (name, scores) in enumerate(ends.items())
  }
  assert list(ends) == list(demo.METHODS.values())
  one = credit(rows(*(found[0] for found in runs.values())))
  assert "takes several seeds" in one and "points" not in one and "from the" not in one
  some = credit(rows(*(run for name in runs for run in runs[name][: 1 if name == "v05" else 2])))
  assert "takes several seeds" in some
  several = credit(rows(*(run for found in runs.values() for run in found))).splitlines()
  # t(.975, 1) = 12.7062; the differences are .22 twice, then .2 and .21
  assert several[0].startswith("V0.5 minus GRPO (G=16), at the end: +22.0 [+22.0, +22.0] points")
  assert several[1].startswith("+20.5 [+14.1, +26.9] from four times as many prompts")


def test_the_page_begins_with_the_conclusion_and_says_what_ran(compared, tmp_path):
  parsed = Page(compared[2])
  said = parsed.text.index("No method is shown to be ahead of V0.5")
  assert (
    said < parsed.text.index("-0.1000 at the end; one seed: no claim") < parsed.text.index("Scores")
  )
  assert "No method is shown to be ahead of V0.5" in (compared[0] / "comparison.md").read_text()
  for fact in ("the built-in tasks add, sub,", "the built-in policy", "Reward", "Date"):
    assert fact in parsed.text
  run = make(tmp_path / "v05", [0.1, 0.2])
  (tmp_path / "v05" / "tensorboard").mkdir()
  (tmp_path / "v05" / "tensorboard" / "events.out.tfevents.1700000000.host").touch()
  other = make(tmp_path / "grpo", [0.1, 0.2], k=16)
  reconfigured(
    other, **{"policy.path": "Qwen3-0.6B", "policy.lora_rank": 8, "data.path": "own.jsonl"}
  )
  found = dict(facts.facts(rows(run, other)))
  assert found["Model"] == [("v05", "the built-in policy"), ("grpo", "Qwen3-0.6B, LoRA of rank 8")]
  assert found["Task"][1] == ("grpo", "own.jsonl")
  assert found["Date"][0][1].startswith("14 November 2023 to ")
  bare = pathlib.Path(make(tmp_path / "bare", [0.1, 0.2]))
  (bare / "config.json").unlink()
  assert dict(facts.facts(rows(str(bare))))["Model"] == [("", facts.UNKNOWN)]


# --- Which runs, and where the report goes


def test_folders_and_patterns_of_runs(tmp_path, plain, capsys, monkeypatch):
  place = tmp_path / "runs"
  for seed in (0, 2, 10):
    make(place / "demo" / f"v05-s{seed}", [0.1, 0.2 + 0.01 * seed], seed=seed)
  make(place / "grpo", [0.1, 0.2, 0.3], k=16)
  (place / "grpo" / "pairs").mkdir()
  make(place / "grpo" / "inside", [0.1, 0.9], k=8)  # of a run, not one of its own
  (place / "nothing").mkdir()
  (place / "comparison.md").write_text("a file beside them")
  seen = lambda *names: [(row.name, len(row.runs)) for row in report.report(list(names))]
  assert seen(str(place)) == [("v05", 3), ("grpo", 1)]
  assert seen(f"{place}/demo/v05-*") == [("v05", 3)]
  assert seen(f"{place}/*") == [("v05", 3), ("grpo", 1)]
  assert seen(f"{place}/**/v05-s[02]") == [("v05", 2)]
  # What was named comes first, and counts once.
  assert seen(f"{place}/grpo", f"{place}/") == [("grpo", 1), ("v05", 3)]
  assert seen(f"{place}/", f"{place}/grpo") == [("v05", 3), ("grpo", 1)]
  assert [x.seed for x in report.report([f"{place}/demo"])[0].runs] == [0, 2, 10]
  monkeypatch.chdir(place)
  assert seen("demo") == seen("de?o") == [("v05", 3)]
  with pytest.raises(ValueError, match=r"--workdir=no\*: fits no run"):
    report.report(["no*"])
  with pytest.raises(ValueError, match=r"nothing: found no metrics\.jsonl"):
    report.report(["nothing"])
  (place / "odd[1]").mkdir()
  shutil.copytree(place / "grpo", place / "odd[1]", dirs_exist_ok=True)
  assert seen("odd[1]") == [("odd[1]", 1)]


def test_runs_on_a_disk_and_in_an_object_store(root, tmp_path_factory, plain):
  for name, k in (("a", 4), ("b", 8)):
    run = pathlib.Path(make(tmp_path_factory.mktemp("here") / name, [0.1, 0.2], k=k))
    (root / "runs" / name).mkdir(parents=True)
    for file in run.iterdir():
      (root / "runs" / name / file.name).write_bytes(file.read_bytes())
  for name in ("runs", "runs/*", "ru?s/[ab]", "r*/"):
    assert [row.name for row in report.report([f"{root}/{name}"])] == ["a", "b"]
  assert report.stem([f"{root}/runs"]) == root / "runs" / "comparison"
  assert report.stem([f"{root}/runs/a"]) == root / "runs" / "comparison-a"


def test_what_a_folder_holds_besides_is_left_out_and_said(tmp_path, plain, capsys):
  make(tmp_path / "v05", [0.1, 0.2])
  make(tmp_path / "begun", [0.1], k=2)
  make(tmp_path / "sft", [0.1, 0.2, 0.3], per_step=0)
  broken = pathlib.Path(make(tmp_path / "broken", [0.1, 0.2]))
  (broken / "metrics.jsonl").write_text('{"step": 1}\n{"step": 5}\n')
  (row,) = report.report([str(tmp_path)])
  assert row.name == "v05" and row.end == 0.2
  said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
  assert len(said) == 3 and "metrics.jsonl" in said[0]
  assert "begun: found a run that has only begun" in said[1] and "a warm start" in said[2]
  with pytest.raises(ValueError, match=r"metrics\.jsonl"):  # one that was named
    report.report([str(tmp_path / "v05"), str(broken)])
  shutil.rmtree(tmp_path / "v05"), shutil.rmtree(tmp_path / "sft")
  with pytest.raises(ValueError, match="only begun"):
    report.report([str(tmp_path)])


def test_no_report_takes_another_ones_place(tmp_path):
  a, b, c = (make(tmp_path / name, [0.1, 0.2], k=k) for name, k in (("a", 4), ("b", 8), ("c", 16)))
  said = lambda path: Page(path.read_text()).tables["scores"][1:]
  report.report([a, b])
  first = {path.name: path.read_bytes() for path in tmp_path.glob("comparison*")}
  assert set(first) == {f"comparison{ending}" for ending in report.ENDINGS[:4]}
  report.report([b, a])  # the same runs: the same report
  assert {path.name for path in tmp_path.glob("comparison*")} == set(first)
  for workdirs, name in (([a, c], "comparison-a-c"), ([a, b, c], "comparison-a-b-c")):
    before = {path.name: path.read_bytes() for path in tmp_path.glob("comparison*")}
    report.report(workdirs)
    assert report.stem(workdirs) == tmp_path / name
    assert len(said(tmp_path / f"{name}.html")) == len(workdirs)
    for file, content in before.items():
      assert (tmp_path / file).read_bytes() == content
  assert {row[0] for row in said(tmp_path / "comparison.html")} == {"a", "b"}


def test_a_report_goes_where_it_is_told_and_beside_what_is_there(tmp_path, plain):
  here, there = (make(tmp_path / side / "v05", [0.1, 0.2]) for side in ("here", "there"))
  out = tmp_path / "out"
  out.mkdir()
  (out / "comparison.png").write_bytes(b"a picture of somebody else")
  for run in (here, there, here):
    report.report([run], str(out))
  names = {path.name for path in out.iterdir()}
  assert {"comparison-v05.html", "comparison-v05.md", "comparison.png"} < names
  (last,) = (
    names
    - {"comparison-v05.html", "comparison-v05.md", "comparison.png"}
    - {name for name in names if name.endswith(".md")}
  )
  assert last.startswith("comparison-v05-") and last.endswith(".html")  # and a digest
  assert f"{report.stem([there], str(out))}.html" == str(out / last)
