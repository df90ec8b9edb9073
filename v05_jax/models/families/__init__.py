"""Model families: a file of this folder each, found by its name, or a function of the user's."""

import dataclasses
import pkgutil

from v05_jax import names
from v05_jax.models.decoder import ModelConfig
from v05_jax.models.families.base import Family

KEY = "config.policy.family"
# Fields of ModelConfig that say how a model is computed here and not which model it is.
COMPUTED = "dtype remat attention backend adapters family max_positions unused_ids".split()


def known() -> list[str]:
  """The families of this folder."""
  return sorted(file.name for file in pkgutil.iter_modules(__path__) if file.name != "base")


def find(name: str) -> Family:
  """The family of a name of this folder, or of `module:function`, whose function returns one.

  Raises ValueError, naming config.policy.family, where there is none, or its function fails.
  """
  own = name not in known()
  function = names.own(KEY, name, known()) if own else names.resolve(f"{__name__}.{name}:family")
  try:
    family = function()
  except Exception as error:
    raise ValueError(f"{KEY}: {name!r} could not be called: {names.describe(error)}") from error
  if not isinstance(family, Family):
    raise ValueError(
      f"{KEY}: {name!r} returned {type(family).__name__}, expected a Family of "
      "v05_jax/models/families/base.py"
    )
  return family


def choose(found: dict, where) -> str:
  """The family that a config.json says, by its "architectures"; `where` is its path. Raises
  ValueError for an architecture that no family of this folder knows."""
  architectures = found.get("architectures") or []
  if not isinstance(architectures, list) or not all(isinstance(x, str) for x in architectures):
    raise ValueError(f"{where}: architectures: found {architectures!r}, expected a list of names")
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
        f"{KEY}: {config.family!r} has {field.name} = {said!r}, found a model with "
        f"{meant!r}: an export would not be this model"
      )
