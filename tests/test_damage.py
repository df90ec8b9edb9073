"""Damaged checkpoints: whatever happens to one of their files is found before it is restored, or
changes nothing."""

import logging
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

from v05_jax.run import checkpoint, digest

SEED = 0
FLIPS = 6  # bits of a file


def flip(at):
  def change(data):
    place = at % max(1, 8 * len(data))
    found = bytearray(data)
    found[place // 8] ^= 1 << place % 8
    return bytes(found)

  return change


def damages():
  """Name -> what happens to the bytes of a file; None = the file is gone."""
  draw = random.Random(SEED)
  flips = {f"bit {i}": flip(draw.randrange(1 << 40)) for i in range(FLIPS)}
  return flips | {
    "first bit": flip(0),
    "last bit": lambda data: flip(8 * len(data) - 1)(data),
    "cut in half": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "twice": lambda data: data + data,
    "gone": lambda data: None,
  }


def state(step):
  return {
    "params": {"w": np.arange(600, dtype=np.float32).reshape(20, 30) + step, "b": np.ones(3)},
    "step": np.int32(step),
    "cursor": np.int64(step),
  }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A folder with checkpoints of steps 1 and 2."""
  folder = tmp_path_factory.mktemp("whole")
  with checkpoint.Checkpoints(folder, 2) as saved:
    for step in (1, 2):
      saved.save(step, state(step), {"data.path": "12"})
  return folder


def written(folder) -> list[pathlib.Path]:
  """The files of its newest checkpoint, relative to it."""
  root = folder / "checkpoints" / "2"
  return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())


def test_every_damage_to_every_file_is_found_or_changes_nothing(whole, tmp_path):
  """Flipped bits, cut, empty and missing files: 15 damages to each of a dozen files."""
  count, kinds, run = 0, damages(), tmp_path / "run"
  shutil.copytree(whole, run)
  for name in written(whole):
    file = run / "checkpoints" / "2" / name
    data, held = file.read_bytes(), name.parts[0] == checkpoint.ITEM
    for kind, change in kinds.items():
      changed = change(data)
      if changed == data:
        continue
      file.unlink() if changed is None else file.write_bytes(changed)
      found = restored(run)
      count += 1
      label = f"{name}: {kind}: {found}"
      if isinstance(found, ValueError):
        assert str(run / "checkpoints" / "2") in str(found), label
        assert "Traceback" not in str(found) and "step 1" in str(found), label
        known = name.name in (digest.FILE, "commit_success.txt")
        assert not held or known or f"the file {name.relative_to('default')} " in str(found), label
      else:  # step 1 where the checkpoint does not count as complete any more
        assert not held or name.name in (digest.FILE, "commit_success.txt"), label
        assert found in (1, 2), label
    file.write_bytes(data)
  assert restored(run) == 2
  assert count >= 150


def restored(run):
  """The step of what is restored, whose arrays are those that were saved, or the error."""
  with checkpoint.Checkpoints(run, 2) as saved:
    newest = saved.latest()
    try:
      found = saved.restore(newest, state(0), {"data.path": "12"})
    except ValueError as error:
      return error
  jax.tree.map(np.testing.assert_array_equal, found, state(newest))
  return newest


def test_a_checkpoint_without_checksums_is_read_and_the_log_says_so(whole, tmp_path, caplog):
  """As versions wrote it that had none."""
  shutil.copytree(whole, tmp_path / "run")
  (tmp_path / "run" / "checkpoints" / "2" / "default" / digest.FILE).unlink()
  with caplog.at_level(logging.WARNING):
    assert restored(tmp_path / "run") == 2
  (said,) = caplog.records
  assert "checkpoints/2 has no checksums: its files are read unchecked" in said.getMessage()


def swap(root):
  (root / "1").rename(root / "3"), (root / "2").rename(root / "1"), (root / "3").rename(root / "2")


def arrays_of_another(root):
  shutil.rmtree(root / "2" / "default")
  shutil.copytree(root / "1" / "default", root / "2" / "default")


def folder_for(name):
  def change(root):
    (root / "2" / "default" / name).unlink()
    (root / "2" / "default" / name).mkdir()

  return change


@pytest.mark.parametrize(
  "change, words",
  [
    (swap, "found the state after step 1 in it"),
    (arrays_of_another, "found the state after step 1 in it"),
    (lambda root: (root / "2").rename(root / "9"), "found the state after step 2 in it"),
    (folder_for(digest.FILE), "cannot be read: Is a directory"),
    (folder_for("manifest.ocdbt"), "the file manifest.ocdbt cannot be read: Is a directory"),
  ],
)
def test_what_is_no_checkpoint_of_its_step_is_never_restored(whole, tmp_path, change, words):
  shutil.copytree(whole, tmp_path / "run")
  change(tmp_path / "run" / "checkpoints")
  found = restored(tmp_path / "run")
  assert (
    isinstance(found, ValueError) and words in str(found) and "goes on from step 1" in str(found)
  )


def test_checkpoints_that_are_a_file_are_named_before_anything_starts(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    with pytest.raises(ValueError, match="checkpoints: found a file, expected a folder"):
      saved.latest()


def test_two_files_that_changed_places_are_found(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  folder = tmp_path / "run" / "checkpoints" / "2" / "default"
  a, b = sorted((folder / "ocdbt.process_0" / "d").iterdir())[:2]
  a.rename(folder / "x"), b.rename(a), (folder / "x").rename(b)
  assert f"the file ocdbt.process_0/d/{a.name} has changed" in str(restored(tmp_path / "run"))


def test_other_rows_than_those_a_checkpoint_has_learned_from(whole):
  with checkpoint.Checkpoints(whole, 2) as saved:
    saved.restore(2, state(0))  # whoever learns nothing more is not asked
    saved.restore(2, state(0), {"data.path": "12", "eval.path": "new"})
    with pytest.raises(ValueError) as error:
      saved.restore(2, state(0), {"data.path": "34"})
  text = str(error.value)
  assert "checkpoints/2 has learned from other data" in text
  assert "config.data.path: found rows with the digest 34, expected 12" in text


def test_checksums_are_those_of_the_files(root):
  (root / "a" / "b").mkdir(parents=True)
  (root / "a" / "one").write_bytes(b"123456789")
  (root / "a" / "b" / "two").write_bytes(b"")
  digest.write(root / "a")
  text = (root / "a" / digest.FILE).read_text()
  assert text.startswith("00000000 b/two\ncbf43926 one\n")  # CRC-32's check value
  assert digest.damaged(root / "a") == ""
  (root / "a" / "one").write_bytes(b"123456788")
  found = "the file one has changed since it was written"
  assert not digest.damaged(root / "a", lambda number: number == 0)  # another process looks at it
  assert digest.damaged(root / "a", lambda number: number == 1).startswith(found)
  digest.write(root / "a")
  assert digest.damaged(root / "a") == "" and digest.damaged(root / "a" / "b") is None


def test_how_fast_files_are_checked_is_measured(tmp_path):
  (tmp_path / "file").write_bytes(bytes(1000))
  size, seconds = digest.measure(str(tmp_path))
  assert size == 1000 and seconds > 0
  assert digest.measure(megabytes=1)[0] == 10**6
