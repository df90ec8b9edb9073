"""Weights & Biases: `pip install "v05_jax[wandb]"`, then `wandb login`.

Without a login, or with WANDB_MODE=offline, the run is kept in WORKDIR/wandb, from where
`wandb sync WORKDIR/wandb/offline-run-*` uploads it. WANDB_ENTITY, WANDB_BASE_URL and the package's
other variables hold. A run that goes on is the same run there.
"""

import os
import uuid

from absl import logging

from v05_jax import plug
from v05_jax.run import files
from v05_jax.sinks.base import FAILED, Sink, plain, remember, remembered, table, title

PACKAGE = "wandb"
INIT = 60.0  # seconds that the server may take to begin a run


@plug.declare("sink")
def wandb(options, setting):
  """Metrics by step, the config, the summary as an image, the samples as a table."""
  import wandb as client

  workdir, identity = setting.workdir, remembered(setting, "wandb").get("id", uuid.uuid4().hex[:12])
  folder = None if files.is_remote(workdir) else os.fspath(files.folder(workdir))
  run = client.init(
    project=setting.config.metrics.project,
    name=title(setting),
    id=identity,
    resume="allow",
    config=plain(setting),
    dir=folder,
    mode=mode(client, folder),
    settings=client.Settings(console="off", silent=True, init_timeout=INIT),
  )
  remember(setting, "wandb", id=identity)

  def picture(path):
    run.log({"summary": client.Image(path)})

  samples = lambda step, rows: run.log({"samples": table(client, rows)}, step=step)
  write = lambda step, values: run.log(values, step=step)
  return Sink(write, picture, samples, close=lambda how: run.finish(int(how == FAILED)))


def mode(client, folder: str | None) -> str | None:
  """ "offline" where nobody has logged in, since the package would ask for a key and wait; None =
  as the package's own settings say."""
  if os.environ.get("WANDB_MODE") or logged_in(client):
    return None
  logging.warning(
    "wandb: found no API key (wandb login, or WANDB_API_KEY): the run is kept in %s, from where "
    "wandb sync uploads it",
    os.path.join(folder or ".", "wandb"),
  )
  return "offline"


def logged_in(client) -> bool:
  """Whether the package has found a key, without asking for one."""
  try:
    return client.login(prompt=False, verify=False)
  except TypeError:  # a version without these arguments
    return bool(client.api.api_key)
