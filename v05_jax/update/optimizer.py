"""The optimiser of `config.optimizer`: AdamW behind clipping, with a schedule."""

import jax
import optax


def total_updates(config) -> int:
  """Updates of all steps of a run's config, at whose end a schedule ends."""
  return config.num_steps * config.loss.minibatches * config.loss.epochs


def make(config, total_updates: int) -> optax.GradientTransformation:
  """AdamW behind clipping by the global norm.

  Matrices decay, norm scales and biases do not; names decide, as layers are stacked and a scale is
  two-dimensional too. The learning rate rises linearly over `warmup_steps` updates, the first of
  which is not 0, then stays or falls to 0 at `total_updates`.

  Raises ValueError for an unknown `config.optimizer.schedule`.
  """
  rate, warmup = config.learning_rate, config.warmup_steps
  left = max(total_updates - warmup, 1)
  schedules = {
    "constant": optax.constant_schedule(rate),
    "cosine": optax.cosine_decay_schedule(rate, left),
    "linear": optax.linear_schedule(rate, 0.0, left),
  }
  if config.schedule not in schedules:
    known = ", ".join(schedules)
    raise ValueError(f"config.optimizer.schedule: found {config.schedule!r}, expected {known}")
  schedule = warm_up(schedules[config.schedule], rate, warmup)

  def decays(params):
    name_decides = lambda path, _: path[-1].key not in ("scale", "bias")
    return jax.tree_util.tree_map_with_path(name_decides, params)

  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  adamw = optax.adamw(
    schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decays
  )
  return optax.chain(clip, adamw)


def warm_up(schedule, rate: float, steps: int):
  """`schedule` behind a linear rise to `rate` over `steps` updates, the first of which is not 0."""
  if not steps:
    return schedule
  rise = optax.linear_schedule(rate / (steps + 1), rate, steps)
  return optax.join_schedules([rise, schedule], [steps])
