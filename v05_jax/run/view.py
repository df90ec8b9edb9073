"""Shows a run's metrics elsewhere, and never stops it."""

from collections.abc import Callable

from absl import logging


class View:
  """Calls functions that show a run's metrics, until one fails.

  A failure (a full disk, a server that is gone, a fault of a package) becomes one warning, and
  nothing is called from then on: the metrics are in metrics.jsonl all the same.

  place: folder or name of what shows them. what: "events are written". space: () -> the space left
  in words, or "". release: frees what the failed one holds.
  """

  def __init__(self, place: str, what: str, space=lambda: "", release=lambda: None):
    self._place, self._what, self._space, self._release = place, what, space, release
    self.dropped = False

  def __call__(self, function: Callable, *arguments):
    """The function's result; None where it or one before it has failed."""
    if self.dropped:
      return None
    try:
      return function(*arguments)
    # a server's failures have kinds of their own, and no view of the metrics is worth the run
    except Exception as error:
      self.drop(error)
    return None

  def drop(self, error: BaseException):
    """Gives it up because of an error, and says so."""
    if self.dropped:
      return
    self.dropped = True
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    logging.warning(
      "%s: no more %s: %s%s; the run goes on, and its metrics are in metrics.jsonl",
      self._place,
      self._what,
      " ".join(reason.split())[:500],
      self._space(),
    )
    self._release()
