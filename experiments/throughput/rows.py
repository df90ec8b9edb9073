"""The rows of the tables: who is measured on what, and the bars that are asked for."""

from pathlib import Path
import sys
from typing import NamedTuple

from experiments.throughput import work

OURS = "experiments.throughput.programs"
PEERS = {
  name: f"experiments.throughput.peers.with_{name}" for name in ("transformers", "trl", "tunix")
}
# folder of --peers with its interpreter
ENVIRONMENT = {"transformers": "torch", "trl": "torch", "tunix": "tunix"}


class Contender(NamedTuple):
  """One process of a round."""

  name: str  # ours, or one of PEERS, with a suffix where a row has several programs of the same
  arguments: tuple[str, ...]

  @property
  def who(self) -> str:
    return self.name.split()[0]

  @property
  def module(self) -> str:
    return OURS if self.who == "ours" else PEERS[self.who]


class Bar(NamedTuple):
  """One line of the table: a figure, or its ratio to a peer's, and what is asked of it."""

  work: str  # what the reader is told
  field: str  # of process.FIELDS; "details.x" for a field of its details
  limit: float | None  # None = the figure is only shown
  against: str = ""  # the contender whose figure it is divided by
  of: str = "ours"
  at_most: bool = False  # else at least

  @property
  def share(self) -> bool:
    """Whether the figure is a ratio or a share, which is printed with more digits than the figure
    of a unit."""
    return (
      bool(self.against)
      or "share" in self.field
      or "over" in self.field
      or "utilisation" in self.field
    )


class Row(NamedTuple):
  """Contenders that are measured in turn, and what is read off them."""

  name: str
  contenders: tuple[Contender, ...]
  bars: tuple[Bar, ...]
  weights: bool = False  # whether its processes load the model of --weights


def versus(name: str, title: str, program: str, bars: dict[str, float | None], *flags: str) -> Row:
  """A row in which everyone does the same; bars: the least ratio of ours to each peer."""
  contenders = tuple(Contender(name, (f"--program={program}", *flags)) for name in ("ours", *bars))
  return Row(name, contenders, tuple(Bar(title, "per_s", bar, peer) for peer, bar in bars.items()))


def step_row(size: str, bars: dict[str, float], memory: float, *flags: str) -> Row:
  """A whole RL step. Peers decode to the longest row, which is a full one, so their full-length
  step stands in for the ragged one. `memory`: MB that the full-length step may need, 0 = no bar."""
  full, ragged = (f"--program={program}" for program in ("step", "step_ragged"))
  contenders = (
    Contender("ours ragged", (ragged, f"--size={size}", *flags)),
    *(Contender(peer, (full, f"--size={size}", *flags)) for peer in bars),
    Contender("ours full", (full, f"--size={size}", *flags)),
  )
  title = f"RL step {size}, n = 64, ragged (peers at full length)"
  found = [Bar(title, "per_s", bar, peer, of="ours ragged") for peer, bar in bars.items()]
  if memory:
    found.append(
      Bar(
        f"peak memory, step {size}, n = 64, MB", "peak_rss_mb", memory, of="ours full", at_most=True
      )
    )
  return Row(f"step_{size}", contenders, tuple(found))


def adaptive_row(block: int) -> Row:
  title = f"adaptive groups (k 4..16, block {block})"
  bars = (
    Bar(f"{title}: tokens/s over fixed groups", "details.over_fixed", 0.9),
    Bar(f"{title}: slot utilisation until the drain", "utilisation_filled", 0.9),
  )
  flags = ("--program=adaptive", "--groups=256", "--reps=1", f"--block={block}")
  return Row(f"adaptive_{block}", (Contender("ours", flags),), bars)


START = Row(
  "start",
  (Contender("ours", ("--program=start",)),),
  (
    Bar("start to first RL step, cold cache, s", "first_s", 15.0, at_most=True),
    Bar("start to first RL step, warm cache, s", "med_s", 6.0, at_most=True),
    Bar("compilations in a run", "compilations", 12, at_most=True),
    Bar("compilations after step 2", "compilations_late", 0, at_most=True),
  ),
)
CPU = (
  versus("sample_s", "sample s, n = 64", "sample", {"transformers": 2.4, "tunix": 3.2}),
  versus(
    "sample_s_256", "sample s, n = 256", "sample", {"transformers": 2.8, "tunix": 4.2}, "--group=16"
  ),
  versus(
    "ragged_s", "ragged s, n = 64, useful tokens", "ragged", {"transformers": 4.0, "tunix": 5.0}
  ),
  versus(
    "sample_l",
    "sample l, n = 64",
    "sample",
    {"transformers": 1.4, "tunix": 1.7},
    "--size=l",
    "--reps=2",
  ),
  versus("train_s", "update s, all rows full", "train", {"transformers": 1.0, "tunix": 2.2}),
  versus(
    "train_ragged_s",
    "update s, ragged, packed (transformers padded)",
    "train_ragged",
    {"transformers": 1.5},
  ),
  versus(
    "train_l",
    "update l, all rows full",
    "train",
    {"transformers": 0.85, "tunix": 1.6},
    "--size=l",
    "--reps=1",
  ),
  step_row("s", {"trl": 2.5, "tunix": 4.0}, 1000.0),
  step_row("l", {"trl": 1.3, "tunix": 2.0}, 0.0, "--reps=1"),
  adaptive_row(1),
  adaptive_row(2),
  START,
)

# The programs of --quick: fewer sequences, few programs to compile, and what compiles most with a
# tiny shape.
LITTLE = ("--groups=4", "--response=32", "--reps=1", "--set=sampler.slots=16")
ONE_SHAPE = tuple(f"--set={change}" for change in work.ONE_SHAPE)
QUICK = (
  ("--program=sample,ragged", *LITTLE, *ONE_SHAPE),
  (
    "--program=train,train_ragged,step,step_ragged,adaptive,start",
    "--size=tiny",
    *LITTLE,
    *ONE_SHAPE,
    "--block=2",
  ),
)


def gpu_rows(size: str) -> tuple[Row, Row]:
  """Decode at batch 64 and the update, in bfloat16. Bars: half of the copy bandwidth while
  decoding, 40 % of the matmul rate in the update; the ratios to transformers are shown beside. Few
  repetitions: the suite has 8 minutes."""
  flags = (f"--size={size}", "--prompt=256", "--response=512", "--dtype=bfloat16", "--reps=1")
  sample = versus(
    f"gpu_sample_{size}", f"decode {size}, batch 64", "sample", {"transformers": None}, *flags
  )
  train = versus(
    f"gpu_train_{size}", f"update {size}, n = 64", "train", {"transformers": None}, *flags
  )
  copied = Bar(f"decode {size}, batch 64: share of copy bandwidth", "copy_share", 0.5)
  peak = Bar(f"update {size}, n = 64: share of the matmul ceiling", "matmul_share", 0.4)
  return sample._replace(bars=(copied, *sample.bars)), train._replace(bars=(peak, *train.bars))


GPU = (*gpu_rows("0.6b"), *gpu_rows("1.7b"))


# SmolLM2-135M: 16 prompts of 64 tokens, 4 responses each of 12 to 96 tokens, micro-batches of one
# row a core, which is fastest where rows differ.
REAL = ("--size=smollm2", "--response=96", "--shortest=12", "--reps=1")
LM = (
  versus("lm_sample", "SmolLM2, sample, ragged", "ragged", {"transformers": 2.0}, *REAL)._replace(
    weights=True
  ),
  Row(
    "lm_update",
    (
      Contender("ours", ("--program=train_ragged", *REAL)),
      Contender("transformers", ("--program=train_ragged", *REAL)),
    ),
    (
      Bar("SmolLM2, update, ragged: share of the matmul ceiling", "matmul_share", 0.6),
      Bar("SmolLM2, update, ragged, packed (transformers padded)", "per_s", None, "transformers"),
    ),
    weights=True,
  ),
  Row(
    "lm_step",
    (
      Contender("ours", ("--program=step_ragged", *REAL)),
      Contender("trl", ("--program=step", *REAL)),
    ),
    (
      Bar("SmolLM2, RL step, ragged (TRL at full length)", "per_s", 2.0, "trl"),
      Bar("SmolLM2, peak memory of the step, MB", "peak_rss_mb", 6000.0, at_most=True),
    ),
    weights=True,
  ),
)


def vocabulary_row(size: str) -> Row:
  """Few layers with a large vocabulary and responses of 512 tokens, ours alone: what grows on the
  host with the vocabulary, or faster than the responses, shows in the main thread's seconds."""
  flags = (f"--size={size}", "--groups=4", "--response=512", "--reps=1")
  names = ("sample", "train", "step")
  contenders = tuple(Contender(f"ours {name}", (f"--program={name}", *flags)) for name in names)
  bars = tuple(
    Bar(
      f"vocabulary of {size}, responses of 512: {name}, main thread, s", "host_s", None, of=c.name
    )
    for name, c in zip(names, contenders)
  )
  return Row(f"vocabulary_{size}", contenders, bars)


LM += tuple(vocabulary_row(size) for size in ("49k", "152k", "262k"))


SUITES = {"cpu": CPU, "gpu": GPU, "lm": LM}


def pick(wanted, names):
  """The rows called `names`, all if there are none. Raises SystemExit for a name that does not
  exist."""
  known = {row.name: row for row in wanted}
  if unknown := sorted(set(names) - set(known)):
    sys.exit(f"error: --only: found {', '.join(unknown)}, expected some of {', '.join(known)}")
  return [row for row in wanted if not names or row.name in names]


def done(row: dict | None, contenders, rounds: int) -> bool:
  """Whether a row's results have every contender in every round."""
  return row is not None and all(
    len(row["contenders"].get(c.name, ())) >= rounds for c in contenders
  )


def loadable(chosen: list[Row], weights: Path | None) -> tuple[list[Row], str]:
  """-> (the rows that can be measured, "" or why the others cannot). `weights`: the folder of their
  model; None = none is wanted."""
  if weights is None:
    return list(chosen), ""
  missing = [name for name in work.WEIGHTS if not (weights / name).is_file()]
  without = [row.name for row in chosen if row.weights]
  if not without or not missing:
    return list(chosen), ""
  reason = (
    f"not measured: {', '.join(without)}: --weights={weights} has no {' and no '.join(missing)}, "
    "expected SmolLM2-135M as a Hugging Face directory (`make lm` makes one)"
  )
  return [row for row in chosen if not row.weights], reason
