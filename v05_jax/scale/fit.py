"""Slots, prompts, rows and rematerialisation that a device's memory has room for.

What a device holds, in bytes, by what the shapes alone say:

    memory   >= fixed + the larger of sampling and update        (on a CPU, which keeps the caches:
                                                                  fixed + both)
    fixed     = 12 N                            parameters and AdamW's two moments, float32; with
                                                adapters of A parameters c N + 12 A, with
                                                loss.kl_coef 4 N more
              + c N                             a prior of the first policy's features
    sampling  = c N                             the weights as decode wants them
              + slots (R + 2 chunk) kv          cache of the rollouts in flight
              + open_prompts P kv               cache of the prompts whose rollouts are in flight
              + the larger of  slots 12 V                      logits
                         and   prefill P (kv + one layer)      prompts read at once
    update    = 8 N (with adapters 8 A)         gradients: their sum, and those of some rows
              + c N                             matrices in the compute dtype, where it is another
                                                one, without adapters and with policy.remat=none
              + micro_rows T (L stored + one layer)            activations
              + vocab_chunk 12 V                               logits
    kv        = 2 L KV Dh c                     keys and values of a token
    one layer = c (3 D + 2 (H + KV) Dh + 6 F) + 16 D + (4 + c) H T of a token, scores included;
                8 (H + KV) Dh more where queries and keys have a norm, 16 D + 4 F with two norms
                more; on a CPU, whose attention and MLP keep less, c (3 D + (H + 2 KV) Dh + 2 F)
    stored    = one layer; with policy.remat=full c D, as the rest is computed again

N, V, D, F, L, H, KV and Dh are the model's parameters, vocabulary, width, inner width, layers,
heads, key-value heads and their width; P and R the tokens of a prompt and of a response at most, T
of a packed row, c the bytes of a number in the compute dtype. Parameters are divided by the devices
of `fsdp` and `tensor`, decode's weights and the heads by those of `tensor`, slots and prompts by
those of `data` and `fsdp`. An eighth of the memory, of a CPU's a half, is left to the compiler and
the rest of the program, and to a value model, which is not counted.
"""

from collections.abc import Iterator
import itertools
from typing import Any, NamedTuple

# Of the memory. A CPU's also holds what is read and saved, verifiers, and other programs.
USABLE = {"cpu": 1 / 2, "accelerator": 7 / 8}
BYTES = {"float32": 4, "bfloat16": 2}
# Tokens in one forward and backward pass that keep a device busy; a CPU is fastest with fewer.
TOKENS = {"cpu": 1536, "accelerator": 8192}
SLOTS = 256  # of a device, at most: more do not decode faster
PREFILL = 16  # prompts of a device, at most
FEATURES = ("neighbours", "probe", "critic")  # priors that keep the first policy


class Machine(NamedTuple):
  """What a run has of its machine."""

  name: str  # of its devices
  kind: str  # cpu | accelerator
  memory: float  # bytes of a device that a program may use
  data: int = 1  # devices along each axis of the mesh
  fsdp: int = 1
  tensor: int = 1

  @property
  def lanes(self) -> int:
    return self.data * self.fsdp


class Need(NamedTuple):
  """Bytes of one device."""

  fixed: float
  sampling: float
  update: float

  def total(self, machine: Machine) -> float:
    both = machine.kind == "cpu"
    return self.fixed + (self.sampling + self.update if both else max(self.sampling, self.update))


def parameters(model) -> int:
  """Parameters of a shape (`models.model_config.ModelConfig`), adapters and norms left out."""
  width, inner = model.hidden_size, model.intermediate_size
  heads = (model.num_heads + model.num_kv_heads) * model.head_dim
  tables = model.vocab_size * width * (1 if model.tie_embeddings else 2)
  return tables + model.num_layers * width * (2 * heads + 3 * inner)


def adapters(model, rank: int) -> int:
  """Parameters of low-rank adapters of all matrices."""
  width, inner = model.hidden_size, model.intermediate_size
  q, kv = (n * model.head_dim for n in (model.num_heads, model.num_kv_heads))
  return model.num_layers * rank * (2 * (width + q) + 2 * (width + kv) + 3 * (width + inner))


def need(model, config, machine: Machine) -> Need:
  """The formula above, for a config that leaves nothing open."""
  sampler, loss, rank = config.sampler, config.loss, config.policy.lora_rank
  c, count = BYTES[config.policy.dtype], parameters(model)
  shards, lanes, tensor = machine.fsdp * machine.tensor, machine.lanes, machine.tensor
  trained = adapters(model, rank) if rank else count
  frozen = c * count if rank else 4 * count if loss.kl_coef else 0
  features = c * count if config.prior.kind in FEATURES else 0
  kv = 2 * model.num_layers * model.num_kv_heads * model.head_dim * c / tensor
  prompt, vocab = sampler.max_prompt, model.vocab_size
  cache = sampler.slots / lanes * (sampler.max_response + 2 * sampler.chunk) * kv
  store = sampler.open_prompts / lanes * prompt * kv
  read = sampler.prefill / lanes * prompt * (kv + layer(model, c, prompt, machine.kind) / tensor)
  logits = 12 * vocab / tensor
  row = loss.row_length or prompt + sampler.max_response - 1
  one, kept = layer(model, c, row, machine.kind) / tensor, config.policy.remat == "none"
  stored = one if kept else c * model.hidden_size
  casts = c * count if c < 4 and kept and not rank else 0
  tokens = loss.micro_rows * row
  activations = tokens * (model.num_layers * stored + one)
  return Need(
    fixed=(12 * trained + frozen + features) / shards,
    sampling=c * count / tensor + cache + store + max(sampler.slots / lanes * logits, read),
    update=(8 * trained + casts) / shards + activations + min(loss.vocab_chunk, tokens) * logits,
  )


def layer(model, c: int, tokens: int, kind: str) -> float:
  """Bytes that a layer's forward pass leaves for its backward pass, a token of a row of `tokens`
  tokens, on a machine of this kind."""
  width, inner, own = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
  shared = model.num_kv_heads * model.head_dim
  if kind == "cpu":
    return c * (3 * width + own + 2 * shared + 2 * inner)
  norms = 16 * width + model.qk_norm * 8 * (own + shared) + model.post_norms * 16 * width
  more = model.post_norms * 4 * inner
  kept = c * (3 * width + 2 * (own + shared) + 6 * inner)
  return kept + norms + more + (4 + c) * model.num_heads * tokens


def choose(model, config, machine: Machine) -> tuple[dict[str, Any], Need]:
  """Values for what the config leaves open (`config.OPEN`: 0, or ""), and what they need: the most
  slots, then the most prompts read at once, with the least that is computed again.

  Raises ValueError where nothing fits, with what it would need and what lowers that.
  """
  config = config.copy_and_resolve_references()
  if not config.policy.dtype:
    config.policy.dtype = "float32" if machine.kind == "cpu" else "bfloat16"
  room, least = USABLE[machine.kind] * machine.memory, None
  for values in list(_candidates(config, machine)):  # which read what is open before it is set
    config.update_from_flattened_dict(values)
    found = need(model, config, machine)
    least = found if least is None or found.total(machine) < least.total(machine) else least
    if found.total(machine) <= room:
      return {"policy.dtype": config.policy.dtype} | values, found
  raise ValueError(_too_large(model, least, machine))


def _candidates(config, machine: Machine) -> Iterator[dict[str, Any]]:
  """Values for all of `config.OPEN` but the dtype, the best first; what the config sets stays."""
  sampler, loss, lanes = config.sampler, config.loss, machine.lanes
  row = loss.row_length or sampler.max_prompt + sampler.max_response - 1
  whole = max(1, min(TOKENS[machine.kind] // row, -(-config.rollouts_per_step // lanes)))
  rows = [loss.micro_rows] if loss.micro_rows else halves(whole)
  remats = [config.policy.remat] if config.policy.remat else ["none", "full"]
  # A step's rollouts that can be in flight at once: of a prompt `share` at most.
  own = -(-config.rollouts_per_step // config.budget.k_init)
  wanted = min(SLOTS, -(-config.rollouts_per_step // lanes), -(-own // lanes) * sampler.share)
  slots = [sampler.slots] if sampler.slots else [lanes * n for n in halves(wanted)]
  for size in slots:
    # Twice as many prompts as have rollouts in flight: the next ones are read meanwhile.
    at_once = min(config.budget.k_init, sampler.share)  # rollouts of a prompt
    around = lanes * -(-2 * size // (at_once * lanes))
    prompts = sampler.open_prompts or around
    most = max(1, min(PREFILL, prompts // lanes))
    reads = [sampler.prefill] if sampler.prefill else [lanes * n for n in halves(most)]
    for remat, read, count in itertools.product(remats, reads, rows):
      yield {
        "sampler.slots": size,
        "sampler.open_prompts": prompts,
        "sampler.prefill": read,
        "loss.micro_rows": count,
        "policy.remat": remat,
      }


def halves(most: int) -> list[int]:
  """Powers of two up to `most`, the largest first."""
  return [2**i for i in reversed(range(most.bit_length()))]


def describe(model, machine: Machine, chosen: dict[str, Any], found: Need) -> list[str]:
  """What was chosen and why, a line each."""
  count = machine.lanes * machine.tensor
  chosen = ", ".join(f"{key}={value}" for key, value in chosen.items())
  together = "and" if machine.kind == "cpu" else "or"
  return [
    f"chosen for {count} x {machine.name} with {_size(machine.memory)} and a model of "
    f"{_count(model)} parameters: {chosen}",
    f"  by memory of a device: {_size(found.fixed)} parameters and optimizer, beside them "
    f"{_size(found.sampling)} while sampling {together} {_size(found.update)} in the update: "
    f"{_size(found.total(machine))}",
    "  each can be set by hand, as --config.sampler.slots=64",
  ]


def _count(model) -> str:
  count = parameters(model)
  return f"{count / 1e6:,.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"


def _size(count: float) -> str:
  """Bytes as a person reads them."""
  return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _too_large(model, least: Need, machine: Machine) -> str:
  wanted = _size(least.total(machine) / USABLE[machine.kind])
  return (
    f"config.policy: found a model of {_count(model)} parameters, which needs at "
    f"least {wanted} a device here ({_size(least.fixed)} parameters and optimizer, "
    f"{_size(least.sampling)} while sampling, {_size(least.update)} in the update), expected "
    f"at most {_size(machine.memory)}, the memory of {machine.name}. Less with "
    "--config.policy.lora_rank=32 --config.optimizer.learning_rate=2e-5, with a smaller "
    "sampler.max_response, or with more devices along --config.mesh.fsdp and --config.mesh.tensor"
  )
