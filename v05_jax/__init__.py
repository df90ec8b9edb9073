"""V0.5 in JAX: a generalist value model as a prior for sparse RL rollouts (arXiv 2603.10848).

    import v05_jax

    config = v05_jax.load_config("v05")
    config.num_steps = 16
    v05_jax.train.train(config, "runs/mine")

`PUBLIC` has the names that other programs need most. They are imported when they are first asked
for, so that importing the package costs nothing.
"""

import importlib

__version__ = "0.1.0"

# Name -> where it stands: a module of the package, or a function of one.
PUBLIC = {
  "load_config": "config:load",  # a config by its name or file
  "train": "train",  # train.train(config, workdir): the training loop
  "compare": "run.report:report",  # runs, as a table, plots and a page
  "shrinkage": "shrinkage",  # the test, the fusion, and every baseline for other trainers
  "budget": "budget",  # how many rollouts to add, for other samplers
  "fuse": "shrinkage:fuse",
  "advantage": "shrinkage:advantage",
  "should_continue": "budget:should_continue",
  "declare": "plug:declare",  # marks an estimator, budget, prior or observer of your own
  "Option": "plug:Option",
}


def __getattr__(name: str):
  if name not in PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, _, attribute = PUBLIC[name].partition(":")
  found = importlib.import_module(f"{__name__}.{module}")
  return getattr(found, attribute) if attribute else found


def __dir__():
  return sorted({*globals(), *PUBLIC})
