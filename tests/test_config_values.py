"""Every key of the config with every kind of wrong value, by the rules and through the flags: each
is refused in words of ours that name the key, or taken because it is right."""

import math

from absl import flags
from ml_collections import ConfigDict
import pytest

from v05_jax import command_line
from v05_jax import config as configuration
from v05_jax.configs import default

# What a key of a type is given in a saved config.json; a value that is right there must be taken.
VALUES = (
  None,
  True,
  "",
  " ",
  "nonsense",
  "module:",
  "\x00",
  -1,
  0,
  1,
  -(10**30),
  10**30,
  0.5,
  -0.5,
  1e308,
  math.nan,
  math.inf,
  -math.inf,
  (),
  ("nonsense",),
  ((),),
  {},
  {"x": 1},
  [1],
)
# What is typed on the command line.
TYPED = (
  "",
  "x",
  "-1",
  "1e999",
  "nan",
  "inf",
  "0.5",
  "10**9",
  "None",
  "()",
  "('a','a')",
  "[1",
  "{}",
)
KEYS = sorted(configuration.flatten(default.get_config()))


def with_value(key, value) -> ConfigDict:
  tree = configuration.to_dict(default.get_config())
  *sections, last = key.split(".")
  node = tree
  for section in sections:
    node = node[section]
  node[last] = value
  return ConfigDict(tree)


def complaint(key, value) -> str:
  """What is said of a value, "" if it is taken."""
  try:
    configuration.validate(with_value(key, value))
  except ValueError as error:
    return str(error)
  return ""


LONG = pytest.mark.long
PARTS = [0, *(pytest.param(part, marks=LONG) for part in range(1, 6))]


@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_value_of_every_key_is_taken_or_named(part):
  """A sixth of the keys in `make test`, the others in `make test-long`."""
  keys, refused = KEYS[part::6], 0
  for key in keys:
    said = {repr(value): complaint(key, value) for value in VALUES}
    refused += sum(map(bool, said.values()))
    for value, text in said.items():
      named = key in text and ("found" in text or "missing" in text)
      assert not text or named, (key, value, text)
    # of these values none is right for any key
    for value in (None, math.nan, math.inf, -math.inf, {"x": 1}, ((),)):
      assert said[repr(value)], (key, value)
  assert refused > 0.7 * len(keys) * len(VALUES)


def typed(key, value) -> tuple[int | None, str]:
  """(exit code, what was printed) of a flag; (None, "") if it is taken."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  try:
    command_line._parse(["main", f"--config.{key}={value}"], values)
  except ValueError as error:
    return 2, str(error)
  return None, ""


@pytest.mark.parametrize("part", PARTS)
def test_what_is_typed_for_a_key_is_taken_or_named(part):
  """As above, but half as many keys in `make test`."""
  for key in KEYS[part :: 6 if part else 12]:
    for value in TYPED:
      code, text = typed(key, value)
      assert (code is None) == (not text)
      assert not text or key in text, (key, value, text)


def test_there_are_as_many_values_as_the_docs_say():
  assert len(KEYS) * len(VALUES) > 3000 and len(KEYS) * len(TYPED) > 1600  # docs/runs.md
