"""Random keys by `fold_in` only: a key names what it is for, so no generator state exists to save.

A rollout's key depends on (seed, step, prompt position, index) and nothing else: not on its slot,
its neighbours or the order of work. So an adaptively stopped group is the prefix of the full one,
and a resumed run repeats nothing and skips nothing.
"""

from functools import partial

import jax

# One stream a purpose. The numbers are part of what a seed means: append, never renumber.
TRAIN, EVAL, SFT, INIT, SELECT, VALUE, BOOTSTRAP, REPLAY = range(8)


@partial(jax.jit, static_argnames=("seed", "stream"))
def at(seed: int, step, stream: int = TRAIN) -> jax.Array:
  """The key of one step of one stream; `step` may be traced."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def rollout_key(step_key: jax.Array, prompt, index) -> jax.Array:
  """The key of one rollout. `prompt` is the position in the data stream, not the prompt's id: the
  same prompt may stand in a step twice. Token t of the rollout is drawn with `fold_in(rollout_key,
  t)`."""
  return jax.random.fold_in(jax.random.fold_in(step_key, prompt), index)
