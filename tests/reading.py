"""How much of the package has to be read to understand one step of RL?

    python -m tests.reading             # V0.5 with a constant prior: no V0
    python -m tests.reading --config=grpo

Trains one step at small sizes and prints every module of which a step runs a function, from the
first prompt that is drawn until prior, budget and estimator have learnt: the lines of the module
that are not empty, the lines of the functions that ran, docstrings and comments among them, and
the characters of these without indentation, which no formatter changes.
"""

import argparse
import sys
import tempfile
import threading
from types import CodeType
from typing import NamedTuple

import v05_jax

PACKAGE = v05_jax.__path__[0]
SMALL = {
  "num_steps": 1,
  "rollouts_per_step": 64,
  "eval.period": 0,
  "checkpoint.period": 0,
  "sampler.slots": 32,
  "sampler.open_prompts": 16,
  "sampler.prefill": 16,
  "loss.micro_rows": 16,
}


class Module(NamedTuple):
  """What a step takes of a module, in lines that are not empty."""

  name: str
  lines: int
  ran: int  # of these, of functions that ran
  characters: int  # of the lines of functions that ran, without their indentation


def executed(train, config) -> set[CodeType]:
  """The package's functions that one step of `train` runs, in all threads."""
  found, recording = set(), [False]

  def watch(frame, event, _):
    code = frame.f_code
    if not code.co_filename.startswith(PACKAGE):
      return
    place = code.co_filename.removeprefix(PACKAGE), code.co_name
    if event == "call" and place == ("/sampling/draw.py", "draw"):
      recording[0] = True
    # Threads of sampling/ahead.py trace programs of the step, and may begin before it.
    ahead = threading.current_thread().name.startswith("compile")
    if event == "call" and (recording[0] or ahead):
      found.add(code)
    if event == "return" and place == ("/step.py", "learn"):
      recording[0] = False

  threading.setprofile(watch)
  sys.setprofile(watch)
  try:
    with tempfile.TemporaryDirectory() as folder:
      train(config, folder)
  finally:
    sys.setprofile(None)
    threading.setprofile(None)
  return found


def modules(codes: set[CodeType]) -> list[Module]:
  """The modules of these functions, the longest first."""
  table = []
  for path in {code.co_filename for code in codes}:
    with open(path) as file:
      size = {number: len(line.strip()) for number, line in enumerate(file, 1) if line.strip()}
    ran = set()
    for code in codes:
      if code.co_filename == path:
        ran |= set(range(code.co_firstlineno, last_line(code) + 1))
    name = path.removeprefix(PACKAGE + "/")
    ran &= size.keys()
    table.append(Module(name, len(size), len(ran), sum(size[number] for number in ran)))
  return sorted(table, key=lambda module: (-module.ran, module.name))


def last_line(code: CodeType) -> int:
  """The last line of a function, of the functions inside it too."""
  inner = [last_line(part) for part in code.co_consts if isinstance(part, CodeType)]
  return max([line for *_, line in code.co_lines() if line] + inner)


def main(name: str):
  from v05_jax import backend
  from v05_jax import config as configuration
  from v05_jax.train import train

  config = configuration.load(f"configs/{name}.py")
  config.update_from_flattened_dict(SMALL)
  if config.prior.kind == "v0":
    config.prior.kind, config.prior.wrappers = "constant", ()
  backend.start(config)
  table = modules(executed(train, config))
  total = Module(f"{len(table)} modules", *(sum(column) for column in list(zip(*table))[1:]))
  print(f"{'module':34} {'lines':>6} {'ran':>6} {'characters':>10}")
  for module in [*table, total]:
    print(f"{module.name:34} {module.lines:6} {module.ran:6} {module.characters:10}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", default="v05", help="a name in configs/; v05")
  main(parser.parse_args().config)
