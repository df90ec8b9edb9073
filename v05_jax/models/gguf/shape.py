"""The shape of a GGUF file's model: its keys as transformers' config.json has them, and its tensors
under transformers' names.

What the keys mean: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's
convert_hf_to_gguf.py, whose work is undone here.
"""

import dataclasses
import math

import numpy as np

from v05_jax.models import families, hf, rotary
from v05_jax.models.decoder import ModelConfig
from v05_jax.models.gguf.file import File, package

# general.architecture, which is also transformers' model_type -> the architecture in config.json.
# llama.cpp calls Mistral's models without sliding windows llama too: they differ in name alone.
ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# Keys below the architecture's name that are read, then those that change nothing.
READ = (
  "block_count context_length embedding_length feed_forward_length attention.head_count"
  " attention.head_count_kv attention.key_length attention.value_length"
  " attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count rope.scaling.type"
  " rope.scaling.factor rope.scale_linear"
).split()
SILENT = (
  "vocab_size pooling_type rope.scaling.original_context_length rope.scaling.finetuned".split()
)
# Llama 3's published scaling, but for its factor, and how near the stored float32 factors must be.
LLAMA_3 = {
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
NEAR = 1e-4


def read(file: File) -> ModelConfig:
  """The model's shape. Raises ValueError naming the file and the key for an unknown architecture, a
  key that is missing, and a variant that is not implemented."""
  kind = file.value("general.architecture", str)
  if kind not in ARCHITECTURES:
    raise ValueError(
      f"{file.path}: general.architecture: found {kind!r}, supported: {', '.join(ARCHITECTURES)}"
    )
  if EMBEDDING not in file.tensors:
    raise ValueError(f"{file.path}: {EMBEDDING}: found no such tensor, expected the embedding")
  _refuse_variants(file, kind)
  found = {
    "architectures": [ARCHITECTURES[kind]],
    "model_type": kind,
    "vocab_size": int(file.tensors[EMBEDDING].shape[-1]),
    "rms_norm_eps": file.value(f"{kind}.attention.layer_norm_rms_epsilon", float),
    "max_position_embeddings": _count(file, f"{kind}.context_length"),
    "tie_word_embeddings": HEAD not in file.tensors,
    **_sizes(file, kind),
  }
  found["rope_parameters"] = _rope(file, kind, found["head_dim"])
  name = families.choose(found, file.path)
  return dataclasses.replace(families.find(name).read(found, file.path), family=name)


def places(file: File, config: ModelConfig) -> dict[str, str]:
  """transformers' name -> the file's name of every tensor of the model. Raises ValueError that
  lists what is missing, misshapen, or more than the model has."""
  gguf = package()
  kind = file.value("general.architecture", str)
  architecture = next(x for x, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
  names = gguf.get_tensor_name_map(architecture, config.num_layers)
  expected = hf.stored_shapes(config)
  where = {name: names.get_name(name, (".weight", ".bias")) for name in expected}
  problems = []
  for name, stored in where.items():
    tensor = file.tensors.get(stored)
    found = None if tensor is None else tuple(int(n) for n in reversed(tensor.shape))
    if found != expected[name]:
      found = "no such tensor" if found is None else list(found)
      problems.append(f"{file.path}: {stored}: found {found}, expected {list(expected[name])}")
  for name in file.tensors.keys() - set(where.values()) - {ROPE_FACTORS}:
    problems.append(
      f"{file.path}: {name}: found a tensor that {ARCHITECTURES[kind]} as it is implemented has not"
    )
  if problems:
    more = f"\n... and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError("\n".join(sorted(problems)[:8]) + more)
  return where


def undo_permutation(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows of q or k with the two of a rotary pair half a head apart, as transformers has them;
  llama.cpp stores those of architecture llama side by side."""
  pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


def permuted_heads(name: str, config: ModelConfig) -> int | None:
  """Heads of a tensor, by its name in transformers, whose rows llama.cpp permutes; else None."""
  if config.family != "llama":
    return None
  part = name.split(".")[-2]
  return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(part)


def _sizes(file: File, kind: str) -> dict:
  layers = _count(file, f"{kind}.block_count")
  if layers > len(file.tensors):
    raise ValueError(
      f"{file.path}: {kind}.block_count: found {layers}, expected at most the file's "
      f"{len(file.tensors)} tensors"
    )
  width, heads = (
    _count(file, f"{kind}.embedding_length"),
    _count(file, f"{kind}.attention.head_count"),
  )
  head = _count(file, f"{kind}.attention.key_length", width // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (other := _count(file, f"{kind}.{key}", head)) != head:
      raise ValueError(
        f"{file.path}: {kind}.{key}: found {other}, supported: {head}, the whole width of a head"
      )
  return {
    "hidden_size": width,
    "num_hidden_layers": layers,
    "intermediate_size": _count(file, f"{kind}.feed_forward_length"),
    "num_attention_heads": heads,
    "num_key_value_heads": _count(file, f"{kind}.attention.head_count_kv", heads),
    "head_dim": head,
  }


def _rope(file: File, kind: str, width: int) -> dict:
  """transformers' rope_parameters."""
  theta = file.value(f"{kind}.rope.freq_base", float, 10000.0)
  found = {"rope_type": "default", "rope_theta": theta}
  scaling = file.value(f"{kind}.rope.scaling.type", str, "none")
  if scaling not in ("none", "linear"):
    raise ValueError(
      f"{file.path}: {kind}.rope.scaling.type: found {scaling!r}, supported: none, linear, and the "
      f"factors of Llama 3 in {ROPE_FACTORS}"
    )
  factor = file.value(f"{kind}.rope.scale_linear", float, 1.0)  # of old files
  if scaling == "linear":
    factor = file.value(f"{kind}.rope.scaling.factor", float)
  if factor != 1:
    found |= {"rope_type": "linear", "factor": factor}
  if kind == "llama" and ROPE_FACTORS in file.tensors:
    factors = file.dequantized(ROPE_FACTORS)
    if np.any(factors != 1):
      if factor != 1:
        raise ValueError(
          f"{file.path}: {ROPE_FACTORS}: found beside a linear scaling, expected one"
        )
      found |= {"rope_type": "llama3"} | _llama3(file, factors, theta, width)
  return found


def _llama3(file: File, factors: np.ndarray, theta: float, width: int) -> dict:
  """The scaling whose factors [Dh/2] the file has, which llama.cpp computes from its numbers.
  Raises ValueError if there is none."""
  if factors.shape != (width // 2,):
    raise ValueError(
      f"{file.path}: {ROPE_FACTORS}: found {list(factors.shape)}, expected {[width // 2]}"
    )
  plain = rotary.frequencies(width, theta).astype(np.float64)
  for numbers in (LLAMA_3, _fitted(factors, plain)):
    try:
      scaling = rotary.Scaling("llama3", float(factors.max()), **numbers)
    except (TypeError, ValueError):
      continue
    if np.allclose(plain / rotary.frequencies(width, theta, scaling), factors, rtol=NEAR, atol=0):
      return {"factor": scaling.factor} | numbers
  raise ValueError(
    f"{file.path}: {ROPE_FACTORS}: found factors from {factors.min()} to {factors.max()}, expected "
    "those of a scaling of type llama3"
  )


def _fitted(factors: np.ndarray, plain: np.ndarray) -> dict | None:
  """The numbers of a llama3 scaling with low_freq_factor 1, from its factors between the slow and
  the fast angles, where the share of the plain angle is a straight line in the frequency."""
  between = (factors > 1) & (factors < factors.max())
  if np.count_nonzero(between) < 2:
    return None
  slow = 1 / factors.max()
  share = (1 / factors[between] - slow) / (1 - slow)
  slope, start = np.polyfit(plain[between] / (2 * math.pi), share, 1)
  if start >= 0:
    return None
  width = -1 / start  # high_freq_factor - low_freq_factor
  return {
    "low_freq_factor": 1.0,
    "high_freq_factor": round(1 + width, 3),
    "original_max_position_embeddings": round(slope * width),
  }


def _refuse_variants(file: File, kind: str):
  """Raises ValueError for a key of the architecture that is not understood and is set."""
  known = {f"{kind}.{key}" for key in (*READ, *SILENT)}
  for key in file.keys:
    if key.startswith(f"{kind}.") and key not in known:
      found = file.setting(key)
      if found not in (0, "", "none"):
        raise ValueError(
          f"{file.path}: {key}: found {found!r:.80}, expected no such key: this variant of "
          f"{kind} is not implemented"
        )


def _count(file: File, key: str, default: int | None = None) -> int:
  """A positive integer."""
  found = file.value(key, int) if default is None else file.value(key, int, default)
  if found < 1:
    raise ValueError(f"{file.path}: {key}: found {found}, expected a positive integer")
  return found
