"""Model families: a file of this folder each, found by its name, or a function of the user's."""

import dataclasses
import difflib
import importlib
import pkgutil

from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families.base import Family

# Fields of ModelConfig that say how a model is computed here and not which model it is.
COMPUTED = "dtype remat attention backend adapters family max_positions unused_ids".split()


def known() -> list[str]:
  """The families of this folder."""
  return sorted(file.name for file in pkgutil.iter_modules(__path__) if file.name != "base")


def find(name: str) -> Family:
  """The family of a name of this folder, or of `module:function`, whose function returns one.

  Raises ValueError, naming config.policy.family, where there is none.
  """
  module, _, function = name.partition(":")
  if not function:
    if name not in known():
      near = difflib.get_close_matches(name, known(), 1)
      raise ValueError(
        f"config.policy.family: found {name!r}, expected one of {', '.join(known())}"
        f"{f' (did you mean {near[0]}?)' if near else ''}, or module:function for a family of "
        'your own, or "" for what config.json says'
      )
    module, function = f"{__name__}.{name}", "family"
  try:
    family = getattr(importlib.import_module(module), function)()
  except Exception as error:
    raise ValueError(
      f"config.policy.family: {name!r} could not be called: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(family, Family):
    raise ValueError(
      f"config.policy.family: {name!r} returned {type(family).__name__}, expected a Family of "
      "v05_jax/models/families/base.py"
    )
  return family


def choose(found: dict, where) -> str:
  """The family that a config.json says, by its "architectures"; `where` is its path. Raises
  ValueError for an architecture that no family of this folder knows."""
  architectures = found.get("architectures") or []
  supported = {name: find(name).architectures for name in known()}
  for name, of_family in supported.items():
    if set(architectures) & set(of_family):
      return name
  raise ValueError(
    f"{where}: architectures: found {architectures} (model_type {found.get('model_type')!r}), "
    f"supported: {', '.join(sum(supported.values(), ()))}; for a family of your own set "
    "config.policy.family to its module:function"
  )


def check(config: ModelConfig) -> None:
  """Raises ValueError for a shape that its family's config.json cannot say: what is exported would
  be another model."""
  family = find(config.family)
  found = family.read(family.write(config), "config.json")
  for field in dataclasses.fields(config):
    meant, said = getattr(config, field.name), getattr(found, field.name)
    if field.name not in COMPUTED and meant != said:
      raise ValueError(
        f"config.policy.family: {config.family!r} has {field.name} = {said!r}, found a model with "
        f"{meant!r}: an export would not be this model"
      )
