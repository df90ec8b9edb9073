"""Is the reward of mathematics right? Verdicts on labelled pairs, beside plain math-verify's.

    python -m experiments.grading.run

pairs.jsonl holds (response, answer, right, kind, note) a line, labelled by hand. Writes table.md
and results.json.
"""

import json
import logging
import multiprocessing
from pathlib import Path
import time

from absl import app
import math_verify
import numpy as np

from v05_jax.rewards import math as mathematics

HERE = Path(__file__).parent
REPEATS = 5  # of the timing
SLOW, LIMIT = 1.0, 20.0  # seconds


def ours(response: str, answer: str) -> bool:
  return mathematics.verify("", response, {"answer": answer}) == 1.0


def plain(response: str, answer: str) -> bool:
  """math-verify in its default configuration; the answer as a formula, as its README has it."""
  gold = math_verify.parse(f"${answer}$", parsing_timeout=None)
  return bool(
    math_verify.verify(
      gold, math_verify.parse(response, parsing_timeout=None), timeout_seconds=None
    )
  )


METHODS = {"v05_jax": ours, "math-verify": plain}


def read_pairs() -> list[dict]:
  return [json.loads(line) for line in (HERE / "pairs.jsonl").read_text().splitlines()]


def judge(method, pairs: list[dict]) -> tuple[list[bool], list[float]]:
  """Verdicts, and milliseconds of each. One that takes longer than LIMIT pays nothing: what
  calculates without end is ended with its process, and another one goes on behind it."""
  context, found = multiprocessing.get_context("fork"), []
  while len(found) < len(pairs):
    ours_end, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(method, pairs[len(found) :], theirs))
    process.start()
    theirs.close()
    try:
      while ours_end.poll(LIMIT):
        found.append(ours_end.recv())
    except EOFError:  # all are done, or it has crashed
      pass
    process.kill()
    process.join()
    if len(found) < len(pairs):
      print(f"no verdict: {pairs[len(found)]['response'][:80]!r}", flush=True)
      found.append((False, 1e3 * LIMIT))
  verdicts, times = zip(*found)
  return list(verdicts), list(times)


def serve(method, pairs: list[dict], connection):
  """Sends (verdict, the least milliseconds of REPEATS, none of them from a cache) of each pair; one
  that took longer than SLOW is not repeated."""
  for pair in pairs:
    best = np.inf
    for _ in range(REPEATS):
      forget()
      began = time.perf_counter()
      try:
        paid = method(pair["response"], pair["answer"])
      except Exception:  # a crash pays nothing
        paid = False
      best = min(best, 1e3 * (time.perf_counter() - began))
      if best > 1e3 * SLOW:
        break
    connection.send((paid, best))


def forget():
  """Empties the caches of both, for a policy's responses are new."""
  for cached in (
    mathematics._read,
    mathematics._gold,
    mathematics.reading._value,
    math_verify.parser.parse_latex_cached,
    math_verify.parser.parse_expr_cached,
    math_verify.parser.extract_latex,
  ):
    cached.cache_clear()


def measures(pairs: list[dict], verdicts: list[bool]) -> dict:
  """How many are right and wrong, and how many of each are paid."""
  paid = lambda right: sum(v for p, v in zip(pairs, verdicts) if p["right"] == right)
  right = sum(pair["right"] for pair in pairs)
  found = {"right": right, "wrong": len(pairs) - right, "paid": paid(1), "false": paid(0)}
  total = found["paid"] + found["false"]
  found["precision"] = found["paid"] / total if total else None
  found["recall"] = found["paid"] / right if right else None
  return found


def table(results: dict) -> str:
  names = list(METHODS)
  head = "| kind | right | wrong |" + "".join(f" {n}: precision | recall |" for n in names)
  lines = [head, "| --- |" + " ---: |" * (2 + 2 * len(names))]
  shown = lambda x: "" if x is None else f"{x:.3f}"
  for kind, found in results["kinds"].items():
    cells = [shown(found[n][key]) for n in names for key in ("precision", "recall")]
    counts = found[names[0]]
    lines.append(f"| {kind} | {counts['right']} | {counts['wrong']} | " + " | ".join(cells) + " |")
  lines += ["", "| verdict in ms | median | 99th percentile | slowest |", "| --- |" + " ---: |" * 3]
  for name in names:
    t = results["milliseconds"][name]
    lines.append(f"| {name} | {t['median']:.2f} | {t['p99']:.1f} | {t['most']:.1f} |")
  return "\n".join(lines) + "\n"


def main(_):
  logging.disable(logging.WARNING)  # math-verify's, about a time limit that the pool has
  pairs = read_pairs()
  for pair in pairs[:50]:  # imports and patterns
    ours(pair["response"], pair["answer"])
    plain(pair["response"], pair["answer"])
  judged = {name: judge(method, pairs) for name, method in METHODS.items()}
  kinds = [*dict.fromkeys(pair["kind"] for pair in pairs), "all"]
  results = {"kinds": {}, "milliseconds": {}}
  for kind in kinds:
    chosen = [i for i, pair in enumerate(pairs) if kind in ("all", pair["kind"])]
    results["kinds"][kind] = {
      name: measures([pairs[i] for i in chosen], [verdicts[i] for i in chosen])
      for name, (verdicts, _) in judged.items()
    }
  for name, (_, times) in judged.items():
    results["milliseconds"][name] = {
      "median": float(np.median(times)),
      "p99": float(np.percentile(times, 99)),
      "most": float(max(times)),
    }
  (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
  (HERE / "table.md").write_text(table(results))
  print(table(results))


if __name__ == "__main__":
  app.run(main)
