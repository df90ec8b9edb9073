"""The page of `--mode=report` in a real browser: what a pointer shows, what the boxes hide, how it
fits a window. Skipped where there is no Chromium (Debian: apt-get install chromium).

Its pictures in docs/images are drawn anew, of the runs that REPORT_PICTURES names, by

    REPORT_PICTURES=runs/demo python -m pytest tests/test_report_page.py -k pictures
"""

import json
import os
from pathlib import Path

import pytest

from tests import browser as browsers
from tests.test_report import make
from v05_jax.run import figures, report

pytestmark = pytest.mark.skipif(browsers.program() is None, reason="no Chromium is installed")
PHONE, DESK = (390, 844), (1400, 1000)
IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES, COLOURS = 150_000, 256  # of a picture


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  browser = browsers.Browser(tmp_path_factory.mktemp("profile"))
  yield browser
  browser.close()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """Four methods of two seeds, one far above the others: (the page, rows)."""
  folder = tmp_path_factory.mktemp("compared")
  line = {"grad/norm": 1.0, "k/mean": 4.0, "k/hist/4": 20.0, "k/hist/16": 5.0}
  board = {"scoreboard/v05/sq_adv": 0.5}
  for name in "ewa rloo value beta_shrink batch_shrink james_stein spo grpo_of_a_long_name".split():
    board |= {f"scoreboard/{name}/difference": -0.02, f"scoreboard/{name}/standard_error": 0.01}
  ends = {"GRPO (G=16)": 0.3, "<V0.5>": 0.4, "RLOO & a long name of a method": 0.35, "high": 0.9}
  workdirs, names = [], []
  for number, (name, end) in enumerate(ends.items()):
    for seed in range(2):
      scores = [0.2 + (end + 0.01 * seed * number - 0.2) * n / 39 for n in range(40)]
      run = make(folder / f"{number}-s{seed}", scores, seed=seed, k=2**number, **line, **board)
      workdirs, names = [*workdirs, run], [*names, name]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, "available", lambda: False)
    rows = report.report(workdirs, str(folder), names)
  return folder / "comparison.html", rows


def numbers(browser, chart: int, axis: str) -> list[float]:
  """Those that stand at an axis of a chart."""
  script = f"[...document.querySelectorAll('.chart')[{chart}].querySelectorAll('text.{axis}')]"
  texts = browser.run(f"{script}.map(text => text.textContent)")
  return [float(text.replace("k", "e3")) for text in texts]


def lines(browser, chart: int) -> list[str]:
  """The names of the lines that a chart shows."""
  script = f"[...document.querySelectorAll('.chart')[{chart}].querySelectorAll('g.line')]"
  return browser.run(f"{script}.map(line => line.dataset.name)")


def place(browser, chart: int, across: float) -> tuple[float, float]:
  """A place in a chart's plot, brought into the window: a share of its width, half of its
  height."""
  plot = f"document.querySelectorAll('.chart')[{chart}].querySelector('svg.plot')"
  browser.run(f"{plot}.scrollIntoView({{block: 'center'}})")
  browser.settle()
  x, y, width, height = browser.run(
    f"(box => [box.x, box.y, box.width, box.height])({plot}.getBoundingClientRect())"
  )
  return x + across * width, y + height / 2


def told(browser, chart: int) -> list[str]:
  """The lines of the box beside the pointer; [] where it is not shown."""
  tip = f"document.querySelectorAll('.chart')[{chart}].querySelector('.tip')"
  return browser.run(f"{tip}.hidden ? [] : [...{tip}.children].map(x => x.textContent)")


def test_a_pointer_shows_the_values_of_all_methods(browser, compared):
  path, rows = compared
  browser.open(path, *DESK)
  assert told(browser, 0) == []
  browser.move(*place(browser, 0, 0.999))
  said = told(browser, 0)
  assert said[0] == "3,900 rollouts generated"
  expected = sorted(rows, key=lambda row: -row.end)
  for row, text in zip(expected, said[1:], strict=True):
    mean, error = row.curve.mean[-1], row.curve.error[-1]
    assert text == f"{row.name} {mean:.4f}" + (f" ± {error:.4f}" if error else "")
  # The box stands within the plot.
  tops = browser.run(
    "['.tip', 'svg.plot'].map(part =>"
    " document.querySelector('.chart ' + part).getBoundingClientRect().top)"
  )
  assert 0 <= tops[0] - tops[1] < 20
  browser.move(*place(browser, 0, 0.5))
  middle = float(told(browser, 0)[0].split()[0].replace(",", ""))
  assert 1500 < middle < 2400 and middle in rows[0].curve.x
  at = rows[3].curve.mean[rows[3].curve.x.tolist().index(middle)]
  assert told(browser, 0)[1].startswith(f"high {at:.4f}")
  browser.move(1, 1)
  assert told(browser, 0) == []
  # An interval's own line.
  browser.move(*place(browser, 2, 0.5))
  assert told(browser, 2)[0].startswith("RLOO & a long name of a method +0.0")
  assert told(browser, 2)[0].endswith(", 2 pairs")
  assert browser.problems == []


def test_keys_and_a_finger_show_them_too(browser, compared):
  path, rows = compared
  browser.open(path, *PHONE, touch=True)
  browser.run("document.querySelectorAll('.chart')[0].focus()")
  for key, x in (("ArrowRight", 0), ("ArrowRight", 100), ("ArrowRight", 200), ("ArrowLeft", 100)):
    browser.key(key)
    assert told(browser, 0)[0] == f"{x} rollouts generated"
  browser.key("Escape")
  assert told(browser, 0) == []
  browser.touch(*place(browser, 0, 0.999))
  assert len(told(browser, 0)) == 1 + len(rows)
  tip = "document.querySelector('.tip').getBoundingClientRect()"
  left, right = browser.run(f"[{tip}.left, {tip}.right]")
  assert 0 <= left < right <= PHONE[0]


def test_boxes_hide_methods_and_the_axes_follow(browser, compared):
  path, rows = compared
  browser.open(path, *DESK)
  everyone = [row.name for row in rows]
  assert lines(browser, 0) == everyone and max(numbers(browser, 0, "y")) >= 0.8
  browser.run("document.getElementById('show-3').click()")
  browser.settle()
  assert lines(browser, 0) == lines(browser, 1) == everyone[:3]
  assert 0.35 <= max(numbers(browser, 0, "y")) <= 0.5  # rescaled to what is left
  assert lines(browser, 2) == everyone[1:3]  # the differences
  opacity = "getComputedStyle(document.querySelector('#scores .row-3')).opacity"
  assert float(browser.run(opacity)) < 1
  browser.move(*place(browser, 0, 0.5))
  assert len(told(browser, 0)) == 1 + 3
  browser.run("document.getElementById('none').click()")
  browser.settle()
  assert lines(browser, 0) == [] and told(browser, 0) == []
  browser.move(*place(browser, 0, 0.6))  # there is nothing to show
  browser.run("document.getElementById('all').click()")
  browser.settle()
  assert lines(browser, 0) == everyone and max(numbers(browser, 0, "y")) >= 0.8
  assert float(browser.run(opacity)) == 1
  assert browser.problems == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1400"])
def test_it_fits_the_window_and_loads_nothing(browser, compared, size):
  browser.open(compared[0], *size, touch=size == PHONE, dark=size == PHONE)
  browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
  browser.settle()
  assert browser.run("document.documentElement.scrollWidth") == size[0]
  assert browser.asked == [compared[0].as_uri()] and browser.problems == []
  # Charts stand below each other on a phone, and beside each other on a desk.
  lefts = browser.run(
    "[...document.querySelectorAll('.chart')].map(chart => chart.getBoundingClientRect().x)"
  )
  assert (len(set(lefts)) == 1) == (size == PHONE) and len(lefts) > 10
  drawn = "[...document.querySelectorAll('svg.plot')].every(plot => plot.querySelector('g.line'))"
  assert browser.run(drawn)  # those that were closed too
  # No text of a chart is cut off.
  outside = browser.run(
    "[...document.querySelectorAll('svg.plot text')].filter(text => {"
    "  const [box, plot] = [text, text.closest('svg')].map(x => x.getBoundingClientRect());"
    "  return box.left < plot.left - 1 || box.right > plot.right + 1; }).map(x => x.textContent)"
  )
  assert outside == []
  # A table fits, or says that it goes on.
  tables = browser.run(
    "[...document.querySelectorAll('.wide')].map(wide => [wide.scrollWidth > wide.clientWidth + 1,"
    " getComputedStyle(wide.nextElementSibling).display !== 'none'])"
  )
  assert len(tables) >= 4 and all(wider == said for wider, said in tables)
  assert size != PHONE or any(wider for wider, _ in tables)


def test_lines_differ_by_dashes_and_marks(browser, compared):
  browser.open(compared[0], *DESK)
  styles = browser.run(
    "[...document.querySelector('.chart').querySelectorAll('g.line')].map(line =>"
    " [...line.querySelectorAll('path')].map(path => path.getAttribute('stroke-dasharray') ||"
    " (path.hasAttribute('transform') ? path.getAttribute('d') : '')).filter(Boolean))"
  )
  seen = {json.dumps(sorted(set(style))) for style in styles}
  assert len(seen) == len(styles) == 4


@pytest.mark.skipif("REPORT_PICTURES" not in os.environ, reason="REPORT_PICTURES names no runs")
def test_the_pictures_of_the_docs(browser, tmp_path):
  image = pytest.importorskip("PIL.Image")
  report.report(os.environ["REPORT_PICTURES"].split(","), str(tmp_path))
  IMAGES.mkdir(parents=True, exist_ok=True)
  for width, height in ((PHONE[0], 1250), (DESK[0], 900)):
    browser.open(tmp_path / "comparison.html", width, height, touch=width == PHONE[0])
    browser.run("document.querySelector('.chart').focus({preventScroll: true})")
    for _ in range(7):
      browser.key("ArrowRight")
    browser.picture(IMAGES / f"report_{width}.png")
    few = image.open(IMAGES / f"report_{width}.png").convert("RGB").quantize(COLOURS)
    few.save(IMAGES / f"report_{width}.png", optimize=True)
    assert (IMAGES / f"report_{width}.png").stat().st_size < MOST_BYTES
