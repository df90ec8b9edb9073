"""The process: where compiled programs are kept."""

import logging
import os
import pwd

import jax
import pytest

from v05_jax import backend
from v05_jax.configs import default


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  assert backend.cache_folder() == str(tmp_path / ".cache" / "v05_jax" / "xla")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  assert backend.cache_folder() == str(tmp_path / "other" / "v05_jax" / "xla")
  assert not caplog.records and not os.listdir(tmp_path / "other" / "v05_jax" / "xla")


@pytest.mark.parametrize("place", ["/proc/nowhere", "FILE", None])
def test_a_place_that_cannot_be_written_costs_one_warning(place, tmp_path, monkeypatch, caplog):
  """A home that is not there, is a file, or is known neither by HOME nor by the system."""
  (tmp_path / "file").touch()
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setenv("HOME", str(tmp_path / "file") if place == "FILE" else str(place))
  if place is None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["a user that the system does not know"])
  with caplog.at_level(logging.WARNING):
    assert backend.cache_folder() is None
  (said,) = caplog.records
  assert "compiled programs are not kept for the next run" in said.getMessage()


def test_where_nothing_is_to_be_kept_no_place_is_made(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  for name in backend.FRACTIONS:
    monkeypatch.delenv(name, raising=False)
  kept = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    backend.start(default.get_config())
    assert not os.listdir(tmp_path)
    # Of several processes process 0 alone could keep any.
    jax.config.update("jax_enable_compilation_cache", True)
    backend.start(default.get_config(), alone=False)
    assert not os.listdir(tmp_path) and jax.config.jax_compilation_cache_dir is None
    assert jax.config.jax_default_matmul_precision == "highest"  # as float32 is asked for
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == "0.9"
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # both at once are an error of jax
    backend.start(default.get_config(), alone=False)
    assert "XLA_CLIENT_MEM_FRACTION" not in os.environ
  finally:
    jax.config.update("jax_default_matmul_precision", None)
    jax.config.update("jax_compilation_cache_dir", kept[0])
    jax.config.update("jax_enable_compilation_cache", kept[1])
