"""The process: settings that JAX must have before its backend starts, and what shortens the start
and saves memory."""

import contextlib
import ctypes
import functools
import os
import pathlib
import sys
import tempfile

from absl import logging
import jax

# Options of XLA's CPU compiler: one LLVM module, the simpler of two emitters, few optimizations.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
  "xla_cpu_parallel_codegen_split_count": 1,
  "xla_cpu_use_fusion_emitters": False,
}


MEMORY = "0.9"  # the share of a GPU's memory that a run takes; JAX by itself takes .75
FRACTIONS = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # how a user sets it


def start(config, alone: bool = True):
  """Applies `config.cpu_devices`, takes MEMORY of a GPU where the user has not said how much, and
  keeps compiled programs between runs of one process, `alone`, where the user has not said where.

  They lie in `cache_folder()`; JAX_COMPILATION_CACHE_DIR names another place and
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. Call it before anything else touches a device.

  Of several processes JAX lets process 0 alone keep programs. Where each has a folder of its own,
  the others would compile what process 0 finds; on GPUs they would wait for its part of the search
  for the fastest kernels, which it never makes.

  Raises ValueError where the backend has started already with another number of devices.
  """
  if not any(os.environ.get(name) for name in FRACTIONS):
    os.environ[FRACTIONS[0]] = MEMORY
  keeps = alone and jax.config.jax_enable_compilation_cache
  if keeps and jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", cache_folder())
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if config.policy.dtype == "float32" and jax.config.jax_default_matmul_precision is None:
    # Otherwise accelerators multiply float32 with 8 to 11 bits of its mantissa.
    jax.config.update("jax_default_matmul_precision", "highest")
  if config.cpu_devices != 1:
    count = config.cpu_devices or cores()
    try:
      jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as e:
      raise ValueError(f"config.cpu_devices={config.cpu_devices}: {e}") from e


def cache_folder() -> str | None:
  """`$XDG_CACHE_HOME/v05_jax/xla` (~/.cache by default); None, with a warning, where it cannot be
  written, as without a home or on a disk that is read-only: JAX would warn of each program."""
  try:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "v05_jax" / "xla"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      return str(folder)
  except (OSError, RuntimeError) as error:  # the last: there is no home
    place = "JAX_COMPILATION_CACHE_DIR may name a place for them"
    logging.warning("compiled programs are not kept for the next run: %s (%s)", error, place)
    return None


@functools.cache
def quick() -> dict:
  """Options of `jax.jit` for a program that runs once a step on small arrays. On a CPU such a
  program takes longer to compile than to run: with these options it compiles in a sixth of the time
  and runs three times as long. {} for other devices, and where the compiler does not know them."""
  if jax.default_backend() != "cpu":
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=QUICK).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return {"compiler_options": QUICK}


def without_torch():
  """Imports transformers, of which only the tokenizers are used, as if torch were not there: that
  saves seconds and 180 MB.

  Only for a process of our own, since models of transformers cannot be made in it afterwards.
  Importing torch itself still works.
  """
  if "torch" in sys.modules:
    return
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not there
  sys.modules["torch"] = None
  try:
    from transformers import utils

    utils.is_torch_available()  # which it remembers
  finally:
    del sys.modules["torch"]


def release_memory():
  """Returns memory that glibc's allocator keeps for later use to the system: hundreds of MB after
  XLA has compiled."""
  with contextlib.suppress(OSError, AttributeError, TypeError):  # another system's C library
    ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
  """Processor cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
