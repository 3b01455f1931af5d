"""Data sets that are damaged."""

from pathlib import Path
import shutil

import pytest


@pytest.fixture
def damaged_mnist(data_dir, tmp_path):
  """(a copy of MNIST's directory, a function that cuts a split's file there)."""
  shutil.copytree(Path(data_dir) / "mnist", tmp_path / "mnist")
  version = next((tmp_path / "mnist").iterdir())
  for path in (version, *version.iterdir()):
    path.chmod(0o755)

  def damage(split):
    (path,) = version.glob(f"mnist-{split}.array_record*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path

  return tmp_path, damage
