"""The notebooks run from top to bottom, define nothing, and show what their own cells have made."""

import ast
import dataclasses
import json
from pathlib import Path
import re

from IPython.core.inputtransformer2 import TransformerManager
import jax
import nbformat
import pytest

from notebooks import execute
from tests import support
from v05_jax.models import decoder, hf, presets

ROOT = Path(__file__).parent.parent
NAMES = ("estimator_tour", "quickstart", "real_model", "value_prior_tour")
# What a run says of its progress.
PROGRESS = ("loading ", "compiling ", "the first step took ", "step ")
# The same cells with less to compute: the plots are of no use, what is tested is that every cell
# runs. Sixteen rows are the least that V0 is compiled for, so its uses share their programs. The
# quickstart takes one step, after which the prior speaks, and its page has that run alone.
SMALL = {
  "estimator_tour": {"GRID": 12, "STEPS": 20, "PROMPTS": 16},
  "quickstart": {
    "STEPS": 1,
    "ROLLOUTS_PER_STEP": 128,
    "HELD_OUT": 32,
    "PROMPTS": 256,
    "DRAWINGS": 1,
    "COMPARE_WITH": "",
  },
  "real_model": {
    "MODEL": "tiny",
    "PROBLEMS": "sums.jsonl",
    "OPTIONS": "",
    "REWARD": "expression",
    "WARM_STEPS": 1,
    "STEPS": 1,
    "ROLLOUTS_PER_STEP": 16,
    "HELD_OUT": 4,
    "MAX_PROMPT": 40,
    "MAX_RESPONSE": 4,
    "ANSWERS": 1,
    "DRAWINGS": 1,
  },
  "value_prior_tour": {"CONTEXT": 16, "PROMPTS": 16, "TEMPERATURES": (0.5,)},
}
# One CPU device, and programs that compile fast rather than run fast.
FAST = {"XLA_FLAGS": support.one_device(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def write_inputs(folder):
  """A tiny model of characters and a file of sums, as SMALL["real_model"] names them."""
  characters = "".join(map(chr, range(32, 127))) + "\n"
  tokenizer = support.character_tokenizer(characters, 128)
  shape = dataclasses.replace(
    presets.PRESETS["tiny"], vocab_size=132, family="qwen2", qk_norm=False
  )
  shape = dataclasses.replace(shape, qkv_bias=True)
  params = jax.device_get(decoder.init(shape, jax.random.key(0)))
  hf.save(folder / "tiny", shape, params, tokenizer)
  rows = ({"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(64))
  (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain(cell) -> ast.Module:
  """A cell without IPython's own syntax."""
  return ast.parse(TransformerManager().transform_cell(cell.source))


def test_these_are_all():
  assert tuple(execute.names()) == NAMES == tuple(SMALL)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=pytest.mark.long) if x in ("quickstart", "real_model") else x
    for x in NAMES
  ],
)
def test_runs_from_top_to_bottom(name, tmp_path):
  if name == "real_model":
    write_inputs(tmp_path)
  kept = execute.read(name)
  notebook = execute.execute(execute.fill(kept, SMALL[name]), tmp_path, FAST)
  assert [cell.execution_count for cell in execute.code(notebook)] == list(
    range(1, len(execute.code(kept)) + 1)
  )
  drawn = len(execute.pictures(notebook))
  assert drawn >= 2 and (name in execute.DOWNLOADS or drawn == len(execute.pictures(kept)))


@pytest.mark.parametrize("name", NAMES)
def test_defines_nothing(name):
  wrong = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
  trees = [plain(cell) for cell in execute.code(execute.read(name))]
  assert not [
    ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, wrong)
  ]
  modules = {
    node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
  }
  assert any(module.split(".")[0] == "v05_jax" for module in modules)


@pytest.mark.parametrize("name", execute.DOWNLOADS)
def test_keeps_nothing_of_a_download(name):
  cells = execute.code(execute.read(name))
  assert not any(cell.outputs or cell.execution_count for cell in cells)
  assert "executed" not in execute.read(name).metadata


@pytest.mark.parametrize("name", [name for name in NAMES if name not in execute.DOWNLOADS])
def test_shows_what_its_own_cells_have_made(name):
  notebook = execute.read(name)
  nbformat.validate(notebook)
  remedy = f"run `python -m notebooks.execute {name}`"
  assert notebook.metadata["executed"]["sha256"] == execute.digest(notebook), remedy
  assert [cell.execution_count for cell in execute.code(notebook)] == list(
    range(1, len(execute.code(notebook)) + 1)
  )
  outputs = [output for cell in execute.code(notebook) for output in cell.outputs]
  assert all(output.output_type != "error" for output in outputs)
  said = "".join(output.text for output in outputs if output.get("name") == "stderr")
  strange = [line for line in said.splitlines() if not line.startswith(PROGRESS)]
  assert not strange  # no warning
  texts = " ".join(
    str({k: v for k, v in output.get("data", {}).items() if k != "image/png"})
    + output.get("text", "")
    for output in outputs
  )
  assert not re.search(r"(/home|/root|/tmp|/Users|/usr)/", texts), (
    "a path of the machine that ran it"
  )
  assert execute.path(name).stat().st_size < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_forms_in_one_place(name):
  notebook = execute.read(name)
  cells = execute.code(notebook)
  forms = [cell for cell in cells if "#@param" in cell.source]
  assert forms == cells[:2] and cells[1] == execute.parameters(notebook)
  assert re.findall(r"^(\w+) = .*#@param", cells[0].source, re.M) == ["REPOSITORY"]
  assert all(isinstance(node, ast.Assign) for node in ast.parse(cells[1].source).body)
  used = "\n".join(cell.source for cell in cells[2:])
  for node in ast.parse(cells[1].source).body:
    assert re.search(rf"\b{node.targets[0].id}\b", used), (
      f"{node.targets[0].id} is set and not used"
    )
  texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
  files = re.findall(r"`((?:v05_jax|configs|experiments|docs)/[\w./]*|\w+\.ipynb)`", texts)
  assert files and all(
    (ROOT / file).exists() or (ROOT / "notebooks" / file).exists() for file in files
  )


def test_other_parameters():
  notebook = execute.read("estimator_tour")
  filled = execute.fill(notebook, {"K": 7, "V": -0.5})
  values = {}
  exec(execute.parameters(filled).source, values)
  assert (values["K"], values["V"]) == (7, -0.5)
  exec(execute.parameters(notebook).source, before := {})
  assert {k for k in values if k in before and values[k] != before[k]} - {"__builtins__"} == {
    "K",
    "V",
  }
  with pytest.raises(ValueError, match="no assignment of NOTHING"):
    execute.fill(notebook, {"NOTHING": 1})
  with pytest.raises(ValueError, match="found 'tour', expected one of estimator_tour, "):
    execute.path("tour")
