"""GGUF files (of llama.cpp) as Hugging Face directories: `python -m v05_jax.models.gguf`."""
