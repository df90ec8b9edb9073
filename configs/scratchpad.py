"""The demo with a scratchpad behind every answer: tasks in which a success is as long as a failure.

    v05 train --config=scratchpad --workdir=runs/scratchpad

A response is the answer, ":" and LENGTH characters that no verdict looks at. They carry entropy of
their own, so that the gradient of a success is about as long as a failure's; in configs/demo.py a
failure's is two to three times as long (docs/noise.md). Success stays exact, and is about that of
the demo at the start.
"""

from v05_jax.configs import demo

LENGTH = 24
CHANGES = {
  "data.scratchpad": LENGTH,
  "policy.path": "builtin_scratchpad",
  "sampler.max_response": LENGTH + 9,  # the demo's 8 tokens, ":" and the scratchpad
  "sampler.truncated": "score",
  "loss.micro_rows": 32,  # as many tokens as 64 rows of the demo
}


def get_config(method="v05"):
  c = demo.get_config(method)
  c.update_from_flattened_dict(CHANGES)
  return c
