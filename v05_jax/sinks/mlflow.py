"""MLflow: `pip install "v05_jax[mlflow]"`; `mlflow ui` opens it.

It keeps its data where MLFLOW_TRACKING_URI says, else where MLflow itself does by default, in the
folder in which the run was started. A run that goes on is the same run there; steps after the
checkpoint that it goes on from are written again, with the same values.
"""

import time

from v05_jax import plug
from v05_jax.sinks.base import FAILED, FINISHED, Sink, plain, remember, remembered, title

PACKAGE = "mlflow"
STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}  # of a run; of one that was stopped KILLED
MOST = 100  # parameters of the config that one call may write
LONGEST = 500  # characters of a parameter


@plug.declare("sink")
def mlflow(options, setting):
  """Metrics by step, the config as parameters, the summary and the samples as artifacts."""
  from mlflow import MlflowClient, entities

  client, project = MlflowClient(), setting.config.metrics.project
  run = remembered(setting, "mlflow").get("run")
  if run is None:
    known = client.get_experiment_by_name(project)
    experiment = known.experiment_id if known else client.create_experiment(project)
    run = client.create_run(experiment, run_name=title(setting)).info.run_id
    found = [entities.Param(key, text) for key, text in parameters(plain(setting))]
    for first in range(0, len(found), MOST):
      client.log_batch(run, params=found[first : first + MOST])
    remember(setting, "mlflow", run=run)
  else:
    client.set_terminated(run, "RUNNING")

  def write(step, values):
    now = int(time.time() * 1000)
    found = [entities.Metric(name, value, now, step) for name, value in values.items()]
    client.log_batch(run, metrics=found)

  def samples(step, rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    client.log_dict(run, columns, f"samples/{step}.json")

  picture = lambda path: client.log_artifact(run, path)
  close = lambda how: client.set_terminated(run, STATUS.get(how, "KILLED"))
  return Sink(write, picture, samples, close=close)


def parameters(node, prefix: str = "") -> list[tuple[str, str]]:
  """(dotted key, text) of everything in a config."""
  found = []
  for name, value in node.items():
    inside = isinstance(value, dict)
    key = f"{prefix}{name}"
    found += parameters(value, f"{key}.") if inside else [(key, str(value)[:LONGEST])]
  return found
