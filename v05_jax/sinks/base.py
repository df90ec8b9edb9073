"""What a sink is, and the sinks of a run: where its metrics go beside metrics.jsonl.

A sink is made by a function in a file of this folder, or by one of the user's own,
`module:function`, called as (options, `plug.Setting`); `metrics.sinks` names those of a run. A file
of this folder says by `PACKAGE` what has to be installed. Those with `LOCAL = True` write files and
are called by the run's own thread. Every other one has a thread of its own, in which it is also
made, so that the run waits for no server.
"""

from collections.abc import Callable
import importlib.util
import json
import queue
import threading
import time
from typing import Any, NamedTuple

from absl import logging

from v05_jax import plug
from v05_jax.run import files
from v05_jax.run.view import View

MOST = 10_000  # calls that may wait for a sink; one that is further behind is dropped
CLOSING = 60.0  # seconds that the end of a run waits for its sinks
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # how a run ends


def nothing(*_):
  """Does nothing."""


class Sink(NamedTuple):
  """What is done with a run's metrics. Whatever a function raises costs the run this sink alone."""

  # (step, {metric: value}), the finite ones: each step once and in order, but for an evaluation
  # that had failed and is made up for when the run goes on, whose step was told before
  write: Callable
  picture: Callable = nothing  # (path of summary.png)
  samples: Callable = nothing  # (step, rows): dictionaries of one form, a rollout each
  flush: Callable = nothing  # (): before a checkpoint, of those with LOCAL alone
  close: Callable = nothing  # (how the run ends: FINISHED, STOPPED or FAILED)


def names(config) -> tuple[str, ...]:
  """The sinks of a config, each once."""
  return tuple(dict.fromkeys(plug.names_of(config, "sink")))


def check(config):
  """Raises ValueError where the package of a sink is not installed; says where metrics.jsonl is
  left out, which is written all the same. Cheap: call it first."""
  for name in names(config):
    package = plug.beside("sink", name, "PACKAGE") if ":" not in name else None
    if package and importlib.util.find_spec(package) is None:
      raise ValueError(
        f"config.metrics.sinks: found {name}, which needs the package {package}: pip install "
        f'"v05_jax[{name}]" (the extra {name}), or leave it out'
      )
  if "jsonl" not in names(config):
    logging.warning(
      "config.metrics.sinks leaves out jsonl: metrics.jsonl is written all the same, since reports "
      "and a run that goes on read it"
    )


def title(setting: plug.Setting) -> str:
  """What the run is called: `metrics.name`, or its folder's own name."""
  return setting.config.metrics.name or files.folder(setting.workdir).name


def plain(setting: plug.Setting) -> dict[str, Any]:
  """The config as JSON has it."""
  return json.loads(json.dumps(setting.config.copy_and_resolve_references().to_dict()))


def table(client, rows: list[dict]):
  """Rows of one form as a table of a tracker's package."""
  return client.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])


def remembered(setting: plug.Setting, name: str) -> dict[str, str]:
  """What `remember` has kept of the run that goes on; {} for one that begins."""
  file = files.folder(setting.workdir) / "sinks" / f"{name}.json"
  return json.loads(file.read_text()) if setting.done and file.exists() else {}


def remember(setting: plug.Setting, sink: str, /, **found: str):
  """Keeps what a sink needs to go on with the same run, in WORKDIR/sinks/NAME.json."""
  folder = files.folder(setting.workdir) / "sinks"
  folder.mkdir(parents=True, exist_ok=True)
  files.replace(folder / f"{sink}.json", json.dumps(found) + "\n")


class Here:
  """A sink in the caller's thread."""

  def __init__(self, name: str, setting: plug.Setting):
    self._view = View(f"metrics.sinks={name}", "metrics are written")
    self._sink = self._view(plug.make, "sink", name, setting, Sink)

  def call(self, what: str, *arguments):
    """Calls a function of the sink by its name."""
    self._view(lambda: getattr(self._sink, what)(*arguments))

  def wait(self, seconds: float):
    """Nothing is left to do when `call` has returned."""


class Aside:
  """A sink in a thread of its own: nobody waits for it, but for some seconds at the end."""

  def __init__(self, name: str, setting: plug.Setting):
    self._view = View(f"metrics.sinks={name}", "metrics are sent")
    self._calls = queue.Queue(MOST)
    arguments = "sink", name, setting, Sink
    self._thread = threading.Thread(
      target=self._work, args=arguments, daemon=True, name=f"sink-{name}"
    )
    self._thread.start()

  def _work(self, *arguments):
    try:
      sink, what = self._view(plug.make, *arguments), ""
      while what != "close" and not self._view.dropped:
        what, given = self._calls.get()
        self._view(getattr(sink, what), *given)
    except BaseException as error:  # SystemExit of a package, in a thread that is its own
      self._view.drop(error)

  def call(self, what: str, *arguments):
    """Puts a call of a function of the sink, by its name, behind those that wait."""
    if self._view.dropped or what == "flush":
      return
    try:
      self._calls.put_nowait((what, arguments))
    except queue.Full:
      self._view.drop(TimeoutError(f"it is {MOST:,} calls behind"))

  def wait(self, seconds: float):
    """Waits until it has done what it was called for, `close` last; what it has not done by then is
    given up."""
    if self._view.dropped:
      return
    self._thread.join(seconds)
    if self._thread.is_alive():
      left = self._calls.qsize()
      self._view.drop(TimeoutError(f"{left} calls were not done {CLOSING:g} s after the end"))


class Sinks:
  """The sinks that a run's config names."""

  def __init__(self, setting: plug.Setting):
    local = lambda name: ":" not in name and plug.beside("sink", name, "LOCAL")
    self._sinks = [
      (Here if local(name) else Aside)(name, setting) for name in names(setting.config)
    ]

  def call(self, what: str, *arguments):
    """Calls a function of `Sink` of each."""
    for sink in self._sinks:
      sink.call(what, *arguments)

  def close(self, how: str):
    """Ends them all, within `CLOSING` seconds together; `how` the run ends."""
    end = time.monotonic() + CLOSING
    self.call("close", how)
    for sink in self._sinks:
      sink.wait(max(0.0, end - time.monotonic()))
