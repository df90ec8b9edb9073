"""The shipped policy of the tasks with a scratchpad: the shipped warm start, taught to go on after
an answer.

    v05 sft --config=warm_start_scratchpad \
      --workdir=runs/warm_start_scratchpad

Its result, runs/warm_start_scratchpad/hf, is what v05_jax/tasks/warm_start_scratchpad holds.
"""

from v05_jax.configs import scratchpad, warm_start


def get_config():
  c = warm_start.get_config()
  c.update_from_flattened_dict(scratchpad.CHANGES)
  c.policy.update({"path": "builtin", "preset": ""})
  c.sft.update({"steps": 1200, "learning_rate": 3e-3})
  return c
