"""Measures one of our programs in this process and prints one JSON line (process.FIELDS has its
fields).

    python -m experiments.throughput.programs --program=ragged --size=s --groups=16 --group=4

    sample         rollouts of one batch of prompts, all of full length, through the `collect` that
                   train.py builds
    ragged         the same with the lengths of work.ragged, one for each rollout
    adaptive       the budget rule (4 to 16 rollouts a prompt, --block at once) against fixed groups
                   of its mean k, on the same slots, prompts and lengths, one after the other
    train          one update with full rows: packing, as `step.update` does it, and the
                   optimiser's step
    train_ragged   the same with rollouts of the lengths of work.ragged
    step           draw, advantages, step.update and step.learn, full length
    step_ragged    the same, each prompt's rollouts ending at the `max_tokens` of its data row
    start          seconds to the first finished step of `python -m v05_jax.main`: see start.py

Whatever samples has its log-probs recomputed after the timing, by `decoder.forward` and
`losses.token_logprobs` with the same parameters; a gap above TOLERANCE is an error. `--program`
takes several names with commas: they share the process and its compiled programs, so that peak
memory, start and compilations are those of all before, too.
"""

import contextlib
import functools
import time

import jax
import numpy as np

from experiments.throughput import process, reward, setting, start, work
from v05_jax import backend, rng, step
from v05_jax.budgets.base import fixed_number
from v05_jax.models import decoder
from v05_jax.sampling.draw import draw
from v05_jax.sampling.ledger import Order
from v05_jax.structs import Rollouts
from v05_jax.update import losses, packing

PROGRAMS = ("sample", "ragged", "adaptive", "train", "train_ragged", "step", "step_ragged", "start")
# nats; bfloat16 rounds logits of a few nats to a hundredth and more
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
CHECKED = 16  # sequences recomputed at once
FEWEST, MOST = 4, 16  # rollouts of a prompt, adaptive
# Of the adaptive program: slots as many as the fixed ones have; a step has prompts enough to refill
# them many times.
ADAPTIVE = ("sampler.slots=64", "sampler.open_prompts=64", "sampler.prefill=8")


class Late:
  """Programs compiled after the second call; its method `after` is what `process.timed` takes."""

  def __init__(self, compilations):
    self.compilations, self.at_second = compilations, 0

  def after(self, calls: int):
    if calls == 2:
      self.at_second = self.compilations()

  def fields(self) -> dict:
    """Taken before anything else compiles or allocates."""
    total = self.compilations()
    return {
      "compilations": total,
      "compilations_late": total - self.at_second,
      "peak_rss_mb": process.peak_rss_mb(),
      "devices": jax.device_count(),
    }


def sampled(b: setting.Bench, params, prompts, rolls: Rollouts, lengths) -> dict:
  """Fields of what a sampling program has sampled; raises RuntimeError where it is not what was
  asked for."""
  found = rolls.length[rolls.prompt, rolls.index]
  if not np.array_equal(found, lengths):
    raise RuntimeError(
      f"the responses have {found.tolist()} tokens, expected {np.asarray(lengths).tolist()}"
    )
  again = logprobs(b, params, prompts, rolls)
  inside = np.arange(rolls.tokens.shape[1]) < found[:, None]
  gap = float(np.abs(np.where(inside, again - rolls.logprob, 0.0)).max())
  most = TOLERANCE[b.config.policy.dtype]
  if not gap <= most:
    raise RuntimeError(
      f"the sampler's log-probs are up to {gap:.3g} nats from the model's, expected at most {most}"
    )
  return {"logprob_gap": float(f"{gap:.3g}")}


def logprobs(b: setting.Bench, params, prompts, rolls: Rollouts) -> np.ndarray:
  """Log-probs [N, R] of response tokens by one forward pass over prompt and response; all prompts
  are of one length."""
  model, loss, first = b.run.policy.config, b.config.loss, b.config.sampler.max_prompt
  temperature = b.config.sampler.temperature

  @jax.jit
  def recompute(params, tokens, segments):
    index = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    hidden = decoder.forward(model, params, tokens, index, segments)[:, first - 1 : -1]
    matrix = decoder.unembed(model, params)
    targets, usable = tokens[:, first:], decoder.usable(model)
    return losses.token_logprobs(
      hidden, matrix, targets, temperature, loss.vocab_chunk, usable=usable
    )[0]

  tokens = np.concatenate([np.asarray(prompts.tokens)[rolls.prompt], rolls.tokens], 1)
  length = first + rolls.length[rolls.prompt, rolls.index]
  segments = (np.arange(tokens.shape[1]) < length[:, None]).astype(np.int32)
  out = []
  for at in range(0, len(tokens), CHECKED):
    # one shape: the last rows may stand in twice
    rows = np.arange(at, at + CHECKED).clip(max=len(tokens) - 1)
    out.append(np.asarray(recompute(params, tokens[rows], segments[rows])))
  return np.concatenate(out)[: len(tokens)]


def used(stats) -> dict:
  """Fields of the sampler's own (sum, count) pairs."""
  share = lambda name: (
    round(float(stats[name][0]) / float(stats[name][1]), 4) if stats[name][1] else None
  )
  whole = share("sampler/utilisation")
  return {
    "decode_steps": int(stats["sampler/decode_steps"][0]),
    "utilisation": whole,
    "useful_over_computed": whole,
    "utilisation_filled": share("sampler/utilisation_filled"),
  }


def sample(args, b: setting.Bench, ragged: bool) -> dict:
  n = args.groups * args.group
  lengths = work.ragged(n, args.response, args.shortest) if ragged else np.full(n, args.response)
  limit = lengths.reshape(args.groups, args.group)
  params, last = b.init().params, {}

  def call(i):
    key = rng.at(b.config.seed, i)
    order = Order(b.run.budget, limit=limit)
    last["rolls"], last["stats"] = b.collect(params, b.prompts, key, order)

  late = Late(b.compilations)
  fields = process.timed(call, args.reps, late.after) | late.fields() | used(last["stats"])
  fields |= process.rates(args, fields["med_s"], lengths, "sample", fields["decode_steps"])
  return fields | sampled(b, params, b.prompts, last["rolls"], lengths)


def adaptive(args) -> dict:
  """Useful tokens a second of the budget rule, and their ratio to those of fixed groups."""
  rule = (
    "budget.rule=sequential",
    f"budget.k_init={FEWEST}",
    f"budget.k_max={MOST}",
    f"budgets.sequential.block={args.block}",
  )
  limit = work.ragged(args.groups * MOST, args.response, args.shortest).reshape(args.groups, MOST)
  with setting.bench(args, overrides=(*rule, *ADAPTIVE, *args.set)) as b:
    params = b.init().params
    value = np.array([reward.prior(row["prompt"]) for row in b.prompts.rows], np.float32)

    def collect(i, budget):
      key, most = rng.at(b.config.seed, i), budget.limits.most
      order = Order(budget, b.run.budget.init(), value, limit=limit[:, :most])
      return b.collect(params, b.prompts, key, order)

    late, watches, speeds = (
      Late(b.compilations),
      (process.Stopwatch(), process.Stopwatch()),
      ([], []),
    )
    fixed, ready = None, 0.0
    for i in range(args.reps + 1):
      rolls, stats = watches[0].run(collect, i, b.run.budget)
      mean_k = rolls.mask.sum() / args.groups
      fixed = fixed or fixed_number(round(mean_k))
      other, other_stats = watches[1].run(collect, i, fixed)
      for speed, watch, x in zip(speeds, watches, (rolls, other)):
        speed.append(float(x.length.sum()) / watch.seconds[-1])
      late.after(i + 1)
      ready = ready or time.time() - process.started()
    per_s, fixed_per_s = (float(np.median(speed[1:])) for speed in speeds)
    k = rolls.mask.sum(1)[: args.groups]
    details = {
      "block": args.block,
      "k_mean": round(float(k.mean()), 3),
      "k_min": int(k.min()),
      "k_max": int(k.max()),
      "k_fixed": fixed.limits.most,
      "fixed_per_s": round(fixed_per_s, 2),
      "over_fixed": round(per_s / fixed_per_s, 4),
      "fixed": used(other_stats),
      "fixed_s": watches[1].fields()["med_s"],
    }
    fields = (
      watches[0].fields()
      | late.fields()
      | used(stats)
      | {"n": int(k.sum()), "start_s": round(ready, 2)}
    )
    lengths = limit[rolls.prompt, rolls.index]
    fields |= process.rates(args, fields["med_s"], lengths, "sample", fields["decode_steps"])
    return (
      fields
      | sampled(b, params, b.prompts, rolls, lengths)
      | {"per_s": round(per_s, 2), "details": details}
    )


def random_rollouts(args, vocab: int, lengths, seed: int) -> tuple[Rollouts, np.ndarray]:
  """Rollouts of random tokens with the given lengths [P K], and advantages [P, K]."""
  generator, shape = np.random.default_rng(seed), (args.groups, args.group)
  tokens = generator.integers(0, vocab, (len(lengths), args.response)).astype(np.int32)
  logprob = np.full(tokens.shape, -np.log(vocab), np.float32)
  prompt, index = (x.ravel().astype(np.int32) for x in np.indices(shape))
  some = np.ones(shape, bool)
  rolls = Rollouts(
    tokens=tokens,
    logprob=logprob,
    sampled_logprob=logprob,
    prompt=prompt,
    index=index,
    length=np.asarray(lengths, np.int32).reshape(shape),
    reward=some.astype(np.float32),
    ended=some,
    mask=some,
  )
  return rolls, generator.standard_normal(shape).astype(np.float32)


def train(args, b: setting.Bench, ragged: bool) -> dict:
  n, run, vocab = args.groups * args.group, b.run, b.run.policy.config.vocab_size
  lengths = work.ragged(n, args.response, args.shortest) if ragged else np.full(n, args.response)
  data = [random_rollouts(args, vocab, lengths, seed) for seed in range(args.reps + 2)]
  state, computed = b.init(), 0
  params, opt_state = state.params, state.opt_state
  compile_update(b)

  def call(i):
    nonlocal params, opt_state, computed
    computed = 0
    batches = packing.minibatches(b.prompts, *data[i], b.config.loss, run.mesh)
    for batch, count in batches:
      params, opt_state, found = run.update.step(params, opt_state, batch, count)
      computed += count * batch.tokens[0].size
    jax.block_until_ready((params, found))
    return found

  late = Late(b.compilations)
  fields = process.timed(call, args.reps, late.after) | late.fields()
  fields |= process.rates(args, fields["med_s"], lengths, "update")
  fields["useful_over_computed"] = round(
    work.update_tokens(args.prompt, lengths, args.groups) / computed, 4
  )
  # The update's own log-probs, of the parameters before it, beside those of a plain forward pass.
  rolls, advantage = data[-1]
  data[-1] = rolls.replace(logprob=logprobs(b, params, b.prompts, rolls)), advantage
  found = {name: float(x[0]) / max(float(x[1]), 1.0) for name, x in call(len(data) - 1).items()}
  if found["grad/skipped"] or not found["loss/logprob_gap"] <= TOLERANCE[args.dtype]:
    raise RuntimeError(f"the update is not what was expected: {found}")
  return fields | {"details": {"mean_logprob_gap": float(f"{found['loss/logprob_gap']:.3g}")}}


def whole_step(args, b: setting.Bench, ragged: bool) -> dict:
  run, last = setting.limited(b.run, args) if ragged else b.run, {}
  state = b.init()
  compile_update(b)

  def call(i):
    nonlocal state
    drawn = draw(run, b.collect, state)
    taken = drawn.taken
    advantage, _ = run.advantages(state.estimator, taken.groups, taken.value)
    state, updated = step.update(run, state, taken, advantage)
    state, learnt = step.learn(run, state, drawn)
    last["measured"] = drawn.metrics | updated | learnt
    jax.block_until_ready(state.params)

  late = Late(b.compilations)
  fields = process.timed(call, args.reps, late.after) | late.fields() | used(last["measured"])
  fields["useful_over_computed"] = None
  # `time/update` ends when the program has been started: what is left of the step is the device's.
  seconds = {
    name: round(float(last["measured"][f"time/{name}"][0]), 4)
    for name in ("sample", "update", "verify")
  }
  taken = draw(run, b.collect, state).taken
  lengths = [
    row.get("max_tokens", args.response) for row in taken.prompts.rows for _ in range(args.group)
  ]
  fields |= process.rates(args, fields["med_s"], lengths, "step")
  return (
    fields | sampled(b, state.params, taken.prompts, taken.rolls, lengths) | {"details": seconds}
  )


def measure(args, bench) -> dict:
  """The fields of `args.program`; `bench()` gives the objects that the programs but two share."""
  if args.program == "start":
    return start.measure(args)
  if args.program == "adaptive":
    return adaptive(args)
  measured = {"sample": sample, "ragged": sample, "train": train, "step": whole_step}
  name, _, suffix = args.program.partition("_")
  return measured[name](args, bench(), ragged="ragged" in (name, suffix))


def arguments(argv=None):
  parser = process.parser(PROGRAMS, several=True)
  parser.add_argument(
    "--devices", type=int, default=0, help="forced host devices on a CPU backend; 0 = one a core"
  )
  parser.add_argument(
    "--block", type=int, default=1, help="rollouts that the adaptive rule issues at once"
  )
  parser.add_argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a key of the config"
  )
  return parser.parse_args(argv)


def compile_update(b: setting.Bench):
  """Before the first call, as train.py does: the compiler's memory is given back when the update
  begins."""
  b.run.update.lower(b.run.shapes.batch(b.config.loss, b.run.mesh)).compile()
  backend.release_memory()


def main():
  args = arguments()
  backend.without_torch()
  names = args.program
  if names != ["start"]:
    setting.force_devices(args.devices)
  with contextlib.ExitStack() as stack:
    bench = functools.cache(lambda: stack.enter_context(setting.bench(args, overrides=args.set)))
    for args.program in names:
      process.emit(args, "ours", setting.versions(), **measure(args, bench))


if __name__ == "__main__":
  main()
