"""The V0 that a training begins with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from v05_jax import models, rng
from v05_jax.value_model import adapter, directory, tabpfn, v0


def begin(config) -> v0.ValuePrior:
  """The model before training: that in `value.start`, or else a new adapter on `config.policy` and
  a new head, or the head of `value.head`."""
  options = config.value
  key = jax.random.fold_in(rng.at(config.seed, 0, rng.INIT), rng.VALUE)
  if options.start:
    model = v0.load(options.start)
    if options.train == "adapter" and model.settings["adapter"]["pooling"] == "last":
      raise ValueError(
        f"config.value.train: found 'adapter', expected head: {options.start} pools the last token"
      )
  else:
    policy = models.load(config.policy, config.seed)
    # As `v0.load` opens it again.
    policy = policy._replace(config=dataclasses.replace(policy.config, dtype="float32"))
    sizes = (policy.config.hidden_size, options.queries, options.width, options.bottleneck)
    built_in = config.policy.path == "builtin" and not config.policy.preset
    settings = {
      "adapter": {
        "queries": options.queries,
        "width": options.width,
        "heads": options.heads,
        "bottleneck": options.bottleneck,
        "hidden_size": policy.config.hidden_size,
        "pooling": "dynamic",
      },
      "head": new_head(options),
      "temperature": 0.9,
      "estimators": options.estimators,
      "max_tokens": policy.config.max_positions,
      "backbone": directory.BUILTIN if built_in else directory.FOLDER,
    }
    head = init_head(jax.random.fold_in(key, 0), settings["head"])
    first = jax.jit(lambda key: adapter.init(key, *sizes))(jax.random.fold_in(key, 1))
    params = jax.tree.map(jnp.asarray, policy.params)
    model = v0.ValuePrior(settings, policy.config, params, policy.tokenizer, first, head)
  if options.head:
    other = v0.load(options.head)
    of_head = ("head", "temperature", "table", "licences")
    kept = {key: x for key, x in model.settings.items() if key not in of_head}
    taken = {key: other.settings[key] for key in of_head if key in other.settings}
    model = dataclasses.replace(model, head=other.head, settings=kept | taken)
  return model


def new_head(options) -> dict[str, Any]:
  """v0.json's "head" for a new one."""
  return {
    "E": options.embed,
    "heads": options.attention_heads,
    "group": options.group,
    "thinking": options.thinking,
    "layers": options.layers,
    "factor": 2,
    "outputs": 2,
    "encoder": "linear",
    "encoder_hidden": 0,
  }


def init_head(key, sizes: dict[str, Any]):
  """A new head, stacked: matrices N(0, 1 / fan-in), but 0 where they end a sublayer, so that a
  layer changes nothing at first; biases 0, thinking rows N(0, 1)."""

  def draw(key):
    found = {}
    for number, (name, shape) in enumerate(directory.head_shapes(sizes).items()):
      last = name.endswith(("_w_out", "linear2.weight", "bias"))
      scale = 0.0 if last else 1.0 if "thinking" in name else shape[-1] ** -0.5
      found[name] = scale * jax.random.normal(jax.random.fold_in(key, number), shape)
    return found

  return tabpfn.stack(jax.jit(draw)(key))
