"""Fixtures of the tests that run the training program."""

import pytest


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """One compilation cache for all programs that the tests of a file start."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("PYTHONUNBUFFERED", "1")
    yield
