"""Success and pass@8 of each task, before and after training.

Where an answer is one of a few numbers, a policy that guesses has a high pass@8 and a low success;
one that has settled on the likeliest answer has the same of both.
"""

import numpy as np

from experiments.estimator_lab.tables import table
from experiments.real_lm import plan
from experiments.real_lm.pairing import Runs

CLOSE = 1e-3  # what is kept of a problem is rounded


def by_task(runs: Runs) -> str:
  """A row a task and method, means over its seeds; "" where the problems have no tasks."""
  rows = []
  found = {method: of_method(list(of.values())) for method, of in runs.items()}
  for name in sorted({name for tasks in found.values() for name in tasks}):
    for method, tasks in ((method, x) for method, x in found.items() if name in x):
      (start, end), (passed, passes) = tasks[name]
      cells = [f"{x:.3f}" for x in (start, end, passed, passes)]
      rows.append([name, plan.METHODS[method].title, *cells])
  head = ["task", "method", "success start", "end", "pass@8 start", "end"]
  return table(head, rows) if rows else ""


def of_method(records: list[dict]) -> dict[str, np.ndarray]:
  """Task -> [success and pass@8, before and after]."""
  runs = [of_run(record) for record in records]
  return {name: np.mean([tasks[name] for tasks in runs], 0) for name in runs[0]}


def of_run(record: dict) -> dict[str, np.ndarray]:
  """The same of one run. Its problems go through the tasks in turns, by name; raises ValueError
  where that does not give the means that the evaluation has written down by task."""
  names = sorted(record["after"]["benchmarks"])
  found = {}
  for i, name in enumerate(names):
    of = lambda key, i=i: [
      float(np.mean(record[when][key][i :: len(names)])) for when in ("before", "after")
    ]
    found[name] = np.array([of("mean"), of("pass")])
    said = [record[when]["benchmarks"][name] for when in ("before", "after")]
    if not np.allclose(found[name][0], said, atol=CLOSE):
      task = plan.Task(*(record[key] for key in plan.Task._fields))
      raise ValueError(
        f"{record['arena']} {task.name}: {name}: found a mean of {found[name][0].tolist()}, "
        f"expected {said}: the problems do not go through the tasks in turns"
      )
  return found
