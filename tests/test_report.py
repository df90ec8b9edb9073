import builtins
import contextlib
import html.parser
import json
import pathlib
import shutil

import numpy as np
import pytest

from v05_jax import config as configuration
from v05_jax.configs import default
from v05_jax.run import comparison, figures, metrics, page, report, runs


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
  assert not (tmp_path / "nowhere").exists()


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
  assert "The plots are missing" in text and "<figure" not in text and "<td>0.2000</td>" in text


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
  """Checks that tags are closed in order; collects ids, references, what would be loaded, and
  tables by id."""

  VOID = ("meta", "input", "br", "img", "link")

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.references, self.loaded, self.tables, self.text = (
      [],
      [],
      [],
      [],
      {},
      "",
    )
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag not in self.VOID:
      self.open.append(tag)
    self.ids += [attributes["id"]] if "id" in attributes else []
    if tag in ("script", "link", "iframe", "object", "embed", "base"):
      self.loaded.append(tag)
    for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
      if name in attributes:
        value = attributes[name]
        (self.references if value.startswith("#") else self.loaded).append(value.removeprefix("#"))
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
  assert parsed.loaded == [] and "@import" not in text and "<script" not in text
  assert all(part.startswith("#") for part in text.replace("url('", "url(").split("url(")[1:])
  assert len(set(parsed.ids)) == len(parsed.ids) > 20 and set(parsed.references) <= set(parsed.ids)
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


def test_the_pages_plots_follow_its_colours_and_its_boxes(compared):
  text = compared[2]
  plots = [part.split("</svg>")[0] for part in text.split("<svg xmlns")[1:]]
  assert len(plots) == 4 + 5  # over rollouts, over steps, differences, metrics; the runs
  for colour in (*figures.COLOURS, figures.INK, figures.GRID):
    assert not any(colour in plot for plot in plots)
  assert all("var(--ink)" in plot for plot in plots)
  for number in range(3):
    assert f'id="show-{number}"' in text
    assert [f'class="method-{number}"' in plot for plot in plots[:2]] == [True, True]
    assert (
      f"body:has(#show-{number}:not(:checked)) .method-{number} {{ visibility: hidden; }}" in text
    )
  assert figures.look(9) == (figures.COLOURS[1], figures.DASHES[1])


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
  monkeypatch.setattr(figures, "available", lambda: False)
  text = Page(page.page(compared[1], "eval/exact")).text
  assert (
    "One run of each method; 2 further seeds are in the means above." in text
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
  with pytest.raises(OSError, match=rf"{disk}/comparison.md: cannot be written: No space left"):
    report.report([run], str(disk))
  (disk / "ballast").unlink()
  assert {p.name: p.read_bytes() for p in disk.iterdir()} == before
