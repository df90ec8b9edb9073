"""V0 (arXiv 2602.03584) as the prior: the generalist value model of a directory."""

import dataclasses
import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from v05_jax import models, plug
from v05_jax.priors import context as contexts
from v05_jax.priors.base import Prior
from v05_jax.scale import sharding
from v05_jax.scale.programs import OF_PRIOR, Program
from v05_jax.value_model import directory, ensemble, tabpfn
from v05_jax.value_model import v0 as value_model
from v05_jax.value_model.ensemble import Query, Support

ROWS_PER_CALL = 16  # prompts embedded at once, always: a resumed run computes the same bits


def _check(config):
  path = config.priors.v0.path
  if not path.strip():
    yield (
      "priors.v0.path",
      ('"builtin", or a directory of value_model.convert or --mode=value, since prior.kind is v0'),
    )
  if path == "builtin" and config.data.path != "tasks":
    yield (
      "priors.v0.path",
      (
        "a directory of your own, since builtin knows the built-in tasks alone and data.path is "
        "another"
      ),
    )


@plug.declare(
  "prior",
  check=_check,
  path=plug.Option(
    "builtin",
    'directory of `value_model.convert` or --mode=value; "builtin" = that of the built-in tasks',
  ),
)
def v0(options, setting):
  """V0 in context of the policy's own last outcomes."""
  prior = setting.config.prior
  return of_model(value_model.load(options.path, setting.mesh), prior.context, prior.min_support)


def of_model(model, size: int, min_support: int) -> Prior:
  """The prior of a loaded `ValuePrior`, in context of `size` pairs.

  A prompt's features are computed once, and kept on host by its row of the dataset. The head's
  fingerprint column, a hash that only tells rows apart, is computed from the place in the context
  and in the batch, so that rounding errors of features do not change it.
  """
  known: dict[int, np.ndarray] = {}

  def features(prompts) -> np.ndarray:
    new = {i: row["prompt"] for i, row in zip(prompts.row.tolist(), prompts.rows) if i not in known}
    known.update(zip(new, model.features(list(new.values()), ROWS_PER_CALL)))
    found = np.zeros((len(prompts.length), model.width), np.float32)
    for place, i in enumerate(prompts.row[: len(prompts.rows)].tolist()):
      found[place] = known[i]
    return found

  def predict(context, queries) -> tuple[np.ndarray, bool]:
    """(V [P], whether it is a smoothed success rate, as the context is not one that the head was
    made for)."""
    count, capacity = min(int(context.count), len(context.success)), len(context.success)
    if count < min_support:
      return np.full(len(queries), np.nan, np.float32), False
    support, success = np.asarray(context.features)[:count], np.asarray(context.success)[:count]
    marks = model.marks(*([str(i) for i in range(n)] for n in (count, len(queries))))
    success_rate = model.predict_from_features(support, success, queries, marks, capacity)
    usual = ensemble.smoothed(success, success >= 0.5, support)
    return 2.0 * success_rate - 1.0, usual is not None

  def ask(state, prompts):
    found = features(prompts)
    value, smoothed = predict(state, found)
    asked = contexts.remembered(state, found, value)
    return value, asked | {"smoothed": np.full(len(value), smoothed)}

  def learn(state, asked, groups):
    after, metrics = contexts.learn(state, asked, groups)
    return after, metrics | {"prior/smoothed": (float(asked["smoothed"].any()), 1)}

  return Prior(ask, lambda: contexts.empty(size, model.width), learn)


def programs(config, model, mesh, params):
  """For --mode=compile: see `neighbours.programs`. Where the directory is not here, the released
  V0's shapes are taken."""
  path, whole = config.priors.v0.path, sharding.replicated(mesh)
  settings, backbone = value_model.shapes(path)
  if settings is directory.RELEASED:
    print(
      f"config.priors.v0.path={path} is not here: took the shapes of the released V0",
      file=sys.stderr,
    )
  backend = models.backend(mesh.devices.flat[0].platform)
  backbone = dataclasses.replace(backbone, backend=backend)
  parts, bucket = value_model.abstract(settings, backbone, mesh), value_model.bucket
  count, tokens = ROWS_PER_CALL * sharding.lanes(mesh), bucket(config.sampler.max_prompt)
  split = NamedSharding(mesh, PartitionSpec(sharding.ROWS))
  text = jax.ShapeDtypeStruct((count, tokens), np.int32, sharding=split)
  adapter = settings["adapter"]
  program = value_model.make_embed(backbone, adapter["heads"], adapter["pooling"], whole)
  embed = lambda: program.lower(parts["embedder"], parts["adapter"], text, text)
  support, columns = bucket(config.prior.context), directory.features(settings) + 1
  queries, head = value_model.QUERIES_PER_CALL, settings["head"]
  floats = lambda *size: jax.ShapeDtypeStruct(size, np.float32, sharding=whole)
  real = jax.ShapeDtypeStruct((support,), bool, sharding=whole)
  given = Support(floats(support, columns), floats(support), real)
  table = floats(-(-columns // head["group"]), head["E"] // 4)
  value_head = lambda: tabpfn.forward.lower(
    parts["value_head"], given, Query(floats(queries, columns)), table
  )
  one = f"features of {count} prompts of {tokens} tokens"
  other = f"{queries} prompts, {config.prior.context} pairs, one estimator"
  knobs = "prior.kind=neighbours, a larger mesh.fsdp"
  return parts, [
    Program("prior", embed, OF_PRIOR, 1, one, knobs),
    Program("value_head", value_head, (*OF_PRIOR, "prior"), 1, other, "prior.context"),
  ]
