"""What a compiled program costs a device, read from the text of its optimised HLO.

A loop's body counts as often as it runs; XLA's own `cost_analysis` counts it once. Bytes are
counted as XLA counts them: operands and results of every instruction that is not fused into
another, of slices only what is taken or written, and on a TPU nothing that stays in on-chip memory.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from v05_jax.scale import hlo

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id iota "
  "opt-barrier while call conditional async-start async-update async-done copy-done "
  "slice-done".split()
)
# Products [T, Dh] x [Dh, T] of a head, half of each masked, in the kernels of splash attention.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one run on one device."""

  flops: float = 0.0  # of products and convolutions
  bytes: float = 0.0  # read from and written to memory
  cycles: float = 0.0  # the compiler's own estimate, where it makes one (TPU)
  kernels: float = 0.0  # operations in kernels, for which it makes none
  # bytes by kind of collective, ring algorithm
  sent: dict[str, float] = dataclasses.field(default_factory=dict)

  def __add__(self, other: "Cost") -> "Cost":
    sent = {
      kind: self.sent.get(kind, 0.0) + other.sent.get(kind, 0.0) for kind in self.sent | other.sent
    }
    add = lambda name: getattr(self, name) + getattr(other, name)
    return Cost(add("flops"), add("bytes"), add("cycles"), add("kernels"), sent)

  def __mul__(self, times: float) -> "Cost":
    sent = {kind: size * times for kind, size in self.sent.items()}
    return Cost(
      self.flops * times, self.bytes * times, self.cycles * times, self.kernels * times, sent
    )


class Module:
  """A parsed module."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, hlo.Instruction]] = {}
    self.entry = ""
    for name, is_entry, lines in hlo.computations(text):
      self.computations[name] = {line.name: line for line in lines}
      self.entry = name if is_entry else self.entry

  def cost(self, trips: int = 1, once: bool = False) -> Cost:
    """What one run of the module costs.

    Args:
      trips: how often a loop runs for which the text does not say so.
      once: count every loop's body once, as XLA's `cost_analysis` does.
    """

    @functools.cache
    def of(computation: str) -> Cost:
      return sum(
        (one(computation, line) for line in self.computations[computation].values()), Cost()
      )

    def one(computation: str, line: hlo.Instruction) -> Cost:
      table = self.computations[computation]
      called = self.called(line)
      found = Cost(cycles=float(hlo.field(line.rest, r'"estimated_cycles":"(\d+)"') or 0))
      if line.opcode == "while":
        times = 1 if once else self.trips(line) or trips
        return found + of(hlo.field(line.rest, r"body=%?([\w.\-]+)")) * times
      if line.opcode == "conditional":
        return found + max(map(of, called), key=lambda cost: cost.flops + cost.bytes)
      if line.opcode in ("call", "async-start"):
        return sum(map(of, called), found)
      if line.opcode == "fusion":
        inner = sum(map(of, called), Cost())
        found += Cost(inner.flops, sent={} if self.finishes(called) else inner.sent)
      kind = line.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        found += Cost(sent={kind: sent(kind, line, table)})
      count = flops(line, table)
      return found + Cost(
        count, self.traffic(line, table), kernels=count if line.opcode == "custom-call" else 0.0
      )

    return of(self.entry)

  def unfused(self) -> list[dict[str, hlo.Instruction]]:
    """The computations whose results lie in memory: those that no fusion calls."""
    lines = (
      line
      for table in self.computations.values()
      for line in table.values()
      if line.opcode == "fusion"
    )
    inside = {name for line in lines for name in self.called(line)}
    return [table for name, table in self.computations.items() if name not in inside]

  def called(self, line: hlo.Instruction) -> list[str]:
    """The computations that an instruction calls, but for those that reduce or compare numbers."""
    if line.opcode == "conditional":
      names = hlo.field(line.rest, r"branch_computations=\{([^}]*)\}")
      pair = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line.rest)
      return [name.strip().lstrip("%") for name in names.split(",")] if names else pair
    if line.opcode not in ("fusion", "call", "async-start"):
      return []
    return re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line.rest)

  def finishes(self, called: list[str]) -> bool:
    """Whether a fusion is the second half of an asynchronous collective, which its first half
    counts."""
    return any(
      '"AsyncCollectiveDone"' in line.rest
      for name in called
      for line in self.computations[name].values()
    )

  def trips(self, line: hlo.Instruction) -> int | None:
    """How often a loop runs: as the compiler says, or else as often as its counter, which starts at
    0, stays below the one whole number in its condition; None where neither is known."""
    if known := hlo.field(line.rest, r'known_trip_count":\{"n":"(\d+)"'):
      return int(known)
    condition = self.computations[hlo.field(line.rest, r"condition=%?([\w.\-]+)")].values()
    numbers = [
      x.argument for x in condition if x.opcode == "constant" and re.match(r"[su]32\[\]", x.type)
    ]
    if len(numbers) != 1:
      return None
    body = self.computations[hlo.field(line.rest, r"body=%?([\w.\-]+)")]
    after = next(x for x in body.values() if x.root).operands  # of an iteration
    step = 1
    for counter in (
      x for x in condition if x.opcode == "get-tuple-element" and re.match(r"[su]32\[\]", x.type)
    ):
      change = body[after[int(hlo.field(counter.rest, r"index=(\d+)"))]]
      if change.opcode == "add" and body[change.operands[1]].opcode == "constant":
        step = int(body[change.operands[1]].argument)
    return math.ceil(int(numbers[0]) / step)

  def traffic(self, line: hlo.Instruction, table) -> float:
    """Bytes that one instruction reads from and writes to memory."""
    if line.opcode in FREE or line.opcode.endswith("-done"):
      return 0.0
    if line.opcode == "fusion" and (called := self.called(line)):
      inner = self.computations[called[0]]
      pairs = zip(hlo.parameters(inner), line.operands, strict=True)
      read = sum(self.read(inner, place, table[name]) for place, name in pairs)
      return read + self.written(inner, line)
    if line.opcode in ("dynamic-slice", "gather", "slice"):
      return 2 * hlo.size(line.type)
    if line.opcode == "dynamic-update-slice":
      return 2 * hlo.size(table[line.operands[1]].type)
    if line.opcode in ("copy-start", "slice-start"):
      source, moved = hlo.arrays(line.type)[:2]
      return sum(hlo.bytes_of(moved) for x in (source, moved) if hlo.size(x))
    return hlo.size(line.type) + sum(
      hlo.size(table[name].type) for name in line.operands if name in table
    )

  def read(self, table, parameter: hlo.Instruction, given: hlo.Instruction) -> float:
    """Bytes that a fused computation reads of a parameter: of slices alone what is taken."""
    whole = hlo.size(given.type)
    total = 0.0
    for line in table.values():
      if parameter.name not in line.operands:
        continue
      first = line.operands[0] == parameter.name
      if first and line.opcode in ("dynamic-slice", "gather", "slice"):
        total += hlo.bytes_of(line.type)
      elif line.opcode == "bitcast" and not line.root:
        total += self.read(table, line, given)
      elif line.opcode == "fusion" and (called := self.called(line)):
        inner = self.computations[called[0]]
        total += self.read(inner, hlo.parameters(inner)[line.operands.index(parameter.name)], given)
      elif not (first and line.opcode == "dynamic-update-slice"):  # which writes in place
        total += whole
    return min(total, whole)

  def written(self, table, fusion: hlo.Instruction) -> float:
    """Bytes that a fusion writes: of an array that is updated in place what is new."""
    root = next(line for line in table.values() if line.root)
    while root.opcode == "bitcast":
      root = table[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
      return min(hlo.bytes_of(table[root.operands[1]].type), hlo.size(fusion.type))
    return hlo.size(fusion.type)


def flops(line: hlo.Instruction, table) -> float:
  """Of a product (on a GPU a call of cuBLAS), a convolution (as which a TPU computes products) or a
  kernel of splash attention; others count 0."""
  if line.opcode == "dot" or "__cublas" in line.rest:
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', line.rest)
    shape, contracted = hlo.dims(table[line.operands[0]].type), re.findall(r"\d+", found[1])
    return 2.0 * math.prod(hlo.dims(line.type)) * math.prod(shape[int(i)] for i in contracted)
  if line.opcode == "convolution":
    return _convolution(line, table)
  found = next((count for kernel, count in SPLASH.items() if line.name.startswith(kernel)), 0)
  if line.opcode != "custom-call" or not found:
    return 0.0
  shapes = [hlo.dims(table[operand].type) for operand in line.operands if operand in table]
  *_, heads, tokens, width = max((s for s in shapes if len(s) >= 3), key=math.prod)
  rows = math.prod(next(s for s in shapes if s[-3:] == (heads, tokens, width))[:-3])
  return found * rows * heads * tokens**2 * width


def _convolution(line: hlo.Instruction, table) -> float:
  """2 x the pairs of input and kernel elements that meet, padding not counted."""
  left, right = (hlo.dims(table[name].type) for name in line.operands[:2])
  inputs, kernel, output = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest).groups()
  out = hlo.dims(line.type)
  window = dict(_WINDOW.findall(hlo.field(line.rest, r"window=\{([^}]*)\}") or ""))
  part = lambda name, i, default: window[name].split("x")[i] if name in window else default
  total = 2.0 * out[output.index("b")] * out[output.index("f")] * right[kernel.index("i")]
  for i in range(len(inputs) - 2):
    many, taps, found = (
      shape[labels.index(str(i))]
      for shape, labels in ((left, inputs), (right, kernel), (out, output))
    )
    stride, apart, spread = (
      int(part(name, i, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    before = int(part("pad", i, "0_0").split("_")[0])
    places = np.arange(found)[:, None] * stride - before + np.arange(taps) * apart
    total *= np.sum((places >= 0) & (places <= (many - 1) * spread) & (places % spread == 0))
  return float(total) / int(hlo.field(line.rest, r"batch_group_count=(\d+)") or 1)


def sent(kind: str, line: hlo.Instruction, table) -> float:
  """Bytes that a device sends in a collective, of one array or several, by the ring algorithm."""
  given, result = (
    sum(hlo.bytes_of(table[x].type) for x in line.operands if x in table),
    hlo.bytes_of(line.type),
  )
  # whose result repeats the operands
  if line.opcode in ("all-gather-start", "collective-permute-start"):
    result -= given
  if kind == "collective-permute":
    return given
  count = group(line.rest)
  return max(given, result) * (2 if kind == "all-reduce" else 1) * (count - 1) / count


def group(rest: str) -> int:
  """Devices of a collective's group."""
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(found[2])
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^,]*\{([^}]*)\}", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]) if axis in sizes)
  return 1
