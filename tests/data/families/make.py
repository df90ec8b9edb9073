"""Makes the stored parity outputs of the families beside Qwen3: tiny random models that
transformers wrote, with their logits and gradients. Run where torch and transformers are installed:

    python -m tests.data.families.make

Made with torch 2.13.0 and transformers 5.23.0.
"""

from pathlib import Path

from safetensors.numpy import save_file

from tests.data.qwen3.make import outputs, tokens

SHARED = dict(
  vocab_size=64,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=32,
  rms_norm_eps=1e-3,
  max_position_embeddings=512,
  initializer_range=0.3,
  attn_implementation="eager",
  eos_token_id=1,
  pad_token_id=0,
)
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
# Kind -> (what transformers calls its config, fields that are not at their defaults).
KINDS = {
  "qwen2": (
    "Qwen2Config",
    {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e3}},
  ),
  "llama": ("LlamaConfig", {"head_dim": 8, "rope_parameters": LLAMA3}),
  "mistral": (
    "MistralConfig",
    {
      "sliding_window": None,
      "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0},
    },
  ),
  "gemma3": (
    "Gemma3TextConfig",
    {
      "head_dim": 8,
      "query_pre_attn_scalar": 5,
      "sliding_window": 4,
      "layer_types": ["sliding_attention", "full_attention"],
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
      },
    },
  ),
}


def model(kind: str, seed: int = 0):
  """A random tiny model of a kind whose biases and norm scales are not at their defaults."""
  import torch
  import transformers

  torch.manual_seed(seed)
  name, fields = KINDS[kind]
  config = getattr(transformers, name)(**SHARED | fields)
  policy = transformers.AutoModelForCausalLM.from_config(config).float().eval()
  with torch.no_grad():
    for name, parameter in policy.named_parameters():
      if "norm" in name:
        middle = 0.0 if kind == "gemma3" else 1.0
        parameter.uniform_(middle - 0.5, middle + 0.5)
      if name.endswith("bias"):
        parameter.uniform_(-0.5, 0.5)
  return policy


if __name__ == "__main__":
  for kind in KINDS:
    directory = Path(__file__).parent / kind
    policy = model(kind)
    policy.save_pretrained(directory)
    save_file(outputs(policy, tokens()), directory / "outputs.safetensors")
