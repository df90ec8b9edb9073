"""The documentation: links lead somewhere, what comes from the code is up to date, messages are
the program's own."""

import ast
import json
from pathlib import Path
import re
import subprocess
import sys

import pytest
import yaml

from docs import pages
from tests import newcomer
from v05_jax import tasks
from v05_jax.run import metrics

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]*)#?([^)\s]*)\)")
PAGES = sorted(
  path
  for folder in (".", "docs", "experiments/*", "experiments", "tests/data/*")
  for path in ROOT.glob(f"{folder}/*.md")
)


def anchors(path: Path) -> set[str]:
  """What GitHub calls the headings of a page."""
  found = set()
  for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE):
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
    found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
  return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  wrong = []
  for link, anchor in LINK.findall(FENCE.sub("", page.read_text())):
    if re.match(r"[a-z]+:", link):
      continue
    target = (page.parent / link).resolve() if link else page
    if not (target.is_relative_to(ROOT) and target.exists()):
      wrong.append(link)
    elif anchor and anchor not in anchors(target):
      wrong.append(f"{link}#{anchor}")
  assert not wrong


@pytest.fixture
def own_metrics(monkeypatch):
  """The package's metrics alone: runs of other tests in this process have added names of theirs."""
  code = "import json; from docs import pages as p; p.metric_names()"
  code += "; print(json.dumps(p.metrics.METRICS))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
  monkeypatch.setattr(metrics, "METRICS", json.loads(done.stdout))


@pytest.mark.parametrize("page", [p for p in PAGES if pages.PART.search(p.read_text())], ids=str)
def test_generated_parts_are_up_to_date(page, request):
  if page.name == "metric_names.md":
    request.getfixturevalue("own_metrics")
  assert page.read_text() == pages.renewed(page.read_text()), "run python -m docs.pages"


def test_every_part_stands_on_a_page():
  found = [name for path in PAGES for _, name, _ in pages.PART.findall(path.read_text())]
  assert sorted(found) == sorted(pages.PARTS)


def test_every_key_has_a_meaning():
  said = pages.meanings((ROOT / "configs" / "default.py").read_text())
  values = dict(pages.leaves(pages.default.get_config()))
  assert not [key for key in values if key in said and not said[key]], "a comment beside the key"


def test_the_worked_example_has_the_numbers_of_its_text():
  text = pages.example()
  assert "| a fifth rollout (`gain > c`)? | yes, 0.03283 > 0.00391 | no" in text
  assert "0.7934" in text and "1.2727, -0.7273, -0.7273, -0.7273" in text  # by hand: .96 / 1.21


def test_every_family_is_described():
  text = (ROOT / "docs" / "tasks.md").read_text()
  assert not [name for name in tasks.FAMILIES if not re.search(rf"^\| {name} \| `", text, re.M)]


def test_metrics_and_messages_of_the_troubleshooting_are_the_programs():
  """A metric is documented; a message stands in the sources, but for what "…" stands for."""
  texts = []
  for path in (ROOT / "v05_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        texts += re.split(r"%\.?\d*[dsgrf]", node.value)  # of log messages
  texts = [" ".join(text.split()) for text in texts]
  page = (ROOT / "docs" / "troubleshooting.md").read_text()
  quoted = re.findall(r"`([^`\n]+)`", page) + re.findall(r"^    (.*)$", page, re.MULTILINE)
  names = [x for x in quoted if re.fullmatch(r"[a-z_]+/[a-z_]+", x) and "." not in x]
  assert len(names) > 10
  assert not [name for name in names if not metrics.meaning(name)]
  messages = [x for x in quoted if "…" in x]
  parts = [part.strip(" ()=;:'") for message in messages for part in message.split("…")]
  assert len(messages) > 8
  assert not [part for part in parts if part and not any(part in text for text in texts)]


def test_every_page_has_its_place_in_the_site():
  nav = (ROOT / "mkdocs.yml").read_text()
  pages_ = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]
  assert not [page for page in pages_ if not re.search(rf": {re.escape(page)}$", nav, re.M)]


def test_the_first_hour_shows_what_the_newcomer_types():
  text = newcomer.PAGE.read_text()
  for step in newcomer.STEPS:
    typed = step.command.format(address="ADDRESS").splitlines()
    assert all(f"{line}\n" in text for line in typed), "run make newcomer"
    assert f"## {step.title}\n" in text or not step.title


def test_a_screen_is_kept_without_codes_paths_and_most_of_a_long_one(tmp_path):
  screen = f"\rstep 1\x1b[K\rstep 2\x1b[K\n{tmp_path}/run\n" + "line\n" * 100
  first, second, *rest = newcomer.cleaned(screen, tmp_path).splitlines()
  assert (first, second) == ("step 2", "~/run")
  assert len(rest) == newcomer.HEAD + newcomer.TAIL - 1 and "... 76 lines ..." in rest


def test_a_screen_stands_behind_each_command(tmp_path):
  step = newcomer.Step("", "", "echo one \\\n    two\ntrue\necho three")
  code, screen = newcomer.run(step, tmp_path)
  text = newcomer.section(step, code, newcomer.cleaned(screen, tmp_path), 1.0)
  typed = "$ echo one \\\n    two\none two\n$ true\n$ echo three\nthree"
  assert code == 0 and f"```console\n{typed}\n```" in text


def test_the_newcomer_goes_on_from_the_step_that_went_wrong(tmp_path, monkeypatch):
  first = newcomer.Step("First", "", "echo once >> count; wc -l < count")
  steps = lambda wanted: (first, newcomer.Step("Second", "", "echo two", wanted=wanted))
  monkeypatch.setattr(newcomer, "STEPS", steps("three"))
  with pytest.raises(RuntimeError, match="the screen has no 'three'"):
    newcomer.go(tmp_path, say=lambda text: None)
  monkeypatch.setattr(newcomer, "STEPS", steps("two"))
  text = newcomer.go(tmp_path, say=lambda text: None)
  assert "## First" in text and "$ echo two\ntwo\n" in text
  assert (tmp_path / "count").read_text() == "once\n"


def test_a_step_that_went_wrong_is_named(tmp_path):
  step = newcomer.Step("", "", "v05", wanted="yes", files=("a", "b"))
  (tmp_path / "a").touch()
  wrong = lambda code, screen: newcomer.wrong(step, code, screen, tmp_path)
  assert "status 2" in wrong(2, "yes") and "'yes'" in wrong(0, "no") and "no b" in wrong(0, "yes")
  (tmp_path / "b").touch()
  assert not wrong(0, "yes")


def test_citation():
  found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert {"cff-version", "message", "title", "authors", "version", "license"} <= found.keys()
  paper = found["preferred-citation"]
  assert "2603.10848" in paper["url"] and len(paper["authors"]) == 7


@pytest.mark.skipif(
  subprocess.run([sys.executable, "-c", "import material"], capture_output=True).returncode != 0,
  reason="mkdocs-material is not installed (make docs)",
)
def test_the_site_is_built_without_warnings(tmp_path):
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
  assert done.returncode == 0, done.stderr
  page = (tmp_path / "docs" / "api" / "index.html").read_text()
  assert "v05_jax.shrinkage.fuse" in page  # from a docstring
  assert (tmp_path / "v05_jax" / "shrinkage.py" / "index.html").is_file()  # a page of code
