"""V0.5, GRPO and their rivals on a real language model: SmolLM2-135M, two arenas, several seeds.

    python -m experiments.real_lm.run                         # everything that is left, in order
    python -m experiments.real_lm.run --stages=tune,first --arenas=tasks --minutes=180
    python -m experiments.real_lm.run --only_report           # tables and plot from what is kept

Stages, in this order: `tune` finds the learning rates of the first table's methods on validation
problems, `first` is that table, seed after seed, `noise` measures at its checkpoints; once both
arenas have these, `value` trains the value models and `prior` compares priors; `tune_rest` and
`rest` are all other methods.

One job after another, a process each. What has a result is left alone, what was interrupted goes on
at its last checkpoint, a job that fails is named at the end and does not stop the others. README.md
says what each stage costs.
"""

from pathlib import Path
import signal
import sys
import time
from typing import NamedTuple

from absl import app, flags
import numpy as np

from experiments.lm import fetch
from experiments.real_lm import measure, plan, play, process, results, table
from v05_jax import logs

HERE = Path(__file__).parent
# Stages that an arena has behind it before the next arena begins.
BLOCKS = ("tune", "first", "noise"), ("value", "prior"), ("tune_rest", "rest")
STAGES = tuple(stage for block in BLOCKS for stage in block)
LONGEST = 3 * 3600.0  # seconds of a job: twenty times what it takes
# Minutes of a job until one of its kind is known; a run's by its rollouts a prompt and their uses.
MINUTES = {"noise": 30, "prior": 15, "value": 20}
OF_RUN, OF_SINGLE, OF_EVALUATION = 7, 23, 2
ARENAS = flags.DEFINE_list("arenas", list(plan.ARENAS), "of " + ", ".join(plan.ARENAS))
DO = flags.DEFINE_list("stages", list(STAGES), "of " + ", ".join(STAGES))
ONLY = flags.DEFINE_list("only_methods", [], "of plan.py's METHODS, or recipe; all by default")
SEEDS = flags.DEFINE_list("seeds", [], "of those that a method has; all by default")
REPORT = flags.DEFINE_bool("only_report", False, "runs nothing")
LIMIT = flags.DEFINE_float("minutes", 0, "starts no job after so many minutes; 0 = no limit")
WORK = flags.DEFINE_string("scratch", "runs/real_lm", "folder of the runs")
MODEL = flags.DEFINE_string("model_dir", ".cache/lm", "folder in which SmolLM2 is made, or is")
PROBLEMS = flags.DEFINE_string("problems", "word_problems", "folder of asdiv, mawps, svamp .jsonl")
ONE = flags.DEFINE_string("one", "", "ARENA,STAGE,METHOD,SEED,RATE: this job, in this process")


class Job(NamedTuple):
  """One process."""

  stage: str
  arena: str
  method: str = ""
  seed: int = 0
  rate: float = 0.0  # 0 = the one that the tuning has found by then

  @property
  def name(self) -> str:
    known = self.run.name if self.rate else f"{self.method}-{self.seed}"
    return f"{self.arena} {known if self.method else self.stage}"

  @property
  def run(self) -> plan.Run:
    return plan.Run(self.arena, self.method, self.seed, self.rate)


def main(argv):
  if argv[1:]:
    raise app.UsageError(f"found {' '.join(argv[1:])}, expected flags alone")
  logs.start()
  try:
    if ONE.value:
      return one(ONE.value)
    failed = [] if REPORT.value else run(jobs())
    print(table.write(HERE))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit("stopped; the same command goes on")
  if failed:
    again = "error: these have failed, and the same command tries them again:"
    sys.exit("\n".join([again, *failed]))


def places() -> play.Places:
  """As the flags say, absolute: the runs' configs hold them."""
  model = str((Path(MODEL.value) / "smollm2").resolve())
  return play.Places(HERE, Path(WORK.value).resolve(), model, PROBLEMS.value)


def one(text: str):
  """The job that `command` has written down, in this process."""
  arena, stage, method, seed, rate = text.split(",")
  process.end_with_parent()
  if stage == "value":
    play.value(arena, places())
  elif not method:
    {"noise": measure.noise, "prior": measure.prior}[stage](arena, places())
  else:
    play.complete(plan.Run(arena, method, int(seed), float(rate)), places())


# --- What is to be done


def jobs() -> list[Job]:
  """All that the flags ask for, in order. Raises ValueError for unknown names."""
  methods, seeds = chosen()
  found = []
  for block in BLOCKS:
    for arena in ARENAS.value:
      for stage in (x for x in block if x in DO.value):
        found += of_stage(stage, arena, methods, seeds)
  return found


def chosen() -> tuple[list[str], set[int] | None]:
  """(methods in the order of plan.py, seeds or None for all) of the flags."""
  methods = [plan.resolved(name) for name in ONLY.value]
  for flag, found, known in (
    ("arenas", ARENAS.value, plan.ARENAS),
    ("stages", DO.value, STAGES),
    ("only_methods", methods, plan.METHODS),
  ):
    if unknown := [name for name in found if name not in known]:
      raise ValueError(f"--{flag}: found {unknown[0]!r}, expected of {', '.join(known)}")
  if bad := [x for x in SEEDS.value if not x.isdigit() or int(x) not in plan.SEEDS]:
    expected = ", ".join(map(str, plan.SEEDS))
    raise ValueError(f"--seeds: found {bad[0]!r}, expected of {expected}")
  wanted = [name for name in plan.METHODS if name in methods] if methods else list(plan.METHODS)
  return wanted, {int(x) for x in SEEDS.value} or None


def of_stage(stage: str, arena: str, methods: list[str], seeds: set[int] | None) -> list[Job]:
  """The jobs of a stage: of runs, seed after seed, so that what is compared comes together."""
  if stage in ("noise", "prior", "value"):
    return [Job(stage, arena)]
  first = stage in ("tune", "first")
  recipe = plan.resolved(plan.RECIPE)
  own = [name for name in methods if (name in plan.FIRST) == first]
  own.sort(key=lambda name: name != recipe)  # which comes first of the rest
  if stage.startswith("tune"):
    tuned = [name for name in own if plan.rate_of(name) == name]
    return [
      Job(stage, arena, name, plan.TUNING_SEED, rate) for name in tuned for rate in plan.RATES
    ]
  return [
    Job(stage, arena, name, seed)
    for seed in plan.SEEDS
    for name in own
    if seed in plan.seeds(name) and (seeds is None or seed in seeds)
  ]


def with_rate(job: Job, records: list[dict]) -> Job:
  """The job with its learning rate. Raises ValueError where the tuning has not found it yet."""
  if not job.method or job.rate:
    return job
  rate = results.rate(records, job.arena, job.method)
  if rate is None:
    source, stage = plan.rate_of(job.method), "tune" if job.method in plan.FIRST else "tune_rest"
    raise ValueError(f"found no learning rate of {source}, expected one: --stages={stage} finds it")
  return job._replace(rate=rate)


def done(job: Job) -> bool:
  """Whether there is a result."""
  if not job.method:
    return measure.complete(job.arena, job.stage, places())
  return results.path(HERE, job.run).is_file()


def refuse(wanted: list[Job], others: dict[Path, str]):
  """Raises ValueError where a job has a result of another plan (`results.current`)."""
  for file in (results.path(HERE, job.run) for job in wanted if job.method):
    if file in others:
      raise ValueError(f"{others[file]}: move it away, or put the plan back")


# --- Doing it


def run(wanted: list[Job]) -> list[str]:
  """Every job that has no result yet, each in a process of its own -> a line for each that failed.

  Raises ValueError, before anything starts, for results of another plan.
  """
  began, failed = time.monotonic(), []
  records, others = results.current(HERE)
  refuse([ready(job, records) for job in wanted], others)
  fetch.model(Path(MODEL.value))
  left: list[Job] = []
  for job in wanted:  # priors are measured again once there is a V0
    again = job.stage == "prior" and Job("value", job.arena) in left
    left += [job] if again or not done(ready(job, records)) else []
  print(f"{len(left)} of {len(wanted)} jobs are left, {clock(cost(left, records))}", flush=True)
  while left:
    minutes = (time.monotonic() - began) / 60
    if LIMIT.value and minutes > LIMIT.value:
      print(f"{minutes:.0f} minutes are over: {len(left)} jobs are left", flush=True)
      break
    job, *rest = left
    records, others = results.current(HERE)
    try:
      job = with_rate(job, records)
      refuse([job], others)
      if not done(job):
        both = clock(cost([job], records)), clock(cost(left, records))
        print(f"[{minutes:5.1f} min] {job.name}: {both[0]}; all: {both[1]}", flush=True)
        process.run(command(job), LONGEST)
    except ValueError as error:
      failed.append(f"{job.name}: {error}")
      print(failed[-1], flush=True)
    left = rest
  return failed


def ready(job: Job, records: list[dict]) -> Job:
  """The job with its learning rate, where it has one and that is known."""
  known = results.rate(records, job.arena, job.method) if job.method and not job.rate else None
  return job._replace(rate=job.rate or known or 0.0)


def command(job: Job) -> list[str]:
  """That of a process that does the job."""
  text = f"--one={job.arena},{job.stage},{job.method},{job.seed},{job.rate!r}"
  where = [f"--scratch={WORK.value}", f"--model_dir={MODEL.value}", f"--problems={PROBLEMS.value}"]
  return [sys.executable, "-m", "experiments.real_lm.run", text, *where]


# --- What it will take


def cost(wanted: list[Job], records: list[dict]) -> float:
  """Seconds that jobs will take, as others of the same method in the arena have taken."""
  kept: dict[tuple, list[float]] = {}
  for record in records:
    key = record["arena"], record["method"], record["seed"] == plan.TUNING_SEED
    kept.setdefault(key, []).append(results.total(record))
  return sum(
    float(np.mean(kept.get((job.arena, job.method, job.seed == plan.TUNING_SEED), [usual(job)])))
    for job in wanted
  )


def usual(job: Job) -> float:
  """Seconds of a job of which no other is known."""
  if not job.method:
    return 60.0 * MINUTES[job.stage]
  single = plan.METHODS[job.method].changes.get("loss.epochs", 1) > 1
  evaluated = OF_EVALUATION * (job.seed != plan.TUNING_SEED)
  return 60.0 * ((OF_SINGLE if single else OF_RUN) + evaluated)


def clock(seconds: float) -> str:
  """About 2 h 05 min."""
  hours, minutes = divmod(round(seconds / 60), 60)
  return f"about {hours} h {minutes:02} min" if hours else f"about {minutes} min"


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("SIGTERM: stopped; the same command goes on"))
  app.run(main)
