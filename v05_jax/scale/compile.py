"""--mode=compile: whether a config fits a machine and what bounds it, before anybody pays for one.

Every program of a run is lowered from shapes alone, without weights, tokenizer, data or network,
and compiled for the devices of `--topology`: prefill, decode, the value prior, the update, and the
exact evaluation of the built-in tasks (other evaluation is prefill and decode). Without a tokenizer
it is not known which ids have no token: the programs lack that mask, one comparison a logit. A row
says what the compiler makes of it on one device:

    peak      arguments + results + temporaries of the program
    beside    what else lives on the device then: see `programs.PARTS`
    time      the compiler's own estimate in cycles, and what operations, memory and network take at
              least
"""

import json
import re
import sys
import time
from typing import Any

import jax
import numpy as np

from v05_jax import config as configuration
from v05_jax import models
from v05_jax.models import decoder
from v05_jax.scale import hlo, plan, settle, sharding, topology
from v05_jax.scale.cost import FREE, Cost, Module
from v05_jax.scale.programs import Program, held

GIB = topology.GIB
LARGEST = 3  # arrays that are named where a program is too large


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
  platform, policy = devices[0].platform, config.policy
  if configuration.left_open(config):
    sizes = models.shape(policy.path, policy.preset, policy.family)
    config = settle.settle_for(config, sizes, settle.machine(config, devices))
  model = shape(config.policy, platform)
  parts, programs = plan.plan(config, model, mesh, platform)
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
  print(table(rows, sizes), file=file)
  return rows


def shape(policy, platform: str) -> decoder.ModelConfig:
  """The policy's shape: of its preset, of its folder's config.json, or of the preset with the
  folder's name."""
  return models.adapt(models.shape(policy.path, policy.preset, policy.family), policy, platform)


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
  total, cost = peak + sum(beside.values()), Module(text).cost(program.trips)
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


def seconds(cost: Cost, chip: topology.Chip | None) -> dict[str, float]:
  """Of one call: the compiler's estimate (with the kernels, which it does not estimate, at their
  peak), and what operations, memory and network take at least."""
  if chip is None or np.isnan(chip.flops):
    return {}
  parts = {"flops": cost.flops / chip.flops, "memory": cost.bytes / chip.bandwidth}
  parts["network"] = sum(cost.sent.values()) / chip.network
  model = cost.cycles / chip.clock + cost.kernels / chip.flops
  return {"compiler": model} | parts


def largest(text: str) -> list[str]:
  """The largest arrays that a compiled program computes, with what they are of."""
  found = {}
  for table in Module(text).unfused():
    for line in table.values():
      if line.opcode not in FREE and not line.type.startswith("("):
        of = re.search(r'op_name="([^"]*)"', line.rest)
        name = re.sub(r"\{.*", "", line.type)
        found.setdefault(name, (hlo.size(line.type), of[1].split("/", 1)[-1] if of else line.name))
  order = sorted(found.items(), key=lambda item: -item[1][0])[:LARGEST]
  return [f"{name} ({size / GIB:.2f} GiB) {of}" for name, (size, of) in order]


def largest_lowered(text: str) -> list[str]:
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
  order = sorted(found.items(), key=lambda item: -item[1])[:LARGEST]
  return [
    f"{name} ({size / GIB:.2f} GiB over all devices along fsdp and tensor)" for name, size in order
  ]


def table(rows, sizes: dict[str, int]) -> str:
  """The rows as Markdown, with the parts below."""
  gib = lambda x: "-" if x is None else f"{x / GIB:.2f}"
  lines = [
    "| program | one call | arguments | temporaries | peak | beside | total GiB | of | fits "
    "| TFLOP | GB | GB sent | s, compiler | bound by |",
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
