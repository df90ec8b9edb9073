"""Makes the stored parity outputs: tiny random Qwen3 models that transformers wrote, with their
logits and gradients. Run where torch and transformers are installed:

    python tests/data/qwen3/make.py

Made with torch 2.13.0 and transformers 5.23.0.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LENGTH = (12, 9)  # tokens of the two rows; the second is right-padded


def model(tied: bool, seed: int = 0):
  """A random tiny Qwen3ForCausalLM: rope_theta, eps and norm scales are not at their defaults."""
  import torch
  from transformers import Qwen3Config, Qwen3ForCausalLM

  torch.manual_seed(seed)
  config = Qwen3Config(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=32,
    rms_norm_eps=1e-3,
    tie_word_embeddings=tied,
    max_position_embeddings=512,
    initializer_range=0.3,
    attn_implementation="eager",
    rope_parameters={"rope_type": "default", "rope_theta": 5e6},
    eos_token_id=1,
    pad_token_id=0,
  )
  policy = Qwen3ForCausalLM(config).float().eval()
  with torch.no_grad():
    for name, parameter in policy.named_parameters():
      if "norm" in name:
        parameter.uniform_(0.5, 1.5)
  return policy


def tokens(seed: int = 0) -> np.ndarray:
  """int32 [2, 12]; padding is token 0."""
  drawn = np.random.default_rng(seed).integers(2, 64, (len(LENGTH), max(LENGTH)), np.int32)
  return np.where(np.arange(max(LENGTH)) < np.array(LENGTH)[:, None], drawn, 0).astype(np.int32)


def outputs(policy, tokens: np.ndarray) -> dict[str, np.ndarray]:
  """Logits of all tokens, and the gradients of the mean negative log-likelihood of the next
  token."""
  import torch

  ids = torch.tensor(tokens, dtype=torch.long)
  real = torch.arange(ids.shape[1]) < torch.tensor(LENGTH)[:, None]
  logits = policy(input_ids=ids, attention_mask=real.long()).logits
  logprob = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
  policy.zero_grad()
  (-logprob[real[:, 1:]].mean()).backward()
  found = {f"grad.{name}": p.grad.numpy() for name, p in policy.named_parameters()}
  return {"logits": logits.detach().numpy(), "tokens": tokens, **found}


if __name__ == "__main__":
  for tied in (True, False):
    directory = Path(__file__).parent / ("tied" if tied else "untied")
    policy = model(tied)
    policy.save_pretrained(directory)
    save_file(outputs(policy, tokens()), directory / "outputs.safetensors")
