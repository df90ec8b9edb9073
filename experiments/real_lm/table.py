"""table.md: what came out on held-out problems, with intervals over seeds and over problems."""

from pathlib import Path

import jax
import numpy as np

from experiments.real_lm import plan, results
from v05_jax.run import comparison, files, success

AGAINST = ("grpo16", "grpo4")
COLUMNS = (
  *("seeds", "rate", "start", "end", "gain", "pass@8 start", "pass@8 end", "truncated", "tokens"),
  *("entropy", "sampling and update, s", "rho", "prior MSE", "of a constant"),
)


def write(here: Path) -> str:
  """TABLE.md of the results in `here`."""
  records = [x for x in results.read(here) if x["seed"] != plan.TUNING_SEED]
  arenas = [arena for arena in plan.ARENAS if any(x["arena"] == arena for x in records)]
  text = "\n\n".join(
    section(arena, [x for x in records if x["arena"] == arena]) for arena in arenas
  )
  files.replace(here / "table.md", text + "\n")
  return text


def section(arena: str, records: list[dict]) -> str:
  """The tables of an arena."""
  runs = {}  # method -> seed -> result
  for record in records:
    runs.setdefault(record["method"], {})[record["seed"]] = record
  chosen = [method for method in plan.METHODS if method in runs]
  heading = f"## {arena}: {plan.HELDOUT[arena]} held-out problems, {plan.SAMPLES} samples each"
  return "\n\n".join([heading, overall(chosen, runs), paired(chosen, runs)])


def overall(chosen: list[str], runs: dict) -> str:
  """A row a method: means over its seeds."""
  lines = [f"| | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
  for method in chosen:
    cells = row(list(runs[method].values()))
    lines.append(f"| {plan.TITLES[method]} | {' | '.join(cells)} |")
  return "\n".join(lines)


def row(records: list[dict]) -> list[str]:
  """The cells of COLUMNS of a method's results."""
  mean = lambda pick: np.mean([pick(x) for x in records])
  at = lambda when, key: mean(lambda x: np.mean(x[when][key]))
  last = lambda key: means([x["last"][key] for x in records])
  rates = sorted({x["rate"] for x in records})
  return [
    str(len(records)),
    " / ".join(f"{x:g}" for x in rates),
    f"{at('before', 'mean'):.3f}",
    f"{at('after', 'mean'):.3f}",
    interval([gain(x) for x in records]),
    f"{at('before', 'pass'):.3f}",
    f"{at('after', 'pass'):.3f}",
    f"{at('after', 'truncated'):.3f}",
    f"{at('after', 'length'):.1f}",
    last("loss/entropy"),
    f"{mean(lambda x: sum(x['seconds'].values())):.0f}",
    last("noise/rho"),
    last("prior/mse"),
    last("prior/constant_mse"),
  ]


def means(found: list[float | None]) -> str:
  found = [x for x in found if x is not None]
  return f"{np.mean(found):.2f}" if found else ""


def paired(chosen: list[str], runs: dict) -> str:
  """Differences in success at the end between methods, on seeds that both have."""
  titles = [f"minus {plan.TITLES[x]}" for x in AGAINST if x in runs]
  lines = [
    "Success at the end, difference on the same seeds and problems: ± 95 % of Student's t over "
    "seeds; in brackets the 95 % bootstrap interval over problems, seeds as they are.",
    "",
    f"| | {' | '.join(titles)} |",
    "| --- |" + " --- |" * len(titles),
  ]
  for method in chosen:
    cells = [difference(runs[method], runs[x]) for x in AGAINST if x in runs]
    lines.append(f"| {plan.TITLES[method]} | {' | '.join(cells)} |")
  return "\n".join(lines)


def difference(one: dict, other: dict) -> str:
  """The mean difference over common seeds, with both intervals; "" where there is none."""
  seeds = sorted(set(one) & set(other))
  if not seeds or one is other:
    return ""
  success_of = lambda runs: np.array([runs[seed]["after"]["mean"] for seed in seeds])
  values = success_of(one) - success_of(other)  # [seeds, problems]
  low, high = success.interval(success.bootstrap(jax.random.key(0), values.mean(0)[:, None]))
  return f"{interval(values.mean(1))} [{low:+.3f}, {high:+.3f}]"


def gain(record: dict) -> float:
  return float(np.mean(record["after"]["mean"]) - np.mean(record["before"]["mean"]))


def interval(values) -> str:
  """Mean ± half of the 95 % interval by Student's t; the mean alone for one value."""
  found = comparison.interval(values)
  half = "" if found.pairs < 2 else f" ± {found.half:.3f}"
  return f"{found.mean:+.3f}{half}"
