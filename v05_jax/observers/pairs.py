"""Writes every step's (prompt, score) pairs to WORKDIR/pairs, which --mode=value learns from."""

from v05_jax import data, plug
from v05_jax.observers.base import Observer, Step
from v05_jax.scale import distributed
from v05_jax.value_model.pairs import Collector


@plug.declare("observer")
def pairs(options, setting):
  """Of rollouts whose number no outcome has chosen; of several processes the first writes."""
  if setting.workdir is None or not distributed.first():
    return Observer(lambda state, step: (state, {}))
  texts = [row["prompt"] for row in setting.prompts.rows]
  label = data.label(setting.config.data.path)
  collector = Collector(setting.workdir, label, texts, setting.done)

  def see(state, step: Step):
    for draw in step.drawn:
      groups = draw.groups.unconditional
      seen = groups.k > 0
      collector.write(step.number, groups.row[seen], groups.vbar[seen], groups.k[seen].astype(int))
    return state, {}

  return Observer(see, flush=collector.flush, close=lambda: collector.__exit__(None, None, None))
