"""A V0 on disk: adapter, head and backbone in one directory, and what its sizes must be.

adapter.safetensors, head.safetensors   official names without prefix, float32
backbone/                               config, weights and tokenizer, as `models.hf.load` opens
                                        them; left out where it is the built-in tasks' policy
v0.json                                 sizes and settings, see `load`
"""

import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from v05_jax.models import files
from v05_jax.scale import sources
from v05_jax.value_model import adapter, ensemble

FORMAT = 1  # of v0.json
# where the backbone is: beside, or the policy of the built-in tasks
FOLDER, BUILTIN = "backbone", "builtin"
FLOATS = ("float32", "bfloat16", "float16", "float64")
TABLE = "philox"  # the column table where v0.json names none
LAYERS = "transformer_encoder.layers."
LINEAR, MLP = "encoder.5.layer.weight", ("encoder.5.mlp.0.weight", "encoder.5.mlp.2.weight")
ADAPTER = ("queries", "width", "heads", "bottleneck", "hidden_size", "pooling")
HEAD = (
  "E",
  "heads",
  "group",
  "thinking",
  "layers",
  "factor",
  "outputs",
  "encoder",
  "encoder_hidden",
)
LICENCES = (
  "TabPFN-2.5 weights (head.safetensors) are under Prior Labs' own non-commercial licence, "
  "whatever file they are of. This project ships none of them and grants no right to them. Whoever "
  "distributes them, or a model made with them, must include that licence, display "
  '"Built with PriorLabs-TabPFN" and name the model "TabPFN...". '
  "The V0 repository and Qwen3-Embedding are under Apache-2.0."
)
# The released V0, for whoever wants its shapes without it.
RELEASED = {
  "adapter": dict(zip(ADAPTER, (168, 6, 3, 128, 1024, "dynamic"))),
  "head": dict(zip(HEAD, (192, 3, 3, 64, 24, 2, 10, "linear", 0))),
  "estimators": 4,
}
float32 = functools.partial(np.ascontiguousarray, dtype=np.float32)


def digest(path: str) -> str:
  """Of the weights of a V0 and of its backbone, which change with no size; "" of the built-in one,
  which is the package's."""
  folders = filter(os.path.isdir, (path, os.path.join(path, FOLDER)))
  return "" if path == BUILTIN else " ".join(map(sources.of_folder, folders))


def save(directory, settings: dict, adapter_params: dict, head_params: dict):
  """Writes adapter.safetensors, head.safetensors and v0.json: `settings` as of `load`, and any
  further ones."""
  directory = Path(directory)
  for name, params in (("adapter", adapter_params), ("head", head_params)):
    file = directory / f"{name}.safetensors"
    files.save_tensors({name: float32(x) for name, x in params.items()}, file)
  files.write_json(directory / "v0.json", {"format": FORMAT} | settings)


def load(directory) -> tuple[dict, dict, dict]:
  """(settings, adapter parameters, head parameters), numpy float32, of a directory that `save`
  wrote.

  Settings are v0.json's: "adapter" {queries, width, heads, bottleneck, hidden_size, pooling},
  "head" {E, heads, group, thinking, layers, factor (MLP width / E), outputs, encoder (linear or
  mlp), encoder_hidden (0 = linear)}, "temperature", "estimators", "max_tokens", "backbone" (its
  folder, or "builtin": the policy of the built-in tasks), and, where it is not `TABLE`, "table",
  how the head's column table is made (`ensemble.TABLES`).

  Raises ValueError where names or shapes do not fit them.
  """
  directory = Path(directory)
  file, (a, h) = (
    directory / "v0.json",
    (directory / f"{x}.safetensors" for x in ("adapter", "head")),
  )
  try:
    settings = json.loads(file.read_text(encoding="utf-8"))
    adapter_params, head_params = (load_file(x) for x in (a, h))
  except Exception as error:  # safetensors raises its own kinds
    raise ValueError(
      f"{directory}: found a missing or damaged file ({error}), expected {file.name}, {a.name} and "
      f"{h.name} as value_model.convert and --mode=value write them"
    ) from error
  settings = settings if isinstance(settings, dict) else {}
  rules = {
    "format": (lambda x: x == FORMAT, FORMAT),
    "adapter": (
      lambda x: isinstance(x, dict) and x.get("pooling") in adapter.POOLINGS,
      "one with a known pooling",
    ),
    "temperature": (lambda x: type(x) in (int, float) and 0 < x < 1e30, "a number above 0"),
    "estimators": (lambda x: type(x) is int and 0 < x <= 1024, "an integer from 1 to 1024"),
    "max_tokens": (lambda x: type(x) is int and x > 0, "an integer above 0"),
    "backbone": (lambda x: x in (FOLDER, BUILTIN), f"{FOLDER} or {BUILTIN}"),
    "table": (lambda x: x in (None, *ensemble.TABLES), " or ".join(ensemble.TABLES)),
  }
  refuse(
    [
      f"{file}: {key}: found {settings.get(key)!r}, expected {what}"
      for key, (holds, what) in rules.items()
      if not holds(settings.get(key))
    ]
  )
  sizes = settings["adapter"].get("heads"), "", settings["adapter"]["pooling"]
  sizes = {"adapter": adapter_sizes(a, adapter_params, *sizes), "head": head_sizes(h, head_params)}
  refuse(
    [
      f"{file}: {key}: found {settings.get(key)}, expected {found}, the sizes of the parameters"
      for key, found in sizes.items()
      if settings.get(key) != found
    ]
  )
  as_float32 = lambda params: {name: float32(x) for name, x in params.items()}
  return settings, as_float32(adapter_params), as_float32(head_params)


def adapter_sizes(
  file, found: dict, heads: int, prefix: str = "", pooling: str = "dynamic"
) -> dict:
  """v0.json's "adapter", read off the parameters, which must be complete and fit each other."""
  queries, width = shape_of(file, found, f"{prefix}static_queries", "1 Q d")[1:]
  hidden_size = shape_of(file, found, f"{prefix}proj_kv.weight", "d D")[1]
  bottleneck = shape_of(file, found, f"{prefix}generator.0.weight", "B D")[0]
  shapes = jax.eval_shape(
    lambda: adapter.init(jax.random.key(0), hidden_size, queries, width, bottleneck)
  )
  account(file, found, {prefix + name: x.shape for name, x in shapes.items()})
  if type(heads) is not int or heads < 1 or width % heads:
    raise ValueError(
      f"{file}: heads: found {heads}, expected a divisor of the adapter's width {width}"
    )
  return dict(zip(ADAPTER, (queries, width, heads, bottleneck, hidden_size, pooling)))


def head_sizes(file, found: dict) -> dict:
  """v0.json's "head", read off the parameters, which must be complete and fit each other."""
  thinking, E = shape_of(file, found, "add_thinking_tokens.row_token_values", "T E")
  heads = shape_of(file, found, f"{LAYERS}0.self_attn_between_features._w_qkv", "3 h E/h E")[1]
  F = shape_of(file, found, f"{LAYERS}0.mlp.linear1.weight", "f*E E")[0]
  name, letters = (MLP[0], "H 2*g") if MLP[0] in found else (LINEAR, "E 2*g")
  H, cells = shape_of(file, found, name, letters)
  outputs = shape_of(file, found, "decoder_dict.standard.2.weight", "10 f*E")[0]
  layers = len(
    {name.removeprefix(LAYERS).partition(".")[0] for name in found if name.startswith(LAYERS)}
  )
  if E % heads or E % 4 or F % E or outputs < 2:
    raise ValueError(
      f"{file}: found E {E}, {heads} heads, MLP width {F} and {outputs} outputs, expected E to "
      "divide that width and to be a multiple of 4 and of the heads, and 2 outputs or more"
    )
  encoder = ("linear", 0) if name == LINEAR else ("mlp", H)
  sizes = dict(zip(HEAD, (E, heads, cells // 2, thinking, layers, F // E, outputs, *encoder)))
  account(file, found, head_shapes(sizes))
  return sizes


def head_shapes(sizes: dict) -> dict[str, tuple]:
  """Shapes of the head's parameters, for v0.json's "head"."""
  E, heads, group, H = (sizes[name] for name in ("E", "heads", "group", "encoder_hidden"))
  F = sizes["factor"] * E
  linear = {LINEAR: (E, 2 * group)}
  shapes = linear if sizes["encoder"] == "linear" else {MLP[0]: (H, 2 * group), MLP[1]: (E, H)}
  layer = {"mlp.linear1.weight": (F, E), "mlp.linear2.weight": (E, F)}
  for attention in ("self_attn_between_features", "self_attn_between_items"):
    layer |= {
      f"{attention}._w_qkv": (3, heads, E // heads, E),
      f"{attention}._w_out": (heads, E // heads, E),
    }
  return (
    shapes
    | {
      f"{LAYERS}{i}.{name}": shape for i in range(sizes["layers"]) for name, shape in layer.items()
    }
    | {
      "y_encoder.2.layer.weight": (E, 2),
      "y_encoder.2.layer.bias": (E,),
      "add_thinking_tokens.row_token_values": (sizes["thinking"], E),
      "feature_positional_embedding_embeddings.weight": (E, E // 4),
      "feature_positional_embedding_embeddings.bias": (E,),
      "decoder_dict.standard.0.weight": (F, E),
      "decoder_dict.standard.0.bias": (F,),
      "decoder_dict.standard.2.weight": (sizes["outputs"], F),
      "decoder_dict.standard.2.bias": (sizes["outputs"],),
    }
  )


def stacked(sizes: dict) -> dict[str, tuple]:
  """The same with the names and shapes of `tabpfn.stack`."""
  found = {}
  for name, shape in head_shapes(sizes).items():
    inside = name.removeprefix(LAYERS).partition(".")[2] if name.startswith(LAYERS) else ""
    found[f"layers.{inside}" if inside else name] = (sizes["layers"], *shape) if inside else shape
  return found


def features(settings: dict) -> int:
  """F, the features of a prompt."""
  options = settings["adapter"]
  return (
    options["hidden_size"]
    if options["pooling"] == "last"
    else options["queries"] * options["width"]
  )


def column_table(settings: dict, groups: int) -> np.ndarray:
  """The column table [G, E/4] of the head for so many groups of columns."""
  return ensemble.TABLES[settings.get("table") or TABLE](groups, settings["head"]["E"] // 4)


def account(file, found: dict, expected: dict[str, tuple], types=FLOATS):
  """Raises ValueError unless the arrays have the expected names and shapes, a known type and finite
  values."""
  problems = []
  for name in dict.fromkeys([*expected, *found]):
    x, wanted = found.get(name), list(expected[name]) if name in expected else "no such tensor"
    shape = (
      list(x.shape)
      if isinstance(x, np.ndarray)
      else f"a {type(x).__name__}"
      if name in found
      else "none"
    )
    if shape != wanted:
      problems.append(f"{file}: {name}: found {shape}, expected {wanted}")
    elif str(x.dtype) not in types:
      problems.append(f"{file}: {name}: found type {x.dtype}, expected one of {', '.join(types)}")
    elif wrong := np.count_nonzero(~np.isfinite(_as_used(x))):
      problems.append(f"{file}: {name}: found {wrong} values that are not finite, expected none")
    elif large := np.count_nonzero(np.abs(_as_used(x)) >= files.TOO_LARGE):
      problems.append(
        f"{file}: {name}: found {large} values of {files.TOO_LARGE:g} or more, whose squares are "
        "infinite, expected none"
      )
  refuse(problems)


def _as_used(x):
  """The array in float32, where a float64 may be infinite."""
  with np.errstate(over="ignore"):
    return x.astype(np.float32) if x.dtype.itemsize > 4 else x


def refuse(problems: list[str], most: int = 6):
  if problems:
    raise ValueError(
      "\n".join(problems[:most] + [f"... and {len(problems) - most} more"] * (len(problems) > most))
    )


def shape_of(file, found: dict, name: str, letters: str) -> tuple:
  """Shape of a tensor that sizes are read off."""
  shape = getattr(found.get(name), "shape", ())
  if len(shape) != len(letters.split()) or 0 in shape:
    what = list(shape) if name in found else "no such tensor"
    raise ValueError(f"{file}: {name}: found {what}, expected [{', '.join(letters.split())}]")
  return shape
