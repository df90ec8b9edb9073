"""A GGUF file: its keys and its tensors, read by the package `gguf`, which the extra `gguf`
installs."""

import os
from pathlib import Path

import numpy as np

KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", list: "a list"}
REQUIRED = object()


class File:
  """A GGUF file. `path`; `keys`: their names; `tensors`: name -> the package's ReaderTensor.

  Raises ValueError that names the extra without the package, and else the file, what was found and
  what was expected for one that is missing, truncated, damaged, part of a split model, of another
  byte order, or with a tensor that cannot be dequantised.
  """

  def __init__(self, path):
    self.path = Path(path)
    self._package = package()
    reader = self._open()
    self._fields = reader.fields
    self.keys = list(reader.fields)
    self.tensors = {tensor.name: tensor for tensor in reader.tensors}
    if reader.endianess != self._package.GGUFEndian.LITTLE:
      raise ValueError(f"{self.path}: found big-endian numbers, expected little-endian ones")
    parts = self.value("split.count", int, 1)
    if parts > 1:
      raise ValueError(
        f"{self.path}: split.count: found one of {parts} files of a split model, expected a whole "
        "one: join them with llama.cpp's llama-gguf-split --merge"
      )
    self._check_kinds()

  def setting(self, key: str):
    """The value of a key that is there, of whatever kind."""
    try:
      return self._fields[key].contents()
    except UnicodeDecodeError as error:
      raise ValueError(f"{self.path}: {key}: cannot be read as UTF-8: {error}") from error

  def value(self, key: str, kind: type, default=REQUIRED):
    """The value of a key, of one of the `KINDS`. Without the key it is `default`, or ValueError."""
    if key not in self._fields:
      if default is REQUIRED:
        raise ValueError(f"{self.path}: {key}: found no such key, expected {KINDS[kind]}")
      return default
    found = self.setting(key)
    wrong = isinstance(found, bool) and kind is not bool
    if wrong or not isinstance(found, (int, float) if kind is float else kind):
      raise ValueError(f"{self.path}: {key}: found {found!r:.80}, expected {KINDS[kind]}")
    return _shortest(found) if kind is float else found

  def dequantized(self, name: str) -> np.ndarray:
    """A tensor in float32, [rows, columns] or [n]. Raises ValueError for numbers that are not
    finite."""
    tensor = self.tensors[name]
    value = self._package.quants.dequantize(tensor.data, tensor.tensor_type)
    bad = value.size - int(np.count_nonzero(np.isfinite(value)))
    if bad:
      raise ValueError(f"{self.path}: {name}: found {bad} numbers that are not finite, expected 0")
    return value

  def _open(self):
    try:
      return _reader(self._package)(self.path)
    except FileNotFoundError as error:
      raise ValueError(f"{self.path}: found no such file, expected a GGUF file") from error
    except IsADirectoryError as error:
      raise ValueError(f"{self.path}: found a folder, expected a GGUF file") from error
    except PermissionError as error:
      raise ValueError(f"{self.path}: cannot be read: {error.strerror}") from error
    except NotImplementedError as error:
      raise ValueError(f"{self.path}: {error}") from error
    except Exception as error:  # the package checks little: a damaged file raises any kind
      with open(self.path, "rb") as file:
        start = file.read(4)
      size = os.path.getsize(self.path)
      kind = "a truncated or damaged file" if start == b"GGUF" else f"a file of {start!r}..."
      raise ValueError(
        f"{self.path}: found {kind}, {size} bytes ({error}), expected a GGUF file: copy or "
        "download it again"
      ) from error

  def _check_kinds(self):
    """Raises ValueError that names a tensor whose type cannot be dequantised."""
    first = {}
    for name, tensor in self.tensors.items():
      first.setdefault(tensor.tensor_type, name)
    for kind, name in first.items():
      block = np.zeros((1, self._package.GGML_QUANT_SIZES[kind][1]), np.uint8)
      try:
        self._package.quants.dequantize(block, kind)
      except NotImplementedError as error:
        raise ValueError(
          f"{self.path}: {name}: found type {kind.name}, expected one that the package gguf "
          f"dequantises ({error})"
        ) from error


def package():
  """The package `gguf`, imported where it is needed since it is an extra. Raises ValueError without
  it."""
  try:
    import gguf
  except ImportError as error:
    raise ValueError(
      "reading .gguf needs the package gguf, expected the gguf extra: pip install -e '.[gguf]', or "
      "pip install gguf"
    ) from error
  return gguf


def _reader(gguf):
  """The package's reader, which notices the end of the file and types that it does not know."""
  kinds = {kind.value for kind in gguf.GGMLQuantizationType}

  class Reader(gguf.GGUFReader):
    # Without this check a damaged length makes the reader append empty values without end.
    def _get(self, offset, dtype, count=1, **more):
      end = offset + np.dtype(dtype).itemsize * int(count)
      if end > len(self.data):
        raise ValueError(f"expected {end} bytes at least")
      return super()._get(offset, dtype, count, **more)

    def _build_tensors(self, start, fields):
      for field in fields:
        kind = int(field.parts[4][0])
        if kind not in kinds:
          raise NotImplementedError(
            f"{field.name}: found type {kind}, which the package gguf does not know"
          )
      super()._build_tensors(start, fields)

  return Reader


def _shortest(x: float) -> float:
  """The number with the fewest digits that is this float32: 1e-5, not 9.999999747378752e-06."""
  return float(str(np.float32(x)))
