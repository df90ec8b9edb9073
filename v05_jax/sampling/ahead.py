"""Programs compiled in threads, ahead of their use: XLA's compiler works outside Python's lock."""

from collections.abc import Callable
from concurrent import futures

import jax

from v05_jax import backend


class Ahead:
  """Compilations in as many threads as there are cores, at least two; a context manager.

  Tracing holds Python's lock, so what is not urgent may be put off until what is has been traced:
  `later`, `go`. Leaving the block runs everything to its end and raises the first exception that
  any of it raised; where an exception is the reason to leave, what has not begun is dropped and
  only what is running is waited for, and where it is Ctrl-C, nothing.
  """

  def __init__(self):
    self._pool = futures.ThreadPoolExecutor(max(backend.cores(), 2), thread_name_prefix="compile")
    self._waiting: list[tuple[futures.Future, Callable]] = []
    self._all: list[futures.Future] = []

  def later(self, work: Callable[[], object]) -> Callable[[], object]:
    """Puts `work` off until `go` -> a function that waits for its end, and raises what it
    raised."""
    done = futures.Future()
    self._waiting.append((done, work))
    self._all.append(done)

    def wait():
      self.go()
      return done.result()

    return wait

  def go(self):
    """Starts what was put off, in its order."""
    waiting, self._waiting = self._waiting, []
    for done, work in waiting:
      self._pool.submit(_run, done, work)

  def now(self, work: Callable[[], object]) -> Callable[[], object]:
    """Starts `work`, before what is put off -> as `later`."""
    done = futures.Future()
    self._all.append(done)
    self._pool.submit(_run, done, work)
    return done.result

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is None:
      self.go()
    else:
      for done in self._all:
        done.cancel()
    self._pool.shutdown(wait=kind is not KeyboardInterrupt)
    if kind is None:
      for done in self._all:
        done.result()


def _run(done: futures.Future, work: Callable[[], object]):
  if done.set_running_or_notify_cancel():
    try:
      found = work()
      backend.release_memory()
      done.set_result(found)
    except BaseException as error:  # for whoever waits
      done.set_exception(error)


def shapes(tree):
  """A tree's shapes and shardings, to lower a program with; it keeps no array alive."""

  def shape(x):
    placed = isinstance(x, jax.Array) and x.committed
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if placed else None)

  return jax.tree.map(shape, tree)
