"""Tunix on the same work: its own ("vanilla") sampler and its GRPO learner, on one device as it
comes.

    python -m experiments.throughput.peers.with_tunix --program=ragged --size=s

    sample, ragged   one call of the sampler; ragged rows are marked as done at their length, and
                     the call ends with the longest
    train            the actor's compiled step, on full rows
    step             GRPOLearner.train, full length
"""

import dataclasses
from importlib.metadata import version
import logging
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.generate import sampler as samplers
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

from experiments.throughput import process, work

PROGRAMS = ("sample", "ragged", "train", "step")
COMPILED = "backend_compile_duration"
NEVER = 100_000  # the id of an end that no policy here can sample
MICRO = 64  # sequences of a micro-batch, where none is asked for


class Words:
  """Token ids as text: what Tunix asks of a tokenizer."""

  def encode(self, text, **_):
    return [int(x) for x in text.split()]

  def decode(self, ids, **_):
    return " ".join(map(str, ids))

  def bos_id(self):
    return work.PAD

  def eos_id(self):
    return NEVER

  def pad_id(self):
    return work.PAD


def build(size: str):
  """Tunix' Qwen3 with random matrices: it begins with zeros in the MLP."""
  shape = work.SHAPES[size]
  config = qwen3.ModelConfig(
    num_layers=shape.layers,
    vocab_size=shape.vocab,
    embed_dim=shape.hidden,
    hidden_dim=shape.mlp,
    num_heads=shape.heads,
    head_dim=shape.head_dim,
    num_kv_heads=shape.kv_heads,
    rope_theta=1_000_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
  )
  model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
  leaves, tree = jax.tree.flatten(nnx.state(model, nnx.Param))
  keys = jax.random.split(jax.random.key(0), len(leaves))
  draw = lambda key, x: 0.02 * jax.random.normal(key, x.shape, x.dtype) if x.ndim > 1 else x
  nnx.update(model, jax.tree.unflatten(tree, [draw(key, x) for key, x in zip(keys, leaves)]))
  return model


class Sampler(samplers.Sampler):
  """Marks row i as done after `lengths[i]` response tokens, where lengths are given; counts decode
  steps."""

  lengths, prompt, steps = None, 0, 0

  def _sample(self, *args, **options):
    state = super()._sample(*args, **options)
    if self.lengths is None:
      return state
    made = state.decoding_step + 1 - self.prompt
    return dataclasses.replace(state, done=state.done | (made >= jnp.asarray(self.lengths)))

  def count_steps(self):
    """Wraps the compiled loop so that `steps` holds the number of its last call."""
    compiled = self._compiled_decode_fn

    def decode(*args):
      state = compiled(*args)
      self.steps = state.decoding_step
      return state

    self._compiled_decode_fn = decode


def sample(args, model, lengths, texts, after) -> dict:
  shape = work.SHAPES[args.size]
  cache = samplers.CacheConfig(
    cache_size=args.prompt + args.response,
    num_layers=shape.layers,
    num_kv_heads=shape.kv_heads,
    head_dim=shape.head_dim,
  )
  sampler = Sampler(model, Words(), cache)
  sampler.lengths, sampler.prompt = lengths if args.program == "ragged" else None, args.prompt
  sampler.count_steps()
  repeated = [text for text in texts for _ in range(args.group)]

  def call(i):
    sampler(
      repeated,
      max_generation_steps=args.response,
      max_prompt_length=args.prompt,
      temperature=1.0,
      top_p=1.0,
      seed=i + 1,
      eos_tokens=[NEVER],
    )

  fields = process.timed(call, args.reps, after)
  steps = int(sampler.steps) - args.prompt
  # Of each row's places up to the longest response; the first token comes from the prefill, before
  # any step.
  share = round(float(lengths.sum()) / (len(lengths) * int(lengths.max())), 4)
  found = {"decode_steps": steps, "utilisation": share, "useful_over_computed": share}
  return fields | found | process.rates(args, fields["med_s"], lengths, "sample", steps)


def reward(prompts, completions, **_) -> list[float]:
  return [float(len(text) % 7) for text in completions]


def cluster(args, model, micro: int):
  """Everything on one device, and the learner's settings of the comparison: AdamW, one update a
  step, no KL."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
  adamw = optax.adamw(1e-6, b1=0.9, b2=0.95, weight_decay=0.01)
  training = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), adamw),
    eval_every_n_steps=10**6,
    max_steps=args.reps + 1,
    mini_batch_size=args.groups,
    train_micro_batch_size=micro // args.group,
    rollout_micro_batch_size=args.groups,
    compute_logps_micro_batch_size=args.groups,
  )
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=args.response,
    max_prompt_length=args.prompt,
    kv_cache_size=args.prompt + args.response,
    temperature=1.0,
    top_p=1.0,
  )
  roles = rl_cluster.Role
  config = rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys((roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh),
    rollout_engine="vanilla",
    offload_to_cpu=False,
    training_config=training,
    rollout_config=rollout,
  )
  made = rl_cluster.RLCluster(actor=model, reference=None, tokenizer=Words(), cluster_config=config)
  settings = grpo_learner.GRPOConfig(num_generations=args.group, beta=0.0, num_iterations=1)
  return (
    mesh,
    made,
    grpo_learner.GRPOLearner(rl_cluster=made, reward_fns=reward, algo_config=settings),
  )


def train(args, model, lengths, micro, after) -> dict:
  rng, shape, n = np.random.default_rng(0), work.SHAPES[args.size], len(lengths)
  mesh, made, _ = cluster(args, model, micro)

  def example():
    ids = rng.integers(work.FIRST, shape.vocab, (micro, args.prompt + args.response)).astype(
      np.int32
    )
    return grpo_learner.TrainExample(
      prompt_ids=jnp.array(ids[:, : args.prompt]),
      prompt_mask=jnp.ones((micro, args.prompt), bool),
      completion_ids=jnp.array(ids[:, args.prompt :]),
      completion_mask=jnp.ones((micro, args.response), bool),
      ref_per_token_logps=None,
      advantages=jnp.array(rng.standard_normal(micro), jnp.float32),
      old_per_token_logps=None,
    )

  sets = [[example() for _ in range(n // micro)] for _ in range(args.reps + 1)]
  with mesh:
    step, _ = made.actor_trainer.jit_train_and_eval_step(False, True)

    def call(i):
      for one in sets[i]:
        out = step(made.actor_trainer._prepare_inputs(one))
      jax.block_until_ready(out)

    fields = process.timed(call, args.reps, after)
  share = work.update_tokens(args.prompt, lengths, args.groups) / (
    n * (args.prompt + args.response - 1)
  )
  return (
    fields
    | {"useful_over_computed": round(share, 4)}
    | process.rates(args, fields["med_s"], lengths, "update")
  )


def step(args, model, lengths, texts, micro, after) -> dict:
  _, _, learner = cluster(args, model, micro)
  watch, first_end = process.Stopwatch(), []

  def ended(count):
    watch.lap()
    first_end.append(time.time())
    after(count)

  def data():
    """A step ends when the learner asks for the next one's prompts."""
    for i in range(args.reps + 1):
      if i:
        ended(i)
      else:
        watch.restart()
      yield {"prompts": np.array(texts)}

  learner.train(data())
  ended(args.reps + 1)
  fields = watch.fields() | {
    "start_s": round(first_end[0] - process.started(), 2),
    "decode_steps": args.response,
  }
  return fields | process.rates(args, fields["med_s"], lengths, "step")


def main():
  args = process.parser(PROGRAMS).parse_args()
  logging.disable(logging.WARNING)
  compiled = []  # how many when each call had ended
  counter = {"count": 0}

  def listen(event, duration, **_):
    counter["count"] += event.endswith(COMPILED)

  jax.monitoring.register_event_duration_secs_listener(listen)
  after = lambda _: compiled.append(counter["count"])
  model, n = build(args.size), args.groups * args.group
  texts = [
    " ".join(map(str, row))
    for row in work.prompts(args.groups, work.SHAPES[args.size], args.prompt)
  ]
  lengths = (
    work.ragged(n, args.response, args.shortest)
    if args.program == "ragged"
    else np.full(n, args.response)
  )
  micro = min(args.micro or MICRO, n)
  if args.program == "train":
    fields = train(args, model, lengths, micro, after)
  elif args.program == "step":
    fields = step(args, model, lengths, texts, micro, after)
  else:
    fields = sample(args, model, lengths, texts, after)
  fields |= {
    "devices": 1,
    "peak_rss_mb": process.peak_rss_mb(),
    "compilations": compiled[-1],
    "compilations_late": compiled[-1] - compiled[1],
  }
  versions = (
    f"google-tunix {version('google-tunix')}, jax {jax.__version__}, flax {version('flax')}"
  )
  process.emit(args, "tunix", versions, **fields)


if __name__ == "__main__":
  main()
