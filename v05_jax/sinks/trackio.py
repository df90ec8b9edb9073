"""Trackio, Hugging Face's local tracker: `pip install "v05_jax[trackio]"`; `trackio show` opens it.

It keeps its data in TRACKIO_DIR, or sends them to the Space or server of TRACKIO_SPACE_ID or
TRACKIO_SERVER_URL. A run that goes on is the same run there; it is found by its name, which
therefore ends in a few characters of its own.
"""

import uuid

from v05_jax import plug
from v05_jax.sinks.base import Sink, plain, remember, remembered, table, title

PACKAGE = "trackio"


@plug.declare("sink")
def trackio(options, setting):
  """Metrics by step, the config, the summary as an image, the samples as a table."""
  import trackio as client

  name = remembered(setting, "trackio").get("name", f"{title(setting)}-{uuid.uuid4().hex[:6]}")
  run = client.init(
    project=setting.config.metrics.project,
    name=name,
    config=plain(setting),
    resume="allow",
    embed=False,
    auto_log_cpu=False,
    auto_log_gpu=False,
  )
  remember(setting, "trackio", name=name)
  last = [setting.done]

  def write(step, values):
    last[0] = step
    run.log(values, step=step)

  def picture(path):
    run.log({"summary": client.Image(path)}, step=last[0])

  samples = lambda step, rows: run.log({"samples": table(client, rows)}, step=step)
  return Sink(write, picture, samples, close=lambda how: run.finish())
