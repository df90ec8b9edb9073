"""Logits by transformers in float32 and in float64; torch's environment runs this (logits.py).

python -m experiments.lm.torch_logits MODEL IDS.npz OUT.npz
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(model: str, given: str, out: str):
  """OUT: logits [T, V] of every array of IDS, first all in float32, then all in float64."""
  with np.load(given) as file:
    ids = [torch.tensor(file[f"arr_{i}"]).long()[None] for i in range(len(file.files))]
  found = []
  for dtype in (torch.float32, torch.float64):
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
      found += [policy(x).logits[0].numpy() for x in ids]
  np.savez(out, *found)


if __name__ == "__main__":
  main(*sys.argv[1:])
