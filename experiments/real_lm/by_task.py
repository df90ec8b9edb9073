"""Success and pass@8 of each task, before and after training.

Where an answer is one of a few numbers, a policy that guesses has a high pass@8 and a low success;
one that has settled on the likeliest answer has the same of both.
"""

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.real_lm import plan
from experiments.real_lm.pairing import Runs, intervals, name_of

CLOSE = 1e-3  # what is kept of a problem is rounded
WHEN = ("before", "after")


def by_task(runs: Runs) -> str:
  """A row a task and method, over its seeds; "" where the problems have no tasks."""
  rows = []
  for name in names_of(runs):
    for method, of in runs.items():
      found = np.array([of_run(record, name) for record in of.values()])
      (start, end), (first, last) = found.mean((0, 3))
      change = found[:, 1, 1] - found[:, 1, 0]  # of pass@8, [seeds, problems]
      cells = [f"{x:.3f}" for x in (start, end, first, last)]
      rows.append([name, plan.METHODS[method].title, *cells, *intervals(change)])
      rows[-1] += answers(list(of.values()), name)
  head = ["task", "method", "success start", "end", "pass@8 start", "end", "change ± over seeds"]
  head += [
    "[over problems, these runs]",
    "different answers start",
    "end",
    "commonest answer start",
    "end",
  ]
  return table(head, rows) if rows else ""


def answers(records: list[dict], name: str) -> list[str]:
  """How many of a problem's 8 answers are different, and the share of the task's commonest answer,
  start and end; "-" where a result does not say."""
  cells = []
  for key, form in (("different", ".1f"), ("commonest", ".2f")):
    for when in WHEN:
      found = [record[when].get("answers", {}).get(name, {}).get(key) for record in records]
      cells.append("-" if None in found else format(np.mean(found), form))
  return cells


def names_of(runs: Runs) -> list[str]:
  """The tasks, by name."""
  found = (record["after"]["benchmarks"] for of in runs.values() for record in of.values())
  return sorted({name for names in found for name in names})


def of_run(record: dict, name: str) -> np.ndarray:
  """[success and pass@8, before and after, problems of the task]. The problems go through the tasks
  in turns, by name; raises ValueError where that does not give the means that the evaluation has
  written down by task."""
  names = sorted(record["after"]["benchmarks"])
  place, turn = names.index(name), len(names)
  found = np.array([[record[when][key][place::turn] for when in WHEN] for key in ("mean", "pass")])
  said = [record[when]["benchmarks"][name] for when in WHEN]
  if not np.allclose(found[0].mean(1), said, atol=CLOSE):
    raise ValueError(
      f"{name_of(record)}: {name}: found a mean of {found[0].mean(1).tolist()}, "
      f"expected {said}: the problems do not go through the tasks in turns"
    )
  return found
