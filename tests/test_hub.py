"""Models by their names on the hub: what is in the cache is used, and what cannot be fetched says
how to get it."""

import json
from pathlib import Path
import shutil

from huggingface_hub import constants
from ml_collections import ConfigDict
import pytest

from tests import support
from v05_jax import models
from v05_jax.configs import default
from v05_jax.models import hub

DATA = Path(__file__).parent / "data" / "qwen3"


def policy(path):
  return ConfigDict(default.get_config().policy.to_dict() | {"path": path})


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """An empty cache, and no network."""
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)
  return tmp_path / "cache"


def test_offline_the_command_and_the_place_are_said(offline):
  name = "HuggingFaceTB/SmolLM2-135M-Instruct"
  with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set") as error:
    models.load(policy(name))
  text = str(error.value)
  assert text.startswith(f"config.policy.path: found {name!r}")
  assert f"hf download {name} --include 'config.json'" in text
  assert text.count(f"--local-dir {name}") == 1 and str(offline.parent / name) in text


def test_where_the_network_fails_the_command_is_said(offline, monkeypatch):
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(ValueError, match=r"could not be fetched from the hub(.|\n)*hf download a/b"):
    hub.fetch("a/b", "config.policy.path")


def test_a_model_in_the_cache_is_used(offline):
  commit = "0123456789" * 4
  snapshot = offline / "models--owner--tiny" / "snapshots" / commit
  shutil.copytree(DATA / "tied", snapshot)
  support.character_tokenizer("0123456789", 64).save_pretrained(snapshot)
  (offline / "models--owner--tiny" / "refs").mkdir()
  (offline / "models--owner--tiny" / "refs" / "main").write_text(commit)
  assert models.load(policy("owner/tiny")).config.vocab_size == 64


def test_a_folder_comes_before_the_hub(offline):
  folder = offline.parent / "owner" / "tiny"
  shutil.copytree(DATA / "tied", folder)
  support.character_tokenizer("0123456789", 64).save_pretrained(folder)
  assert (
    models.load(policy("owner/tiny")).config.num_layers
    == json.loads((folder / "config.json").read_text())["num_hidden_layers"]
  )


@pytest.mark.parametrize("path", ["nowhere", "/no/where", "./a/b", "a/b/c", "../b", "~/b", "a/b/"])
def test_a_path_is_no_name(path, offline):
  assert not hub.is_name(path)
  with pytest.raises(ValueError, match=r"config\.policy\.path: found .*name of a model on the hub"):
    models.load(policy(path))
