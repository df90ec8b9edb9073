"""What a measuring process reports: one JSON line with the same fields, whoever is measured.

Standard library alone: the peers' environments import this file too.
"""

import argparse
from collections.abc import Callable
import json
import os
import resource
import statistics
import time

from experiments.throughput import work

FIELDS = {
  "contender": "ours, transformers, trl or tunix",
  "versions": "of the libraries that do the work",
  "program": "what was measured",
  "size": "shape of the policy, of work.SHAPES",
  "n": "sequences",
  "devices": "devices of the mesh; on CPU forced host devices. Threads where torch does the work",
  "first_s": "seconds of the first call, compilation included",
  "med_s": "seconds of a call, median of the later ones",
  "min_s": "the fastest of these",
  "reps": "number of these",
  "useful_tokens": "response tokens of a call (sampling, steps), or real tokens of its sequences "
  "(updates)",
  "per_s": "useful tokens (sampling) or sequences (updates, steps) a second, by the median",
  "unit": "of per_s",
  "useful_gflops": "least arithmetic of the work over the median, GFLOP/s",
  "matmul_share": "the same over the measured matmul ceiling",
  "useful_gbytes": "least memory traffic of decoding over the median, GB/s (sampling alone)",
  "copy_share": "the same over the measured copy ceiling",
  "decode_steps": "of the last call",
  "utilisation": "share of slot-steps that sampled a token of a rollout, over the whole call",
  "utilisation_filled": "the same until the last request was started",
  "useful_over_computed": "useful tokens over those that the programs computed",
  "compilations": "programs compiled up to the end of the timed calls",
  "compilations_late": "of them after the second call",
  "peak_rss_mb": "of the process at the end of the timed calls; reward workers are processes of "
  "their own",
  "start_s": "seconds from the start of the process to the end of the first call",
  "host_s": "CPU seconds of the main thread in a call, median: bookkeeping; torch computes there",
  "others_cores": "cores that other processes kept busy meanwhile, median",
  "logprob_gap": "largest |log-prob - recomputed log-prob| of the last call's response tokens, "
  "nats",
  "details": "what only this program has",
}
MOST_SECONDS = 120.0  # of the repetitions of one program


def parser(programs, several: bool = False) -> argparse.ArgumentParser:
  """The arguments that every contender takes. several: `program` becomes a list, given with
  commas."""

  def names(text):
    found = text.split(",")
    if unknown := sorted(set(found) - set(programs)):
      raise argparse.ArgumentTypeError(
        f"found {', '.join(unknown)}, expected some of {', '.join(programs)}"
      )
    return found

  p = argparse.ArgumentParser()
  if several:
    p.add_argument(
      "--program", required=True, type=names, help=f"with commas: {', '.join(programs)}"
    )
  else:
    p.add_argument("--program", required=True, choices=programs)
  p.add_argument("--size", default="s", choices=list(work.SHAPES))
  p.add_argument("--groups", type=int, default=16, help="prompts")
  p.add_argument("--group", type=int, default=4, help="rollouts of a prompt")
  p.add_argument("--prompt", type=int, default=work.PROMPT, help="tokens")
  p.add_argument("--response", type=int, default=work.RESPONSE, help="tokens at most")
  p.add_argument(
    "--shortest", type=int, default=work.SHORTEST, help="tokens of a ragged response at least"
  )
  p.add_argument(
    "--weights", default="", help="Hugging Face directory of the size's weights; without: random"
  )
  p.add_argument("--reps", type=int, default=3, help="timed calls after the first one")
  p.add_argument(
    "--micro",
    type=int,
    default=0,
    help="sequences, or packed rows, of a micro-batch; 0 = the default",
  )
  p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  p.add_argument(
    "--matmul", type=float, default=0.0, help="the machine's matmul ceiling, GFLOP/s; 0 = unknown"
  )
  p.add_argument(
    "--copy", type=float, default=0.0, help="the machine's copy ceiling, GB/s; 0 = unknown"
  )
  return p


def started() -> float:
  """When this process began, seconds since the epoch; where the system does not tell, now."""
  try:
    with open("/proc/self/stat") as file:
      ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
      uptime = float(file.read().split()[0])
  except OSError:
    return time.time()
  return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb() -> float:
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def busy() -> float:
  """CPU seconds of the whole machine so far; 0 where the system does not tell."""
  try:
    with open("/proc/stat") as file:
      ticks = [int(x) for x in file.readline().split()[1:9]]
  except OSError:
    return 0.0
  idle = 3, 4  # idle and waiting for a disk
  return sum(x for i, x in enumerate(ticks) if i not in idle) / os.sysconf("SC_CLK_TCK")


class Stopwatch:
  """Seconds of each call, and the cores that other processes kept busy meanwhile."""

  def __init__(self):
    self.seconds, self.others, self.host = [], [], []
    self.restart()

  def restart(self):
    self._began = time.perf_counter(), time.process_time(), busy(), time.thread_time()

  def lap(self):
    """Ends a call, which began at the last `restart` or `lap`."""
    before = self._began
    self.restart()
    seconds, own, everyone, host = (now - then for now, then in zip(self._began, before))
    self.seconds.append(seconds)
    self.host.append(host)
    self.others.append(max(0.0, (everyone - own) / max(seconds, 1e-9)))

  def run(self, call: Callable, *arguments):
    """Times one call and returns what it returns."""
    self.restart()
    result = call(*arguments)
    self.lap()
    return result

  def fields(self) -> dict:
    """The first call is reported by itself: it compiles. At least two calls are needed."""
    first, *later = self.seconds
    return {
      "first_s": round(first, 4),
      "med_s": round(statistics.median(later), 5),
      "min_s": round(min(later), 5),
      "reps": len(later),
      "host_s": round(statistics.median(self.host[1:]), 4),
      "others_cores": round(statistics.median(self.others[1:]), 2),
    }


def timed(call: Callable, reps: int, after: Callable = lambda count: None) -> dict:
  """`call(i)` for i = 0 (the first) to `reps` -> fields; `after(i + 1)` outside of the time.

  Ends early, with one repetition at least, when the repetitions have taken MOST_SECONDS.
  """
  watch, first_end = Stopwatch(), 0.0
  for i in range(reps + 1):
    watch.run(call, i)
    after(i + 1)
    if not i:
      first_end = time.time()
    elif sum(watch.seconds[1:]) > MOST_SECONDS:
      break
  return watch.fields() | {"start_s": round(first_end - started(), 2)}


def rates(args, seconds: float, lengths, kind: str, steps: int = 0) -> dict:
  """The fields that follow from the work of a call and its seconds.

  lengths: response tokens of each sequence. kind: "sample", "update" or "step", which is both.
  steps: decode steps, where memory traffic is wanted ("sample" alone).
  """
  shape, lengths, samples = work.SHAPES[args.size], [int(x) for x in lengths], kind == "sample"
  flops = work.sample_flops(shape, args.prompt, lengths, args.groups) if kind != "update" else 0.0
  flops += work.update_flops(shape, args.prompt, lengths, args.groups) if not samples else 0.0
  gflops, gbytes = flops / seconds / 1e9, None
  if samples and steps:
    itemsize = 2 if args.dtype == "bfloat16" else 4
    gbytes = work.decode_bytes(shape, args.prompt, lengths, steps, itemsize) / seconds / 1e9
  tokens = sum(lengths) + (args.prompt * len(lengths) if kind == "update" else 0)
  return {
    "useful_tokens": tokens,
    "per_s": round((tokens if samples else len(lengths)) / seconds, 3),
    "unit": "tokens/s" if samples else "sequences/s",
    "useful_gflops": round(gflops, 2),
    "matmul_share": round(gflops / args.matmul, 4) if args.matmul else None,
    "useful_gbytes": round(gbytes, 3) if gbytes else None,
    "copy_share": round(gbytes / args.copy, 4) if gbytes and args.copy else None,
  }


def emit(args, contender: str, versions: str, **fields):
  """Prints the JSON line: every field of FIELDS in that order, None where it does not apply.

  Raises ValueError for a field that FIELDS does not have.
  """
  fields = {
    "contender": contender,
    "versions": versions,
    "program": args.program,
    "size": args.size,
    "n": args.groups * args.group,
  } | fields
  if unknown := sorted(set(fields) - set(FIELDS)):
    raise ValueError(f"fields that process.FIELDS does not have: {', '.join(unknown)}")
  print(json.dumps({name: fields.get(name) for name in FIELDS}), flush=True)
