"""Checksums of a folder's files, kept in it: whether it is still as it was written."""

import hashlib
from pathlib import Path

from ddi_jax.training.storage.files import read_json, write_json

CHECKSUMS_FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
  """Writes the SHA-256 of every file in `folder`, as a file that appears whole."""
  write_json(folder / CHECKSUMS_FILE, _checksums(folder))


def is_finished(folder: Path) -> bool:
  """Whether `write_checksums` has ended there."""
  return (folder / CHECKSUMS_FILE).exists()


def find_damage(folder: Path) -> str | None:
  """What is wrong with a folder, None if its files are as `write_checksums` saw them.

  Tells disk faults and cut files; no protection against somebody who also changes the
  checksums.
  """
  if not is_finished(folder):
    return f"{CHECKSUMS_FILE} is missing"
  try:
    expected = read_json(folder / CHECKSUMS_FILE)
  except ValueError:
    return f"{CHECKSUMS_FILE} is damaged"
  actual = _checksums(folder)
  if not expected:
    return f"{CHECKSUMS_FILE} is damaged"
  for name in sorted(expected.keys() | actual.keys()):
    if name not in actual:
      return f"{name} is missing"
    if expected.get(name) != actual[name]:
      return f"{name} is not as it was saved"
  return None


def _checksums(folder: Path) -> dict[str, str]:
  sums = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.name != CHECKSUMS_FILE:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
      sums[path.relative_to(folder).as_posix()] = digest.hexdigest()
  return sums
