"""metrics.jsonl of the workdir, which every run writes (`run.writer`): reports and resuming read
it."""

from v05_jax import plug
from v05_jax.sinks.base import Sink, nothing

LOCAL = True


@plug.declare("sink")
def jsonl(options, setting):
  """Nothing beyond what is written anyway."""
  return Sink(nothing)
