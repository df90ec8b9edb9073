"""The configs of the repository's root, where the package is used from a checkout. setup.py
installs those themselves under this name, in place of this file."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
