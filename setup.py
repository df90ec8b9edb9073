"""Installs the package.

Lower bounds live here, so that Colab keeps the jax and libtpu it brings; the exact versions that
`make` and continuous integration use live in constraints.txt alone.
"""

from pathlib import Path
import re

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "v05_jax" / "__init__.py").read_text(), re.M)
PLOTS = ["matplotlib>=3.8"]
NOTEBOOKS = ["ipykernel>=6", "nbclient>=0.10"]
PARQUET = ["pyarrow>=15"]
GGUF = ["gguf>=0.17"]
BENCHMARKS = ["datasets>=3.0", *PARQUET]

setup(
  name="v05_jax",
  version=VERSION[1],
  description="V0.5: a generalist value model as a prior for sparse RL rollouts, in JAX",
  license="Apache-2.0",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  packages=find_packages(include=["v05_jax", "v05_jax.*"]),
  package_dir={"v05_jax.configs": "configs"},  # the repository's root has them where people look
  entry_points={"console_scripts": ["v05 = v05_jax.main:console"]},
  package_data={"v05_jax": ["run/report.*", "tasks/warm_start*/*", "tasks/value_model/*"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "flax>=0.11",
    "jax>=0.9",
    "jinja2>=3.1.6",  # chat templates
    "math-verify>=0.8",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.24",
    "safetensors>=0.4.3",
    "scipy>=1.13",
    "tensorboardX>=2.6.2",
    "transformers>=5.0",
  ],
  extras_require={
    "test": [
      "pytest>=8",
      "pytest-timeout>=2.3",
      "pytest-xdist>=3.6",
      "ruff>=0.14",
      *NOTEBOOKS,
      *PARQUET,
      *GGUF,
    ],
    "plots": PLOTS,  # summary.png at the end of a run, and the experiments' figures
    "parquet": PARQUET,  # prompts from .parquet files
    "gguf": GGUF,  # models of llama.cpp: python -m v05_jax.models.gguf
    "benchmarks": BENCHMARKS,  # public problem sets from the Hugging Face hub
    "reasoning-gym": ["reasoning-gym>=0.1.25"],  # problems made by rules, with their verifiers
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],  # make docs
    "notebooks": ["jupyterlab>=4", *NOTEBOOKS, *PLOTS],
    "wandb": ["wandb>=0.19"],  # sinks of metrics, beside TensorBoard
    "trackio": ["trackio>=0.20"],
    "mlflow": ["mlflow>=3.1"],
    "gcs": ["gcsfs>=2024.6"],  # workdirs in gs://
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
  },
)
