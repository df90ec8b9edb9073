"""Events in WORKDIR/tensorboard: `tensorboard --logdir=runs` shows them."""

from v05_jax import plug
from v05_jax.run import board, files
from v05_jax.sinks.base import Sink

PACKAGE, LOCAL = "tensorboardX", True


@plug.declare("sink")
def tensorboard(options, setting):
  """Scalars, the summary as an image, the samples and the config as texts."""
  done = setting.done
  events = board.Board(files.folder(setting.workdir) / "tensorboard", done + 1 if done else 0)

  def samples(step, rows):
    events.text(step, "samples", table(rows))

  return Sink(events.add, events.picture, samples, events.flush, lambda how: events.close())


def table(rows: list[dict]) -> str:
  """Rows of one form as a Markdown table."""
  cell = lambda x: " ".join(str(x).replace("|", "\\|").split())
  lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)] if rows else []
  return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
