"""Programs for other platforms than the machine's."""

from typing import Any

from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh


def compiling_for(platform: str) -> Any:
  """A context in which programs are traced for a platform, "gpu" for example.

  They still run where jax computes.
  """
  device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
  one = AbstractMesh((1,), ("all",), (AxisType.Auto,), abstract_device=device)
  return use_abstract_mesh(one)
