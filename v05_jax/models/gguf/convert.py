"""GGUF file -> Hugging Face directory."""

import collections
import math
import os
from pathlib import Path
import shutil

import numpy as np

from v05_jax.models import files, hf, tokenizer
from v05_jax.models.gguf import shape, vocabulary
from v05_jax.models.gguf.file import File


def convert(source, out, dtype: str = "float32") -> str:
  """Writes the GGUF file `source` as the Hugging Face directory `out`; returns a text on what was
  found.

  out: a folder that does not exist, or an empty one. dtype: of the weights, float32 or bfloat16;
  quantised tensors are dequantised. The folder appears when all of it is written and has been read
  again. Raises ValueError naming the file, what was found and what was expected; `out` is then as
  it was.
  """
  out = files.free(out)
  file = File(source)
  config = shape.read(file)
  places = shape.places(file, config)
  built, stop = vocabulary.build(file, config.vocab_size, config.max_positions)
  vocabulary.check(file, built)
  _check_space(out, config, dtype)
  work = next(x for x in out.parents if x.is_dir()) / f".{out.name}.{os.getpid()}.tmp"
  try:
    work.mkdir()
    tensor = lambda name: _tensor(file, config, name, places[name])
    hf.write(work, config, tensor, dtype, built, stop)
    _reopen(work, config, built)
    out.parent.mkdir(parents=True, exist_ok=True)
    work.rename(out)
  except OSError as error:
    raise ValueError(f"{out}: cannot be written: {error.strerror or error}") from error
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return _summary(file, config, built, out)


def _check_space(out: Path, config, dtype: str):
  """Raises ValueError if the weights do not fit on the disk."""
  numbers = sum(math.prod(stored) for stored in hf.stored_shapes(config).values())
  needed = numbers * {"float32": 4, "bfloat16": 2}[dtype]
  free = shutil.disk_usage(next(x for x in out.parents if x.is_dir())).free
  if free < needed:
    raise ValueError(
      f"{out}: found {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for "
      f"weights in {dtype}"
    )


def _tensor(file: File, config, name: str, stored: str) -> np.ndarray:
  """A tensor in float32 as transformers has it."""
  value = file.dequantized(stored)
  heads = shape.permuted_heads(name, config)
  return shape.undo_permutation(value, heads) if heads else value


def _reopen(work: Path, config, built):
  """Raises ValueError where what was written is read as something else."""
  found = hf.read_config(work)
  files.locate(work, hf.stored_shapes(found), beside=None)
  wanted = vocabulary.behaviour(built)
  for opened in (tokenizer.load(work), tokenizer.of_transformers(work)):
    if found != config or vocabulary.behaviour(opened) != wanted:
      raise ValueError(
        f"{work}: found another {'model' if found != config else 'tokenizer'} when it was read "
        f"again (as {type(opened).__name__}), expected what was written"
      )


def _summary(file: File, config, built, out: Path) -> str:
  kinds = collections.Counter(tensor.tensor_type.name for tensor in file.tensors.values())
  types = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
  lost = vocabulary.lacking(built) if vocabulary.is_byte_level(file) else 0
  lost = f" ({lost} bytes have none: characters with them are lost)" if lost else ""
  size = sum(x.stat().st_size for x in out.iterdir()) / 1e6
  return (
    f"{out}: {config.family}, {config.num_layers} layers of {config.hidden_size}, from {types}; "
    f"{len(built)} tokens{lost}{'' if built.chat_template else ', no chat template'}; {size:.0f} MB"
  )
