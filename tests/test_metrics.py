import io
import json
import logging
import math
import re

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.event_file_writer import EventsWriter

from v05_jax import config as configuration
from v05_jax.configs import default
from v05_jax.run import board, files, metrics, progress, report, writer

CONFIG = default.get_config()


def write(workdir, steps, done=0, **options):
  with writer.Writer(workdir, CONFIG, done, **options) as log:
    for step in steps:
      log.write(step, 4 * step, {"reward": (3.0 * step, 4), "time/step": (1.0, 1)})


def test_means_and_merge():
  a, b = {"reward": (3.0, 4), "k/mean": (8.0, 2)}, {"reward": (1.0, 4), "prompts": (0.0, 0)}
  both = metrics.merge(a, b)
  assert both == {"reward": (4.0, 8), "k/mean": (8.0, 2), "prompts": (0.0, 0)}
  values = metrics.means(both)
  assert (values["reward"], values["k/mean"]) == (0.5, 4.0) and math.isnan(values["prompts"])


def test_a_line_is_sorted_and_finite(tmp_path):
  with writer.Writer(tmp_path, CONFIG) as log:
    pairs = {"reward": (jnp.float32(1), jnp.float32(4)), "grad/norm": (math.inf, 1)}
    log.write(jnp.int32(1), 8, pairs | {"accuracy": (0.0, 0)})
    log.flush()
    assert log.latest == {"reward": 0.25}
  text = (tmp_path / "metrics.jsonl").read_text()
  assert text == '{"step": 1, "rollouts": 8, "accuracy": null, "grad/norm": null, "reward": 0.25}\n'
  saved = (tmp_path / "config.json").read_text()
  assert configuration.from_json(saved) == CONFIG
  assert list((tmp_path / "tensorboard").glob("events.*"))


def test_an_undocumented_name_is_refused(tmp_path):
  with writer.Writer(tmp_path, CONFIG) as log:
    with pytest.raises(ValueError, match=r"reward/typo, tiem/step"):
      log.write(1, 1, {"reward/typo": (1, 1), "tiem/step": (1, 1), "reward": (1, 1)})
    log.write(1, 1, {"accuracy/sort": (1, 1)})
  assert metrics.meaning("accuracy/sort") == metrics.METRICS["accuracy/*"]
  assert metrics.meaning("k/hist/4") and metrics.meaning("k/mode") is None
  assert metrics.table().count("\n") == len(metrics.METRICS) + 1


def test_a_name_is_documented_by_whoever_writes_it(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
  with writer.Writer(tmp_path, CONFIG) as log, pytest.raises(ValueError, match="own/error"):
    log.write(1, 1, {"own/error": (1, 1)})
  own = {"own/error": "of one's own", "own/*": "the rest", "own/*/share": "a share", "*": "any"}
  for _ in range(2):  # a module that is imported again says the same
    metrics.document(own)
  with writer.Writer(tmp_path, CONFIG) as log:
    log.write(1, 1, {"own/error": (1, 1), "own/other": (1, 1)})
  assert metrics.read(tmp_path)[0]["own/other"] == 1
  assert metrics.meaning("own/error") == "of one's own"
  assert metrics.meaning("own/other") == "the rest"
  assert metrics.meaning("own/other/share") == "a share"  # the longest pattern that fits
  assert "| `own/*` | the rest |" in metrics.table()
  message = r"metric own/\*: found the meaning 'another', expected 'the rest', as before"
  with pytest.raises(ValueError, match=message):
    metrics.document({"own/new": "new", "own/*": "another"})
  assert "own/new" not in metrics.METRICS


def test_a_resumed_run_writes_the_lines_of_an_unbroken_one(root):
  whole, broken = root / "whole", root / "broken"
  write(whole, range(7))
  write(broken, range(5))
  torn = (broken / "metrics.jsonl").read_text() + '{"step": 5, "rewa'  # killed while writing
  (broken / "metrics.jsonl").write_text(torn)
  write(broken, range(4, 7), done=3)  # the newest checkpoint is that of step 3
  assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  assert [line["step"] for line in metrics.read(broken)] == list(range(7))
  assert len(list((broken / "tensorboard").iterdir())) == 2


def test_a_fresh_run_keeps_nothing(tmp_path):
  write(tmp_path, range(3))
  write(tmp_path, range(2))
  assert [line["step"] for line in metrics.read(tmp_path)] == [0, 1]


def test_a_line_is_written_with_the_next_one_and_all_are_safe_after_flush(root):
  with writer.Writer(root / "run", CONFIG) as log:
    log.write(1, 4, {"reward": (1, 1)})
    assert not metrics.read(root / "run")
    log.write(2, 8, {"reward": (1, 1)})
    assert len(metrics.read(root / "run")) == (0 if files.is_remote(root) else 1)
    log.flush()
    assert [line["step"] for line in metrics.read(root / "run")] == [1, 2]
    assert list((root / "run" / "tensorboard").iterdir())


def test_workdirs_are_absolute(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert str(files.folder("a/../b")) == f"{tmp_path}/b"
  assert str(files.folder("gs://bucket/b")) == "gs://bucket/b"


def test_the_cut_is_atomic(tmp_path, monkeypatch):
  write(tmp_path, range(5))
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def killed(source, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(files.os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    writer.Writer(tmp_path, CONFIG, 2)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_forgets_the_repeated_steps(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  write(tmp_path, range(4), done=0)
  write(tmp_path, range(3, 5), done=2)
  files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda f: f.stat().st_mtime_ns)
  events = []
  for file in files:
    data = file.read_bytes()
    while data:  # TFRecord: length, checksum, payload, checksum
      size = int.from_bytes(data[:8], "little")
      events.append(Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  purged = [e.step for e in events if e.HasField("session_log")]
  assert purged == [0, 3]
  rewards = [(e.step, v.simple_value) for e in events for v in e.summary.value if v.tag == "reward"]
  assert rewards == [(s, 0.75 * s) for s in (0, 1, 2, 3, 3, 4)]


@pytest.mark.parametrize(
  "text, number",
  [('{"step": 1}\nnonsense\n{"step": 2}\n', 2), ('[]\n{"step": 1}\n', 1), ('{"reward": 1}\n', 1)],
)
def test_a_damaged_line_is_named(tmp_path, text, number):
  (tmp_path / "metrics.jsonl").write_text(text)
  with pytest.raises(ValueError, match=rf"metrics.jsonl, line {number}: found"):
    metrics.read(tmp_path)


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(ValueError, match=rf"workdir {path}: cannot be written"):
      writer.Writer(path, CONFIG)


def test_compilations_are_counted():
  f = jax.jit(lambda x: x * 3 + 1)
  x, y = jnp.ones(3), jnp.ones(5)
  jax.block_until_ready((x, y))
  with progress.CompilationCounter() as count:
    f(x), f(x)
    assert count() == 1
    f(y)
    assert count() == 2
  f(jnp.ones(7))
  assert count() == 2


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_on_a_terminal():
  times = iter([0.0, 10.0, 11.0])  # the first step compiles
  stream = Terminal()
  with progress.Progress(100, 40, stream, lambda: next(times)) as line:
    line.update(41, {})
    line.update(42, {"reward": 0.12345, "k/mean": 4.0, "grad/norm": 3.0})
  last = stream.getvalue().split("\r")[-1]
  assert last.startswith("step 42/100  ") and "reward 0.123  k/mean 4" in last
  assert "grad" not in last and last.endswith("\n")
  assert "left" not in last  # of one step no estimate means anything
  assert stream.getvalue().startswith("\rresumed at step 40 of 100\x1b[K\n")


@pytest.mark.parametrize("columns", [1, 2, 20])
def test_progress_on_a_narrow_terminal_stays_in_one_line(columns, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  stream = Terminal()
  with progress.Progress(100, 0, stream) as line:
    line.stage("compiling prefill, decode and update")
    line.update(1, {"reward": 0.5, "rollouts": 256})
  written = [x.removesuffix("\x1b[K") for x in stream.getvalue().rstrip("\n").split("\r")[1:]]
  assert [len(x) for x in written] == [columns - 1] * 2


def test_progress_whose_terminal_is_gone_ends_no_run():
  class Gone(Terminal):
    def write(self, text):
      raise OSError("Input/output error")

  closed = Terminal()
  closed.close()
  for stream in (Gone(), closed):
    stream.isatty = lambda: True
    with progress.Progress(100, 1, stream) as line:
      line.update(2, {"reward": 0.5})


def test_progress_shows_a_reward_once_and_what_it_is_asked_for():
  both = {"accuracy": 0.25, "reward": 0.25}
  for values, names, wanted in (
    (both, progress.SHOWN, "step 1/9  accuracy 0.25"),
    (both | {"reward": 0.5}, progress.SHOWN, "step 1/9  accuracy 0.25  reward 0.5"),
    (both, ("reward",), "step 1/9  reward 0.25"),
  ):
    stream = io.StringIO()
    progress.Progress(9, 0, stream).update(1, values, names)
    assert stream.getvalue() == f"{wanted}\n"


def test_the_rate_is_that_of_the_last_steps_without_the_first_which_compiles():
  now = [0.0]
  stream = Terminal()
  line = progress.Progress(7240, 0, stream, lambda: now[0])
  for step in range(1, 41):
    now[0] += 100.0 if step == 1 else 0.5
    line.update(step, {})
  assert "1:00:00 left  2.00 steps/s" in stream.getvalue().split("\r")[-1]


def test_there_is_an_estimate_as_soon_as_it_means_something():
  now, stream = [0.0], Terminal()
  line = progress.Progress(100, 0, stream, lambda: now[0])
  said = []
  for step in range(1, 6):
    now[0] += 30.0 if step == 1 else 1.0
    line.update(step, {})
    said.append(stream.getvalue().split("\r")[-1])
  assert [" left" in text for text in said] == [False, False, False, True, True]
  assert "1:35 left" in said[-1] and "1.00 steps/s" in said[-1]


def test_the_time_left_is_that_of_the_rollouts_where_they_end_the_run():
  now, stream = [0.0], io.StringIO()
  line = progress.Progress(100, 0, stream, lambda: now[0], most=80)
  for step in range(1, 11):
    now[0] += 10.0
    line.update(step, {"rollouts": 8 * step}, last=step == 10)
  said = stream.getvalue().splitlines()
  assert said[4].startswith("step 5/100  0:50 left  40 rollouts")
  assert said[-1].startswith("step 10/100  80 rollouts")


def test_progress_in_a_log_is_the_first_step_the_last_and_a_line_now_and_then():
  now, stream = [0.0], io.StringIO()
  with progress.Progress(100, 0, stream, lambda: now[0]) as line:
    line.stage("compiling")
    for step in range(1, 101):
      now[0] += 20.0 if step < 100 else 1.0
      found = {"reward": step / 100, "rollouts": 8 * step, "response/length": 50.0}
      line.update(step, found)
  first, *lines = stream.getvalue().splitlines()
  assert first == "compiling" and not any("\x1b" in text or "\r" in text for text in lines)
  assert lines[0] == "step 1/100  8 rollouts  reward 0.01"  # no rate before there is one
  assert lines[1] == "step 2/100  16 rollouts  reward 0.02"
  assert lines[4] == "step 5/100  31:40 left  40 rollouts  reward 0.05  20.0 s a step  20 tokens/s"
  assert lines[-1].startswith("step 100/100  800 rollouts  reward 1  ")
  steps = [int(text.split("/")[0].removeprefix("step ")) for text in lines]
  assert steps[-4:-1] == [93, 96, 99]  # a minute apart


def test_progress_of_quick_steps_fills_no_log():
  now, stream = [0.0], io.StringIO()
  line = progress.Progress(100, 0, stream, lambda: now[0])
  for step in range(1, 101):
    now[0] = step / 4
    line.update(step, {})
  steps = [int(text.split("/")[0].removeprefix("step ")) for text in stream.getvalue().splitlines()]
  assert steps == [1, 21, 41, 61, 81, 100]  # five seconds apart


def test_a_short_run_in_a_log_has_lines_too():
  """36 seconds, as of configs/v05.py."""
  now, stream = [0.0], io.StringIO()
  with progress.Progress(64, 0, stream, lambda: now[0]) as line:
    for step in range(1, 65):
      now[0] += 10.0 if step == 1 else 0.4
      line.update(step, {})
  assert 5 <= len(stream.getvalue().splitlines()) <= 9


def test_what_was_compiled_is_told_by_name():
  with progress.CompilationCounter() as count:
    assert count.told() == "0 programs"
    for name, seconds in (("jit(update)", 3.0), ("jit(decode)", 2.06), ("tiny", 0.01)):
      jax.monitoring.record_event_duration_secs(count.EVENT, seconds, fun_name=name)
    assert count.told() == "3 programs (update 3.0 s, decode 2.1 s)"


def test_config_json_is_json(tmp_path):
  write(tmp_path, [0])
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["budgets"]["sequential"]["cost"] == 1 / 256
  assert saved["data"]["families"] == list(CONFIG.data.families)


# --- Files that are not one run's lines


def lines_of(*steps, rollouts=4):
  return "".join(json.dumps({"step": n, "rollouts": rollouts * n}) + "\n" for n in steps)


ORDERS = {
  "a gap": (lines_of(0, 1, 3), 3, "found step 3, expected 2"),
  "a beginning that is gone": (lines_of(2, 3), 1, "found step 2, expected 0 or 1"),
  "a line twice": (lines_of(1, 2, 2, 3), 3, "found step 2, expected 3"),
  "an overlap": (lines_of(1, 2, 3, 2, 3), 4, "found step 2, expected 4"),
  "two runs, one after another": (lines_of(0, 1, 2, 0, 1, 2), 4, "found step 0, expected 3"),
  "two lines swapped": (lines_of(1, 3, 2), 2, "found step 3, expected 2"),
  "a step below 0": (lines_of(-1, 0, 1), 1, "found step -1, expected 0 or 1"),
  "a line of another run": (
    lines_of(1, 2) + lines_of(3, rollouts=1) + lines_of(4),
    3,
    "found 3 rollouts so far, expected at least 8",
  ),
  "a torn line inside": (
    lines_of(1) + '{"step": 2, "ro\n' + lines_of(3),
    2,
    "found .*, expected a JSON",
  ),
  "a line that is empty": (lines_of(1) + "\n" + lines_of(2), 2, "found .*, expected a JSON"),
  "two lines in one": (
    lines_of(1).strip() + lines_of(2) + lines_of(3),
    1,
    "found .*, expected a JSON",
  ),
  "a step of True": ('{"step": true}\n', 1, "found .*, expected a JSON"),
  "a value that is a text": (
    lines_of(1) + '{"step": 2, "rollouts": 8, "reward": "high"}\n' + lines_of(3),
    2,
    "reward: found 'high', expected a finite number or null",
  ),
  "a value of True": ('{"step": 1, "reward": true}\n', 1, "reward: found True"),
  "a value that is a list": ('{"step": 1, "reward": [1]}\n', 1, r"reward: found \[1\]"),
  "a value that is an object": ('{"step": 1, "a": {"b": 1}}\n', 1, "a: found {'b': 1}"),
  "a value beyond float": ('{"step": 1, "a": 1' + "0" * 400 + "}\n", 1, "a: found 1000"),
  "a value of NaN": ('{"step": 1, "a": NaN}\n', 1, "a: found nan"),
  "no text": ("\udcff\n" + lines_of(1), 1, "found .*, expected a JSON"),
  "very deep": ("[" * 100_000 + "\n" + lines_of(1), 1, "found .*, expected a JSON"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_lines_that_one_run_cannot_have_written_are_neither_drawn_nor_continued(tmp_path, case):
  text, number, message = ORDERS[case]
  file = tmp_path / "metrics.jsonl"
  file.write_text(text, errors="surrogateescape")
  where = rf"metrics.jsonl, line {number}: {message}"
  for read in (
    lambda: metrics.read(tmp_path),
    lambda: report.summary(str(tmp_path)),
    lambda: report.report([str(tmp_path)]),
    lambda: writer.Writer(tmp_path, CONFIG, 4),
  ):
    with pytest.raises(ValueError, match=where):
      read()
  assert file.read_text(errors="surrogateescape") == text  # nothing is lost


def test_the_lines_of_a_run_without_a_checkpoint_are_put_aside(tmp_path, caplog):
  for steps in ((0, 1, 2), (0, 1)):
    (tmp_path / "metrics.jsonl").write_text(lines_of(*steps))
    writer.Writer(tmp_path, CONFIG).close()
    assert (tmp_path / "metrics.jsonl.old").read_text() == lines_of(*steps)
    assert metrics.read(tmp_path) == []
  assert "found the lines of a run without a checkpoint, which are now in" in caplog.text
  caplog.clear()
  writer.Writer(tmp_path, CONFIG).close()
  assert not caplog.records and (tmp_path / "metrics.jsonl.old").read_text() == lines_of(0, 1)


def test_lines_that_end_before_the_checkpoint_are_not_continued(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(lines_of(0, 1, 2))
  with pytest.raises(ValueError, match=r"the last one of step 2, expected the lines up to step 3"):
    writer.Writer(tmp_path, CONFIG, 3)
  (tmp_path / "metrics.jsonl").unlink()
  with pytest.raises(ValueError, match=r"metrics.jsonl: found no such line, .* up to step 3"):
    writer.Writer(tmp_path, CONFIG, 3)


def test_what_follows_the_checkpoint_is_written_again_whatever_it_is(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(lines_of(1, 2, 3, 7, 5) + '{"step": 8, "ro')
  write(tmp_path, range(3, 5), done=2)
  assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_file_that_is_gone_under_its_run_stops_it(tmp_path, what):
  log = writer.Writer(tmp_path, CONFIG)
  log.write(1, 4, {"reward": (1.0, 1)})
  log.flush()
  (tmp_path / "metrics.jsonl").unlink()
  if what == "replaced":
    (tmp_path / "metrics.jsonl").write_text("")
  log.write(2, 8, {"reward": (1.0, 1)})
  with pytest.raises(OSError, match=f"{tmp_path}/metrics.jsonl: was {what} by another program"):
    log.flush()
  with pytest.raises(OSError, match=f"was {what} by another program"):
    log.close()


# --- A full disk


def many(count=60):
  return {f"k/hist/{i}": (1.0, 1) for i in range(count)}


def test_a_full_disk_under_tensorboard_costs_its_events_alone(tmp_path, small_disk, caplog):
  small_disk(tmp_path / "tensorboard")
  with caplog.at_level(logging.WARNING), writer.Writer(tmp_path, CONFIG) as log:
    for step in range(40):
      log.write(step, 4 * step, many())
      if step % 8 == 0:
        log.flush()
  assert [line["step"] for line in metrics.read(tmp_path)] == list(range(40))
  (said,) = caplog.records
  text = said.getMessage()
  assert text.startswith(f"{tmp_path}/tensorboard: no more events") and "No space left" in text
  assert "0.0 MB are free; the run goes on" in text


@pytest.mark.parametrize("fault", ["a file in its place", "a bucket that fails", "an event file"])
def test_no_fault_of_tensorboards_stops_a_run(root, caplog, monkeypatch, fault):
  if fault == "a file in its place":
    root.mkdir(parents=True, exist_ok=True)
    (root / "tensorboard").write_text("")
  elif fault == "a bucket that fails":
    monkeypatch.setattr(board.Board, "_keep", lambda self: 1 / 0)
  else:  # the disk fails when the file is closed, too
    monkeypatch.setattr(EventsWriter, "write_event", failing)
    monkeypatch.setattr(EventsWriter, "close", failing)
  with caplog.at_level(logging.WARNING):
    write(root, range(4))
    write(root, range(3, 6), done=2)
  assert [line["step"] for line in metrics.read(root)] == list(range(6))
  assert len(caplog.records) == 2  # one of each start


def failing(*_):
  raise OSError(5, "Input/output error")


def test_a_full_disk_under_the_metrics_stops_the_run_with_path_and_space(small_disk, tmp_path):
  disk = small_disk(tmp_path / "disk", 64)
  with pytest.raises(OSError) as error, writer.Writer(disk, CONFIG) as log:
    for step in range(400):
      log.write(step, 4 * step, many())
  message = rf"^{disk}/metrics.jsonl: cannot be written: No space left on device; 0.0 MB are free$"
  assert re.match(message, str(error.value))
  step = len(metrics.read(disk))
  assert step > 5
  with pytest.raises(OSError, match=rf"{disk}/config.json: cannot be written: No space left"):
    writer.Writer(disk, CONFIG)  # a restart says the same, and the lines stay
  assert len(metrics.read(disk)) == step


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path, small_disk):
  disk = small_disk(tmp_path / "disk")
  file = disk / "file"
  files.replace(file, "old")
  for content in (b"x" * 20_000, "x" * 20_000):
    with pytest.raises(OSError, match=rf"^{file}: cannot be written: No space left .* are free$"):
      files.replace(file, content)
  assert file.read_text() == "old" and [p.name for p in disk.iterdir()] == ["file"]


def test_a_terminal_that_is_gone_costs_its_line_alone():
  class Gone(Terminal):
    def write(self, text):
      raise OSError(5, "Input/output error")

  with progress.Progress(10, 0, Gone()) as line:
    line.update(1, {})
    line.update(2, {})


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_a_folder_without_a_name_is_none(name):
  with pytest.raises(ValueError, match="expected its name"):
    files.folder(name)
