"""Checksums of a folder's files, which show whether they have changed."""

import hashlib
from pathlib import Path

from ddi_jax.training.storage.files import read_json, write_json

CHECKSUMS_FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
  """Write the SHA-256 of every file in `folder` to a file in it, atomically."""
  write_json(folder / CHECKSUMS_FILE, _checksums(folder))


def is_finished(folder: Path) -> bool:
  """Whether `write_checksums` has finished for this folder."""
  return (folder / CHECKSUMS_FILE).exists()


def find_damage(folder: Path) -> str | None:
  """Describe a change to a folder's files since `write_checksums`, or return None.

  This detects disk faults and truncated files.  It does not protect against somebody
  who also changes the checksums.
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
