"""Eight CPU devices for every test and a compilation cache of the session, set before jax is first
imported."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    *(f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f),
    "--xla_force_host_platform_device_count=8",
  ]
)
# Many tests build the same programs; pytest's workers share the folder of the process that started
# them.
os.environ.setdefault("V05_TEST_CACHE", tempfile.mkdtemp(prefix="v05-xla-"))
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["V05_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def pytest_sessionfinish(session):
  if not hasattr(session.config, "workerinput"):
    import shutil

    shutil.rmtree(os.environ["V05_TEST_CACHE"], ignore_errors=True)
