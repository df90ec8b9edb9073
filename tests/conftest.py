"""Eight CPU devices for every test, set before jax is first imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([
  *(f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f),
  "--xla_force_host_platform_device_count=8",
])
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
