"""The programs of the value prior."""

import dataclasses
from functools import partial
import sys
from typing import Any

import jax
from jax.sharding import NamedSharding
import numpy as np

from v05_jax import models, step
from v05_jax import priors as value_prior
from v05_jax.scale import sharding
from v05_jax.scale.programs import ALWAYS, Program
from v05_jax.value_model import directory, tabpfn, v0
from v05_jax.value_model.ensemble import Query, Support


def value_programs(config, model, mesh, params, kept: tuple[str, ...]) -> tuple[Any, list[Program]]:
  """-> (what the prior keeps on the devices, its programs)."""
  kind, width = config.prior.kind, config.sampler.max_prompt
  whole, rows = sharding.replicated(mesh), NamedSharding(mesh, value_prior.ROWS_SPLIT)
  beside = (*(part for part in ALWAYS if part != "prior"), *kept)
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  if kind == "neighbours":
    embedder = jax.eval_shape(partial(value_prior.cast, model), params)
    embedder = jax.tree.map(place, embedder, sharding.param_shardings(mesh, embedder))
    count = min(value_prior.most_rows(mesh, width), step.capacity(config) * config.selection.pool)
    count += -count % sharding.lanes(mesh)
    tokens = jax.ShapeDtypeStruct((count, width), np.int32, sharding=rows)
    lengths = jax.ShapeDtypeStruct((count,), np.int32, sharding=rows)
    lower = lambda: value_prior.make_embed(model, mesh).lower(embedder, tokens, lengths)
    work = f"features of {count} prompts of {width} tokens"
    return embedder, [
      Program("prior", lower, beside, 1, work, "sampler.max_prompt, a larger mesh.fsdp")
    ]
  if kind != "v0":
    return (), []
  settings, backbone = v0.shapes(config.prior.path)
  if settings is directory.RELEASED:
    print(
      f"config.prior.path={config.prior.path} is not here: took the shapes of the released V0",
      file=sys.stderr,
    )
  backbone = dataclasses.replace(backbone, backend=models.backend(mesh.devices.flat[0].platform))
  parts = v0.abstract(settings, backbone, mesh)
  count, tokens = value_prior.ROWS * sharding.lanes(mesh), v0.bucket(width)
  text = jax.ShapeDtypeStruct((count, tokens), np.int32, sharding=rows)
  adapter = settings["adapter"]
  program = v0.make_embed(backbone, adapter["heads"], adapter["pooling"], whole)
  embed = lambda: program.lower(parts["embedder"], parts["adapter"], text, text)
  work = f"features of {count} prompts of {tokens} tokens"
  support, columns, head = config.prior.context, directory.features(settings) + 1, settings["head"]
  floats = lambda *size: jax.ShapeDtypeStruct(size, np.float32, sharding=whole)
  judged = lambda: tabpfn.forward.lower(
    parts["judge"],
    Support(
      floats(v0.bucket(support), columns),
      floats(v0.bucket(support)),
      jax.ShapeDtypeStruct((v0.bucket(support),), bool, sharding=whole),
    ),
    Query(floats(v0.QUERIES_PER_CALL, columns)),
    floats(-(-columns // head["group"]), head["E"] // 4),
  )
  return parts, [
    Program("prior", embed, beside, 1, work, "prior.kind=neighbours, a larger mesh.fsdp"),
    Program(
      "judge",
      judged,
      (*beside, "prior"),
      1,
      f"{v0.QUERIES_PER_CALL} prompts, {support} pairs, one estimator",
      "prior.context",
    ),
  ]
