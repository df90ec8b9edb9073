"""--mode=compile: whether a config fits a machine and what bounds it, before anybody pays for one.

Every program of a run is lowered from shapes alone, without weights, tokenizer, data or network,
and compiled for the devices of `--topology`: prefill, decode, the value prior, the update, and the
exact evaluation of the built-in tasks (other evaluation is prefill and decode). A row says what the
compiler makes of it on one device:

    peak      arguments + results + temporaries of the program
    beside    what else lives on the device then: see `PARTS`
    time      the compiler's own estimate in cycles, and what operations, memory and network take at
              least
"""

from collections.abc import Callable
import dataclasses
from functools import partial
import json
import re
import sys
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
import numpy as np

from v05_jax import config as configuration
from v05_jax import models, step
from v05_jax import priors as value_prior
from v05_jax.models import transformer
from v05_jax.sampling import sampler
from v05_jax.scale import hlo, sharding, topology
from v05_jax.tasks import exact
from v05_jax.update import optimizer as optimizers
from v05_jax.update import policy_gradient
from v05_jax.value_model import directory, tabpfn, v0

GIB = topology.GIB
# What a run keeps on its devices, and for how long.
PARTS = {
  "params": "always",
  "optimizer": "always",
  "reference": "always, with loss.kl_coef and without adapters",
  "prior": "always",
  "weights": "while sampling: the parameters as decode wants them",
  "store": "while sampling: the cache of the open prompts",
  "cache": "while sampling: the cache of the slots",
}
ALWAYS = ("params", "optimizer", "reference", "prior")


class Program(NamedTuple):
  """One program of a run."""

  name: str
  lower: Callable[[], Any]  # -> jax.stages.Lowered
  beside: tuple[str, ...]  # PARTS that live at the same time and are neither arguments nor results
  trips: int  # of a loop whose number only the run knows
  work: str  # what one call does
  knobs: str  # keys that lower its memory


def report(config, name: str, file=None):
  """Compiles every program of `config` for the topology `name`; prints a JSON line each, and a
  table at the end.

  Raises ValueError for a config, topology or mesh that cannot be; a program that does not fit is a
  row.
  """
  file = file or sys.stdout
  configuration.validate(config)
  if name:  # what is compiled for devices that are not here cannot be read back
    jax.config.update("jax_enable_compilation_cache", False)
  devices = topology.devices(name)
  mesh, chip = sharding.make_mesh(config.mesh, devices), topology.chip(devices[0])
  model, platform = shape(config.policy, devices[0].platform), devices[0].platform
  parts, programs = plan(config, model, mesh, platform)
  sizes = {part: held(tree) for part, tree in parts.items()}
  rows = []
  for program in programs:
    print(
      f"compiling {program.name} for {len(devices)} x {devices[0].device_kind} ...",
      file=sys.stderr,
      flush=True,
    )
    rows.append(row(program, sizes, chip) | {"topology": name or platform, "devices": len(devices)})
    print(json.dumps(rows[-1]), file=file, flush=True)
  print(table(rows, sizes, chip), file=file)
  return rows


def shape(policy, platform: str) -> transformer.ModelConfig:
  """The policy's shape: of its preset, of its folder's config.json, or of the preset with the
  folder's name."""
  return models.adapt(models.shape(policy.path, policy.preset), policy, platform)


def held(tree) -> int:
  """Bytes of a tree of shapes with shardings on one device."""
  local = lambda x: np.prod(
    x.sharding.shard_shape(x.shape) if x.sharding else x.shape, dtype=np.int64
  )
  return int(sum(local(x) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def plan(config, model, mesh, platform: str) -> tuple[dict[str, Any], list[Program]]:
  """-> (PARTS as trees of shapes with shardings, the programs)."""
  options, loss = config.sampler, config.loss
  optimizer = optimizers.make(config.optimizer, max(config.num_steps, 1))
  _, params, state = policy_gradient.layout(model, optimizer, mesh)
  build, given = sampler.make(model, options, (0,), mesh), sampler.arguments(model, options, mesh)
  largest = max(
    sampler.shapes(options, sharding.lanes(mesh)), key=lambda size: size.slots * size.columns
  )
  weights, store, cache = given.weights(params), given.store(), given.cache(largest)
  # On a CPU the sampler's buffers are kept from step to step, as fresh memory is slow there.
  kept, buffers = (("store", "cache"), ()) if platform == "cpu" else ((), ("store", "cache"))
  prior, judge = value_programs(config, model, mesh, params, kept)
  parts = {
    "params": params,
    "optimizer": state,
    "weights": weights,
    "store": store,
    "cache": cache,
    "prior": prior,
  }
  # adapters have their reference in the parameters
  copied = bool(loss.kl_coef) and not model.adapters
  parts["reference"] = params if copied else ()
  update = policy_gradient.make(
    model,
    loss,
    config.optimizer,
    mesh,
    temperature=options.temperature,
    total_updates=max(config.num_steps, 1),
  )
  micros, rows, length = step.batch_shape(config, mesh)
  longest = options.max_prompt + options.max_response - 1
  # on average, at most
  used = -(-config.rollouts_per_step // (loss.minibatches * (length // longest) * rows))
  key, temperature = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), np.float32)
  columns = f"{largest.columns} columns in each of {options.slots} slots"
  without = lambda *own: tuple(part for part in PARTS if part not in own)
  programs = [
    *judge,
    Program(
      "weights",
      lambda: build.weights.lower(params),
      without("params", "weights", *buffers),
      1,
      "decode weights from the parameters",
      "a larger mesh.tensor",
    ),
    Program(
      "prefill",
      lambda: build.prefill.lower(params, store, *given.prompts()),
      without("params", "store"),
      1,
      f"{options.prefill} prompts of {options.max_prompt} tokens",
      "sampler.prefill, sampler.open_prompts, sampler.max_prompt",
    ),
    Program(
      "decode",
      lambda: build.decode.lower(weights, cache, store, *given.rows(largest), key, temperature),
      ALWAYS,
      options.chunk,
      f"{options.chunk} tokens in every slot, {columns}",
      "sampler.slots, sampler.open_prompts, a larger mesh.tensor",
    ),
    Program(
      "update",
      lambda: update.lower((micros, rows, length)),
      ("prior", *kept),
      used,
      f"{used} micro-batches of {rows} rows of {length} tokens",
      "loss.micro_rows, policy.remat=full, policy.attention=flash, loss.vocab_chunk, a larger "
      "mesh.fsdp",
    ),
  ]
  if loss.old_logprob == "recompute":
    programs.append(
      Program(
        "recompute",
        lambda: update.lower((micros, rows, length), recompute=True),
        without("params", "weights", *buffers),
        used,
        f"log-probs of {used} micro-batches",
        "loss.micro_rows, policy.attention=flash, loss.vocab_chunk",
      )
    )
  if config.eval.period and config.eval.path == "tasks":
    score, width = (
      exact.make_score(model, config.eval.temperature),
      options.max_prompt + options.max_response,
    )
    ints = lambda *size: jax.ShapeDtypeStruct(size, np.int32)
    programs.append(
      Program(
        "evaluate",
        lambda: score.lower(
          params, ints(exact.PROMPTS_PER_CALL, width), ints(exact.PROMPTS_PER_CALL)
        ),
        without("params", "weights", *buffers),
        1,
        f"{exact.PROMPTS_PER_CALL} prompts with their answers",
        "sampler.max_prompt, sampler.max_response",
      )
    )
  return parts, programs


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
  embed = lambda: v0.embed.lower(
    backbone,
    settings["adapter"]["heads"],
    settings["adapter"]["pooling"],
    whole,
    parts["embedder"],
    parts["adapter"],
    text,
    text,
  )
  work = f"features of {count} prompts of {tokens} tokens"
  support, columns, head = config.prior.context, directory.features(settings) + 1, settings["head"]
  floats = lambda *size: jax.ShapeDtypeStruct(size, np.float32, sharding=whole)
  judged = lambda: tabpfn.forward.lower(
    parts["judge"],
    floats(v0.bucket(support), columns),
    floats(v0.bucket(support)),
    floats(v0.QUERIES_PER_CALL, columns),
    floats(-(-columns // head["group"]), head["E"] // 4),
    jax.ShapeDtypeStruct((v0.bucket(support),), bool, sharding=whole),
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


def row(program: Program, sizes: dict[str, int], chip: topology.Chip | None) -> dict[str, Any]:
  """What the compiler makes of a program: see the head of this file. Bytes and operations are a
  device's."""
  began = time.perf_counter()
  beside = {part: sizes[part] for part in program.beside if sizes.get(part)}
  found = {
    "program": program.name,
    "work": program.work,
    "beside": beside,
    "limit": chip and chip.memory,
  }
  lowered = program.lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    amount = re.search(r"\((\d+(?:\.\d+)?)G\)", str(error))
    peak = float(amount[1]) * GIB if amount else None  # arguments included
    found |= {"peak": peak, "total": peak and peak + sum(beside.values()), "fits": False}
    return found | {"largest": largest_lowered(lowered.as_text()), "knobs": program.knobs}
  memory, text = compiled.memory_analysis(), compiled.as_text()
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  total, cost = peak + sum(beside.values()), hlo.Module(text).cost(program.trips)
  found |= {
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "peak": peak,
    "total": total,
    "fits": None if not chip else total <= chip.memory,
    "flops": cost.flops,
    "bytes": cost.bytes,
    "sent": cost.sent,
    "seconds": seconds(cost, chip),
    "compile_seconds": time.perf_counter() - began,
  }
  if found["fits"] is False:
    found |= {"largest": largest(text), "knobs": program.knobs}
  return found


def seconds(cost: hlo.Cost, chip: topology.Chip | None) -> dict[str, float]:
  """Of one call: the compiler's estimate (with the kernels, which it does not estimate, at their
  peak), and what operations, memory and network take at least."""
  if chip is None or np.isnan(chip.flops):
    return {}
  parts = {"flops": cost.flops / chip.flops, "memory": cost.bytes / chip.bandwidth}
  parts["network"] = sum(cost.sent.values()) / chip.network
  model = cost.cycles / chip.clock + cost.kernels / chip.flops
  return {"compiler": model} | parts


def largest(text: str, count: int = 3) -> list[str]:
  """The largest arrays that a compiled program computes, with what they are of."""
  found = {}
  for table in hlo.Module(text).unfused():
    for line in table.values():
      if line.opcode not in hlo.FREE and not line.type.startswith("("):
        of = re.search(r'op_name="([^"]*)"', line.rest)
        name = re.sub(r"\{.*", "", line.type)
        found.setdefault(name, (hlo.size(line.type), of[1].split("/", 1)[-1] if of else line.name))
  order = sorted(found.items(), key=lambda item: -item[1][0])[:count]
  return [f"{name} ({size / GIB:.2f} GiB) {of}" for name, (size, of) in order]


def largest_lowered(text: str, count: int = 3) -> list[str]:
  """The same of a program that could not be compiled: whole arrays, before they are split over fsdp
  and tensor."""
  found = {}
  for dims, kind in set(re.findall(r"tensor<((?:\d+x)+)([a-z]+\d+)>", text)):
    size = (
      np.prod([int(n) for n in dims[:-1].split("x")], dtype=float)
      * int(re.sub(r"\D", "", kind))
      / 8
    )
    found[f"{kind}[{dims[:-1].replace('x', ',')}]"] = size
  order = sorted(found.items(), key=lambda item: -item[1])[:count]
  return [
    f"{name} ({size / GIB:.2f} GiB over all devices along fsdp and tensor)" for name, size in order
  ]


def table(rows, sizes: dict[str, int], chip: topology.Chip | None) -> str:
  """The rows as Markdown, with the parts below."""
  gib = lambda x: "-" if x is None else f"{x / GIB:.2f}"
  lines = [
    "| program | one call | arguments | temporaries | peak | beside | total GiB | of | fits | "
    "TFLOP | GB | GB sent "
    "| s, compiler | bound by |",
    "| --- " * 14 + "|",
  ]
  for x in rows:
    times = dict(x.get("seconds", {}))
    model = times.pop("compiler", None)
    bound = max(times, key=times.get) + f" {max(times.values()):.3g} s" if times else "-"
    fits = {True: "yes", False: "NO", None: "?"}[x["fits"]]
    cells = (
      x["program"],
      x["work"],
      gib(x.get("arguments")),
      gib(x.get("temporaries")),
      gib(x["peak"]),
      gib(sum(x["beside"].values())),
      gib(x["total"]),
      gib(x["limit"]),
      fits,
      f"{x['flops'] / 1e12:.3g}" if "flops" in x else "-",
      f"{x['bytes'] / 1e9:.3g}" if "bytes" in x else "-",
      f"{sum(x['sent'].values()) / 1e9:.3g}" if "sent" in x else "-",
      f"{model:.3g}" if model else "-",
      bound,
    )
    lines.append("| " + " | ".join(cells) + " |")
  lines += [
    "",
    "On each device: "
    + ", ".join(f"{part} {gib(size)} GiB" for part, size in sizes.items() if size)
    + ".",
  ]
  for x in rows:
    if x["fits"] is False:
      lines += [
        f"{x['program']} does not fit. Largest: {'; '.join(x['largest'])}. Less with {x['knobs']}."
      ]
  return "\n".join(lines)
