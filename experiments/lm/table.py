"""What came out on the held-out problems, as text: success, gains with their intervals, and five
problems before and after."""

from pathlib import Path

import jax
import numpy as np

from v05_jax.run import evaluate, files, success
from v05_jax.run.evaluate import Result

SHOWN = 5  # problems


def write(out: Path, results: dict[str, Result]) -> str:
  """OUT/heldout.md: the tables of `results`, name -> Result on the same problems, the start
  first."""
  text = "\n\n".join([overall(results), by_task(results), examples(results)])
  files.replace(out / "heldout.md", text + "\n")
  return f"{text}\n\n{out / 'heldout.md'}"


def overall(results: dict[str, Result]) -> str:
  """A row a policy, gains over the first, and the differences between the others."""
  first, *others = results
  n = results[first].success.shape[1]
  lines = [
    f"success on {len(results[first].rows)} held-out problems, {n} samples each at temperature 1; "
    "in brackets 95 % bootstrap intervals over problems",
    "",
    f"| | success | gain | pass@{n} | tokens | truncated |",
    "| --- |" + " --- |" * 5,
  ]
  for name, result in results.items():
    values = evaluate.per_prompt(result)
    gain = "" if name == first else difference(result, results[first])
    cells = [f"{values[key].mean():.3f}" for key in ("mean", "pass")]
    rest = [f"{values['length'].mean():.1f}", f"{values['truncated'].mean():.3f}"]
    lines.append(f"| {' | '.join([name, cells[0], gain, cells[1], *rest])} |")
  pairs = [(a, b) for i, a in enumerate(others) for b in others[i + 1 :]]
  lines += [""] * bool(pairs)
  lines += [f"{a} minus {b}: {difference(results[a], results[b])}" for a, b in pairs]
  return "\n".join(lines)


def difference(one: Result, other: Result) -> str:
  """The mean difference in success on the same problems, and its interval."""
  values = (evaluate.per_prompt(one)["mean"] - evaluate.per_prompt(other)["mean"])[:, None]
  low, high = success.interval(success.bootstrap(jax.random.key(0), values))
  return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def by_task(results: dict[str, Result]) -> str:
  """A row a task, a column a policy; and the share of the problems that the start has neither
  always right nor always wrong, from which reinforcement learning learns."""
  start = next(iter(results.values()))
  tasks = np.array([row["benchmark"] for row in start.rows])
  mixed = (start.mean > 0) & (start.mean < 1)
  lines = [f"| task | {' | '.join(results)} | mixed at the start |"]
  lines.append("| --- |" + " --- |" * (len(results) + 1))
  for task in dict.fromkeys(tasks.tolist()):
    cells = [f"{result.mean[tasks == task].mean():.2f}" for result in results.values()]
    lines.append(f"| {task} | {' | '.join(cells)} | {mixed[tasks == task].mean():.2f} |")
  return "\n".join(lines)


def examples(results: dict[str, Result]) -> str:
  """The first five held-out problems, and the first response of each policy."""
  first = next(iter(results.values()))
  blocks = []
  for i, row in enumerate(first.rows[:SHOWN]):
    lines = [row["prompt"].strip(), f"  answer: {row['answer']}"]
    for name, result in results.items():
      text = " ".join(str(result.responses[i, 0]).split()) or "nothing"
      score = result.success[i, 0]
      lines.append(f"  {name}: {text} ({'no verdict' if np.isnan(score) else f'{score:.2g}'})")
    blocks.append("\n".join(lines))
  return "\n\n".join(blocks)
