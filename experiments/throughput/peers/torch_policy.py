"""The policy in transformers with random weights, and a clipped policy-gradient update written by
hand."""

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from experiments.throughput import work


def build(size: str, dtype: str, device: str, weights: str = ""):
  """The shape of work.SHAPES with tied embeddings and PyTorch's own attention; the model of the
  directory `weights` where one is given, whose responses nothing ends either."""
  if weights:
    model = AutoModelForCausalLM.from_pretrained(weights, attn_implementation="sdpa")
    model.config.eos_token_id = None
    model.generation_config = GenerationConfig(pad_token_id=work.PAD)
    return model.to(device=device, dtype=getattr(torch, dtype))
  shape = work.SHAPES[size]
  config = Qwen3Config(
    hidden_size=shape.hidden,
    num_hidden_layers=shape.layers,
    num_attention_heads=shape.heads,
    num_key_value_heads=shape.kv_heads,
    head_dim=shape.head_dim,
    intermediate_size=shape.mlp,
    vocab_size=shape.vocab,
    tie_word_embeddings=True,
    max_position_embeddings=2048,
    pad_token_id=work.PAD,
    bos_token_id=None,
    eos_token_id=None,
    attn_implementation="sdpa",
  )
  torch.manual_seed(0)
  return Qwen3ForCausalLM(config).to(device=device, dtype=getattr(torch, dtype))


def optimizer(model) -> torch.optim.Optimizer:
  return torch.optim.AdamW(
    model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.01, fused=True
  )


def update(model, adamw, ids, lengths, advantage, prompt: int, micro: int) -> float:
  """One update on rows `ids` [N, T], padded behind their `lengths` [N] response tokens, `micro`
  rows at a time.

  Logits are made for the response alone. Padding stands behind what counts, so that causal
  attention never sees it and no mask is needed, which is the fastest way to run padded rows here.
  """
  adamw.zero_grad(set_to_none=True)
  total, mask = 0.0, torch.arange(ids.shape[1] - prompt, device=ids.device) < lengths[:, None]
  count = mask.sum()
  for i in range(0, len(ids), micro):
    rows, counted = ids[i : i + micro], mask[i : i + micro]
    hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state[:, prompt - 1 :]
    logits = model.lm_head(hidden).float()
    logprob = logits.gather(-1, rows[:, prompt:, None])[..., 0] - logits.logsumexp(-1)
    ratio, a = (logprob - logprob.detach()).exp(), advantage[i : i + micro, None]
    surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    loss = -(surrogate * counted).sum() / count
    loss.backward()
    total += float(loss.detach())
  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  adamw.step()
  return total
