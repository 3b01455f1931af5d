"""Fixtures of the tests that run the training program."""

import pytest


@pytest.fixture(scope="module")
def unbuffered():
  """What the programs that a test starts print is seen at once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONUNBUFFERED", "1")
    yield
