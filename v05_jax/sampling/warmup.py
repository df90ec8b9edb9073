"""Compiles the sampler's programs as a run meets them, all but the first of them in the
background."""

from collections.abc import Callable
from functools import partial
import itertools

import jax
import numpy as np

from v05_jax.sampling import sampler
from v05_jax.sampling.ahead import Ahead, shapes
from v05_jax.scale import distributed, sharding


class Warmup:
  """The first call of a sampler's programs, for a `config.sampler` on a mesh."""

  def __init__(self, programs: sampler.Programs, given: sampler.Arguments, options, mesh):
    self._programs, self._given, self._mesh = programs, given, mesh
    by_use = lambda shape: (-shape.slots, shape.columns)
    self._order = sorted(sampler.shapes(options, sharding.lanes(mesh)), key=by_use)

  def __call__(self, params, step_key, ahead: Ahead) -> tuple:
    """Compiles prefill, decode for each of the cache's shapes, and the change from each shape to
    the next -> (weights, {shape: waits for its programs}). Returns when prefill is there."""
    key, store, first = shapes(step_key), self._given.store(), self._order[0]
    prefill = self._programs.prefill.lower(shapes(params), store, *self._given.prompts())
    prefilled = ahead.now(prefill.compile)
    weights = self._programs.weights(params)
    decode = partial(self._decode, shapes(weights), store, key)
    lowered = decode(first)
    compiled = {first: ahead.now(lambda: self._finish(lowered))}
    for old, new in itertools.pairwise(self._order):
      compiled[new] = ahead.later(partial(self._change, decode, old, new))
    ahead.go()
    prefilled()
    return weights, compiled

  def _decode(self, weights, store, key, shape):
    temperature = jax.ShapeDtypeStruct((), np.float32)
    rows, cache = self._given.rows(shape), self._given.cache(shape)
    return self._programs.decode.lower(weights, cache, store, rows, key, temperature)

  def _change(self, decode: Callable, old, new):
    self._finish(decode(new))
    slots = self._given.slots(new)
    self._programs.resize(new).lower(self._given.cache(old)[0], slots).compile()

  def _finish(self, decode):
    """Compiles decode, and what follows each call of it where there are several processes."""
    compiled = decode.compile()
    if distributed.several():
      place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
      chunk = jax.tree.map(place, compiled.out_info[1], compiled.output_shardings[1])
      distributed.replicate(self._mesh).lower(chunk).compile()
