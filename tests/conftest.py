"""Eight CPU devices for every test, programs that compile fast, and a cache of them; set before jax
is first imported."""

import contextlib
import math
import os
import pathlib
import resource
import shutil
import subprocess
import sys

from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
import pytest

ROOT = pathlib.Path(__file__).parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests run a program once or twice, and so compile it in the way that takes least time and memory:
# as one module for LLVM, by the plainer of two emitters, with few optimizations. A test of a
# program's speed uses the fixture `optimized`.
COMPILER = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(
  [
    *(f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f),
    *COMPILER,
    "--xla_force_host_platform_device_count=8",
  ]
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Many tests build the same programs. The cache's names are digests of the program, the compiler and
# its options: what was compiled from other sources is never found. The folder stays for the next
# run; what makes it large is thrown away.
CACHE = pathlib.Path(os.environ.setdefault("V05_TEST_CACHE", str(ROOT / ".cache" / "jax-tests")))
CACHE_MEGABYTES = 1000
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

# A process keeps every program that it has run. Beyond the first number of megabytes programs are
# given up after a test, unless it has grown by less than the second since it last did so.
MEGABYTES, GROWTH = 1200, 300
_held = {"after": 0.0, "peaks": {}}


def megabytes() -> float:
  """What this process holds now; 0 where the system does not say."""
  with contextlib.suppress(OSError):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
  return 0.0


def pytest_runtest_logfinish():
  if "jax" not in sys.modules or megabytes() < max(MEGABYTES, _held["after"] + GROWTH):
    return
  import jax

  from v05_jax import backend

  jax.clear_caches()
  backend.release_memory()
  _held["after"] = megabytes()


class Bucket(MemoryFileSystem):
  """An object store in memory behind gs://: objects can be replaced, but not appended to."""

  protocol, store, pseudo_dirs = "gs", {}, [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("gs://"))

  def _open(self, path, mode="rb", **options):
    assert "a" not in mode
    return super()._open(path, mode, **options)


@pytest.fixture(params=["local", "gs://"])
def root(request, tmp_path, monkeypatch):
  """A place for workdirs: a local folder, or a bucket."""
  if request.param == "local":
    yield epath.Path(tmp_path)
    return
  monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Bucket)
  Bucket.store.clear()
  yield epath.Path("gs://bucket")


@pytest.fixture
def small_disk(tmp_path):
  """Makes a folder a disk of its own, of a few kB."""
  made = []

  def mount(folder, kilobytes=8):
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
      pytest.skip("a small disk can be mounted by root on Linux only")
    made.append(folder)
    return folder

  yield mount
  for folder in reversed(made):
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def optimized():
  """Programs are compiled with a run's optimizations."""
  import jax

  jax.clear_caches()
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)
  jax.clear_caches()


@pytest.fixture(scope="module")
def few_devices():
  """A mesh takes as many of the eight devices as its config asks for, and one where that is -1."""
  import jax

  from v05_jax.scale import sharding

  make = sharding.make_mesh

  def few(config, devices=None):
    if devices is None:
      devices = jax.devices()[: math.prod(max(config[axis], 1) for axis in sharding.AXES)]
    return make(config, devices)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", few)
    yield


def pytest_sessionfinish(session):
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
    1e6 if sys.platform != "darwin" else 1e9
  )
  if hasattr(session.config, "workeroutput"):
    session.config.workeroutput["peak"] = peak
    return
  _held["peaks"]["this process"] = peak
  size = sum(file.stat().st_size for file in CACHE.glob("*")) / 1e6 if CACHE.exists() else 0.0
  if size > CACHE_MEGABYTES:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
  if peak := getattr(node, "workeroutput", {}).get("peak"):
    _held["peaks"][node.gateway.id] = peak


def pytest_terminal_summary(terminalreporter):
  peaks = ", ".join(f"{name} {peak:.2f}" for name, peak in sorted(_held["peaks"].items()))
  terminalreporter.write_line(f"memory at most, GB: {peaks}")
