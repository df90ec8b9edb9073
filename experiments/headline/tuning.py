"""The rules by which rates, variants and the recipe are chosen, the same for every method, on the
tuning seeds' validation prompts alone."""

import json
from pathlib import Path
import re

import numpy as np

from experiments.headline.methods import METHODS, RECIPES, REGIMES, TOYS

RATES = (1.2e-3, 2.4e-3)  # learning rates that every method is tried at first
PASS_LOSS = 0.01  # of pass@64 that a recipe may lose to GRPO (16): what two seeds cannot tell apart
FILE = Path(__file__).parent / "rates.json"


def best(areas: dict[float, list[float]]) -> float:
  """The learning rate of the largest mean area."""
  return max(areas, key=lambda rate: np.mean(areas[rate]))


def rates_to_try(areas: dict[float, list[float]]) -> list[float]:
  """RATES at first, then the next one beyond an edge that is the best so far; [] where the best
  lies between others."""
  if not areas:
    return list(RATES)
  edges = {min(areas): min(areas) / 2, max(areas): max(areas) * 2}
  return [edges[best(areas)]] if best(areas) in edges else []


def choose(found: dict[str, dict[str, dict[float, list[tuple[float, float]]]]]) -> dict:
  """What rates.json holds, of toy -> method -> rate -> (area, pass@64) of each tuning seed.

  A method's rate is that of its largest mean area. Of a method and its variants the one with the
  largest mean area at its rate is reported beside the method itself. The recipe is the candidate of
  the largest mean area over both toys among those whose pass@64 at the end is in neither toy more
  than PASS_LOSS below GRPO (16)'s, or among all where there is none.
  """
  column = lambda runs, i: {rate: [x[i] for x in pairs] for rate, pairs in runs.items()}
  toys, at = {}, {}
  for toy, methods in found.items():
    areas = {name: column(runs, 0) for name, runs in methods.items()}
    rates = {name: best(x) for name, x in areas.items()}
    at[toy] = {name: np.mean(methods[name][rate], axis=0) for name, rate in rates.items()}
    toys[toy] = {
      "rates": rates,
      "variants": variants({name: x[0] for name, x in at[toy].items()}),
      "areas": {name: _by_rate(x) for name, x in areas.items()},
      "pass@64": {name: _by_rate(column(runs, 1)) for name, runs in methods.items()},
    }
  known = [name for name in RECIPES if all(name in means for means in at.values())]
  keeps = lambda name: all(x[name][1] > x["grpo16"][1] - PASS_LOSS for x in at.values())
  area = lambda name: np.mean([means[name][0] for means in at.values()])
  recipe = max([name for name in known if keeps(name)] or known, key=area)
  return {"recipe": recipe, "toys": toys}


def variants(areas: dict[str, float]) -> list[str]:
  """The best variant of every method that has one, where it is better than the method itself."""
  families = {method.variant_of for method in METHODS.values()} - {""}
  own = lambda family: [name for name in areas if family in (name, METHODS[name].variant_of)]
  found = {max(own(family), key=areas.get) for family in families if own(family)}
  return sorted(found - families)


def _by_rate(x: dict[float, list[float]]) -> dict[str, list[float]]:
  return {f"{rate:g}": [round(value, 4) for value in x[rate]] for rate in sorted(x)}


def save(chosen: dict, file: Path = FILE):
  """Writes rates.json, a list a line."""
  text = json.dumps(chosen, indent=1)
  file.write_text(re.sub(r"\[[^\[\]{}]*\]", lambda x: " ".join(x[0].split()), text) + "\n")


def load(file: Path = FILE) -> dict:
  """rates.json."""
  return json.loads(file.read_text())


def rates(known: dict, regime: str) -> dict[str, float]:
  """Method -> learning rate, of those that are run in the regime: no variant but the best.

  Raises ValueError, naming the method, where rates.json lacks the rate of one.
  """
  toy, found = known["toys"][REGIMES[regime].rates], {}
  for name, method in METHODS.items():
    wanted = not method.variant_of or (regime in TOYS and name in toy["variants"])
    if regime in method.regimes and wanted:
      source = method.rate_of or name
      if source not in toy["rates"]:
        raise ValueError(f"rates.json: no rate of {source} in {regime}: run --only=tune first")
      found[name] = toy["rates"][source]
  return found
