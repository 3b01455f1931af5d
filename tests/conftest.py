"""Settings shared by all tests: what may be sloppy elsewhere is an error here."""

import os
from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# The first example compiles, which takes as long as it takes.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=60)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def data_dir() -> str:
  """A TFDS data directory with mnist and cifar10, where there is one."""
  default = Path(__file__).parents[2] / "shared" / "data" / "tfds"
  folder = Path(os.environ.get("TFDS_DATA_DIR", default))
  for name in ("mnist", "cifar10"):
    if not (folder / name).is_dir():
      pytest.skip(f"no prepared {name} in {folder} (set TFDS_DATA_DIR)")
  return str(folder)


@pytest.fixture
def x64():
  """Double precision for the duration of a test."""
  with jax.enable_x64(True):
    yield
