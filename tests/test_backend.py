"""The process: where compiled programs are kept."""

import logging
import os
import pwd

import pytest

from v05_jax import backend


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
