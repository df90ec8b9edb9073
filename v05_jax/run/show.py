"""What a run would do next, in a readable form: prompts, V, rollouts, test, baseline, advantages.

They come from the functions that the training loop calls; the step is not taken.
"""

import json
import math
import os
from typing import Any

import numpy as np

from v05_jax import config as configuration
from v05_jax import plug, rewards
from v05_jax.budgets import base as budgets
from v05_jax.observers.exact import truth
from v05_jax.run import files, samples
from v05_jax.run.export import restored
from v05_jax.sampling import rollouts
from v05_jax.sampling.draw import Drawn, draw
from v05_jax.setup import Run, setup
from v05_jax.shapes import shapes
from v05_jax.structs import Draw, TrainState

# characters printed of the beginning and of the end of a long response; the rest is counted
ENDS = 160, 80
ENDS_OF_PROMPT = 600, 200
# What `explained` holds that has a line of its own in the print.
SHOWN = ("baseline", "weight", "delta2", "statistic")
NAMES = {"expected_mse": "expected squared error"}  # of the rest, where they want another one


def show(config, workdir: str, step: int | None = None, prompts: int = 8) -> list[dict[str, Any]]:
  """`--mode=sample`: prints the run's next `prompts` prompts and writes them to
  WORKDIR/sample.jsonl -> its lines.

  Takes the checkpoint of `step`, by default the newest, or, where there is none, the policy of the
  config. What does not depend on the number of prompts is what the next training step sees:
  prompts, V, rollouts, and the advantages of an estimator that looks at one prompt alone. Nothing
  else in the workdir changes.

  Raises ValueError for bad input before anything is sampled.
  """
  folder, few = files.prepare(workdir), narrowed(config, prompts)
  configuration.validate(few)
  with rewards.load(few) as verifier:
    run = setup(few)
    found, state = restored(run, workdir, step)
    whole = run._replace(config=config, shapes=shapes(config, run.budget.limits))
    usual = whole.prompts_per_step(float(state.mean_k))
    state = state.replace(mean_k=np.float32(run.config.rollouts_per_step / prompts))
    collect = rollouts.make(run.policy, run.config, run.mesh, verifier)
    drawn = draw(run, collect, state)
  found_lines = lines(run, state, drawn.taken)
  path = folder / "sample.jsonl"
  files.replace(path, "".join(json.dumps(line) + "\n" for line in found_lines))
  parts = [
    heading(run, drawn, _who(found, workdir), usual),
    *map(text, found_lines),
    totals(found_lines),
  ]
  print("\n\n".join([*parts, os.fspath(path)]))
  return found_lines


def narrowed(config, prompts: int):
  """The config with steps of so many prompts. Raises ValueError unless `prompts` is at least 1."""
  if prompts < 1:
    raise ValueError(f"--prompts={prompts}: expected at least 1")
  config = config.copy_and_resolve_references()
  limits = budgets.make(plug.Setting(config)).limits
  config.rollouts_per_step = math.ceil(prompts * (limits.mean or limits.first))
  config.loss.minibatches = 1
  return config


def lines(run: Run, state: TrainState, draw: Draw) -> list[dict[str, Any]]:
  """A JSON object a prompt; a number that does not exist or is infinite is null. Rewards are the
  verifier's own, `exact` is a success probability, V, vbar, the baseline and the advantage are in
  units of rewards mapped to [-1, 1].
  """
  config, rolls, groups = run.config, draw.rolls, draw.groups
  advantage, explained = run.advantages(state.estimator, groups, draw.value)
  explained = {name: np.asarray(x) for name, x in explained.items()}
  known = (
    truth(run.exact, state.params, draw.prompts) if run.exact else np.full(len(groups.k), np.nan)
  )
  columns = {
    "position": draw.prompts.position,
    "row": draw.prompts.row,
    "value": draw.value,
    "vbar": np.where(groups.k > 0, groups.vbar, np.nan),
    "k": groups.k.astype(int),
    "exact": known,
    "importance": draw.importance,
    **{name: explained[name] for name in SHOWN},
  }
  bought = stops(run.budget, draw)
  terms = {NAMES.get(name, name): x for name, x in explained.items() if name not in SHOWN}
  if past := draw.asked.get("history"):
    terms |= {"V without the history": past["before"], "weight of the history": past["weight"]}
  texts, advantage, found = responses(run, draw), np.asarray(advantage), []
  for i, row in enumerate(draw.prompts.rows):
    tokens = draw.prompts.tokens[i, : draw.prompts.length[i]]
    line = {"step": int(state.step), "number": i, "baseline_kind": config.baseline}
    line |= {
      key: row[key] for key in ("benchmark", "family", "level", "prompt", "answer") if key in row
    }
    line["seen"] = decode(run, tokens)
    line |= {name: number(column[i]) for name, column in columns.items()} | bought[i]
    line |= {"terms": {name: number(column[i]) for name, column in terms.items()}, "rollouts": []}
    for j, answer in enumerate(texts[i]):
      line["rollouts"].append(
        {
          "index": j,
          "reward": number(rolls.reward[i, j]),
          **samples.parts(config, rolls, i, j),
          "length": int(rolls.length[i, j]),
          "ended": bool(rolls.ended[i, j]),
          "counts": bool(rolls.mask[i, j]),
          "advantage": number(advantage[i, j]),
          "text": answer,
        }
      )
    found.append(line)
  return found


def responses(run: Run, draw: Draw) -> list[list[str]]:
  """The rollouts' texts by prompt, special tokens visible, in the order of their index."""
  rolls = draw.rolls
  texts = [[""] * int(count) for count in (rolls.length > 0).sum(1)]
  for tokens, prompt, index in zip(rolls.tokens, rolls.prompt, rolls.index):
    texts[prompt][index] = decode(run, tokens[: rolls.length[prompt, index]])
  return texts


def decode(run: Run, tokens) -> str:
  """Text of tokens, special ones visible."""
  tokens = [int(t) for t in tokens]
  return run.policy.tokenizer.decode(
    tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


def stops(budget: budgets.Budget, draw: Draw) -> list[dict[str, Any]]:
  """For each prompt: rollouts `bought`, why there are no more (`stop`), and the numbers that a
  look-ahead rule compared.

  stop: "fixed" | "share" (of a total that the rule divides) | "cost" (gain <= cost) | "k_max" |
  "planned" (after a first stage) | what else the rule says. The gain is that of one more rollout at
  the end, or after a first stage.
  """
  bought = (draw.rolls.length > 0).sum(1)
  limits = budget.limits
  stop = "fixed" if limits.first == limits.most else "share" if limits.mean else "rule"
  found = {"stop": np.full(len(bought), stop), "gain": np.full(len(bought), np.nan), "cost": None}
  found |= budget.explain(draw.groups, draw.value, bought)
  return [
    {"bought": int(n), "stop": str(why), "gain": number(x), "cost": found["cost"]}
    for n, why, x in zip(bought, found["stop"], found["gain"])
  ]


def number(x):
  """A plain number for JSON: None where it is not finite."""
  x = np.asarray(x).item()
  return x if math.isfinite(x) else None


# --- The printed text


def _who(step: int | None, workdir: str) -> str:
  return (
    f"step {step} of {workdir}" if step is not None else "the policy of the config (no checkpoint)"
  )


def heading(run: Run, drawn: Drawn, who: str, usual: int) -> str:
  """The first lines: what was sampled, and how; `usual`: prompts of a training step."""
  config, limits, draw = run.config, run.budget.limits, drawn.taken
  count = len(draw.prompts.rows)
  prior = config.prior.kind
  support = drawn.draws[0].asked.get(plug.label(prior), {}).get("support")
  if support is not None:
    prior += f", {int(support[0])} pairs in its context"
  rule = f"{limits.first}"
  if limits.first != limits.most:
    rule += f" to {limits.most}, {config.budget.rule}"
  parts = [
    f"{who}: the next {count} prompts" if count > 1 else f"{who}: the next prompt",
    f"baseline {config.baseline}; prior {prior}; rollouts a prompt: {rule}; temperature "
    f"{config.sampler.temperature:g}",
    "V, vbar, the baseline and the advantage are in units of rewards mapped to [-1, 1], rewards "
    "the verifier's own",
  ]
  if lost := drawn.generated - len(draw.rolls.prompt):
    parts.append(
      f"{lost} of {drawn.generated} rollouts had no signal and were replaced (budget.max_resample)"
    )
  batch = [
    name
    for name, there in (
      (f"baseline {config.baseline}", run.estimator.of_batch),
      (f"budget.rule {config.budget.rule}", limits.mean and limits.first != limits.most),
      ("selection", config.selection.pool > 1),
    )
    if there
  ]
  if batch and usual != count:
    parts.append(
      f"{' and '.join(batch)}: of these prompts alone; --prompts={usual} shows a whole training "
      "step"
    )
  return "\n".join(parts)


def totals(found: list[dict[str, Any]]) -> str:
  """All prompts together, on one line."""
  if not found:
    return "no group had a signal (budget.max_resample)"
  accepted = [line["delta2"] == 0 for line in found if line["value"] is not None]
  bought = sum(line["bought"] for line in found)
  test = f"prior accepted: {sum(accepted)} of {len(accepted)}; " if accepted else ""
  return f"{test}rollouts: {bought}, {bought / len(found):.2f} a prompt"


def text(line: dict[str, Any]) -> str:
  """One prompt of sample.jsonl as it is printed."""
  label = line.get("benchmark") or line.get("family") or ""
  title = (
    f"prompt {line['number'] + 1}: row {line['row']}, position "
    f"{line['position']}{', ' * bool(label)}{label}"
  )
  fields = {
    "prompt": shortened(line["seen"], ENDS_OF_PROMPT),
    "answer": shortened(str(line["answer"])),
    "V": _success(line["value"]),
    "vbar": _success(line["vbar"]) + f", {_rollouts(line['k'])}",
  }
  if line["exact"] is not None:
    fields["exact"] = _success(2 * line["exact"] - 1)
  fields |= {"test": decision(line), "baseline": _baseline(line), "budget": stopping(line)}
  if line["terms"]:
    fields["also"] = "; ".join(f"{name} {_plain(value)}" for name, value in line["terms"].items())
  if line["importance"] != 1:
    fields["weight in the loss"] = f"{line['importance']:.3f}, 1 / its chance of being selected"
  found = [title, *(f"  {name:<9} {value}" for name, value in fields.items())]
  found.append("    #   reward  tokens  ended  advantage  text")
  for r in line["rollouts"]:
    ended = "yes" if r["ended"] else "no"
    shown = (
      f"{r['index']:>5}  {_plain(r['reward']):>7}  {r['length']:>6}  {ended:>5}  "
      f"{r['advantage']:>+9.3f}"
    )
    found.append(f"{shown}  {shortened(r['text'])}{'' if r['counts'] else '  (does not count)'}")
  return "\n".join(found)


def decision(line: dict[str, Any]) -> str:
  """The prior accepted or contradicted, in words."""
  if line["value"] is None:
    return "there is no prior to test"
  statistic = f"k (vbar - V)^2 = {_plain(line['statistic'])}"
  if line["delta2"] == 0:
    return f"prior accepted: {statistic} <= 1"
  return f"prior contradicted: {statistic} > 1, squared bias delta2 = {_plain(line['delta2'])}"


def _baseline(line: dict[str, Any]) -> str:
  kind, baseline = line["baseline_kind"], f"{line['baseline']:+.3f}"
  if line["weight"] is None:
    return f"{baseline} ({kind}, of all rollouts)"
  if line["weight"] == 1:
    return (
      f"{baseline} ({kind}: the group "
      f"mean{'' if line['value'] is not None else ', without a prior'})"
    )
  return f"{baseline} = w vbar + (1 - w) V, w = {line['weight']:.3f} ({kind})"


def stopping(line: dict[str, Any]) -> str:
  """How many rollouts were bought, and why no more."""
  bought = f"{_rollouts(line['bought'])}: "
  if line["stop"] == "fixed":
    return f"{bought}fixed"
  if line["stop"] == "share":
    return f"{bought}its share of the step's total"
  if line["stop"] not in ("cost", "k_max", "planned"):
    return f"{bought}as the rule says"
  gain, cost = "inf" if line["gain"] is None else f"{line['gain']:.5f}", f"{line['cost']:.5f}"
  if line["stop"] == "cost":
    return f"{bought}stopped, as one more would gain {gain} <= cost {cost}"
  where = "budget.k_max" if line["stop"] == "k_max" else "planned after the first stage"
  return f"{bought}{where}; one more would gain {gain} > cost {cost}"


def shortened(text: str, ends: tuple[int, int] = ENDS) -> str:
  """Text on one line, control characters escaped; of a long one its two ends and how much is
  between them."""
  visible = lambda x: "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in x
  )
  head, tail = ends
  if len(text) <= head + tail + 40:
    return visible(text)
  return (
    f"{visible(text[:head])} [... {len(text) - head - tail:,} characters ...] "
    f"{visible(text[-tail:])}"
  )


def _rollouts(number: int) -> str:
  return f"{number} rollout{'s' * (number != 1)}"


def _success(value: float | None) -> str:
  return "none" if value is None else f"{value:+.3f} (success {(value + 1) / 2:.3f})"


def _plain(value: float | None) -> str:
  return "none" if value is None else f"{value:.3f}"
