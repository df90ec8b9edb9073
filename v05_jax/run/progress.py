"""How far a run is, for whoever watches it or reads its log, and what it has compiled."""

import collections
import math
import shutil
import sys
import threading
import time

import jax

from v05_jax import logs
from v05_jax.scale import distributed

# What a run's line shows.
SHOWN = ("eval/accuracy", "accuracy", "reward", "k/mean")
# Seconds between two lines in a log: a tenth of the time so far, within these bounds.
SOONEST, LATEST = 5.0, 60.0
MEANINGFUL = 3  # steps after the first, which compiles, until rates and the time left are shown


class CompilationCounter:
  """Counts XLA compilations from its creation to `close`; calling it gives the count.

  A program from the persistent cache counts as well: it was traced again.
  """

  EVENT = "/jax/core/compile/backend_compile_duration"

  def __init__(self):
    self._count, self._lock = 0, threading.Lock()  # programs compile in several threads
    self._seconds = collections.Counter()  # by the programs' names
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def __call__(self) -> int:
    return self._count

  def told(self, most: int = 3) -> str:
    """How many programs were compiled, and which of them took longest: "12 programs (update 3.1 s,
    decode 2.0 s)"."""
    with self._lock:
      longest = [(name, s) for name, s in self._seconds.most_common(most) if name and s >= 0.1]
      inside = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in longest)
    return f"{self._count} programs" + (f" ({inside})" if inside else "")

  def _listen(self, event: str, duration: float, fun_name: str = "", **_):
    if event != self.EVENT:
      return
    with self._lock:
      self._count += 1
      self._seconds[fun_name.removeprefix("jit(").removesuffix(")")] += duration

  def close(self):
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class Progress:
  """Steps, time left, rates and a few values: one line on a terminal that is written again and
  again; anywhere else, as in a file, a notebook or a pod's log, a line now and then.

  Rates are those of the last steps of this process without its first one, so compilation and
  resumed steps do not distort them; before there are a few of these there is no estimate. `done`:
  steps of the state that the run goes on from, 0 for a fresh one. `most`: rollouts that end the
  run, 0 = its steps alone do.
  """

  def __init__(self, total: int, done: int = 0, stream=None, clock=time.monotonic, most: int = 0):
    self._most = most
    self._total, self._stream, self._clock = total, stream or sys.stderr, clock
    self._shown, self._terminal = distributed.first(), logs.is_terminal(self._stream)
    self._began, self._resumed = clock(), done
    # (time, step, tokens sampled so far) after each of the last steps
    self._recent = collections.deque(maxlen=20)
    self._tokens = self._rollouts = 0.0
    self._next = self._began  # time of the next line in a log
    self._open = False  # whether the terminal's last line has no end yet

  def stage(self, text: str):
    """Says what is under way: on a terminal until the next line takes its place."""
    if self._terminal:
      self._line(text)
    else:
      self.say(text)

  def say(self, text: str):
    """Writes a line that stays."""
    self._show(f"\r{text}\x1b[K\n" if self._terminal else f"{text}\n")
    self._open = False

  def update(self, done: int, values: dict[str, float], names=SHOWN, last: bool = False):
    """Shows `done` of `total`, and those of `names` that have a value; from `rollouts` (cumulative)
    and `response/length` also the tokens sampled a second. last: the run ends before `total`."""
    now, last = self._clock(), last or done == self._total
    rollouts = values.get("rollouts", 0)
    self._tokens += (rollouts - self._rollouts) * values.get("response/length", 0)
    self._rollouts = rollouts
    self._recent.append((now, done, self._tokens))
    if not self._shown or not (self._terminal or last or now >= self._next):
      return
    line = "  ".join(x for x in (f"step {done}/{self._total}", *self._parts(values, names)) if x)
    if self._terminal:
      self._line(line)
    else:
      self._next = now + min(max((now - self._began) / 10, SOONEST), LATEST)
      self.say(line)

  def _parts(self, values, names):
    """The parts of the line after the number of the step."""
    (start, first, before), (now, last, after) = self._recent[0], self._recent[-1]
    steps, seconds = last - first, now - start
    known = steps >= MEANINGFUL and seconds > 0
    rollouts, left = values.get("rollouts"), self._total - last
    if self._most and rollouts:  # of which there are as many a step as so far
      left = min(left, max(math.ceil((self._most - rollouts) * last / rollouts), 0))
    if known and left:
      yield f"{_clock_time(left * seconds / steps)} left"
    if rollouts:
      yield f"{rollouts:,.0f} rollouts"
    same = values.get("accuracy") == values.get("reward")  # of rewards 0 and 1
    for name in names:
      if name in values and not (same and name == "reward" and "accuracy" in names):
        yield f"{name} {values[name]:.3g}"
    if known:
      rate = steps / seconds
      yield f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s a step"
      yield f"{(after - before) / seconds:,.0f} tokens/s" if after > before else ""

  def close(self):
    if self._open:
      self._show("\n")
      self._open = False

  def _line(self, text: str):
    self._show(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")
    self._open = True

  def _show(self, text: str):
    if not self._shown:
      return
    try:
      self._stream.write(text)
      self._stream.flush()
    except (OSError, ValueError):  # the terminal is gone, the file closed: the run goes on
      self._shown = False

  def __enter__(self):
    if self._resumed:
      self.say(f"resumed at step {self._resumed} of {self._total}")
    return self

  def __exit__(self, *error):
    self.close()


def _clock_time(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
