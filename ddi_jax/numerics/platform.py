"""The platform that a program is compiled for."""

import jax
from jax.sharding import Mesh


def target(mesh: Mesh | None = None) -> str:
  """The platform of what is traced now: "cpu", "gpu" or "tpu".

  That of the mesh's devices where `jax.set_mesh` has set one; else that of
  `jax.default_device` if the user has set it; else jax's default.  So a program can be
  compiled for devices that this machine does not have
  (`jax.experimental.topologies`).  jax traces a function again where either changes.

  Args:
    mesh: asked in place of the one that is set, for decisions outside of a trace.
  """
  if mesh is not None:
    return mesh.devices.flat[0].platform
  in_mesh = jax.sharding.get_abstract_mesh().abstract_device
  if hasattr(in_mesh, "platform"):  # Not in jax 0.8.
    return in_mesh.platform
  device = jax.config.jax_default_device  # type: ignore[attr-defined]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform
