"""Metrics: (sum, count) pairs until written, then JSON lines, TensorBoard and a progress line.

A workdir holds `config.json` (the run's resolved config), `metrics.jsonl` and `tensorboard/`. One
line of metrics.jsonl is one object: `step`, `rollouts` (cumulative, discarded ones included), then
the metrics sorted by name; a value that is not finite is null. The line of step n describes the
state after n steps, so a run restored at step n goes on after that line. Names that start with
"time/" depend on the machine and the process; they are the only fields in which a resumed run may
differ from an unbroken one.
"""

import collections
import contextlib
import fnmatch
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time

from etils import epath
import jax

from v05_jax import config as configuration
from v05_jax.scale import distributed

Pairs = dict[str, tuple[float, float]]  # name -> (sum, count); the metric is sum / count

# Every metric: name, or a pattern for a family of names -> meaning, unit. The writer refuses
# others.
# "Value units" are those of rewards mapped to [-1, 1].
METRICS = {
  "reward": "mean reward, in the verifier's own units",
  "accuracy": "mean success of the step's rollouts, in [0, 1]; with selection, of the prompts that "
  "were taken",
  "accuracy/*": "the same for one task family",
  "prompts": "prompts finished in the step",
  "rollouts_discarded": "rollouts of the step that dynamic sampling discarded",
  "k/mean": "rollouts with a verdict per prompt",
  "k/hist/*": "prompts of the step that got this many rollouts",
  "prior/accepted": "share of prompts whose rollouts do not contradict the prior (delta2 = 0)",
  "prior/abs_error": "|V - vbar|, mean over prompts, value units",
  "prior/true_mse": "(V - mu)^2 where the true mean reward mu is exact, value units squared",
  "prior/support": "pairs in the context that the prior saw",
  "prior/rmse": "root mean square of V - reward over the context, each pair's V as it was asked "
  "before its rollouts; "
  "their noise is part of it; value units",
  "prior/bias": "mean of V - reward over the same pairs, above 0 = V is too optimistic; value "
  "units",
  "prior/mse": "(V - vbar)^2, mean over the step's prompts and of rollouts whose number was fixed "
  "in advance: V as "
  "recalibrated, without history, in use or not; value units squared",
  "prior/constant_mse": "the same of the context's mean, which takes over where it is less for "
  "prior.fallback steps",
  "prior/fallback": "1 where the context's mean stood in for V in this step",
  "prior/smoothed": "1 where the context was none that the head is made for: V was the smoothed "
  "success rate (v0)",
  "shrinkage/weight": "weight w of the group mean in the fused baseline (v05, value and the group "
  "baselines)",
  "shrinkage/estimated_mse": "the rule's own estimate of the baseline's MSE, value units squared "
  "(those and ewa)",
  "shrinkage/true_mse": "(baseline - mu)^2 where mu is exact, value units squared",
  "shrinkage/true_mse_mean": "(vbar - mu)^2 where mu is exact: the group mean's, for comparison",
  "prior/history": "weight of a prompt's own history in the prior",
  "selection/chance": "chance with which the prompts taken were selected from the pool",
  "scoreboard/*/sq_adv": "mean squared leave-one-out advantage of an estimator on rollouts whose "
  "number was fixed in "
  "advance: E[1 - mu^2] plus its MSE at one rollout less, so differences between estimators are "
  "differences of MSE. Of "
  "prompts with one rollout the priors alone are judged, and the group mean is 0",
  "scoreboard/*/difference": "the same minus that of the run's own baseline, over all prompts so "
  "far: negative = the "
  "estimator fits this run better",
  "scoreboard/*/standard_error": "of the difference, over prompts",
  "advantage/mean_square": "mean squared advantage",
  "advantage/zero_share": "share of rollouts whose advantage is 0",
  "loss/total": "the loss that was minimised",
  "loss/kl": "KL to the frozen first policy, nats a token",
  "loss/entropy": "entropy of the policy, nats a token",
  "loss/clip_fraction": "share of tokens whose ratio was clipped",
  "loss/logprob_gap": "mean |trainer's log-prob - sampler's| before the step's first update, nats",
  "grad/norm": "global gradient norm before clipping",
  "grad/skipped": "share of the step's updates skipped for a non-finite loss or gradient",
  "response/length": "response tokens, EOS included",
  "response/truncated": "share of rollouts without EOS at the limit",
  "rewards/failed": "rollouts of the step whose verifier hung or crashed",
  "sampler/utilisation": "share of slot-steps computed that sampled a token of a rollout",
  "sampler/utilisation_filled": "the same of all slots, while rollouts were waiting to start",
  "sampler/decode_steps": "decode steps of the step",
  "sampler/refills": "rollouts that took over a slot which another had left",
  "data/epoch": "passes over the prompts so far",
  "eval/exact": "success probability on the evaluation prompts, of the families where it is exact",
  "eval/exact/*": "the same for one task family",
  "eval/accuracy": "exact success where there is one, else mean@n",
  "eval/accuracy/*": "the same for one task family or benchmark",
  "eval/mean": "mean@n: share of sampled responses that succeed",
  "eval/mean/*": "the same for one task family or benchmark",
  "eval/pass": "pass@n: share of prompts with at least one success in n",
  "eval/pass/*": "the same for one task family or benchmark",
  "eval/pass_at_*": "pass@k, unbiased: chance that of k of a prompt's n responses one succeeds "
  "(--mode=eval)",
  "eval/length": "response tokens in the evaluation",
  "eval/length/*": "the same for one task family or benchmark",
  "eval/truncated": "share of the evaluation's responses without EOS at the limit",
  "eval/truncated/*": "the same for one task family or benchmark",
  "eval/failed": "share of the evaluation's responses whose verifier hung or crashed: they count "
  "as no success",
  "eval/average/*": "of several benchmarks: the mean of theirs, each of which weighs the same",
  "sft/*": "a loss of the warm start, nats a token",
  "value/*": "of --mode=value: the loss and its parts `pair` and `soft`, grad_norm; `excess` = "
  "soft less what the true "
  "probabilities have (synthetic tasks); on the held-out pairs auc, gauc (inside a context), rmse "
  "of V (value units), "
  "ece, pair_strict and pair_ranking (one prompt in two contexts)",
  "time/step": "wall time of the step, the rest of the update before it included, s",
  "time/sample": "wall time of sampling, verdicts included, s",
  "time/verify": "time that the sampler waited for verdicts, s",
  "time/update": "host time of the update: advantages, packing, start of the program, s; the "
  "device may work on",
  "time/tokens_per_second": "response tokens per second of sampling, verdicts included",
  "time/compilations": "programs compiled since the run was started",
}


def merge(a: Pairs, b: Pairs) -> Pairs:
  """The pairs of both together: sums and counts add up where a name stands in both."""
  both = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a.keys() & b.keys()}
  return {**a, **b, **both}


def means(pairs: Pairs) -> dict[str, float]:
  """sum / count of each pair; NaN where the count is 0."""
  return {
    name: float(total) / float(count) if count else math.nan
    for name, (total, count) in pairs.items()
  }


def meaning(name: str) -> str | None:
  """What `METRICS` says of a name, by itself or by a pattern; None if it says nothing."""
  return METRICS.get(name) or next(
    (text for x, text in METRICS.items() if fnmatch.fnmatchcase(name, x)), None
  )


def table() -> str:
  """`METRICS` as a Markdown table."""
  rows = [f"| `{name}` | {text} |" for name, text in METRICS.items()]
  return "\n".join(["| metric | meaning |", "| --- | --- |", *rows])


def read(workdir) -> list[dict]:
  """The lines of a workdir's metrics.jsonl, [] if there is none.

  A last line that is torn (the writer was killed) is left out; any other bad line is a ValueError.
  """
  path = folder(workdir) / "metrics.jsonl"
  if not path.exists():
    return []
  lines = []
  *whole, last = path.read_text().split("\n")
  for number, text in enumerate([*whole, last] if last.strip() else whole, 1):
    try:
      line = json.loads(text)
      if not isinstance(line.get("step"), int):
        raise ValueError("no step")
      lines.append(line)
    except (ValueError, AttributeError):
      if number <= len(whole):
        found = f"found {text[:80]!r}, expected a JSON object with a step"
        raise ValueError(f"{path}, line {number}: {found}") from None
  return lines


def is_remote(path) -> bool:
  """Whether a path is an object store's (gs://...), where a file cannot be appended to."""
  return "://" in os.fspath(path)


def folder(workdir) -> epath.Path:
  """The workdir as an absolute path, which Orbax wants; a remote one is that already."""
  path = epath.Path(workdir)
  return path if is_remote(path) else path.expanduser().resolve()


def prepare(workdir) -> epath.Path:
  """Makes the workdir and proves that it can be written, else ValueError. Cheap: call it first."""
  path = folder(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".writable"
    probe.write_text("")
    probe.unlink()
  except (OSError, ImportError) as error:  # no right to write, no such place; or no gcsfs for gs://
    reason = getattr(error, "strerror", None) or error
    raise ValueError(f"workdir {os.fspath(path)}: cannot be written: {reason}") from error
  return path


class Lines:
  """A file of JSON lines that grows, from the lines `kept` on. In an object store, where files
  cannot be appended to, the lines are kept and written as a whole by `flush`."""

  def __init__(self, path: epath.Path, kept=()):
    self._path, self._text = path, "".join(json.dumps(line) + "\n" for line in kept)
    replace(path, self._text)
    self._file = None if is_remote(path) else open(path, "a", encoding="utf-8")

  def append(self, line: dict):
    if self._file is None:
      self._text += json.dumps(line) + "\n"
    else:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()  # enough for a killed process; `flush` is for a machine that ends

  def flush(self):
    if self._file is None:
      self._path.write_text(self._text)
    else:
      os.fsync(self._file.fileno())

  def close(self):
    self.flush()
    if self._file is not None:
      self._file.close()


class Writer:
  """Writes a run's config.json, metrics.jsonl and TensorBoard events; a context manager.

  `done` is the number of steps of the restored state: lines after step `done` are cut off, since
  the run will write them again; 0 is a fresh run, which keeps none.
  """

  def __init__(self, workdir, config, done: int = 0):
    from tensorboardX import SummaryWriter

    self._path = prepare(workdir)
    self._remote = is_remote(self._path)
    kept = [line for line in read(workdir) if line["step"] <= done] if done else []
    replace(self._path / "config.json", configuration.to_json(config))
    self._lines = Lines(self._path / "metrics.jsonl", kept)
    self._events = tempfile.mkdtemp() if self._remote else os.fspath(self._path / "tensorboard")
    suffix = f".{time.time_ns()}"  # else a restart within a second would overwrite the file
    first = done + 1 if done else 0
    self._board = SummaryWriter(self._events, purge_step=first, filename_suffix=suffix)
    # the last written value of each metric, for the progress line
    self.latest: dict[str, float] = {}
    self._pending = None  # the line taken and not yet written

  def write(self, step: int, rollouts: int, pairs: Pairs):
    """Takes the line of a step and writes the one before it: pairs may hold device arrays, which
    are read when the next step is under way. Raises ValueError for a name that `METRICS` does not
    document.
    """
    if unknown := sorted(name for name in pairs if meaning(name) is None):
      raise ValueError(f"metrics without an entry in metrics.METRICS: {', '.join(unknown)}")
    self._settle()
    self._pending = step, rollouts, pairs

  def _settle(self):
    """Writes the line that was taken last."""
    if self._pending is None:
      return
    step, rollouts, pairs = self._pending
    self._pending = None
    values = {name: v if math.isfinite(v) else None for name, v in sorted(means(pairs).items())}
    self._lines.append({"step": int(step), "rollouts": int(rollouts), **values})
    finite = {name: value for name, value in values.items() if value is not None}
    self.latest |= finite
    for name, value in finite.items():
      self._board.add_scalar(name, value, int(step))

  def flush(self):
    """Makes sure that every line so far survives; call it before each checkpoint."""
    self._settle()
    self._board.flush()
    self._lines.flush()
    if self._remote:
      board = self._path / "tensorboard"
      board.mkdir(parents=True, exist_ok=True)
      for file in pathlib.Path(self._events).iterdir():
        (board / file.name).write_bytes(file.read_bytes())

  def close(self):
    self.flush()
    self._board.close()
    self._lines.close()
    if self._remote:
      shutil.rmtree(self._events)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class Silent:
  """In place of the `Writer`, in all processes but the first: writes nothing."""

  latest: dict[str, float] = {}

  def write(self, step: int, rollouts: int, pairs: Pairs):
    """Does nothing, as `flush`."""

  def flush(self):
    pass


def writer(workdir, config, done: int = 0):
  """Context manager: the run's `Writer` in process 0, `Silent` in others."""
  return Writer(workdir, config, done) if distributed.first() else contextlib.nullcontext(Silent())


def replace(path: epath.Path, text: str):
  """Writes a file as a whole or not at all (a remote object is written so in any case)."""
  if is_remote(path):
    path.write_text(text)
    return
  new = f"{os.fspath(path)}.new"
  with open(new, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


class CompilationCounter:
  """Counts XLA compilations from its creation to `close`; calling it gives the count.

  A program that comes from the persistent cache counts as well: what matters is that nothing new is
  traced.
  """

  EVENT = "/jax/core/compile/backend_compile_duration"

  def __init__(self):
    self._count, self._lock = 0, threading.Lock()  # programs compile in several threads
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def __call__(self) -> int:
    return self._count

  def _listen(self, event: str, duration: float, **_):
    with self._lock:
      self._count += event == self.EVENT

  def close(self):
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


SHOWN = ("eval/accuracy", "reward", "k/mean")


class Progress:
  """One line on a terminal: steps, rate, time left and a few values; silent when not on a terminal.

  The rate is that of the last steps of this process, so compilation and resumed steps do not
  distort it.
  """

  def __init__(self, total: int, done: int = 0, stream=None, clock=time.monotonic):
    self._total, self._stream, self._clock = total, stream or sys.stderr, clock
    self._shown = distributed.first() and self._stream.isatty()
    self._recent = collections.deque([(clock(), done)], maxlen=20)
    self._wrote = False

  def update(self, done: int, values: dict[str, float], names=SHOWN):
    """Shows `done` of `total` and those of `names` that have a value."""
    self._recent.append((self._clock(), done))
    if not self._shown:
      return
    (start, first), (now, last) = self._recent[0], self._recent[-1]
    rate = (last - first) / (now - start) if now > start else 0.0
    left = f"{_clock_time((self._total - done) / rate)} left" if rate else ""
    shown = [f"{name} {values[name]:.3g}" for name in names if name in values]
    parts = [f"step {done}/{self._total}", f"{rate:.2f} steps/s", left, *shown]
    line = "  ".join(part for part in parts if part)
    width = shutil.get_terminal_size().columns - 1
    self._stream.write(f"\r{line[:width]}\x1b[K")
    self._stream.flush()
    self._wrote = True

  def close(self):
    if self._wrote:
      self._stream.write("\n")

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def _clock_time(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
