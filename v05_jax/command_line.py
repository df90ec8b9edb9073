"""Flags: a mode as the first word, `--config=NAME` and `--config.KEY=VALUE`, with answers that a
person can act on.

`parse` is the flags parser of `main`; it prints one line a problem and exits with code 2.
"""

import ast
import itertools
import re
import sys

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from v05_jax import config as configuration
from v05_jax import plug
from v05_jax.configs import default
from v05_jax.names import ELSEWHERE, alike, meant, nearest, show, suggestion
from v05_jax.run import files

MOST = 12  # problems listed at most of a file that is not a config of this version
READING = ("eval", "sample", "noise", "export")  # modes that look at a run
NAMES = re.compile(r"[\w.:]+(\s*,\s*[\w.:]+)*,?")  # with commas between


class _Section(flags.ArgumentParser):
  """A whole section of keys, as "{'k_init': 4}"."""

  def parse(self, argument):
    found = ast.literal_eval(argument)
    if not isinstance(found, dict):
      raise ValueError(argument)
    return found


# Type of a key -> what reads its values; texts are taken as they are.
_PARSERS = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  bool: flags.BooleanParser(),
  tuple: tuple_parser.TupleParser(),
}
_EXPECTED = {
  flags.IntegerParser: "a whole number",
  flags.FloatParser: "a finite number",
  flags.BooleanParser: "true or false",
  tuple_parser.TupleParser: "names with commas between, as a,b",
  _Section: "one of its keys with a value, as --config.budget.k_init=4",
}


def parse(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """Flags parser for `absl.app.run(main, flags_parser=config.parse)`; it defines the flag `config`.

  A first word without dashes is the mode: `train` is `--mode=train`. `--config=NAME` names a config
  of the package, or a file, .py or a saved .json; without it, the config.json in
  `--workdir` is taken, so that a run continues by naming its workdir, and without that
  configs/default.py. Every `--config.KEY=VALUE` changes a key. Problems go to stderr, a line each,
  and the exit code is 2.
  """
  try:
    return _parse(list(argv), flag_values)
  except ValueError as e:
    for line in str(e).splitlines():
      print(f"error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
    sys.exit(2)


def _parse(argv, flag_values):
  argv = flag_values.read_flags_from_files(argv, force_gnu=False)  # --flagfile
  argv = with_mode(argv, flag_values)
  path, argv = _take(argv, "config")
  if path is None:
    path = _saved(_take(argv, "workdir")[0])
  config = default.get_config() if path is None else configuration.load(path)
  problems = configuration.structure(configuration.add_options(config))
  if problems:
    left = [f"and {len(problems) - MOST} more"] if len(problems) > MOST else []
    said = [f"{path}: not a config of this version", *problems[:MOST], *left]
    raise ValueError("\n  ".join(said))
  typed = default.get_config()  # a file may hold 1 where a key takes 0.5
  plug.fill(typed, _options(config, argv))
  typed.update_from_flattened_dict(configuration.flatten(config))
  argv = _with_tuples(argv, typed)
  _check_names(argv, typed, flag_values)
  _check_values(argv, typed, flag_values)
  others = _take_methods(argv, typed)
  config_flags.DEFINE_config_dict(
    "config", typed, "config file, .py or .json", flag_values=flag_values, sys_argv=others
  )
  try:
    rest = flag_values(others)
  except (flags.Error, TypeError, KeyError, AttributeError) as e:  # the last are config_flags'
    raise ValueError(configuration.one_line(e)) from e
  if len(rest) > 1:
    named = [f"--config={rest[1]}"] if rest[1] in configuration.shipped() else []
    meant = suggestion(named) or ","
    if "mode" in flag_values and rest[1] in flag_values["mode"].parser.enum_values:
      meant = f", did you mean --mode={rest[1]}? the mode as a word stands first;"
    name, given, _ = rest[1].partition("=")
    near = _meant(name.removeprefix("config."), typed, flag_values) if given else ""
    expected = f"expected flags alone: --name=value{near}"
    raise ValueError(f"found the argument {rest[1]!r}{meant} {expected}")
  _check_options(config, flag_values.config, argv)
  if path is None and _take(argv, "config.policy.path")[0] is None:
    _check_run(flag_values)
  configuration.validate(flag_values.config)
  return rest


def value_of(argv: list[str], name: str, flag_values: flags.FlagValues = flags.FLAGS) -> str | None:
  """The last value that the arguments give a flag; None without."""
  return _take(flag_values.read_flags_from_files(list(argv), force_gnu=False), name)[0]


def _check_run(flag_values):
  """Raises ValueError in a mode that reads a run where the workdir holds none and no flag names a
  config or a model."""
  if "mode" not in flag_values or flag_values.mode not in READING or not flag_values.workdir:
    return
  near = alike(flag_values.workdir, "*/config.json")
  raise ValueError(
    f"--workdir={flag_values.workdir}: found no run there (no config.json){near or ','} expected "
    "the folder of one; of a model without a run, --config=NAME or --config.policy.path=MODEL says "
    "what it is"
  )


def with_mode(argv: list[str], flag_values: flags.FlagValues) -> list[str]:
  """The arguments with a first word as the mode that it names. Raises ValueError for a word that is
  none, with the modes and the nearest."""
  word = argv[1] if len(argv) > 1 else "-"
  if word.startswith("-") or "=" in word:
    return argv
  modes = flag_values["mode"].parser.enum_values
  if word not in modes:
    near = meant(word.lower(), modes)
    if word in configuration.shipped():
      near = suggestion([f"train --config={word}"])
    raise ValueError(f"found the word {word!r}{near or ','} expected one of {', '.join(modes)}")
  other, rest = _take(argv[:1] + argv[2:], "mode")
  if other not in (None, word):
    raise ValueError(f"--mode={other}: found beside the word {word}, expected one of the two")
  return [*rest[:1], f"--mode={word}", *rest[1:]]


def _saved(workdir: str | None) -> str | None:
  """The config.json of the run in a workdir; None where there is none."""
  if not workdir or not workdir.strip():
    return None
  try:
    path = files.place(workdir) / "config.json"
    return str(path) if path.exists() else None
  except (ValueError, OSError, ImportError) as error:  # the last: no library for that store
    raise ValueError(f"--workdir={workdir}: cannot be opened: {error}") from None


def _options(config, argv) -> dict[str, plug.Option]:
  """The options of all plugs that the file or a flag names, a user's own among them."""
  named = config.copy_and_resolve_references()
  for kind in plug.KINDS.values():
    text, _ = _take(argv, f"config.{kind.key}")
    if text is None:
      continue
    section, _, last = kind.key.rpartition(".")
    node = named[section] if section else named
    several = isinstance(node[last], tuple)
    node[last] = tuple(re.findall(r"[\w.:]+", text)) if several else text
  return plug.options(tuple(plug.chosen(config))) | plug.options(tuple(plug.chosen(named)))


def _check_options(file, config, argv):
  """Raises ValueError for an option on the command line of a plug that is not in use. Those that
  the file has for a plug which a flag has replaced are taken back to their defaults."""
  typed = [match[1] for word in argv if (match := re.match(r"--?config\.([\w.]+)", word))]
  if problems := plug.unused(config, typed):
    raise ValueError("\n  ".join(problems))
  before, after = plug.owners(file), plug.owners(config)
  for key, option in plug.options(tuple(plug.chosen(file))).items():
    owned = lambda owners, key=key: any(key.startswith(prefix) for prefix in owners)
    if owned(before) and not owned(after):
      config.update_from_flattened_dict({key: option.default})


def _take(argv: list[str], name: str) -> tuple[str | None, list[str]]:
  """The last value of a flag, and the arguments without it."""
  value, rest, words = None, argv[:1], iter(argv[1:])
  for word in words:
    if word == "--":
      rest += [word, *words]
    elif match := re.fullmatch(rf"--?{name}=(.*)", word, re.DOTALL):
      value = match[1]
    elif re.fullmatch(rf"--?{name}", word):
      value = next(words, None)
      if value is None:
        raise ValueError(f"--{name}: found no value, expected --{name}=...")
    else:
      rest.append(word)
  return value, rest


def _check_values(argv, config, flag_values):
  """Every value is of the type of its flag or key, before absl and config_flags fail in their own
  words."""
  keys = configuration.flatten(config)
  words = list(itertools.takewhile(lambda word: word != "--", argv[1:]))
  for word, after in itertools.zip_longest(words, words[1:]):
    match = re.fullmatch(r"--?([\w.]+)(?:=(.*))?", word, re.DOTALL)
    if match is None or (match[1] not in flag_values and not match[1].startswith("config.")):
      continue
    name, text = match.groups()
    key = name.removeprefix("config.")
    parser = _PARSERS.get(type(keys[key])) if key in keys else _Section()
    parser = flag_values[name].parser if name in flag_values else parser
    text = after if text is None and not isinstance(parser, flags.BooleanParser) else text
    if text is None or parser is None:
      continue
    try:
      parser.parse(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
      choices = tuple(getattr(parser, "enum_values", None) or ())
      near = meant(text, choices)
      expected = _EXPECTED.get(type(parser)) or f"one of {', '.join(choices)}"
      found = f"found {show(text)}"
      raise ValueError(f"--{name}={text}: {found}{near or ','} expected {expected}") from None


def _with_tuples(argv, config) -> list[str]:
  """The arguments with the names of `--config.observe=exact,noise` as the tuple that config_flags
  reads."""
  several = {k for k, value in configuration.flatten(config).items() if isinstance(value, tuple)}
  found, name = argv[:1], ""
  for word in argv[1:]:
    head, equals, text = word.partition("=") if word.startswith("-") else (name, "", word)
    key = re.sub(r"--?config\.", "", head)
    if key != head and key in several - {"reward"} and NAMES.fullmatch(text):
      word = f"{head}=" * bool(equals) + str(tuple(re.findall(r"[\w.:]+", text)))
    found.append(word)
    name = word
  return found


def _take_methods(argv, config) -> list[str]:
  """Sets the keys that are named like a method of ConfigDict, as estimators.ewa.update, on which
  config_flags fails; all of them are texts -> the other arguments."""
  for key, value in configuration.flatten(config).items():
    if hasattr(type(config), key.rpartition(".")[2]) and isinstance(value, str):
      text, argv = _take(argv, f"config.{key}")
      if text is not None:
        config.update_from_flattened_dict({key: text})
  return argv


def _check_names(argv, config, flag_values):
  """Every flag is known, config keys too, before absl and config_flags fail in their own words."""
  keys = list(configuration.flatten(config))
  sections = {key.rsplit(".", 1)[0] for key in keys if "." in key}
  for word in argv[1:]:
    if word == "--":
      break
    match = re.match(r"--?([^=\s]+)", word)
    if not word.startswith("-") or match is None or re.fullmatch(r"-[\d.].*", word):
      continue  # a value, perhaps a negative number, of the flag before it
    name = match[1]
    if re.match(r"(no)?config\.", name):
      key = name.split(".", 1)[1]
      if key not in keys and key not in sections:
        near = _not_in_use(key, sections) or meant(key, [*keys, *sections], "--config.")
        raise ValueError(f"--{name}: found an unknown config key{near}")
    elif name not in flag_values and name.removeprefix("no") not in flag_values:
      raise ValueError(f"--{name}: found an unknown flag{_meant(name, config, flag_values)}")


def _not_in_use(key: str, sections) -> str:
  """What to say of a key that looks like an option of a user's plug which is not in use; "" for
  another."""
  folder, _, rest = key.partition(".")
  kinds = [kind.key for kind in plug.KINDS.values() if kind.folder == folder]
  label = rest.partition(".")[0]
  known = [name.partition(".")[2] for name in sections if name.startswith(f"{folder}.")]
  if not kinds or "." not in rest or nearest(label, known, 0.75):
    return ""
  where = " or ".join(f"--config.{name}=MODULE:{label}" for name in kinds)
  return f": {label} is not in use, expected {where} beside it"


def _meant(name: str, config, flag_values) -> str:
  """A suggestion to append for a flag that is none: the nearest flag, or the config key that is
  nearer, by its last part or by what it is called elsewhere."""
  keys = list(configuration.flatten(config))
  if name in keys:
    return suggestion([f"--config.{name}"])
  words = [key.rpartition(".")[2] for key in keys]
  words += " ".join(ELSEWHERE.values()).split()
  flagged = list(flag_values)
  near = nearest(name.rpartition(".")[2], [*flagged, *words])
  if near and near[0] not in flagged:
    return meant(name, keys, "--config.")
  return meant(name, flagged, "--")
