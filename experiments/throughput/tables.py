"""Markdown tables from what run.py has measured."""

import statistics

from experiments.throughput import rows

LINES = {  # field -> head of its column
  "per_s": "a second",
  "useful_gflops": "GFLOP/s",
  "matmul_share": "of matmul",
  "copy_share": "of copy",
  "decode_steps": "decode steps",
  "utilisation": "slots in use",
  "utilisation_filled": "until the drain",
  "useful_over_computed": "useful / computed",
  "compilations": "compilations",
  "peak_rss_mb": "peak MB",
  "host_s": "main thread, s",
  "first_s": "first call, s",
  "med_s": "call, s",
  "start_s": "start to first, s",
  "others_cores": "other load, cores",
}
SHARES = ("matmul_share", "copy_share", "utilisation", "utilisation_filled", "useful_over_computed")


def everything(results: dict, wanted) -> str:
  """All tables; `wanted`: the rows of rows.py in their order, those not measured yet are left
  out."""
  measured = [row for row in wanted if row.name in results["rows"]]
  parts = [machine(results), bars(results, measured), contenders(results, measured)]
  if left_out := results.get("left_out"):
    parts.insert(1, left_out)
  return "\n\n".join(parts) + "\n"


def table(head, lines) -> str:
  return "\n".join(
    "| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *lines]
  )


def machine(results: dict) -> str:
  """The ceilings of the machine."""
  found = results["ceilings"]
  shapes = list(dict.fromkeys(name for ceiling in found for name in ceiling["matmul_gflops"]))
  lines = [
    [
      c["backend"],
      c["devices"],
      *(c["matmul_gflops"].get(name, "-") for name in shapes),
      c["copy_gbytes"],
    ]
    for c in found
  ]
  head = ["ceilings", "devices", *(f"matmul {name}, GFLOP/s" for name in shapes), "copy, GB/s"]
  return f"{results['machine']}; `{results['command']}`\n\n" + table(head, lines)


def figure(line: dict, field: str) -> float | None:
  """A field of one process's JSON line; "details.x" looks into its details."""
  for part in field.split("."):
    line = (line or {}).get(part)
  return line


def middle(lines: list[dict], field: str) -> float | None:
  """Median over the rounds; None where no round has the field."""
  found = [x for line in lines if (x := figure(line, field)) is not None]
  return statistics.median(found) if found else None


def measure(bar: rows.Bar, of: dict[str, list[dict]]) -> tuple[float | None, list[float]]:
  """The figure of a bar, by medians, and its value in each round. `of`: JSON lines of each
  contender, by rounds."""
  ours, peer = of.get(bar.of, []), of.get(bar.against, [])
  each = [figure(line, bar.field) for line in ours]
  value = middle(ours, bar.field)
  if bar.against:
    below = middle(peer, bar.field)
    value = value / below if value is not None and below else None
    each = [
      a / b for a, line in zip(each, peer) if a is not None and (b := figure(line, bar.field))
    ]
  return value, [x for x in each if x is not None] if value is not None else []


def met(bar: rows.Bar, value: float | None) -> str:
  if value is None:
    return "not measured"
  if bar.limit is None:
    return "-"
  return "yes" if (value <= bar.limit if bar.at_most else value >= bar.limit) else "**no**"


def bars(results: dict, measured) -> str:
  """What is asked for, what was found, and whether that is enough."""
  lines = []
  for row in measured:
    for bar in row.bars:
      value, each = measure(bar, results["rows"][row.name]["contenders"])
      unit = f"x {bar.against}" if bar.against else ""
      show = lambda x, bar=bar: number(x, 2 if bar.share else 1)
      limit = "-" if bar.limit is None else f"{'<=' if bar.at_most else '>='} {bar.limit:g}{unit}"
      spread = f"{show(min(each))} to {show(max(each))}" if each else "-"
      found = "-" if value is None else show(value) + unit
      lines.append([bar.work, limit, found, spread, met(bar, value)])
  return table(["work", "bar", "measured", "rounds", "met"], lines)


def contenders(results: dict, measured) -> str:
  """Every contender's own figures, medians over rounds."""
  lines = []
  for row in measured:
    for name, found in results["rows"][row.name]["contenders"].items():
      if not found:
        continue
      values = {field: middle(found, field) for field in LINES}
      texts = [number(x, 3 if field in SHARES else 1) for field, x in values.items()]
      lines.append(
        [row.name, name, found[0]["devices"], f"{texts[0]} {found[0]['unit']}", *texts[1:]]
      )
  return table(["row", "who", "devices", *LINES.values()], lines)


def number(x: float | None, digits: int) -> str:
  """Few digits: whole numbers as they are, small ones with more places."""
  if x is None:
    return "-"
  return f"{x:,.0f}" if x == round(x) or abs(x) >= 1000 else f"{x:,.{digits}f}"
