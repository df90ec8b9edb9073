"""Metrics: what each name means, (sum, count) pairs until they are written, and lines read back.

A workdir holds `config.json` (the run's resolved config), `metrics.jsonl` and `tensorboard/`. One
line of metrics.jsonl is one object: `step`, `rollouts` (cumulative, discarded ones included), then
the metrics sorted by name; a value that is not finite is null. The line of step n describes the
state after n steps, so a run restored at step n goes on after that line. Names that start with
"time/" depend on the machine and the process; they are the only fields in which a resumed run may
differ from an unbroken one.
"""

import fnmatch
import json
import math
import sys

from v05_jax.run import files

FILE = "metrics.jsonl"  # of a workdir
# The advice where lines of a run are missing.
ELSEWHERE = "go on in a new workdir from --mode=export of this one"

Pairs = dict[str, tuple[float, float]]  # name -> (sum, count); the metric is sum / count

# Every metric that is documented: its name, or a pattern for a family of names -> meaning and unit.
# The writer refuses others. Whoever writes metrics of its own adds them by `document`.
# "Value units" are those of rewards mapped to [-1, 1].
METRICS = {
  "reward": "mean reward, in the verifier's own units",
  "accuracy": "mean success of the step's rollouts, in [0, 1], without truncated ones where "
  "sampler.truncated is mask; with selection, of the prompts that were taken",
  "accuracy/*": "the same for one task family",
  "prompts": "prompts finished in the step",
  "rollouts_discarded": "rollouts of the step that dynamic sampling discarded",
  "k/mean": "rollouts with a verdict per prompt",
  "k/hist/*": "prompts of the step that got this many rollouts",
  "prior/accepted": "share of prompts whose rollouts do not contradict the prior (delta2 = 0)",
  "prior/abs_error": "|V - vbar|, mean over prompts, value units",
  "prior/true_mse": "(V - mu)^2 where the true mean reward mu is exact, value units squared",
  "prior/support": "pairs that the prior had learnt from",
  "prior/rmse": "root mean square of V - reward over the context, each pair's V as it was asked "
  "before its rollouts; their noise is part of it; value units",
  "prior/bias": "mean of V - reward over the same pairs, above 0 = V is too optimistic; value "
  "units",
  "prior/mse": "(V - vbar)^2, mean over the step's prompts and of rollouts whose number was fixed "
  "in advance: V as recalibrated, without history, in use or not; value units squared",
  "prior/constant_mse": "the same of the context's mean, which takes over where it is less for "
  "priors.fallback.patience steps in a row",
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
  "replay/rollouts": "rollouts of earlier steps in the step's update (loss.replay)",
  "replay/age": "steps since they were sampled, mean",
  "replay/advantage": "their |advantage|, mean, value units",
  "scoreboard/*/sq_adv": "mean squared leave-one-out advantage of an estimator on rollouts whose "
  "number was fixed in advance: E[1 - mu^2] plus its MSE at one rollout less, so differences "
  "between estimators are differences of MSE. Of prompts with one rollout the priors alone are "
  "assessed, and the group mean is 0",
  "scoreboard/*/difference": "the same minus that of the run's own baseline, over all prompts so "
  "far: negative = the estimator fits this run better",
  "scoreboard/*/standard_error": "of the difference, over prompts",
  "noise/rho": "mean score of failed rollouts over that of successful ones, all prompts together; "
  "a rollout's score is the sum over its tokens of (1 - p)^2, p as the sampler had it, and "
  "stands for the squared length of its gradient",
  "noise/w_reward": "mean reward weighted by score, value units: the one baseline for all prompts "
  "that leaves the least noise in the gradient",
  "noise/second_moment": "mean of score x A^2, A the leave-one-out advantage by the run's own "
  "baseline, of rollouts whose number was fixed in advance",
  "noise/*/ratio": "the same by another estimator over that by the run's own, mean over all "
  "prompts so far: below 1 = a policy gradient with less noise",
  "noise/*/standard_error": "of the ratio, over prompts",
  "noise/selection": "second moment of the gradient with the prompts that selection has taken, "
  "weighted by 1 / their chances, over that with prompts drawn alike: below 1 = less noise",
  "noise/effective_sample_size": "rollouts that the update's gradient is made of, were all shares "
  "in it the same: (sum c)^2 / sum c^2, c = weight in the loss x |A| x sqrt(w)",
  "advantage/mean_square": "mean squared advantage",
  "advantage/zero_share": "share of rollouts whose advantage is 0",
  "loss/total": "the loss that was minimised",
  "loss/kl": "KL to the frozen first policy, nats a token",
  "loss/entropy": "entropy of the policy, nats a token",
  "loss/clip_fraction": "share of tokens whose ratio was clipped, or that the surrogate ignores",
  "loss/correction_fraction": "share of tokens whose trainer-sampler ratio was cut or left out",
  "loss/logprob_gap": "mean |trainer's log-prob - sampler's| before the step's first update, nats; "
  "with loss.replay also of replayed rollouts, whose policy was an older one",
  "grad/norm": "global gradient norm before clipping",
  "grad/skipped": "share of the step's updates skipped for a non-finite loss or gradient",
  "response/length": "response tokens, EOS included",
  "response/truncated": "share of rollouts without EOS at the limit",
  "rewards/failed": "rollouts of the step whose verifier hung or crashed",
  "rewards/clipped": "rollouts of the step whose reward lay outside of rewards.low .. rewards.high "
  "and was clipped; there only if there are any",
  "sampler/utilisation": "share of slot-steps computed that sampled a token of a rollout",
  "sampler/utilisation_filled": "the same of all slots, while rollouts were waiting to start",
  "sampler/decode_steps": "decode steps of the step",
  "sampler/not_finite": "rollouts of the step with a log-prob that is not finite, as of weights "
  "that are too large; absent where there are none",
  "sampler/refills": "rollouts beyond the number of slots, which took over a slot from another",
  "data/epoch": "passes over the prompts so far",
  "eval/exact": "success probability on the evaluation prompts, of the families where it is exact",
  "eval/exact/*": "the same for one task family",
  "eval/accuracy": "exact success where there is one, else mean@n",
  "eval/accuracy/*": "the same for one task family or benchmark",
  "eval/mean": "mean@n: mean success of the sampled responses, in part for what is right in part",
  "eval/mean/*": "the same for one task family or benchmark",
  "eval/pass": "pass@n: share of prompts with at least one response of n that is right in full",
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
  "soft less what the true probabilities have (synthetic tasks); on the held-out pairs auc, gauc "
  "(inside a context), rmse of V (value units), ece, pair_strict and pair_ranking (one prompt in "
  "two contexts)",
  "time/step": "wall time of the step, the rest of the update before it included, s",
  "time/sample": "wall time of sampling, verdicts included, s",
  "time/verify": "time that the sampler waited for verdicts, or computed them, s",
  "time/update": "host time of the update: advantages, packing, start of the program, s; the "
  "device may work on",
  "time/tokens_per_second": "response tokens per second of sampling, verdicts included",
  "time/compilations": "programs compiled since the run was started",
}


def merge(a: Pairs, b: Pairs) -> Pairs:
  """The pairs of both together: sums and counts add up where a name stands in both."""
  both = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a if name in b}
  return {**a, **b, **both}


def means(pairs: Pairs) -> dict[str, float]:
  """sum / count of each pair; NaN where the count is 0."""
  return {
    name: float(total) / float(count) if count else math.nan
    for name, (total, count) in pairs.items()
  }


def document(meanings: dict[str, str]):
  """Adds names or patterns ("k/hist/*") with their meanings to `METRICS`; called by the module that
  writes them when it is imported.

  Saying the same twice changes nothing. Raises ValueError, before anything is added, for a name
  that has another meaning already.
  """
  for name, text in meanings.items():
    if (known := METRICS.get(name, text)) != text:
      raise ValueError(f"metric {name}: found the meaning {text!r}, expected {known!r}, as before")
  METRICS.update(meanings)


def meaning(name: str) -> str | None:
  """What `METRICS` says of a name: under the name itself, else under the longest pattern that fits;
  None if it says nothing."""
  patterns = (x for x in METRICS if fnmatch.fnmatchcase(name, x))
  return METRICS.get(name) or METRICS.get(max(patterns, key=len, default=""))


def undocumented(pairs: Pairs) -> str:
  """What is wrong with metrics that `METRICS` does not document; "" where it has all."""
  names = sorted(name for name in pairs if meaning(name) is None)
  if not names:
    return ""
  expected = (
    f'metrics.document({{"{names[0]}": "what it is"}}), of v05_jax.run, in the plug\'s file'
  )
  return f"found the metric {', '.join(names)} without a meaning, expected {expected}"


def table() -> str:
  """`METRICS` as a Markdown table."""
  rows = [f"| `{name}` | {text} |" for name, text in METRICS.items()]
  return "\n".join(["| metric | meaning |", "| --- | --- |", *rows])


def read(workdir) -> list[dict]:
  """The lines of a workdir's metrics.jsonl, [] if there is none.

  A last line that is torn (the writer was killed) is left out; any other bad line is a ValueError,
  and so are lines that one run cannot have written: steps that are missing, come twice or go back.
  """
  path = files.folder(workdir) / FILE
  lines = _parse(path)
  _check_order(path, lines)
  return [line for _, line in lines]


def until(workdir, done: int) -> list[dict]:
  """The lines of a run that goes on after step `done`: those of steps up to it, all of them.

  Raises ValueError, with file and line, where one of them is missing, there twice, out of order or
  no JSON. What follows them is left out: the run will write it again.
  """
  path = files.folder(workdir) / FILE
  lines = [(number, line) for number, line in _parse(path) if line["step"] <= done]
  _check_order(path, lines)
  last = lines[-1][1]["step"] if lines else None
  if last != done:
    found = "no such line" if last is None else f"the last one of step {last}"
    raise ValueError(
      f"{path}: found {found}, expected the lines up to step {done}, which the checkpoint has "
      f"behind it: put the file back, or {ELSEWHERE}"
    )
  return [line for _, line in lines]


def _parse(path) -> list[tuple[int, dict]]:
  """(number, line) of a file's lines, but for a last one that is torn."""
  if not path.exists():
    return []
  if path.is_dir():
    raise ValueError(f"{path}: found a folder, expected a file")
  lines = []
  *whole, last = path.read_bytes().split(b"\n")
  for number, text in enumerate([*whole, last] if last.strip() else whole, 1):
    try:
      line = json.loads(text)
      if type(line.get("step")) is not int:
        raise ValueError("no step")
    except (ValueError, AttributeError, RecursionError):
      if number <= len(whole):
        found = f"found {text[:80].decode(errors='replace')!r}, expected a JSON object with a step"
        raise ValueError(f"{path}, line {number}: {found}") from None
    else:
      if wrong := [name for name, value in line.items() if not _is_value(value)]:
        found = f"{wrong[0]}: found {line[wrong[0]]!r:.80}, expected a finite number or null"
        raise ValueError(f"{path}, line {number}: {found}")
      lines.append((number, line))
  return lines


def _is_value(value) -> bool:
  number = type(value) in (int, float) and abs(value) <= sys.float_info.max  # NaN is not
  return number or value is None


def _check_order(path, lines: list[tuple[int, dict]]):
  """Raises ValueError at the first line that does not follow the one before it: its step is one
  more, from 0 or 1 on, and its rollouts, which are cumulative, are not fewer."""
  before = None
  for number, line in lines:
    expected = "0 or 1" if before is None else before["step"] + 1
    if line["step"] not in ((0, 1) if before is None else (expected,)):
      raise ValueError(
        f"{path}, line {number}: found step {line['step']}, expected {expected}: lines are missing "
        f"or there twice, or of another run; {ELSEWHERE}"
      )
    fewest = before.get("rollouts") if before else 0
    rollouts = line.get("rollouts", fewest)
    if type(rollouts) is not int or rollouts < (fewest or 0):
      raise ValueError(
        f"{path}, line {number}: found {rollouts!r} rollouts so far, expected at least {fewest}: "
        f"this line is of another run; {ELSEWHERE}"
      )
    before = line
