"""What torch.save wrote, read without torch and without running any code of it."""

import math
import pickle
import zipfile

import ml_dtypes
import numpy as np

STORAGES = dict(
  FloatStorage=np.float32,
  HalfStorage=np.float16,
  BFloat16Storage=ml_dtypes.bfloat16,
  DoubleStorage=np.float64,
  LongStorage=np.int64,
  IntStorage=np.int32,
  ShortStorage=np.int16,
  CharStorage=np.int8,
  ByteStorage=np.uint8,
  BoolStorage=np.bool_,
)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how files of torch before 1.6 begin


class _Dict(dict):
  """In place of OrderedDict, without its attributes, and of argparse.Namespace, whose attributes
  become items."""

  def __setstate__(self, state):
    self.update({} if self else state)


class _Unpickler(pickle.Unpickler):
  """Reads data.pkl of an open torch file: tensors become read-only numpy arrays, anything unknown
  an error.

  The callables it hands out are bound methods and classes that a pickle's BUILD cannot change.
  """

  def __init__(self, records: zipfile.ZipFile):
    prefixes = [
      name.removesuffix("data.pkl") for name in records.namelist() if name.endswith("/data.pkl")
    ]
    if len(prefixes) != 1:
      raise ValueError(
        f"found {len(prefixes)} data.pkl in the zip file, expected one, as torch.save writes it"
      )
    super().__init__(records.open(f"{prefixes[0]}data.pkl"))
    self.records, self.prefix, self.bytes = records, prefixes[0], {}
    if f"{self.prefix}byteorder" in records.namelist() and self.record("byteorder") != b"little":
      raise ValueError("byteorder: found another one, expected little")
    self.known = {
      "torch._utils._rebuild_tensor_v2": self.tensor,
      "torch._utils._rebuild_parameter": self.parameter,
      "torch.Size": tuple,
      "collections.OrderedDict": _Dict,
      "argparse.Namespace": _Dict,
      "__builtin__.set": set,
    } | {f"torch.{name}": name for name in STORAGES}

  def find_class(self, module, name):
    if f"{module}.{name}" not in self.known:
      raise ValueError(
        f"found the callable {module}.{name}, expected tensors and plain data alone; nothing was "
        "run"
      )
    return self.known[f"{module}.{name}"]

  def persistent_load(self, reference):
    """The storage, one axis, that ("storage", type, key, device, length) names."""
    match reference:
      case ("storage", str(kind), str(key), _, int(length)) if kind in STORAGES:
        name, dtype = f"data/{key}", np.dtype(STORAGES[kind])
      case _:
        raise ValueError(f"found the reference {reference!r:.80}, expected one to a storage")
    if name not in self.bytes:
      self.bytes[name] = self.record(name)
    size = len(self.bytes[name])
    if size != length * dtype.itemsize:
      raise ValueError(
        f"{name}: found {size} bytes, expected {length * dtype.itemsize}, {length} of {dtype}"
      )
    return np.frombuffer(self.bytes[name], dtype)

  def tensor(self, storage, offset, size, stride, *others):
    """A view of a storage; each of its values stands in one place at most. `others`: whether it
    requires a gradient, hooks, and, in some files, metadata."""
    metadata = others[2] if len(others) > 2 else None
    fits = all(type(x) is int and x >= 0 for x in (offset, *size, *stride)) and len(size) == len(
      stride
    )
    if fits and 0 not in size:
      last = offset + sum((n - 1) * step for n, step in zip(size, stride))
      fits = max(last, math.prod(size) - 1) < len(storage)
    if not fits or metadata:
      raise ValueError(
        f"found a tensor of size {size}, stride {stride}, offset {offset} and metadata {metadata} "
        f"in a storage of {len(storage)} values, expected one that fits in it"
      )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)

  def parameter(self, data, requires_grad=False, hooks=None):
    return data

  def record(self, name) -> bytes:
    name = self.prefix + name
    if (
      name not in self.records.namelist()
      or self.records.getinfo(name).compress_type != zipfile.ZIP_STORED
    ):
      raise ValueError(
        f"{name}: found no such record, or one that is compressed, expected what torch.save stores"
      )
    return self.records.read(name)  # checks its CRC


def read_checkpoint(path) -> dict:
  """What torch.save wrote to a file, as dictionaries and read-only numpy arrays (bfloat16: of
  ml_dtypes).

  Raises ValueError for a file that is not whole, not of torch, in torch's format before 1.6, or
  that holds anything but tensors and plain data; no code of it is run.
  """
  try:
    with open(path, "rb") as file:
      if file.read(len(LEGACY)) == LEGACY:
        raise ValueError(
          "found torch's format before 1.6, expected its zip format: read it with torch.load(path, "
          "map_location='cpu', weights_only=True) and save that with torch.save"
        )
      with zipfile.ZipFile(file) as records:
        found = _Unpickler(records).load()
    if not isinstance(found, dict):
      raise ValueError(f"found {type(found).__name__}, expected a dictionary")
  except Exception as error:  # a wrong pickle can raise anything; none of it is more than data
    text = (
      str(error)
      if type(error) is ValueError
      else f"found no readable file ({type(error).__name__}: {error})"
    )
    more = (
      ""
      if "expected" in text
      else ", expected a whole zip file of torch.save: copy or download it again"
    )
    raise ValueError(f"{path}: {text}{more}") from error
  return found
