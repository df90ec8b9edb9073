"""Writes a GGUF file (of llama.cpp) as a Hugging Face directory, which `transformers` and
`config.policy.path` open.

    python -m v05_jax.models.gguf model.gguf folder --dtype=bfloat16
"""

import argparse
import sys

from v05_jax.models.gguf import convert


def main():
  parser = argparse.ArgumentParser(
    prog="python -m v05_jax.models.gguf",
    description="Writes a GGUF file (of llama.cpp) as a Hugging Face directory.",
  )
  parser.add_argument("source", help="the .gguf file: Llama (SmolLM2, Mistral), Qwen2 or Qwen3")
  parser.add_argument("out", help="a folder that does not exist, or an empty one")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  try:
    print(convert.convert(args.source, args.out, args.dtype))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
