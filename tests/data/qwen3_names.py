"""Makes qwen3_names.json: names and shapes of every tensor of the published Qwen3 models, as
transformers makes them.

    python tests/data/qwen3_names.py

The models are built on PyTorch's meta device, without weights, from the numbers in the config.json
that the Qwen team published with each. Layers are alike, so the file has the tensors of one layer
and the number of layers; that they are alike is checked here. Made with torch 2.13.0 and
transformers 5.23.0.
"""

import json
from pathlib import Path

# hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, tie_word_embeddings of
# Qwen/Qwen3-NAME
PUBLISHED = {
  "0.6b": (1024, 28, 16, 3072, True),
  "1.7b": (2048, 28, 16, 6144, True),
  "4b": (2560, 36, 32, 9728, True),
  "8b": (4096, 36, 32, 12288, False),
}
LAYER = "model.layers.{i}."


def tensors(hidden, layers, heads, intermediate, tied) -> dict[str, list[int]]:
  """Name -> shape of what `save_pretrained` stores: a tied head is not."""
  import torch
  from transformers import Qwen3Config, Qwen3ForCausalLM

  config = Qwen3Config(
    vocab_size=151936,
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=intermediate,
    tie_word_embeddings=tied,
  )
  with torch.device("meta"):
    model = Qwen3ForCausalLM(config)
  model.tie_weights()
  return {name: list(x.shape) for name, x in model.named_parameters()}


def folded(found: dict[str, list[int]], layers: int) -> dict:
  """`found` with one layer for all of them. Raises AssertionError where they differ."""
  part = lambda i: {
    k.replace(LAYER.format(i=i), LAYER): x
    for k, x in found.items()
    if k.startswith(LAYER.format(i=i))
  }
  assert all(part(i) == part(0) for i in range(layers))
  other = {name: shape for name, shape in found.items() if not name.startswith("model.layers.")}
  assert len(other) + layers * len(part(0)) == len(found)
  return {"layers": layers, "tensors": other | part(0)}


if __name__ == "__main__":
  models = {name: folded(tensors(*sizes), sizes[1]) for name, sizes in PUBLISHED.items()}
  lines = [f"  {json.dumps(name)}: {json.dumps(model)}" for name, model in models.items()]
  Path(__file__).with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
