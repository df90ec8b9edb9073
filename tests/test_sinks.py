"""Where a run's metrics are shown: every sink, what its faults cost, and the same run after a
resume. wandb, trackio and MLflow are tried offline where they are installed."""

import importlib.util
import json
import logging
import struct
import sys
import time
import zlib

import pytest
from tensorboardX.proto.event_pb2 import Event

from v05_jax import config as configuration
from v05_jax import plug, sinks
from v05_jax.configs import default
from v05_jax.run import metrics, writer
from v05_jax.sinks import base

ROWS = [
  {"prompt": "1+1=", "answer": "2", "response": f"a|{n}\n", "reward": 0.5, "tokens": n}
  for n in (1, 2)
]


def png() -> bytes:
  """A white pixel."""
  part = lambda kind, data: (
    struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
  )
  head, pixels = struct.pack("!IIBBBBB", 1, 1, 8, 2, 0, 0, 0), zlib.compress(b"\0\xff\xff\xff")
  parts = part(b"IHDR", head) + part(b"IDAT", pixels) + part(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + parts


PNG = png()
MODULE = """
import json, sys, time
from v05_jax.sinks import Sink

SEEN = []

def recording(options, setting):
  SEEN.append(("begin", setting.done))
  see = lambda what: lambda *given: SEEN.append((what, *given))
  return Sink(*map(see, ("write", "picture", "samples", "flush", "close")))

def failing_at_first(options, setting):
  raise OSError(28, "No space left on device")

def leaving(options, setting):
  sys.exit(3)

def no_sink(options, setting):
  return None

def failing(options, setting):
  def write(step, values):
    if step == 2: raise RuntimeError("the server is gone")
    SEEN.append(step)
  return Sink(write)

def hanging(options, setting):
  time.sleep(1000)

hanging_too = hanging
"""


def config(*names, **keys):
  c = default.get_config()
  c.metrics.sinks = names
  c.metrics.update(keys)
  return c


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / "my_sink.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  yield importlib.import_module("my_sink")
  sys.modules.pop("my_sink")


def write(workdir, c, steps=range(1, 5), done=0):
  with writer.Writer(workdir, c, done) as log:
    picture = workdir / "summary.png"
    picture.write_bytes(PNG)
    log.at_end(lambda: str(picture))
    for step in steps:
      log.write(step, 4 * step, {"reward": (float(step), 1), "accuracy": (0.0, 0)})
    log.samples(step, ROWS)


def test_a_sink_sees_what_the_lines_have_and_picture_samples_and_end(tmp_path, module):
  twice = config("jsonl", "my_sink:recording", "my_sink:recording")  # which makes one of it
  write(tmp_path / "a", twice)
  assert module.SEEN == [
    ("begin", 0),
    *(("write", step, {"reward": float(step)}) for step in range(1, 5)),
    ("samples", 4, ROWS),
    ("picture", str(tmp_path / "a" / "summary.png")),
    ("close", "finished"),
  ]


@pytest.mark.parametrize(
  "error, how",
  [(ValueError, "failed"), (InterruptedError, "stopped"), (KeyboardInterrupt, "stopped")],
)
def test_a_sink_is_told_how_the_run_ends(tmp_path, module, error, how):
  with pytest.raises(error), writer.Writer(tmp_path, config("my_sink:recording")) as log:
    log.at_end(lambda: "summary.png")
    log.write(1, 1, {"reward": (1.0, 1)})
    raise error
  assert module.SEEN[1:] == [("write", 1, {"reward": 1.0}), ("close", how)]


@pytest.mark.parametrize(
  "name, reason",
  [
    ("failing_at_first", "No space left on device"),
    ("leaving", "SystemExit: 3"),
    ("no_sink", "returned a NoneType, expected a Sink"),
    ("failing", "RuntimeError: the server is gone"),
    ("missing", "has no attribute 'missing'"),
  ],
)
def test_a_sink_that_fails_is_dropped_with_one_warning(tmp_path, module, caplog, name, reason):
  with caplog.at_level(logging.WARNING):
    write(tmp_path, config("jsonl", f"my_sink:{name}", "my_sink:recording"))
  assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]
  assert ("close", "finished") in module.SEEN  # the other sink goes on
  (said,) = [record.getMessage() for record in caplog.records]
  assert said.startswith(f"metrics.sinks=my_sink:{name}: no more metrics are sent: ")
  assert reason in said and "the run goes on, and its metrics are in metrics.jsonl" in said
  if name == "failing":
    assert 1 in module.SEEN and 3 not in module.SEEN


@pytest.mark.parametrize("most", [2, 7, 100])  # 7 calls are made of each
def test_nobody_waits_for_sinks_that_hang(tmp_path, module, caplog, monkeypatch, most):
  monkeypatch.setattr(base, "CLOSING", 0.2)
  monkeypatch.setattr(base, "MOST", most)
  waits, wait = [], base.Aside.wait
  monkeypatch.setattr(base.Aside, "wait", lambda self, s: waits.append(s) or wait(self, s))
  began = time.monotonic()
  with caplog.at_level(logging.WARNING):
    write(tmp_path, config("jsonl", "my_sink:hanging", "my_sink:hanging_too"))
  assert time.monotonic() - began < 500  # and not the 1,000 s of the sinks
  said = [record.getMessage() for record in caplog.records]
  reason = "calls behind" if most == 2 else "calls were not done 0.2 s after the end"
  assert len(said) == 2 and all(reason in x for x in said)
  assert waits[1] < 0.1 or most == 2  # nothing is left of the time for both
  assert len(metrics.read(tmp_path)) == 4


def test_a_run_that_begins_anew_is_a_new_one_elsewhere(tmp_path):
  """Beside what an earlier run in the folder has left, of which there was no checkpoint."""
  begins = plug.Setting(config("wandb"), workdir=tmp_path)
  assert base.remembered(begins, "wandb") == {}
  base.remember(begins, "wandb", id="first")
  assert base.remembered(begins, "wandb") == {}
  goes_on = begins._replace(done=2)
  assert base.remembered(goes_on, "wandb") == {"id": "first"}
  assert base.remembered(goes_on, "mlflow") == {}  # a sink that has come later


def test_a_run_is_called_by_its_name_or_its_folder(tmp_path):
  called = lambda **keys: base.title(plug.Setting(config(**keys), workdir=tmp_path / "s1"))
  assert (called(), called(name="first")) == ("s1", "first")


def test_metrics_are_written_whatever_the_sinks_are(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    sinks.check(config())
    write(tmp_path, config())
  (said,) = [record.getMessage() for record in caplog.records]
  assert "leaves out jsonl: metrics.jsonl is written all the same" in said
  assert len(metrics.read(tmp_path)) == 4 and not (tmp_path / "tensorboard").exists()


def test_an_unknown_sink_is_named_with_the_nearest_and_the_known_ones():
  with pytest.raises(ValueError) as error:
    configuration.validate(config("jsonl", "wandbb"))
  text = str(error.value)
  assert "metrics.sinks: found 'wandbb', did you mean wandb? expected one of jsonl, mlflow" in text
  configuration.validate(config(*plug.known("sink")))
  with pytest.raises(ValueError, match=r"metrics.name: found 'a/b'"):
    configuration.validate(config("jsonl", name="a/b"))


REMOTE = ("wandb", "trackio", "mlflow")
MISSING = [name for name in REMOTE if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(not MISSING, reason="wandb, trackio and MLflow are all installed")
def test_a_sink_without_its_package_is_named_with_the_extra():
  for name in MISSING:
    with pytest.raises(
      ValueError, match=rf'{name}, which needs .* pip install "v05_jax\[{name}\]"'
    ):
      sinks.check(config("jsonl", name))


def test_tensorboard_has_numbers_picture_and_samples(tmp_path):
  write(tmp_path, config("tensorboard"))
  (file,) = (tmp_path / "tensorboard").iterdir()
  data, events = file.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  found = {value.tag: (e.step, value) for e in events for value in e.summary.value}
  assert found["reward"][0] == 4 and found["reward"][1].simple_value == 4
  step, samples = next(x for name, x in found.items() if name.startswith("samples"))
  text = samples.tensor.string_val[0].decode()
  assert step == 4 and text.splitlines()[0] == "| prompt | answer | response | reward | tokens |"
  assert text.splitlines()[2:] == [rf"| 1+1= | 2 | a\|{n} | 0.5 | {n} |" for n in (1, 2)]
  image = found["summary"][1].image
  assert image.encoded_image_string == PNG and (image.width, image.height) == (1, 1)


# --- The packages themselves, offline


def need(name):
  return pytest.importorskip(name, reason=f"{name} is not installed (the extra {name})")


def quiet(caplog):
  return [r.getMessage() for r in caplog.records if "metrics.sinks=" in r.getMessage()]


def test_mlflow_has_the_run_and_goes_on_with_it(tmp_path, monkeypatch, caplog):
  mlflow = need("mlflow")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
  monkeypatch.chdir(tmp_path)
  c = config("mlflow", project="ours", name="first")
  write(tmp_path / "run", c, range(1, 4))
  write(tmp_path / "run", c, range(3, 6), done=2)
  assert not quiet(caplog)
  client = mlflow.MlflowClient()
  (experiment,) = [e for e in client.search_experiments() if e.name == "ours"]
  (run,) = client.search_runs([experiment.experiment_id])
  assert run.info.run_name == "first" and run.info.status == "FINISHED"
  assert run.data.params["budget.k_max"] == "4" and len(run.data.params) > 100
  history = client.get_metric_history(run.info.run_id, "reward")
  assert {(m.step, m.value) for m in history} == {(n, float(n)) for n in range(1, 6)}
  assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"summary.png", "samples"}
  path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/samples/5.json")
  with open(path) as file:
    assert json.load(file)["response"] == ["a|1\n", "a|2\n"]
  with pytest.raises(KeyError), writer.Writer(tmp_path / "other", c):
    raise KeyError
  states = {r.info.status for r in client.search_runs([experiment.experiment_id])}
  assert states == {"FINISHED", "FAILED"}


def test_trackio_has_the_run_and_goes_on_with_it(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  need("trackio")
  from trackio.sqlite_storage import SQLiteStorage

  monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
  c = config("trackio", project="ours")
  write(tmp_path / "run", c, range(1, 4))
  write(tmp_path / "run", c, range(3, 6), done=2)
  assert not quiet(caplog)
  (name,) = SQLiteStorage.get_runs("ours")
  assert name.startswith("run-")
  logs = SQLiteStorage.get_logs("ours", name)
  assert {line["step"]: line["reward"] for line in logs if "reward" in line} == {
    n: float(n) for n in range(1, 6)
  }
  assert any("summary" in line for line in logs) and any("samples" in line for line in logs)
  assert SQLiteStorage.get_run_config("ours", name)["baseline"] == "v05"


def test_wandb_keeps_the_run_offline_and_goes_on_with_it(tmp_path, monkeypatch, caplog):
  need("wandb")
  for name in ("WANDB_MODE", "WANDB_API_KEY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))  # nobody has logged in there
  c = config("wandb", project="ours", name="first")
  with caplog.at_level(logging.WARNING):
    write(tmp_path / "run", c, range(1, 4))
    write(tmp_path / "run", c, range(3, 6), done=2)
  assert not quiet(caplog)
  assert any("found no API key" in record.getMessage() for record in caplog.records)
  folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
  identity = json.loads((tmp_path / "run" / "sinks" / "wandb.json").read_text())["id"]
  assert len(folders) == 2 and all(folder.name.endswith(identity) for folder in folders)
  records = [record for folder in folders for record in wandb_records(folder)]
  steps = [
    (int(values["_step"]), float(values["reward"])) for values in records if "reward" in values
  ]
  assert steps == [(n, float(n)) for n in (1, 2, 3, 3, 4, 5)]
  assert any("summary" in values for values in records)
  assert any("samples" in values for values in records)


def wandb_records(folder):
  """The history of an offline run, {name: JSON} a line. The file is LevelDB's log: after a head of
  7 bytes blocks of 32 KiB, in which every piece has 4 bytes of checksum, 2 of length and a kind."""
  from wandb.proto import wandb_internal_pb2 as proto

  (file,) = folder.glob("*.wandb")
  data, at, parts, found = file.read_bytes(), 7, b"", []
  while at + 7 <= len(data):
    if (left := 32768 - at % 32768) < 7:
      at += left
      continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last piece
      items = proto.Record.FromString(parts).history.item
      found.append({item.key or item.nested_key[0]: item.value_json for item in items})
      parts = b""
  return found
