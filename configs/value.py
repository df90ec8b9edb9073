r"""The value model of the built-in tasks: a V0 on the frozen warm start, trained on other policies'
rollouts.

    v05 value --config=value --workdir=runs/value \
      --config.value.data=FOLDER,FOLDER

FOLDERs are WORKDIR/pairs of runs that observe pairs. experiments/value_model makes the
policies, the pairs and the model that v05_jax/tasks/value_model holds, by one command, and has its
figures.
"""

from v05_jax.configs import default


def get_config():
  c = default.get_config()
  c.eval.period = 250
  c.checkpoint.period = 250
  c.value.update(
    {
      "steps": 2000,
      "tasks": 8,
      "pairs": 64,
      "window": 4,
      "learning_rate": 2e-3,
      "queries": 8,
      "width": 16,
      "heads": 4,
      "bottleneck": 32,
      "layers": 4,
      "embed": 64,
      "group": 129,
    }
  )
  return c
