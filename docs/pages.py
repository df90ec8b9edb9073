"""What the documentation takes from the code: config keys, metrics, tasks, the worked example.

    python -m docs.pages     writes these parts anew, between their marks in docs/*.md

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; `tests/test_docs.py` fails
where one of them is not what the code gives.
"""

import ast
from collections.abc import Callable, Iterator
import io
from pathlib import Path
import re
import tokenize

from ml_collections import ConfigDict
import numpy as np

from v05_jax import budget, plug, shrinkage, tasks
from v05_jax.configs import default
from v05_jax.run import metrics

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SEED = 7  # of the tasks' examples
# Modules that other programs call, and those that a reader of the method wants, in that order.
MODULES = (
  "shrinkage budget train config setup structs groups step estimators.base budgets.base"
  " priors.base observers.base sinks.base plug names rewards rewards.adapters"
  " rewards.llm_judge integrations.verl integrations.trl data benchmarks problems tasks.families"
  " models.encoding models.hf models.hub models.model_config models.tokenizer sampling.rollouts"
  " sampling.sampler update.losses update.policy_gradient update.packing"
  " value_model.v0 value_model.convert run.checkpoint run.metrics run.evaluate run.report"
  " run.export scale.fit scale.sharding scale.distributed"
).split()


def table(head: tuple[str, ...], rows) -> str:
  """A Markdown table; bars inside of cells are escaped."""
  line = lambda cells: "| " + " | ".join(str(x).replace("|", "\\|") for x in cells) + " |"
  return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


# --- config keys


def comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """(line -> comment beside code, line -> comment that is a line of its own)."""
  beside, alone = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      where = beside if token.line[: token.start[1]].strip() else alone
      where[token.start[0]] = token.string.lstrip("# ").rstrip()
  return beside, alone


def meanings(source: str) -> dict[str, str]:
  """Key or section of a config file -> what the comments above and beside it say."""
  beside, alone = comments(source)
  sections, found = {"c": ""}, {}
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
      continue
    target = node.targets[0]
    if getattr(target.value, "id", None) not in sections:
      continue
    key = f"{sections[target.value.id]}.{target.attr}".lstrip(".")
    for name in node.targets[1:]:
      sections[name.id] = key
    first = node.lineno
    while first - 1 in alone:
      first -= 1
    above = " ".join(alone[line] for line in range(first, node.lineno))
    text = beside.get(node.end_lineno, "")
    joint = " " if above.endswith((".", ":")) else "; "
    found[key] = joint.join(x for x in (above, text) if x)
  return found


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
  """(key, value) of a config, in its order."""
  for name in config:
    value = config[name]
    if isinstance(value, ConfigDict):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def keys() -> str:
  """Every key of configs/default.py, a table for each section."""
  said = meanings((ROOT / "configs" / "default.py").read_text())
  options = plug.options()
  values = dict(leaves(default.get_config()))
  sections: dict[str, list] = {}
  for key in said:  # in the file's order
    if key in values:
      row = (f"`{key}`", f"`{values.pop(key)!r}`", said[key])
      sections.setdefault(key.rpartition(".")[0], []).append(row)
  if missed := values.keys() - options.keys():
    raise ValueError(f"configs/default.py: no assignment was found of {', '.join(sorted(missed))}")
  parts = []
  for section, rows in sections.items():
    note = f"{said[section]}\n\n" if said.get(section) else ""
    parts.append(
      f"### {section or 'The run'}\n\n{note}{table(('key', 'default', 'meaning'), rows)}"
    )
  return "\n\n".join(parts)


def options() -> str:
  """Every option of the package's plugs, a table for each kind's folder."""
  folders: dict[str, list] = {}
  for key, option in plug.options().items():
    expected = "" if option.expected == "anything" else option.expected
    row = (f"`{key}`", f"`{option.default!r}`", option.meaning, expected)
    folders.setdefault(key.partition(".")[0], []).append(row)
  head = ("option", "default", "meaning", "what it may be")
  return "\n\n".join(f"### {folder}\n\n{table(head, rows)}" for folder, rows in folders.items())


# --- metrics, tasks, modules


def metric_names() -> str:
  """Every documented metric; plugs document their own when they are imported."""
  plug.options()
  return table(("metric", "meaning"), ((f"`{x}`", text) for x, text in metrics.METRICS.items()))


def examples() -> str:
  """A prompt of each family and level, with its answer and what the demonstrator's wrong method
  gives."""
  count = len(tasks.FAMILIES) * tasks.LEVELS
  rows = tasks.rows("train", count, SEED)
  found = []
  for row in sorted(rows, key=lambda row: list(tasks.FAMILIES).index(row["family"])):
    family = tasks.FAMILIES[row["family"]]
    right, wrong = family.right(row["prompt"]), family.sloppy(row["prompt"])
    verdicts = [f"`{x}` ({tasks.verify(row['prompt'], x, row):g})" for x in (right, wrong)]
    sloppy = f"{tasks.sloppy_probability(row):.2f}"
    found.append((row["family"], row["level"], f"`{row['prompt']}`", *verdicts, sloppy))
  head = ("family", "level", "prompt", "right (reward)", "wrong method (reward)", "sloppy")
  return table(head, found)


def modules() -> str:
  """The public modules, with the first sentence of their docstrings."""
  rows = []
  for name in MODULES:
    path = ROOT / "v05_jax" / (name.replace(".", "/") + ".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    text = " ".join(ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].split())
    sentence = text.partition(". ")[0].rstrip(".:")
    rows.append((f"[`{name}`](../{path.relative_to(ROOT).as_posix()})", sentence))
  return table(("module of `v05_jax`", "what it is"), rows)


# --- the worked example


def example() -> str:
  """Four rollouts of one prompt, step by step, once for a prior that they contradict and once for
  one that they do not; every number is what `shrinkage` and `budget` compute."""
  reward = np.array([[1.0, -1.0, -1.0, -1.0]])  # mapped from 1, 0, 0, 0
  k, vbar = reward.shape[1], float(reward.mean())
  cost = plug.defaults("budget", "sequential").cost
  columns = []
  for value in (0.6, -0.2):
    fused = shrinkage.fuse(vbar, k, value)
    delta2, gain = float(fused.delta2), float(budget.gain(fused.delta2, k))
    more = bool(budget.should_continue(fused.delta2, k, cost, 16))
    advantage, _ = shrinkage.advantage("v05", reward, reward < 2, np.array([value]))
    columns.append(
      (
        f"{value:g}",
        f"{vbar:g}",
        f"({vbar:g} - {value:g})² - 1/{k} = {(vbar - value) ** 2 - 1 / k:.4f} -> {delta2:.4f}",
        "contradicted" if delta2 > 0 else "not contradicted",
        f"{delta2:.4f} / ({delta2:.4f} + 1/{k}) = {float(fused.weight):.4f}",
        f"{float(fused.baseline):.4f}",
        f"{float(budget.mse(fused.delta2, k)):.4f}",
        f"{gain:.5f}",
        f"yes, {gain:.5f} > {cost:.5f}" if more else f"no, {gain:.5f} <= {cost:.5f}",
        ", ".join(f"{x:.4f}" for x in np.asarray(advantage)[0]),
      )
    )
  names = (
    "`V`, what the prior says",
    "`vbar`, the mean reward",
    "`delta2 = max(0, (vbar - V)² - 1/k)`",
    "the test: is V contradicted?",
    "`w = delta2 / (delta2 + 1/k)`",
    "`baseline = w vbar + (1 - w) V`",
    "`mse(4) = delta2 / (4 delta2 + 1)`",
    "`gain = mse(4) - mse(5)`",
    "a fifth rollout (`gain > c`)?",
    "advantages, `r - baseline`",
  )
  return table(("", "a bad prior", "a good prior"), zip(names, *columns, strict=True))


PARTS: dict[str, Callable[[], str]] = {
  "example": example,
  "examples": examples,
  "keys": keys,
  "metrics": metric_names,
  "modules": modules,
  "options": options,
}


def renewed(text: str) -> str:
  """A page with its generated parts as the code has them now."""
  return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


def main():
  for path in sorted(PAGES.glob("*.md")):
    old = path.read_text()
    if (new := renewed(old)) != old:
      path.write_text(new)
      print(f"{path.relative_to(ROOT)}: written")


if __name__ == "__main__":
  main()
