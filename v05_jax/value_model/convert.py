r"""The official V0 value model as one directory of safetensors:

    python -m v05_jax.value_model.convert --checkpoint=v0.pt \
      --tabpfn=tabpfn-v2.5.ckpt --backbone=DIR --out=DIR

The adapter comes from a V0 checkpoint, the head from a TabPFN-v2.5 one, the backbone from a
Qwen3(-Embedding) directory, or, where the V0 checkpoint holds its weights, from there. torch is not
needed, and no pickled code is run: the unpickler knows tensors and plain data alone. Every tensor
is accounted for before anything is written, and --out appears as a whole or not at all. The
adapter's heads and the number of estimators show in no tensor: they are read from the arguments
that V0's trainer keeps in its checkpoint; without these, --heads has to be given.

    adapter.safetensors, head.safetensors   official names without prefix, float32
    backbone/                               config, weights and tokenizer, as
                                            `v05_jax.models.hf.load` opens them
    v0.json                                 sizes and settings, see `directory.load`
"""

import os
from pathlib import Path
import shutil
import sys

from absl import app, flags
import numpy as np

from v05_jax.models import files, hf, presets, tokenizer
from v05_jax.models.families import base, qwen3
from v05_jax.value_model import directory
from v05_jax.value_model.directory import (
  FLOATS,
  LICENCES,
  account,
  adapter_sizes,
  float32,
  head_sizes,
  refuse,
)
from v05_jax.value_model.torch_file import read_checkpoint

# Of the released model, where no file tells.
SETTINGS = {
  "temperature": 0.9,
  "estimators": 4,
  "max_tokens": 2048,
  "backbone": directory.FOLDER,
  "licences": LICENCES,
}
STORED = FLOATS[:3]  # what `hf.load` reads
FILES = (*tokenizer.FILES, "generation_config.json")  # of the backbone, beside config and weights
# The one width whose column table is a constant of the model, and how many rows that has.
TABLE_WIDTH, TABLE_ROWS = 192, 2000
# Arguments of V0's trainer that the checkpoint may hold, and what is implemented of them.
ARGUMENTS = {"pooling_strategy": "dynamic_query", "reduce_method": "none"}
# Keys of a TabPFN checkpoint's config: those that must agree with the shapes, and what v0.json
# calls them; then those that tell the one model that is implemented.
CONFIG = dict(
  emsize="E",
  nhead="heads",
  features_per_group="group",
  num_thinking_rows="thinking",
  nlayers="layers",
  nhid_factor="factor",
  max_num_classes="outputs",
  encoder_type="encoder",
)
FIXED = {
  "feature_positional_embedding": "subspace",
  "item_attention_type": "full",
  "feature_attention_type": "full",
  "multiquery_item_attention": False,
  "multiquery_item_attention_for_test_set": True,
  "encoder_use_bias": False,
  "nan_handling_enabled": True,
  "nan_handling_y_encoder": True,
  "normalize_x": True,
  "normalize_to_ranking": False,
  "normalize_on_train_only": True,
  "normalize_by_used_features": True,
  "remove_empty_features": True,
  "seed": 42,
}


def main(_):
  args = flags.FLAGS
  try:
    print(convert(args.checkpoint, args.tabpfn, args.backbone, args.out, args.heads, args.table))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


def convert(
  checkpoint, tabpfn, backbone, out, heads: int | None = None, table: str | None = None
) -> str:
  """Writes the directory `out`; returns a text on what was found and the licences.

  Args:
    checkpoint, tabpfn: files of torch.save, see `read_v0` and `read_tabpfn`.
    backbone: a Hugging Face Qwen3 directory; of its weights nothing is read where the checkpoint
      holds them.
    out: a folder that does not exist, or an empty one.
    heads: of the adapter's attention, where the checkpoint does not say; no shape tells them.
    table: how the column table of a head of another width than 192 is made, of `ensemble.TABLES`;
      that of width 192 is known.

  Raises ValueError naming the file, what was found and what was expected; `out` is then as it was.
  """
  out = files.free(out)
  sizes, adapter_params, weights, estimators = read_v0(checkpoint, heads)
  head, head_params = read_tabpfn(tabpfn)
  settings = SETTINGS | {"estimators": estimators, "table": find_table(tabpfn, head, sizes, table)}
  work = next(x for x in out.parents if x.is_dir()) / f".{out.name}.{os.getpid()}.tmp"
  work.mkdir()
  try:
    config = write_backbone(
      checkpoint, weights, Path(backbone), work / "backbone", sizes["hidden_size"]
    )
    directory.save(work, {"adapter": sizes, "head": head} | settings, adapter_params, head_params)
    directory.load(work)
    out.parent.mkdir(parents=True, exist_ok=True)
    work.rename(out)
  except ValueError as error:  # of `hf` and `tokenizer`, on what was copied
    raise ValueError(str(error).replace(str(work / "backbone"), os.fspath(backbone))) from error
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return "\n".join(
    [
      f"adapter: {sizes}, {sum(x.size for x in adapter_params.values()):,} parameters",
      f"head: {head}, {sum(x.size for x in head_params.values()):,} parameters",
      f"backbone: {config.num_layers} layers, hidden size {config.hidden_size}, vocabulary "
      f"{config.vocab_size}, {presets.num_params(config):,} parameters of "
      f"{checkpoint if weights else backbone}",
      f"wrote {out}",
      "",
      LICENCES,
    ]
  )


def read_v0(file, heads: int | None = None):
  """(sizes, adapter parameters, backbone weights or {}, estimators) of a V0 checkpoint; names
  without `module.`."""
  checkpoint = read_checkpoint(file)
  found = _section(file, checkpoint, "model_state_dict")
  if found and all(name.startswith("module.") for name in found):
    found = {name.removeprefix("module."): x for name, x in found.items()}
  backbone = {name: x for name, x in found.items() if name.startswith("backbone.")}
  found = {name: x for name, x in found.items() if name not in backbone}
  heads, estimators = read_arguments(file, checkpoint.get("args"), heads)
  try:
    sizes = adapter_sizes(file, found, heads, "adapter_layer.")
  except ValueError as error:
    raise ValueError(str(error).replace(f"{file}: heads:", f"{file}: --heads:")) from None
  return (
    sizes,
    {name.removeprefix("adapter_layer."): float32(x) for name, x in found.items()},
    backbone,
    estimators,
  )


def read_arguments(file, arguments, heads: int | None) -> tuple[int, int]:
  """(heads, estimators) that a checkpoint's arguments name, a dictionary, or None where it has
  none; `heads` are those of --heads. ValueError where they tell of another model, contradict
  --heads, or no one says the heads."""
  arguments = arguments if isinstance(arguments, dict) else {}
  refuse(
    [
      f"{file}: args.{key}: found {arguments[key]!r}, expected {value!r}, all that is implemented"
      for key, value in ARGUMENTS.items()
      if arguments.get(key, value) != value
    ]
  )
  said = arguments.get("num_heads", heads)
  if said is None:
    raise ValueError(
      f"{file}: found no args.num_heads, which no shape tells, expected --heads=N, the heads of "
      f"the adapter's attention: {directory.RELEASED['adapter']['heads']} in the released model"
    )
  if heads is not None and said != heads:
    raise ValueError(
      f"{file}: args.num_heads: found {said!r}, expected --heads={heads}, or no such"
    )
  estimators = arguments.get("tabpfn_estimators", SETTINGS["estimators"])
  if type(estimators) is not int or estimators < 1:
    raise ValueError(
      f"{file}: args.tabpfn_estimators: found {estimators!r}, expected a number above 0"
    )
  return said, estimators


def find_table(file, head: dict, adapter: dict, table: str | None) -> str:
  """How the head's column table is made, of `ensemble.TABLES`. ValueError for a head whose table is
  none that is known."""
  groups = -(-(adapter["queries"] * adapter["width"] + 1) // head["group"])
  released = head["E"] == TABLE_WIDTH
  if released and groups > TABLE_ROWS:
    raise ValueError(
      f"{file}: found {groups} groups of columns, expected at most {TABLE_ROWS}, the rows of the "
      "released model's column table"
    )
  if not released and table is None:
    raise ValueError(
      f"{file}: found E {head['E']}, expected {TABLE_WIDTH}, the released model's, whose column "
      "table is known; --table=torch draws one as TabPFN does for a head of another width"
    )
  known = ("philox",) if released else ("torch",)
  if table not in (None, *known):
    raise ValueError(
      f"--table={table}: found a head of E {head['E']}, expected {known[0]}, TabPFN's own there"
    )
  return known[0]


def read_tabpfn(file):
  """(sizes, parameters) of the head in a TabPFN-v2.5 checkpoint, its sizes compared with its
  config."""
  checkpoint = read_checkpoint(file)
  found, config = _section(file, checkpoint, "state_dict"), _section(file, checkpoint, "config")
  if checkpoint.get("architecture_name") != "base":
    raise ValueError(
      f"{file}: architecture_name: found {checkpoint.get('architecture_name')!r}, expected 'base'"
    )
  sizes = head_sizes(file, found)
  expected = FIXED | {key: sizes[ours] for key, ours in CONFIG.items()}
  expected |= (
    {"encoder_mlp_hidden_dim": sizes["encoder_hidden"]} if sizes["encoder"] == "mlp" else {}
  )
  refuse(
    [
      f"{file}: config.{key}: found {config[key]!r}, expected {value!r}"
      for key, value in expected.items()
      if key in config and config[key] != value
    ]
  )
  return sizes, {name: float32(x) for name, x in found.items()}


def write_backbone(checkpoint, weights, source: Path, target: Path, hidden_size: int):
  """Copies a backbone to `target` as `hf.load` wants it, checks that it opens there, and returns
  its config.

  `weights` are those of the checkpoint, where it has any. Names in the directory may begin with
  `model.` or, as in Qwen3-Embedding, not; a language model's output layer is left out.
  """
  target.mkdir()
  for name in ("config.json", *FILES):
    files.copy(source / name, target / name)
  written = files.read_json(target / "config.json") | {"tie_word_embeddings": True}
  written |= (
    {"architectures": [qwen3.ARCHITECTURE]}
    if written.get("architectures") == ["Qwen3Model"]
    else {}
  )
  files.write_json(target / "config.json", written)
  config = hf.read_config(target)
  if config.hidden_size != hidden_size:
    raise ValueError(
      f"{source}: hidden_size: found {config.hidden_size}, expected {hidden_size}, as the adapter "
      f"in {checkpoint} reads it"
    )
  found, prefix, origin = weights, "backbone.", checkpoint
  if not weights:
    found, origin = {}, source
    for file in files.weight_files(source):
      with files.open_tensors(file) as tensors:
        found |= {name: tensors.get_tensor(name) for name in tensors.keys() if name != base.HEAD}
    prefix = "model." if any(name.startswith("model.") for name in found) else ""
  shapes = {name.removeprefix("model."): shape for name, shape in hf.stored_shapes(config).items()}
  account(origin, found, {prefix + name: shape for name, shape in shapes.items()}, STORED)
  files.save_tensors(
    {f"model.{name.removeprefix(prefix)}": np.ascontiguousarray(x) for name, x in found.items()},
    target / files.WEIGHTS,
  )
  hf.load(target)
  tokenizer.check(tokenizer.load(target), config.vocab_size)
  return config


def _section(file, checkpoint: dict, key: str) -> dict:
  found = checkpoint.get(key)
  if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
    raise ValueError(
      f"{file}: {key}: found {type(found).__name__} among the keys {[*checkpoint][:8]}, expected a "
      "dictionary of names"
    )
  return found


if __name__ == "__main__":  # flags are defined here alone: v05_jax.main has its own --out
  flags.DEFINE_string("checkpoint", None, "V0 checkpoint, a .pt file", required=True)
  flags.DEFINE_string(
    "tabpfn", None, "TabPFN-v2.5 classifier checkpoint, a .ckpt file", required=True
  )
  flags.DEFINE_string(
    "backbone", None, "Qwen3-Embedding directory: config, tokenizer, weights", required=True
  )
  flags.DEFINE_string("out", None, "folder to write", required=True)
  flags.DEFINE_integer("heads", None, "attention heads of the adapter, where --checkpoint has none")
  flags.DEFINE_string("table", None, "torch: draw the column table of a head of other E than 192")
  app.run(main)
