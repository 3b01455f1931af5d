"""Programs for other platforms than the machine's."""

import inspect
from typing import Any

from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh
import pytest


def compiling_for(platform: str) -> Any:
  """A context in which programs are traced for a platform, "gpu" for example.

  They still run where jax computes.  jax 0.8 cannot say it: the test is skipped.
  """
  if "platform" not in inspect.signature(AbstractDevice).parameters:
    pytest.skip("an abstract device of jax 0.8 has no platform")
  device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
  one = AbstractMesh((1,), ("all",), (AxisType.Auto,), abstract_device=device)
  return use_abstract_mesh(one)
