"""Official checkpoints to safetensors: the golden files, files as torch writes them, and files that
are wrong.

Files of torch.save are made here by hand, without torch, so that any of their parts can be wrong;
the tests marked as live compare with torch where it is installed.
"""

from collections import OrderedDict
import io
import json
import os
from pathlib import Path
import pickle
import shutil
import subprocess
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from v05_jax.models import hf, tokenizer
from v05_jax.value_model import convert as module
from v05_jax.value_model import directory, torch_file
from v05_jax.value_model.convert import convert
from v05_jax.value_model.torch_file import read_checkpoint

DATA = Path(__file__).parent / "data" / "v0"
V0, TABPFN, BACKBONE = DATA / "v0_checkpoint.pt", DATA / "tabpfn-v2.5-tiny.ckpt", DATA / "backbone"
TOLD = {"heads": 3, "table": "torch"}  # what no tensor of the golden files tells
NAMES = {np.dtype(kind): name for name, kind in torch_file.STORAGES.items()}


# --- Files of torch.save, by hand


class Global:
  """A name that is looked up when the pickle is read; calling one is for the pickler's checks
  alone."""

  def __init__(self, where, name):
    self.where, self.name = where, name

  def __call__(self):
    raise AssertionError("never called here")


class Call:
  """A call that reading would make."""

  def __init__(self, where, name, *args, state=None):
    self.call, self.state = (Global(where, name), args), state


class Storage:
  def __init__(self, array, length=None):
    self.array, self.length = array, len(array) if length is None else length


def tensor(storage, offset, size, stride, metadata=()):
  return Call(
    "torch._utils",
    "_rebuild_tensor_v2",
    storage,
    offset,
    size,
    stride,
    False,
    OrderedDict(),
    *metadata,
  )


class Pickler(pickle._Pickler):
  """Writes numpy arrays as torch writes tensors; `records` are the bytes of their storages."""

  def __init__(self, file):
    super().__init__(file, protocol=2)
    self.records = {}

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    key = str(len(self.records))
    self.records[f"data/{key}"] = obj.array.tobytes()
    return ("storage", Global("torch", NAMES[obj.array.dtype]), key, "cpu", obj.length)

  def save_name(self, obj):
    self.write(pickle.GLOBAL + f"{obj.where}\n{obj.name}\n".encode())

  def save_call(self, obj):
    self.save_reduce(*obj.call, state=obj.state, obj=obj)

  def save_array(self, obj):
    strides = tuple(step // obj.itemsize for step in obj.strides)
    self.save_call(tensor(Storage(np.ascontiguousarray(obj).reshape(-1)), 0, obj.shape, strides))

  dispatch = pickle._Pickler.dispatch | {Global: save_name, Call: save_call, np.ndarray: save_array}


def write(path, content, changes=(), compression=zipfile.ZIP_STORED):
  """A file of torch.save; `changes` {record: bytes or None} replaces records. Returns the path."""
  stream = io.BytesIO()
  pickler = Pickler(stream)
  pickler.dump(content)
  records = {
    "data.pkl": stream.getvalue(),
    "byteorder": b"little",
    **pickler.records,
    "version": b"3\n",
  }
  with zipfile.ZipFile(path, "w", compression) as file:
    for name, data in (records | dict(changes)).items():
      if data is not None:
        file.writestr(f"{path.stem}/{name}", data)
  return path


def contiguous(tree):
  """Copies, as dictionaries of writable arrays."""
  return {
    key: contiguous(x) if isinstance(x, dict) else np.array(x) if isinstance(x, np.ndarray) else x
    for key, x in tree.items()
  }


def v0():
  return contiguous(read_checkpoint(V0))


def tabpfn():
  return contiguous(read_checkpoint(TABPFN))


def same(found, expected):
  assert set(found) == set(expected)
  for name, x in expected.items():
    assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
    np.testing.assert_array_equal(found[name], x, err_msg=name)


# --- Reading


def test_golden_files_hold_the_golden_tensors():
  found = read_checkpoint(V0)["model_state_dict"]
  adapter, backbone = (
    load_file(DATA / "adapter.safetensors"),
    load_file(BACKBONE / "model.safetensors"),
  )
  same(
    found,
    {f"adapter_layer.{name}": x for name, x in adapter.items()}
    | {f"backbone.{name}": x for name, x in backbone.items()},
  )
  found = read_checkpoint(TABPFN)
  same(found["state_dict"], load_file(DATA / "tabpfn.safetensors"))
  assert found["config"] == json.loads((DATA / "config.json").read_text())["tabpfn"]


def test_files_made_here_read_as_those_of_torch(tmp_path):
  expected = v0()
  found = read_checkpoint(write(tmp_path / "v0.pt", expected))
  same(found.pop("model_state_dict"), expected.pop("model_state_dict"))
  assert found == expected


@pytest.mark.parametrize("name", torch_file.STORAGES)
def test_every_type(tmp_path, name):
  array = np.arange(-3, 9).reshape(3, 4).astype(torch_file.STORAGES[name])
  found = read_checkpoint(
    write(tmp_path / "x.pt", {"x": array, "none": array[:0], "one": array[1, 2:3].reshape(())})
  )
  same(found, {"x": array, "none": array[:0], "one": array[1, 2]})
  assert not found["x"].flags.writeable


def test_strides_offsets_and_shared_storages(tmp_path):
  x = np.arange(24, dtype=np.float32)
  storage = Storage(x)
  content = {
    "transposed": tensor(storage, 0, (6, 4), (1, 6)),
    "slice": tensor(storage, 7, (3, 2), (6, 2)),
    "bfloat16": tensor(Storage(x.astype(ml_dtypes.bfloat16)), 1, (2, 3), (12, 4)),
  }
  found = read_checkpoint(write(tmp_path / "x.pt", content))
  np.testing.assert_array_equal(found["transposed"], x.reshape(4, 6).T)
  np.testing.assert_array_equal(found["slice"], x.reshape(4, 6)[1:, 1:5:2])
  assert found["bfloat16"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(found["bfloat16"].astype(np.float32), [[1, 5, 9], [13, 17, 21]])


def test_plain_data_is_read_and_stays_data(tmp_path):
  content = {
    "state": Call(
      "collections", "OrderedDict", [("a", 1)], state={"_metadata": {"": {"version": 1}}}
    ),
    "args": Call("argparse", "Namespace", state={"lr": 2e-4, "betas": (0.9, 0.999), "run": None}),
    "size": Call("torch", "Size", (2, 3)),
    "parameter": Call(
      "torch._utils", "_rebuild_parameter", np.ones(2, np.float32), True, OrderedDict()
    ),
    "set": {1, 2},
    "list": [True, 1 << 70, "text", -1.5],
  }
  found = read_checkpoint(write(tmp_path / "x.pt", content))
  np.testing.assert_array_equal(found.pop("parameter"), np.ones(2))
  assert found == {
    "state": {"a": 1},
    "args": {"lr": 2e-4, "betas": (0.9, 0.999), "run": None},
    "size": (2, 3),
    "set": {1, 2},
    "list": [True, 1 << 70, "text", -1.5],
  }


@pytest.mark.parametrize(
  "where, name",
  [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "getattr"),
    ("functools", "partial"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
  ],
)
def test_no_callable_is_run(tmp_path, where, name):
  trace = tmp_path / "trace"
  path = write(tmp_path / "x.pt", {"model_state_dict": {"x": Call(where, name, f"touch {trace}")}})
  with pytest.raises(
    ValueError, match=rf"x\.pt: found the callable {where}\.{name}, expected tensors and plain data"
  ):
    read_checkpoint(path)
  assert not trace.exists()


@pytest.mark.parametrize(
  "target",
  [b"torch._utils\n_rebuild_tensor_v2\n", b"collections\nOrderedDict\n", b"__builtin__\nset\n"],
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path, target):
  state = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b."  # BUILD with (None, {"__defaults__": ()})
  before = torch_file._Unpickler.tensor.__defaults__, dict(vars(torch_file._Dict))
  path = write(tmp_path / "x.pt", {}, {"data.pkl": b"\x80\x02c" + target + state})
  with pytest.raises(ValueError, match="expected"):
    read_checkpoint(path)
  assert before == (torch_file._Unpickler.tensor.__defaults__, dict(vars(torch_file._Dict)))


STORED = np.arange(6, dtype=np.float32)
one = lambda *args, **kwargs: {"x": tensor(Storage(STORED), *args, **kwargs)}
WHOLE = "File is not a zip file.*expected a whole zip file of torch.save: copy or download it again"
# Arguments of `write`, or the bytes of the file, and what the error says.
BROKEN = {
  "short storage": (
    (one(0, (2, 4), (4, 1)),),
    r"size \(2, 4\).* storage of 6 values, expected one that fits",
  ),
  "offset": ((one(1, (6,), (1,)),), "storage of 6 values"),
  "expanded": ((one(0, (1 << 59,), (0,)),), "storage of 6 values"),
  "negative": ((one(5, (6,), (-1,)),), "storage of 6 values"),
  "no stride": ((one(0, (6,), ()),), "storage of 6 values"),
  "metadata": ((one(0, (6,), (1,), ({"neg": True},)),), "metadata"),
  "short record": (
    ({"x": STORED}, {"data/0": bytes(23)}),
    "data/0: found 23 bytes, expected 24, 6 of float32",
  ),
  "length": (({"x": tensor(Storage(STORED, 8), 0, (8,), (1,))},), "found 24 bytes, expected 32"),
  "no record": (({"x": STORED}, {"data/0": None}), "data/0: found no such record"),
  "compressed": (({"x": STORED}, {}, zipfile.ZIP_DEFLATED), "compressed"),
  "byte order": (({"x": STORED}, {"byteorder": b"big"}), "byteorder: found"),
  "no pickle": (({"x": STORED}, {"data.pkl": None}), "found 0 data.pkl"),
  "cut pickle": (({}, {"data.pkl": b"\x80\x02}q\x00(X"}), "found no readable file"),
  "not a dictionary": (([STORED],), "found list, expected a dictionary"),
  "text": (b"version https://git-lfs.github.com/spec/v1", WHOLE),
  "nothing": (b"", WHOLE),
  "legacy": (torch_file.LEGACY + bytes(99), "before 1.6, expected its zip format: .*torch.save"),
  "cut": (V0.read_bytes()[:-1000], WHOLE),
  "flipped": (V0.read_bytes()[:50_000] + b"!" + V0.read_bytes()[50_001:], "CRC"),
  "absent": (None, "No such file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_give_one_clear_error(tmp_path, case):
  content, message = BROKEN[case]
  path = tmp_path / "x.pt"
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    write(path, *content)
  with pytest.raises(ValueError, match=message) as error:
    read_checkpoint(path)
  assert str(error.value).startswith(str(path)) and "expected" in str(error.value)
  assert "\n" not in str(error.value)


# --- Converting


def check_output(out, backbone):
  """The golden adapter and head, and the backbone's parameters as of a directory."""
  same(load_file(out / "adapter.safetensors"), load_file(DATA / "adapter.safetensors"))
  same(load_file(out / "head.safetensors"), load_file(DATA / "tabpfn.safetensors"))
  found = load_file(out / "backbone" / "model.safetensors")
  same({name.removeprefix("model."): x for name, x in found.items()}, backbone)
  config, params = hf.load(out / "backbone")
  assert (config.hidden_size, config.num_layers, config.tie_embeddings) == (64, 2, True)
  np.testing.assert_array_equal(params["embedding"], backbone["embed_tokens.weight"])
  assert sum(x.size for x in jax.tree.leaves(params)) == sum(x.size for x in backbone.values())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("weights", [True, False])
def test_golden_files_convert(tmp_path, prefix, weights):
  content = v0()
  backbone = load_file(BACKBONE / "model.safetensors")
  for name in backbone:  # others than the directory's
    backbone[name] = backbone[name] + np.float32(weights)
    content["model_state_dict"][f"backbone.{name}"] = backbone[name]
  content["model_state_dict"] = {
    prefix + name: x
    for name, x in content["model_state_dict"].items()
    if weights or "backbone." not in name
  }
  checkpoint, out = write(tmp_path / "v0.pt", content), tmp_path / "new" / "out"
  text = convert(checkpoint, TABPFN, BACKBONE, out, **TOLD)
  assert "2,518 parameters" in text and "89,866 parameters" in text and "non-commercial" in text
  assert f"99,712 parameters of {checkpoint if weights else BACKBONE}" in text
  assert sorted(os.listdir(out)) == [
    "adapter.safetensors",
    "backbone",
    "head.safetensors",
    "v0.json",
  ]
  assert os.listdir(out.parent) == ["out"] and sorted(os.listdir(tmp_path)) == ["new", "v0.pt"]
  check_output(out, backbone)
  settings, adapter, head = directory.load(out)
  licences = settings.pop("licences")
  assert "Built with PriorLabs-TabPFN" in licences
  assert settings == {
    "format": 1,
    "temperature": 0.9,
    "estimators": 4,
    "max_tokens": 2048,
    "backbone": "backbone",
    "table": "torch",
    "adapter": {
      "queries": 8,
      "width": 6,
      "heads": 3,
      "bottleneck": 16,
      "hidden_size": 64,
      "pooling": "dynamic",
    },
    "head": {
      "E": 48,
      "heads": 3,
      "group": 3,
      "thinking": 4,
      "layers": 3,
      "factor": 2,
      "outputs": 10,
      "encoder": "linear",
      "encoder_hidden": 0,
    },
  }
  same(adapter, load_file(DATA / "adapter.safetensors"))
  same(head, load_file(DATA / "tabpfn.safetensors"))
  texts = ["Two plus two?", "x"]
  ids = [tokenizer.load(folder)(texts)["input_ids"] for folder in (BACKBONE, out / "backbone")]
  assert ids[0] == ids[1] and ids[0][0][-1] == 0  # the end token is appended


def test_the_weights_of_the_directory_may_be_absent_where_the_checkpoint_has_them(tmp_path):
  shutil.copytree(BACKBONE, tmp_path / "qwen", ignore=shutil.ignore_patterns("*.safetensors"))
  convert(V0, TABPFN, tmp_path / "qwen", tmp_path / "out", **TOLD)
  check_output(tmp_path / "out", load_file(BACKBONE / "model.safetensors"))


def test_a_language_model_in_bfloat16_shards_is_a_backbone(tmp_path):
  folder = tmp_path / "qwen"
  shutil.copytree(BACKBONE, folder)
  backbone = {
    name: x.astype(ml_dtypes.bfloat16)
    for name, x in load_file(folder / "model.safetensors").items()
  }
  (folder / "model.safetensors").unlink()
  where = {}
  for i in range(2):
    part = {f"model.{name}": x for name, x in list(backbone.items())[i::2]}
    if i:
      part["lm_head.weight"] = np.ones((400, 64), np.float32)  # left out
    save_file(part, folder / f"part-{i}.safetensors")
    where |= dict.fromkeys(part, f"part-{i}.safetensors")
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
  config = json.loads((folder / "config.json").read_text())
  config |= {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": False}
  (folder / "config.json").write_text(json.dumps(config))
  content = v0()
  content["model_state_dict"] = {
    k: x for k, x in content["model_state_dict"].items() if "backbone." not in k
  }
  convert(write(tmp_path / "v0.pt", content), TABPFN, folder, tmp_path / "out", **TOLD)
  check_output(tmp_path / "out", backbone)


def test_other_stored_types_and_sizes_convert(tmp_path):
  """A bfloat16 adapter with other heads, and a head with the MLP encoder and another group size,
  one layer."""
  content, head = v0(), tabpfn()
  kind = ml_dtypes.bfloat16
  content["model_state_dict"] = {
    k: x.astype(kind) for k, x in content["model_state_dict"].items() if "adapter" in k
  }
  state = {
    k: x for k, x in head["state_dict"].items() if "layers.1" not in k and "layers.2" not in k
  }
  state["encoder.5.mlp.0.weight"] = np.ones((20, 4), np.float32)
  state["encoder.5.mlp.2.weight"] = np.ones((48, 20), np.float32).T.copy().T
  del state["encoder.5.layer.weight"]
  head["state_dict"] = state
  head["config"] |= {
    "features_per_group": 2,
    "encoder_type": "mlp",
    "encoder_mlp_hidden_dim": 20,
    "nlayers": 1,
  }
  files = write(tmp_path / "v0.pt", content), write(tmp_path / "head.ckpt", head)
  (tmp_path / "out").mkdir()  # an empty folder is as good as none
  convert(*files, BACKBONE, tmp_path / "out", heads=2, table="torch")
  settings, adapter, params = directory.load(tmp_path / "out")
  assert settings["adapter"]["heads"] == 2
  assert settings["head"] == {
    "E": 48,
    "heads": 3,
    "group": 2,
    "thinking": 4,
    "layers": 1,
    "factor": 2,
    "outputs": 10,
    "encoder": "mlp",
    "encoder_hidden": 20,
  }
  same(
    adapter,
    {
      k.removeprefix("adapter_layer."): x.astype(np.float32)
      for k, x in content["model_state_dict"].items()
    },
  )
  same(params, state)


def v0_with(change):
  """Makes arguments of `convert`: the checkpoint's tensors changed by `change(tensors)`."""

  def make(folder):
    content = v0()
    change(content["model_state_dict"])
    return {"checkpoint": write(folder / "bad", content)}

  return make


def arguments_with(**values):
  """The same: arguments of V0's trainer, kept in the checkpoint."""
  return lambda folder: {"checkpoint": write(folder / "bad", v0() | {"args": values})}


def tabpfn_with(change):
  """The same, with all of a TabPFN checkpoint."""

  def make(folder):
    content = tabpfn()
    change(content)
    return {"tabpfn": write(folder / "bad", content)}

  return make


def backbone_with(change):
  """The same for a directory, with a checkpoint that holds no backbone."""

  def make(folder):
    content = v0()
    content["model_state_dict"] = {
      k: x for k, x in content["model_state_dict"].items() if "backbone." not in k
    }
    shutil.copytree(BACKBONE, folder / "bad")
    change(folder / "bad")
    return {"checkpoint": write(folder / "v0.pt", content), "backbone": folder / "bad"}

  return make


def cut_off(name, path, size):
  def make(folder):
    (folder / "bad").write_bytes(path.read_bytes()[:size])
    return {name: folder / "bad"}

  return make


def set_config(**values):
  def change(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))

  return change


def parameters_with(name, change):
  def apply(folder):
    tensors = load_file(folder / f"{name}.safetensors")
    change(tensors)
    save_file(tensors, folder / f"{name}.safetensors")

  return apply


def occupied(folder):
  (folder / "out").mkdir()
  (folder / "out" / "mine.txt").write_text("mine")
  return {}


ONES = np.ones(7, np.float32)
LN, NORM = "adapter_layer.ln_q.bias", "backbone.norm.weight"
QKV = "transformer_encoder.layers.1.self_attn_between_items._w_qkv"
FIRST = "transformer_encoder.layers.0.self_attn_between_features._w_qkv"
WIDE = {FIRST: np.ones((3, 5, 9, 48), np.float32)}
V0_WRONG = {
  "missing": (lambda x: x.pop(LN), rf"bad: {LN}: found none, expected \[6\]$"),
  "no queries": (
    lambda x: x.pop("adapter_layer.static_queries"),
    r"found no such tensor, expected \[1, Q, d\]",
  ),
  "empty": (lambda x: x.clear(), "static_queries: found no such tensor"),
  "extra": (
    lambda x: x.update({"adapter_layer.new": ONES}),
    r"bad: adapter_layer.new: found \[7\], expected no such",
  ),
  "no prefix": (
    lambda x: x.update(static_queries=ONES),
    r"bad: static_queries: found \[7\], expected no such",
  ),
  "shape": (lambda x: x.update({LN: ONES}), rf"{LN}: found \[7\], expected \[6\]$"),
  "integer": (
    lambda x: x.update({LN: np.ones(6, int)}),
    f"{LN}: found type int64, expected one of float32",
  ),
  "not finite": (
    lambda x: x[LN].fill(np.nan),
    f"{LN}: found 6 values that are not finite, expected none",
  ),
  "not a tensor": (lambda x: x.update({LN: [1.0]}), rf"{LN}: found a list, expected \[6\]"),
  "a prefix": (
    lambda x: x.update({f"module.{LN}": x.pop(LN)}),
    rf"{LN}: found none.*\n.*module.{LN}: found \[6\]",
  ),
  "nine extra": (
    lambda x: x.update({f"new{i}": ONES for i in range(9)}),
    r"(?s)new0.*new5.*\n\.\.\. and 3 more$",
  ),
  "half a backbone": (lambda x: x.pop(NORM), rf"bad: {NORM}: found none, expected \[64\]$"),
  "other backbone": (
    lambda x: x.update({NORM: ONES}),
    rf"bad: {NORM}: found \[7\], expected \[64\]$",
  ),
  "callable": (
    lambda x: x.update(x=Call("os", "system", "true")),
    "bad: found the callable os.system, expected",
  ),
}
TABPFN_WRONG = {
  "architecture": (
    lambda x: x.update(architecture_name="base2"),
    "bad: architecture_name: found 'base2', expected",
  ),
  "no config": (lambda x: x.pop("config"), "bad: config: found NoneType"),
  "config": (
    lambda x: x["config"].update(nlayers=24),
    r"bad: config.nlayers: found 24, expected 3$",
  ),
  "seed": (lambda x: x["config"].update(seed=0), r"bad: config.seed: found 0, expected 42$"),
  "head missing": (
    lambda x: x["state_dict"].pop(QKV),
    rf"bad: {QKV}: found none, expected \[3, 3, 16, 48\]$",
  ),
  "head extra": (
    lambda x: x["state_dict"].update(new=ONES),
    r"bad: new: found \[7\], expected no such tensor$",
  ),
  "head shape": (
    lambda x: x["state_dict"].update({QKV: ONES}),
    rf"bad: {QKV}: found \[7\], expected \[3, 3, 16, ",
  ),
  "head width": (lambda x: x["state_dict"].update(WIDE), "bad: found E 48, 5 heads"),
  "no layer": (lambda x: x["state_dict"].pop(FIRST), f"bad: {FIRST}: found no such tensor"),
}
BACKBONE_WRONG = {
  "hidden size": (
    set_config(hidden_size=128),
    "bad: hidden_size: found 128, expected 64, as the adapter",
  ),
  "lacks": (
    parameters_with("model", lambda x: x.pop("norm.weight")),
    r"norm.weight: found none, expected \[64\]$",
  ),
  "vocabulary": (
    set_config(vocab_size=401),
    r"bad: embed_tokens.weight: found \[400, 64\], expected \[401, 64\]$",
  ),
  "architecture of another": (
    set_config(architectures=["LlamaModel"]),
    "bad/config.json: architectures: found",
  ),
  "no weights": (lambda x: (x / "model.safetensors").unlink(), "bad: found no weights"),
  "no tokenizer": (
    lambda x: [file.unlink() for file in x.glob("tokenizer*")],
    "bad: found no tokenizer",
  ),
  "cut backbone": (
    lambda x: (x / "model.safetensors").write_bytes(b"0" * 50),
    "model.safetensors: found a damaged",
  ),
}
WRONG = {
  **{case: (v0_with(change), message) for case, (change, message) in V0_WRONG.items()},
  **{case: (tabpfn_with(change), message) for case, (change, message) in TABPFN_WRONG.items()},
  **{case: (backbone_with(change), message) for case, (change, message) in BACKBONE_WRONG.items()},
  "no model": (
    lambda folder: {"checkpoint": write(folder / "bad", {"epoch": 3})},
    r"NoneType among .* \['epoch'",
  ),
  "exchanged": (
    lambda folder: {"checkpoint": TABPFN, "tabpfn": V0},
    r"found NoneType among .*'config'",
  ),
  "truncated": (cut_off("checkpoint", V0, 200_000), f"bad: found no readable file .*{WHOLE}"),
  "truncated head": (cut_off("tabpfn", TABPFN, -1), f"bad: found no readable file .*{WHOLE}"),
  "heads": (
    lambda folder: {"heads": 4},
    "heads: found 4, expected a divisor of the adapter's width 6",
  ),
  "heads unsaid": (
    lambda folder: {"heads": None},
    r"v0_checkpoint.pt: found no args.num_heads, .*expected --heads=N, .*: 3 in the released model",
  ),
  "heads contradicted": (
    arguments_with(num_heads=2),
    r"bad: args.num_heads: found 2, expected --heads=3, or no such",
  ),
  "pooling": (
    arguments_with(pooling_strategy="last_token"),
    "bad: args.pooling_strategy: found 'last_token', expected 'dynamic_query'",
  ),
  "reduced": (
    arguments_with(reduce_method="avg_pool"),
    "bad: args.reduce_method: found 'avg_pool', expected 'none'",
  ),
  "estimators": (
    arguments_with(tabpfn_estimators=0),
    "bad: args.tabpfn_estimators: found 0, expected a number above 0",
  ),
  "width": (
    lambda folder: {"table": None},
    "tiny.ckpt: found E 48, expected 192, .* whose column table is known; --table=torch",
  ),
  "table": (
    lambda folder: {"table": "philox"},
    "--table=philox: found a head of E 48, expected torch",
  ),
  "no backbone": (
    lambda folder: {"backbone": folder / "bad"},
    "bad/config.json: found no such file",
  ),
  "occupied": (occupied, "out: found a folder with files, expected a new folder"),
  "remote": (lambda folder: {"out": "gs://bucket/v0"}, "gs://bucket/v0: found a remote folder"),
}


def test_arguments_of_the_checkpoint_tell_heads_and_estimators(tmp_path):
  arguments = {"num_heads": 2, "tabpfn_estimators": 8, "pooling_strategy": "dynamic_query"}
  checkpoint = write(tmp_path / "v0.pt", v0() | {"args": arguments})
  convert(checkpoint, TABPFN, BACKBONE, tmp_path / "out", table="torch")
  settings = directory.load(tmp_path / "out")[0]
  assert (settings["adapter"]["heads"], settings["estimators"]) == (2, 8)
  for heads in (None, 2):  # saying the same is no contradiction
    assert module.read_v0(checkpoint, heads)[0]["heads"] == 2


def test_the_column_table_of_a_head(tmp_path):
  """Of E 192 the released model's, as far as it goes; of another the one that was asked for."""
  sizes = {"queries": 168, "width": 6}
  find = lambda E, group, table=None: module.find_table("x", {"E": E, "group": group}, sizes, table)
  assert find(192, 3) == find(192, 3, "philox") == "philox" and find(96, 3, "torch") == "torch"
  sizes["queries"] = 1001
  with pytest.raises(ValueError, match="x: found 2003 groups of columns, expected at most 2000"):
    find(192, 3)
  with pytest.raises(ValueError, match="--table=torch: found a head of E 192, expected philox"):
    find(192, 6, "torch")


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_give_one_clear_error_and_no_output(tmp_path, case):
  make, message = WRONG[case]
  arguments = {
    "checkpoint": V0,
    "tabpfn": TABPFN,
    "backbone": BACKBONE,
    "out": tmp_path / "out",
    **TOLD,
  } | make(tmp_path)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(ValueError, match=message) as error:
    convert(**arguments)
  assert sorted(tmp_path.rglob("*")) == before
  assert "found" in str(error.value) and ".tmp" not in str(error.value)


# --- The directory


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  out = tmp_path_factory.mktemp("v0") / "out"
  convert(V0, TABPFN, BACKBONE, out, **TOLD)
  return out


def settings_with(change):
  def apply(folder):
    found = json.loads((folder / "v0.json").read_text())
    change(found)
    (folder / "v0.json").write_text(json.dumps(found))

  return apply


@pytest.mark.parametrize(
  "change, message",
  [
    (settings_with(lambda x: x.update(format=2)), "v0.json: format: found 2, expected 1"),
    (
      settings_with(lambda x: x["adapter"].update(queries=9)),
      "adapter: found .*: 9.*, expected .*'queries': 8",
    ),
    (settings_with(lambda x: x["adapter"].update(heads=4)), "heads: found 4, expected a divisor"),
    (
      settings_with(lambda x: x["adapter"].update(pooling="mean")),
      "adapter: found .*mean.* a known pooling",
    ),
    (
      settings_with(lambda x: x["head"].pop("thinking")),
      "head: found .*, expected .*'thinking': 4",
    ),
    (settings_with(lambda x: x.pop("head")), "head: found None, expected"),
    (
      settings_with(lambda x: x.update(temperature=0)),
      "temperature: found 0, expected a number above 0",
    ),
    (
      settings_with(lambda x: x.update(estimators=True)),
      "estimators: found True, expected an integer from 1 to 1024",
    ),
    (
      settings_with(lambda x: x.update(backbone="/etc")),
      "backbone: found '/etc', expected backbone or builtin",
    ),
    (
      parameters_with("adapter", lambda x: x.pop("ln_q.bias")),
      "adapter.safetensors: ln_q.bias: found none",
    ),
    (
      parameters_with("head", lambda x: x.update(new=ONES)),
      "head.safetensors: new: found .7., expected no such tensor",
    ),
    (lambda x: (x / "head.safetensors").write_bytes(b"1"), "found a missing or damaged file"),
    (lambda x: (x / "v0.json").unlink(), "found a missing or damaged file"),
    (lambda x: (x / "v0.json").write_text("[]"), "format: found None"),
  ],
)
def test_a_changed_directory_is_refused(tmp_path, converted, change, message):
  folder = tmp_path / "v0"
  shutil.copytree(converted, folder)
  change(folder)
  with pytest.raises(ValueError, match=message):
    directory.load(folder)


def test_the_command_line_reports_an_error():
  flags = [
    f"--checkpoint={TABPFN}",
    f"--tabpfn={TABPFN}",
    f"--backbone={BACKBONE}",
    "--out=/nonexistent/out",
  ]
  done = subprocess.run(
    [sys.executable, "-m", module.__name__, *flags], capture_output=True, text=True, timeout=500
  )
  assert (
    done.returncode == 1 and f"error: {TABPFN}: model_state_dict: found NoneType" in done.stderr
  )
  assert "Traceback" not in done.stderr


# --- Live, where torch is installed


def test_live_files_of_torch(tmp_path):
  torch = pytest.importorskip("torch")
  base = torch.arange(24.0).reshape(4, 6)
  content = {
    "base": base,
    "view": base[1:, 2:4],
    "transposed": base.T,
    "bfloat16": base.bfloat16()[::2],
    "half": base.half(),
    "bool": base > 3,
    "int": base.int(),
    "double": base.double(),
    "scalar": torch.tensor(3),
    "empty": base[:0],
    "parameter": torch.nn.Parameter(base[0].clone()),
    "module": torch.nn.Linear(3, 2).state_dict(),
    "size": base.shape,
  }
  torch.save(content, tmp_path / "x.pt")
  found = read_checkpoint(tmp_path / "x.pt")
  assert list(found) == list(content) and found["size"] == (4, 6)
  compare(torch, found, content)
  torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
  with pytest.raises(
    ValueError, match=r"old.pt: found torch's format before 1.6, expected its zip format"
  ):
    read_checkpoint(tmp_path / "old.pt")


@pytest.mark.parametrize("path", [V0, TABPFN])
def test_live_golden_files(tmp_path, path):
  torch = pytest.importorskip("torch")
  expected = torch.load(path, map_location="cpu", weights_only=True)
  compare(torch, read_checkpoint(path), expected)
  compare(
    torch,
    contiguous(read_checkpoint(path)),
    torch.load(write(tmp_path / "copy.pt", contiguous(read_checkpoint(path))), weights_only=True),
  )


def compare(torch, found, expected):
  for key, x in expected.items():
    if isinstance(x, dict):
      compare(torch, found[key], x)
    elif isinstance(x, torch.Tensor):
      assert str(x.dtype) == f"torch.{found[key].dtype}" and tuple(x.shape) == found[key].shape, key
      np.testing.assert_array_equal(
        found[key].astype(np.float64), x.detach().double().numpy(), err_msg=key
      )
    else:
      assert found[key] == x
