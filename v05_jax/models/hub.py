"""Models by their names on the Hugging Face hub (owner/name), fetched where the network may be
asked."""

from pathlib import Path
import re

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Files of a model's own folder that are used; names without a slash match nothing below it.
PATTERNS = (
  "config.json",
  "generation_config.json",
  "model.safetensors",
  "model-*.safetensors",
  "model.safetensors.index.json",
  "tokenizer*",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template*",
)


def is_name(path: str) -> bool:
  """Whether a text may be a model's name on the hub."""
  return re.fullmatch(NAME, path) is not None


def fetch(name: str, key: str) -> Path:
  """The local folder of a model on the hub, downloaded into the Hugging Face cache where it is not
  there yet.

  Environment variables of huggingface_hub are followed (HF_HUB_OFFLINE, HF_HOME, HF_TOKEN). Raises
  ValueError, naming the config's `key`, with the command that downloads the model elsewhere and the
  place for it where it cannot be fetched.
  """
  import huggingface_hub
  from huggingface_hub import constants
  from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(PATTERNS)))
  except Exception as error:  # of the hub, the network, a proxy, the disk
    cause = error
  if isinstance(cause, GatedRepoError):
    terms = f"accept the terms at https://huggingface.co/{name}"
    reason = f"its owner asks for a login: {terms}, then hf auth login"
  elif isinstance(cause, RepositoryNotFoundError):
    reason = "the hub has no such model, or it is private: hf auth login"
  elif constants.HF_HUB_OFFLINE:
    reason = "HF_HUB_OFFLINE is set"
  else:
    reason = f"{type(cause).__name__}: {cause}".splitlines()[0][:300]
  include = " ".join(f"--include '{pattern}'" for pattern in PATTERNS)
  raise ValueError(
    f"{key}: found {name!r}, which is no folder here and could not be fetched from the hub "
    f"({reason}). Where there is a network, run\n"
    f"  hf download {name} {include} --local-dir {name}\n"
    f"and put the folder to {Path(name).absolute()}, or set {key} to its place"
  ) from cause
