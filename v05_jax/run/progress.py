"""How far a run is, on a terminal, and how often it has compiled."""

import collections
import shutil
import sys
import threading
import time

import jax

from v05_jax.scale import distributed

# What a run's line on the terminal shows.
SHOWN = ("eval/accuracy", "reward", "k/mean")
PERIOD = 60.0  # seconds between two lines in a log


class CompilationCounter:
  """Counts XLA compilations from its creation to `close`; calling it gives the count.

  A program that comes from the persistent cache counts as well: what matters is that nothing new is
  traced.
  """

  EVENT = "/jax/core/compile/backend_compile_duration"

  def __init__(self):
    self._count, self._lock = 0, threading.Lock()  # programs compile in several threads
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def __call__(self) -> int:
    return self._count

  def _listen(self, event: str, duration: float, **_):
    with self._lock:
      self._count += event == self.EVENT

  def close(self):
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class Progress:
  """Steps, rate, time left and a few values: one line on a terminal, anywhere else a line a minute.

  The rate is that of the last steps of this process, so compilation and resumed steps do not
  distort it.
  """

  def __init__(self, total: int, done: int = 0, stream=None, clock=time.monotonic):
    self._total, self._stream, self._clock = total, stream or sys.stderr, clock
    self._shown, self._terminal = distributed.first(), self._stream.isatty()
    began = clock()
    self._recent = collections.deque([(began, done)], maxlen=20)
    self._next = began + PERIOD  # when a log gets its next line
    self._wrote = False

  def update(self, done: int, values: dict[str, float], names=SHOWN):
    """Shows `done` of `total` and those of `names` that have a value."""
    self._recent.append((self._clock(), done))
    (start, first), (now, last) = self._recent[0], self._recent[-1]
    if not self._shown or (not self._terminal and now < self._next):
      return
    rate = (last - first) / (now - start) if now > start else 0.0
    left = f"{_clock_time((self._total - done) / rate)} left" if rate else ""
    shown = [f"{name} {values[name]:.3g}" for name in names if name in values]
    speed = f"{rate:.2f} steps/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s a step"
    line = "  ".join(x for x in (f"step {done}/{self._total}", speed, left, *shown) if x)
    if self._terminal:
      width = shutil.get_terminal_size().columns - 1
      self._show(f"\r{line[:width]}\x1b[K")
    else:
      self._next = now + PERIOD
      self._show(f"{line}\n")

  def close(self):
    if self._shown and self._wrote and self._terminal:
      self._show("\n")

  def _show(self, text: str):
    try:
      self._stream.write(text)
      self._stream.flush()
      self._wrote = True
    except OSError:  # the terminal is gone: the run goes on
      self._shown = False

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def _clock_time(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
