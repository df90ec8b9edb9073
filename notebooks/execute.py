"""Runs notebooks from top to bottom and keeps what they print and draw.

    python -m notebooks.execute                     all but DOWNLOADS; needs ".[notebooks]"
    python -m notebooks.execute estimator_tour      by name

What a notebook shows comes from the code that stands in it: its metadata hold a digest of the code
cells that were run, which a test compares with those of the file. Change a cell, and the notebook
is to be run again.
"""

import ast
import base64
from collections.abc import Iterable
import copy
import hashlib
import io
import os
from pathlib import Path
import sys
import tempfile
from typing import Any

from nbclient import NotebookClient
import nbformat
from PIL import Image
from traitlets.config import Config

FOLDER = Path(__file__).parent
DOWNLOADS = ("real_model",)  # want a model of the hub: no outputs are kept, tests have tiny ones
PARAMETERS = "parameters"  # tag of the one cell with a notebook's settings
TIMEOUT = 1800  # seconds a cell may take
FORMAT = 4  # of notebooks, as nbformat counts
# That torch, and widgets for progress bars, are not there, is no news.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore:IProgress not found"}


def path(name: str) -> Path:
  """The notebook of a name. Raises ValueError where there is none."""
  if name not in names():
    raise ValueError(f"notebook: found {name!r}, expected one of {', '.join(names())}")
  return FOLDER / f"{name}.ipynb"


def names() -> list[str]:
  """All notebooks, in alphabetical order."""
  return sorted(file.stem for file in FOLDER.glob("*.ipynb"))


def read(name: str):
  """The notebook of a name, as it stands in its file."""
  return nbformat.read(path(name), as_version=FORMAT)


def code(notebook) -> list:
  """Its code cells."""
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook) -> str:
  """SHA-256 of its code cells."""
  return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()


def parameters(notebook):
  """The cell tagged "parameters". Raises ValueError unless there is one."""
  cells = [cell for cell in code(notebook) if PARAMETERS in cell.metadata.get("tags", ())]
  if len(cells) != 1:
    raise ValueError(f"notebook: found {len(cells)} cells tagged {PARAMETERS}, expected one")
  return cells[0]


def fill(notebook, values: dict[str, Any]):
  """A copy with other values in its parameters cell. Raises ValueError for a name that is not
  assigned there."""
  notebook = copy.deepcopy(notebook)
  cell, values = parameters(notebook), dict(values)
  lines = cell.source.split("\n")
  for node in ast.parse(cell.source).body:
    name = node.targets[0].id if isinstance(node, ast.Assign) else None
    if name in values:
      lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {values.pop(name)!r}"] + [""] * (
        node.end_lineno - node.lineno
      )
  if values:
    raise ValueError(f"parameters: found no assignment of {', '.join(values)}, expected one each")
  cell.source = "\n".join(lines)
  return notebook


def execute(notebook, folder, environment: dict[str, str] | None = None):
  """A copy with the outputs of a run in `folder`, by this interpreter and the package of this
  checkout.

  environment: variables of the kernel beside those of this process. Raises nbclient's
  CellExecutionError where a cell fails.
  """
  notebook = copy.deepcopy(notebook)
  # Sockets' names are short, so the kernel's have a folder of their own.
  with tempfile.TemporaryDirectory(prefix="kernel-") as own:
    settings = Config()
    settings.ConnectionFileMixin.update(
      {"transport": "ipc", "connection_file": f"{own}/kernel.json"}
    )
    client = NotebookClient(
      notebook,
      timeout=TIMEOUT,
      kernel_name="python3",
      record_timing=False,
      config=settings,
      resources={"metadata": {"path": str(folder)}},
    )
    variables = {"IPYTHONDIR": own, "PYTHONPATH": str(FOLDER.parent)} | QUIET
    client.execute(env={**os.environ, **variables, **(environment or {})})
  notebook.metadata["executed"] = {"sha256": digest(notebook)}
  return notebook


def pictures(notebook) -> list:
  """Outputs that are PNG pictures, by MIME type -> base64."""
  outputs = (output for cell in code(notebook) for output in cell.outputs)
  return [output.data for output in outputs if "image/png" in output.get("data", {})]


def shrink(notebook):
  """Keeps 128 colours of each picture, spread over all that it has: 1/3 of the size, as every run
  leaves its own."""
  for data in pictures(notebook):
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    file = io.BytesIO()
    few = picture.quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, "png", optimize=True)
    data["image/png"] = base64.b64encode(file.getvalue()).decode()


def main(chosen: Iterable[str]):
  """Runs the notebooks of these names, by default all that download nothing, and writes them with
  their outputs."""
  for name in list(chosen) or [name for name in names() if name not in DOWNLOADS]:
    with tempfile.TemporaryDirectory() as folder:
      notebook = execute(read(name), folder)
    shrink(notebook)
    # The version of Python is of the machine, not of the notebook.
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path(name))
    print(f"{name}: {len(code(notebook))} cells, {path(name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except ValueError as error:
    sys.exit(f"error: {error}")
