"""How fast are rollouts and updates, beside what one would otherwise use, and how far from the
machine's limits?

    python -m experiments.throughput.run
        the CPU suite, an hour or more on two cores; resumable
    python -m experiments.throughput.run --quick
        ours alone, about a minute, one JSON line a program
    python -m experiments.throughput.run --suite=lm --rounds=1
        SmolLM2-135M's weights, and large vocabularies, on two cores
    python -m experiments.throughput.run --suite=gpu          0.6B and 1.7B shapes on one large GPU
    python -m experiments.throughput.run --suite=gpu --tiny
        the same code with a tiny shape, on the CPU
    python -m experiments.throughput.run --only=ragged_s,start  some rows of rows.py

Every figure is of a process of its own. The contenders of a row take turns, --rounds times; medians
over the rounds. Writes results.json and table.md after every row (those of another
suite have its name: results_lm.json), and skips rows that are there already unless --again is
given. The peers' environments are made by `make peers`; without them ours is measured alone.
"""

import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import time

from absl import app, flags

from experiments.throughput import process, rows, tables

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SUITE = flags.DEFINE_enum("suite", "cpu", tuple(rows.SUITES), "which rows")
WEIGHTS = flags.DEFINE_string(
  "weights", str(ROOT / ".cache" / "lm" / "smollm2"), "Hugging Face directory of SmolLM2-135M"
)
QUICK = flags.DEFINE_bool(
  "quick", False, "ours alone with little work: one JSON line a program, nothing is written"
)
TINY = flags.DEFINE_bool("tiny", False, "every row with a tiny shape on the CPU: to try the code")
ONLY = flags.DEFINE_list("only", [], "names of rows, of rows.py; all without")
ROUNDS = flags.DEFINE_integer("rounds", 3, "processes of each contender of a row", lower_bound=1)
PEERS = flags.DEFINE_string(
  "peers", str(ROOT / ".cache" / "peers"), "folder of the environments torch and tunix"
)
AGAIN = flags.DEFINE_bool("again", False, "measure rows that are there already anew")
OUT = flags.DEFINE_string(
  "out", None, "folder of results.json and table.md; by default this one, with --tiny runs/"
)

MOST_SECONDS = 1800  # of one process
# what --tiny makes of all work
SMALL = ("--size=tiny", "--prompt=16", "--response=16", "--groups=8", "--reps=1")


def main(_):
  began = time.perf_counter()
  say = lambda text: print(
    f"[{time.perf_counter() - began:5.0f} s] {text}", file=sys.stderr, flush=True
  )
  if QUICK.value:
    return quick(say)
  gpu = SUITE.value == "gpu"
  wanted = rows.SUITES[SUITE.value]
  weights = None if TINY.value else Path(WEIGHTS.value)
  chosen, left_out = rows.loadable(rows.pick(wanted, ONLY.value), weights)
  if left_out:
    say(left_out)
  found = interpreters(PEERS.value, cuda=gpu and not TINY.value)
  for peer in sorted({c.who for row in chosen for c in row.contenders} - {"ours", *found}):
    say(f"{peer} is not measured: no usable environment in {PEERS.value} (make peers)")
  out = Path(OUT.value or ("runs/throughput" if TINY.value else HERE))
  out.mkdir(parents=True, exist_ok=True)
  suffix = "" if SUITE.value == "cpu" else f"_{SUITE.value}"
  file = out / f"results{suffix}.json"
  results = json.loads(file.read_text()) if file.exists() else {"rows": {}}
  results |= {
    "machine": describe(),
    "command": " ".join(["python -m experiments.throughput.run", *sys.argv[1:]]),
    "left_out": left_out,
  }
  results["ceilings"] = ceilings(found, say)
  failed = []
  for row in chosen:
    kept = tuple(c for c in row.contenders if c.who in ("ours", *found))
    if rows.done(results["rows"].get(row.name), kept, ROUNDS.value) and not AGAIN.value:
      say(f"{row.name}: is there already")
      continue
    measured, errors = measure(row._replace(contenders=kept), found, results["ceilings"], say)
    failed += errors
    results["rows"][row.name] = {"rounds": ROUNDS.value, "contenders": measured}
    write(file, out / f"table{suffix}.md", results, wanted)
  print(tables.everything(results, wanted))
  if failed:
    sys.exit("failed: " + "; ".join(failed))


def interpreters(folder: str, cuda: bool) -> dict[str, str]:
  """Peer -> the interpreter that has it. On a GPU `transformers` alone is measured, where torch
  finds the card: in the peers' environment or in this one."""
  found = {peer: Path(folder) / name / "bin" / "python" for peer, name in rows.ENVIRONMENT.items()}
  found = {peer: str(python.absolute()) for peer, python in found.items() if python.exists()}
  if not cuda:
    return found
  program = "import torch, transformers; assert torch.cuda.is_available()"
  candidates = [found.get("transformers"), sys.executable]
  able = [
    x
    for x in candidates
    if x and not subprocess.run([x, "-c", program], capture_output=True).returncode
  ]
  return {"transformers": able[0]} if able else {}


def environment() -> dict[str, str]:
  """What the processes see: no cache of compilations, so that first calls compile, and no
  network."""
  env = dict(os.environ)
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  env |= {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_MODE": "disabled",
  }
  if SUITE.value != "gpu" or TINY.value:
    return env | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  if env.get("JAX_PLATFORMS") == "cpu":  # the Makefile's choice
    del env["JAX_PLATFORMS"]
  return env


def call(python: str, module: str, *arguments: str) -> tuple[list[dict], str]:
  """Runs a module -> (the JSON objects that it printed, "" or the end of what it said of a
  failure)."""
  command = [python, "-m", module, *arguments]
  try:
    ended = subprocess.run(
      command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=MOST_SECONDS
    )
  except subprocess.TimeoutExpired:
    return [], f"no end within {MOST_SECONDS} s"
  lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"')]
  return (
    lines,
    "" if not ended.returncode and lines else f"status {ended.returncode}: {ended.stderr[-1500:]}",
  )


def ceilings(found: dict[str, str], say, scale: str = "") -> list[dict]:
  """The machine's ceilings by XLA, on CPU also with one forced host device for each core, and by
  torch."""
  large = SUITE.value == "gpu" and not TINY.value
  flags_ = ["--scale=" + (scale or ("large" if large else "small" if TINY.value else "cpu"))]
  flags_ += ["--dtype=bfloat16"] if SUITE.value == "gpu" else []
  flags_ += ["--seconds=0.3"] if scale == "small" or TINY.value else []
  runs = [(sys.executable, "--backend=xla")]
  if not large and not scale:
    runs.append((sys.executable, "--backend=xla", f"--devices={process.cores()}"))
  if "transformers" in found and not scale:
    runs.append((found["transformers"], "--backend=torch", *(["--device=cuda"] if large else [])))
  results = []
  for python, *arguments in runs:
    say(f"ceilings: {' '.join(arguments)}")
    lines, error = call(python, "experiments.throughput.ceilings", *arguments, *flags_)
    if error:
      sys.exit(f"error: the ceilings could not be measured: {error}")
    results += lines
  if large and results[0]["platform"] == "cpu":
    sys.exit(
      "error: --suite=gpu: jax found no accelerator (its CUDA plugin is not part of this package); "
      "or --tiny"
    )
  return results


def limits(found: list[dict]) -> tuple[str, str]:
  """The highest of the ceilings, as flags of a program."""
  matmul = max(x for ceiling in found for x in ceiling["matmul_gflops"].values())
  return f"--matmul={matmul}", f"--copy={max(ceiling['copy_gbytes'] for ceiling in found)}"


def measure(row, found: dict[str, str], ceiling, say) -> tuple[dict, list[str]]:
  """All rounds of a row -> (contender -> JSON lines by round, what failed)."""
  name, contenders = row.name, row.contenders
  measured, failed = {c.name: [] for c in contenders}, []
  weights = [f"--weights={WEIGHTS.value}"] if row.weights and not TINY.value else []
  cuda = ["--device=cuda"] if SUITE.value == "gpu" and not TINY.value else []
  for number in range(ROUNDS.value):
    for c in contenders:
      python = sys.executable if c.who == "ours" else found[c.who]
      extra = cuda if c.who == "transformers" else []
      lines, error = call(
        python,
        c.module,
        *c.arguments,
        *weights,
        *limits(ceiling),
        *extra,
        *(SMALL if TINY.value else ()),
      )
      if error:
        say(f"{name}, round {number + 1}, {c.name}: failed, {error}")
        failed.append(f"{name}, {c.name}")
        continue
      measured[c.name] += lines
      line = lines[-1]
      say(
        f"{name}, round {number + 1}, {c.name}: {line['per_s']:g} {line['unit']}, a call "
        f"{line['med_s']:g} s"
      )
  return measured, failed


def quick(say):
  """One JSON line a program; the programs of a group share a process, and the start of each is that
  of the process."""
  found, failed = ceilings({}, say, scale="small"), []
  for arguments in rows.QUICK:
    lines, error = call(sys.executable, rows.OURS, *arguments, *limits(found))
    for line in lines:
      print(json.dumps(line), flush=True)
    failed += [error] if error else []
  if failed:
    sys.exit("error: " + "; ".join(failed))


def write(file: Path, table: Path, results: dict, wanted):
  """Both files as wholes, the results first."""
  for path, text in (
    (file, json.dumps(results, indent=1) + "\n"),
    (table, tables.everything(results, wanted)),
  ):
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def describe() -> str:
  """The machine in words."""
  name = platform.processor() or platform.machine()
  try:
    names = [
      x.split(":", 1)[1].strip()
      for x in Path("/proc/cpuinfo").read_text().splitlines()
      if "model name" in x
    ]
    name = names[0] if names else name
  except OSError:
    pass
  return f"{process.cores()} CPU cores ({name}), Python {platform.python_version()}"


if __name__ == "__main__":
  app.run(main)
