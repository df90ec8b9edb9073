"""One verifier of several: each response is judged by all of them, at the same time."""

from concurrent.futures import CancelledError, Future
import contextlib
import math
import threading

from v05_jax.rewards.pool import Verdict


class Several:
  """Verifiers by name, whose verdicts on a response become one.

  The verdict's `parts` are their rewards, in order, and its `reward` is the first of them; the
  caller combines the parts. Where one of the verifiers has failed, so has the whole: the reward is
  NaN, and `detail` names the verifier.
  """

  def __init__(self, verifiers: dict):
    self._verifiers = verifiers

  @property
  def batched(self) -> bool:
    """Whether one of them looks at all responses of a prompt at once."""
    return any(verifier.batched for verifier in self._verifiers.values())

  def submit(self, prompts, responses, rows, groups=None) -> list[Future]:
    """One handle each, in order; `handle.result()` waits for its Verdict."""
    found = [v.submit(prompts, responses, rows, groups) for v in self._verifiers.values()]
    return [self._together(handles) for handles in zip(*found, strict=True)]

  def _together(self, handles) -> Future:
    whole, left, lock = Future(), [len(handles)], threading.Lock()

    def done(_):
      with lock:
        left[0] -= 1
        if left[0]:
          return
      try:
        whole.set_result(self._whole([handle.result() for handle in handles]))
      except CancelledError:
        whole.cancel()

    for handle in handles:
      handle.add_done_callback(done)
    return whole

  def _whole(self, verdicts) -> Verdict:
    parts = tuple(verdict.reward for verdict in verdicts)
    for name, verdict in zip(self._verifiers, verdicts):
      if verdict.failure:
        return Verdict(math.nan, verdict.failure, f"{name}: {verdict.detail}", parts)
    return Verdict(parts[0], parts=parts)

  def close(self):
    """Ends them all, whatever fails."""
    with contextlib.ExitStack() as stack:
      for verifier in self._verifiers.values():
        stack.callback(verifier.close)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()
