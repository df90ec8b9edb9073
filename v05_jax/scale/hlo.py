"""What a compiled program costs a device, read from the text of its optimised HLO, every loop times
its trips.

XLA's own `cost_analysis` counts the body of a loop once. Bytes are counted as it counts them:
operands and results of every instruction that is not fused into another, of slices only what is
taken or written; on a TPU without what stays in on-chip memory.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id iota "
  "opt-barrier while call "
  "conditional async-start async-update async-done copy-done slice-done".split()
)
# Products [T, Dh] x [Dh, T] of a head, half of each masked, in the kernels of splash attention.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


class Instruction(NamedTuple):
  """One line: `%name = type opcode(operands), rest`."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  argument: str  # the text between the brackets
  rest: str
  root: bool


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
  """A parsed module. `cost(trips)` is that of its entry; `trips`: of loops whose number is known at
  run time only."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    for name, is_entry, lines in _computations(text):
      self.computations[name] = {line.name: line for line in lines}
      self.entry = name if is_entry else self.entry

  def cost(self, trips: int = 1, once: bool = False) -> Cost:
    """once: every loop's body is counted once, as in XLA's `cost_analysis`."""

    @functools.cache
    def of(computation: str) -> Cost:
      return sum(
        (one(computation, line) for line in self.computations[computation].values()), Cost()
      )

    def one(computation: str, line: Instruction) -> Cost:
      table = self.computations[computation]
      called = self.called(line)
      found = Cost(cycles=float(_field(line.rest, r'"estimated_cycles":"(\d+)"') or 0))
      if line.opcode == "while":
        times = 1 if once else self.trips(line) or trips
        return found + of(_field(line.rest, r"body=%?([\w.\-]+)")) * times
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

  def unfused(self) -> list[dict[str, Instruction]]:
    """The computations whose results lie in memory: those that no fusion calls."""
    lines = (
      line
      for table in self.computations.values()
      for line in table.values()
      if line.opcode == "fusion"
    )
    inside = {name for line in lines for name in self.called(line)}
    return [table for name, table in self.computations.items() if name not in inside]

  def called(self, line: Instruction) -> list[str]:
    """The computations that an instruction calls, but for those that reduce or compare numbers."""
    if line.opcode == "conditional":
      names = _field(line.rest, r"branch_computations=\{([^}]*)\}")
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

  def trips(self, line: Instruction) -> int | None:
    """Of a loop: what the compiler says, or how often its counter, from 0 on, stays below the one
    whole number in its condition; None where neither is known."""
    if known := _field(line.rest, r'known_trip_count":\{"n":"(\d+)"'):
      return int(known)
    condition = self.computations[_field(line.rest, r"condition=%?([\w.\-]+)")].values()
    numbers = [
      x.argument for x in condition if x.opcode == "constant" and re.match(r"[su]32\[\]", x.type)
    ]
    if len(numbers) != 1:
      return None
    body = self.computations[_field(line.rest, r"body=%?([\w.\-]+)")]
    after = next(x for x in body.values() if x.root).operands  # of an iteration
    step = 1
    for counter in (
      x for x in condition if x.opcode == "get-tuple-element" and re.match(r"[su]32\[\]", x.type)
    ):
      change = body[after[int(_field(counter.rest, r"index=(\d+)"))]]
      if change.opcode == "add" and body[change.operands[1]].opcode == "constant":
        step = int(body[change.operands[1]].argument)
    return math.ceil(int(numbers[0]) / step)

  def traffic(self, line: Instruction, table) -> float:
    """Bytes that one instruction reads from and writes to memory."""
    if line.opcode in FREE or line.opcode.endswith("-done"):
      return 0.0
    if line.opcode == "fusion" and (called := self.called(line)):
      inner = self.computations[called[0]]
      pairs = zip(_parameters(inner), line.operands, strict=True)
      read = sum(self.read(inner, place, table[name]) for place, name in pairs)
      return read + self.written(inner, line)
    if line.opcode in ("dynamic-slice", "gather", "slice"):
      return 2 * size(line.type)
    if line.opcode == "dynamic-update-slice":
      return 2 * size(table[line.operands[1]].type)
    if line.opcode in ("copy-start", "slice-start"):
      source, moved = _arrays(line.type)[:2]
      return sum(_plain(moved) for x in (source, moved) if size(x))
    return size(line.type) + sum(size(table[name].type) for name in line.operands if name in table)

  def read(self, table, parameter: Instruction, given: Instruction) -> float:
    """Bytes that a fused computation reads of a parameter: of slices alone what is taken."""
    whole = size(given.type)
    total = 0.0
    for line in table.values():
      if parameter.name not in line.operands:
        continue
      first = line.operands[0] == parameter.name
      if first and line.opcode in ("dynamic-slice", "gather", "slice"):
        total += _plain(line.type)
      elif line.opcode == "bitcast" and not line.root:
        total += self.read(table, line, given)
      elif line.opcode == "fusion" and (called := self.called(line)):
        inner = self.computations[called[0]]
        total += self.read(inner, _parameters(inner)[line.operands.index(parameter.name)], given)
      elif not (first and line.opcode == "dynamic-update-slice"):  # which writes in place
        total += whole
    return min(total, whole)

  def written(self, table, fusion: Instruction) -> float:
    """Bytes that a fusion writes: of an array that is updated in place what is new."""
    root = next(line for line in table.values() if line.root)
    while root.opcode == "bitcast":
      root = table[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
      return min(_plain(table[root.operands[1]].type), size(fusion.type))
    return size(fusion.type)


def flops(line: Instruction, table) -> float:
  """Of a product (on a GPU a call of cuBLAS), a convolution (as which a TPU computes products) or a
  kernel of splash attention; others count 0."""
  if line.opcode == "dot" or "__cublas" in line.rest:
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', line.rest)
    shape, contracted = dims(table[line.operands[0]].type), re.findall(r"\d+", found[1])
    return 2.0 * math.prod(dims(line.type)) * math.prod(shape[int(i)] for i in contracted)
  if line.opcode == "convolution":
    return _convolution(line, table)
  found = next((count for kernel, count in SPLASH.items() if line.name.startswith(kernel)), 0)
  if line.opcode != "custom-call" or not found:
    return 0.0
  shapes = [dims(table[operand].type) for operand in line.operands if operand in table]
  *_, heads, tokens, width = max((s for s in shapes if len(s) >= 3), key=math.prod)
  rows = math.prod(next(s for s in shapes if s[-3:] == (heads, tokens, width))[:-3])
  return found * rows * heads * tokens**2 * width


def _convolution(line: Instruction, table) -> float:
  """2 x the pairs of input and kernel elements that meet, padding not counted."""
  left, right = (dims(table[name].type) for name in line.operands[:2])
  inputs, kernel, output = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest).groups()
  out = dims(line.type)
  window = dict(_WINDOW.findall(_field(line.rest, r"window=\{([^}]*)\}") or ""))
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
  return float(total) / int(_field(line.rest, r"batch_group_count=(\d+)") or 1)


def sent(kind: str, line: Instruction, table) -> float:
  """Bytes that a device sends in a collective, of one array or several, by the ring algorithm."""
  given, result = sum(_plain(table[x].type) for x in line.operands if x in table), _plain(line.type)
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


def dims(text: str) -> tuple[int, ...]:
  """The shape of an array's type."""
  return tuple(int(n) for n in _ARRAY.search(text)[2].split(",") if n)


def size(text: str) -> float:
  """Bytes of a type, tuples added up, without what lies in on-chip memory (a TPU's space 1 and
  above)."""
  return sum(_plain(x) for x in _arrays(text) if not re.search(r"S\([1-9]\d*\)", x))


def _plain(text: str) -> float:
  """Bytes of a type, tuples added up, wherever it lies."""
  return float(
    sum(
      math.prod(int(n) for n in shape.split(",") if n)
      * BITS.get(kind, int(_field(kind, r"(\d+)") or 8))
      / 8
      for kind, shape, _ in _ARRAY.findall(text)
      if kind != "token"
    )
  )


def _parameters(table) -> list[Instruction]:
  """Of a computation, in order."""
  return sorted(
    (line for line in table.values() if line.opcode == "parameter"),
    key=lambda line: int(line.argument),
  )


def _arrays(text: str) -> list[str]:
  return [found[0] for found in _ARRAY.finditer(text)]


def _field(text: str, pattern: str) -> str:
  found = re.search(pattern, text)
  return found[1] if found else ""


def _computations(text: str) -> Iterator[tuple[str, bool, list[Instruction]]]:
  """(name, whether it is the entry, its instructions) of each computation."""
  head, lines = None, []
  for line in text.splitlines():
    if head is None:
      if (found := _HEAD.match(line)) and not line.startswith("HloModule"):
        head, lines = found, []
    elif line.rstrip() == "}":
      yield head[2], bool(head[1]), lines
      head = None
    elif found := _LINE.match(line):
      lines.append(_instruction(found, line[found.end() :]))


def _instruction(found, text: str) -> Instruction:
  text = re.sub(r"/\*index=\d+\*/", "", text)
  end = _closed(text, 0) if text.startswith("(") else text.index(" ")
  kind, text = text[:end], text[end:].lstrip()
  opening = text.index("(")
  end = _closed(text, opening)
  argument = text[opening + 1 : end - 1]
  operands = tuple(re.findall(r"%([\w.\-]+)", argument))
  return Instruction(found[2], kind, text[:opening], operands, argument, text[end:], bool(found[1]))


def _closed(text: str, start: int) -> int:
  """Behind the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if not depth:
      return i + 1
  raise ValueError(f"HLO: found no end of the bracket in {text[start : start + 80]!r}")
